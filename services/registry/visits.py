"""What callers looked at last. Noted at once, written in batches behind their backs."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import astuple, dataclass
from datetime import datetime

from chassis import errors
from chassis.postgres import Database
from chassis.telemetry import log
from services.registry.access import Access
from services.registry.queries import QUERIES

FLUSH_SECONDS = 1.0
# Beyond these the oldest ones that are not yet written are forgotten.
MAX_WAITING = 10_000
# An index entry holds the principal and a project. Tokens bring names of any length.
MAX_PRINCIPAL_BYTES = 1000
SORTS = {
    "timestamp": "v.visited",
    "path": "v.path",
    "project": "v.project",
    "object": "v.object",
    "object_name": "v.object_name",
    "method": "v.method",
}


@dataclass(frozen=True)
class Visit:
    """That a principal looked at an object."""

    principal: str  # identity of one
    project: str
    object: str
    object_name: str
    path: str
    method: str
    visited: datetime


class VisitStore:
    """The last `kept` visits of each principal to each project. Those that wait no other process knows."""

    def __init__(self, database: Database, access: Access, kept: int) -> None:
        self._database = database
        self._access = access
        self._kept = kept
        self._waiting: deque[Visit] = deque(maxlen=MAX_WAITING)
        self._noted = asyncio.Event()
        self._turn = asyncio.Lock()

    def note(self, visit: Visit) -> None:
        """Take a visit; it is written within a second or so, if its project exists then.

        Of a principal whose identity cannot be stored nothing is remembered: it would take all others that wait along.
        """
        identity = visit.principal.encode(errors="replace")
        if len(identity) > MAX_PRINCIPAL_BYTES or b"\0" in identity or identity.decode() != visit.principal:
            return
        self._waiting.append(visit)
        self._noted.set()

    async def visits(
        self,
        principal: str,
        project: str = "",
        kind: str = "",
        *,
        page: int = 0,
        limit: int = 0,
        sort_by: str = "timestamp",
        descending: bool = False,
    ) -> tuple[Sequence[Visit], int]:
        """One page of a principal's visits, those that wait included, and how many there are. Page 0: all of them.

        `principal` is its identity. Visits to a project that whoever calls may not read are not among them, just as
        those to one that is not there.
        """
        await self.flush()
        direction = " DESC" if descending else ""
        order = f"{SORTS[sort_by]}{direction}, v.visited{direction}, v.id{direction}"
        statement = f"{QUERIES.visits} ORDER BY {order} LIMIT $4 OFFSET $5"
        arguments = (principal, project, kind)
        total: int = await self._access.fetchval(f"SELECT count(*) FROM ({QUERIES.visits}) v", *arguments)  # noqa: S608
        rows = await self._access.fetch(statement, *arguments, limit or None, max(page - 1, 0) * limit)
        return [Visit(*(row[name] for name in Visit.__dataclass_fields__)) for row in rows], total

    async def flush(self) -> None:
        """Write what waits. If PostgreSQL does not answer it waits on, and Unavailable is raised."""
        async with self._turn:
            batch = [self._waiting.popleft() for _ in range(len(self._waiting))]
            if not batch:
                return
            owners = sorted({(visit.principal, visit.project) for visit in batch})
            try:
                async with self._database.transaction() as connection:
                    await connection.execute(QUERIES.put_visits, *zip(*map(astuple, batch), strict=True))
                    await connection.execute(QUERIES.trim_visits, *zip(*owners, strict=True), self._kept)
            except (errors.Unavailable, asyncio.CancelledError):
                self._waiting = deque((*batch, *self._waiting), maxlen=MAX_WAITING)
                self._noted.set()
                raise

    async def keep_flushing(self) -> None:
        """Write what is noted, for ever."""
        while True:
            await self._noted.wait()
            self._noted.clear()
            await asyncio.sleep(FLUSH_SECONDS)
            try:
                await self.flush()
            except errors.Unavailable as error:
                log.warning("visits wait to be written", error=error.message)
            except Exception:
                log.exception("visits were not written")


@asynccontextmanager
async def open_visits(database: Database, access: Access, kept: int) -> AsyncIterator[VisitStore]:
    """A store that writes in the background while the block runs, and what is left when it ends."""
    store = VisitStore(database, access, kept)
    writer = asyncio.create_task(store.keep_flushing())
    try:
        yield store
    finally:
        writer.cancel()
        with suppress(asyncio.CancelledError):
            await writer
        with suppress(errors.TriglotError):
            await store.flush()
