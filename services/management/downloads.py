"""Files from URLs that callers give: from hosts that are allowed, at addresses that were looked at, in bounded time and
size. Blocks: use it in a thread.

A host must be in the list. Each connection goes to the very address that was checked, so that a name which leads
elsewhere a moment later changes nothing; redirects are checked as the first URL is.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urljoin, urlsplit

from chassis import errors
from services.management.inputs import invalid, not_found
from services.management.settings import ManagementSettings

_FIELD = "UrlDatasource.Path"
_SETTING = "TRIGLOT_MANAGEMENT_URL_HOSTS"
_PORTS = {"http": 80, "https": 443}
_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_REDIRECTS = 5
_BLOCK_BYTES = 1 << 20
_STEP_SECONDS = 15.0
_PASSING = (408, 425, 429)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class Limits:
    """What a download may do. `hosts`: `host`, `host:port`, addresses and networks; `*` is every public host."""

    hosts: Sequence[str]
    max_bytes: int
    seconds: float


class Stop:
    """Ends a download from another thread, whatever it waits for from its server."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._set = False
        self._socket: socket.socket | None = None

    def set(self) -> None:
        """End it. Idempotent."""
        with self._lock:
            self._set = True
            self._break()

    def check(self) -> None:
        """Raises Unavailable once it was ended."""
        if self._set:
            raise errors.Unavailable("the download was stopped", dependency="url")

    @contextmanager
    def watching(self, deadline: float) -> Iterator[None]:
        """Break off, when the time has come, what is read from the socket that `reads` was told of last."""
        timer = threading.Timer(max(0, deadline - time.monotonic()), self._expire)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            with self._lock:
                self._socket = None

    def reads(self, connection: socket.socket) -> None:
        """Say from which socket is read from now on."""
        with self._lock:
            self._socket = connection
            if self._set:
                self._break()

    def _expire(self) -> None:
        with self._lock:
            self._break()

    def _break(self) -> None:
        if self._socket is not None:
            with suppress(OSError):
                # Not that of ssl, which changes what the other thread is reading from.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


def limits_of(own: ManagementSettings) -> Limits:
    """What the settings say."""
    return Limits(own.url_hosts, own.url_max_bytes, own.url_timeout_seconds)


def is_url(path: str) -> bool:
    """Whether a path is to be fetched, not opened."""
    return path.partition("://")[0].lower() in ("http", "https", "oss")


def _split(url: str) -> SplitResult | None:
    """The parts of a URL; None for what is none."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    return parts


def check(url: str, limits: Limits) -> None:
    """Raises InvalidArgument for a URL that is not fetched. Looks no name up."""
    _target(url, limits)


def fetch(url: str, limits: Limits, path: Path, stop: Stop) -> None:
    """Write what a URL leads to into a file. Ends early, with an error of its own, once it is stopped.

    Raises InvalidArgument for what is not allowed or too large, NotFound, Unavailable for what may pass.
    """
    deadline = time.monotonic() + limits.seconds
    with stop.watching(deadline):
        for _ in range(_MAX_REDIRECTS + 1):
            with _answer(url, limits, deadline, stop) as answer:
                if answer.status in _REDIRECTS:
                    url = urljoin(url, answer.getheader("Location", ""))
                    continue
                _check_status(answer.status)
                _save(answer, limits, path, deadline, stop)
                return
    raise invalid(_FIELD, f"redirects more than {_MAX_REDIRECTS} times")


@dataclass(frozen=True)
class _Target:
    secure: bool
    host: str
    port: int
    # Path and query.
    resource: str


def _target(url: str, limits: Limits) -> _Target:
    """A URL that may be fetched. `oss://bucket.endpoint/key` is an object that everybody may read, over https."""
    parts = _split(url)
    if parts is None or not parts.hostname or any(ord(each) <= 32 or ord(each) >= 127 for each in url):
        raise invalid(_FIELD, "is no URL that can be fetched")
    if parts.username is not None or parts.password is not None:
        raise invalid(_FIELD, "must hold no user and no password")
    scheme = parts.scheme.lower()
    if scheme == "oss":
        if "." not in parts.hostname:
            raise invalid(_FIELD, "needs the endpoint: oss://bucket.oss-cn-hangzhou.aliyuncs.com/key")
        scheme = "https"
    if scheme not in _PORTS:
        raise invalid(_FIELD, "must begin with http:, https:, oss: or file:")
    host, port = parts.hostname.rstrip("."), parts.port or _PORTS[scheme]
    if not _allowed_name(host, port, limits.hosts):
        raise invalid(_FIELD, f"leads to {host}:{port}, which {_SETTING} does not allow")
    resource = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return _Target(scheme == "https", host, port, resource)


def _allowed_name(host: str, port: int, hosts: Sequence[str]) -> bool:
    if host in hosts or f"{host}:{port}" in hosts or "*" in hosts:
        return True
    try:
        return _listed(ipaddress.ip_address(host), port, hosts)
    except ValueError:
        return False


def _listed(address: _Address, port: int, hosts: Sequence[str]) -> bool:
    """Whether an address is in the list itself, alone, with the port, or in a network."""
    shown = f"[{address}]" if address.version == 6 else str(address)
    if str(address) in hosts or f"{shown}:{port}" in hosts:
        return True
    for each in hosts:
        try:
            if "/" in each and address in ipaddress.ip_network(each, strict=False):
                return True
        except ValueError:
            continue
    return False


def _checked_address(target: _Target, limits: Limits) -> str:
    """One of the host's addresses. All of them must be public, or in the list themselves."""
    try:
        found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except OSError:
        raise errors.Unavailable(f"the name {target.host} leads nowhere", dependency="url") from None
    addresses = list(dict.fromkeys(str(each[4][0]) for each in found))
    for text in addresses:
        address = ipaddress.ip_address(text.partition("%")[0])
        address = _inner(address)
        if not (address.is_global and not address.is_multicast) and not _listed(address, target.port, limits.hosts):
            raise invalid(_FIELD, f"leads to an internal address, which {_SETTING} does not name")
    return addresses[0]


