"""Online rows in Hologres: a table for each feature view, named as PAI's SDKs look for it.

Every write is one transaction: what is killed in the middle leaves nothing behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import numpy as np
import orjson
import pyarrow as pa

from chassis import datatypes, errors
from services.management import fields, publish
from services.management.hologres import COLUMNS, PUBLIC, Hologres, quoted
from services.management.inputs import invalid
from services.management.rows import Row

STAGING = "triglot_staging"
ORDINAL = "triglot_ordinal"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SIZE = """
SELECT greatest(c.reltuples, 0)::bigint AS rows, pg_total_relation_size(c.oid) AS bytes
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = $2
"""


class HologresRows:
    """The online tables of one database. Raises what `hologres.translated` says."""

    def __init__(self, database: Hologres) -> None:
        self._database = database

    async def ensure(self, view: Row) -> None:
        """Make a view's table, or give it the columns that it lacks. Raises AlreadyExists if it is somebody else's, or
        has a column of another type. Idempotent."""
        async with self._database.connected() as connection:
            await self._ensure(connection, view)

    async def append(self, view: Row) -> None:
        """Give a view's table the columns that it lacks. Nothing before a publish."""
        async with self._database.connected() as connection:
            if await columns_of(connection, online_table_of(view), self._database.timeout_seconds):
                await self._ensure(connection, view)

    async def drop(self, view: Row) -> None:
        """Delete a view's table. Idempotent. One that is somebody else's stays."""
        async with self._database.connected() as connection:
            await dropped(connection, view, online_table_of(view), self._database.timeout_seconds)

    async def use(self, view: Row) -> tuple[int, int]:
        """Rows, as of the last publish, and bytes on disk of a view's table; zeros if there is none."""
        async with self._database.connected() as connection:
            return await used(connection, online_table_of(view), self._database.timeout_seconds)

    async def write(
        self,
        view: Row,
        mode: str,
        arrow_streams: AsyncIterator[bytes],
        timeout_seconds: float,
        confirm: Callable[[], Awaitable[None]],
    ) -> int:
        """Write Arrow IPC streams in one transaction; how many rows were written. `confirm` is called before it is
        committed, and may raise. Of two rows of one key the newer one stays, then the later one.

        Overwrite fills a table of its own and gives it the name at the end, so that readers see the old rows or the new
        ones. Merge fills a table aside and lets INSERT .. ON CONFLICT choose.
        """
        columns = publish.columns_of(view)
        key, time = view["join_id"], _event_time(view)
        names = ", ".join(quoted(served) for _, served, _ in columns)
        defined = definitions([(served, hive) for _, served, hive in columns])
        newest = f"{quoted(key)}, {f'{quoted(time)} DESC NULLS LAST, ' if time else ''}{ORDINAL} DESC"
        chosen = f"SELECT DISTINCT ON ({quoted(key)}) {names} FROM {STAGING} ORDER BY {newest}"  # noqa: S608
        written = 0
        async with self._database.connected() as connection, asyncio.timeout(timeout_seconds), connection.transaction():
            await connection.execute(
                f"CREATE TEMPORARY TABLE {STAGING} ({defined}, {ORDINAL} bigserial) ON COMMIT DROP"
            )
            async for stream in arrow_streams:
                records = await asyncio.to_thread(records_of, stream)
                await connection.copy_records_to_table(
                    STAGING, records=records, columns=[served for _, served, _ in columns]
                )
                written += len(records)
            # One at a time from here: who comes later sees what the other one left.
            await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", online_table_of(view))
            if mode == publish.OVERWRITE.lower():
                await connection.execute(f"DROP TABLE IF EXISTS {fresh(view)}")
                await connection.execute(f"CREATE TABLE {fresh(view)} ({defined})")
                await connection.execute(f"INSERT INTO {fresh(view)} ({names}) {chosen}")
                await connection.execute(f"ALTER TABLE {fresh(view)} ADD PRIMARY KEY ({quoted(key)})")
                await connection.execute(f"COMMENT ON TABLE {fresh(view)} IS '{comment(view)}'")
                await connection.execute(f"ANALYZE {fresh(view)}")
                await confirm()
                await connection.execute(f"DROP TABLE {_online(view)}")
                await connection.execute(f"ALTER TABLE {fresh(view)} RENAME TO {quoted(online_table_of(view))}")
            else:
                changes = ", ".join(
                    f"{quoted(served)} = excluded.{quoted(served)}" for _, served, _ in columns if served != key
                )
                newer = (
                    f"old.{quoted(time)} IS NULL OR excluded.{quoted(time)} >= old.{quoted(time)}" if time else "true"
                )
                await connection.execute(
                    f"INSERT INTO {_online(view)} AS old ({names}) {chosen} ON CONFLICT ({quoted(key)}) "
                    f"DO {f'UPDATE SET {changes} WHERE {newer}' if changes else 'NOTHING'}"
                )
                await connection.execute(f"ANALYZE {_online(view)}")
                await confirm()
        return written

    async def read(self, view: Row, keys: Sequence[str], ttl_seconds: int) -> list[str]:
        """A JSON object as text for each key that has a row which has not expired, in the order of the keys."""
        columns = publish.columns_of(view)
        key, time = view["join_id"], _event_time(view)
        kind = next(datatypes.parse(hive) for _, served, hive in columns if served == key)
        wanted = keys_of(keys, kind)
        alive, bounds = "", []
        if time and ttl_seconds:
            age = f"extract(epoch FROM now()) * 1000 - {quoted(time)}"
            if next(hive for _, served, hive in columns if served == time) == "timestamp":
                age = f"extract(epoch FROM now() - {quoted(time)}) * 1000"
            alive, bounds = f" AND ({quoted(time)} IS NULL OR {age} <= $2::bigint * 1000)", [ttl_seconds]
        statement = (
            f"SELECT {', '.join(quoted(served) for _, served, _ in columns)} FROM {_online(view)} "  # noqa: S608
            f"WHERE {quoted(key)} = ANY($1::{kind.postgres}[]){alive}"
        )
        async with self._database.connected() as connection:
            if not await columns_of(connection, online_table_of(view), self._database.timeout_seconds):
                return []
            rows = await connection.fetch(
                statement, list(wanted.values()), *bounds, timeout=self._database.timeout_seconds
            )
        kinds = {served: datatypes.parse(hive) for _, served, hive in columns}
        found = {row[key]: row for row in rows}
        return [
            orjson.dumps({name: _plain(value, kinds[name]) for name, value in found[wanted[each]].items()}).decode()
            for each in keys
            if each in wanted and wanted[each] in found
        ]

    async def _ensure(self, connection: asyncpg.Connection, view: Row) -> None:
        columns = [(served, hive) for _, served, hive in publish.columns_of(view)]
        key = f", PRIMARY KEY ({quoted(view['join_id'])})"
        await made(
            connection, view, online_table_of(view), columns, key, timeout_seconds=self._database.timeout_seconds
        )


