"""What every port bounds: how much, how often, how long, and from where. And what it tells browsers."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import httpx2
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from chassis import errors, limits, metrics_port, server
from chassis.inprocess import InProcessChannel
from chassis.limits import Addresses
from chassis.server import MAX_METADATA_BYTES, GrpcServer
from chassis.settings import Settings
from gateway import server as http_server
from gateway.app import create_app
from gateway.assembly import all_dialects
from gateway.dialect import Dialect
from gateway.exchange import Answer
from gateway.settings import GatewaySettings
from tests.certificates import make
from tests.chassis.echo import Echo, Stub, Text, service
from tests.gateway.test_frame import dialect
from tests.patience import PATIENCE_SECONDS, until
from tests.ports import reserved_ports

HOST = "127.0.0.1"
ADMIN = (("authorization", "admin"),)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def settings(**given: Any) -> Settings:
    return Settings(host=HOST, metrics_port=0, **given)


# Headers.


@asynccontextmanager
async def gateway(given: Settings | None = None, **own: Any) -> AsyncIterator[str]:
    """The real dialects with nothing behind them."""
    given, gateway_settings = given or settings(), GatewaySettings(ports=(0,), **own)
    nowhere = InProcessChannel([])
    dialects = all_dialects(registry=nowhere, serving=nowhere, management=nowhere, settings=gateway_settings)
    app = create_app(dialects, gateway_settings, limits.of_addresses(given))
    async with http_server.listening(app, gateway_settings, given) as [port]:
        yield f"{'https' if given.tls_certificate else 'http'}://{HOST}:{port}"


PAGES = ("/", "/docs", "/openapi.json", "/pages/swagger.js")
PATHS = (*PAGES, "/api/v1/projects", "/nothing", "/0.1.0/ping", "/api/v1/instances")


async def test_every_answer_tells_browsers_what_it_is_not(tmp_path: Path) -> None:
    """Not to be guessed at, not to be kept unless it says so; pages not to be framed. HSTS is for TLS only."""
    made = make(tmp_path)
    secure = settings(tls_certificate=str(made.certificate), tls_key=str(made.key))
    for given in (settings(), secure):
        async with gateway(given) as url, httpx2.AsyncClient(verify=made.trust(), base_url=url) as http:
            for path in PATHS:
                for method in ("GET", "POST", "DELETE"):
                    answer = await http.request(method, path)
                    told = answer.headers
                    assert told.get_list("x-content-type-options") == ["nosniff"]
                    assert re.fullmatch(r"no-store|public, max-age=3600", told["cache-control"])
                    if told["content-type"].startswith("text/html"):
                        assert "default-src 'none'" in told["content-security-policy"]
                        assert "frame-ancestors 'none'" in told["content-security-policy"]
                    assert "server" not in told
                    assert ("strict-transport-security" in told) == (given is secure)


async def test_an_answer_may_say_otherwise() -> None:
    said = {"cache-control": "max-age=5"}
    app: Any = create_app((answering(Answer(headers=said)),), GatewaySettings())
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://t") as http:
        assert (await http.get("/own")).headers.get_list("cache-control") == ["max-age=5"]


def answering(answer: Answer) -> Dialect:
    """A dialect whose `/own` answers so."""
    shown = dialect("one", "")
    [own] = [row for row in shown.rows if row.rpc is None]
    return replace(shown, rows=[replace(own, answer=lambda *_: answer)])


async def test_what_is_no_request_gets_the_headers_too() -> None:
    async with gateway() as url:
        answer = await raw(port_of(url), b"GET / HTTP/1.1\r\nx: " + b"x" * 70_000)
        assert answer.startswith(b"HTTP/1.1 431 ")
        assert b"x-content-type-options: nosniff\r\n" in answer
        assert b"x-content-type-options: nosniff\r\n" in await raw(port_of(url), b"\x00\r\n\r\n")


def port_of(url: str) -> int:
    return int(url.rsplit(":", 1)[1])


async def raw(port: int, sent: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(sent)
    async with asyncio.timeout(PATIENCE_SECONDS):
        answer = await reader.read()
    writer.close()
    return answer


# HTTP: who does not read.


async def test_who_does_not_read_is_not_waited_for() -> None:
    own = GatewaySettings(ports=(0,), body_timeout_seconds=0.2)
    app = create_app((answering(Answer(body=b"x" * 20_000_000)),), own)
    opened = http_server.HttpServer(app, own, host=HOST, drain_seconds=1)
    [port] = await opened.start()
    with socket.create_connection((HOST, port)) as lazy:
        lazy.sendall(b"GET /own HTTP/1.1\r\nhost: t\r\n\r\n")
        assert await asyncio.to_thread(lazy.recv, 15) == b"HTTP/1.1 200 OK"

        async def dropped() -> bool:
            return not opened.connections

        await until(dropped)
    await opened.stop()


# gRPC.


@asynccontextmanager
async def grpc_port(echo: Echo | None = None, **given: Any) -> AsyncIterator[int]:
    opened = GrpcServer([service(echo=echo)], host=HOST, port=0, max_message_bytes=1 << 20, **given)
    port = await opened.start()
    try:
        yield port
    finally:
        await opened.stop(0)


@asynccontextmanager
async def channel_to(port: int, **options: Any) -> AsyncIterator[grpc.aio.Channel]:
    """A connection of its own."""
    own = (("grpc.use_local_subchannel_pool", 1), *((f"grpc.{name}", value) for name, value in options.items()))
    async with grpc.aio.insecure_channel(f"{HOST}:{port}", options=own) as channel:
        yield channel


async def code_of(call: Any) -> grpc.StatusCode:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@pytest.mark.parametrize("content", [b"\xff\xff", b"\x0a\x05ab", b"\x0a\x02\xff\xfe", b"\x0b" * 300], ids=range(4))
async def test_what_is_no_message_is_refused_after_who_calls_is_known(content: bytes) -> None:
    plain = {"request_serializer": bytes, "response_deserializer": bytes}

    async def several() -> AsyncIterator[bytes]:
        yield content

    async with grpc_port() as port, channel_to(port) as channel:
        for kind, path, request in (
            ("unary_unary", "Say", lambda: content),
            ("stream_unary", "Join", several),
        ):
            method = getattr(channel, kind)(f"/test.Echo/{path}", **plain)
            assert await code_of(method(request())) == grpc.StatusCode.UNAUTHENTICATED
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await method(request(), metadata=ADMIN)
            assert errors.from_rpc(raised.value).reason == "MALFORMED_BODY"


async def test_metadata_is_bounded_and_nothing_is_left_to_chance() -> None:
    async with grpc_port() as port, channel_to(port, max_metadata_size=1 << 20) as channel:
        stub = Stub(channel)
        for size, expected in ((MAX_METADATA_BYTES - 2000, grpc.StatusCode.OK), (MAX_METADATA_BYTES, None)):
            for _ in range(5):
                call = stub.Say(Text(value="a"), metadata=(*ADMIN, ("x-big", "x" * size)))
                assert await code_of(call) == (expected or grpc.StatusCode.RESOURCE_EXHAUSTED)


async def test_a_message_is_bounded() -> None:
    async with grpc_port() as port, channel_to(port) as channel:
        call = Stub(channel).Say(Text(value="x" * (1 << 20)), metadata=ADMIN)
        assert await code_of(call) == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_connections_are_bounded() -> None:
    async with grpc_port(max_connections=2) as port, AsyncExitStack() as opened:
        stubs = [Stub(await opened.enter_async_context(channel_to(port))) for _ in range(3)]
        codes = [await code_of(stub.Say(Text(value="a"), metadata=ADMIN)) for stub in stubs]
        assert codes == [grpc.StatusCode.OK, grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE]


async def test_calls_of_one_connection_are_bounded() -> None:
    """One more waits until one of them has ended."""
    echo = Echo()
    async with grpc_port(echo, max_streams=1) as port, channel_to(port) as channel:
        stub = Stub(channel)
        spelling = stub.Spell(Text(value="a."), metadata=ADMIN)
        assert (await spelling.read()).value == "a"
        assert (
            await code_of(stub.Say(Text(value="b"), metadata=ADMIN, timeout=0.3)) == grpc.StatusCode.DEADLINE_EXCEEDED
        )
        spelling.cancel()
        assert await code_of(stub.Say(Text(value="b"), metadata=ADMIN)) == grpc.StatusCode.OK


@pytest.mark.parametrize("shown", [True, False])
async def test_reflection_can_be_switched_off(shown: bool) -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    async with grpc_port(with_reflection=shown) as port, channel_to(port) as channel:
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]))
        assert await code_of(call.read()) == (grpc.StatusCode.OK if shown else grpc.StatusCode.UNIMPLEMENTED)
        call.cancel()


async def test_who_says_nothing_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HANDSHAKE_SECONDS", 0.2)
    async with grpc_port() as port:
        reader, writer = await asyncio.open_connection(HOST, port)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await reader.read()
        writer.close()


# The metrics.


async def test_the_metrics_keep_to_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections are few and short, heads bounded, and what is no request is no news."""
    with reserved_ports(1) as [port]:
        metrics_port.serve(Settings(host=HOST, metrics_port=port))
        with monkeypatch.context() as hurried:
            hurried.setattr(metrics_port, "_CONNECTION_SECONDS", 0.3)
            opened = [await asyncio.open_connection(HOST, port) for _ in range(3 * metrics_port._MAX_CONNECTIONS)]
            async with asyncio.timeout(PATIENCE_SECONDS):
                for reader, writer in opened:
                    await reader.read()
                    writer.close()
        assert (await raw(port, b"GET / HTTP/1.1\r\nx: " + b"x" * 70_000 + b"\r\n\r\n")).startswith(b"HTTP/1.0 431 ")
        answer = await raw(port, b"GET /metrics HTTP/1.0\r\n\r\n")
        assert b"X-Content-Type-Options: nosniff" in answer


