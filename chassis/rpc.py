"""One RPC with the chassis' rules around it: request id, identity, permitted action, deadline, errors, metrics, log.

`mount` turns a generated servicer into `Endpoint`s. `chassis.server` serves them on a port and `chassis.inprocess`
offers them as a channel; both run the very same endpoints, so neither a service nor its caller can tell which it is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc

from chassis import calls, errors, tracing
from chassis.limits import Overload
from chassis.principals import Principal
from chassis.readiness import Needs
from chassis.telemetry import log, rpc_in_flight, rpc_seconds

Metadata = Mapping[str, str | bytes]
# How calls end whose time says how busy the server is. What is refused is refused at once, what fails takes any time.
_TIMED = (grpc.StatusCode.OK, grpc.StatusCode.CANCELLED)


class Authenticator(Protocol):
    """Turns what a call shows into a principal; see chassis.auth."""

    async def principal(self, metadata: Metadata) -> Principal:
        """Who calls. Raises Unauthenticated."""


@dataclass(frozen=True)
class Policy:
    """What is asked of the callers of one service."""

    authenticator: Authenticator
    # The action `<prefix><Rpc>` must be permitted. None: the service has rules of its own.
    action_prefix: str | None = None
    # RPCs that any authenticated caller may use, whatever its actions.
    free_rpcs: frozenset[str] = frozenset()
    # RPCs that anybody may use, without a credential.
    open_rpcs: frozenset[str] = frozenset()
    # Counts a call of a known caller, by the RPC's name, before anything else is asked of it. Raises ResourceExhausted.
    # None: no limit.
    admit: Callable[[Principal, str], None] | None = None
    # Refuses calls that would wait for too long, before their credential is looked at. Only those whose request is one
    # message: a stream takes as long as its sender does. None: all are taken.
    overload: Overload | None = None
    # The text of gRPC's own `details` field, where a dialect's clients read it. Default: the message.
    details: Callable[[errors.TriglotError], str] = lambda error: error.message


class Endpoint:
    """One RPC of one service. It takes a message or a stream of them, and answers with one message or writes several.

    A method that answers with several is a coroutine that awaits `context.write(message)` for each.
    """

    def __init__(self, path: str, handler: Any, policy: Policy) -> None:
        self.path = path
        self.handler = handler
        self.details = policy.details
        self._authenticator = policy.authenticator
        self._admit = policy.admit
        name = self._name = path.rsplit("/", 1)[1]
        self._open = name in policy.open_rpcs
        self._overload = policy.overload if handler.unary_unary and not self._open else None
        checked = policy.action_prefix is not None and name not in policy.free_rpcs | policy.open_rpcs
        self._action = f"{policy.action_prefix}{name}" if checked else None
        self._behavior: Callable[[Any, Any], Any] = handler.unary_unary or handler.stream_unary or handler.unary_stream
        self._succeeded = rpc_seconds.series(path, grpc.StatusCode.OK.name)
        self._in_flight = 0
        rpc_in_flight.labels(path).set_function(lambda: self._in_flight)

    async def serve_unary(self, request: Any, metadata: Metadata, deadline: float | None, context: Any) -> Any:
        """Answer a call. `request` is a message or an iterator of them. Raises TriglotError and nothing else.

        None is the answer of a call that writes its messages.
        """
        started = time.perf_counter()
        code = grpc.StatusCode.OK
        call = _call(metadata, deadline, request)
        overload = self._overload
        ahead = 0 if overload is None else self._enter(overload)
        self._in_flight += 1
        span = tracing.begin(self.path, metadata)
        token = calls.enter(call)
        try:
            if not self._open:
                call.principal = await self._authenticator.principal(metadata)
                if self._admit is not None:
                    self._admit(call.principal, self._name)
                if self._action is not None:
                    call.principal.require(self._action)
            unreadable = metadata.get(calls.UNREADABLE)
            if isinstance(unreadable, bytes):
                raise _refusal(unreadable)
            return await self._behavior(request, context)
        except errors.TriglotError as error:
            code = error.code
            log.info("refused", rpc=self.path, reason=error.reason, message=error.message)
            raise
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            raise
        except NotImplementedError:
            code = grpc.StatusCode.UNIMPLEMENTED
            raise errors.Unimplemented(f"{self.path} is not implemented") from None
        except Exception as error:
            code = grpc.StatusCode.INTERNAL
            log.exception("failed", rpc=self.path)
            raise errors.Internal(f"Internal error, request id {call.request_id}") from error
        finally:
            calls.leave(token)
            if span is not None:
                fault = "" if code in _TIMED else code.name
                span.end({"rpc.grpc.status": code.name, "request_id": call.request_id}, fault)
            self._in_flight -= 1
            series = self._succeeded if code is grpc.StatusCode.OK else rpc_seconds.series(self.path, code.name)
            seconds = time.perf_counter() - started
            series.observe(seconds)
            if overload is not None:
                overload.leave(ahead, seconds, counts=code in _TIMED)

    def _enter(self, overload: Overload) -> int:
        try:
            return overload.enter()
        except errors.Unavailable as error:
            rpc_seconds.series(self.path, error.code.name).observe(0.0)
            raise


def no_message() -> errors.InvalidArgument:
    """The error for bytes that are no message of the RPC's."""
    return errors.InvalidArgument("the request is no message of its kind", reason="MALFORMED_BODY")


def _refusal(unreadable: bytes) -> errors.TriglotError:
    """The error that a gateway met. Whoever else sends one cannot have it look like a defect of ours."""
    error = errors.from_status(unreadable)
    return errors.InvalidArgument(error.message) if isinstance(error, errors.Internal) else error


def _call(metadata: Metadata, deadline: float | None, request: Any) -> calls.Call:
    shown = metadata.get(calls.REQUEST_ID)
    request_id = shown if isinstance(shown, str) and shown else calls.new_request_id()
    return calls.Call(request_id, metadata, deadline=deadline, request=request)


@dataclass(frozen=True)
class Service:
    """A service ready to be served: its full name and its endpoints by path."""

    name: str
    endpoints: Mapping[str, Endpoint]
    # Without them it can do nothing, and says so in its gRPC health.
    needs: Needs = field(default_factory=dict)


def mount(
    add_to_server: Callable[[Any, Any], None], servicer: Any, policy: Policy, needs: Needs | None = None
) -> Service:
    """Wrap a servicer. `add_to_server` is the generated `add_...Servicer_to_server`."""
    collector = _Collector()
    add_to_server(servicer, collector)
    name, handlers = collector.collected
    paths = {f"/{name}/{rpc}": handler for rpc, handler in handlers.items()}
    return Service(name, {path: Endpoint(path, handler, policy) for path, handler in paths.items()}, needs or {})


class _Collector:
    """Stands in for a grpc server while generated code registers its handlers."""

    def __init__(self) -> None:
        self.collected: tuple[str, Mapping[str, Any]] = ("", {})

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Generated code registers twice; the second form is the readable one."""

    def add_registered_method_handlers(self, name: str, handlers: Mapping[str, Any]) -> None:
        self.collected = (name, handlers)
