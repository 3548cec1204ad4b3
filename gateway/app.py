"""The gateway as an ASGI application: every row of every dialect is an ASGI endpoint behind Starlette's router."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress

import structlog
from google.protobuf.empty_pb2 import Empty
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from chassis import calls, deadlines, errors, tracing
from chassis.limits import Addresses
from chassis.telemetry import http_seconds
from gateway.dialect import Dialect, Row
from gateway.exchange import WHOLE_BODY, Answer, Exchange
from gateway.settings import GatewaySettings

log = structlog.get_logger("gateway")


# They hold somebody's data. What else browsers are told, gateway/server.py and pages add; a header costs a microsecond.
_NOT_KEPT = (b"cache-control", b"no-store")


class Disconnected(Exception):
    """The client went away before its body had arrived."""


class RowEndpoint:
    """One row as an ASGI application."""

    def __init__(self, dialect: Dialect, row: Row, settings: GatewaySettings, addresses: Addresses | None) -> None:
        self._dialect = dialect
        self._addresses = addresses
        self._row = row
        self._name = f"{dialect.name} {row.operation}"
        self._max_body_bytes = settings.max_body_bytes
        self._body_timeout_seconds = settings.body_timeout_seconds
        self._timeout_seconds = settings.timeout_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = _exchange(scope)
        span = tracing.begin(self._name, exchange.headers)
        status = 0
        try:
            status = await self._serve(scope, exchange, receive, send)
        finally:
            if span is not None:
                fault = str(status) if status >= 500 else "" if status else "the client went away"
                span.end({"http.response.status_code": status, "request_id": exchange.request_id}, fault)

    async def _serve(self, scope: Scope, exchange: Exchange, receive: Receive, send: Send) -> int:
        """Answer; with which status. 0: there is nobody left to answer."""
        started = time.perf_counter()
        # A connection on which the rest of a body may still come is of no further use.
        close = True
        caller = ""
        try:
            if self._addresses is not None:
                peer = scope["client"] or ("",)
                caller = self._addresses.caller(peer[0], exchange.headers.get("x-forwarded-for", ""))
                self._addresses.admit(caller)
            arrived = scope[WHOLE_BODY](self._max_body_bytes) if WHOLE_BODY in scope else None
            exchange.body = await self._body(receive, exchange) if arrived is None else arrived
            close = False
            answer = await self._answer(exchange)
        except errors.TriglotError as error:
            if self._addresses is not None and isinstance(error, errors.Unauthenticated):
                self._addresses.failed(caller, error)
            answer = self._dialect.render_error(error, exchange)
            if error.retry_after_ms is not None:
                whole_seconds = -(-error.retry_after_ms // 1000)
                answer.headers = {**answer.headers, "retry-after": str(whole_seconds)}
        except Disconnected:
            return 0
        except Exception:
            log.exception("failed", operation=self._row.operation, request_id=exchange.request_id)
            hidden = errors.Internal(f"Internal error, request id {exchange.request_id}")
            answer = self._dialect.render_error(hidden, exchange)
        await _send(send, answer, exchange.request_id, close=close)
        if answer.rest is not None:
            await self._send_rest(send, answer.rest)
        series = http_seconds.series(self._dialect.name, self._row.operation, str(answer.status))
        series.observe(time.perf_counter() - started)
        return answer.status

    async def _body(self, receive: Receive, exchange: Exchange) -> bytes:
        """The whole body. Raises InvalidArgument if it is too large or too slow."""
        try:
            with deadlines.within(self._body_timeout_seconds):
                return await _body(receive, exchange, self._max_body_bytes)
        except TimeoutError:
            fault = errors.InvalidArgument("The body did not arrive in time", reason="BODY_TOO_SLOW")
        except errors.InvalidArgument as error:
            fault = error
        await self._report(exchange, fault)
        raise fault

    async def _report(self, exchange: Exchange, fault: errors.TriglotError) -> None:
        """Tell the service of a call that ends here, if it counts calls: whose it is, it alone can say."""
        if self._dialect.metered and self._row.rpc is not None:
            with suppress(errors.TriglotError):
                metadata = (*self._dialect.credential(exchange), (calls.UNREADABLE, fault.status().SerializeToString()))
                await calls.invoke(self._row.rpc, Empty(), metadata=metadata, timeout_seconds=self._timeout_seconds)

    async def _send_rest(self, send: Send, rest: AsyncGenerator[bytes]) -> None:
        """The rest of a body. If it breaks off, so does the connection: the status has been sent by then."""
        async with aclosing(rest):
            try:
                async for part in rest:
                    await send({"type": "http.response.body", "body": part, "more_body": True})
            except errors.TriglotError as error:
                log.warning("broken off", operation=self._row.operation, reason=error.reason, message=error.message)
                return
        await send({"type": "http.response.body", "body": b""})

    async def _answer(self, exchange: Exchange) -> Answer:
        row = self._row
        if row.rpc is None:
            row.request(exchange)
            return row.answer(exchange, None)
        metadata = (*self._dialect.credential(exchange), (calls.REQUEST_ID, exchange.request_id))
        unreadable: errors.TriglotError | None = None
        try:
            message = row.request(exchange)
        except errors.TriglotError as error:
            # The service refuses the call in our place, after it has looked at who calls.
            message, unreadable = Empty(), error
            metadata = (*metadata, (calls.UNREADABLE, error.status().SerializeToString()))
        try:
            if row.streams:
                replies = calls.stream(row.rpc, message, metadata=metadata, timeout_seconds=self._timeout_seconds)
                return await _begun(row.answer(exchange, replies))
            reply = await calls.invoke(row.rpc, message, metadata=metadata, timeout_seconds=self._timeout_seconds)
        except errors.TriglotError as refusal:
            if unreadable is not None and (refusal.reason, refusal.message) == (unreadable.reason, unreadable.message):
                raise unreadable from None
            raise
        return row.answer(exchange, reply)


async def _begun(answer: Answer) -> Answer:
    """An answer whose body comes bit by bit, with its first bit: what is refused is refused before a status is sent."""
    assert answer.rest is not None  # noqa: S101 - a row that streams answers so
    answer.body = await anext(answer.rest, b"")
    return answer


def _exchange(scope: Scope) -> Exchange:
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    return Exchange(
        method=scope["method"],
        path=scope["path"],
        raw_path=scope.get("raw_path") or scope["path"].encode(),
        query_string=scope["query_string"],
        headers=headers,
        path_params=scope.get("path_params", {}),
        body=b"",
        request_id=_request_id(headers.get(calls.REQUEST_ID, "")),
    )


def _request_id(shown: str) -> str:
    """The caller's own request id if it is a sane one, else a fresh one."""
    good = 0 < len(shown) <= 128 and shown.isascii() and shown.isprintable()
    return shown if good else calls.new_request_id()


