"""HTTP/1.1 for an ASGI application: httptools takes requests apart, each is answered by a task of its own.

In place of uvicorn, whose connections took a fifth of the processor time of a small request (docs/performance.md): an
answer that is known whole leaves in one packet, and nothing waits with a timer of its own. No WebSockets, no lifespan,
no other protocol: whoever offers one is answered in this one, and that is the end of the connection.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Sequence
from email.utils import formatdate
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

import httptools
import structlog
from starlette.types import ASGIApp

from chassis.limits import Addresses
from gateway.exchange import WHOLE_BODY

log = structlog.get_logger("gateway")

# A key, or a token of a provider, is some 6 KiB at most.
_MAX_HEAD_BYTES = 64 * 1024
_MAX_HEADERS = 256
# What may arrive of a body before the application asks for it.
_MAX_AHEAD_BYTES = 64 * 1024
# Requests on one connection that may wait for the answer to the one before them.
_MAX_WAITING = 64
# Longer than clients and balancers keep what they do not use, so that it is they who close.
_IDLE_SECONDS = 75.0
_STATUS_LINES = {each.value: f"HTTP/1.1 {each.value} {each.phrase}\r\n".encode() for each in HTTPStatus}
_WITHOUT_BODY = (204, 304)
_FRAMING = frozenset({b"host", b"transfer-encoding", b"expect"})
# What a request may say in transfer-encoding.
_UNDERSTOOD_CODINGS: tuple[list[bytes], ...] = ([], [b"chunked"])
# Large bodies go out in parts of this size, so that it is seen whether they are taken.
_SLICE_BYTES = 256 * 1024
# How long, and how much, is still read from who may be sending when the last answer is given: a connection that is
# closed with something unread takes the answer back.
_LINGER_SECONDS = 2.0
_LINGER_BYTES = 16 * 1024 * 1024
_CLOSE = b"connection: close\r\n"

Header = tuple[bytes, bytes]


class Site:
    """What the connections to one application share."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        headers: Sequence[Header],
        max_connections: int,
        head_seconds: float,
        addresses: Addresses | None,
    ) -> None:
        """`headers` are on every answer. A head must arrive within once to twice `head_seconds`."""
        self.app = app
        self.max_connections = max_connections
        self.addresses = addresses
        self.connections: set[Connection] = set()
        # Those that are answered, each by a task of its own.
        self.exchanges: set[_Exchange] = set()
        # Each connection ends with the next answer that is begun.
        self.leaving = False
        self._always = b"".join(b"%b: %b\r\n" % header for header in headers)
        self._head_seconds = head_seconds
        self._second, self._opening = -1, b""

    def opening(self) -> bytes:
        """The headers that every answer has: the date, and those that were asked for."""
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._opening = b"date: %b\r\n%b" % (formatdate(usegmt=True).encode(), self._always)
        return self._opening

    async def sweep(self) -> None:
        """Until cancelled, close connections on which the head of a request does not arrive, those that were idle for
        too long, and those that do not read their answer.

        One look at all of them from time to time costs less than a timer for each.
        """
        unread: dict[Connection, int] = {}
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._head_seconds)
            now = loop.time()
            for each in [*self.connections]:
                each.look(now, self._head_seconds)
            left = {each: size for each in self.connections if (size := each.unread_bytes)}
            for each in left.keys() & unread.keys():
                if left[each] == unread[each]:
                    each.abort()
            unread = left


