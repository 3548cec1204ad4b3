"""Deadlines that cost next to nothing while they are met.

`asyncio.timeout` sets a timer of the event loop at every use and drops it again, which was a tenth of what a small
request took. Here each use is noted in a dict, and one timer of the loop looks through it from time to time.
"""

from __future__ import annotations

import asyncio
from types import TracebackType

# How late a deadline may be noticed.
_TICK_SECONDS = 0.02


class within:  # noqa: N801 - read as a statement: `with deadlines.within(seconds)`
    """`asyncio.timeout` for work that is nearly always done in time: a block that outlasts it raises TimeoutError."""

    __slots__ = ("_cancelling", "_expired", "_open", "_seconds", "_task")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        if task is None:
            raise RuntimeError("a deadline is a task's")
        self._task = task
        self._cancelling = task.cancelling()
        self._expired = False
        watch = _watches.get(loop) or _new_watch(loop)
        opened = self._open = watch.open
        opened[self] = loop.time() + self._seconds
        if not watch.ticking:
            watch.tick()

    def expire(self) -> None:
        """Called when it is over: end what the block waits for."""
        self._expired = True
        self._task.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.pop(self, None)
        # Who else cancelled the task means the task, not this block.
        if self._expired and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error


class _Watch:
    """The open deadlines of one event loop, and when each is over."""

    __slots__ = ("open", "ticking")

    def __init__(self) -> None:
        self.open: dict[within, float] = {}
        self.ticking = False

    def tick(self) -> None:
        """End what is over, and look again later as long as anything is open."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for deadline in [deadline for deadline, when in self.open.items() if when <= now]:
            del self.open[deadline]
            deadline.expire()
        self.ticking = bool(self.open)
        if self.ticking:
            loop.call_later(_TICK_SECONDS, self.tick)


_watches: dict[asyncio.AbstractEventLoop, _Watch] = {}


def _new_watch(loop: asyncio.AbstractEventLoop) -> _Watch:
    for closed in [known for known in _watches if known.is_closed()]:
        del _watches[closed]
    watch = _watches[loop] = _Watch()
    return watch
