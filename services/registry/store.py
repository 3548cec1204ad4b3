"""Rows of schema `registry`. Knows projects, objects, features and edges, not RPCs."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg

from chassis import errors
from chassis.migrations import Migrations
from chassis.postgres import Connection, Database
from protos.gen.feast.core.FeatureView_pb2 import AVAILABLE_ONLINE, MaterializationInterval
from protos.gen.feast.types.Value_pb2 import ValueType
from services.registry import kinds, listing, views
from services.registry.access import DELETE, UPDATE, WRITE_ONLINE, Access, Target, check_patterns
from services.registry.kinds import Kind
from services.registry.queries import QUERIES
from services.registry.rendering import Row, feature_rows, row_of

# Rows that are fetched together where everything is read.
_BATCH = 200
MIGRATIONS = Migrations("registry", Path(__file__).parent / "migrations")


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
    updated: datetime


class RegistryStore:
    """All reads and writes of the registry, as far as whoever calls may read and write.

    A write is one transaction, and visible once it returned. What the caller may not do is a PermissionDenied.
    """

    def __init__(self, database: Database, access: Access) -> None:
        self._database = database
        self._access = access

    # ---- writing ----

    async def apply(self, kind: Kind, message: Any, project: str) -> None:
        """Create an object or replace the one of its name; its project is created if there is none.

        An equal object is not written, and the time of creation is kept. A view keeps its materialized intervals and
        its state; it gets a new version when its schema changes, and goes back to one that it asks for. A feature
        service's projections get the columns of their views. AlreadyExists if a view of another kind has the name,
        NotFound if a service selects from a view that is not there, FailedPrecondition if a view asks for one of its
        versions and was edited as well.
        """
        # `feast apply` sends everything each time: what is equal is found out without taking the project's turn.
        async with self._database.connection() as connection:
            await self._access.over(connection).require_to_apply(partial(_target, kind, message, project))
            if await self._planned(connection, kind, message, project) is None:
                return
        async with self._database.transaction() as connection:
            now = await self._ensure_project(connection, project, create=kind is not kinds.PROJECT)
            if kind is kinds.PERMISSION:
                await check_patterns(connection, message.spec.name_patterns)
            plan = await self._planned(connection, kind, message, project)
            if plan is not None:
                # Of a view that goes back to an old version, this is the old one.
                becomes = partial(_target, kind, plan.message, project)
                await self._access.over(connection).require_to_apply(becomes)
                await _write(connection, kind, plan, project, now)

    async def materialize(self, name: str, project: str, interval: MaterializationInterval) -> None:
        """Note that a feature view was materialized; it is then available online. Raises NotFound."""
        async with self._database.transaction() as connection:
            now = await connection.fetchval(QUERIES.touch_project, project)
            await self._access.over(connection).require_for_stored((WRITE_ONLINE,), kinds.FEATURE_VIEW, project, name)
            view_id = await connection.fetchval(QUERIES.materialize_view, project, name, AVAILABLE_ONLINE, now)
            if view_id is None:
                raise kinds.FEATURE_VIEW.missing(name, project)
            await views.add_intervals(connection, view_id, [interval])

    async def delete(self, kind: Kind, name: str, project: str) -> None:
        """Delete an object (a view of any kind) with all that hangs on it. Raises NotFound."""
        async with self._database.transaction() as connection:
            await connection.fetchval(QUERIES.touch_project, project)
            await self._access.over(connection).require_for_stored((DELETE,), kind, project, name)
            if await connection.fetchval(QUERIES.delete_object, project, kind.family, name) is None:
                raise kind.missing(name, project)

    async def delete_project(self, name: str) -> None:
        """Delete a project with everything in it. Raises NotFound."""
        async with self._database.transaction() as connection:
            await connection.fetchval(QUERIES.touch_project, name)
            await self._access.over(connection).require_for_stored((DELETE,), kinds.PROJECT, name, name)
            if await connection.fetchval(QUERIES.delete_project, name) is None:
                raise kinds.PROJECT.missing(name, name)

    async def put_infra(self, project: str, infra: bytes) -> None:
        """Replace a project's infra; the project is created if there is none."""
        async with self._database.transaction() as connection:
            await self._ensure_project(connection, project, create=True)
            await self._access.over(connection).require_for_stored((UPDATE,), kinds.PROJECT, project, project)
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
            await _write(connection, kinds.PROJECT, _Plan(message, is_new=True), project, now)
        return now

    async def _planned(self, connection: Connection, kind: Kind, message: Any, project: str) -> _Plan | None:
        """What applying a message will write; None: nothing, an equal object is stored."""
        merged: Any = kind.message()
        merged.CopyFrom(message)
        spec = kind.spec(merged)
        if kind is not kinds.PROJECT:
            spec.project = project
        if kind is kinds.FEATURE_SERVICE:
            await _resolve(self._access.over(connection), spec, project)
        stored = await connection.fetchrow(QUERIES.get_object, project, kind.family, "", spec.name)
        if stored is not None and stored["kind"] != kind.name:
            raise _name_taken(kind, spec.name, project, stored["kind"])
        if kind.is_view:
            change = await views.change(connection, kind, merged, stored)
            return _Plan(change.definition, is_new=stored is None, change=change) if change else None
        if kind.timed:
            merged.meta.ClearField("created_timestamp")
            merged.meta.ClearField("last_updated_timestamp")
        if stored is None:
            return _Plan(merged, is_new=True)
        before: Any = kind.message.FromString(stored["content"])
        if kind.timed:
            merged.meta.created_timestamp.CopyFrom(before.meta.created_timestamp)
            merged.meta.last_updated_timestamp.CopyFrom(before.meta.last_updated_timestamp)
        return None if merged == before else _Plan(merged, is_new=False)

    # ---- reading ----

    async def get(self, kind: Kind, name: str, project: str, parent: str = "") -> bytes:
        """The message of one object. Raises NotFound."""
        row = await self._access.fetchrow(QUERIES.get_object, project, kind.family, parent, name)
        if row is None or row["kind"] != kind.name:
            raise await self._absent(kind, name, project, parent)
        return _whole_message(kind, row)

    async def get_view(self, name: str, project: str) -> Content:
        """The message of a view, whatever its kind. Raises NotFound."""
        row = await self._access.fetchrow(QUERIES.get_object, project, kinds.VIEW_FAMILY, "", name)
        if row is None:
            raise await self._absent(kinds.FEATURE_VIEW, name, project)
        kind = kinds.BY_NAME[row["kind"]]
        return Content(kind, project, name, _whole_message(kind, row))

    async def get_rendered(self, kind: Kind | None, name: str, project: str, parent: str = "") -> Content:
        """The JSON of one object; `kind` None means any view but a label view. Raises NotFound."""
        sought = kind or kinds.FEATURE_VIEW
        row = await self._access.fetchrow(QUERIES.get_rendered, project, sought.family, parent, name)
        found = kinds.BY_NAME[row["kind"]] if row is not None else None
        fits = found is kind if kind else found is not kinds.LABEL_VIEW
        if row is None or found is None or not fits:
            raise await self._absent(sought, name, project, parent)
        return Content(found, project, name, _whole_json(found, row))

    async def versions(self, name: str, project: str, page: int, limit: int) -> tuple[Sequence[views.Version], int]:
        """One page of a view's versions, oldest first, and how many it has. Page 0: all of them. Raises NotFound."""
        found = await views.versions(self._access, name, project, page, limit)
        if found is None:
            raise await self._absent(kinds.FEATURE_VIEW, name, project)
        return found

    async def version(self, name: str, project: str, number: int) -> views.Version:
        """One version of a view. Raises NotFound."""
        found = await views.version(self._access, name, project, number)
        if found is None:
            raise await self._absent(kinds.FEATURE_VIEW, name, project)
        return found

    async def page(self, wanted: listing.Listing, *, rendered: bool = False) -> Page:
        """One page of a list, as messages or as JSON."""
        where, arguments = listing.conditions(wanted)
        head = QUERIES.page_rendered if rendered else QUERIES.page_of_protos
        statement = f"{head} {where} ORDER BY {listing.order(wanted)}"
        if not wanted.paged:
            objects = _contents(await self._access.fetch(statement, *arguments), rendered)
            return Page(objects, len(objects))
        total = await self._access.fetchval(f"{QUERIES.count_objects} {where}", *arguments)
        statement += f" LIMIT ${len(arguments) + 1} OFFSET ${len(arguments) + 2}"
        offset = (wanted.page - 1) * wanted.limit
        rows = await self._access.fetch(statement, *arguments, wanted.limit, offset) if offset < total else []
        return Page(_contents(rows, rendered), total)

    async def everything(self, wanted: Sequence[Kind]) -> AsyncGenerator[Content]:
        """The messages of all objects of some kinds, as they were at one moment, but those of protected projects.

        They are read as they are consumed, so that only some of them are in memory.
        """
        async with self._database.transaction() as connection:
            await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            for kind in wanted:
                every = listing.Listing(kind, hide_protected=True)
                where, arguments = listing.conditions(every)
                statement = f"{QUERIES.page_of_protos} {where} ORDER BY {listing.order(every)}"
                statement, narrowed = self._access.narrowed(statement, tuple(arguments))
                async for row in connection.cursor(statement, *narrowed, prefetch=_BATCH):
                    yield _contents([row], rendered=False)[0]

    async def projects(self, names: Sequence[str]) -> Sequence[StoredProject]:
        """What is kept of projects besides their objects, of those that the caller may read."""
        return [StoredProject(**row) for row in await self._access.fetch(QUERIES.get_projects, names)]

    async def project(self, name: str) -> StoredProject | None:
        """What is kept of a project besides its object; None if there is none that the caller may read."""
        return next(iter(await self.projects([name])), None)

    async def infra(self, project: str) -> bytes:
        """A project's infra; nothing if there is none, or no such project."""
        found = await self.project(project)
        if found is None:
            absent = await self._absent(kinds.PROJECT, project, project)
            if not isinstance(absent, errors.NotFound):
                raise absent
        return (found and found.infra) or b""

    async def _absent(self, kind: Kind, name: str, project: str, parent: str = "") -> errors.TriglotError:
        missing = _missing(kind, name, project, parent)
        return await self._access.absent(missing, project, kind.family, parent, name)


