"""A gRPC channel whose server lives in this process: no socket, no bytes are made. Calls of generated stubs can be
awaited, and nothing more.

Messages are handed over as they are, so neither side may change a message after it gave it away.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any

import grpc
from grpc.aio import AioRpcError

from chassis import deadlines, errors
from chassis.rpc import Endpoint, Service


class InProcessChannel(grpc.aio.Channel):
    """Offers the endpoints of the given services. An unknown method answers UNIMPLEMENTED."""

    def __init__(self, services: Sequence[Service]) -> None:
        self._endpoints = {path: endpoint for service in services for path, endpoint in service.endpoints.items()}

    def unary_unary(self, method: str, *_: Any, **__: Any) -> Any:
        return _Method(self._endpoints.get(method), method)

    def stream_unary(self, method: str, *_: Any, **__: Any) -> Any:
        return _Method(self._endpoints.get(method), method)

    def unary_stream(self, method: str, *_: Any, **__: Any) -> Any:
        return _StreamMethod(self._endpoints.get(method), method)

    def stream_stream(self, method: str, *_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"{method}: no service of ours answers a stream with a stream")

    async def __aenter__(self) -> InProcessChannel:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def close(self, grace: float | None = None) -> None:
        return None

    async def channel_ready(self) -> None:
        return None

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return grpc.ChannelConnectivity.READY

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """The state never changes, so this waits until it is cancelled, as the interface has it."""
        await asyncio.Event().wait()


class _NoContext:
    """What a handler gets for a context. Generated bases set a code on it before they raise."""

    def set_code(self, code: object) -> None:
        pass

    def set_details(self, details: object) -> None:
        pass


_CONTEXT = _NoContext()
# Messages of a stream that wait for whoever takes them.
_AHEAD = 2
_Metadata = Iterable[tuple[str, str | bytes]] | None


class _Method:
    """A stub's method whose answer is one message."""

    def __init__(self, endpoint: Endpoint | None, path: str) -> None:
        self._endpoint = endpoint
        self._path = path

    def __call__(
        self, request: Any, *, timeout: float | None = None, metadata: _Metadata = None, **_: Any
    ) -> Coroutine[Any, Any, Any]:
        return _unary(self._endpoint, self._path, request, timeout, metadata)


class _StreamMethod:
    """A stub's method that answers with several messages."""

    def __init__(self, endpoint: Endpoint | None, path: str) -> None:
        self._endpoint = endpoint
        self._path = path

    def __call__(
        self, request: Any, *, timeout: float | None = None, metadata: _Metadata = None, **_: Any
    ) -> _StreamCall:
        return _StreamCall(
            lambda context: _unary(self._endpoint, self._path, request, timeout, metadata, context=context)
        )


class _StreamCall(_NoContext):
    """Iterable once. The endpoint is a few messages ahead of whoever takes them, and waits for it then."""

    def __init__(self, answer: Callable[[_NoContext], Awaitable[None]]) -> None:
        # Messages, and at the end an error or None.
        self._written: asyncio.Queue[Any] = asyncio.Queue(maxsize=_AHEAD)
        self._answering = asyncio.ensure_future(self._run(answer))

    async def write(self, message: Any) -> None:
        """What the endpoint calls for each message."""
        await self._written.put(message)

    async def _run(self, answer: Callable[[_NoContext], Awaitable[None]]) -> None:
        end = None
        try:
            await answer(self)
        except AioRpcError as error:
            end = error
        await self._written.put(end)

    async def __aiter__(self) -> AsyncGenerator[Any]:
        while (message := await self._written.get()) is not None:
            if isinstance(message, AioRpcError):
                raise message
            yield message

    def cancel(self) -> bool:
        """End the call if it is under way."""
        return self._answering.cancel()


async def _unary(
    endpoint: Endpoint | None,
    path: str,
    request: Any,
    timeout_seconds: float | None,
    metadata: _Metadata,
    *,
    context: _NoContext = _CONTEXT,
) -> Any:
    if endpoint is None:
        raise _rpc_error(errors.Unimplemented(f"{path} is not implemented"), None)
    shown = dict(metadata or ())
    try:
        if timeout_seconds is None:
            return await endpoint.serve_unary(request, shown, None, context)
        deadline = time.monotonic() + timeout_seconds
        with deadlines.within(timeout_seconds):
            return await endpoint.serve_unary(request, shown, deadline, context)
    except errors.TriglotError as error:
        raise _rpc_error(error, endpoint) from None
    except TimeoutError:
        raise _rpc_error(errors.DeadlineExceeded("Deadline Exceeded"), endpoint) from None


def _rpc_error(error: errors.TriglotError, endpoint: Endpoint | None) -> AioRpcError:
    return errors.InProcessError(error, endpoint.details(error) if endpoint else error.message)
