"""A brake on serving's WriteRows, so that what a test does while a publish runs is done while it runs.

Calls go to the real service. While the brake is held, nothing reaches it after the header and the first batch.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from chassis.rpc import Endpoint, Service

_WRITE_ROWS = "/triglot.serving.v1.ServingService/WriteRows"
# The header and one batch. The sender counts a batch as done when the next one is asked for.
_LET_THROUGH = 2


class Brake:
    """Stands before the endpoint of WriteRows, released until it is held."""

    def __init__(self) -> None:
        self._released = asyncio.Event()
        self._released.set()
        # Calls that have begun and not ended.
        self.calls = 0

    def built_into(self, services: Sequence[Service]) -> list[Service]:
        """The services, with this brake on WriteRows."""
        return [
            Service(service.name, {path: self._braked(endpoint) for path, endpoint in service.endpoints.items()})
            for service in services
        ]

    def _braked(self, endpoint: Endpoint) -> Any:
        return _Braked(endpoint, self) if endpoint.path == _WRITE_ROWS else endpoint

    def hold(self) -> None:
        """Stop calls, those under way too, after their first batch."""
        self._released.clear()

    def release(self) -> None:
        """Let all calls go on."""
        self._released.set()

    async def handed_on(self, messages: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """The messages of one call, as fast as the brake lets them."""
        count = 0
        async for message in messages:
            if count >= _LET_THROUGH:
                await self._released.wait()
            yield message
            count += 1


class _Braked:
    """An endpoint with a brake on the messages that it takes."""

    def __init__(self, endpoint: Endpoint, brake: Brake) -> None:
        self._endpoint = endpoint
        self._brake = brake

    def __getattr__(self, name: str) -> Any:
        return getattr(self._endpoint, name)

    async def serve_unary(self, request: Any, *more: Any) -> Any:
        self._brake.calls += 1
        try:
            return await self._endpoint.serve_unary(self._brake.handed_on(request), *more)
        finally:
            self._brake.calls -= 1