def _target(kind: Kind, message: Any, project: str) -> Target:
    """An object as it is judged before it is applied."""
    row = row_of(kind, message, project)
    return Target(kind, project, row.name, row.tags, row.rendered)


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


def _contents(rows: Sequence[asyncpg.Record], rendered: bool) -> Sequence[Content]:
    whole = _whole_json if rendered else _whole_message
    found = [(kinds.BY_NAME[row["kind"]], row) for row in rows]
    return [Content(kind, row["project"], row["name"], whole(kind, row)) for kind, row in found]


def _whole_message(kind: Kind, row: asyncpg.Record) -> bytes:
    return views.whole_message(kind, row) if kind.is_view else bytes(row["content"])


def _whole_json(kind: Kind, row: asyncpg.Record) -> bytes:
    return views.whole_json(row) if kind.is_view else bytes(row["content"])


@dataclass(frozen=True)
class _Plan:
    """What an apply will write: the message as it should be stored, but for the times that a write sets."""

    message: Any
    is_new: bool
    change: views.Change | None = None  # of views


def _name_taken(kind: Kind, name: str, project: str, stored: str) -> errors.AlreadyExists:
    return errors.AlreadyExists(
        f"Feature view name '{name}' is already used by a {stored}. Cannot register a {kind.name} with the same name.",
        reason="FEATURE_VIEW_NAME_CONFLICT",
        name=name,
        project=project,
    )


