"""One route of Feast's: what a caller may send, which RPC answers, what the answer shows. OpenAPI is made of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import grpc
import msgspec

from chassis import errors
from gateway.dialect import Metadata, Row
from gateway.dialects.feast import parameters
from gateway.dialects.feast.parameters import Parameter
from gateway.dialects.feast.schemas import Component, Schema
from gateway.exchange import JSON, Answer, Exchange

PREFIXES = ("/api/v1", "")

T = TypeVar("T")


@dataclass(frozen=True)
class Route:
    """One method of one path. What it does not declare in `parameters` or `body` it cannot read."""

    method: str
    path: str  # Starlette's pattern, below the prefix
    operation: str  # `entities.list`: its name in metrics and logs; what is before the dot groups it
    about: str  # one sentence
    rpc: Callable[..., Any]
    request: Callable[[Asked], Any]
    answer: Callable[[Asked, Any], Answer]
    shows: Schema | Component | None  # of the answer's body; None: it has none
    parameters: Sequence[Parameter[Any]] = ()
    body: type[msgspec.Struct] | None = None
    status: int = 200
    # Statuses besides those that every route has.
    errors: Sequence[int] = ()
    streams: bool = False  # whether the RPC answers with several messages

    def rows(self) -> Sequence[Row]:
        """The route with and without the prefix."""
        return [
            Row((self.method,), prefix + self.path, self.operation, self.rpc, self._request, self._answer, self.streams)
            for prefix in PREFIXES
        ]

    def _request(self, exchange: Exchange) -> Any:
        asked = Asked(self, exchange)
        asked.check()
        return self.request(asked)

    def _answer(self, exchange: Exchange, reply: Any) -> Answer:
        return self.answer(Asked(self, exchange), reply)


class Asked:
    """What a caller asked of a route. Reading raises InvalidArgument for what is not as it is declared."""

    def __init__(self, route: Route, exchange: Exchange) -> None:
        self._route = route
        self._exchange = exchange

    def __getitem__(self, parameter: Parameter[T]) -> T:
        if parameter not in self._route.parameters:
            raise KeyError(f"{self._route.operation} does not declare {parameter.name}")
        return parameter.read(self._exchange.query.get(parameter.name, ()))

    def get(self, parameter: Parameter[T], otherwise: T) -> T:
        """What was asked, or `otherwise` if the route does not have this parameter."""
        if parameter not in self._route.parameters:
            return otherwise
        return self[parameter]

    def part(self, name: str) -> str:
        """A part of the path. NotFound if it is empty, as for a path that does not exist."""
        found = self._exchange.path_params[name]
        if not found:
            raise errors.NotFound("Not Found", reason="OPERATION_NOT_FOUND")
        return found

    @cached_property
    def body(self) -> Any:
        """The body as the route's struct."""
        if self._route.body is None:
            raise KeyError(f"{self._route.operation} does not declare a body")
        media_type = self._exchange.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != JSON:
            # A page of another site can have a browser send anything else without asking us first.
            raise parameters.invalid_body(f"its content type must be {JSON}")
        try:
            return msgspec.json.decode(self._exchange.body, type=self._route.body, strict=False)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise parameters.invalid_body(str(error)) from None

    def page(self) -> tuple[int, int]:
        """Page and limit; either alone brings the other one's default; both 0 if neither was asked for."""
        if parameters.PAGE_OF_ALL in self._route.parameters:
            return self[parameters.PAGE_OF_ALL], self[parameters.LIMIT_OF_ALL]
        page, limit = self[parameters.PAGE], self[parameters.LIMIT]
        return (page or 1, limit or parameters.DEFAULT_LIMIT) if page or limit else (0, 0)

    def pagination(self, total: int) -> dict[str, Any]:
        """The pagination of an answer: of the page that was asked for, or of one page with everything."""
        page, limit = self.page()
        return parameters.pagination(page or 1, limit or total, total)

    def check(self) -> None:
        """Read everything that is declared, so that nothing that is wrong goes unnoticed."""
        for parameter in self._route.parameters:
            self[parameter]
        if self._route.body is not None:
            self.body  # noqa: B018 - reading it is the check


@dataclass(frozen=True)
class Lookup:
    """The message of `after_lookup`: what to look up, and what to ask for once that is known."""

    request: Any
    # Gets what was found, or None if there is no such thing; what it raises is the answer.
    complete: Callable[[Any], Any]


def after_lookup(look_up: Callable[..., Any], rpc: Callable[..., Any]) -> Callable[..., Any]:
    """Two RPCs as one, within one deadline: its message is a Lookup, or a message of the second one alone."""

    async def call(message: Any, *, timeout: float, metadata: Metadata) -> Any:
        deadline = time.monotonic() + timeout
        if isinstance(message, Lookup):
            message = message.complete(await _found(look_up(message.request, timeout=timeout, metadata=metadata)))
        return await rpc(message, timeout=max(0.0, deadline - time.monotonic()), metadata=metadata)

    return call


def together(*rpcs: Callable[..., Any]) -> Callable[..., Any]:
    """Several RPCs as one: its message is one message for each, its reply one reply of each.

    Any other message is for the first one: the gateway asks a service about a caller whose request it could not read.
    """

    async def call(messages: Any, *, timeout: float, metadata: Metadata) -> Sequence[Any]:
        each_its_own = messages if isinstance(messages, tuple) else (messages,)
        asked = (rpc(each, timeout=timeout, metadata=metadata) for rpc, each in zip(rpcs, each_its_own, strict=False))
        return await asyncio.gather(*asked)

    return call


async def _found(call: Any) -> Any:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return None
        raise