# Addresses.


def admitted(addresses: Addresses, caller: str) -> bool:
    try:
        addresses.admit(caller)
    except errors.ResourceExhausted:
        return False
    return True


def test_calls_of_one_address() -> None:
    clock = Clock()
    addresses = Addresses(settings(address_calls_per_second=2), clock)
    one, two = addresses.caller("10.0.0.1"), addresses.caller("10.0.0.2")
    assert [admitted(addresses, one) for _ in range(3)] == [True, True, False]
    assert admitted(addresses, two)
    clock.now += 0.5
    assert [admitted(addresses, one) for _ in range(2)] == [True, False]


def test_wrong_credentials_of_one_address() -> None:
    clock = Clock()
    addresses = Addresses(settings(address_failures_per_minute=3), clock)
    one, two = addresses.caller("10.0.0.1"), addresses.caller("10.0.0.2")
    for _ in range(100):
        addresses.failed(one, errors.Unauthenticated("none", reason="CREDENTIAL_MISSING"))
    assert admitted(addresses, one)
    for _ in range(100):
        addresses.failed(one, errors.Unauthenticated("wrong"))
    assert [admitted(addresses, one), admitted(addresses, two)] == [False, True]
    with pytest.raises(errors.ResourceExhausted) as refused:
        addresses.admit(one)
    assert refused.value.retry_after_ms == 20_000
    clock.now += 20
    assert admitted(addresses, one)


