"""Groups, views and row sets in PostgreSQL. Knows definitions, not bytes in Redis.

Every change notifies channel `serving` in its own transaction: `g <group id>` when a group or where its rows are has
changed, `v <store>/<name>/<version>` when a view has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import asyncpg

from chassis import datatypes, errors
from chassis.postgres import Connection, Constraints, Database, load_queries
from services.serving import audited, serving_keys
from services.serving.definitions import Column, Group, Join, ServingKey, View, ViewFeature

CHANNEL = "serving"
MAX_USAGE_DAYS = 400
QUERIES = load_queries(Path(__file__).parent / "queries.sql")


def _view_taken(_error: asyncpg.PostgresError) -> errors.TriglotError:
    return errors.AlreadyExists("a feature view of this name and version exists", resource="feature_view")


CONSTRAINTS: Constraints = {"feature_view_name_version": _view_taken}


class Catalogue:
    """All SQL of the service."""

    def __init__(self, database: Database, retired_rows_seconds: float) -> None:
        self._database = database
        self._retired_rows_seconds = retired_rows_seconds

    # Groups

    async def ensure_group(self, group: Group) -> tuple[Group, bool]:
        """The stored group, and whether this call made it. Idempotent.

        A description or time to live that is given replaces that of an existing group. Raises AlreadyExists,
        DEFINITION_CONFLICT, if columns, keys or event time differ.
        """
        async with self._database.transaction() as connection:
            await connection.execute(QUERIES.ensure_store, group.store)
            group_id = await connection.fetchval(
                QUERIES.insert_group,
                group.store,
                group.name,
                group.version,
                group.description,
                group.event_time,
                group.time_to_live_ms,
            )
            if group_id is not None:
                await self._insert_details(connection, group_id, group)
            else:
                await self._confirm(connection, group)
            stored = await self._group(connection, group.store, group.name, group.version)
            if group_id is not None:
                await audited.group_changed(connection, None, stored)
        return stored, group_id is not None

    async def append_features(self, store: str, name: str, version: int, columns: Sequence[Column]) -> Group:
        """The group with these columns after its own. Idempotent.

        Raises NotFound as `group` does, and what `Group.missing` raises.
        """
        async with self._database.transaction() as connection:
            found = await self._group(connection, store, name, version)
            await connection.fetchrow(QUERIES.lock_group, found.id)
            # Once more: nobody else changes it any more.
            group = await self._group(connection, store, name, version)
            missing = group.missing(columns)
            if missing:
                await _insert_features(connection, group.id, missing, len(group.columns), ())
                await _notify(connection, f"g {group.id}")
                await audited.group_changed(connection, group, replace(group, columns=group.columns + missing))
            return await self._group(connection, store, name, version)

    async def _insert_details(self, connection: Connection, group_id: int, group: Group) -> None:
        await _insert_features(connection, group_id, group.columns, 0, group.primary_key)
        row_set = await connection.fetchval(QUERIES.insert_row_set, group_id, "live")
        await connection.execute(QUERIES.show_row_set, group_id, row_set, 0)

    async def _confirm(self, connection: Connection, group: Group) -> None:
        stored = await self._group(connection, group.store, group.name, group.version)
        differences = stored.differences(group)
        if differences:
            raise errors.AlreadyExists(
                f"feature group {group.name} version {group.version} exists and differs: {'; '.join(differences)}",
                reason="DEFINITION_CONFLICT",
                differences="; ".join(differences),
                feature_group=group.name,
            )
        if _told(stored, group) != stored:
            await connection.fetchrow(QUERIES.lock_group, stored.id)
            # Once more: nobody else changes it any more.
            stored = await self._group(connection, group.store, group.name, group.version)
            told = _told(stored, group)
            await connection.execute(QUERIES.update_group, stored.id, told.description, told.time_to_live_ms)
            await _notify(connection, f"g {stored.id}")
            await audited.group_changed(connection, stored, told)

    async def group(self, store: str, name: str, version: int) -> Group:
        """Raises NotFound: FEATURE_STORE_NOT_FOUND or FEATURE_GROUP_NOT_FOUND."""
        async with self._database.connection() as connection:
            return await self._group(connection, store, name, version)

    async def _group(self, connection: Connection, store: str, name: str, version: int) -> Group:
        row = await connection.fetchrow(QUERIES.groups_by_name, store, name, version)
        if row is not None:
            return _group_of(row)
        await _require_store(connection, store)
        raise errors.NotFound(
            f"feature store {store} has no feature group {name} version {version}",
            reason="FEATURE_GROUP_NOT_FOUND",
            name=name,
            version=version,
            feature_store=store,
        )

    async def groups(self, store: str) -> list[Group]:
        """All groups of a store by name and version. Raises NotFound, FEATURE_STORE_NOT_FOUND."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(QUERIES.groups_by_name, store, None, None)
            if not rows:
                await _require_store(connection, store)
        return [_group_of(row) for row in rows]

    async def groups_named(self, names: Sequence[tuple[str, str, int]]) -> list[Group]:
        """The groups of these stores, names and versions, in no order, without those that do not exist."""
        columns = [[name[position] for name in names] for position in range(3)]
        return [_group_of(row) for row in await self._database.fetch(QUERIES.groups_named, *columns)]

    async def delete_group(self, store: str, name: str, version: int) -> int:
        """Its id. Readers see it gone at once; its rows are removed later. Raises NotFound."""
        async with self._database.transaction() as connection:
            group = await self._group(connection, store, name, version)
            await connection.fetchrow(QUERIES.lock_group, group.id)
            await connection.execute(QUERIES.delete_group, group.id)
            await connection.execute(QUERIES.retire_row_sets_of_group, group.id, self._retired_rows_seconds)
            await _notify(connection, f"g {group.id}")
            await audited.group_changed(connection, group, None)
        return group.id

    # Row sets

    async def begin_load(self, group: Group) -> int:
        """A new row set that nobody reads yet. It must be touched from time to time until it is shown."""
        row_set: int = await self._database.fetchval(QUERIES.insert_row_set, group.id, "loading")
        return row_set

    async def touch_load(self, row_set: int) -> None:
        """Say that the load goes on. Raises Aborted if it was given up or its group deleted."""
        if await self._database.fetchval(QUERIES.touch_row_set, row_set) is None:
            raise errors.Aborted("the load was given up, or its feature group deleted; start again")

    async def show_load(self, group: Group, row_set: int, rows: int) -> int:
        """Let readers see a complete load, of so many rows, in place of the old rows; the new generation.

        Raises Aborted as above, and if readers see a load by now that began later: the newer rows stay.
        """
        async with self._database.transaction() as connection:
            locked = await connection.fetchrow(QUERIES.lock_group, group.id)
            shown = locked and await connection.fetchval(QUERIES.row_set_to_live, row_set)
            if not locked or not shown:
                raise errors.Aborted("the load was given up, or its feature group deleted; start again")
            if locked["row_set_id"] is not None and locked["row_set_id"] > row_set:
                raise errors.Aborted("an overwrite that began later is shown already; start again")
            await connection.execute(QUERIES.retire_row_set, locked["row_set_id"], self._retired_rows_seconds)
            generation: int = await connection.fetchval(QUERIES.show_row_set, group.id, row_set, 1)
            await _notify(connection, f"g {group.id}")
            await audited.rows_changed(connection, audited.LOAD, group, rows_written=rows, generation=generation)
        return generation

    async def require_live(self, row_set: int) -> None:
        """Raises Aborted if readers do not see this row set any more, so that writing to it would be lost."""
        if await self._database.fetchval(QUERIES.row_set_is_live, row_set) is None:
            raise _replaced()

    async def rows_deleted(self, group: Group, keys: int, rows: int) -> None:
        """Note that rows were deleted by their keys. Raises Aborted as `require_live` does."""
        async with self._database.transaction() as connection:
            if await connection.fetchval(QUERIES.row_set_is_live, group.row_set or 0) is None:
                raise _replaced()
            await audited.rows_changed(connection, audited.DELETE_ROWS, group, keys=keys, rows_deleted=rows)

    async def retire(self, row_set: int) -> None:
        """Have the keys of a row set removed that was never shown."""
        await self._database.execute(QUERIES.retire_row_set, row_set, 0.0)

    async def claim_retired(self, abandoned_seconds: float, claim_seconds: float) -> int | None:
        """A row set whose keys should be removed now, if there is one. Others will not get it for `claim_seconds`."""
        found: int | None = await self._database.fetchval(QUERIES.claim_row_set, abandoned_seconds, claim_seconds)
        return found

    async def forget(self, row_set: int) -> None:
        """The keys of a retired row set are gone."""
        await self._database.execute(QUERIES.forget_row_set, row_set)

    # Usage

    async def add_usage(self, rows_read: Mapping[int, int], rows_written: Mapping[int, int]) -> None:
        """Add to what was done with groups today, and forget what was done 400 days ago."""
        ids = sorted({*rows_read, *rows_written})
        read, written = ([counts.get(group_id, 0) for group_id in ids] for counts in (rows_read, rows_written))
        async with self._database.transaction() as connection:
            await connection.execute(QUERIES.add_usage, ids, read, written)
            await connection.execute(QUERIES.forget_usage, ids, MAX_USAGE_DAYS)

    async def usage(self, group_ids: Sequence[int], days: int) -> dict[int, list[tuple[date, int, int]]]:
        """For each group day, rows read and rows written, of those of the last days on which there were any."""
        found: dict[int, list[tuple[date, int, int]]] = {group_id: [] for group_id in group_ids}
        for row in await self._database.fetch(QUERIES.usage, list(found), days):
            found[row["feature_group_id"]].append((row["day"], row["rows_read"], row["rows_written"]))
        return found

    # Views

    async def create_view(self, view: View) -> View:
        """The stored view with its derived serving keys. Raises AlreadyExists."""
        keys = serving_keys.derive(view.joins)
        async with self._database.transaction() as connection:
            await connection.execute(QUERIES.ensure_store, view.store)
            view_id = await connection.fetchval(
                QUERIES.insert_view, view.store, view.name, view.version, view.description
            )
            for index, join in enumerate(view.joins):
                left, right = [pair[0] for pair in join.on], [pair[1] for pair in join.on]
                await connection.execute(
                    QUERIES.insert_view_join, view_id, index, join.group.id, join.prefix, left, right
                )
            await _insert_view_features(connection, view_id, view.features)
            await _insert_serving_keys(connection, view_id, keys)
            await _notify(connection, f"v {view.store}/{view.name}/{view.version}")
            await audited.view_changed(connection, None, view)
        return await self.view(view.store, view.name, view.version)

    async def view(self, store: str, name: str, version: int) -> View:
        """A view and its groups, of one moment. Raises NotFound: FEATURE_STORE_NOT_FOUND or FEATURE_VIEW_NOT_FOUND."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(QUERIES.views, store, name, version)
            if rows:
                return _view_of(rows)
            await _require_store(connection, store)
        raise _no_view(store, name, version)

    async def views(self, store: str) -> list[View]:
        """All views of a store by name and version. Raises NotFound, FEATURE_STORE_NOT_FOUND."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(QUERIES.views, store, None, None)
            if not rows:
                await _require_store(connection, store)
        return [_view_of(list(of_view)) for _, of_view in groupby(rows, key=itemgetter("view_id"))]

    async def delete_view(self, store: str, name: str, version: int) -> None:
        """Raises NotFound."""
        async with self._database.transaction() as connection:
            rows = await connection.fetch(QUERIES.views, store, name, version)
            if await connection.fetchval(QUERIES.delete_view, store, name, version) is None or not rows:
                await _require_store(connection, store)
                raise _no_view(store, name, version)
            await _notify(connection, f"v {store}/{name}/{version}")
            await audited.view_changed(connection, _view_of(rows), None)


