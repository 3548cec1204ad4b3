"""Rows of schema `registry`. Knows projects, objects, features and edges, not RPCs."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import asyncpg

from chassis import errors
from chassis.migrations import Migrations
from chassis.postgres import Connection, Database, load_queries
from protos.gen.feast.core.FeatureView_pb2 import AVAILABLE_ONLINE, STATE_UNSPECIFIED
from services.registry import kinds, listing
from services.registry.kinds import Kind
from services.registry.rendering import Row, feature_rows, row_of

MIGRATIONS = Migrations("registry", Path(__file__).parent / "migrations")
QUERIES = load_queries(Path(__file__).parent / "queries.sql")


@dataclass(frozen=True)
class Content:
    """An object that was read: its message's bytes or its JSON, whichever was asked for."""

    kind: Kind
    project: str
    name: str
    content: bytes


@dataclass(frozen=True)
class Page:
    """One page of a list, and how many objects are on all pages."""

    objects: Sequence[Content]
    total: int


@dataclass(frozen=True)
class StoredProject:
    """What is kept of a project besides its object."""

    name: str
    uuid: str
    infra: bytes | None


class RegistryStore:
    """All reads and writes of the registry. A write is one transaction, and visible once it returned."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # ---- writing ----

    async def apply(self, kind: Kind, message: Any, project: str) -> None:
        """Create an object or replace the one of its name; its project is created if there is none.

        An equal object is not written. The time of creation, materialized intervals and the version of a stored object
        are kept. A feature service's projections get the columns of their views. AlreadyExists if a view of another
        kind has the name, NotFound if a service selects from a view that is not there.
        """
        async with self._database.connection() as connection:
            if (await _compared(connection, kind, message, project)).equal:
                return
        async with self._database.transaction() as connection:
            now = await self._ensure_project(connection, project, create=kind is not kinds.PROJECT)
            found = await _compared(connection, kind, message, project)
            if not found.equal:
                await _write(connection, kind, found.message, project, now, is_new=found.is_new)

    async def change(self, kind: Kind, name: str, project: str, edit: Callable[[Any], None]) -> None:
        """Change one stored object in place; parallel changes follow one another. Raises NotFound."""
        async with self._database.transaction() as connection:
            now = await connection.fetchval(QUERIES.touch_project, project)
            stored = await connection.fetchrow(QUERIES.get_object, project, kind.family, "", name)
            if stored is None or stored["kind"] != kind.name:
                raise kind.missing(name, project)
            message: Any = kind.message.FromString(stored["proto"])
            edit(message)
            await _put(connection, kind, message, project, now)

    async def delete(self, kind: Kind, name: str, project: str) -> None:
        """Delete an object (a view of any kind) with its features and edges. Raises NotFound."""
        async with self._database.transaction() as connection:
            await connection.fetchval(QUERIES.touch_project, project)
            if await connection.fetchval(QUERIES.delete_object, project, kind.family, name) is None:
                raise kind.missing(name, project)

    async def delete_project(self, name: str) -> None:
        """Delete a project with everything in it. Raises NotFound."""
        if await self._database.fetchval(QUERIES.delete_project, name) is None:
            raise kinds.PROJECT.missing(name, name)

    async def put_infra(self, project: str, infra: bytes) -> None:
        """Replace a project's infra; the project is created if there is none."""
        async with self._database.transaction() as connection:
            await self._ensure_project(connection, project, create=True)
            await connection.execute(QUERIES.put_infra, project, infra)

    async def ensure_project(self, project: str) -> None:
        """Create a project if there is none."""
        async with self._database.transaction() as connection:
            await self._ensure_project(connection, project, create=True)

    async def _ensure_project(self, connection: Connection, project: str, *, create: bool) -> datetime:
        """Take the project's turn of writing, and say when that was. Creates its row, and its object if `create`."""
        now: datetime | None = await connection.fetchval(QUERIES.touch_project, project)
        if now is not None:
            return now
        now = await connection.fetchval(QUERIES.ensure_project, project, str(uuid.uuid4()))
        assert now is not None  # noqa: S101 - an INSERT .. RETURNING answers or raises
        if create and not await connection.fetchrow(QUERIES.get_object, project, kinds.PROJECT.family, "", project):
            message: Any = kinds.PROJECT.message()
            message.spec.name = project
            await _write(connection, kinds.PROJECT, message, project, now, is_new=True)
        return now

    # ---- reading ----

    async def get(self, kind: Kind, name: str, project: str, parent: str = "") -> bytes:
        """The message of one object. Raises NotFound."""
        row = await self._database.fetchrow(QUERIES.get_object, project, kind.family, parent, name)
        if row is None or row["kind"] != kind.name:
            raise _missing(kind, name, project, parent)
        content: bytes = row["proto"]
        return content

    async def get_view(self, name: str, project: str) -> Content:
        """The message of a view, whatever its kind. Raises NotFound."""
        row = await self._database.fetchrow(QUERIES.get_object, project, kinds.VIEW_FAMILY, "", name)
        if row is None:
            raise kinds.FEATURE_VIEW.missing(name, project)
        return Content(kinds.BY_NAME[row["kind"]], project, name, row["proto"])

    async def get_rendered(self, kind: Kind | None, name: str, project: str, parent: str = "") -> Content:
        """The JSON of one object; `kind` None means any view but a label view. Raises NotFound."""
        sought = kind or kinds.FEATURE_VIEW
        row = await self._database.fetchrow(QUERIES.get_rendered, project, sought.family, parent, name)
        found = kinds.BY_NAME[row["kind"]] if row is not None else None
        fits = found is kind if kind else found is not kinds.LABEL_VIEW
        if row is None or found is None or not fits:
            raise _missing(sought, name, project, parent)
        return Content(found, project, name, row["rendered"])

    async def page(self, wanted: listing.Listing, *, rendered: bool = False) -> Page:
        """One page of a list, as messages or as JSON."""
        where, arguments = listing.conditions(wanted)
        head = QUERIES.page_rendered if rendered else QUERIES.page_of_protos
        statement = f"{head} {where} ORDER BY {listing.order(wanted)}"
        if not wanted.paged:
            objects = _contents(await self._database.fetch(statement, *arguments))
            return Page(objects, len(objects))
        total = await self._database.fetchval(f"{QUERIES.count_objects} {where}", *arguments)
        statement += f" LIMIT ${len(arguments) + 1} OFFSET ${len(arguments) + 2}"
        offset = (wanted.page - 1) * wanted.limit
        rows = await self._database.fetch(statement, *arguments, wanted.limit, offset) if offset < total else []
        return Page(_contents(rows), total)

    async def project(self, name: str) -> StoredProject | None:
        """What is kept of a project besides its object."""
        row = await self._database.fetchrow(QUERIES.get_project, name)
        return StoredProject(row["name"], row["uuid"], row["infra"]) if row is not None else None


