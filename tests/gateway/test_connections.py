"""What strangers do to an HTTP port: bytes at random, heads without an end, connections that say nothing."""

from __future__ import annotations

import asyncio
import random
import resource
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from chassis.errors import WrongSetting
from chassis.settings import Settings
from gateway.app import create_app
from gateway.server import HttpServer, listening
from gateway.settings import GatewaySettings
from tests.certificates import make
from tests.gateway.test_frame import dialect
from tests.patience import PATIENCE_SECONDS, until

SETTINGS = GatewaySettings(ports=(0,), max_body_bytes=1024)
GOOD = b"POST /say/a HTTP/1.1\r\nhost: t\r\ncontent-length: 0\r\n\r\n"


@asynccontextmanager
async def serving(settings: GatewaySettings = SETTINGS) -> AsyncIterator[int]:
    """The port of a server that is still well when the block ends, and has lost no connection."""
    server = HttpServer(create_app((dialect("one", ""),), settings), settings, host="127.0.0.1", drain_seconds=1)
    [port] = await server.start()
    try:
        yield port
        assert (await exchange(port, GOOD)).startswith(b"HTTP/1.1 200 ")

        async def alone() -> bool:
            return not server.connections

        await until(alone)
    finally:
        await asyncio.wait_for(server.stop(), PATIENCE_SECONDS)