class Connection(asyncio.Protocol):
    """One connection. Requests that come before the last one is answered wait for their turn."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self.transport: Any = None
        self._scheme = "http"
        self._peer: tuple[str, int] | None = None
        # Who is counted for it.
        self._caller = ""
        # The request that arrives: its target, its headers, and then its body.
        self._target = b""
        self._headers: list[Header] = []
        self._expects = False
        self._hosts = 0
        self._codings: list[bytes] = []
        self._arriving: _Exchange | None = None
        # The request that is answered, and those after it.
        self._answering: _Exchange | None = None
        self._waiting: deque[_Exchange] = deque()
        self._in_head = False
        self._head_bytes = 0
        # Heads, parts of bodies and ends of requests that have arrived.
        self._heard = 0
        # What is read is thrown away. How much that was.
        self._lingers = False
        self._lingered_bytes = 0
        # What is wrong with a request that cannot be read.
        self._fault = HTTPStatus.BAD_REQUEST
        # The head that is parsed stands for that of the request that arrives.
        self._declining = False
        # When the head that is waited for was begun, or could have been; and whether anything was answered before it.
        self._since = self._loop.time()
        self._used = False
        self._reading = True
        # Nothing more is read.
        self._deaf = False
        # Done once the other side has taken what it was given; None: it has.
        self.drained: asyncio.Future[None] | None = None

    # The transport

    def connection_made(self, transport: Any) -> None:
        """It begins, unless there are too many, of all or of its address."""
        site = self._site
        self.transport = transport
        self._peer = transport.get_extra_info("peername")
        if transport.get_extra_info("sslcontext") is not None:
            self._scheme = "https"
        if len(site.connections) >= site.max_connections:
            self.refuse(HTTPStatus.SERVICE_UNAVAILABLE)
            return
        if site.addresses is not None:
            caller = site.addresses.caller((self._peer or ("",))[0])
            if not site.addresses.connected(caller):
                transport.abort()
                return
            self._caller = caller
        site.connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        """It is over."""
        self._site.connections.discard(self)
        if self._caller and self._site.addresses is not None:
            self._site.addresses.disconnected(self._caller)
        for exchange in (self._arriving, self._answering, *self._waiting):
            if exchange is not None:
                exchange.leave()
        self.resume_writing()

    def data_received(self, data: bytes) -> None:
        """Whatever arrives."""
        if self._lingers:
            self._lingered_bytes += len(data)
            if self._lingered_bytes > _LINGER_BYTES:
                self.transport.close()
            return
        before = self._heard
        try:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                self._decline(data[offer.args[0] :])
        except httptools.HttpParserUpgrade:  # once more: that is enough
            self._hear_no_more()
        except httptools.HttpParserError:
            self._unreadable()
        # Parts of a head, or of what follows a body in chunks.
        if self._heard == before and (self._in_head or self._arriving is not None):
            self._head_bytes += len(data)
            if self._head_bytes > _MAX_HEAD_BYTES:
                if not self._in_head:
                    self._unreadable()
                elif self._answering is None:
                    self.refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
                else:
                    self._hear_no_more()

    def eof_received(self) -> bool:
        """Nothing more comes. Whether somebody may still read an answer; TLS has no such half of a connection."""
        if self._lingers:
            return False
        self._hear_no_more()
        if self._answering is None or self._answering is self._arriving or self._scheme == "https":
            return False
        self._answering.hear_end()
        return True

    def _decline(self, rest: bytes) -> None:
        """Go on in HTTP/1.1 with a request that offers another protocol. The parser left its body to that protocol."""
        if self._arriving is None:
            return
        self._arriving.keeps = False
        framing = [line for line in self._arriving.headers if line[0] in (b"content-length", b"transfer-encoding")]
        self._parser = httptools.HttpRequestParser(self)
        self._declining = True
        head = b"".join(b"%b: %b\r\n" % line for line in framing)
        self._parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n%b" % (head, rest))

    def _hear_no_more(self) -> None:
        """The last request that arrived is the connection's last."""
        self._read(False)
        self._deaf = True
        if (last := self._waiting[-1] if self._waiting else self._answering) is not None:
            last.keeps = False

    def _unreadable(self) -> None:
        """What arrives is no request, or no body. Answers to what came before it are not overtaken."""
        broken, self._arriving = self._arriving, None
        if broken is not None:
            broken.leave()
            if broken in self._waiting:
                self._waiting.remove(broken)
        if self._answering is None and broken is not None:  # it has its answer
            self._close()
        elif self._answering is None or (self._answering is broken and not broken.started):
            self.refuse(self._fault)
        elif self._answering is broken:
            self.transport.abort()
        else:
            self._hear_no_more()

    def pause_writing(self) -> None:
        """The other side takes less than it is given."""
        self.drained = self._loop.create_future()

    def resume_writing(self) -> None:
        """It has taken some."""
        if self.drained is not None and not self.drained.done():
            self.drained.set_result(None)
        self.drained = None

    def _read(self, on: bool) -> None:
        if on != self._reading and not (on and self._deaf) and not self.transport.is_closing():
            self._reading = on
            (self.transport.resume_reading if on else self.transport.pause_reading)()

    # The parser

    def on_message_begin(self) -> None:
        self._target, self._headers, self._expects = b"", [], False
        self._hosts, self._codings = 0, []
        self._in_head, self._head_bytes = True, 0
        self._since = self._loop.time()

    def on_url(self, part: bytes) -> None:
        self._target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:  # what follows a body is no header
            return
        if len(self._headers) >= _MAX_HEADERS:
            self._fault = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            raise ValueError("too many headers")
        name = name.lower()
        if name in _FRAMING:
            self._framed(name, value.lower())
        self._headers.append((name, value))

    def _framed(self, name: bytes, value: bytes) -> None:
        """One of the headers that say how a request is to be read."""
        if name == b"host":
            self._hosts += 1
        elif name == b"transfer-encoding":
            self._codings.append(value)
        elif value == b"100-continue":
            self._expects = True

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._heard += 1
        self._head_bytes = 0
        if self._declining:
            self._declining = False
            return
        parser, target = self._parser, self._target
        if target.startswith(b"/"):
            raw_path, _, query = target.partition(b"#")[0].partition(b"?")
        else:
            url = httptools.parse_url(target)
            raw_path, query = url.path or b"/", url.query or b""
        path = raw_path.decode("ascii")
        version, method = parser.get_http_version(), parser.get_method()
        if version not in ("1.0", "1.1") or method == b"CONNECT":
            raise ValueError("only requests of HTTP/1.1 and HTTP/1.0 are answered")
        if self._hosts > 1 or self._codings not in _UNDERSTOOD_CODINGS:
            raise ValueError("one host, and no coding but chunks")
        scope = {
            "type": "http",
            "http_version": version,
            "method": method.decode("ascii"),
            "scheme": self._scheme,
            "path": unquote(path) if "%" in path else path,
            "raw_path": raw_path,
            "query_string": query,
            "root_path": "",
            "headers": self._headers,
            "client": self._peer,
        }
        if len(self._waiting) >= _MAX_WAITING:
            raise ValueError("too many requests that wait for their turn")
        keeps = version == "1.1" and parser.should_keep_alive()
        exchange = _Exchange(self._site, self, scope, keeps=keeps, expects=self._expects and version == "1.1")
        self._arriving = exchange
        if self._answering is None:
            self._start(exchange)
        else:
            self._waiting.append(exchange)
            self._read(False)

    def on_body(self, part: bytes) -> None:
        self._heard += 1
        self._head_bytes = 0
        if (exchange := self._arriving) is not None and exchange.put(part) > _MAX_AHEAD_BYTES:
            self._read(False)

    def on_message_complete(self) -> None:
        if self._parser.should_upgrade():
            return
        self._heard += 1
        if self._arriving is not None:
            self._arriving.end()
            self._arriving = None

    # Exchanges

    def _start(self, exchange: _Exchange) -> None:
        self._answering = exchange
        exchange.task = self._loop.create_task(exchange.run())
        self._site.exchanges.add(exchange)

    def wants_more(self) -> None:
        """The application asks for more of the body."""
        self._read(True)

    def answered(self, *, keeps: bool) -> None:
        """The request under way has its whole answer."""
        self._answering = None
        if not keeps:
            self._close()
        elif self._waiting:
            self._start(self._waiting.popleft())
        else:
            self._since, self._used = self._loop.time(), True
            self._read(True)

    # Its end

    @property
    def unread_bytes(self) -> int:
        """What was written and not taken by the other side."""
        return int(self.transport.get_write_buffer_size())

    def look(self, now: float, head_seconds: float) -> None:
        """Close it if it was waited for long enough."""
        if self._answering is None and not (self._lingers or self.transport.is_closing()):
            waited = now - self._since
            if self._in_head:
                if waited > head_seconds:
                    self.refuse(HTTPStatus.REQUEST_TIMEOUT)
            elif waited > (_IDLE_SECONDS if self._used else head_seconds):
                self.transport.close()

    def close_if_idle(self) -> None:
        """Close it unless a request is under way, or about to be over."""
        if self._answering is None and not self._lingers:
            self.transport.close()

    def refuse(self, status: HTTPStatus) -> None:
        """Answer what is no request yet, and close."""
        if not (self._lingers or self.transport.is_closing()):
            head = _STATUS_LINES[status] + self._site.opening()
            self.transport.write(head + b"content-length: 0\r\n" + _CLOSE + b"\r\n")
            self._close()

    def _close(self) -> None:
        """Close after what was written, and if more may come, once the other side has stopped, but soon."""
        # A connection of which nobody knows is one too many.
        expected = self._in_head or self._arriving is not None or self._waiting or not self._reading
        if self._lingers or not expected or self not in self._site.connections:
            self.transport.close()
            return
        self._lingers, self._deaf = True, False
        self._read(True)
        if self._scheme == "http":
            self.transport.write_eof()
        # What is still to be written is written then, too; who does not read it is seen by the sweep.
        self._loop.call_later(_LINGER_SECONDS, self.transport.close)

    def abort(self) -> None:
        """Break it off."""
        self.transport.abort()


