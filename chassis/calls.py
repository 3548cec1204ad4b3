"""The call under way: who calls, under which request id, until when. And calls to other services on its behalf."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from operator import itemgetter
from random import getrandbits
from typing import Any

import grpc

from chassis import errors, tracing
from chassis.principals import Principal

REQUEST_ID = "x-request-id"
# The error, as a google.rpc.Status, that a gateway met when it read a request. The call is refused with it after it is
# known who calls, so that nobody learns what is wrong with a request before showing a credential.
UNREADABLE = "x-triglot-unreadable-bin"
DEFAULT_TIMEOUT_SECONDS = 10.0
# What requests call the project that they are about.
_PROJECTS = ("project", "feature_store", "project_name", "project_id")
Metadata = Sequence[tuple[str, str | bytes]]
# The bits that mark a random UUID.
_NOT_VERSION = ~(0xF000_C000 << 48)
_VERSION_4 = 0x4000_8000 << 48
# Its digits, as they are written.
_groups = itemgetter(slice(8), slice(8, 12), slice(12, 16), slice(16, 20), slice(20, None))


@dataclass(slots=True)
class Call:
    """One RPC or HTTP request as the code below it may see it."""

    request_id: str
    metadata: Mapping[str, str | bytes] = field(default_factory=dict)
    principal: Principal | None = None
    deadline: float | None = None  # on time.monotonic()'s clock
    request: Any = None  # the message, or an iterator of them

    @property
    def project(self) -> str:
        """The beginning of the project, or feature store, that the request names; empty: none."""
        named = (getattr(self.request, name, "") for name in _PROJECTS)
        # Where it is the message of a whole project, that is not its name.
        return next((name[:100] for name in named if name and isinstance(name, str)), "")

    def remaining(self, otherwise: float = DEFAULT_TIMEOUT_SECONDS) -> float:
        """Seconds left, or `otherwise` if the caller set no deadline."""
        return otherwise if self.deadline is None else max(0.0, self.deadline - time.monotonic())


_CURRENT: ContextVar[Call | None] = ContextVar("call", default=None)


def enter(call: Call) -> Token[Call | None]:
    """Make `call` the current one until `leave` is given the token."""
    return _CURRENT.set(call)


def leave(token: Token[Call | None]) -> None:
    """Make the call from before the matching `enter` the current one again."""
    _CURRENT.reset(token)


def current() -> Call:
    """The call under way. A RuntimeError outside of one: that is a defect."""
    call = _CURRENT.get()
    if call is None:
        raise RuntimeError("no call is under way")
    return call


def current_or_none() -> Call | None:
    """The call under way, if there is one."""
    return _CURRENT.get()


def principal() -> Principal:
    """Who calls. A RuntimeError before authentication: that is a defect."""
    found = current().principal
    if found is None:
        raise RuntimeError("the call under way is not authenticated")
    return found


def new_request_id() -> str:
    """A fresh request id: an upper-case UUID, the form that PAI clients know."""
    return "-".join(_groups(f"{getrandbits(128) & _NOT_VERSION | _VERSION_4:032X}"))


def bearer(api_key: str) -> tuple[tuple[str, str], ...]:
    """Metadata that shows an API key."""
    return (("authorization", f"Bearer {api_key}"),) if api_key else ()


async def invoke(
    method: Callable[..., Any],
    request: Any,
    *,
    metadata: Metadata = (),
    timeout_seconds: float | None = None,
) -> Any:
    """Call another service: `method` is a stub's method, `request` a message or an async iterator of messages.

    The deadline is `timeout_seconds`, but never later than that of the call under way; its request id goes along.
    Raises the TriglotError that the other service raised.
    """
    timeout, metadata = _on_behalf(metadata, timeout_seconds)
    try:
        return await method(request, timeout=timeout, metadata=metadata)
    except grpc.aio.AioRpcError as error:
        raise errors.from_rpc(error) from None


async def stream(
    method: Callable[..., Any],
    request: Any,
    *,
    metadata: Metadata = (),
    timeout_seconds: float | None = None,
) -> AsyncGenerator[Any]:
    """As `invoke`, of a method that answers with several messages. Closing it ends the call."""
    timeout, metadata = _on_behalf(metadata, timeout_seconds)
    call = method(request, timeout=timeout, metadata=metadata)
    try:
        async for message in call:
            yield message
    except grpc.aio.AioRpcError as error:
        raise errors.from_rpc(error) from None
    finally:
        call.cancel()


def _on_behalf(metadata: Metadata, timeout_seconds: float | None) -> tuple[float, Metadata]:
    call = _CURRENT.get()
    timeout = timeout_seconds or DEFAULT_TIMEOUT_SECONDS
    metadata = (*metadata, *tracing.parent())
    if call is None:
        return timeout, metadata
    return min(timeout, call.remaining(timeout)), (*metadata, (REQUEST_ID, call.request_id))
