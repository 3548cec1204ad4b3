"""Packed commands over the driver's connections: answers in order, whatever happens to a connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import hiredis
import pytest
import redis.asyncio
from redis import exceptions

from chassis.redis_line import exchange
from tests.conftest import Servers


@pytest.fixture
async def client(servers: Servers) -> AsyncIterator[redis.asyncio.Redis]:
    async with redis.asyncio.Redis.from_url(servers.redis_url, socket_timeout=0.3) as opened:
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


async def test_an_answer_that_comes_too_late_is_nobody_elses(client: redis.asyncio.Redis) -> None:
    with pytest.raises(TimeoutError):
        await exchange(client, packed(b"BLPOP", b"nothing-comes", b"0"), 1)
    assert await exchange(client, packed(b"ECHO", b"a"), 1) == [b"a"]
