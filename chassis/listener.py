"""Notifications of PostgreSQL: one connection that listens, and listens again when it was lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import asyncpg

from chassis.settings import Settings
from chassis.telemetry import log

_CHECK_SECONDS = 5.0
_RETRY_SECONDS = 0.5


class Listener:
    """Hands on what is sent to one channel.

    `on_message` gets each payload. `on_gap` is called when notifications may have been lost: when the connection is
    lost, and when it is there again. `listening` says whether it is there now. Both callbacks run in the event loop
    and must not raise. `start` once, then `stop` once.
    """

    def __init__(
        self, settings: Settings, channel: str, on_message: Callable[[str], None], on_gap: Callable[[], None]
    ) -> None:
        self._url = settings.postgres_url.get_secret_value()
        self._timeout_seconds = settings.postgres_timeout_seconds
        self._channel = channel
        self._on_message = on_message
        self._on_gap = on_gap
        self._task: asyncio.Task[None] | None = None
        self._first = asyncio.Event()
        self.listening = False

    async def start(self) -> None:
        """Listen; returns when it does, or when the first attempt has failed."""
        self._task = asyncio.create_task(self._run())
        await self._first.wait()

    async def stop(self) -> None:
        """Close the connection."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                await self._listen()
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
                log.warning("notifications of PostgreSQL are cut off", channel=self._channel, error=repr(error))
            finally:
                self.listening = False
                self._first.set()
            self._on_gap()
            await asyncio.sleep(_RETRY_SECONDS)

    async def _listen(self) -> None:
        connection = await asyncpg.connect(
            self._url,
            timeout=self._timeout_seconds,
            command_timeout=_CHECK_SECONDS,
            server_settings={"application_name": "triglot-listener"},
        )
        try:
            lost = asyncio.Event()
            connection.add_termination_listener(lambda _: lost.set())
            await connection.add_listener(self._channel, lambda *arguments: self._on_message(str(arguments[3])))
            self.listening = True
            self._on_gap()
            self._first.set()
            while not lost.is_set():
                # A peer that vanished without a word is noticed here.
                try:
                    async with asyncio.timeout(_CHECK_SECONDS):
                        await lost.wait()
                except TimeoutError:
                    await connection.execute("SELECT 1")
        finally:
            connection.terminate()