async def _resolve(access: Access, service: Any, project: str) -> None:
    """Give a feature service's projections the columns of their views.

    NotFound if there is no such view or version that the caller may read: the service would show its columns.
    """
    names = [projection.feature_view_name for projection in service.features]
    rows = {row["name"]: row for row in await access.fetch(QUERIES.get_views, project, names)}
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
        proto = rows[name]["proto"]
        if projection.HasField("version_tag"):
            version = await views.version(access, name, project, projection.version_tag)
            proto = version.proto if version else proto
        view: Any = kind.message.FromString(proto)
        if not projection.feature_columns:
            projection.feature_columns.extend(view.spec.features)
        features = {feature.name: feature for feature in view.spec.features}
        for column in projection.feature_columns:
            if column.value_type == ValueType.INVALID:
                if column.name not in features:
                    raise errors.InvalidArgument(f"Feature view {name} has no feature {column.name}", field="features")
                column.CopyFrom(features[column.name])


async def _write(connection: Connection, kind: Kind, plan: _Plan, project: str, now: datetime) -> None:
    """Write an object with all that follows from its definition: its row, its features, its versions, its edges."""
    message = plan.message
    if kind.timed:
        message.meta.last_updated_timestamp.FromDatetime(now)
        if plan.is_new:
            message.meta.created_timestamp.FromDatetime(now)
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
        plan.change.state if plan.change else 0,
        plan.change.version if plan.change else None,
    )
    if plan.change:
        await _put_features(connection, object_id, kind, message, now, is_new=plan.is_new)
        await views.store_change(connection, object_id, plan.change, now)
    edges = list(kinds.edges(kind, message))
    if not plan.is_new:
        await connection.execute(QUERIES.drop_edges, object_id)
    if edges:
        await connection.execute(
            QUERIES.put_edges, object_id, project, *(list(column) for column in zip(*edges, strict=True))
        )


async def _put_features(
    connection: Connection, view_id: int, kind: Kind, view: Any, now: datetime, *, is_new: bool
) -> None:
    project = view.spec.project
    feature_kind, rows = feature_rows(kind, view, project)
    if not is_new:
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
