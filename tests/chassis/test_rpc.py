"""The same rules on a port and in the process: one suite, two worlds."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import prometheus_client
import pytest
from google.protobuf.empty_pb2 import Empty
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chassis import calls, errors
from chassis.errors import PortInUse
from chassis.inprocess import InProcessChannel
from chassis.limits import Overload
from chassis.rpc import Service
from chassis.server import GrpcServer
from tests.chassis.echo import Echo, Stub, Text, service
from tests.patience import PATIENCE_SECONDS, until

ADMIN = (("authorization", "admin"),)
GUEST = (("authorization", "guest"),)
TOO_MANY = errors.InvalidArgument("at most 5", reason="TOO_MANY_ENTRIES").status().SerializeToString()

_GARBLED = errors.InvalidArgument("x").status()
_GARBLED.details[0].value = b"\xff\xff"
GARBLED = _GARBLED.SerializeToString()


def make_server(port: int = 0) -> GrpcServer:
    return GrpcServer([service()], host="127.0.0.1", port=port, max_message_bytes=1 << 20)


@asynccontextmanager
async def open_world(world: str, served: Service) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a service on a `port`, or in this `process`."""
    if world == "process":
        yield InProcessChannel([served])
        return
    server = GrpcServer([served], host="127.0.0.1", port=0, max_message_bytes=1 << 20)
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as opened:
        yield opened
    await server.stop(0)


@pytest.fixture(params=["port", "process"])
async def channel(request: pytest.FixtureRequest) -> AsyncIterator[grpc.aio.Channel]:
    async with open_world(request.param, service()) as opened:
        yield opened


async def test_an_answer(channel: grpc.aio.Channel) -> None:
    assert (await Stub(channel).Say(Text(value="hello"), metadata=ADMIN)).value == "hello"


async def test_identity_and_request_id_reach_the_handler(channel: grpc.aio.Channel) -> None:
    answer = await Stub(channel).Say(Text(value="who"), metadata=(*ADMIN, (calls.REQUEST_ID, "R-1")))
    assert answer.value == "admin R-1"


@pytest.mark.parametrize("world", ["port", "process"])
class TestAnswersInSeveralMessages:
    async def test_they_come_in_their_order(self, world: str) -> None:
        async with open_world(world, service()) as channel:
            spelt = calls.stream(Stub(channel).Spell, Text(value="hello"), metadata=(*ADMIN, (calls.REQUEST_ID, "R-1")))
            assert [text.value async for text in spelt] == list("hello")
            assert [text async for text in calls.stream(Stub(channel).Spell, Text(), metadata=ADMIN)] == []

    async def test_whoever_calls_is_asked_first(self, world: str) -> None:
        async with open_world(world, service()) as channel:
            with pytest.raises(errors.Unauthenticated) as raised:
                await anext(calls.stream(Stub(channel).Spell, Text(value="hello")))
            assert raised.value.reason == "CREDENTIAL_MISSING"
            with pytest.raises(errors.PermissionDenied):
                await anext(calls.stream(Stub(channel).Spell, Text(value="hello"), metadata=GUEST))

    async def test_an_error_in_the_middle_comes_after_what_was_written(self, world: str) -> None:
        async with open_world(world, service()) as channel:
            spelt = calls.stream(Stub(channel).Spell, Text(value="ab?c"), metadata=ADMIN)
            assert [(await anext(spelt)).value for _ in range(2)] == ["a", "b"]
            with pytest.raises(errors.NotFound) as raised:
                await anext(spelt)
            assert raised.value.reason == "FEATURE_VIEW_NOT_FOUND"

    async def test_a_deadline_holds_for_all_of_them(self, world: str) -> None:
        async with open_world(world, service()) as channel:
            found: list[str] = []
            for seconds in (0.5, PATIENCE_SECONDS / 2):
                spelt = calls.stream(Stub(channel).Spell, Text(value="a."), metadata=ADMIN, timeout_seconds=seconds)
                with pytest.raises(errors.DeadlineExceeded):
                    async for each in spelt:
                        found.append(each.value)
                if found:
                    break
            assert found == ["a"]

    async def test_closing_ends_the_call(self, world: str) -> None:
        echo = Echo()
        async with open_world(world, service(echo=echo)) as channel:
            spelt = calls.stream(Stub(channel).Spell, Text(value="a."), metadata=ADMIN, timeout_seconds=60)
            assert (await anext(spelt)).value == "a"
            await spelt.aclose()
            async with asyncio.timeout(PATIENCE_SECONDS):
                await echo.given_up.wait()


