"""Packed commands over the driver's connections: answers in order, whatever happens to a connection."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import hiredis
import pytest
import redis.asyncio
from redis import exceptions

from chassis.redis_line import exchange
from tests import certificates
from tests.conftest import Servers
from tests.patience import PATIENCE_SECONDS
from tests.relay import either


@pytest.fixture
async def client(servers: Servers) -> AsyncIterator[redis.asyncio.Redis]:
    async with redis.asyncio.Redis.from_url(servers.redis_url, socket_timeout=PATIENCE_SECONDS) as opened:
        yield opened


def packed(*words: bytes) -> bytes:
    return hiredis.pack_command(words)  # type: ignore[arg-type]


async def test_answers_come_in_order_and_errors_in_their_place(client: redis.asyncio.Redis) -> None:
    asked = packed(b"ECHO", b"a") + packed(b"NO-COMMAND") + packed(b"ECHO", b"b")
    first, error, second = await exchange(client, asked, 3)
    assert (first, second) == (b"a", b"b")
    assert isinstance(error, exceptions.ResponseError)


async def test_callers_at_the_same_time_get_their_own_answers(client: redis.asyncio.Redis) -> None:
    texts = [b"%d" % number * 1000 for number in range(50)]
    answers = await asyncio.gather(*(exchange(client, packed(b"ECHO", text), 1) for text in texts))
    assert answers == [[text] for text in texts]


async def test_connections_that_the_server_closed_are_replaced(client: redis.asyncio.Redis, servers: Servers) -> None:
    await asyncio.gather(*(exchange(client, packed(b"ECHO", b"a"), 1) for _ in range(3)))
    async with redis.asyncio.Redis.from_url(servers.redis_url) as other:
        await other.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    assert await exchange(client, packed(b"ECHO", b"b"), 1) == [b"b"]


async def test_an_answer_that_comes_too_late_is_nobody_elses(servers: Servers) -> None:
    async with redis.asyncio.Redis.from_url(servers.redis_url, socket_timeout=0.3) as client:
        with pytest.raises(TimeoutError):
            await exchange(client, packed(b"BLPOP", b"nothing-comes", b"0"), 1)
        client.connection_pool.connection_kwargs["socket_timeout"] = PATIENCE_SECONDS
        assert await exchange(client, packed(b"ECHO", b"a"), 1) == [b"a"]


async def test_a_server_that_speaks_tls(servers: Servers, tmp_path: Path) -> None:
    """The embedded Redis does not: TLS ends before it, as it does before many a managed one."""
    certificate = certificates.make(tmp_path)
    plain = urlsplit(servers.redis_url)

    async def through(client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        server, to_server = await asyncio.open_connection(plain.hostname, plain.port)
        await either(_carried(client, to_server), _carried(server, to_client))
        to_server.close()
        to_client.close()

    speaking = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    speaking.load_cert_chain(certificate.certificate, certificate.key)
    async with await asyncio.start_server(through, "127.0.0.1", 0, ssl=speaking) as front:
        port = front.sockets[0].getsockname()[1]
        url = f"rediss://{plain.netloc.rpartition('@')[0]}@127.0.0.1:{port}"
        async with redis.asyncio.Redis.from_url(f"{url}?ssl_ca_certs={certificate.certificate}") as trusting:
            text = b"a" * 1_000_000
            assert await exchange(trusting, packed(b"ECHO", text) * 3, 3) == [text] * 3
        async with redis.asyncio.Redis.from_url(url) as wary:
            with pytest.raises(exceptions.ConnectionError):
                await exchange(wary, packed(b"ECHO", b"a"), 1)


async def _carried(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