async def _body(receive: Receive, exchange: Exchange, limit: int) -> bytes:
    """The whole body. Raises InvalidArgument, reason BODY_TOO_LARGE, as soon as it is known to be too large."""
    length = exchange.headers.get("content-length", "")
    if length.isdigit() and int(length) > limit:
        raise _too_large(limit)
    size, parts = 0, []
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise Disconnected
        part = event.get("body", b"")
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        parts.append(part)
        if not event.get("more_body", False):
            return part if len(parts) == 1 else b"".join(parts)


def _too_large(limit: int) -> errors.InvalidArgument:
    return errors.InvalidArgument(
        f"Request too large: at most {limit} bytes are taken", reason="BODY_TOO_LARGE", limit_bytes=limit
    )


async def _send(send: Send, answer: Answer, request_id: str, *, close: bool = False) -> None:
    headers = [(b"content-type", answer.media_type.encode()), (b"x-request-id", request_id.encode()), _NOT_KEPT]
    if answer.rest is None:
        headers.append((b"content-length", b"%d" % len(answer.body)))
    if answer.headers:
        own = {name.encode(): value.encode() for name, value in answer.headers.items()}
        headers = [each for each in headers if each[0] not in own] + list(own.items())
    if close:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body, "more_body": answer.rest is not None})


class Refusal:
    """Answers what no row matches, in the words of the dialect that owns the path."""

    def __init__(self, dialects: Sequence[Dialect], error: errors.TriglotError) -> None:
        self._dialects = dialects
        self._error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = _exchange(scope)
        owner = next((each for each in self._dialects if each.owns(exchange.path)), self._dialects[-1])
        await _send(send, owner.render_error(self._error, exchange), exchange.request_id)


# Method and path.
_Target = tuple[str, str]


class RowRoute(Route):
    """A route that refuses a wrong method in the words of its dialect.

    `known` gets the endpoint of each target of a row without parameters: there are as many as the rows name.
    """

    def __init__(self, row: Row, endpoint: ASGIApp, refusal: ASGIApp, known: dict[_Target, ASGIApp]) -> None:
        super().__init__(row.path, endpoint, methods=list(row.methods), name=row.operation)
        self._refusal = refusal
        self._known = known

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        allowed = self.methods is None or scope["method"] in self.methods
        if allowed and not self.param_convertors:
            self._known[scope["method"], scope["path"]] = self.app
        await (self.app if allowed else self._refusal)(scope, receive, send)


def create_app(dialects: Sequence[Dialect], settings: GatewaySettings, addresses: Addresses | None = None) -> ASGIApp:
    """The application. The rows of the first dialect are tried first; the last dialect owns what nobody else does.

    A bare Router: Starlette's application would wrap it in middleware that has nothing left to catch. And it is asked
    once only about a path without parameters, because it tries one pattern after the other.
    """
    known: dict[_Target, ASGIApp] = {}
    wrong_method = Refusal(dialects, errors.Unimplemented("Method Not Allowed", reason="METHOD_NOT_ALLOWED"))
    routes = [
        RowRoute(row, RowEndpoint(dialect, row, settings, addresses), wrong_method, known)
        for dialect in dialects
        for row in dialect.rows
    ]
    missing = Refusal(dialects, errors.NotFound("Not Found", reason="OPERATION_NOT_FOUND"))
    router = Router(routes, default=missing, redirect_slashes=False)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await known.get((scope["method"], scope["path"]), router)(scope, receive, send)

    return app
