"""What serving tells Prometheus: stages of a read, how many share a round trip, what was in memory."""

from __future__ import annotations

import asyncio

import httpx2

from protos.gen.triglot.serving.v1.value_pb2 import Value
from tests.chassis.test_telemetry import sample
from tests.serving.conftest import Client

READS = 10


def found() -> dict[str, float]:
    stages = {
        stage: sample("triglot_vectors_stage_seconds_count", stage=stage) for stage in ("plan", "redis", "assemble")
    }
    plans = {found: sample("triglot_cache_lookups_total", cache="plans", found=found) for found in ("yes", "no")}
    keys = {f"key {found}": sample("triglot_cache_lookups_total", cache="keys", found=found) for found in ("yes", "no")}
    commands = {
        "commands": sample("triglot_redis_read_sharing_count"),
        "reads": sample("triglot_redis_read_sharing_sum"),
        "read keys": sample("triglot_redis_read_keys_sum"),
    }
    return stages | plans | keys | commands


async def test_a_read_of_vectors(serving: Client) -> None:
    group = await serving.group("g", {"id": "bigint", "x": "bigint"}, ["id"])
    await serving.write(group, [{"id": number, "x": number} for number in range(READS)])
    await serving.view("v", [{"group": "g"}], [(0, "x")])
    before = found()
    entries = [{"id": Value(int_value=number)} for number in range(READS)]
    await serving.vectors("v", entries)
    await asyncio.gather(*(serving.vectors("v", [entry]) for entry in entries))
    more = {name: number - before[name] for name, number in found().items()}
    assert {name: more[name] for name in ("plan", "redis", "assemble")} == dict.fromkeys(
        ("plan", "redis", "assemble"), READS + 1
    )
    assert (more["no"], more["yes"]) == (1, READS)
    assert (more["reads"], more["read keys"]) == (READS + 1, 2 * READS)
    # Those that came in one turn went in one command, or in two, because two may be under way.
    assert more["commands"] <= 3
    assert more["key yes"] >= READS
    assert sample("triglot_redis_reads_waiting") == 0


async def test_a_refused_read_is_no_sample(serving: Client, http: httpx2.AsyncClient) -> None:
    before = found()
    body = {"featureStoreName": "demo", "featureViewName": "gone", "featureViewVersion": 1, "entries": {"id": 1}}
    assert (await http.post("/feature_store", json=body)).status_code == 400
    assert found()["redis"] == before["redis"]
