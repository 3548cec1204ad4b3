"""Calls that are made at the same time go in one message, and each still stands for itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import prometheus_client
import pytest

from chassis import bundles, calls, errors
from chassis.bundles import BundlingChannel
from chassis.limits import Addresses
from chassis.rpc import Policy, mount
from chassis.server import GrpcServer
from chassis.settings import Settings
from protos.gen.triglot.bundle.v1 import bundle_service_pb2 as rpc
from protos.gen.triglot.bundle.v1 import bundle_service_pb2_grpc
from tests.chassis.echo import ByName, Stub, Text, service
from tests.patience import until
from tests.ports import reserved_ports

ADMIN = (("authorization", "admin"),)
SAY = "/test.Echo/Say"
SEND = "/triglot.bundle.v1.BundleService/SendCalls"


@asynccontextmanager
async def opened(addresses: Addresses | None = None) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to the echo service."""
    server = GrpcServer([service()], host="127.0.0.1", port=0, max_message_bytes=1 << 20, addresses=addresses)
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(0)


def answered(path: str, code: str = "OK") -> int:
    """How many calls of an RPC ended so, in this process."""
    labels = {"rpc": path, "code": code}
    return int(prometheus_client.REGISTRY.get_sample_value("triglot_rpc_seconds_count", labels) or 0)


def in_bundles() -> int:
    """How many calls came in bundles, in this process."""
    return int(prometheus_client.REGISTRY.get_sample_value("triglot_bundle_calls_sum") or 0)


async def say(stub: Stub, text: str, name: str = "admin", seconds: float = 30) -> str:
    """What the service answers to somebody, or the reason why not."""
    metadata = (("authorization", name), (calls.REQUEST_ID, f"R-{text}")) if name else ()
    try:
        answer: Text = await calls.invoke(stub.Say, Text(value=text), metadata=metadata, timeout_seconds=seconds)
    except errors.TriglotError as error:
        return error.reason
    return answer.value


async def test_what_is_called_at_the_same_time_goes_in_one_message() -> None:
    async with opened() as channel:
        stub = Stub(BundlingChannel(channel, {SAY}))
        sent, said = answered(SEND), answered(SAY)
        texts = [f"text {number}" for number in range(10)]
        assert await asyncio.gather(*(say(stub, text) for text in texts)) == texts
        assert (answered(SEND) - sent, answered(SAY) - said) == (1, 10)


@pytest.mark.parametrize(("seconds", "together"), [(60, 4), (0, 2)])
async def test_what_is_called_turn_by_turn_goes_in_one_message_for_some_time(
    seconds: float, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundles, "_GATHER_SECONDS", seconds)
    async with opened() as channel:
        stub = Stub(BundlingChannel(channel, {SAY}))
        sent, bundled, said = answered(SEND), in_bundles(), answered(SAY)
        calling = [asyncio.ensure_future(say(stub, text)) for text in ("a", "b")]
        for text in ("c", "d"):
            await asyncio.sleep(0)  # a turn
            calling.append(asyncio.ensure_future(say(stub, text)))
        assert await asyncio.gather(*calling) == ["a", "b", "c", "d"]
        assert (answered(SEND) - sent, in_bundles() - bundled, answered(SAY) - said) == (1, together, 4)


async def test_who_gets_no_answer_from_a_bundle_asks_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    async def one(self: object, request: rpc.SendCallsRequest, context: object) -> rpc.SendCallsResponse:
        return rpc.SendCallsResponse(answers=[rpc.Answer(response=Text(value="bundled").SerializeToString())])

    monkeypatch.setattr(bundles._BundleService, "SendCalls", one)
    async with opened() as channel:
        stub = Stub(BundlingChannel(channel, {SAY}))
        assert await asyncio.gather(*(say(stub, text) for text in ("a", "b", "c"))) == ["bundled", "b", "c"]


async def test_what_is_called_alone_goes_as_it_is() -> None:
    async with opened() as channel:
        stub = Stub(BundlingChannel(channel, {SAY}))
        sent = answered(SEND)
        for _ in range(3):
            assert await say(stub, "hello") == "hello"
        other = await asyncio.gather(*(stub.Ping(Text()) for _ in range(3)))
        assert [each.value for each in other] == ["pong"] * 3
        assert answered(SEND) == sent


async def test_each_shows_its_own_credential_and_fails_alone() -> None:
    async with opened() as channel:
        stub = Stub(BundlingChannel(channel, {SAY}))
        found = await asyncio.gather(
            say(stub, "who"), say(stub, "missing view"), say(stub, "who", name=""), say(stub, "break"), say(stub, "x")
        )
        assert found == ["admin R-who", "FEATURE_VIEW_NOT_FOUND", "CREDENTIAL_MISSING", "INTERNAL", "x"]
        garbled = errors.InvalidArgument("at most 5", reason="TOO_MANY_ENTRIES").status().SerializeToString()
        refused, taken = await asyncio.gather(
            calls.invoke(stub.Say, Text(value="x"), metadata=(*ADMIN, (calls.UNREADABLE, garbled))),
            say(stub, "y"),
            return_exceptions=True,
        )
        assert isinstance(refused, errors.InvalidArgument)
        assert (refused.reason, taken) == ("TOO_MANY_ENTRIES", "y")


async def test_each_has_its_own_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles, "MAX_BEHIND_SECONDS", 60)
    async with opened() as channel:
        stub = Stub(BundlingChannel(channel, {SAY}))
        late = answered(SAY, "CANCELLED")
        found = await asyncio.gather(say(stub, "wait 60", seconds=0.3), say(stub, "soon"), say(stub, "wait 0"))
        assert found == ["DEADLINE_EXCEEDED", "soon", "wait 0"]
        assert answered(SAY, "CANCELLED") - late == 1, "the service went on with it"


