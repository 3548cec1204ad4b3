"""Rows when Redis is not there, and when all want it at once."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import hiredis
import pyarrow as pa
import pytest
import redis.asyncio
from pydantic import SecretStr
from structlog.testing import capture_logs

import chassis.redis
from chassis import errors, telemetry
from chassis.redis import open_redis
from chassis.settings import Settings
from services.serving import rows as rows_module
from services.serving.rows import MOST_CONNECTIONS, Batch, Rows
from tests.conftest import Servers


@pytest.fixture
def nobody() -> Iterator[int]:
    """A port that is bound, but nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.fixture
def logs() -> Iterator[list[dict[str, object]]]:
    """What is logged, with nothing said before that need not be said again."""
    telemetry._complained.clear()
    with capture_logs() as captured:
        yield captured  # type: ignore[misc]


async def test_writing_without_redis_is_unavailable_and_can_be_tried_again(nobody: int) -> None:
    """Not a group of errors: the worker tries again what is Unavailable, and gives up on what is Internal."""
    async with open_redis(Settings(redis_url=SecretStr(f"redis://127.0.0.1:{nobody}"))) as client:
        with pytest.raises(errors.Unavailable):
            await Rows(client, "test", 100).write(Batch(pa.array(["1", "2"]), [pa.array(["a", "b"])]), 0)


async def test_why_redis_does_not_answer_is_logged_once(nobody: int, logs: list[dict[str, object]]) -> None:
    async with open_redis(Settings(redis_url=SecretStr(f"redis://:secret@127.0.0.1:{nobody}"))) as client:
        rows = Rows(client, "test", 100)
        for _ in range(3):
            with pytest.raises(errors.Unavailable):
                await rows.read([b"1"])
    assert [(line["log_level"], line["kind"]) for line in logs] == [("warning", "ConnectionError")]
    assert str(nobody) in str(logs[0]["error"])
    assert "secret" not in str(logs)


async def test_neither_passwords_nor_rows_are_logged(servers: Servers, logs: list[dict[str, object]]) -> None:
    address = urlsplit(servers.redis_url)
    async with redis.asyncio.Redis(port=address.port or 0, password="wrong-secret") as client:
        with pytest.raises(errors.Unavailable):
            await Rows(client, "test", 100).read([b"1"])
    async with redis.asyncio.Redis.from_url(servers.redis_url) as client:
        await client.lpush("of-another-type", "x")  # type: ignore[misc]
        with pytest.raises(errors.Unavailable), chassis.redis.translated():
            await client.pipeline(transaction=False).execute_command("GET", "of-another-type").execute()
        telemetry._complained.clear()
        with pytest.raises(errors.Unavailable), chassis.redis.translated():
            await client.execute_command("NO-COMMAND", "a-row")
        await client.delete("of-another-type")
    assert len(logs) == 3
    assert not any(text in str(logs) for text in ("wrong-secret", address.password, "of-another-type", "a-row"))


async def use_at_once(rows: Rows, callers: int) -> None:
    """Everything that is done with rows, by many callers."""

    async def use(number: int) -> None:
        row_keys = [b"test:1:%d" % each for each in range(number, number + 50)]
        parts = [pa.array([str(number)] * 50), pa.array(["x"] * 50)]
        batch = Batch(pa.array([key.decode() for key in row_keys]), parts)
        await asyncio.gather(rows.read(row_keys), rows.write_newer(batch, 0), rows.write(batch, 1000), rows.ping())

    await asyncio.gather(rows.remove(2), *map(use, range(callers)))


async def test_any_number_of_callers_is_content_with_few_connections(servers: Servers) -> None:
    """The driver's pool does not wait: a connection too many would be an error."""
    async with redis.asyncio.Redis.from_url(servers.redis_url, max_connections=MOST_CONNECTIONS) as client:
        await use_at_once(Rows(client, "test", 100), 200)
        await client.flushdb()


async def test_rows_are_kept_byte_by_byte(servers: Servers) -> None:
    """Of any length, in every way of writing, with what the protocol itself is made of in them."""
    odd = ["", "x" * 100_000, "\r\n$3\r\n", "é☃", "*", None]
    keys, read = [f"test:1:{each or number}" for number, each in enumerate(odd)], [None, *odd]
    whole = pa.table({"key": ["cut off", *keys], "age": [""] * 7, "text": read}).slice(1)
    columns = [whole[name].combine_chunks() for name in whole.column_names]
    batch = Batch(columns[0], columns[1:])
    values = [b"\n" + ("null" if each is None else each).encode() for each in odd]
    async with redis.asyncio.Redis.from_url(servers.redis_url, max_connections=MOST_CONNECTIONS) as client:
        rows = Rows(client, "test", 100)
        for write, time_to_live_ms in ((rows.write, 0), (rows.write, 60_000), (rows.write_newer, 0)):
            await write(batch, time_to_live_ms)
            assert await rows.read([key.encode() for key in keys]) == values
            assert (await client.pttl(keys[0]) > 0) == bool(time_to_live_ms)
            await client.flushdb()
        await rows.write(Batch(columns[0].slice(0, 0), [columns[1].slice(0, 0)]), 0)
        assert await client.dbsize() == 0


@pytest.mark.parametrize("lengths", [[1], [0, 5, 1023], [3, 1024], [70_000, 2]])
def test_reads_are_packed_as_the_driver_packs_them(lengths: list[int]) -> None:
    keys = [b"k" * length for length in lengths]
    assert rows_module._packed_read(keys) == hiredis.pack_command((b"MGET", *keys))  # type: ignore[arg-type]
