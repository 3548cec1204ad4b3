"""Behaviours in Hologres: two tables for each Sequence view, with a row for each behaviour, as PAI's SDKs read them.

`<project>_<view>_seq_offline` holds what was published, `<project>_<view>_seq` what was written since: by `Rows`, or by
anybody who inserts into it, as writers of streams do in PAI.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

import asyncpg

from chassis import datatypes, errors
from services.management import publish, sequences
from services.management.hologres import PUBLIC, Hologres, quoted
from services.management.hologres_rows import (
    ORDINAL,
    STAGING,
    columns_of,
    comment,
    definitions,
    dropped,
    fresh,
    keys_of,
    made,
    placed,
    records_of,
    used,
)
from services.management.rows import Row

Users = Mapping[Any, Sequence[dict[str, Any]]]


class HologresSequences:
    """Such tables of one database. Raises what `hologres.translated` says."""

    def __init__(self, database: Hologres) -> None:
        self._database = database
        self._timeout_seconds = database.timeout_seconds

    async def ensure(self, view: Row) -> None:
        """Make a view's tables, or give them the columns that they lack. Idempotent.

        Raises AlreadyExists if one is somebody else's, or has a column of another type; InvalidArgument for types that
        no behaviour has.
        """
        shape = _Shape(view)
        async with self._database.connected() as connection:
            for title in _titles(view):
                if await made(
                    connection, view, title, shape.columns, shape.constraints, timeout_seconds=self._timeout_seconds
                ):
                    await connection.execute(f"CREATE INDEX ON {placed(title)} ({shape.index})")
                    if shape.play_time:
                        await connection.execute(f"ALTER TABLE {placed(title)} ALTER {shape.play_time} SET DEFAULT 0")

    async def append(self, view: Row) -> None:
        """Give a view's tables the columns that they lack. Nothing before a publish."""
        async with self._database.connected() as connection:
            there = await columns_of(connection, _titles(view)[0], self._timeout_seconds)
        if there:
            await self.ensure(view)

    async def drop(self, view: Row) -> None:
        """Delete a view's tables. Idempotent. One that is somebody else's stays."""
        async with self._database.connected() as connection:
            for title in _titles(view):
                await dropped(connection, view, title, self._timeout_seconds)

    async def use(self, view: Row) -> tuple[int, int]:
        """Behaviours, as of the last publish, and bytes on disk of a view's tables."""
        async with self._database.connected() as connection:
            uses = [await used(connection, title, self._timeout_seconds) for title in _titles(view)]
        return sum(rows for rows, _ in uses), sum(size for _, size in uses)

    async def write(
        self,
        view: Row,
        mode: str,
        arrow_streams: AsyncIterator[bytes],
        timeout_seconds: float,
        confirm: Callable[[], Awaitable[None]],
    ) -> int:
        """Publish Arrow IPC streams, the newest behaviour of each user last, in one transaction; how many there were.
        `confirm` is called before it is committed, and may raise. Merge replaces those of the users that it brings."""
        published, _ = _titles(view)
        shape = _Shape(view)
        names = ", ".join(quoted(name) for name, _ in shape.columns)
        written = 0
        async with self._database.connected() as connection, asyncio.timeout(timeout_seconds), connection.transaction():
            await connection.execute(
                f"CREATE TEMPORARY TABLE {STAGING} ({definitions(shape.columns)}{shape.constraints}) ON COMMIT DROP"
            )
            async for stream in arrow_streams:
                records = await asyncio.to_thread(records_of, stream)
                await connection.copy_records_to_table(
                    STAGING, records=records, columns=[name for name, _ in shape.columns]
                )
                written += len(records)
            # One at a time from here: who comes later sees what the other one left.
            await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", published)
            brought = f"SELECT {names} FROM {STAGING} ORDER BY {ORDINAL}"  # noqa: S608 - quoted names
            if mode == publish.OVERWRITE.lower():
                await connection.execute(f"DROP TABLE IF EXISTS {fresh(view)}")
                await connection.execute(
                    f"CREATE TABLE {fresh(view)} ({definitions(shape.columns)}{shape.constraints})"
                )
                await connection.execute(f"INSERT INTO {fresh(view)} ({names}) {brought}")
                await connection.execute(f"CREATE INDEX ON {fresh(view)} ({shape.index})")
                await connection.execute(f"COMMENT ON TABLE {fresh(view)} IS '{comment(view)}'")
                await connection.execute(f"ANALYZE {fresh(view)}")
                await confirm()
                await connection.execute(f"DROP TABLE {placed(published)}")
                await connection.execute(f"ALTER TABLE {fresh(view)} RENAME TO {quoted(published)}")
            else:
                await connection.execute(
                    f"DELETE FROM {placed(published)} WHERE {shape.key} IN (SELECT {shape.key} FROM {STAGING})"  # noqa: S608
                )
                await connection.execute(f"INSERT INTO {placed(published)} ({names}) {brought}")
                await connection.execute(f"ANALYZE {placed(published)}")
                await confirm()
        return written

    async def write_behaviours(self, view: Row, mode: str, users: Users) -> None:
        """Write behaviours beside those that were published: of each user, by columns, from the last one to the first.

        Merge joins them with what is there of these users, and Overwrite replaces all that was written. Nothing is lost
        of what somebody else inserts meanwhile.
        """
        await self.ensure(view)
        _, title = _titles(view)
        shape = _Shape(view)
        async with (
            self._database.connected() as connection,
            asyncio.timeout(self._timeout_seconds),
            connection.transaction(),
        ):
            if mode == publish.OVERWRITE.lower():
                await connection.execute(f"DELETE FROM {placed(title)}")  # noqa: S608 - quoted names
                before: list[asyncpg.Record] = []
            else:
                # First what is read by nobody any more, which others may have inserted without end.
                of_users = f"{shape.key} = ANY($1::{shape.key_kind}[])"
                await connection.execute(
                    f"DELETE FROM {placed(title)} AS t USING (SELECT ctid, row_number() OVER "  # noqa: S608
                    f"(PARTITION BY {shape.place} ORDER BY {shape.newest}) AS triglot_place FROM {placed(title)} "
                    f"WHERE {of_users}) AS ranked WHERE t.ctid = ranked.ctid AND triglot_place > {int(shape.longest)}",
                    [*users],
                )
                before = await connection.fetch(
                    f"DELETE FROM {placed(title)} WHERE {of_users} RETURNING *",  # noqa: S608
                    [*users],
                )
            known: dict[Any, list[dict[str, Any]]] = {key: [*rows] for key, rows in users.items()}
            for record in sorted(before, key=lambda record: -record[ORDINAL]):
                known[record[shape.behaviours.key]].append(dict(record))
            await connection.copy_records_to_table(
                title,
                schema_name=PUBLIC,
                records=[record for key, rows in known.items() for record in shape.records(key, rows)],
                columns=[name for name, _ in shape.columns],
            )

    async def behaviours(self, view: Row, keys: Sequence[str]) -> list[tuple[dict[str, Any], list[sequences.Kept]]]:
        """For each key that has any behaviours the key, by its JoinId, and these: those that were written beside, then
        those that were published. Of each event the newest, so many as a sequence shows at most."""
        published, written = _titles(view)
        async with self._database.connected() as connection:
            if not await columns_of(connection, published, self._timeout_seconds):
                return []
            shape = _Shape(view)
            wanted = keys_of(keys, datatypes.parse(dict(shape.columns)[shape.behaviours.key]))
            found: dict[Any, list[sequences.Kept]] = {}
            for title in (written, published):
                rows = await connection.fetch(
                    f"SELECT * FROM (SELECT *, row_number() OVER (PARTITION BY {shape.place} "  # noqa: S608 - quoted names
                    f"ORDER BY {shape.newest}) AS triglot_place FROM {placed(title)} "
                    f"WHERE {shape.key} = ANY($1::{shape.key_kind}[])) AS ranked "
                    f"WHERE triglot_place <= $2 ORDER BY {shape.newest}",
                    [*wanted.values()],
                    shape.longest,
                    timeout=self._timeout_seconds,
                )
                for row in rows:
                    found.setdefault(row[shape.behaviours.key], []).append(shape.behaviours.kept(dict(row)))
        return [
            ({view["join_id"]: wanted[key]}, found[wanted[key]])
            for key in keys
            if key in wanted and wanted[key] in found
        ]


