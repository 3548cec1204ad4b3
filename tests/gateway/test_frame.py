"""What the gateway does for every dialect: bounded bodies, request ids, refusals in the right words, deadlines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import httpx2
import pytest

from chassis import errors
from chassis.inprocess import InProcessChannel
from gateway.app import create_app
from gateway.dialect import Dialect, Row
from gateway.exchange import Answer, Exchange, json_answer
from gateway.server import HttpServer
from gateway.settings import GatewaySettings
from tests.chassis.echo import Stub, Text, service
from tests.patience import PATIENCE_SECONDS

SETTINGS = GatewaySettings(max_body_bytes=1024, ports=(0, 0))


async def spelt(letters: AsyncIterator[Text]) -> AsyncGenerator[bytes]:
    async for letter in letters:
        yield letter.value.encode()


def dialect(name: str, prefix: str) -> Dialect:
    stub = Stub(InProcessChannel([service()]))

    def render(error: errors.TriglotError, exchange: Exchange) -> Answer:
        return json_answer({"dialect": name, "reason": error.reason}, error.code.value[0] + 400)

    def broken(exchange: Exchange) -> Text:
        raise ZeroDivisionError("secret detail")

    return Dialect(
        name,
        rows=(
            Row(
                ("POST",),
                f"{prefix}/say/{{word}}",
                "Say",
                stub.Say,
                lambda exchange: Text(value=exchange.path_params["word"] + exchange.body.decode()),
                lambda exchange, reply: json_answer({"said": reply.value, "query": exchange.query}),
            ),
            Row(
                ("GET",),
                f"{prefix}/spell/{{word}}",
                "Spell",
                stub.Spell,
                lambda exchange: Text(value=exchange.path_params["word"]),
                lambda exchange, letters: Answer(rest=spelt(letters)),
                streams=True,
            ),
            Row(("GET",), f"{prefix}/broken", "Broken", stub.Say, broken, lambda exchange, reply: Answer()),
            Row(("GET",), f"{prefix}/own", "Own", None, lambda exchange: None, lambda exchange, _: Answer(204)),
        ),
        credential=lambda exchange: (("authorization", exchange.headers.get("x-who", "admin")),),
        render_error=render,
        owns=lambda path: path.startswith(prefix),
    )


def client_of(settings: GatewaySettings) -> httpx2.AsyncClient:
    app: Any = create_app((dialect("one", "/one"), dialect("two", "")), settings)
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://t")


@pytest.fixture
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    async with client_of(SETTINGS) as client:
        yield client


async def test_a_row_calls_its_rpc(http: httpx2.AsyncClient) -> None:
    answer = await http.post("/one/say/hello?a=1&b=&a=%C3%A9", content=b" you")
    assert answer.json() == {"said": "hello you", "query": {"a": ["1", "é"], "b": [""]}}


async def test_request_ids_are_kept_or_made(http: httpx2.AsyncClient) -> None:
    shown = await http.post("/one/say/who", content=b"", headers={"X-Request-Id": "mine"})
    assert shown.json()["said"] == "admin mine"
    assert shown.headers["x-request-id"] == "mine"
    made = await http.post("/one/say/who", headers={"X-Request-Id": "x" * 200})
    assert len(made.headers["x-request-id"]) == 36


@pytest.mark.parametrize(
    ("method", "path", "content", "expected"),
    [
        ("POST", "/one/say/x", b"x" * 1025, ("one", "BODY_TOO_LARGE")),
        ("POST", "/one/say/missing", b" y", ("one", "FEATURE_VIEW_NOT_FOUND")),
        ("POST", "/one/say/break", b"", ("one", "INTERNAL")),
        ("GET", "/one/broken", b"", ("one", "INTERNAL")),
        ("GET", "/one/say/x", b"", ("one", "METHOD_NOT_ALLOWED")),
        ("GET", "/one/nothing", b"", ("one", "OPERATION_NOT_FOUND")),
        ("GET", "/nothing", b"", ("two", "OPERATION_NOT_FOUND")),
    ],
)
async def test_refusals(
    http: httpx2.AsyncClient, method: str, path: str, content: bytes, expected: tuple[str, str]
) -> None:
    answer = await http.request(method, path, content=content)
    assert (answer.json()["dialect"], answer.json()["reason"]) == expected
    assert "secret" not in answer.text


async def test_a_call_that_takes_too_long() -> None:
    async with client_of(SETTINGS.model_copy(update={"timeout_seconds": 0.2})) as http:
        answer = await http.post("/one/say/wait", content=b" 60")
    assert (answer.json()["dialect"], answer.json()["reason"]) == ("one", "DEADLINE_EXCEEDED")


async def test_a_body_without_a_length_is_bounded_too(http: httpx2.AsyncClient) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 100

    answer = await http.post("/one/say/x", content=endless())
    assert answer.json()["reason"] == "BODY_TOO_LARGE"


async def test_a_row_without_rpc(http: httpx2.AsyncClient) -> None:
    assert (await http.get("/one/own")).status_code == 204


async def test_several_ports_and_keep_alive() -> None:
    server = HttpServer(create_app((dialect("one", ""),), SETTINGS), SETTINGS, host="127.0.0.1", drain_seconds=1)
    ports = await server.start()
    assert len(set(ports)) == 2
    async with httpx2.AsyncClient() as client:
        for port in ports:
            for body, said in ((b"", "a"), (b"x" * 5000, None), (b"", "a")):
                answer = await client.post(f"http://127.0.0.1:{port}/say/a", content=body)
                assert answer.json().get("said") == said
    await asyncio.wait_for(server.stop(), PATIENCE_SECONDS)


async def test_an_answer_that_comes_bit_by_bit() -> None:
    """What fails before the first bit is refused in the dialect's words; after it the connection breaks off."""
    settings = SETTINGS.model_copy(update={"timeout_seconds": 0.5})
    server = HttpServer(create_app((dialect("one", ""),), settings), settings, host="127.0.0.1", drain_seconds=1)
    port, _ = await server.start()
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        whole = await client.get("/spell/hello")
        assert (whole.status_code, whole.text) == (200, "hello")
        assert "content-length" not in whole.headers
        refused = await client.get("/spell/hello", headers={"x-who": "guest"})
        assert (refused.status_code, refused.json()["reason"]) == (407, "ACTION_NOT_ALLOWED")
        first = await client.get("/spell/%3F")
        assert first.json()["reason"] == "FEATURE_VIEW_NOT_FOUND"
        for breaks_off in ("/spell/he%3F", "/spell/he."):
            with pytest.raises(httpx2.RemoteProtocolError):
                await client.get(breaks_off)
        assert (await client.get("/spell/hello")).text == "hello"
    await asyncio.wait_for(server.stop(), PATIENCE_SECONDS)