class _Exchange:
    """A request and its answer, as ASGI has them."""

    __slots__ = (
        "_arrived", "_bodiless", "_chunked", "_connection", "_done", "_expects", "_gone", "_head", "_heard_end",
        "_left", "_more", "_scope", "_site", "_size", "_taken", "_waiter", "keeps", "started", "task",
    )  # fmt: skip

    def __init__(
        self, site: Site, connection: Connection, scope: dict[str, Any], *, keeps: bool, expects: bool
    ) -> None:
        self._site = site
        self._connection = connection
        self._scope = scope
        self.task: asyncio.Task[None] | None = None
        # Whether the connection outlasts it.
        self.keeps = keeps
        self._expects = expects
        # Of the request's body: what has arrived and was not taken, whether there is more, and whether all was taken.
        self._arrived: list[bytes] = []
        self._size = 0
        self._more, self._taken = True, False
        self._waiter: asyncio.Future[None] | None = None
        self._gone = self._heard_end = False
        # The answer's head until its first part of a body is known, and how much of the body is still to come.
        self._head: bytes = b""
        self._chunked = self._bodiless = False
        self._left: int | None = None
        self.started = self._done = False

    async def run(self) -> None:
        """Have the application answer."""
        self._scope[WHOLE_BODY] = self.whole_body
        try:
            await self._site.app(self._scope, self.receive, self.send)
        except Exception as error:
            if not (self._gone and isinstance(error, ConnectionResetError)):
                log.exception("failed", method=self._scope["method"], path=self._scope["path"])
        finally:
            # What holds itself is left to the garbage collector.
            del self._scope[WHOLE_BODY]
            self._site.exchanges.discard(self)
            if not (self._done or self._gone):
                if self.started:
                    self._connection.abort()
                else:
                    self._connection.refuse(HTTPStatus.INTERNAL_SERVER_ERROR)

    # The body

    @property
    def headers(self) -> Sequence[Header]:
        """Those of the request, with names in lower case."""
        found: Sequence[Header] = self._scope["headers"]
        return found

    def put(self, part: bytes) -> int:
        """A part of the body has arrived. How much of it was not taken so far."""
        if self._done:
            return 0
        self._arrived.append(part)
        self._size += len(part)
        self._wake()
        return self._size

    def end(self) -> None:
        """All of the body has arrived."""
        self._more = False
        self._wake()

    def hear_end(self) -> None:
        """The other side says nothing more. It may still listen."""
        self._heard_end = True
        self._wake()

    def leave(self) -> None:
        """The other side has gone."""
        self._gone = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def whole_body(self, limit: int) -> bytes | None:
        """The body, if nothing of it was taken and all has arrived, as of most requests, and it is no larger than that.

        None: it is to be had from `receive`.
        """
        if self._more or self._taken or self._size > limit:
            return None
        arrived, self._arrived, self._size = self._arrived, [], 0
        self._taken = True
        return arrived[0] if len(arrived) == 1 else b"".join(arrived)

    async def receive(self) -> dict[str, Any]:
        """ASGI: the next part of the body; after the last one, that the other side has gone, once it seems so."""
        if self._expects and not (self._gone or self.started):
            self._expects = False
            self._connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while self._taken or (self._more and not self._arrived):
            if self._gone or self._done or self._heard_end:
                return {"type": "http.disconnect"}
            self._connection.wants_more()
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        arrived, self._arrived, self._size = self._arrived, [], 0
        self._taken = not self._more
        body = arrived[0] if len(arrived) == 1 else b"".join(arrived)
        return {"type": "http.request", "body": body, "more_body": self._more}

    # The answer

    async def send(self, message: Any) -> None:
        """ASGI: the head of the answer, then its body. Raises ConnectionResetError when the other side has gone."""
        if self._gone:
            raise ConnectionResetError("the other side has gone")
        if message["type"] == "http.response.start":
            if self.started:
                raise RuntimeError("an answer has one head")
            self._head = self._head_of(message["status"], message.get("headers", ()))
            self.started = True
            return
        if not self.started or self._done:
            raise RuntimeError("a body comes after its head, and ends once")
        body, more = message.get("body", b""), message.get("more_body", False)
        head, self._head = self._head, b""
        if self._bodiless:
            body = b""
        elif self._left is not None:
            self._left -= len(body)
            if self._left < 0 or (self._left and not more):
                raise RuntimeError("the body is not as long as its head says")
        elif self._chunked:
            body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + (b"" if more else b"0\r\n\r\n")
        if head or body:
            data, connection = head + body, self._connection
            connection.transport.write(data[:_SLICE_BYTES])
            if len(data) > _SLICE_BYTES or connection.drained is not None:
                await self._write_rest(data)
        if not more:
            self._done = True
            self._wake()
            if not self._gone:
                self._connection.answered(keeps=self.keeps)

    async def _write_rest(self, data: bytes) -> None:
        """What comes after the first slice, each slice once those before it are taken. Ends when the last one is."""
        connection = self._connection
        for start in range(_SLICE_BYTES, len(data) + _SLICE_BYTES, _SLICE_BYTES):
            if (drained := connection.drained) is not None:
                await asyncio.shield(drained)
                if self._gone:
                    raise ConnectionResetError("the other side has gone")
            if start < len(data):
                connection.transport.write(data[start : start + _SLICE_BYTES])

    def _head_of(self, status: int, headers: Iterable[Header]) -> bytes:
        """The head, with the empty line after it. Says how the body ends, and how the connection goes on."""
        headers = [*headers]
        named = dict(headers)
        closes = named.get(b"connection") == b"close"
        # Who was not told to send the body may send it, or not.
        if closes or self._site.leaving or (self._expects and self._more):
            self.keeps = False
        block = b"".join([b"%b: %b\r\n" % (name, value) for name, value in headers])
        if not block.count(b"\r") == block.count(b"\n") == len(headers):
            raise RuntimeError("a header is one line")
        length = named.get(b"content-length")
        self._left = None if length is None else int(length)
        self._bodiless = self._scope["method"] == "HEAD" or status in _WITHOUT_BODY
        # HTTP/1.0 knows the end of a body by that of the connection.
        if length is None and not self._bodiless and self._scope["http_version"] != "1.0":
            self._chunked = True
            block += b"transfer-encoding: chunked\r\n"
        if not (self.keeps or closes):
            block += _CLOSE
        return b"%b%b%b\r\n" % (_STATUS_LINES[status], self._site.opening(), block)
