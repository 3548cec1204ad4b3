"""What one serving process takes on, over REST and gRPC: calls with a key, entries of a request, a queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from pydantic import SecretStr

from chassis import errors
from chassis.identity.store import IdentityStore
from chassis.principals import Principal
from chassis.settings import Settings
from gateway.settings import GatewaySettings
from protos.gen.triglot.serving.v1 import serving_service_pb2 as pb
from protos.gen.triglot.serving.v1.value_pb2 import Value
from tests.conftest import Servers
from tests.patience import PATIENCE_SECONDS, until
from tests.relay import either
from tests.serving.conftest import Client, Stack, hopsworks_client

BODY: dict[str, Any] = {"featureStoreName": "demo", "featureViewName": "v", "featureViewVersion": 1}
OPERATIONS: list[tuple[str, Any]] = [("/feature_store", {"id": 1}), ("/batch_feature_store", [{"id": 1}])]


async def view(serving: Client) -> None:
    group = await serving.group("g", {"id": "bigint", "x": "int"}, ["id"])
    await serving.write(group, [{"id": 1, "x": 10}])
    await serving.view("v", [{"group": "g"}], [(0, "x")])


async def single(http: httpx2.AsyncClient, key: int = 1) -> httpx2.Response:
    return await http.post("/feature_store", json=BODY | {"entries": {"id": key}})


class TestCalls:
    async def test_each_key_has_so_many(
        self, open_stack: Callable[..., Any], stack: Stack, identity: IdentityStore, servers: Servers,
        make_key: Callable[[Principal], Awaitable[str]],
    ) -> None:  # fmt: skip
        await view(stack.client)
        one = await make_key(Principal("reader", feature_stores=frozenset({"demo"}), actions=("featurestore:*",)))
        two, _ = await identity.create_api_key("reader")
        async with open_stack(calls_per_second=0.001) as limited:
            for path, entries in OPERATIONS:
                async with hopsworks_client(limited.channel, one if path == "/feature_store" else two) as http:
                    assert (await http.post(path, json=BODY | {"entries": entries})).status_code == 200
                    refused = await http.post(path, json=BODY | {"entries": entries})
                    answer = refused.json()
                    assert (refused.status_code, set(answer)) == (429, {"code", "message", "reason"})
                    assert answer["message"] == "more calls than 0.001 a second"
                    assert 0 < int(refused.headers["retry-after"]) <= 1000
                    # What is open to everybody is not limited.
                    for _ in range(3):
                        assert (await http.get("/health")).text == "0"
                        assert (await http.get("/ping")).status_code == 200
            # The same keys over gRPC are the same keys.
            with pytest.raises(errors.ResourceExhausted) as raised:
                await limited.client.with_key(one).vectors("v", [{"id": Value(int_value=1)}])
            assert raised.value.reason == "RATE_LIMITED"
            assert raised.value.retry_after_ms is not None
        assert (await stack.client.with_key(one).vectors("v", [{"id": Value(int_value=1)}])).vectors


class TestEntries:
    async def test_too_many(self, open_stack: Callable[..., Any], servers: Servers) -> None:
        says = "4 entries in one request: at most 3 are taken"
        async with open_stack(max_entries=3) as stack, hopsworks_client(stack.channel, servers.admin_key) as http:
            await view(stack.client)
            for count, status in ((3, 200), (4, 400)):
                answer = await http.post("/batch_feature_store", json=BODY | {"entries": [{"id": 1}] * count})
                assert answer.status_code == status
            assert answer.text == says
            assert len((await stack.client.vectors("v", [{"id": Value(int_value=1)}] * 3)).vectors) == 3
            row_key = pb.RowKey(values=[Value(int_value=1)])
            rows = {"feature_store": "demo", "feature_group": "g", "version": 1, "keys": [row_key] * 4}
            for call in (
                stack.client.vectors("v", [{"id": Value(int_value=1)}] * 4),
                stack.client.call("ReadRows", pb.ReadRowsRequest(**rows)),
                stack.client.call("DeleteRows", pb.DeleteRowsRequest(**rows)),
            ):
                with pytest.raises(errors.InvalidArgument) as raised:
                    await call
                assert (raised.value.reason, raised.value.message) == ("TOO_MANY_ENTRIES", says)
                assert raised.value.metadata == {"limit": "3"}


class SlowRedis:
    """A way to Redis on which each answer takes its time, so that it gives no more than so many in a second."""

    def __init__(self, target: str) -> None:
        self._target = urlsplit(target)
        self._turn = asyncio.Lock()
        self._connections: set[asyncio.Task[None]] = set()
        self.seconds = 0.0

    async def serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        server, to_server = await asyncio.open_connection(self._target.hostname, self._target.port)
        try:
            await either(self._pipe(client, to_server, slow=False), self._pipe(server, to_client, slow=True))
        finally:
            to_server.close()
            to_client.close()
            self._connections.discard(task)

    async def _pipe(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, slow: bool) -> None:
        while data := await source.read(65_536):
            if slow and self.seconds:
                async with self._turn:
                    await asyncio.sleep(self.seconds)
            sink.write(data)

    async def close(self) -> None:
        for each in self._connections:
            each.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)


@asynccontextmanager
async def slow_redis(url: str) -> AsyncIterator[tuple[SecretStr, SlowRedis]]:
    """The URL that leads through it, and the way itself."""
    slow = SlowRedis(url)
    server = await asyncio.start_server(slow.serve, "127.0.0.1", 0)
    target = urlsplit(url)
    host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield SecretStr(target._replace(netloc=f"{target.netloc.rpartition('@')[0]}@{host}").geturl()), slow
    finally:
        server.close()
        await slow.close()


async def test_a_queue_that_is_too_long_is_not_made_longer(
    open_stack: Callable[..., Any], settings: Settings, servers: Servers
) -> None:
    """Redis answers 40 times a second, one row each, and is asked for 20 times as much: the rest is refused at once.

    The order is sure: calls that were let in before anything was known are still waiting when the others come, because
    Redis then all but stops.
    """
    async with slow_redis(servers.redis_url) as (url, slow):
        behind = settings.model_copy(update={"redis_url": url, "redis_timeout_seconds": 30.0})
        async with (
            open_stack(settings=behind, max_read_keys=1) as stack,
            hopsworks_client(stack.channel, servers.admin_key, GatewaySettings(timeout_seconds=60)) as http,
        ):
            await view(stack.client)
            assert (await single(http)).json()["features"] == [10]
            slow.seconds = 0.025
            first = [asyncio.create_task(single(http)) for _ in range(120)]

            async def some_ended() -> bool:
                return sum(task.done() for task in first) >= 20

            await until(some_ended)
            slow.seconds = 0.5
            late = [answer for _ in range(17) for answer in await asyncio.gather(*(single(http) for _ in range(40)))]
            assert sum(task.done() for task in first) < 120, "the refused ones waited for the others"
            for answer in late:
                assert (answer.status_code, answer.headers["content-type"]) == (503, "application/json")
                assert answer.json()["code"] == 14
                assert "the server is busy" in answer.json()["message"]
                assert int(answer.headers["retry-after"]) >= 1
            # Who calls is not even asked for: a refusal costs next to nothing.
            async with hopsworks_client(stack.channel, "") as stranger:
                assert (await single(stranger)).status_code == 503
            with pytest.raises(errors.Unavailable) as raised:
                await stack.client.vectors("v", [{"id": Value(int_value=1)}])
            assert raised.value.reason == "OVERLOADED"
            slow.seconds = 0.0
            assert (await http.get("/health")).text == "0"
            answers = await asyncio.wait_for(asyncio.gather(*first), PATIENCE_SECONDS)
            assert {answer.status_code for answer in answers} == {200}
            for _ in range(50):
                assert (await single(http)).status_code == 200


async def test_the_limit_can_be_switched_off(
    open_stack: Callable[..., Any], settings: Settings, servers: Servers
) -> None:
    async with slow_redis(servers.redis_url) as (url, slow):
        behind = settings.model_copy(update={"redis_url": url, "redis_timeout_seconds": 30.0})
        async with (
            open_stack(settings=behind, max_read_keys=1, shed_milliseconds=0) as stack,
            hopsworks_client(stack.channel, servers.admin_key, GatewaySettings(timeout_seconds=60)) as http,
        ):
            await view(stack.client)
            slow.seconds = 0.01
            first = [asyncio.create_task(single(http)) for _ in range(100)]
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            answers = await asyncio.gather(*first, *(single(http) for _ in range(50)))
            assert {answer.status_code for answer in answers} == {200}


async def test_the_version_in_the_path_is_a_setting(stack: Stack, servers: Servers) -> None:
    await view(stack.client)
    settings = GatewaySettings(hopsworks_api_version="0.2.0")
    async with hopsworks_client(stack.channel, servers.admin_key, settings) as http:
        http.base_url = httpx2.URL("http://triglot/0.2.0")
        assert (await single(http)).json()["features"] == [10]
        assert (await http.get("/ping")).content == b""
        assert (await http.get("/health")).text == "0"
        http.base_url = httpx2.URL("http://triglot/0.1.0")
        assert (await single(http)).status_code == 404
