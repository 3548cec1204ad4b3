"""Children that ended are started again, after a pause that grows while they keep ending."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from chassis.telemetry import log

_LOOK_SECONDS = 0.1
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0
# Whoever ran for so long has recovered from whatever it was.
_STEADY_SECONDS = 60.0


async def keep(
    name: str, exit_status: Callable[[], int | None], start: Callable[[], None], output: Path | None = None
) -> NoReturn:
    """Start it again whenever it has ended. Raises what `start` raises.

    `exit_status` is None while it runs. `start` blocks the event loop, because children must be started from the main
    thread. `output` is its log file, if it has one of its own.
    """
    pause = _FIRST_PAUSE_SECONDS
    while True:
        began = time.monotonic()
        while (status := exit_status()) is None:  # noqa: ASYNC110 - a process sets no event
            await asyncio.sleep(_LOOK_SECONDS)
        if time.monotonic() - began > _STEADY_SECONDS:
            pause = _FIRST_PAUSE_SECONDS
        where = {"log": str(output)} if output else {}
        log.error(f"{name} ended; starting it again", ended_by=described(status), pause_seconds=pause, **where)
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        start()


def described(status: int) -> str:
    """An exit status for a person: `exit status 1`, `signal 9 (Killed)`."""
    return f"exit status {status}" if status >= 0 else f"signal {-status} ({signal.strsignal(-status)})"
