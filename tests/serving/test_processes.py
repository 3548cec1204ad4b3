"""Several serving processes, and stores that go away: changes are seen everywhere, reads fail fast and recover."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from chassis.postgres import Database
from chassis.settings import Settings
from protos.gen.triglot.serving.v1 import serving_service_pb2 as pb
from protos.gen.triglot.serving.v1.value_pb2 import Value
from tests.conftest import Servers
from tests.patience import until
from tests.serving.conftest import Client, Stack, hopsworks_client
from triglot.embedded import EmbeddedRedis

Refused = Callable[..., Any]
BODY = {"featureStoreName": "demo", "featureViewName": "v", "featureViewVersion": 1, "entries": {"id": 1}}


async def define(serving: Client) -> Any:
    group = await serving.group("g", {"id": "bigint", "x": "string"}, ["id"])
    await serving.view("v", [{"group": "g"}], [(0, "x")])
    return group


async def value(serving: Client) -> str | None:
    vector = (await serving.vectors("v", [{"id": Value(int_value=1)}])).vectors[0]
    return vector.values[0].string_value if vector.status == 1 else None


@pytest.fixture
async def other(open_stack: Callable[..., Any], stack: Stack) -> AsyncIterator[Client]:
    """A second process on the same stores."""
    async with open_stack() as opened:
        yield opened.client


async def test_other_processes_see_a_flip(serving: Client, other: Client) -> None:
    group = await define(serving)
    await serving.write(group, [{"id": 1, "x": "old"}])
    assert [await value(serving), await value(other)] == ["old", "old"]
    await serving.write(group, [{"id": 1, "x": "new"}])
    assert await value(serving) == "new"

    async def seen() -> bool:
        return await value(other) == "new"

    await until(seen)


async def test_other_processes_see_views_come_and_go(serving: Client, other: Client, refused: Refused) -> None:
    await refused("FEATURE_STORE_NOT_FOUND", value(other))
    group = await define(serving)
    await serving.write(group, [{"id": 1, "x": "a"}])

    async def seen() -> bool:
        try:
            return await value(other) == "a"
        except Exception:
            return False

    await until(seen)
    await serving.call("DeleteFeatureView", pb.DeleteFeatureViewRequest(feature_store="demo", name="v", version=1))
    await refused("FEATURE_VIEW_NOT_FOUND", value(serving))

    async def unseen() -> bool:
        return not await seen()

    await until(unseen)
    columns = {"id": "bigint", "x": "string", "y": "string"}
    await serving.write(await serving.group("h", columns, ["id"]), [{"id": 1, "x": "no", "y": "b"}])
    await serving.view("v", [{"group": "h"}], [(0, "y")])

    async def remade() -> bool:
        return await seen_value(other) == "b"

    async def seen_value(client: Client) -> str | None:
        try:
            return await value(client)
        except Exception:
            return None

    await until(remade)


async def test_a_process_that_was_cut_off_catches_up(serving: Client, other: Client, database: Database) -> None:
    """Notifications that were sent while the connection was lost are made up for."""
    group = await define(serving)
    await serving.write(group, [{"id": 1, "x": "old"}])
    assert await value(other) == "old"
    await database.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'triglot-listener'"
        " AND datname = current_database()"
    )
    await serving.write(group, [{"id": 1, "x": "new"}])

    async def caught_up() -> bool:
        return await value(other) == "new"

    await until(caught_up)


async def test_reads_go_on_without_postgres(
    open_stack: Callable[..., Any], serving: Client, settings: Settings, servers: Servers
) -> None:
    """Cached plans and cached keys need no PostgreSQL."""
    group = await define(serving)
    await serving.write(group, [{"id": 1, "x": "a"}])
    name = settings.postgres_url.get_secret_value().rsplit("/", 1)[1]
    admin = await asyncpg.connect(servers.postgres_url)
    # It begins to listen when all is said, so no late notification makes it forget; nor does its key grow old.
    async with open_stack(settings=settings.model_copy(update={"auth_cache_seconds": 3600.0})) as late:
        assert await value(late.client) == "a"
        try:
            await admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
            # An autovacuum is not ours to send away.
            await admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = $1 AND backend_type = 'client backend'",
                name,
            )
            # The listener has tried to come back by then.
            for _ in range(20):
                assert await value(late.client) == "a"
                await asyncio.sleep(0.05)
        finally:
            await admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
            await admin.close()


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    """A Redis of this test's own, which it may stop."""
    server = EmbeddedRedis(tmp_path / "redis")
    yield server
    server.destroy()


async def test_without_redis_reads_fail_fast_and_recover(
    open_stack: Callable[..., Any], settings: Settings, own_redis: EmbeddedRedis, servers: Servers
) -> None:
    url = own_redis.start()
    own = settings.model_copy(update={"redis_url": type(settings.redis_url)(url)})
    async with open_stack(settings=own) as stack, hopsworks_client(stack.channel, servers.admin_key) as http:
        group = await define(stack.client)
        await stack.client.write(group, [{"id": 1, "x": "a"}])
        assert (await http.post("/feature_store", json=BODY)).json()["features"] == ["a"]
        own_redis.stop()
        for path, entries in (("/feature_store", {"id": 1}), ("/batch_feature_store", [{"id": 1}])):
            response = await http.post(path, json=BODY | {"entries": entries})
            assert (response.status_code, response.json()["code"]) == (500, 14)
            assert response.json()["reason"] == "Reading from db failed."
        assert (await http.get("/health")).text == "1"
        own_redis.start()

        async def back() -> bool:
            return (await http.post("/feature_store", json=BODY)).status_code == 200

        await until(back)
        assert (await http.get("/health")).text == "0"
