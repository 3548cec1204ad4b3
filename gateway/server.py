"""Serve the gateway's application on its ports, all of them in one event loop."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from starlette.types import ASGIApp

from chassis.errors import PortInUse, WrongSetting
from chassis.settings import Settings
from gateway.settings import GatewaySettings


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
    ) -> None:
        self._sockets: list[socket.socket] = []
        self._host = host
        self._reuse_port = reuse_port
        self._ports = settings.ports
        config = uvicorn.Config(
            app,
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            # Nothing asks where a request came from.
            proxy_headers=False,
            timeout_keep_alive=75,
            limit_concurrency=settings.max_connections,
            timeout_graceful_shutdown=max(1, int(drain_seconds)),
            ssl_certfile=certificate[0] or None,
            ssl_keyfile=certificate[1] or None,
            ssl_ca_certs=settings.client_authority or None,
            ssl_cert_reqs=ssl.CERT_REQUIRED if settings.client_authority else ssl.CERT_NONE,
        )
        self._server = _Server(config)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> Sequence[int]:
        """Listen, and say on which ports. Raises PortInUse."""
        self._sockets = [_listen(self._host, port, reuse=self._reuse_port) for port in self._ports]
        self._task = asyncio.create_task(self._server.serve(sockets=self._sockets))
        while not self._server.started:
            if self._task.done():
                self._task.result()
            await asyncio.sleep(0.01)
        return [bound.getsockname()[1] for bound in self._sockets]

    async def stop(self) -> None:
        """Take no new connections, let the requests under way finish."""
        if self._task is not None:
            self._server.should_exit = True
            await self._task


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
    )
    try:
        yield await server.start()
    finally:
        await server.stop()


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the process decides when to stop."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _listen(host: str, port: int, *, reuse: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family)
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