async def test_in_the_process_nobody_writes_far_ahead_of_who_reads() -> None:
    echo = Echo()
    async with open_world("process", service(echo=echo)) as channel:
        spelt = calls.stream(Stub(channel).Spell, Text(value="abcdefghij"), metadata=ADMIN)
        assert (await anext(spelt)).value == "a"
        for _ in range(100):
            await asyncio.sleep(0)
        assert echo.written < 5
        assert "".join([text.value async for text in spelt]) == "bcdefghij"


@pytest.mark.parametrize(
    ("text", "metadata", "code", "reason"),
    [
        ("missing x", ADMIN, grpc.StatusCode.NOT_FOUND, "FEATURE_VIEW_NOT_FOUND"),
        ("hello", (), grpc.StatusCode.UNAUTHENTICATED, "CREDENTIAL_MISSING"),
        ("break", ADMIN, grpc.StatusCode.INTERNAL, "INTERNAL"),
    ],
)
async def test_errors_keep_code_reason_and_details(
    channel: grpc.aio.Channel, text: str, metadata: tuple[tuple[str, str], ...], code: grpc.StatusCode, reason: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await Stub(channel).Say(Text(value=text), metadata=metadata)
    error = errors.from_rpc(raised.value)
    assert (raised.value.code(), error.code, error.reason) == (code, code, reason)
    assert raised.value.details() == f"details: {error.message}"
    assert "secret" not in error.message
    if reason == "FEATURE_VIEW_NOT_FOUND":
        assert error.metadata == {"name": "x"}


async def test_long_texts_are_cut_to_what_grpc_carries(channel: grpc.aio.Channel) -> None:
    """Each text to 1,000 bytes, however many bytes its letters have."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await Stub(channel).Say(Text(value="missing " + "\N{OWL}" * 3000), metadata=ADMIN)
    error = errors.from_rpc(raised.value)
    assert error.reason == "FEATURE_VIEW_NOT_FOUND"
    assert error.metadata["name"] == "\N{OWL}" * 250


async def test_actions_are_checked(channel: grpc.aio.Channel) -> None:
    stub = Stub(channel)
    assert (await stub.Say(Text(value="a"), metadata=GUEST)).value == "a"
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.Join(_texts("a"), metadata=GUEST)
    assert errors.from_rpc(raised.value).metadata == {"action": "test:Join"}


async def test_an_open_rpc_asks_for_no_credential(channel: grpc.aio.Channel) -> None:
    assert (await Stub(channel).Ping(Text())).value == "pong"


async def test_deadlines(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await Stub(channel).Say(Text(value="wait 5"), metadata=ADMIN, timeout=0.05)
    assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


async def test_streams_of_requests(channel: grpc.aio.Channel) -> None:
    assert (await Stub(channel).Join(_texts("abc"), metadata=ADMIN)).value == "a,b,c"


async def _texts(values: str) -> AsyncIterator[Text]:
    for value in values:
        yield Text(value=value)


@pytest.mark.parametrize(
    ("metadata", "refused_with", "reason"),
    [
        ((), TOO_MANY, "CREDENTIAL_MISSING"),
        (GUEST, TOO_MANY, "TOO_MANY_ENTRIES"),
        (ADMIN, b"no status", "INVALID_FIELD"),
        (ADMIN, GARBLED, "INVALID_FIELD"),
        (ADMIN, errors.Internal("looks like ours").status().SerializeToString(), "INVALID_FIELD"),
    ],
)
async def test_who_calls_comes_before_what_is_wrong(
    channel: grpc.aio.Channel, metadata: tuple[tuple[str, str], ...], refused_with: bytes, reason: str
) -> None:
    """A gateway could not read a request: the service says so to callers that it knows."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await Stub(channel).Say(Empty(), metadata=(*metadata, (calls.UNREADABLE, refused_with)))
    assert errors.from_rpc(raised.value).reason == reason


async def test_unknown_methods(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await Stub(channel).Nothing(Text(), metadata=ADMIN)
    assert raised.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_invoke_raises_our_errors_and_sets_a_deadline(channel: grpc.aio.Channel) -> None:
    stub = Stub(channel)
    with pytest.raises(errors.NotFound) as raised:
        await calls.invoke(stub.Say, Text(value="missing y"), metadata=ADMIN)
    assert raised.value.metadata == {"name": "y"}
    with pytest.raises(errors.DeadlineExceeded):
        await calls.invoke(stub.Say, Text(value="wait 5"), metadata=ADMIN, timeout_seconds=0.05)


async def test_calls_are_counted_by_code(channel: grpc.aio.Channel) -> None:
    def count(code: str) -> float:
        labels = {"rpc": "/test.Echo/Say", "code": code}
        return prometheus_client.REGISTRY.get_sample_value("triglot_rpc_seconds_count", labels) or 0.0

    before = count("OK"), count("NOT_FOUND")
    await Stub(channel).Say(Text(value="a"), metadata=ADMIN)
    with pytest.raises(grpc.aio.AioRpcError):
        await Stub(channel).Say(Text(value="missing a"), metadata=ADMIN)
    assert (count("OK"), count("NOT_FOUND")) == (before[0] + 1, before[1] + 1)


def test_a_stream_that_the_other_side_ends_early_is_no_defect() -> None:
    """grpc.aio may find that it cannot send before it finds out why, and says this. Whoever tries again is told."""
    nothing = grpc.aio.Metadata()
    said = grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, nothing, nothing, "Internal error from Core")
    assert errors.from_rpc(said).code == grpc.StatusCode.UNAVAILABLE


async def test_a_port_in_use_is_one_clear_line() -> None:
    server = make_server()
    port = await server.start()
    with pytest.raises(PortInUse, match=f"cannot listen on 127.0.0.1:{port}"):
        await make_server(port).start()
    await server.stop(0)


async def test_draining_finishes_what_is_under_way() -> None:
    server = make_server()
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as opened:
        health = health_pb2_grpc.HealthStub(opened)
        asked = health_pb2.HealthCheckRequest(service="test.Echo")
        assert (await health.Check(asked)).status == health_pb2.HealthCheckResponse.SERVING
        waiting = asyncio.ensure_future(Stub(opened).Say(Text(value="wait 0.3"), metadata=ADMIN))

        async def under_way() -> bool:
            return prometheus_client.REGISTRY.get_sample_value("triglot_rpc_in_flight", {"rpc": "/test.Echo/Say"}) == 1

        await until(under_way)
        await server.stop(PATIENCE_SECONDS)
        assert (await waiting).value == "wait 0.3"


async def test_processes_can_be_started_while_grpc_is_at_work() -> None:
    """With its fork handlers, some children in a hundred were aborted before they had become another program."""
    server = make_server()
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as opened:
        for _ in range(100):
            await Stub(opened).Ping(Text())
            # With something to do between fork and exec, as in triglot.embedded: without it there is no fork.
            child = subprocess.Popen([sys.executable, "-V"], stdout=subprocess.DEVNULL, preexec_fn=os.getpid)  # noqa: ASYNC220, PLW1509
            assert await asyncio.to_thread(child.wait) == 0
    await server.stop(0)


async def test_errors_that_pass_say_when_to_try_again() -> None:
    """As google.rpc.RetryInfo, which libraries know."""
    retry = error_details_pb2.RetryInfo()

    def delay(error: errors.TriglotError) -> float | None:
        found = any(detail.Unpack(retry) for detail in error.status().details)
        return retry.retry_delay.ToTimedelta().total_seconds() if found else None

    limited = errors.ResourceExhausted("too many", retry_after_ms=1500)
    assert delay(limited) == 1.5
    again = errors.from_status(limited.status().SerializeToString())
    assert (again.reason, again.retry_after_ms) == ("RATE_LIMITED", 1500)
    assert delay(errors.Unavailable("down")) is None
    # A caller may write an error of its own; see calls.UNREADABLE.
    for odd in ("", "soon", "-1", "1.5", "9" * 30):
        assert delay(errors.ResourceExhausted("odd", retry_after_ms=odd)) is None


@pytest.mark.parametrize("world", ["port", "process"])
async def test_a_busy_service_refuses_before_it_asks_who_calls(world: str) -> None:
    """And its open RPCs answer on, so that nobody thinks it is dead."""
    busy = Overload(0.0, itertools.count(0, 0.06).__next__, lambda delay, callback: None)
    for _ in range(50):
        busy.enter()
    for ahead in range(10, 20):
        busy.leave(ahead, 5.0, counts=True)
    async with open_world(world, service(busy)) as channel:
        stub = Stub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.Say(Text(value="a"))
        error = errors.from_rpc(raised.value)
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "OVERLOADED")
        assert (error.retry_after_ms or 0) > 0
        assert (await stub.Ping(Text())).value == "pong"
        # A stream takes as long as its sender does: it says nothing, and is not refused.
        assert (await stub.Join(_texts("abc"), metadata=ADMIN)).value == "a,b,c"
