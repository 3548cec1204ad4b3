"""Waiting for what must happen in the end, for as long as a busy machine may need for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

PATIENCE_SECONDS = 60
_POLL_SECONDS = 0.02


async def until(check: Callable[[], Awaitable[bool]], seconds: float = PATIENCE_SECONDS) -> None:
    """Wait until `check` answers true. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while not await check():  # noqa: ASYNC110 - what is waited for is in other processes
            await asyncio.sleep(_POLL_SECONDS)


def eventually(check: Callable[[], bool]) -> bool:
    """Whether `check` answers true in the end."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True
