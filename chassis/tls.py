"""Certificates: what a listener shows, whom it believes, what a channel shows. Files are read again when they change.

A file is looked at when a connection begins. Files that do not fit together, because one of them has yet to be
replaced, and files that cannot be read change nothing: what they held before counts, and one line in the log says so.
Connections that are open go on.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from chassis.settings import Settings
from chassis.telemetry import log

Made = TypeVar("Made")
# How often a channel looks at its files, if it is used.
_LOOK_SECONDS = 1.0
# How long calls on a channel with old certificates may take to end.
_GRACE_SECONDS = 3600.0


class FromFiles(Generic[Made]):
    """What `make` makes of some files, made again when one of them has changed. May be asked by several threads."""

    def __init__(self, paths: Sequence[str], make: Callable[[], Made]) -> None:
        """Raises what `make` raises."""
        self._paths = [Path(path) for path in paths if path]
        self._make = make
        self._lock = threading.Lock()
        self._seen = self._stamps()
        self._made = make()

    def now(self) -> Made:
        """What the files hold now, or held when they were good."""
        with self._lock:
            stamps = self._stamps()
            if stamps != self._seen:
                self._seen = stamps
                try:
                    self._made = self._make()
                    log.info("certificates are read again", files=list(map(str, self._paths)))
                except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
                    problem = getattr(error, "strerror", None) or str(error)
                    log.warning("new certificates are no good: the old ones stay", problem=problem)
            return self._made

    def _stamps(self) -> list[tuple[int, int, int] | None]:
        return [_stamp(path) for path in self._paths]


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def grpc_listener(certificate: str, key: str, client_authority: str = "") -> grpc.ServerCredentials:
    """What a gRPC port shows. With an authority it asks callers for a certificate that this one vouches for."""

    def make() -> grpc.ServerCertificateConfiguration:
        pair = _pair(certificate, key)
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=_authority(client_authority))

    files = FromFiles((certificate, key, client_authority), make)
    return grpc.dynamic_ssl_server_credentials(files.now(), files.now, bool(client_authority))


def http_listener(certificate: str, key: str, client_authority: str = "") -> ssl.SSLContext:
    """The same of an HTTP port."""

    def make() -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=client_authority or None)
        context.load_cert_chain(certificate, key, password=str)
        context.verify_mode = ssl.CERT_REQUIRED if client_authority else ssl.CERT_NONE
        return context

    context = _Listener(ssl.PROTOCOL_TLS_SERVER)
    context.files = FromFiles((certificate, key, client_authority), make)
    return context


class _Listener(ssl.SSLContext):
    """Hands every new connection to the context that is made of the files as they are."""

    files: FromFiles[ssl.SSLContext]

    def wrap_bio(self, *arguments: Any, **named: Any) -> ssl.SSLObject:
        return self.files.now().wrap_bio(*arguments, **named)

    def wrap_socket(self, *arguments: Any, **named: Any) -> ssl.SSLSocket:
        return self.files.now().wrap_socket(*arguments, **named)


def channel(target: str, settings: Settings, options: Sequence[tuple[str, Any]]) -> grpc.aio.Channel:
    """A channel that believes the settings' authority and shows their certificate, both as the files are."""
    certificate, key = settings.shown_to_targets

    def make() -> grpc.aio.Channel:
        shown_key, shown = _pair(certificate, key) if certificate else (None, None)
        credentials = grpc.ssl_channel_credentials(_authority(settings.tls_authority), shown_key, shown)
        return grpc.aio.secure_channel(target, credentials, options=options)

    return _Renewed(FromFiles((settings.tls_authority, certificate, key), make))


class _Renewed(grpc.aio.Channel):
    """A channel that is opened anew when its files change. Calls under way end on the one they began on."""

    def __init__(self, files: FromFiles[grpc.aio.Channel]) -> None:
        self._files = files
        self._present = files.now()
        self._look_at = time.monotonic() + _LOOK_SECONDS
        # Channels of before, on which calls may be under way.
        self._old: dict[grpc.aio.Channel, asyncio.Task[None]] = {}

    def _fresh(self) -> grpc.aio.Channel:
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + _LOOK_SECONDS
            old, self._present = self._present, self._files.now()
            if old is not self._present:
                self._old[old] = asyncio.create_task(self._end(old))
        return self._present

    async def _end(self, old: grpc.aio.Channel) -> None:
        await old.close(_GRACE_SECONDS)
        del self._old[old]

    def _method(self, kind: str, *shape: Any, **named: Any) -> Any:
        opened: grpc.aio.Channel | None = None
        method: Any = None

        def call(*asked: Any, **how: Any) -> Any:
            nonlocal opened, method
            fresh = self._fresh()
            if fresh is not opened:
                opened, method = fresh, getattr(fresh, kind)(*shape, **named)
            return method(*asked, **how)

        return call

    def unary_unary(self, *shape: Any, **named: Any) -> Any:
        return self._method("unary_unary", *shape, **named)

    def unary_stream(self, *shape: Any, **named: Any) -> Any:
        return self._method("unary_stream", *shape, **named)

    def stream_unary(self, *shape: Any, **named: Any) -> Any:
        return self._method("stream_unary", *shape, **named)

    def stream_stream(self, *shape: Any, **named: Any) -> Any:
        return self._method("stream_stream", *shape, **named)

    async def __aenter__(self) -> _Renewed:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        for ending in self._old.values():
            ending.cancel()
        for each in (*self._old, self._present):
            await each.close(grace)

    async def channel_ready(self) -> None:
        await self._fresh().channel_ready()

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._fresh().get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._present.wait_for_state_change(last_observed_state)


def _pair(certificate: str, key: str) -> tuple[bytes, bytes]:
    """Key and certificate chain. Raises ValueError if the one is not the other's."""
    chain, private = Path(certificate).read_bytes(), Path(key).read_bytes()
    if x509.load_pem_x509_certificate(chain).public_key() != load_pem_private_key(private, None).public_key():
        raise ValueError("the key is not that of the certificate")
    return private, chain


def _authority(path: str) -> bytes | None:
    if not path:
        return None
    content = Path(path).read_bytes()
    x509.load_pem_x509_certificates(content)
    return content
