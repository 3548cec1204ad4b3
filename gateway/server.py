"""Serve the gateway's application on its ports, all of them in one event loop."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from chassis import tls
from chassis.errors import PortInUse, WrongSetting
from chassis.limits import Addresses, of_addresses
from chassis.server import LEAVE_PART
from chassis.settings import Settings
from gateway.settings import GatewaySettings

# A key, or a token of a provider, is some 6 KiB at most.
_MAX_HEAD_BYTES = 64 * 1024


# Headers of every answer, whoever gives it. Browsers are told to take what comes for what it says it is, and where we
# speak TLS, to come back with nothing else.
_GUARDS = ((b"x-content-type-options", b"nosniff"),)
_GUARDS_OF_TLS = ((b"strict-transport-security", b"max-age=31536000"),)


class HttpServer:
    """uvicorn on one or more ports. `start` once inside the running loop, then `stop` once.

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
        self._sockets: list[socket.socket] = []
        self._host = host
        self._reuse_port = reuse_port
        self._ports = settings.ports

        guards = [*_GUARDS, *(_GUARDS_OF_TLS if certificate[0] else ())]

        def shown(*_: object) -> ssl.SSLContext:
            return tls.http_listener(*certificate, settings.client_authority)

        config = uvicorn.Config(
            app,
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            headers=[(name.decode(), value.decode()) for name, value in guards],
            # Nothing asks where a request came from.
            proxy_headers=False,
            timeout_keep_alive=75,
            limit_concurrency=settings.max_connections,
            timeout_graceful_shutdown=max(1, int(drain_seconds * (1 - LEAVE_PART))),
            ssl_context_factory=shown if certificate[0] else None,
        )
        self._server = _Server(config, addresses)
        self._leave_seconds = drain_seconds * LEAVE_PART
        self._head_timeout_seconds = settings.body_timeout_seconds
        self._task: asyncio.Task[None] | None = None
        self._sweeping: asyncio.Task[None] | None = None

    async def start(self) -> Sequence[int]:
        """Listen, and say on which ports. Raises PortInUse."""
        self._sockets = [_listen(self._host, port, reuse=self._reuse_port) for port in self._ports]
        self._task = asyncio.create_task(self._server.serve(sockets=self._sockets))
        while not self._server.started:
            if self._task.done():
                self._task.result()
            await asyncio.sleep(0.01)
        self._sweeping = asyncio.create_task(self._sweep())
        return [bound.getsockname()[1] for bound in self._sockets]

    async def stop(self) -> None:
        """Let callers turn to others, then take no new connections, and let the requests under way finish.

        Whoever closes an idle connection may do so while a request is on its way, which is lost then. So for a part of
        the time each connection is closed with the next answer on it, as HTTP lets us ask for, and only then as it is.
        """
        if self._sweeping is not None:
            self._sweeping.cancel()
        if self._task is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._leave_seconds):
                    await self._server.leave()
            self._server.should_exit = True
            await self._task

    async def _sweep(self) -> None:
        """Close connections on which the head of a request does not arrive, and those that do not read their answer:
        uvicorn waits for either for ever.

        One look at all of them from time to time costs less than a timer for each. Whoever waits in two looks for the
        same head, or has read nothing between them, goes: it may take once to twice this time.
        """
        waiting: dict[_Protocol, object] = {}
        unread: dict[_Protocol, int] = {}
        while True:
            await asyncio.sleep(self._head_timeout_seconds)
            found: dict[_Protocol, object] = {
                each: each.cycle for each in self._server.connections if each.waits_for_head
            }
            for each in found.keys() & waiting.keys():
                if found[each] is waiting[each]:
                    each.refuse(b"408 Request Timeout")
            waiting = found
            left = {each: size for each in self._server.connections if (size := each.unread_bytes)}
            for each in left.keys() & unread.keys():
                if left[each] == unread[each]:
                    each.transport.abort()
            unread = left


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


class _Protocol(HttpToolsProtocol):
    """One connection, whose requests have heads of a bounded size."""

    _head_bytes = 0
    # Who is counted for it.
    _caller = ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """It begins, unless its address has too many."""
        super().connection_made(transport)
        addresses: Addresses | None = self.server_state.addresses  # type: ignore[attr-defined]
        if addresses is not None:
            caller = addresses.caller((self.client or ("",))[0])
            if addresses.connected(caller):
                self._caller = caller
            else:
                transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        super().connection_lost(exc)
        if self._caller:
            self.server_state.addresses.disconnected(self._caller)  # type: ignore[attr-defined]
            self._caller = ""

    @property
    def unread_bytes(self) -> int:
        """What was written and not taken by the other side."""
        return self.transport.get_write_buffer_size()

    @property
    def waits_for_head(self) -> bool:
        """Whether a request should come, or comes, and its head is not there. After an answer uvicorn has a timer."""
        return (self.cycle is None or self.cycle.response_complete) and self.timeout_keep_alive_task is None

    def data_received(self, data: bytes) -> None:
        """Whatever arrives."""
        super().data_received(data)
        if self.server_state.leaving:  # type: ignore[attr-defined]
            self.leave()
        if self.waits_for_head:
            self._head_bytes += len(data)
            if self._head_bytes > _MAX_HEAD_BYTES:
                self.refuse(b"431 Request Header Fields Too Large")
        elif self._head_bytes:
            self._head_bytes = 0

    def leave(self) -> None:
        """The request under way, if there is one, is the connection's last."""
        if self.cycle is not None:
            self.cycle.keep_alive = False

    def refuse(self, status: bytes) -> None:
        """Answer what is no request yet, and close."""
        if not self.transport.is_closing():
            always = b"".join(b"%b: %b\r\n" % each for each in self.server_state.default_headers)
            self.transport.write(
                b"HTTP/1.1 " + status + b"\r\n" + always + b"content-length: 0\r\nconnection: close\r\n\r\n"
            )
            self.transport.close()


class _State(ServerState):
    """What connections of one server share."""

    leaving = False
    addresses: Addresses | None = None


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the process decides when to stop."""

    def __init__(self, config: uvicorn.Config, addresses: Addresses | None) -> None:
        super().__init__(config)
        self.server_state = _State()
        self.server_state.addresses = addresses

    async def leave(self) -> None:
        """From now on each connection ends with the next answer on it. Returns when there is none."""
        cast("_State", self.server_state).leaving = True
        for each in self.connections:
            each.leave()
        while self.connections:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.05)

    @property
    def connections(self) -> Collection[_Protocol]:
        return cast("Collection[_Protocol]", self.server_state.connections)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


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