def test_an_ipv6_address_counts_as_its_network_and_a_mapped_one_as_itself() -> None:
    addresses = Addresses(settings(address_calls_per_second=1))
    assert (
        addresses.caller("2001:db8::1") == addresses.caller("2001:db8::ffff:1") != addresses.caller("2001:db8:0:1::1")
    )
    assert addresses.caller("::ffff:10.0.0.1") == addresses.caller("10.0.0.1")


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("8.8.8.8", "", "8.8.8.8"),
        ("8.8.8.8", "9.9.9.9", "8.8.8.8"),  # nobody believes a stranger
        ("10.1.2.3", "9.9.9.9", "9.9.9.9"),
        ("10.1.2.3", "1.1.1.1, 9.9.9.9", "9.9.9.9"),  # what the caller itself said comes first
        ("10.1.2.3", "1.1.1.1, 9.9.9.9, 10.9.9.9", "9.9.9.9"),
        ("10.1.2.3", "", ""),
        ("10.1.2.3", "garbage", "garbage"),
        ("10.1.2.3", "x" * 5000, "x" * 64),
    ],
)
def test_proxies_that_are_trusted_say_who_calls(peer: str, forwarded: str, expected: str) -> None:
    addresses = Addresses(settings(address_calls_per_second=1, trusted_addresses=("10.0.0.0/8",)))
    assert addresses.caller(peer, forwarded) == expected