def _inner(address: _Address) -> _Address:
    """The IPv4 address that an IPv6 address stands for, if it does."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


@contextmanager
def _answer(url: str, limits: Limits, deadline: float, stop: Stop) -> Iterator[http.client.HTTPResponse]:
    target = _target(url, limits)
    address = _checked_address(target, limits)
    connection = http.client.HTTPConnection(target.host, target.port)
    try:
        plain = socket.create_connection((address, target.port), timeout=_left(deadline))
        connection.sock = plain
        if target.secure:
            context = ssl.create_default_context()
            connection.sock = context.wrap_socket(plain, server_hostname=target.host, do_handshake_on_connect=False)
        stop.reads(connection.sock)
        if isinstance(connection.sock, ssl.SSLSocket):
            connection.sock.do_handshake()
        usual = target.port == _PORTS["https" if target.secure else "http"]
        host = f"[{target.host}]" if ":" in target.host else target.host
        connection.putrequest("GET", target.resource, skip_host=True, skip_accept_encoding=True)
        connection.putheader("Host", host if usual else f"{host}:{target.port}")
        connection.putheader("Accept-Encoding", "identity")
        connection.putheader("User-Agent", "triglot")
        connection.endheaders()
        with connection.getresponse() as answer:
            yield answer
    except ssl.SSLCertVerificationError:
        raise invalid(_FIELD, f"leads to {target.host}, whose certificate is not good") from None
    except (OSError, http.client.HTTPException) as error:
        stop.check()
        _left(deadline)
        raise errors.Unavailable(f"{target.host} cannot be read ({type(error).__name__})", dependency="url") from None
    finally:
        connection.close()


def _check_status(status: int) -> None:
    if status == 200:
        return
    if status in (404, 410):
        raise not_found("File", "of the URL")
    if status >= 500 or status in _PASSING:
        raise errors.Unavailable(f"the server answers {status}", dependency="url")
    raise invalid(_FIELD, f"is answered with {status} by its server")


def _save(answer: http.client.HTTPResponse, limits: Limits, path: Path, deadline: float, stop: Stop) -> None:
    expected = answer.length
    too_large = invalid(_FIELD, f"leads to more than {limits.max_bytes} bytes")
    if expected is not None and expected > limits.max_bytes:
        raise too_large
    written = 0
    with path.open("wb") as file:
        while block := answer.read1(_BLOCK_BYTES):
            written += len(block)
            if written > limits.max_bytes:
                raise too_large
            file.write(block)
            stop.check()
            _left(deadline)
    # What was broken off ends like what is whole.
    stop.check()
    _left(deadline)
    if expected is not None and written < expected:
        raise errors.Unavailable("the server broke off", dependency="url")


def _left(deadline: float) -> float:
    """Seconds for the next step."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise errors.Unavailable("the server takes too long", dependency="url")
    return min(left, _STEP_SECONDS)
