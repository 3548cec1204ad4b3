"""docs/backup.md, step by step: what a backup of PostgreSQL and of Redis brings back."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis

from chassis import calls
from chassis.client import open_channel
from chassis.settings import Settings
from protos.gen.triglot.serving.v1 import serving_service_pb2 as pb
from protos.gen.triglot.serving.v1.serving_service_pb2_grpc import ServingServiceStub
from protos.gen.triglot.serving.v1.value_pb2 import Value
from tests.patience import PATIENCE_SECONDS
from tests.stack.conftest import FREE_PORTS, ROOT, Up
from triglot.embedded import EmbeddedPostgres, EmbeddedRedis, binaries
from triglot.schemas import SCHEMAS

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]
TOOLS = binaries.find_postgres().folder


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "data"
    yield folder
    EmbeddedPostgres(folder).destroy()
    EmbeddedRedis(folder).destroy()


def run(program: str | Path, *arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRIGLOT_")}
    done = subprocess.run(
        [program, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False,
        env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def triglot(*arguments: str) -> str:
    return run(sys.executable, "-m", "triglot.cli", *arguments)


def load(data_dir: Path, file: Path, ages: list[int]) -> None:
    pq.write_table(pa.table({"id": [1, 2], "age": ages}), file)
    triglot("load", str(file), "--feature-group=shop/users", "--key=id", "--data-dir", str(data_dir))


def ages(endpoints: dict[str, Any]) -> list[int | None]:
    """What is read of the two rows."""

    async def read() -> list[int | None]:
        async with open_channel(endpoints["serving_grpc"], Settings()) as channel:
            keys = [pb.RowKey(values=[Value(int_value=number)]) for number in (1, 2)]
            request = pb.ReadRowsRequest(feature_store="shop", feature_group="users", version=1, keys=keys)
            stub: Any = ServingServiceStub(channel)
            answer = await calls.invoke(stub.ReadRows, request, metadata=calls.bearer(endpoints["api_key"]))
            return [row.values[1].int_value if row.found else None for row in answer.rows]

    return asyncio.run(read())


def answers(endpoints: dict[str, Any], key: str) -> list[Any]:
    """What the three dialects and the audit log say, to the owner of a key."""
    pai = "/api/PaiFeatureStore/2023-06-21"
    with httpx2.Client(base_url=endpoints["rest"], headers={"Authorization": f"Bearer {key}"}) as client:
        asked = [
            client.get("/api/v1/entities/user?project=shop"),
            client.get("/api/v1/search?query=user"),
            client.post(f"{pai}/GetDatasource?InstanceId={endpoints['instance_id']}", json={"DatasourceId": "1"}),
        ]
    told = [each.json() for each in asked]
    for each in told:
        for name in ("RequestId", "elapsed_time", "took_ms"):
            each.pop(name, None)
    return [[each.status_code for each in asked], told]


def audited(data_dir: Path) -> str:
    return triglot("audit", "--json", "--until=2100-01-01", "--data-dir", str(data_dir))


def test_a_backup_of_postgres_brings_everything_back(data_dir: Path, tmp_path: Path) -> None:
    """Everything but rows of later loads: those that Redis has belong to another past, and are loaded again."""
    up = Up(data_dir, *FREE_PORTS, "--no-sample")
    try:
        endpoints = up.ready()
        key = triglot("keys", "create", "ann", "--administrator", "--data-dir", str(data_dir)).strip()
        with httpx2.Client(base_url=endpoints["rest"], headers={"Authorization": f"Bearer {key}"}) as client:
            entity = {"project": "shop", "name": "user", "join_key": "user_id", "description": "who buys"}
            client.post("/api/v1/entities", json=entity).raise_for_status()
            config = json.dumps({"user": "u", "password": "GEHEIM"})
            source = {"Name": "d", "WorkspaceId": "1", "Type": "FeatureDB", "Uri": "f", "Config": config}
            path = f"/api/PaiFeatureStore/2023-06-21/CreateDatasource?InstanceId={endpoints['instance_id']}"
            client.post(path, json=source).raise_for_status()
        load(data_dir, tmp_path / "users.parquet", [30, 40])
        before, log, rows = answers(endpoints, key), audited(data_dir), ages(endpoints)
        assert before[0] == [200, 200, 200]
        assert rows == [30, 40]

        url = (data_dir / "postgres.url").read_text().strip()
        dump = tmp_path / "triglot.dump"
        run(TOOLS / "pg_dump", "--format=custom", "--no-owner", f"--file={dump}", url)
        load(data_dir, tmp_path / "later.parquet", [31, 41])
        assert ages(endpoints) == [31, 41]

        schemas = ", ".join(plan.schema for plan in SCHEMAS)
        run(TOOLS / "psql", "--quiet", "--command", f"DROP SCHEMA {schemas} CASCADE", url)
        assert answers(endpoints, key)[0] != before[0]
        restore = ("--no-owner", "--exit-on-error", "--single-transaction", f"--dbname={url}", str(dump))
        run(TOOLS / "pg_restore", *restore)
        with redis.Redis.from_url((data_dir / "redis.url").read_text().strip()) as client:
            client.flushall()
        assert up.stop()[0] == 0
        up = Up(data_dir, *FREE_PORTS, "--no-sample")
        endpoints = up.ready()

        assert answers(endpoints, key) == before
        assert audited(data_dir) == log
        assert ages(endpoints) == [None, None]
        load(data_dir, tmp_path / "users.parquet", [30, 40])
        assert ages(endpoints) == rows
        told = json.loads(triglot("doctor", "--json", "--data-dir", str(data_dir)))
        assert not [each for each in told if each["status"] != "ok" and "data folder" not in each["check"]]
    finally:
        up.stop()
