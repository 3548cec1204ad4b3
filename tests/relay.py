"""A way to PostgreSQL that a test can spoil: it swallows notifications as a pooler does, or takes no new connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

_NOTIFICATION = b"A"
_HEADER = 5  # type and length of a message


class Relay:
    """Passes bytes between clients and a server. `url` leads through it."""

    def __init__(self, target: str) -> None:
        self._target = urlsplit(target)
        self._pipes: set[asyncio.Task[None]] = set()
        self.url = ""
        # Notifications are lost, and nobody is told.
        self.deaf = False
        # New connections are closed at once; those that are there go on.
        self.closed = False
        # Cleared: no answer comes through until it is set again.
        self.flowing = asyncio.Event()
        self.flowing.set()

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._pipes.add(task)
        try:
            if not self.closed:
                server, to_server = await asyncio.open_connection(self._target.hostname, self._target.port)
                try:
                    await either(self._requests(client, to_server), self._answers(server, to_client))
                finally:
                    to_server.close()
        finally:
            to_client.close()
            self._pipes.discard(task)

    async def _requests(self, client: asyncio.StreamReader, to_server: asyncio.StreamWriter) -> None:
        while data := await client.read(65_536):
            to_server.write(data)
            await to_server.drain()

    async def _answers(self, server: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        while True:
            header = await server.readexactly(_HEADER)
            body = await server.readexactly(int.from_bytes(header[1:]) - 4)
            await self.flowing.wait()
            if not (self.deaf and header[:1] == _NOTIFICATION):
                to_client.write(header + body)
                await to_client.drain()

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.cancel()


async def either(*ways: object) -> None:
    """Until one of the ways ends; then the others end too."""
    tasks = [asyncio.ensure_future(way) for way in ways]  # type: ignore[call-overload]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def open_relay(target: str) -> AsyncIterator[Relay]:
    relay = Relay(target)
    server = await asyncio.start_server(relay._serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    userinfo = relay._target.netloc.rpartition("@")[0]
    # Without TLS every byte after the greeting is a message that can be told from others.
    relay.url = f"postgresql://{userinfo}@127.0.0.1:{port}{relay._target.path}?sslmode=disable"
    try:
        yield relay
    finally:
        server.close()
        relay.close()
