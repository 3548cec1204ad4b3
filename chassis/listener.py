"""Notifications of PostgreSQL: one connection that listens and proves that it hears, made again when it was lost."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable

import asyncpg

from chassis import errors
from chassis.postgres import Database
from chassis.settings import Settings
from chassis.telemetry import log

_CHECK_SECONDS = 5.0
# How long a notification of our own may be on its way.
_ECHO_SECONDS = 2.0
_RETRY_SECONDS = 0.5


class _NothingHeardError(Exception):
    """What was sent to ourselves did not come."""


class Listener:
    """Hands on what is sent to one channel.

    `on_message` gets each payload. `on_gap` is called when notifications may have been lost: when the connection is
    lost, and when it is there again. `listening` says whether it is there now. Both callbacks run in the event loop
    and must not raise. `start` once, then `stop` once.

    That LISTEN was accepted proves nothing: a pooler may take it and hand on no notification, and a peer may be gone
    without a word. So the listener sends a notification to itself, at first and every `check_seconds`, on another
    connection, as all senders do; while none comes, it does not count as listening.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        channel: str,
        on_message: Callable[[str], None],
        on_gap: Callable[[], None],
        *,
        check_seconds: float = _CHECK_SECONDS,
    ) -> None:
        self._url, _ = settings.direct_postgres
        self._timeout_seconds = settings.postgres_timeout_seconds
        self._database = database
        self._channel = channel
        # Nobody else hears what this one sends to itself.
        self._own_channel = f"{channel}_echo_{secrets.token_hex(8)}"
        self._on_message = on_message
        self._on_gap = on_gap
        self._check_seconds = check_seconds
        self._task: asyncio.Task[None] | None = None
        self._first = asyncio.Event()
        self._complained = False
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
                self._complain(repr(error))
            except errors.TriglotError as error:
                self._complain(error.message)
            except _NothingHeardError:
                self._complain("LISTEN is accepted, but nothing is heard: is there a pooler in between?")
            finally:
                was_listening, self.listening = self.listening, False
                self._first.set()
            if was_listening:
                self._on_gap()
            await asyncio.sleep(_RETRY_SECONDS)

    def _complain(self, error: str) -> None:
        """Once for each time that the notifications stop, however often it is tried again."""
        if not self._complained:
            log.warning("notifications of PostgreSQL are cut off", channel=self._channel, error=error)
        self._complained = True

    async def _listen(self) -> None:
        connection = await asyncpg.connect(
            self._url,
            timeout=self._timeout_seconds,
            command_timeout=self._timeout_seconds,
            server_settings={"application_name": "triglot-listener"},
        )
        try:
            lost, heard = asyncio.Event(), asyncio.Event()
            connection.add_termination_listener(lambda _: lost.set())
            await connection.add_listener(self._channel, lambda *arguments: self._on_message(str(arguments[3])))
            await connection.add_listener(self._own_channel, lambda *_: heard.set())
            await self._hear_myself(heard)
            self.listening, self._complained = True, False
            self._on_gap()
            self._first.set()
            while not await _within(self._check_seconds, lost):
                await self._hear_myself(heard)
        finally:
            connection.terminate()

    async def _hear_myself(self, heard: asyncio.Event) -> None:
        heard.clear()
        await self._database.execute("SELECT pg_notify($1, '')", self._own_channel)
        if not await _within(_ECHO_SECONDS, heard):
            raise _NothingHeardError


async def _within(seconds: float, event: asyncio.Event) -> bool:
    """Whether it happens within this time."""
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False