def _missing(kind: Kind, name: str, project: str, parent: str) -> errors.NotFound:
    if not parent:
        return kind.missing(name, project)
    return errors.NotFound(
        f"{kind.label} {name} not found in feature view {parent} in project {project}",
        reason=kind.reason,
        name=name,
        feature_view=parent,
        project=project,
    )


def _contents(rows: Sequence[asyncpg.Record]) -> Sequence[Content]:
    return [Content(kinds.BY_NAME[row["kind"]], row["project"], row["name"], row["content"]) for row in rows]


@dataclass(frozen=True)
class _Compared:
    """An object as it should be stored, but for the times that a write sets, next to what is stored."""

    message: Any
    is_new: bool
    equal: bool


async def _compared(connection: Connection, kind: Kind, message: Any, project: str) -> _Compared:
    merged: Any = kind.message()
    merged.CopyFrom(message)
    spec = kind.spec(merged)
    if kind is not kinds.PROJECT:
        spec.project = project
    if kind is kinds.FEATURE_SERVICE:
        await _resolve(connection, spec, project)
    if kind.timed:
        merged.meta.ClearField("created_timestamp")
        merged.meta.ClearField("last_updated_timestamp")
    stored = await connection.fetchrow(QUERIES.get_object, project, kind.family, "", spec.name)
    if stored is None:
        _start(kind, merged)
        return _Compared(merged, is_new=True, equal=False)
    if stored["kind"] != kind.name:
        raise _name_taken(kind, spec.name, project, stored["kind"])
    before: Any = kind.message.FromString(stored["proto"])
    if kind.timed:
        merged.meta.created_timestamp.CopyFrom(before.meta.created_timestamp)
        merged.meta.last_updated_timestamp.CopyFrom(before.meta.last_updated_timestamp)
    _carry_over(kind, merged, before)
    return _Compared(merged, is_new=False, equal=bool(merged == before))


def _name_taken(kind: Kind, name: str, project: str, stored: str) -> errors.AlreadyExists:
    return errors.AlreadyExists(
        f"Feature view name '{name}' is already used by a {stored}. Cannot register a {kind.name} with the same name.",
        reason="FEATURE_VIEW_NAME_CONFLICT",
        name=name,
        project=project,
    )


