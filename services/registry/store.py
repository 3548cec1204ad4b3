"""Rows of schema `registry`. Knows projects, objects, features and edges, not RPCs."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg

from chassis import audit, errors
from chassis.migrations import Migrations
from chassis.postgres import Connection, Database
from protos.gen.feast.core.FeatureView_pb2 import AVAILABLE_ONLINE, MaterializationInterval
from services.registry import kinds, listing, views
from services.registry.access import DELETE, UPDATE, WRITE_ONLINE, Access
from services.registry.applying import Applying, Plan
from services.registry.checks import too_large
from services.registry.kinds import Kind
from services.registry.lineage import by_target
from services.registry.queries import QUERIES

# Rows that are fetched together where everything is read.
_BATCH = 200
# What stands around an object in a message, at most.
_FRAME_BYTES = 16
MIGRATIONS = Migrations("registry", Path(__file__).parent / "migrations")


class Content(NamedTuple):
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


class Snapshot:
    """The registry as it was at one moment. Read as it is consumed, so that only a batch at a time is in memory."""

    def __init__(self, connection: Connection, access: Access) -> None:
        self._connection = connection
        self._access = access

    async def batches(self, wanted: listing.Listing, *, rendered: bool = False) -> AsyncGenerator[Sequence[Content]]:
        """All objects of a list, as messages or as JSON."""
        where, arguments = listing.conditions(wanted)
        head = QUERIES.page_rendered if rendered else QUERIES.page_of_protos
        async for rows in self._rows(f"{head} {where} ORDER BY {listing.order(wanted)}", *arguments):
            yield _contents(rows, rendered)

    async def edges(self, project: str, *, indirect: bool) -> AsyncGenerator[tuple[int, Sequence[bytes]]]:
        """The edges of a project: so many, and for each target their JSON with commas between them."""
        for query in by_target(indirect=indirect):
            async for rows in self._rows(query, [project]):
                yield sum(row["edges"] for row in rows), [row["content"].encode() for row in rows]

    async def _rows(self, query: str, *arguments: Any) -> AsyncGenerator[Sequence[asyncpg.Record]]:
        statement, narrowed = self._access.narrowed(query, arguments)
        cursor = await self._connection.cursor(statement, *narrowed)
        while rows := await cursor.fetch(_BATCH):
            yield rows


class RegistryStore:
    """All reads and writes of the registry, as far as whoever calls may read and write.

    A write is one transaction, and visible once it returned. What the caller may not do is a PermissionDenied. Nothing
    that is read is larger than `max_bytes`, a message.
    """

    def __init__(self, database: Database, access: Access, max_bytes: int) -> None:
        self._database = database
        self._max_bytes = max_bytes
        self._access = access

    # ---- writing ----

    async def apply(self, kind: Kind, message: Any, project: str, *, taken: errors.AlreadyExists | None = None) -> None:
        """Create an object or replace the one of its name; its project is created if there is none.

        An equal object is not written, and the time of creation is kept. A view keeps its materialized intervals and
        its state; it gets a new version when its schema changes, and goes back to one that it asks for. A feature
        service's projections get the columns of their views. AlreadyExists if a view of another kind has the name,
        NotFound if a service selects from a view that is not there, FailedPrecondition if a view asks for one of its
        versions and was edited as well; `taken`, if given, if there is an object of that name.
        """
        # Nobody is mostly in the way: then this is one read, and one statement that writes.
        async with self._database.connection() as connection:
            if await self._applying(connection, kind, project).apply(message, taken):
                return
        async with self._database.transaction() as connection:
            await self._take_turn(connection, project, create=kind is not kinds.PROJECT)
            if not await self._applying(connection, kind, project).apply(message, taken):
                raise errors.Internal(f"Project {project} was written to in another one's turn")

    def _applying(self, connection: Connection, kind: Kind, project: str) -> Applying:
        return Applying(connection, self._access.over(connection), kind, project)

    async def materialize(self, name: str, project: str, interval: MaterializationInterval) -> None:
        """Note that a feature view was materialized; it is then available online. Raises NotFound."""
        async with self._database.transaction() as connection:
            now = await connection.fetchval(QUERIES.touch_project, project)
            await self._access.over(connection).require_for_stored((WRITE_ONLINE,), kinds.FEATURE_VIEW, project, name)
            view_id = await connection.fetchval(
                QUERIES.materialize_view,
                *(project, name, AVAILABLE_ONLINE, now),
                views.rendered_interval(interval),
                *audit.caller(),
            )
            if view_id is None:
                raise kinds.FEATURE_VIEW.missing(name, project)
            await views.add_intervals(connection, view_id, [interval])

    async def delete(self, kind: Kind, name: str, project: str) -> None:
        """Delete an object (a view of any kind) with all that hangs on it. Raises NotFound."""
        async with self._database.transaction() as connection:
            await connection.fetchval(QUERIES.touch_project, project)
            await self._access.over(connection).require_for_stored((DELETE,), kind, project, name)
            if await connection.fetchval(QUERIES.delete_object, project, kind.family, name, *audit.caller()) is None:
                raise kind.missing(name, project)

    async def delete_project(self, name: str) -> None:
        """Delete a project with everything in it. Raises NotFound."""
        async with self._database.transaction() as connection:
            await connection.fetchval(QUERIES.touch_project, name)
            await self._access.over(connection).require_for_stored((DELETE,), kinds.PROJECT, name, name)
            if await connection.fetchval(QUERIES.delete_project, name, *audit.caller()) is None:
                raise kinds.PROJECT.missing(name, name)

    async def put_infra(self, project: str, infra: bytes) -> None:
        """Replace a project's infra; the project is created if there is none."""
        async with self._database.transaction() as connection:
            await self._take_turn(connection, project, create=True)
            await self._access.over(connection).require_for_stored((UPDATE,), kinds.PROJECT, project, project)
            await connection.execute(QUERIES.put_infra, project, infra, *audit.caller())

    async def ensure_project(self, project: str) -> None:
        """Create a project if there is none."""
        async with self._database.transaction() as connection:
            await self._take_turn(connection, project, create=True)

    async def _take_turn(self, connection: Connection, project: str, *, create: bool) -> None:
        """Take the project's turn of writing. Creates its row if there is none, and its object if `create`."""
        if await connection.fetchval(QUERIES.touch_project, project) is not None:
            return
        now = await connection.fetchval(QUERIES.ensure_project, project, str(uuid.uuid4()))
        if create and not await connection.fetchrow(QUERIES.get_object, project, kinds.PROJECT.family, "", project):
            message: Any = kinds.PROJECT.message()
            message.spec.name = project
            plan = Plan(message, is_new=True, edges=())
            await self._applying(connection, kinds.PROJECT, project).write(plan, now, now)

    # ---- reading ----

    async def get(self, kind: Kind, name: str, project: str, parent: str = "") -> bytes:
        """The message of one object. Raises NotFound."""
        row = await self._access.fetchrow(QUERIES.get_object, project, kind.family, parent, name)
        if row is None or not _fits(kind, kinds.BY_NAME[row["kind"]]):
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
        if row is None or found is None or not _fits(kind, found):
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

    async def materializations(
        self, project: str, name: str, page: int, limit: int
    ) -> tuple[Sequence[views.Materialization], int]:
        """One page of what was materialized of a project's views, or of one, latest first, and how much there is."""
        return await views.materializations(self._access, project, name, page, limit)

    async def page(self, wanted: listing.Listing, *, rendered: bool = False) -> Page:
        """One page of a list, as messages or as JSON. ResourceExhausted if it is more than a message."""
        total = 0
        if wanted.paged:
            where, counted = listing.conditions(wanted)
            total = await self._access.fetchval(f"{QUERIES.count_objects} {where}", *counted)
            if (wanted.page - 1) * wanted.limit >= total:
                return Page((), total)
        head = QUERIES.page_rendered if rendered else QUERIES.page_of_protos
        statement, arguments = listing.page(wanted, head, self._max_bytes)
        objects = _contents(await self._access.fetch(statement, *arguments), rendered)
        if sum(len(found.content) + _FRAME_BYTES for found in objects) > self._max_bytes:
            raise too_large(self._max_bytes)
        return Page(objects, total if wanted.paged else len(objects))

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Snapshot]:
        """The registry as it is now, for as long as the block runs."""
        async with self._database.transaction() as connection:
            await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            yield Snapshot(connection, self._access)

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


def _fits(sought: Kind | None, found: Kind) -> bool:
    """Whether what was found is of the kind that was sought: None is any view but a label view, and labels fit."""
    if sought is None:
        return found is not kinds.LABEL_VIEW
    return found is sought or (sought, found) == (kinds.FEATURE, kinds.LABEL)


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
    return [Content(kind := kinds.BY_NAME[row["kind"]], row["project"], row["name"], whole(kind, row)) for row in rows]


def _whole_message(kind: Kind, row: asyncpg.Record) -> bytes:
    return views.whole_message(kind, row) if kind.is_view else row["content"]


def _whole_json(kind: Kind, row: asyncpg.Record) -> bytes:
    return views.whole_json(row) if kind.is_view else row["content"]