async def columns_of(connection: asyncpg.Connection, title: str, timeout_seconds: float) -> list[Any]:
    """What is known of the columns of a table of the public schema; nothing: there is none."""
    return list(await connection.fetch(COLUMNS, PUBLIC, title, timeout=timeout_seconds))


async def made(
    connection: asyncpg.Connection,
    view: Row,
    title: str,
    columns: Sequence[tuple[str, str]],
    more: str,
    *,
    timeout_seconds: float,
) -> bool:
    """Make a view's table of the columns, and `more` of its definition, or give it the columns that it lacks; whether
    there was none. Raises AlreadyExists if it is somebody else's, or has a column of another type."""
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", title)
        found = {row["name"]: row for row in await columns_of(connection, title, timeout_seconds)}
        if not found:
            await connection.execute(f"CREATE TABLE {placed(title)} ({definitions(columns)}{more})")
            await connection.execute(f"COMMENT ON TABLE {placed(title)} IS '{comment(view)}'")
            return True
        if next(iter(found.values()))["comment"] != comment(view):
            raise errors.AlreadyExists(f"table {title} is there already, and is not of this view", resource="Table")
        for served, hive in columns:
            kind = datatypes.parse(hive).postgres
            if served not in found:
                await connection.execute(f"ALTER TABLE {placed(title)} ADD COLUMN {quoted(served)} {kind}")
            elif found[served]["type"] != kind:
                raise errors.AlreadyExists(
                    f"column {served} of table {title} is {found[served]['type']}, not {kind}", resource="Table"
                )
        return False


