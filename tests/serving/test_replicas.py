"""Loads that wait for the replicas of Redis: what they acknowledge outlives a primary."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from chassis import errors
from chassis.settings import Settings
from protos.gen.triglot.serving.v1.value_pb2 import Value
from tests.cluster import RedisCluster
from tests.patience import PATIENCE_SECONDS, until
from tests.serving.conftest import MERGE, OVERWRITE, Client

IDS = [str(number) for number in range(200)]


@pytest.fixture
def waiting(open_stack: Callable[..., Any], settings: Settings, cluster: RedisCluster) -> Callable[..., Any]:
    """Opens a serving process on the cluster that waits for a replica, for so many seconds; its client."""

    @asynccontextmanager
    async def opened(seconds: float = PATIENCE_SECONDS) -> AsyncIterator[Client]:
        own = settings.model_copy(update={"redis_url": type(settings.redis_url)(cluster.url), "redis_cluster": True})
        async with open_stack(settings=own, replicas=1, replicas_seconds=seconds) as stack:
            yield stack.client

    return opened


async def define(client: Client) -> Any:
    """A view of one group; the group."""
    group = await client.group("g", {"id": "string", "x": "string"}, ["id"])
    await client.view("v", [{"group": "g"}], [(0, "x")])
    return group


def rows(x: str) -> list[dict[str, str]]:
    return [{"id": each, "x": x} for each in IDS]


async def read(client: Client) -> list[str]:
    """What readers see of the rows."""
    found = await client.vectors("v", [{"id": Value(string_value=each)} for each in IDS])
    return [vector.values[0].string_value for vector in found.vectors]


@pytest.mark.parametrize("mode", [OVERWRITE, MERGE])
async def test_a_load_that_no_replica_has_is_none(
    waiting: Callable[..., Any], cluster: RedisCluster, mode: Any
) -> None:
    heir = cluster.replica_of(cluster.primaries()[0])
    async with waiting() as client, waiting(seconds=0.5) as impatient:
        group = await define(client)
        await client.write(group, rows("old"))
        cluster.freeze(heir)
        with pytest.raises(errors.Unavailable, match="0 of 1 replicas have the rows"):
            await impatient.write(group, rows("new"), mode)
        cluster.thaw(heir)
        if mode is OVERWRITE:
            assert await read(client) == ["old"] * len(IDS)


@pytest.mark.parametrize("mode", [OVERWRITE, MERGE])
async def test_what_is_acknowledged_is_on_the_replicas(
    waiting: Callable[..., Any], cluster: RedisCluster, mode: Any
) -> None:
    async with waiting() as client:
        await client.write(await define(client), rows("new"), mode)
        replicas = [cluster.replica_of(port) for port in cluster.primaries()]
        held = {key.rpartition(b":")[2].decode() for port in replicas for key in cluster.keys(port)}
    assert held >= set(IDS)


async def test_a_primary_dies_right_after_a_load(waiting: Callable[..., Any], cluster: RedisCluster) -> None:
    for port in cluster.ports:
        cluster.configure(port, cluster_node_timeout="1000")
    async with waiting() as client:
        await client.write(await define(client), rows("new"))
        cluster.kill(cluster.primaries()[0])
        await until(lambda: asyncio.to_thread(cluster.agreed))

        async def all_there() -> bool:
            try:
                return await read(client) == ["new"] * len(IDS)
            except errors.TriglotError:
                return False

        await until(all_there)


async def test_a_server_without_replicas(open_stack: Callable[..., Any]) -> None:
    async with open_stack(replicas=1, replicas_seconds=0.1) as stack:
        group = await stack.client.group("g", {"id": "bigint"}, ["id"])
        with pytest.raises(errors.Unavailable, match="0 of 1 replicas"):
            await stack.client.write(group, [{"id": 1}])