class _Shape:
    """What the tables of a view look like. Raises InvalidArgument for types that no behaviour has."""

    def __init__(self, view: Row) -> None:
        self.behaviours = sequences.behaviours_of(view)
        config = self.behaviours.config
        self.columns = self.behaviours.table_columns
        for name, hive in self.columns:
            if datatypes.parse(hive).children:
                raise errors.InvalidArgument(f"column {name} is {hive}: behaviours in Hologres have single values only")
        self.key = quoted(self.behaviours.key)
        self.key_kind = datatypes.parse(dict(self.columns)[self.behaviours.key]).postgres
        self.place = f"{self.key}, {quoted(config.event)}"
        self.newest = f"{quoted(config.time)} DESC, {ORDINAL} DESC"
        self.index = f"{self.place}, {quoted(config.time)} DESC"
        self.longest = max(length for _, length, _ in config.windows)
        self.play_time = quoted(config.play_time) if config.play_time else ""
        # PAI's SDKs read no nulls there.
        needed = [self.behaviours.key, config.item, config.event, config.time]
        self.constraints = f", {ORDINAL} bigserial" + "".join(
            f", CHECK ({quoted(name)} IS NOT NULL)" for name in (*needed, *filter(None, [config.play_time]))
        )

    def records(self, key: Any, rows: Sequence[dict[str, Any]]) -> list[tuple[Any, ...]]:
        """Those rows of a user, from the last one to the first, that are kept, the newest one last."""
        known = [(self.behaviours.kept(row), row) for row in rows]
        by_identity = {id(kept): row for kept, row in known}
        config = self.behaviours.config
        records = []
        for kept in reversed(self.behaviours.newest(kept for kept, _ in known)):
            own = {self.behaviours.key: key, config.time: kept["time"], config.play_time: kept["play_time"]}
            row = by_identity[id(kept)]
            records.append(tuple(own[name] if name in own else row[name] for name, _ in self.columns))
        return records


def _titles(view: Row) -> tuple[str, str]:
    """Names of the tables of what was published, and of what was written beside, as PAI's SDKs look for them."""
    name = f"{view['project_name']}_{view['name']}_seq".lower()
    return f"{name}_offline", name
