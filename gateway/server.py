"""Serve the gateway's application on its ports, all of them in one event loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial

from starlette.types import ASGIApp

from chassis import tls
from chassis.errors import PortInUse, WrongSetting
from chassis.limits import Addresses, of_addresses
from chassis.server import LEAVE_PART
from chassis.settings import Settings
from gateway.http1 import Connection, Site
from gateway.settings import GatewaySettings

# Headers of every answer, whoever gives it. Browsers are told to take what comes for what it says it is, and where we
# speak TLS, to come back with nothing else.
_GUARDS = ((b"x-content-type-options", b"nosniff"),)
_GUARDS_OF_TLS = ((b"strict-transport-security", b"max-age=31536000"),)
_BACKLOG = 2048
_POLL_SECONDS = 0.02
# How long TLS may take to say goodbye.
_FAREWELL_SECONDS = 2.0


class HttpServer:
    """HTTP on one or more ports. `start` once inside the running loop, then `stop` once.

    `certificate` holds PEM files of the certificate chain and of its key; empty: plain HTTP.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: GatewaySettings,
        *,
        host: str,
        drain_seconds: float,
        certificate: tuple[str, str] = ("", ""),
        reuse_port: bool = False,
        addresses: Addresses | None = None,
    ) -> None:
        self._host = host
        self._reuse_port = reuse_port
        self._ports = settings.ports
        self._drain_seconds = drain_seconds
        self._head_seconds = settings.body_timeout_seconds
        self._tls = tls.http_listener(*certificate, settings.client_authority) if certificate[0] else None
        self._site = Site(
            app,
            headers=[*_GUARDS, *(_GUARDS_OF_TLS if self._tls else ())],
            max_connections=settings.max_connections,
            head_seconds=self._head_seconds,
            addresses=addresses,
        )
        self._listeners: list[asyncio.Server] = []
        self._sweeping: asyncio.Task[None] | None = None

    @property
    def connections(self) -> Collection[Connection]:
        """Those that are open."""
        return self._site.connections

    @property
    def leaving(self) -> bool:
        """Whether it has begun to stop."""
        return self._site.leaving

    async def start(self) -> Sequence[int]:
        """Listen, and say on which ports. Raises PortInUse."""
        loop = asyncio.get_running_loop()
        sockets = []
        try:
            for port in self._ports:
                sockets.append(_listen(self._host, port, reuse=self._reuse_port))
        except PortInUse:
            for bound in sockets:
                bound.close()
            raise
        for bound in sockets:
            listener = await loop.create_server(
                partial(Connection, self._site),
                sock=bound,
                ssl=self._tls,
                backlog=_BACKLOG,
                ssl_handshake_timeout=self._head_seconds if self._tls else None,
                ssl_shutdown_timeout=_FAREWELL_SECONDS if self._tls else None,
            )
            self._listeners.append(listener)
        self._sweeping = asyncio.create_task(self._site.sweep())
        return [bound.getsockname()[1] for bound in sockets]

    async def stop(self) -> None:
        """Let callers turn to others, then take no new connections, and let the requests under way finish.

        Whoever closes an idle connection may do so while a request is on its way, which is lost then. So for a part of
        the time each connection is closed with the next answer on it, as HTTP lets us ask for, and only then as it is.
        """
        site = self._site
        if self._sweeping is not None:
            self._sweeping.cancel()
        site.leaving = True
        await self._gone(self._drain_seconds * LEAVE_PART)
        for listener in self._listeners:
            listener.close()
        await self._gone(self._drain_seconds * (1 - LEAVE_PART), close_idle=True)
        tasks = [exchange.task for exchange in site.exchanges if exchange.task is not None]
        for task in tasks:
            task.cancel()
        for each in [*site.connections]:
            each.abort()
        site.exchanges.clear()
        if tasks:
            await asyncio.wait(tasks, timeout=_FAREWELL_SECONDS)

    async def _gone(self, seconds: float, *, close_idle: bool = False) -> None:
        """Wait until no connection and no request is left, for so long at most."""
        site = self._site
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while site.connections or site.exchanges:
                    for each in [*site.connections] if close_idle else ():
                        each.close_if_idle()
                    await asyncio.sleep(_POLL_SECONDS)


@asynccontextmanager
async def listening(app: ASGIApp, own: GatewaySettings, settings: Settings) -> AsyncIterator[Sequence[int]]:
    """Serve on the gateway's ports while the block runs, then drain. Gives the ports.

    Raises PortInUse, and WrongSetting if certificates of clients are asked for without TLS.
    """
    if own.client_authority and not settings.tls_certificate:
        raise WrongSetting("TRIGLOT_GATEWAY_CLIENT_AUTHORITY works with TLS only: set TRIGLOT_TLS_CERTIFICATE")
    server = HttpServer(
        app,
        own,
        host=settings.host,
        drain_seconds=settings.drain_seconds,
        certificate=(settings.tls_certificate, settings.tls_key),
        reuse_port=settings.reuse_port,
        addresses=of_addresses(settings),
    )
    try:
        yield await server.start()
    finally:
        await server.stop()


def _listen(host: str, port: int, *, reuse: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With its protocol named, as event loops look for it before they switch off the delay of small packets.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuse:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        bound.bind((host, port))
        bound.listen(2048)
    except OSError:
        bound.close()
        raise PortInUse(host, port) from None
    bound.setblocking(False)
    return bound
