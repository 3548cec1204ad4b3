"""Serving processes that hear nothing of what others change, or do not reach PostgreSQL, go on with what is right."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import redis

from chassis import errors
from chassis.postgres import Database
from chassis.settings import Settings
from protos.gen.triglot.serving.v1 import serving_service_pb2 as pb
from protos.gen.triglot.serving.v1.value_pb2 import Value
from services.serving import definition_cache
from tests.conftest import Servers
from tests.patience import until
from tests.relay import Relay, open_relay
from tests.serving.conftest import Client


async def define(serving: Client) -> Any:
    group = await serving.group("g", {"id": "bigint", "x": "string"}, ["id"])
    await serving.view("v", [{"group": "g"}], [(0, "x")])
    return group


async def value(serving: Client) -> str | None:
    vector = (await serving.vectors("v", [{"id": Value(int_value=1)}])).vectors[0]
    return vector.values[0].string_value if vector.status == 1 else None


@pytest.fixture
async def relay(settings: Settings) -> AsyncIterator[Relay]:
    """Another way to this test's database."""
    async with open_relay(settings.postgres_url.get_secret_value()) as opened:
        yield opened


def through(relay: Relay, settings: Settings) -> Settings:
    return settings.model_copy(update={"postgres_url": type(settings.postgres_url)(relay.url)})


async def overwritten(serving: Client, group: Any, store: redis.Redis, x: str) -> None:
    """Replace the only row, and see the old one removed from Redis."""
    await serving.write(group, [{"id": 1, "x": x}])

    async def removed() -> bool:
        return bool(store.dbsize() == 1)

    await until(removed)


async def comes_to_read(client: Client, x: str) -> None:
    async def read() -> bool:
        return await value(client) == x

    await until(read)


@pytest.fixture
def store(servers: Servers) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(servers.redis_url) as client:
        yield client


async def test_a_process_behind_a_pooler_that_swallows_notifications_follows(
    open_stack: Callable[..., Any], settings: Settings, relay: Relay, store: redis.Redis
) -> None:
    """Its LISTEN succeeds and nothing ever comes: it must not go on reading rows that were removed."""
    relay.deaf = True
    own = through(relay, settings)
    async with open_stack(sweep_seconds=0.05) as stack, open_stack(settings=own, sweep_seconds=3600.0) as deaf:
        group = await define(stack.client)
        await overwritten(stack.client, group, store, "old")
        assert await value(deaf.client) == "old"
        await overwritten(stack.client, group, store, "new")
        await comes_to_read(deaf.client, "new")
        await stack.client.call("DeleteFeatureView", pb.DeleteFeatureViewRequest(
            feature_store="demo", name="v", version=1
        ))  # fmt: skip
        with pytest.raises(errors.NotFound):
            await comes_to_read(deaf.client, "nothing")


async def test_a_process_whose_listening_connection_does_not_come_back_follows(
    open_stack: Callable[..., Any], settings: Settings, relay: Relay, store: redis.Redis, database: Database
) -> None:
    """Its pool still works."""
    own = through(relay, settings)
    async with open_stack(settings=own, sweep_seconds=3600.0) as cut:
        group = await define(cut.client)
        await overwritten(cut.client, group, store, "old")
        assert await value(cut.client) == "old"
        relay.closed = True
        await database.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'triglot-listener'"
            " AND datname = current_database()"
        )
        async with open_stack(sweep_seconds=0.05) as stack:
            await overwritten(stack.client, group, store, "new")
            await comes_to_read(cut.client, "new")
            await overwritten(stack.client, group, store, "newer")
            await comes_to_read(cut.client, "newer")


async def test_reads_do_not_wait_for_a_postgres_that_does_not_answer(
    open_stack: Callable[..., Any], settings: Settings, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is known stays in use, although nobody vouches for it."""
    relay.deaf = True
    # Nothing is trusted without a look, and PostgreSQL takes longer than any call.
    monkeypatch.setattr(definition_cache, "_TRUSTED_SECONDS", 0.0)
    patient = {"auth_cache_seconds": 3600.0, "postgres_timeout_seconds": 3600.0}
    own = through(relay, settings).model_copy(update=patient)
    async with open_stack(settings=own) as stack:
        group = await define(stack.client)
        await stack.client.write(group, [{"id": 1, "x": "a"}])
        assert await value(stack.client) == "a"
        relay.flowing.clear()
        try:
            for _ in range(3):
                assert await value(stack.client) == "a"
        finally:
            relay.flowing.set()
