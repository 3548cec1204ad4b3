"""Whether a process can do its work: what it needs is asked from time to time, and probes are told.

Alive is not ready. A process is alive while its event loop turns; no dependency is looked at, since a restart mends
none. It is ready while it serves and what it needs answers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager

import orjson
import prometheus_client

from chassis import errors
from chassis.telemetry import log

# Returns if it is there; raises TriglotError if not.
Need = Callable[[], Awaitable[object]]
Needs = Mapping[str, Need]

_EVERY_SECONDS = 2.0
_ANSWER_SECONDS = 1.5
_HANG_SECONDS = 30.0

_up = prometheus_client.Gauge(
    "triglot_dependency_up", "Whether what the process needs answered when it was last asked.", ("dependency",)
)


@asynccontextmanager
async def watched(needs: Needs, tell: Callable[[Mapping[str, bool]], Awaitable[None]]) -> AsyncIterator[None]:
    """Tell which needs answer: before the block runs, and every two seconds while it does."""

    async def look() -> None:
        answers = await asyncio.gather(*map(_answers, needs.values()))
        await tell(dict(zip(needs, answers, strict=True)))

    async def go_on() -> None:
        while True:
            await asyncio.sleep(_EVERY_SECONDS)
            await look()

    await look()
    looking = asyncio.create_task(go_on())
    try:
        yield
    finally:
        looking.cancel()
        await asyncio.wait((looking,))


async def _answers(need: Need) -> bool:
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            await need()
    except (errors.TriglotError, TimeoutError):
        return False
    except Exception:  # a defect must not end the looking
        log.exception("a dependency cannot be asked")
        return False
    return True


class Board:
    """What probes are told of this process. Written in the event loop, read by the thread that serves metrics."""

    def __init__(self) -> None:
        self._beat = time.monotonic()
        self._serves = False
        self._enough = False
        self._found: Mapping[str, bool] = {}

    @asynccontextmanager
    async def beating(self) -> AsyncIterator[None]:
        """While the block runs and the event loop turns, the process is alive."""

        async def beat() -> None:
            while True:
                self._beat = time.monotonic()
                await asyncio.sleep(1)

        beats = asyncio.create_task(beat())
        try:
            yield
        finally:
            beats.cancel()

    @asynccontextmanager
    async def serving(self, needs: Needs, enough: Callable[[Iterable[bool]], bool] = all) -> AsyncIterator[None]:
        """While the block runs and `enough` of the needs answer, the process is ready."""

        async def tell(found: Mapping[str, bool]) -> None:
            for name, there in found.items():
                _up.labels(name).set(there)
                if there != self._found.get(name, True):
                    log.warning("it answers again" if there else "it does not answer", dependency=name)
            self._found, self._enough = found, enough(found.values()) or not found

        async with watched(needs, tell):
            self._serves = True
            try:
                yield
            finally:
                self._serves = False

    def answer(self, path: str) -> tuple[bool, bytes] | None:
        """Whether it is well, and why, for `/livez` and `/readyz`; None for other paths."""
        if path == "/livez":
            alive = time.monotonic() - self._beat < _HANG_SECONDS
            return alive, orjson.dumps({"alive": alive})
        if path == "/readyz":
            ready = self._serves and self._enough
            return ready, orjson.dumps({"ready": ready, "serves": self._serves, "dependencies": self._found})
        return None


# Like the metrics, one for the process.
board = Board()
