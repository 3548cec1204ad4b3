"""The same service on a real Redis Cluster of three primaries."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import redis

from chassis.redis import open_redis
from chassis.settings import Settings
from protos.gen.triglot.serving.v1 import serving_service_pb2 as pb
from protos.gen.triglot.serving.v1.value_pb2 import Value
from services.serving.rows import Rows
from tests.patience import eventually, until
from tests.ports import reserved_ports
from tests.serving.conftest import MERGE, Client
from tests.serving.test_rows import use_at_once
from triglot.embedded import binaries

SLOTS = 16_384


@pytest.fixture(scope="module")
def ports() -> Iterator[list[int]]:
    with reserved_ports(3, also=10_000) as reserved:  # there the nodes talk to each other
        yield reserved


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, ports: list[int]) -> Iterator[str]:
    """Its URL. No tool forms it but a few commands."""
    program = str(binaries.find_redis().path)
    nodes = []
    try:
        for port in ports:
            folder: Path = tmp_path_factory.mktemp(f"node{port}")
            command = [program, "--port", str(port), "--cluster-enabled", "yes", "--dir", str(folder), "--save", ""]
            nodes.append(subprocess.Popen([*command, "--bind", "127.0.0.1"], stdout=subprocess.DEVNULL))
        clients = [redis.Redis(port=port) for port in ports]
        for number, client in enumerate(clients):
            wait_for(client.ping)
            client.execute_command("CLUSTER", "ADDSLOTS", *range(number * SLOTS // 3, (number + 1) * SLOTS // 3))
            client.execute_command("CLUSTER", "MEET", "127.0.0.1", ports[0])
        for client in clients:
            wait_for(lambda: b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO"))  # noqa: B023
            client.close()
        yield f"redis://127.0.0.1:{ports[0]}"
    finally:
        for node in nodes:
            node.kill()
            node.wait()


def wait_for(ready: Callable[[], Any]) -> None:
    def answered() -> bool:
        try:
            return bool(ready())
        except redis.RedisError:
            return False

    assert eventually(answered)


async def test_rows_of_all_nodes(
    open_stack: Callable[..., Any], settings: Settings, cluster: str, ports: list[int]
) -> None:
    url = type(settings.redis_url)(cluster)
    own = settings.model_copy(update={"redis_url": url, "redis_cluster": True})
    async with open_stack(settings=own, sweep_seconds=0.1) as stack:
        serving: Client = stack.client
        group = await serving.group("g", {"id": "bigint", "x": "string"}, ["id"])
        timed = await serving.group("t", {"id": "bigint", "at": "bigint"}, ["id"], event_time="at")
        await serving.write(group, [{"id": number, "x": "old"} for number in range(500)])
        await serving.write(group, [{"id": number, "x": str(number)} for number in range(500)])
        await serving.write(timed, [{"id": number, "at": 5} for number in range(500)], MERGE)
        await serving.write(timed, [{"id": number, "at": number % 10} for number in range(500)], MERGE)
        joins = [{"group": "g"}, {"group": "t", "on": [("id", "id")]}]
        await serving.view("v", joins, [(0, "x"), (1, "at")])
        entries = orjson.dumps([{"id": number} for number in range(600)])
        request = pb.RenderFeatureVectorsRequest(
            feature_store="demo", feature_view="v", version=1, entries=entries, batch=True
        )
        vectors = [orjson.loads(each) for each in (await serving.call("RenderFeatureVectors", request)).vectors]
        assert vectors[:500] == [[str(number), max(5, number % 10)] for number in range(500)]
        assert vectors[500:] == [[None, None]] * 100
        keys = [pb.RowKey(values=[Value(int_value=number)]) for number in (0, 499, 500)]
        read = pb.ReadRowsRequest(feature_store="demo", feature_group="g", version=1, keys=keys)
        assert [row.found for row in (await serving.call("ReadRows", read)).rows] == [True, True, False]

        # The replaced rows go from all nodes.
        async def swept() -> bool:
            return sum(stored(port) for port in ports) == 1_000

        await until(swept)
        assert all(stored(port) for port in ports)


def stored(port: int) -> int:
    with redis.Redis(port=port) as client:
        return int(client.dbsize())


async def test_many_callers_at_once(settings: Settings, cluster: str) -> None:
    """More than a node's pool has connections; see test_rows."""
    own = settings.model_copy(update={"redis_url": type(settings.redis_url)(cluster), "redis_cluster": True})
    async with open_redis(own) as client:
        await use_at_once(Rows(client, "test", 100), 200)


async def test_deleting_and_counting(open_stack: Callable[..., Any], settings: Settings, cluster: str) -> None:
    own = settings.model_copy(update={"redis_url": type(settings.redis_url)(cluster), "redis_cluster": True})
    async with open_stack(settings=own, count_seconds=0) as stack:
        group = await stack.client.group("counted", {"id": "bigint"}, ["id"])
        await stack.client.write(group, [{"id": number} for number in range(500)])
        named = {"feature_store": "demo", "version": 1}
        keys = [pb.RowKey(values=[Value(int_value=number)]) for number in range(490, 510)]
        delete = pb.DeleteRowsRequest(**named, feature_group="counted", keys=keys)
        assert (await stack.client.call("DeleteRows", delete)).rows_deleted == 10
        ask = pb.GetFeatureGroupStatisticsRequest(**named, name="counted")
        answer = await stack.client.call("GetFeatureGroupStatistics", ask)
        assert (answer.rows, answer.estimated) == (490, False)
        assert answer.bytes > 490 * 10