def test_very_many_addresses_take_bounded_memory_and_time() -> None:
    addresses = Addresses(settings(address_failures_per_minute=1), Clock())
    for number in range(50_000):
        addresses.failed(f"10.{number}", errors.Unauthenticated("wrong"))
    assert addresses._failures is not None
    assert len(addresses._failures._until) <= limits._MAX_REMEMBERED
    assert not admitted(addresses, "10.49999")


@pytest.mark.parametrize("proxied", [False, True])
async def test_an_address_is_refused_over_rest(proxied: bool) -> None:
    """Whatever it shows then, in the dialect's words. Behind a proxy that is trusted others are served on."""
    given = settings(address_failures_per_minute=2, trusted_addresses=(HOST,) if proxied else ())
    own = GatewaySettings(ports=(0,))
    app = create_app((dialect("one", ""),), own, limits.of_addresses(given))
    async with (
        http_server.listening(app, own, given) as [port],
        httpx2.AsyncClient(base_url=f"http://{HOST}:{port}") as http,
    ):

        async def say(caller: str, who: str) -> tuple[str, bool]:
            answer = await http.post("/say/a", headers={"x-forwarded-for": f"1.1.1.1, {caller}", "x-who": who})
            return answer.json().get("reason", "OK"), "retry-after" in answer.headers

        assert await say("9.9.9.9", "admin") == ("OK", False)
        assert [await say("9.9.9.9", "stranger") for _ in range(2)] == [("CREDENTIAL_INVALID", False)] * 2
        assert await say("9.9.9.9", "admin") == ("RATE_LIMITED", True)
        assert await say("8.8.8.8", "admin") == (("OK", False) if proxied else ("RATE_LIMITED", True))


@pytest.mark.parametrize("trusted", [False, True])
async def test_an_address_is_refused_over_grpc(trusted: bool) -> None:
    """A gateway is not: it is asked for many callers."""
    given = settings(address_failures_per_minute=2, trusted_addresses=(HOST,) if trusted else ())
    async with server.listening([service()], given, 0) as port, channel_to(port) as channel:
        stub = Stub(channel)
        stranger = (("authorization", "stranger"),)
        codes = [await code_of(stub.Say(Text(value="a"), metadata=stranger)) for _ in range(3)]
        assert codes[:2] == [grpc.StatusCode.UNAUTHENTICATED] * 2
        last = stub.Say(Text(value="a"), metadata=ADMIN)
        assert await code_of(last) == (grpc.StatusCode.OK if trusted else grpc.StatusCode.RESOURCE_EXHAUSTED)


async def test_connections_of_one_address_are_bounded() -> None:
    """And one that has ended makes room."""
    given, own = settings(address_connections=2), GatewaySettings(ports=(0,))
    async with http_server.listening(create_app((dialect("one", ""),), own), own, given) as [port]:

        async def opened() -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
            reader, writer = await asyncio.open_connection(HOST, port)
            try:
                writer.write(b"GET /own HTTP/1.1\r\nhost: t\r\n\r\n")
                async with asyncio.timeout(PATIENCE_SECONDS):
                    return reader, writer, await reader.read(12)
            except ConnectionError:
                return reader, writer, b""

        kept = [await opened() for _ in range(3)]
        assert [answer for _, _, answer in kept] == [b"HTTP/1.1 204", b"HTTP/1.1 204", b""]
        kept[0][1].close()

        async def room() -> bool:
            _, writer, answer = await opened()
            writer.close()
            return bool(answer)

        await until(room)
        for _, writer, _ in kept:
            writer.close()
