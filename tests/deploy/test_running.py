"""The production manifests, run: migrations first, then every Deployment, on PostgreSQL and a Redis Cluster."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import httpx2
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub

from chassis import errors
from chassis.calls import invoke
from chassis.client import open_channel
from chassis.secretbox import new_key
from chassis.settings import Settings
from tests.cases.world import World
from tests.cluster import RedisCluster
from tests.conftest import Servers
from tests.deploy.kustomize import render
from tests.deploy.network import Loopback
from tests.deploy.pods import Pods
from tests.deploy.test_manifests import DEPLOY, ROLES
from tests.patience import PATIENCE_SECONDS, eventually

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]

GROUP = {
    "feature_store": "shop",
    "name": "riders",
    "version": 1,
    "primary_key": ["id"],
    "features": [{"name": "id", "type": "bigint"}, {"name": "score", "type": "double"}],
}
VIEW = {
    "feature_store": "shop",
    "name": "riding",
    "version": 1,
    "joins": [{"feature_group": "riders", "version": 1}],
    "features": [{"name": "id"}, {"name": "score"}],
}
# As docs/deploy.md says.
SERVICE_KEY = ("triglot-services", "--store", "*", "--action", "featurestore:*")
VECTOR = {"featureStoreName": "shop", "featureViewName": "riding", "featureViewVersion": 1, "entries": {"id": 7}}


@pytest.fixture
def empty_database(servers: Servers) -> Iterator[str]:
    """The URL of a database without a schema."""
    name = f"test_{secrets.token_hex(6)}"

    async def administer(statement: str) -> None:
        connection = await asyncpg.connect(servers.postgres_url)
        await connection.execute(statement)
        await connection.close()

    asyncio.run(administer(f"CREATE DATABASE {name}"))
    yield servers.database_url(name)
    asyncio.run(administer(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture(params=["prod", "prod-mtls"])
def pods(request: pytest.FixtureRequest, empty_database: str, cluster: RedisCluster, tmp_path: Path) -> Iterator[Pods]:
    """Those of an overlay; nothing is started yet."""
    secret = {
        "postgres-url": empty_database,
        "redis-url": cluster.url,
        "secret-key": new_key(),
        "service-api-key": "",
    }
    network = Loopback()
    made = Pods(render(DEPLOY / "k8s/overlays" / request.param), secret, tmp_path, network)
    yield made
    made.kill()
    network.close()


async def test_the_manifests_run(pods: Pods) -> None:
    waiting = pods.start("Deployment", "registry", "migrated")
    assert waiting.poll() is None
    assert pods.start("Job", "migrate", "migrate").wait(PATIENCE_SECONDS) == 0, pods.log("migrate-migrate")
    assert waiting.wait(PATIENCE_SECONDS) == 0, pods.log("registry-migrated")
    key = pods.create_key("admin", "--administrator")
    pods.secret["service-api-key"] = pods.create_key(*SERVICE_KEY)
    for role in sorted(ROLES):
        pods.deploy(role)
    await asyncio.to_thread(pods.ready, *ROLES)
    [gateway] = pods.of("gateway")
    # One service is enough for the gateway to be ready; whoever came first tries the others again from time to time.
    assert await asyncio.to_thread(eventually, lambda: all(gateway.dependencies().values()))
    await _every_dialect_answers(pods, key)
    assert pods.terminate() == {f"{role}-1": 0 for role in ROLES}
    for role in ROLES:
        lines = [json.loads(line) for line in pods.log(f"{role}-1").splitlines()]
        assert not [line for line in lines if line["level"] == "error"], role


async def _every_dialect_answers(pods: Pods, key: str) -> None:
    """Rows are written over gRPC, by the Service's name, and read through the gateway."""
    ports = {"registry": 6570, "serving": 6571, "management": 6573}
    targets = {name: pods.network.names.target(name, port) for name, port in ports.items()}
    # Where the services ask for certificates, we call as the gateway does.
    held = pods.files / "gateway-tls"
    shown = {"tls_authority": "ca.crt", "client_certificate": "tls.crt", "client_key": "tls.key"}
    files = {name: str(held / file) for name, file in shown.items()} if held.exists() else {}
    channels = {name: open_channel(target, Settings(**files)) for name, target in targets.items()}  # type: ignore[arg-type]
    for target in targets.values() if files else ():
        for known in ({}, {"tls_authority": files["tls_authority"]}):
            async with open_channel(target, Settings(**known)) as stranger:
                with pytest.raises(errors.Unavailable):
                    await invoke(HealthStub(stranger).Check, HealthCheckRequest(), timeout_seconds=PATIENCE_SECONDS)
    [gateway] = pods.network.names.addresses("gateway")
    async with httpx2.AsyncClient(base_url=f"http://{gateway}:8080", timeout=30) as http:
        world = World(http, channels, key, "fs-cn-triglot")
        serving = "triglot.serving.v1.ServingService"
        await world.rpc(f"{serving}/EnsureFeatureGroup", {"feature_group": GROUP})
        await world.write_rows(
            feature_store="shop", feature_group="riders", columns={"id": [7, 8], "score": [0.5, 1.5]}
        )
        await world.rpc(f"{serving}/CreateFeatureView", {"feature_view": VIEW})
        await world.rpc("feast.registry.RegistryServer/ApplyProject", {"project": {"spec": {"name": "shop"}}})
        bearer = {"Authorization": f"Bearer {key}"}
        vector = await http.post("/0.1.0/feature_store", json=VECTOR, headers={"X-API-KEY": key})
        assert vector.json().get("features") == [7, 0.5], vector.text
        projects = await http.get("/api/v1/projects", headers=bearer)
        assert [each["spec"]["name"] for each in projects.json()["projects"]] == ["shop"]
        instances = await http.get("/api/PaiFeatureStore/2023-06-21/ListInstances", headers=bearer)
        assert instances.json()["TotalCount"] == 1
        # Nothing shows the interface to those without a key.
        assert (await http.get("/openapi.json")).status_code == 404
    for channel in channels.values():
        await channel.close()
