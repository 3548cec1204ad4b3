"""Removes from Redis the rows that nobody reads any more: of replaced generations, deleted groups, broken loads."""

from __future__ import annotations

import asyncio

from chassis import errors
from chassis.telemetry import log
from services.serving.catalogue import Catalogue
from services.serving.rows import Rows

# A sweeper that died with a row set in its hands is followed by another after this time.
_CLAIM_SECONDS = 600.0


class Sweeper:
    """Works in the background of every process; what one has claimed, others leave alone. What to remove is in tables,

    so a crash loses nothing.
    """

    def __init__(self, catalogue: Catalogue, rows: Rows, *, every_seconds: float, abandoned_seconds: float) -> None:
        self._catalogue = catalogue
        self._rows = rows
        self._every_seconds = every_seconds
        self._abandoned_seconds = abandoned_seconds
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Sweep now, and again from time to time."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop, even in the middle of a row set: the next sweep goes on with it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                await self.sweep()
            except errors.TriglotError as error:
                log.warning("sweep put off", error=error.message)
            except Exception:
                log.exception("sweep failed")
            await asyncio.sleep(self._every_seconds)

    async def sweep(self) -> int:
        """Remove everything that is due; how many rows that were."""
        removed = 0
        while (row_set := await self._catalogue.claim_retired(self._abandoned_seconds, _CLAIM_SECONDS)) is not None:
            rows = await self._rows.remove(row_set)
            await self._catalogue.forget(row_set)
            log.info("rows removed", row_set=row_set, rows=rows)
            removed += rows
        return removed
