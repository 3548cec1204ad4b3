"""Every route of every dialect, over real ports: who calls comes first, then what is wrong with the request."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx2
import orjson
import pytest

from chassis.client import open_channel
from chassis.inprocess import InProcessChannel
from chassis.server import listening
from chassis.settings import Settings
from gateway.app import create_app
from gateway.assembly import all_dialects
from gateway.server import HttpServer
from gateway.settings import GatewaySettings
from tests.conftest import Servers
from tests.patience import PATIENCE_SECONDS
from tests.signer import Signer
from triglot.stack import open_stack

WRONG = "0123456789abcdef.wrong"
# What anybody may ask.
OPEN = {"health"}
# What Feast's clients know as switched off by the 503 that they get, once it is known who calls.
SWITCHED_OFF = {"monitoring.get", "monitoring.post"}
INSTANCES = "/api/v1/instances"


def bearer(key: str) -> Mapping[str, str]:
    return {"authorization": f"Bearer {key}"}


SHOWN: Mapping[str, Callable[[str], Mapping[str, str]]] = {
    "hopsworks": lambda key: {"x-api-key": key},
    "pai": bearer,
    "feast": bearer,
}


def is_refusal(dialect: str, answer: httpx2.Response) -> bool:
    """Whether it is what the dialect's clients know as a refused credential."""
    if answer.status_code not in (401, 403):
        return False
    if dialect == "hopsworks":
        return answer.status_code == 401 and answer.text.startswith("Unauthorized. Error: the apikey")
    content = orjson.loads(answer.content)
    if dialect == "pai":
        return (answer.status_code, content["Code"]) == (403, "UnauthorizedOperation") and bool(content["RequestId"])
    return (answer.status_code, content) == (
        401,
        {"status_code": 401, "detail": "Invalid or expired access token", "error_type": "HTTPException"},
    )


def routes() -> list[Any]:
    nowhere = InProcessChannel([])
    dialects = all_dialects(registry=nowhere, serving=nowhere, management=nowhere, settings=GatewaySettings())
    return [
        (dialect.name, row.operation, method, re.sub(r"\{[^}]*\}", "x", row.path))
        for dialect in dialects
        for row in dialect.rows
        for method in row.methods
        if row.rpc is not None and row.operation not in OPEN
    ]


@asynccontextmanager
async def deployment(settings: Settings, gateway: GatewaySettings) -> AsyncIterator[httpx2.AsyncClient]:
    """The gateway on a port, the three services on theirs."""
    async with AsyncExitStack() as closing:
        stack = await closing.enter_async_context(open_stack(settings))
        channels = {}
        for name in ("registry", "serving", "management"):
            port = await closing.enter_async_context(listening(getattr(stack, name), settings, 0))
            target = f"{settings.host}:{port}"
            channels[name] = await closing.enter_async_context(open_channel(target, settings))
        app = create_app(all_dialects(**channels, settings=gateway), gateway)
        server = HttpServer(app, gateway, host="127.0.0.1", drain_seconds=1)
        [port] = await server.start()
        closing.push_async_callback(server.stop)
        yield await closing.enter_async_context(httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}"))


@pytest.fixture
async def http(settings: Settings) -> AsyncIterator[httpx2.AsyncClient]:
    async with deployment(settings, GatewaySettings(ports=(0,))) as opened:
        yield opened


@pytest.fixture
async def impatient(settings: Settings) -> AsyncIterator[httpx2.AsyncClient]:
    """A deployment that soon gives up waiting for a body."""
    async with deployment(settings, GatewaySettings(ports=(0,), body_timeout_seconds=0.3)) as opened:
        yield opened


async def test_a_credential_is_asked_for_before_anything_is_told(http: httpx2.AsyncClient, servers: Servers) -> None:
    for dialect, operation, method, path in routes():
        shown = SHOWN[dialect]
        for headers in ({}, shown(WRONG), shown("k\u00e9y"), shown("x" * 8000)):
            raw = {name: value.encode("latin-1") for name, value in headers.items()}
            answer = await http.request(method, path, content=b"{", headers=raw)  # type: ignore[arg-type]
            assert is_refusal(dialect, answer), (method, path, headers, answer.status_code, answer.text)
        known = await http.request(method, path, content=b"{", headers=shown(servers.admin_key))
        good = known.status_code == 503 if operation in SWITCHED_OFF else known.status_code < 500
        assert good, (method, path, known.status_code, known.text)
        assert not is_refusal(dialect, known), (method, path)


async def test_odd_signatures(http: httpx2.AsyncClient, servers: Servers) -> None:
    signer = Signer(*servers.access_key)
    host = {"host": str(http.base_url.netloc, "ascii")}
    good = signer.headers("GET", INSTANCES, {}, b"", **host)
    for authorization in (
        good["authorization"].encode() + b"\xe9",
        b"ACS3-HMAC-SHA256 " + b"x" * 8000,
        b"ACS3-HMAC-SHA256 Credential=a\tb",
    ):
        odd = {**good, "authorization": authorization}
        answer = await http.get(INSTANCES, headers=odd)  # type: ignore[arg-type]
        assert is_refusal("pai", answer), (authorization[:40], answer.text)
    assert (await http.get(INSTANCES, headers=good)).status_code == 200
    query = {"Name": "x" * 9000}
    long = await http.get(INSTANCES, params=query, headers=signer.headers("GET", INSTANCES, query, b"", **host))
    assert (long.status_code, long.json()["Code"]) == (400, "InvalidParameter")
    assert "8192 bytes" in long.json()["Message"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/0.1.0/feature_store", "The body did not arrive in time"),
        ("/api/PaiFeatureStore/2023-06-21/ListInstances", '"Code":"RequestTimeout"'),
        ("/registry/refresh", '"error_type":"HTTPException"'),
    ],
)
async def test_a_body_that_never_comes(impatient: httpx2.AsyncClient, path: str, expected: str) -> None:
    """The connection is not kept, so a client cannot hold it for ever."""
    reader, writer = await asyncio.open_connection("127.0.0.1", impatient.base_url.port)
    writer.write(f"POST {path} HTTP/1.1\r\nHost: t\r\nContent-Length: 10\r\n\r\n".encode())
    async with asyncio.timeout(PATIENCE_SECONDS):
        answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert expected in answer.decode()