async def test_a_slow_one_holds_up_nobody_and_comes_by_itself() -> None:
    async with opened() as channel:
        stub = Stub(BundlingChannel(channel, {SAY}))
        sent, late = answered(SEND), answered(SAY, "CANCELLED")
        slow = asyncio.ensure_future(say(stub, "wait 60", seconds=60))
        assert await asyncio.gather(say(stub, "a"), say(stub, "b")) == ["a", "b"]
        assert not slow.done()
        assert (answered(SEND) - sent, answered(SAY, "CANCELLED") - late) == (1, 1)

        async def arrived() -> bool:
            return prometheus_client.REGISTRY.get_sample_value("triglot_rpc_in_flight", {"rpc": SAY}) == 1

        await until(arrived)
        slow.cancel()


async def test_who_goes_away_takes_nobody_along() -> None:
    async with opened() as channel:
        stub = Stub(BundlingChannel(channel, {SAY}))
        gone, stays = asyncio.ensure_future(say(stub, "wait 60")), asyncio.ensure_future(say(stub, "stays"))
        await asyncio.sleep(0)
        gone.cancel()
        assert await stays == "stays"
        assert gone.cancelled()


async def test_a_server_that_knows_of_no_bundles_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    other = mount(
        lambda servicer, collector: collector.add_registered_method_handlers("test.Other", {}), None, Policy(ByName())
    )
    monkeypatch.setattr(bundles, "service", lambda *_: other)
    async with opened() as channel:
        stub = Stub(BundlingChannel(channel, {SAY}))
        for _ in range(2):
            assert await asyncio.gather(*(say(stub, text) for text in ("a", "b", "missing c"))) == [
                *("a", "b", "FEATURE_VIEW_NOT_FOUND")
            ]


async def test_each_counts_for_the_address_it_comes_from(settings: Settings) -> None:
    given = {"address_failures_per_minute": 3, "address_calls_per_second": 0, "address_connections": 0}
    addresses = Addresses(settings.model_copy(update=given), clock=lambda: 0.0)
    async with opened(addresses) as channel:
        stub = Stub(BundlingChannel(channel, {SAY}))
        wrong = [say(stub, "x", name="stranger") for _ in range(3)]
        missing, *invalid = await asyncio.gather(say(stub, "x", name=""), *wrong)
        assert (missing, invalid) == ("CREDENTIAL_MISSING", ["CREDENTIAL_INVALID"] * 3)
        assert await say(stub, "x") == "RATE_LIMITED"
        assert await asyncio.gather(say(stub, "x"), say(stub, "y")) == ["RATE_LIMITED"] * 2


async def test_an_answer_that_is_too_large_for_company_comes_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles, "MAX_RESPONSE_BYTES", 1000)
    async with opened() as channel:
        stub = Stub(BundlingChannel(channel, {SAY}))
        said = answered(SAY)
        texts = ["x" * 600, "y" * 600, "z" * 10]
        assert await asyncio.gather(*(say(stub, text) for text in texts)) == texts
        # The second and what is behind it are asked for again.
        assert answered(SAY) - said == 5


async def test_a_large_request_is_no_part_of_a_bundle() -> None:
    async with opened() as channel:
        stub = Stub(BundlingChannel(channel, {SAY}))
        sent = answered(SEND)
        texts = ["x" * (bundles.MAX_REQUEST_BYTES + 1)] * 3
        assert await asyncio.gather(*(say(stub, text) for text in texts)) == texts
        assert answered(SEND) == sent


async def test_more_calls_than_a_bundle_holds() -> None:
    async with opened() as channel:
        stub = Stub(BundlingChannel(channel, {SAY}))
        sent = answered(SEND)
        texts = [str(number) for number in range(2 * bundles.MAX_CALLS + 2)]
        assert await asyncio.gather(*(say(stub, text) for text in texts)) == texts
        assert answered(SEND) - sent == 3


async def test_a_server_that_is_away_is_away_for_each() -> None:
    with reserved_ports(1) as [port]:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = Stub(BundlingChannel(channel, {SAY}))
            found = await asyncio.gather(say(stub, "a"), say(stub, "b"))
    assert found == ["DEPENDENCY_UNAVAILABLE"] * 2


async def test_odd_bundles() -> None:
    async with opened() as channel:
        send = bundle_service_pb2_grpc.BundleServiceStub(channel).SendCalls
        assert (await send(rpc.SendCallsRequest())).answers == []
        good = {"authorization": b"admin"}
        odd = rpc.SendCallsRequest(
            calls=[
                rpc.Call(method=SEND),
                rpc.Call(method="/test.Echo/Spell", metadata=good),
                rpc.Call(method=SAY, metadata=good, request=b"\xff\xff"),
                rpc.Call(method=SAY, request=b"\xff\xff"),
                rpc.Call(method=SAY, metadata={**good, calls.UNREADABLE: b"\xff"}),
                rpc.Call(method=SAY, metadata=good, request=Text(value="fine").SerializeToString()),
            ]
        )
        answers = (await send(odd)).answers
        refused = [errors.from_status(each.status).code for each in answers[:-1]]
        unknown, unreadable = grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.INVALID_ARGUMENT
        assert refused == [unknown, unknown, unreadable, grpc.StatusCode.UNAUTHENTICATED, unreadable]
        assert Text.FromString(answers[-1].response).value == "fine"
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await send(rpc.SendCallsRequest(calls=[rpc.Call(method=SAY)] * (bundles.MAX_CALLS + 1)))
        assert raised.value.code() is unreadable
