"""The port of metrics and probes: HTTP from a thread of its own, so that a busy event loop does not look dead.

It is small on purpose: nothing is read but a head of at most 64 KiB, each connection gets ten seconds in all, and
beyond so many connections at a time new ones are closed at once.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import prometheus_client

from chassis import tls
from chassis.errors import PortInUse
from chassis.settings import Settings

_CONNECTION_SECONDS = 10.0
_MAX_CONNECTIONS = 32
_GUARDS = [("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff")]


def serve(settings: Settings, probed: Callable[[str], tuple[bool, bytes] | None] = lambda _: None) -> None:
    """Serve metrics on the settings' port until the process ends; port 0: not. Raises PortInUse.

    `probed` says of a path whether all is well, and a text, unless the path is none of its own.
    """
    host, port = settings.host, settings.metrics_port
    if not port:
        return
    metrics: Callable[..., Iterable[bytes]] = prometheus_client.make_wsgi_app()

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        def guarded(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            return start_response(status, [*headers, *_GUARDS], *rest)

        answer = probed(environ["PATH_INFO"])
        if answer is None:
            return metrics(environ, guarded)
        well, body = answer
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        guarded("200 OK" if well else "503 Service Unavailable", headers)
        return [body]

    class Server(_Server):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    try:
        serving = make_server(host, port, app, Server, _Handler)
    except OSError:
        raise PortInUse(host, port) from None
    if settings.metrics_tls:
        serving.tls = tls.http_listener(settings.tls_certificate, settings.tls_key)
    threading.Thread(target=serving.serve_forever, daemon=True).start()


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each connection, of which there are so many at most."""

    daemon_threads = True
    request_queue_size = 2 * _MAX_CONNECTIONS
    tls: ssl.SSLContext | None = None

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._free = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        super().__init__(*arguments, **named)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """In the connection's own thread, so that a handshake keeps nobody else waiting."""
        held = [request]
        ending = threading.Timer(_CONNECTION_SECONDS, lambda: _end(held[0]))
        ending.daemon = True
        ending.start()
        try:
            if self.tls is not None:
                held[0] = self.tls.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
                held[0].do_handshake()
            super().process_request_thread(held[0], client_address)
        except OSError:  # in the handshake: whoever spoke has no business here
            self.shutdown_request(held[0])
        finally:
            ending.cancel()
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever goes away while it is answered is no news."""


class _Handler(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nobody needs a line for each look at the metrics."""


def _end(connection: socket.socket) -> None:
    with suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)  # under TLS as well: no goodbyes