async def dropped(connection: asyncpg.Connection, view: Row, title: str, timeout_seconds: float) -> None:
    """Delete a view's table. Idempotent. One that is somebody else's stays."""
    columns = await columns_of(connection, title, timeout_seconds)
    if columns and columns[0]["comment"] == comment(view):
        await connection.execute(f"DROP TABLE IF EXISTS {placed(title)}", timeout=timeout_seconds)


async def used(connection: asyncpg.Connection, title: str, timeout_seconds: float) -> tuple[int, int]:
    """Rows, as of the last publish, and bytes on disk of a table; zeros if there is none."""
    row = await connection.fetchrow(_SIZE, PUBLIC, title, timeout=timeout_seconds)
    return (row["rows"], row["bytes"]) if row else (0, 0)


def online_table_of(view: Row) -> str:
    """Name of a view's table, as PAI's SDKs look for it."""
    return f"{view['project_name']}_{view['name']}_online".lower()


def placed(title: str) -> str:
    """A table of the public schema, as it stands in SQL."""
    return f"{PUBLIC}.{quoted(title)}"


def _online(view: Row) -> str:
    return placed(online_table_of(view))


def fresh(view: Row) -> str:
    """A table that will take the place of the view's. Its name is seen by nobody: it ends with its transaction."""
    return f"{PUBLIC}.triglot_fresh_{int(view['id'])}"


def comment(view: Row) -> str:
    """By what a table is known as one that was made for the view."""
    return f"Triglot: feature view {int(view['id'])}"


def _event_time(view: Row) -> str:
    served = {name: served for name, served, _ in publish.columns_of(view)}
    marked = fields.having(fields.loaded(view["fields"]), fields.EVENT_TIME)
    return served.get(marked[0], "") if marked else ""


def definitions(columns: Sequence[tuple[str, str]]) -> str:
    """Names and Hive types of columns, as they stand where a table is made."""
    return ", ".join(f"{quoted(served)} {datatypes.parse(hive).postgres}" for served, hive in columns)


def records_of(stream: bytes) -> list[tuple[Any, ...]]:
    """The rows of an Arrow IPC stream as asyncpg copies them."""
    table = pa.ipc.open_stream(stream).read_all()
    columns = []
    for column in table.columns:
        values = column.to_pylist()
        if _as_json(column.type):
            values = [None if value is None else _json(value, column.type) for value in values]
        elif pa.types.is_string(column.type) and any(value is not None and "\0" in value for value in values):
            raise errors.InvalidArgument("a text holds NUL, which Hologres cannot keep")
        columns.append(values)
    return list(zip(*columns, strict=True))


def _as_json(kind: pa.DataType) -> bool:
    return pa.types.is_nested(kind) and not (pa.types.is_list(kind) and not pa.types.is_nested(kind.value_type))


def _json(value: Any, kind: pa.DataType) -> str:
    return orjson.dumps(dict(value) if pa.types.is_map(kind) else value, option=orjson.OPT_NON_STR_KEYS).decode()


def keys_of(keys: Sequence[str], kind: datatypes.DataType) -> dict[str, Any]:
    """Keys by their texts, without those that no row can have."""
    if kind.kind in ("int", "bigint"):
        bound = 1 << (31 if kind.kind == "int" else 63)
        numbers = {key: int(key) for key in keys if key.removeprefix("-").isdecimal() and len(key) < 32}
        return {key: number for key, number in numbers.items() if -bound <= number < bound}
    if kind.kind != "string":
        raise invalid("JoinIds", f"cannot be looked up in a key of type {kind.pai}; it must be a number or a text")
    return {key: key for key in keys if "\0" not in key}


def _plain(value: Any, kind: datatypes.DataType) -> Any:
    """A value as PAI shows it: timestamps in milliseconds, arrays and maps as JSON."""
    if value is None:
        return None
    if kind.postgres == "jsonb":
        return orjson.Fragment(value)
    if isinstance(value, list):
        return [_plain(item, kind.children[0]) for item in value]
    if kind.kind == "timestamp":
        return (value - _EPOCH) // timedelta(milliseconds=1)
    # The shortest text that reads back the same 32 bits.
    return float(str(np.float32(value))) if kind.kind == "float" else value
