"""The same service on a real Redis Cluster of three primaries and three replicas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
import pytest

from chassis import errors
from chassis.redis import open_redis
from chassis.settings import Settings
from protos.gen.triglot.serving.v1 import serving_service_pb2 as pb
from protos.gen.triglot.serving.v1.value_pb2 import Value
from services.serving.rows import Rows
from tests.cluster import PASSWORD, RedisCluster
from tests.patience import until
from tests.serving.conftest import MERGE, Client
from tests.serving.test_rows import use_at_once


@pytest.fixture
def settings(settings: Settings, cluster: RedisCluster) -> Settings:
    """Settings of a process whose rows lie in the cluster."""
    return settings.model_copy(update={"redis_url": type(settings.redis_url)(cluster.url), "redis_cluster": True})


async def test_rows_of_all_nodes(open_stack: Callable[..., Any], cluster: RedisCluster) -> None:
    async with open_stack(sweep_seconds=0.1) as stack:
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
            return sum(cluster[port].dbsize() for port in cluster.primaries()) == 1_000

        await until(swept)
        assert all(cluster[port].dbsize() for port in cluster.primaries())


async def test_of_a_key_that_comes_twice_the_last_row_stays(open_stack: Callable[..., Any]) -> None:
    async with open_stack() as stack:
        serving: Client = stack.client
        group = await serving.group("g", {"id": "bigint", "x": "string"}, ["id"])
        await serving.write(group, [{"id": number % 50, "x": str(number)} for number in range(500)])
        keys = [pb.RowKey(values=[Value(int_value=number)]) for number in range(50)]
        read = pb.ReadRowsRequest(feature_store="demo", feature_group="g", version=1, keys=keys)
        rows = (await serving.call("ReadRows", read)).rows
        assert [row.values[1].string_value for row in rows] == [str(number) for number in range(450, 500)]


async def test_a_wrong_password_keeps_the_process_from_starting(settings: Settings, cluster: RedisCluster) -> None:
    url = cluster.url.replace(PASSWORD, "wrong")
    with pytest.raises(errors.CannotStart, match="TRIGLOT_REDIS_URL"):
        async with open_redis(settings.model_copy(update={"redis_url": type(settings.redis_url)(url)})):
            pass


async def test_many_callers_at_once(settings: Settings) -> None:
    """More than a node's pool has connections; see test_rows."""
    async with open_redis(settings) as client:
        await use_at_once(Rows(client, "test", 100), 200)


async def test_deleting_and_counting(open_stack: Callable[..., Any]) -> None:
    async with open_stack(count_seconds=0) as stack:
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