def _told(stored: Group, group: Group) -> Group:
    """A stored group with the description and the time to live that are given."""
    return replace(
        stored,
        description=group.description or stored.description,
        time_to_live_ms=group.time_to_live_ms or stored.time_to_live_ms,
    )


def _replaced() -> errors.Aborted:
    return errors.Aborted("the rows were replaced by an overwrite, or deleted, during this write; send it again")


async def _notify(connection: Connection, payload: str) -> None:
    await connection.execute(QUERIES.notify, payload)


async def _require_store(connection: Connection, store: str) -> None:
    if await connection.fetchval(QUERIES.store_exists, store) is None:
        raise errors.NotFound(
            f"there is no feature store {store}", reason="FEATURE_STORE_NOT_FOUND", feature_store=store
        )


def _no_view(store: str, name: str, version: int) -> errors.NotFound:
    return errors.NotFound(
        f"feature store {store} has no feature view {name} version {version}",
        reason="FEATURE_VIEW_NOT_FOUND",
        name=name,
        version=version,
        feature_store=store,
    )


async def _insert_features(
    connection: Connection, group_id: int, columns: Sequence[Column], first: int, primary_key: Sequence[str]
) -> None:
    await connection.execute(
        QUERIES.insert_features,
        group_id,
        list(range(first, first + len(columns))),
        [column.name for column in columns],
        [column.type.hive for column in columns],
        [column.description for column in columns],
        [primary_key.index(column.name) if column.name in primary_key else None for column in columns],
    )