async def exchange(port: int, sent: bytes, *, end: bool = True) -> bytes:
    """All that comes back for these bytes. `end`: nothing follows them."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(sent)
        if end:
            writer.write_eof()
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await reader.read()
    except ConnectionResetError:  # it was closed before all was read
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nhost: t\r\n\r\n",
        b"GET /%ff%fe%00 HTTP/1.1\r\nhost: t\r\n\r\n",
        b"GET //evil/..%2f HTTP/1.1\r\nhost: t\r\n\r\n",
        b"GET http:// HTTP/1.1\r\nhost: t\r\n\r\n",
        b"GET * HTTP/1.1\r\nhost: t\r\n\r\n",
        b"CONNECT t:80 HTTP/1.1\r\nhost: t\r\n\r\n",
        b"GET /say/a HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /say/a HTTP/1.1\r\nx-\x00: y\r\n\r\n",
        b"POST /say/a HTTP/1.1\r\nhost: t\r\ncontent-length: -1\r\n\r\n",
        b"POST /say/a HTTP/1.1\r\nhost: t\r\ncontent-length: 1e9\r\n\r\n",
        b"POST /say/a HTTP/1.1\r\nhost: t\r\ncontent-length: 99999999999999999999\r\n\r\n",
        b"POST /say/a HTTP/1.1\r\nhost: t\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcdef",
        b"POST /say/a HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"POST /say/a HTTP/1.1\r\nhost: t\r\ntransfer-encoding: gzip\r\n\r\nabc",
        b"POST /say/a HTTP/1.1\r\nhost: t\r\ncontent-length: 2000\r\n\r\n" + b"x" * 2000,
        b"POST /say/\xc3\xa9 HTTP/1.1\r\nhost: t\r\ncontent-length: 2\r\n\r\n\xff\xfe",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=range(19),
)
async def test_odd_heads(head: bytes) -> None:
    async with serving() as port:
        answer = await exchange(port, head)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4"), answer


async def test_random_bytes() -> None:
    """Pure noise, and good requests in which some bytes are others."""
    chance = random.Random(4)
    async with serving() as port:
        for round_ in range(300):
            sent = bytearray(GOOD if round_ % 2 else chance.randbytes(chance.randrange(1, 400)))
            for _ in range(chance.randrange(1, 4)):
                sent[chance.randrange(len(sent))] = chance.randrange(256)
            answer = await exchange(port, bytes(sent))
            assert answer == b"" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 200 ")), (sent, answer)


@pytest.mark.parametrize(
    "begins", [b"GET /", b"GET / HTTP/1.1\r\nx: ", b"GET / HTTP/1.1\r\n"], ids=["path", "value", "many"]
)
async def test_a_head_without_an_end(begins: bytes) -> None:
    line = b"x: y\r\n" * 1000 if begins.endswith(b"\n") else b"x" * 6000
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(begins)
        with pytest.raises((ConnectionError, TimeoutError)):
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not reader.at_eof():
                    writer.write(line)
                    await writer.drain()
                    await asyncio.sleep(0)
                    if reader._buffer:  # type: ignore[attr-defined]
                        assert (await reader.read()).startswith(b"HTTP/1.1 431 ")
                        raise ConnectionError
        writer.close()


@pytest.mark.slow
async def test_half_open_connections() -> None:
    """As many as may be opened here: they are told to go, and others are answered meanwhile."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(10_000, (soft - 500) // 2)  # both ends are ours
    settings = SETTINGS.model_copy(update={"body_timeout_seconds": 2.0, "max_connections": 20_000})
    before = open_files()
    async with serving(settings) as port:
        opened = []
        for number in range(count):
            opened.append(socket.create_connection(("127.0.0.1", port)))
            opened[-1].setblocking(False)
            opened[-1].send((b"POST /say/a HTTP/1.1\r\nhos", b"P")[number % 2])
            if number % 500 == 0:
                assert (await exchange(port, GOOD)).startswith(b"HTTP/1.1 200 ")
        # One of them has had an answer, and begins to ask again.
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(2 * PATIENCE_SECONDS):
            writer.write(GOOD)
            assert (await reader.readuntil(b"}}")).startswith(b"HTTP/1.1 200 ")
            writer.write(b"POST")
            assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
            writer.close()
            for each in opened:
                answer = await asyncio.get_running_loop().sock_recv(each, 100)
                assert answer.startswith(b"HTTP/1.1 408 ")
                each.close()
    assert open_files() <= before + 5


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def test_certificates_of_clients(tmp_path: Path) -> None:
    """Who shows none that the authority vouches for is not heard."""
    made = make(tmp_path)
    (tmp_path / "other").mkdir()
    other = make(tmp_path / "other")
    own = GatewaySettings(ports=(0,), client_authority=str(made.certificate))
    settings = Settings(host="127.0.0.1", tls_certificate=str(made.certificate), tls_key=str(made.key))
    app = create_app((dialect("one", ""),), own)
    async with listening(app, own, settings) as [port]:

        async def ask(shown: tuple[str, str] | None) -> int:
            trust = made.trust()
            if shown:
                trust.load_cert_chain(*shown)
            async with httpx2.AsyncClient(verify=trust) as client:
                return (await client.get(f"https://127.0.0.1:{port}/own")).status_code

        assert await ask((str(made.certificate), str(made.key))) == 204
        for refused in (None, (str(other.certificate), str(other.key))):
            with pytest.raises((httpx2.TransportError, ssl.SSLError)):
                await ask(refused)
    with pytest.raises(WrongSetting, match="TRIGLOT_GATEWAY_CLIENT_AUTHORITY works with TLS only"):
        async with listening(app, own, Settings(host="127.0.0.1")):
            pass


async def test_who_keeps_a_connection_is_asked_to_leave_before_it_is_closed() -> None:
    """A request that is on its way while the server begins to stop is answered, and its connection ends with that."""
    app = create_app((dialect("one", ""),), SETTINGS)
    server = HttpServer(app, SETTINGS, host="127.0.0.1", drain_seconds=4 * PATIENCE_SECONDS)
    [port] = await server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(GOOD)
    assert b"connection: close" not in await reader.readuntil(b"}")
    stopping = asyncio.create_task(server.stop())

    async def asked() -> bool:
        return server.leaving

    await until(asked)
    assert not reader.at_eof()
    # Who is told of this server late finds it, too.
    assert b"connection: close" in await exchange(port, GOOD, end=False)
    writer.write(GOOD)
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert b"connection: close" in await reader.read()
        await stopping
    writer.close()
