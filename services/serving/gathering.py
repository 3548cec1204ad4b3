"""What is gathered in memory while requests are served, and written to PostgreSQL from time to time."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod

from chassis import errors
from chassis.telemetry import log


class Gathered(ABC):
    """`what` names it in the log. What could not be written is tried again the next time."""

    def __init__(self, what: str, every_seconds: float) -> None:
        self._what = what
        self._every_seconds = every_seconds
        self._writing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Write from now on."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Write what is left."""
        if self._task is not None:
            async with self._writing:
                self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._try_to_flush()

    async def flush(self) -> None:
        """Write what was gathered until now."""
        async with self._writing:
            await self._write()

    @abstractmethod
    async def _write(self) -> None:
        """Write all of it, or nothing, and keep it then. Never called twice at the same time."""

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._every_seconds)
            await self._try_to_flush()

    async def _try_to_flush(self) -> None:
        try:
            await self.flush()
        except errors.TriglotError as error:
            log.warning("gathered figures are written later", what=self._what, error=error.message)
        except Exception:
            # A defect. What was gathered is kept, and the next time may go well.
            log.exception("gathered figures are not written", what=self._what)
