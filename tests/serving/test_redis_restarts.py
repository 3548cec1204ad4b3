"""Redis goes and comes back: reads fail at once and cleanly, and the first one after its return is right again."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest

from chassis import errors
from chassis.settings import Settings
from gateway.settings import GatewaySettings
from protos.gen.triglot.serving.v1 import serving_service_pb2 as pb
from protos.gen.triglot.serving.v1.value_pb2 import Value
from tests.conftest import Servers
from tests.patience import PATIENCE_SECONDS, until
from tests.serving.conftest import Client, Stack, hopsworks_client
from triglot.embedded import EmbeddedRedis

# Whoever waits for either of the two fails the test: a deadline that has passed is answered with 503.
DEADLINE_SECONDS = 4.0 * PATIENCE_SECONDS
BODY = {"featureStoreName": "demo", "featureViewName": "v", "featureViewVersion": 1}


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    """A Redis of this test's own, which it may stop."""
    server = EmbeddedRedis(tmp_path / "redis")
    server.start()
    yield server
    server.destroy()


@pytest.fixture
def settings(settings: Settings, own_redis: EmbeddedRedis) -> Settings:
    own = {"redis_url": type(settings.redis_url)(own_redis.url), "redis_timeout_seconds": DEADLINE_SECONDS}
    return settings.model_copy(update=own)


@pytest.fixture
async def stack(open_stack: Callable[..., Any]) -> AsyncIterator[Stack]:
    """No call is refused because the machine is busy."""
    async with open_stack(shed_milliseconds=0) as opened:
        yield opened


@pytest.fixture
async def http(stack: Stack, servers: Servers) -> AsyncIterator[httpx2.AsyncClient]:
    gateway = GatewaySettings(timeout_seconds=DEADLINE_SECONDS)
    async with hopsworks_client(stack.channel, servers.admin_key, gateway) as client:
        yield client


@pytest.fixture
async def group(serving: Client) -> Any:
    group = await serving.group("g", {"id": "bigint", "x": "string"}, ["id"])
    await serving.view("v", [{"group": "g"}], [(0, "x")])
    await serving.write(group, [{"id": number, "x": f"{number}"} for number in range(10)])
    return group


async def rest(http: httpx2.AsyncClient, path: str, entries: Any) -> tuple[int, Any]:
    """What was answered: a status, and features or an error's number."""
    response = await http.post(path, json=BODY | {"entries": entries})
    answer = response.json()
    return response.status_code, answer.get("features", answer.get("code"))


async def right(serving: Client, http: httpx2.AsyncClient) -> None:
    assert await rest(http, "/feature_store", {"id": 1}) == (200, ["1"])
    assert await rest(http, "/batch_feature_store", [{"id": 1}, {"id": 2}]) == (200, [["1"], ["2"]])
    vectors = (await serving.vectors("v", [{"id": Value(int_value=3)}])).vectors
    assert vectors[0].values[0].string_value == "3"
    assert (await http.get("/health")).text == "0"


async def fails(serving: Client, http: httpx2.AsyncClient) -> None:
    """More at once than are sent at a time."""
    singles = [rest(http, "/feature_store", {"id": 1}) for _ in range(20)]
    batches = [rest(http, "/batch_feature_store", [{"id": 1}, {"id": 2}]) for _ in range(20)]
    assert await asyncio.gather(*singles, *batches) == [(500, 14)] * 40
    with pytest.raises(errors.Unavailable):
        await serving.vectors("v", [{"id": Value(int_value=3)}])
    read = pb.ReadRowsRequest(
        feature_store="demo", feature_group="g", version=1, keys=[pb.RowKey(values=[Value(int_value=1)])]
    )
    with pytest.raises(errors.Unavailable):
        await serving.call("ReadRows", read)
    assert (await http.get("/health")).text == "1"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_a_redis_that_restarts(
    *, serving: Client, http: httpx2.AsyncClient, group: Any, own_redis: EmbeddedRedis, how: signal.Signals
) -> None:
    """Twice, so that connections of before and of after a failure are left behind."""
    for _ in range(2):
        # All connections that reads ever take are open.
        await asyncio.gather(*(right(serving, http) for _ in range(10)))
        os.kill(own_redis.pid or 0, how)
        await until(partial(_ended, own_redis))
        await fails(serving, http)
        own_redis.start()
        await right(serving, http)


async def test_a_redis_that_hangs(
    *, open_stack: Callable[..., Any], settings: Settings, servers: Servers, group: Any, own_redis: EmbeddedRedis
) -> None:
    """Nobody waits longer than a round trip to Redis may take."""
    own = settings.model_copy(update={"redis_timeout_seconds": 0.2})
    gateway = GatewaySettings(timeout_seconds=DEADLINE_SECONDS)
    async with (
        open_stack(settings=own, shed_milliseconds=0) as stack,
        hopsworks_client(stack.channel, servers.admin_key, gateway) as http,
    ):
        await _warm(stack.client, http)
        os.kill(own_redis.pid or 0, signal.SIGSTOP)
        try:
            await fails(stack.client, http)
        finally:
            os.kill(own_redis.pid or 0, signal.SIGCONT)
        await _warm(stack.client, http)


async def _ended(server: EmbeddedRedis) -> bool:
    return not server.running


async def _warm(serving: Client, http: httpx2.AsyncClient) -> None:
    """A machine that is busy may take longer than so short a round trip may."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                return await right(serving, http)
            except (AssertionError, errors.Unavailable):
                await asyncio.sleep(0.02)