def _start(kind: Kind, merged: Any) -> None:
    """Fields that only the registry sets, as they are in a new object."""
    if kind.is_view:
        for field in ("current_version_number", "version_id"):
            if field in merged.meta.DESCRIPTOR.fields_by_name:
                merged.meta.ClearField(field)


def _carry_over(kind: Kind, merged: Any, before: Any) -> None:
    """What an apply does not take away from a view: its version, what was materialized, how far it has come."""
    if not kind.is_view:
        return
    fields = merged.meta.DESCRIPTOR.fields_by_name
    for field in ("current_version_number", "version_id"):
        if field in fields:
            setattr(merged.meta, field, getattr(before.meta, field))
    if "materialization_intervals" in fields and not merged.meta.materialization_intervals:
        merged.meta.materialization_intervals.extend(before.meta.materialization_intervals)
    if "state" in fields and merged.meta.state == STATE_UNSPECIFIED:
        merged.meta.state = before.meta.state


def materialized(start: Any, end: Any) -> Callable[[Any], None]:
    """The change that a materialization makes to a view. Two google.protobuf.Timestamps."""

    def edit(view: Any) -> None:
        interval = view.meta.materialization_intervals.add()
        interval.start_time.CopyFrom(start)
        interval.end_time.CopyFrom(end)
        view.meta.state = AVAILABLE_ONLINE

    return edit


async def _resolve(connection: Connection, service: Any, project: str) -> None:
    """Give a feature service's projections the columns of their views. NotFound if there is no such view."""
    names = [projection.feature_view_name for projection in service.features]
    rows = {row["name"]: row for row in await connection.fetch(QUERIES.get_views, project, names)}
    for projection in service.features:
        name = projection.feature_view_name
        if name not in rows:
            raise errors.NotFound(
                f"Feature view '{name}' not found in project '{project}'",
                reason=kinds.FEATURE_VIEW.reason,
                name=name,
                project=project,
            )
        kind = kinds.BY_NAME[rows[name]["kind"]]
        if not projection.view_type and kind is kinds.LABEL_VIEW:
            projection.view_type = kind.name
        if not projection.feature_columns:
            view: Any = kind.message.FromString(rows[name]["proto"])
            projection.feature_columns.extend(view.spec.features)


async def _write(
    connection: Connection, kind: Kind, message: Any, project: str, now: datetime, *, is_new: bool
) -> None:
    """Write an object with all that follows from its definition: its row, its features, its edges."""
    if kind.timed and is_new:
        message.meta.created_timestamp.FromDatetime(now)
    object_id = await _put(connection, kind, message, project, now)
    if kind.is_view:
        await _put_features(connection, object_id, kind, message, now)
    edges = list(kinds.edges(kind, message))
    if not is_new:
        await connection.execute(QUERIES.drop_edges, object_id)
    if edges:
        await connection.execute(
            QUERIES.put_edges, object_id, project, *(list(column) for column in zip(*edges, strict=True))
        )


async def _put(connection: Connection, kind: Kind, message: Any, project: str, now: datetime) -> int:
    if kind.timed:
        message.meta.last_updated_timestamp.FromDatetime(now)
    row = row_of(kind, message, project)
    object_id: int = await connection.fetchval(
        QUERIES.put_object,
        project,
        kind.name,
        kind.family,
        row.name,
        row.name.lower(),
        row.type,
        row.description,
        row.owner,
        row.tags,
        now,
        now,
        row.proto,
        row.rendered,
    )
    return object_id


async def _put_features(connection: Connection, view_id: int, kind: Kind, view: Any, now: datetime) -> None:
    project = view.spec.project
    feature_kind, rows = feature_rows(kind, view, project)
    await connection.execute(QUERIES.drop_features, view_id, [row.name for row in rows])
    if rows:
        await connection.execute(
            QUERIES.put_features,
            project,
            feature_kind.name,
            feature_kind.family,
            view_id,
            view.spec.name,
            now,
            *_columns(rows),
        )


def _columns(rows: Sequence[Row]) -> Sequence[Sequence[Any]]:
    return (
        list(range(len(rows))),
        [row.name for row in rows],
        [row.name.lower() for row in rows],
        [row.type for row in rows],
        [row.description for row in rows],
        [row.tags for row in rows],
        [row.proto for row in rows],
        [row.rendered for row in rows],
    )
