"""Many small calls in one: a call over gRPC costs more processor time than what most of them ask for.

`BundlingChannel` gathers calls until a turn of the event loop brings no more, so an idle process waits for nothing and
a busy one, which has read all that has arrived by then, sends few messages. A call that is alone goes as it is.
`service` answers them, on every gRPC port.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from chassis import calls, deadlines, errors
from chassis.inprocess import InProcessChannel
from chassis.limits import Addresses
from chassis.principals import Principal
from chassis.rpc import Metadata, Policy, Service, mount, no_message
from chassis.telemetry import SIZE_BUCKETS, Histogram
from protos.gen.triglot.bundle.v1 import bundle_service_pb2 as rpc
from protos.gen.triglot.bundle.v1 import bundle_service_pb2_grpc

MAX_CALLS = 64
# What is larger gains nothing by company.
MAX_REQUEST_BYTES = 16 * 1024
# Of all answers of a bundle together. What does not fit is asked for again, by itself.
MAX_RESPONSE_BYTES = 1024 * 1024
# How long a call may wait for others that come turn by turn.
_GATHER_SECONDS = 0.005
# How much longer than the first of a bundle the others may take. Whoever takes longer holds up nobody: it is ended, and
# asked for again by itself.
MAX_BEHIND_SECONDS = 0.05
# How long a server that knows of no bundles, because it is older, is sent none.
_UNBUNDLED_SECONDS = 30.0
_BINARY = "-bin"
_sizes = Histogram("triglot_bundle_calls", "Calls that came in one message.", bounds=SIZE_BUCKETS).series()


# ---- the side that answers ----


def service(services: Sequence[Service], addresses: Addresses | None) -> Service:
    """Bundles of calls of those services. Each call counts for the address that it comes from."""
    policy = Policy(_Nobody(), open_rpcs=frozenset({"SendCalls"}))
    add: Any = bundle_service_pb2_grpc.add_BundleServiceServicer_to_server
    return mount(add, _BundleService(services, addresses), policy)


class _Nobody:
    """Whoever sends a bundle is not asked: whoever makes its calls is."""

    async def principal(self, metadata: Metadata) -> Principal:
        raise errors.Unauthenticated("a bundle is nobody's")


class _BundleService(bundle_service_pb2_grpc.BundleServiceServicer):
    """See bundle_service.proto. The calls are made as any caller in this process would make them."""

    def __init__(self, services: Sequence[Service], addresses: Addresses | None) -> None:
        self._addresses = addresses
        self._methods = {
            path: (endpoint.handler.request_deserializer, endpoint.handler.response_serializer, call)
            for each in services
            for path, endpoint in each.endpoints.items()
            if endpoint.handler.unary_unary
            for call in [InProcessChannel([each]).unary_unary(path)]
        }

    async def SendCalls(self, request: rpc.SendCallsRequest, context: Any) -> rpc.SendCallsResponse:  # noqa: N802
        if len(request.calls) > MAX_CALLS:
            raise errors.InvalidArgument(f"a bundle has at most {MAX_CALLS} calls", field="calls")
        _sizes.observe(len(request.calls))
        remaining = calls.current().remaining()
        peer = context.peer() if self._addresses else ""
        tasks = [asyncio.ensure_future(self._answer(call, remaining, peer)) for call in request.calls]
        try:
            if tasks:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                await asyncio.wait(tasks, timeout=MAX_BEHIND_SECONDS)
            answers = [task.result() if task.done() else rpc.Answer() for task in tasks]
        finally:
            for task in tasks:
                task.cancel()
        left = MAX_RESPONSE_BYTES
        for answer in answers:
            left -= len(answer.response)
            if left < 0:
                answer.ClearField("response")
        return rpc.SendCallsResponse(answers=answers)

    async def _answer(self, call: rpc.Call, remaining: float, peer: str) -> rpc.Answer:
        try:
            if self._addresses is None:
                return rpc.Answer(response=await self._response(call, remaining))
            with self._addresses.counting(peer):
                return rpc.Answer(response=await self._response(call, remaining))
        except errors.TriglotError as error:
            return rpc.Answer(status=error.status().SerializeToString())

    async def _response(self, call: rpc.Call, remaining: float) -> bytes:
        if call.method not in self._methods:
            raise errors.Unimplemented(f"{call.method} is not implemented")
        read, write, method = self._methods[call.method]
        metadata: dict[str, str | bytes] = {}
        for name, value in call.metadata.items():
            metadata[name] = value if name.endswith(_BINARY) else value.decode("ascii", "replace")
        try:
            request = read(call.request)
        except DecodeError:
            request, metadata[calls.UNREADABLE] = None, no_message().status().SerializeToString()
        timeout = min(call.timeout_ms / 1000, remaining) if call.timeout_ms else remaining
        try:
            response: bytes = write(await method(request, timeout=timeout, metadata=metadata.items()))
        except grpc.aio.AioRpcError as error:
            raise errors.from_rpc(error) from None
        return response


# ---- the side that calls ----


class _Waiting:
    """A call that is on its way in a bundle, or about to be."""

    __slots__ = ("answered", "call", "timeout")

    def __init__(self, call: rpc.Call, timeout: float) -> None:
        self.call = call
        self.timeout = timeout
        self.answered: asyncio.Future[rpc.Answer | None] = asyncio.get_running_loop().create_future()

    def settle(self, answer: rpc.Answer | Exception | None) -> None:
        """Wake whoever waits. None: the call must be made by itself."""
        if self.answered.done():
            return
        if isinstance(answer, Exception):
            self.answered.set_exception(answer)
        else:
            self.answered.set_result(answer)


class BundlingChannel(grpc.aio.Channel):
    """A channel that bundles the calls of some methods, named by their full names, and makes all others as they are.

    Calls of those methods can be awaited, and nothing more.
    """

    def __init__(self, channel: grpc.aio.Channel, bundled: Collection[str]) -> None:
        self._channel = channel
        self._bundled = bundled
        self._send = bundle_service_pb2_grpc.BundleServiceStub(channel).SendCalls
        self._waiting: list[_Waiting] = []
        # Looks again in the next turn, whether more has come, until the time by which all must go.
        self._looking: asyncio.Handle | None = None
        self._until = 0.0
        self._sending: set[asyncio.Task[None]] = set()
        self._plain_until = 0.0

    def unary_unary(self, method: str, *serializers: Any, **named: Any) -> Any:
        plain = self._channel.unary_unary(method, *serializers, **named)
        if method not in self._bundled:
            return plain
        write, read = named["request_serializer"], named["response_deserializer"]

        async def call(request: Any, *, timeout: float, metadata: calls.Metadata) -> Any:
            serialized = write(request)
            began = asyncio.get_running_loop().time()
            if len(serialized) <= MAX_REQUEST_BYTES and began >= self._plain_until:
                response = await self._bundle(method, serialized, timeout, metadata)
                if response is not None:
                    return read(response)
                timeout -= asyncio.get_running_loop().time() - began
            return await plain(request, timeout=timeout, metadata=metadata)

        return call

    def unary_stream(self, *arguments: Any, **named: Any) -> Any:
        return self._channel.unary_stream(*arguments, **named)

    def stream_unary(self, *arguments: Any, **named: Any) -> Any:
        return self._channel.stream_unary(*arguments, **named)

    def stream_stream(self, *arguments: Any, **named: Any) -> Any:
        return self._channel.stream_stream(*arguments, **named)

    async def __aenter__(self) -> BundlingChannel:
        return self

    async def __aexit__(self, *raised: Any) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        await self._channel.close(grace)

    async def channel_ready(self) -> None:
        await self._channel.channel_ready()

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._channel.wait_for_state_change(last_observed_state)

    async def _bundle(self, method: str, request: bytes, timeout: float, metadata: calls.Metadata) -> bytes | None:
        """The response of a call that goes with others; None: it must be made by itself."""
        call = rpc.Call(method=method, request=request, timeout_ms=max(1, int(timeout * 1000)))
        for name, value in metadata:
            call.metadata[name] = value if isinstance(value, bytes) else value.encode()
        one = _Waiting(call, timeout)
        self._waiting.append(one)
        if len(self._waiting) == 1:
            loop = asyncio.get_running_loop()
            self._until = loop.time() + _GATHER_SECONDS
            self._looking = loop.call_soon(self._look, 1)
        elif len(self._waiting) == MAX_CALLS:
            self._flush()
        try:
            with deadlines.within(timeout):
                answer = await one.answered
        except TimeoutError:
            raise _rpc_error(errors.DeadlineExceeded("Deadline Exceeded")) from None
        if answer is None:
            return None
        if answer.status:
            raise _rpc_error(errors.from_status(answer.status))
        return answer.response if answer.HasField("response") else None

    def _look(self, seen: int) -> None:
        """Send what waits, unless more has come since it was seen to be so many: then there may be still more."""
        loop = asyncio.get_running_loop()
        if len(self._waiting) > seen and loop.time() < self._until:
            self._looking = loop.call_soon(self._look, len(self._waiting))
        else:
            self._flush()

    def _flush(self) -> None:
        """Send what waits."""
        if self._looking is not None:
            self._looking.cancel()
        waiting, self._waiting = self._waiting, []
        if len(waiting) == 1:
            waiting[0].settle(None)
        elif waiting:
            task = asyncio.create_task(self._send_all(waiting))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    async def _send_all(self, waiting: Sequence[_Waiting]) -> None:
        request = rpc.SendCallsRequest(calls=[one.call for one in waiting])
        try:
            answers = (await self._send(request, timeout=max(one.timeout for one in waiting))).answers
            for one, answer in zip(waiting, answers, strict=False):
                one.settle(answer)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                self._plain_until = asyncio.get_running_loop().time() + _UNBUNDLED_SECONDS
            else:
                for one in waiting:
                    one.settle(_rpc_error(errors.from_rpc(error)))
        finally:
            # Who has no answer asks by itself.
            for one in waiting:
                one.settle(None)


def _rpc_error(error: errors.TriglotError) -> grpc.aio.AioRpcError:
    return errors.InProcessError(error, error.message)
