"""Reads while the cluster behind them changes: a primary dies, a slot moves, a node hangs, a part is gone for good.

What is asked is asked of the whole stack, over REST and over a gRPC port. An answer is right, or it is a clean failure;
it is never wrong, and it never waits for the deadline, which no machine is too slow for.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import httpx2
import pytest
from redis.crc import key_slot

from chassis import errors
from chassis.server import GrpcServer
from chassis.settings import Settings
from gateway.settings import GatewaySettings
from protos.gen.triglot.serving.v1 import serving_service_pb2 as pb
from protos.gen.triglot.serving.v1 import vector_pb2
from protos.gen.triglot.serving.v1.serving_service_pb2_grpc import ServingServiceStub
from protos.gen.triglot.serving.v1.value_pb2 import Value
from tests.cluster import RedisCluster
from tests.conftest import Servers
from tests.patience import PATIENCE_SECONDS, until
from tests.serving.conftest import MERGE, OVERWRITE, Client, arrow_stream, hopsworks_client, table_of

DEADLINE_SECONDS = 2.0 * PATIENCE_SECONDS
ERROR, COMPLETE = vector_pb2.VECTOR_STATUS_ERROR, vector_pb2.VECTOR_STATUS_COMPLETE
BODY = {"featureStoreName": "demo", "featureViewName": "v", "featureViewVersion": 1}
COLUMNS = {"id": "string", "x": "string"}


@dataclass
class Served:
    """One serving process on the cluster, as its callers see it, and the rows that it should answer with."""

    client: Client
    http: httpx2.AsyncClient
    cluster: RedisCluster
    group: Any
    rows: dict[str, str]

    async def load(self, ids: Sequence[str], mode: Any = MERGE) -> None:
        written = {each: f"{each} {len(self.rows)}" for each in ids}
        await self.client.write(self.group, [{"id": each, "x": x} for each, x in written.items()], mode)
        self.rows.update(written)

    def ids_of(self, port: int) -> list[str]:
        return sorted(key.rpartition(b":")[2].decode() for key in self.cluster.keys(port))

    # What a call with one id or with several gives: rows; None in the place of a row that was refused cleanly.

    async def single(self, one: str) -> list[str | None]:
        response = await self.http.post("/feature_store", json=BODY | {"entries": {"id": one}})
        if response.status_code == 500:
            assert (response.json()["code"], response.json()["reason"]) == (14, "Reading from db failed.")
            return [None]
        assert response.status_code == 200, response.text
        assert response.json()["status"] == "COMPLETE", response.text
        return list(response.json()["features"])

    async def batch(self, ids: Sequence[str]) -> list[str | None]:
        body = BODY | {"entries": [{"id": each} for each in ids], "options": {"includeDetailedStatus": True}}
        response = await self.http.post("/batch_feature_store", json=body)
        if response.status_code == 500:
            assert (response.json()["code"], response.json()["reason"]) == (14, "Reading from db failed.")
            return [None] * len(ids)
        assert response.status_code == 200, response.text
        answer = response.json()
        found = [features and features[0] for features in answer["features"]]
        assert answer["status"] == ["ERROR" if x is None else "COMPLETE" for x in found]
        assert [each[0]["httpStatus"] for each in answer["detailedStatus"]] == [
            500 if x is None else 200 for x in found
        ]
        return found

    async def typed(self, ids: Sequence[str]) -> list[str | None]:
        entries = [{"id": Value(string_value=each)} for each in ids]
        options = vector_pb2.VectorOptions(include_detailed_status=True)
        try:
            vectors = (await self.client.vectors("v", entries, options=options)).vectors
        except errors.Unavailable as error:
            assert error.metadata["dependency"] == "redis"
            return [None] * len(ids)
        found = [vector.values[0].string_value if vector.values else None for vector in vectors]
        expected = [(ERROR, 500) if x is None else (COMPLETE, 200) for x in found]
        assert [(vector.status, vector.groups[0].http_status) for vector in vectors] == expected
        return found

    async def all_right(self) -> bool:
        """Whether every row can be read in every way."""
        ids = list(self.rows)
        expected = list(self.rows.values())
        singles = await asyncio.gather(*map(self.single, ids))
        return [x for found in singles for x in found] == await self.batch(ids) == await self.typed(ids) == expected

    @asynccontextmanager
    async def traffic(self) -> AsyncIterator[Traffic]:
        """Callers who do not stop for as long as the block runs."""

        async def singles(ids: Sequence[str]) -> list[str | None]:
            return [(await self.single(one))[0] for one in ids]

        ways = ((singles, 1), (singles, 2), (self.batch, 1), (self.batch, 3), (self.typed, 1))
        traffic = Traffic(self.rows, len(ways))
        async with asyncio.timeout(PATIENCE_SECONDS), asyncio.TaskGroup() as callers:
            for number, (ask, every) in enumerate(ways):
                callers.create_task(traffic.call(number, ask, list(self.rows)[::every]))
            try:
                yield traffic
            finally:
                traffic.stopped = True


class Traffic:
    """Counts the rows that callers asked for: right, failed and wrong."""

    def __init__(self, rows: Mapping[str, str], callers: int) -> None:
        self.stopped = False
        self.counted: Counter[str] = Counter()
        self._rows = rows
        self._rounds = [0] * callers

    async def call(self, caller: int, ask: Callable[[Sequence[str]], Any], ids: Sequence[str]) -> None:
        while not self.stopped:
            for one, x in zip(ids, await ask(ids), strict=True):
                self.counted["failed" if x is None else "right" if x == self._rows[one] else "wrong"] += 1
            self._rounds[caller] += 1
            await asyncio.sleep(0)

    async def reaches(self, what: str, more: int) -> None:
        """Wait until so many more rows were counted."""
        wanted = self.counted[what] + more

        async def reached() -> bool:
            return self.counted[what] >= wanted

        await until(reached)

    async def goes_round(self) -> Counter[str]:
        """Wait until what is asked now, and once more all of it, is answered; what was counted of the latter."""
        await self._round()
        before = Counter(self.counted)
        await self._round()
        return self.counted - before

    async def _round(self) -> None:
        wanted = [rounds + 1 for rounds in self._rounds]

        async def ended() -> bool:
            return all(rounds >= least for rounds, least in zip(self._rounds, wanted, strict=True))

        await until(ended)


@pytest.fixture
async def served(
    open_stack: Callable[..., Any], settings: Settings, servers: Servers, cluster: RedisCluster
) -> AsyncIterator[Served]:
    own = settings.model_copy(
        update={"redis_url": type(settings.redis_url)(cluster.url), "redis_cluster": True, "auth_cache_seconds": 300.0}
    )
    # No call is refused because the machine is busy.
    async with open_stack(settings=own, shed_milliseconds=0) as stack:
        server = GrpcServer(list(stack.services), host="127.0.0.1", port=0, max_message_bytes=2**24)
        port = await server.start()
        gateway = GatewaySettings(timeout_seconds=DEADLINE_SECONDS)
        async with (
            grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
            hopsworks_client(stack.channel, servers.admin_key, gateway) as http,
        ):
            client = Client(ServingServiceStub(channel), stack.client.metadata)
            group = await client.group("g", COLUMNS, ["id"])
            await client.view("v", [{"group": "g"}], [(0, "x")])
            yield Served(client, http, cluster, group, {})
        await server.stop(0)


async def test_a_primary_dies_in_the_middle_of_traffic(served: Served) -> None:
    """Its replica takes over by itself. The one that the URL names goes: the others tell who is there."""
    cluster = served.cluster
    await served.load([str(number) for number in range(60)])
    await until(lambda: asyncio.to_thread(cluster.in_step))
    for port in cluster.ports:
        cluster.configure(port, cluster_node_timeout="1000")
    dying = cluster.ports[0] if cluster.ports[0] in cluster.primaries() else cluster.primaries()[0]
    async with served.traffic() as traffic:
        await traffic.reaches("right", 200)
        cluster.kill(dying)
        await traffic.reaches("failed", 20)
        # Meanwhile the rows of the other nodes are read on.
        await traffic.reaches("right", 20)
        await until(served.all_right)
        assert set(await traffic.goes_round()) == {"right"}
    assert traffic.counted["wrong"] == 0
    await served.load(["after", "it"])
    assert await served.all_right()


async def test_a_slot_moves_while_it_is_read_and_written(served: Served) -> None:
    """No row is wrong or missing, and no call fails, at any point between the first key's move and the last one's."""
    cluster = served.cluster
    ids = [f"{{together}}{number}" for number in range(8)]
    await served.load(["elsewhere 1", "elsewhere 2", *ids])
    timed = await served.client.group("t", COLUMNS | {"at": "bigint"}, ["id"], event_time="at")
    await served.client.write(timed, [{"id": "{together}", "x": "old", "at": 5}])
    keys = [key for port in cluster.primaries() for key in cluster.keys(port) if b"{together}" in key]
    slot, source = key_slot(keys[0]), cluster.owner(keys[0])
    target = next(port for port in cluster.primaries() if port != source)
    assert len(keys) == 9

    async def newest() -> str:
        row_key = pb.RowKey(values=[Value(string_value="{together}")])
        request = pb.ReadRowsRequest(feature_store="demo", feature_group="t", version=1, keys=[row_key])
        return str((await served.client.call("ReadRows", request)).rows[0].values[1].string_value)

    async def as_it_should_be() -> bool:
        missing = BODY | {"entries": {"id": "{together} but not there"}}
        assert (await served.http.post("/feature_store", json=missing)).json()["status"] == "MISSING"
        return await served.all_right() and await newest() == "old"

    async with served.traffic() as traffic:
        cluster.begin_migration(slot, source, target)
        assert await as_it_should_be()
        # In both directions: a row that has moved, one that has not, and one that is new.
        cluster.migrate(source, target, keys[:5])
        await traffic.reaches("right", 100)
        assert await as_it_should_be()
        await served.client.write(timed, [{"id": "{together}", "x": "older", "at": 4}], MERGE)
        written = {"id": "{together}new", "x": "n"}
        await served.client.write(served.group, [written], MERGE)
        assert await served.single("{together}new") == ["n"]
        cluster.migrate(source, target, keys[5:])
        await traffic.reaches("right", 100)
        assert await as_it_should_be()
        cluster.end_migration(slot, source, target)
        await traffic.reaches("right", 100)
        assert await as_it_should_be()
    assert cluster.owner(keys[0]) == target
    assert set(traffic.counted) == {"right"}


async def test_a_primary_without_a_replica_is_gone(served: Served) -> None:
    """Only what it held cannot be read: a single request fails, a batch says which of its vectors did."""
    cluster = served.cluster
    await served.load([str(number) for number in range(30)])
    gone, *others = cluster.primaries()
    lost = served.ids_of(gone)
    kept = sorted(set(served.rows) - set(lost))
    cluster.kill(cluster.replica_of(gone))
    cluster.kill(gone)
    expected = [None if each in lost else x for each, x in served.rows.items()]
    async with served.traffic() as traffic:
        await traffic.reaches("right", 100)
        await traffic.reaches("failed", 100)
        assert [await served.single(each) for each in kept] == [[served.rows[each]] for each in kept]
        assert [await served.single(each) for each in lost] == [[None]] * len(lost)
        assert await served.batch(list(served.rows)) == await served.typed(list(served.rows)) == expected
        assert await served.batch(lost) == await served.typed(lost) == [None] * len(lost)
    assert traffic.counted["wrong"] == 0
    row_keys = [pb.RowKey(values=[Value(string_value=each)]) for each in (kept[0], lost[0])]
    request = pb.ReadRowsRequest(feature_store="demo", feature_group="g", version=1, keys=row_keys)
    with pytest.raises(errors.Unavailable):
        await served.client.call("ReadRows", request)
    with pytest.raises(errors.Unavailable):
        await served.client.write(served.group, [{"id": each, "x": "new"} for each in served.rows])
    # Rows can be read, so this process should get requests.
    assert (await served.http.get("/health")).text == "0"

    # A cluster may be told to serve all or nothing.
    for port in others:
        cluster.configure(port, cluster_require_full_coverage="yes", cluster_node_timeout="1000")

    async def nothing_is_served() -> bool:
        return await served.single(kept[0]) == await served.single(kept[-1]) == [None]

    await until(nothing_is_served)
    for port in others:
        cluster.configure(port, cluster_require_full_coverage="no")

    async def what_is_left_is_served() -> bool:
        return await served.batch(kept) == [served.rows[each] for each in kept]

    await until(what_is_left_is_served)
    cluster.revive()
    await until(lambda: asyncio.to_thread(cluster.whole))
    assert await what_is_left_is_served()
    await served.load(list(served.rows))
    assert await served.all_right()


async def test_a_node_that_hangs_holds_up_its_own_rows_only(
    open_stack: Callable[..., Any], served: Served, settings: Settings, servers: Servers
) -> None:
    cluster = served.cluster
    await served.load([str(number) for number in range(30)])
    patient = settings.model_copy(
        update={
            "redis_url": type(settings.redis_url)(cluster.url),
            "redis_cluster": True,
            "redis_timeout_seconds": DEADLINE_SECONDS,
        }
    )
    hanging = next(port for port in cluster.primaries() if port != cluster.ports[0])
    held = served.ids_of(hanging)
    free = [each for each in served.rows if each not in held]
    gateway = GatewaySettings(timeout_seconds=DEADLINE_SECONDS)
    async with (
        open_stack(settings=patient, shed_milliseconds=0) as stack,
        hopsworks_client(stack.channel, servers.admin_key, gateway) as http,
    ):
        other = Served(stack.client, http, cluster, served.group, served.rows)
        assert await other.all_right()
        cluster.freeze(hanging)
        waiting = [asyncio.create_task(other.single(each)) for each in held]
        mixed = asyncio.create_task(other.batch(list(served.rows)))
        for _ in range(3):
            assert [await other.single(each) for each in free] == [[served.rows[each]] for each in free]
        assert not any(task.done() for task in (*waiting, mixed))
        cluster.kill(hanging)
        assert await asyncio.gather(*waiting) == [[None]] * len(held)
        assert await mixed == [None if each in held else x for each, x in served.rows.items()]


@pytest.mark.parametrize("mode", [OVERWRITE, MERGE])
async def test_a_load_that_a_failover_may_have_robbed_is_refused(served: Served, mode: Any) -> None:
    """Redis acknowledges what no replica has yet. The one that takes over here has nothing of the load's first half."""
    cluster = served.cluster
    await served.load([str(number) for number in range(60)], OVERWRITE)
    await until(lambda: asyncio.to_thread(cluster.in_step))
    dying = cluster.primaries()[0]
    heir = cluster.replica_of(dying)
    for port in cluster.ports:
        cluster.configure(port, cluster_node_timeout="1000")
    header = pb.WriteRowsHeader(feature_store="demo", feature_group="g", version=1, mode=mode)
    halves = [[{"id": f"{half} {number}", "x": "new"} for number in range(60)] for half in ("first", "second")]

    def rows() -> int:
        return sum(cluster[port].dbsize() for port in cluster.primaries())

    async def messages() -> AsyncIterator[pb.WriteRowsRequest]:
        before = rows()
        cluster.freeze(heir)
        yield pb.WriteRowsRequest(header=header)
        yield pb.WriteRowsRequest(arrow_stream=arrow_stream(table_of(served.group, halves[0])))

        async def written() -> bool:
            return rows() == before + len(halves[0])

        await until(written)
        cluster.kill(dying)
        cluster.thaw(heir)
        await until(lambda: asyncio.to_thread(cluster.agreed))
        yield pb.WriteRowsRequest(arrow_stream=arrow_stream(table_of(served.group, halves[1])))
        yield pb.WriteRowsRequest(end=pb.WriteRowsEnd())

    with pytest.raises(errors.Unavailable, match="start again"):
        await served.client.call("WriteRows", messages(), timeout=DEADLINE_SECONDS)
    # What readers saw before, they see now.
    await until(served.all_right)
    await served.load([str(number) for number in range(60)], mode)
    assert await served.all_right()