async def _insert_view_features(connection: Connection, view_id: int, features: Sequence[ViewFeature]) -> None:
    await connection.execute(
        QUERIES.insert_view_features,
        view_id,
        list(range(len(features))),
        [each.join_index for each in features],
        [each.name for each in features],
        [each.label for each in features],
        [each.inference_helper for each in features],
        [each.training_helper for each in features],
    )


async def _insert_serving_keys(connection: Connection, view_id: int, keys: Sequence[ServingKey]) -> None:
    await connection.execute(
        QUERIES.insert_serving_keys,
        view_id,
        list(range(len(keys))),
        [each.join_index for each in keys],
        [each.feature_name for each in keys],
        [each.prefix for each in keys],
        [each.required for each in keys],
        [each.join_on for each in keys],
    )


def _group_of(row: Any) -> Group:
    names: list[str] = row["names"]
    keys = sorted(
        (position, name) for name, position in zip(names, row["key_positions"], strict=True) if position is not None
    )
    described = zip(names, row["types"], row["descriptions"], strict=True)
    return Group(
        store=row["store"],
        name=row["name"],
        version=row["version"],
        columns=tuple(Column(name, datatypes.parse(hive), text) for name, hive, text in described),
        primary_key=tuple(name for _, name in keys),
        event_time=row["event_time"],
        time_to_live_ms=row["time_to_live_ms"],
        description=row["description"],
        id=row["id"],
        generation=row["generation"],
        row_set=row["row_set_id"] if row["deleted_at"] is None else None,
        created_at=row["created_at"],
    )


def _view_of(rows: Sequence[Any]) -> View:
    """A view from the rows of its joins."""
    first = rows[0]
    features = ("feature_joins", "feature_names", "labels", "inference_helpers", "training_helpers")
    serving_keys = ("key_joins", "key_names", "key_prefixes", "keys_required", "keys_join_on")
    return View(
        store=first["view_store"],
        name=first["view_name"],
        version=first["view_version"],
        joins=tuple(_join_of(row) for row in rows),
        features=tuple(ViewFeature(*each) for each in zip(*(first[name] for name in features), strict=True)),
        serving_keys=tuple(ServingKey(*each) for each in zip(*(first[name] for name in serving_keys), strict=True)),
        description=first["view_description"],
        id=first["view_id"],
        created_at=first["view_created_at"],
    )


def _join_of(row: Any) -> Join:
    return Join(_group_of(row), row["prefix"], tuple(zip(row["left_columns"], row["right_columns"], strict=True)))
