"""The production overlay, all of it, two replicas of each, on a PostgreSQL and a Redis Cluster of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from chassis.secretbox import new_key
from tests.cluster import RedisCluster, running_cluster
from tests.deploy.kustomize import Manifest, find, render
from tests.deploy.network import Loopback, Namespaces, Network
from tests.deploy.pods import Pods
from tests.patience import PATIENCE_SECONDS
from triglot.embedded import EmbeddedPostgres

OVERLAY = Path(__file__).resolve().parents[2] / "deploy/k8s/overlays/prod"
SERVICES = ("registry", "serving", "management")
ROLES = (*SERVICES, "worker", "gateway")
PORTS = {"registry": 6570, "serving": 6571, "management": 6573}
INSTANCE_ID = "fs-cn-triglot"
# As docs/deploy.md says.
SERVICE_KEY = ("triglot-services", "--store", "*", "--action", "featurestore:*")
_LOOPBACK = "127.0.0.1"


@dataclass
class Deployment:
    """What runs, and how to call it."""

    network: Network
    pods: Pods
    postgres: EmbeddedPostgres
    redis: RedisCluster
    postgres_url: str
    api_key: str

    def gateways(self) -> Sequence[str]:
        """Base URLs of those that are ready."""
        return [f"http://{address}:8080" for address in self.network.names.addresses("gateway")]

    def targets(self) -> dict[str, str]:
        return {name: self.network.names.target(name, port) for name, port in PORTS.items()}


def open_network(objects: list[Manifest]) -> Network:
    """Namespaces where they can be made, else addresses of the loopback, and a line that says why."""
    missing = Namespaces.missing()
    if missing:
        print(f"pods are on the loopback: {missing}")
        return Loopback()
    return Namespaces(objects)


@contextmanager
def running(folder: Path, *, replicas: int = 2, source: Path | None = None) -> Iterator[Deployment]:
    """Everything is ready when the block begins. To be called by the main thread: embedded servers ask for it.

    `source`: the checkout of the code that runs.
    """
    objects = render(OVERLAY)
    with ExitStack() as closing:
        network = open_network(objects)
        closing.callback(network.close)
        redis = closing.enter_context(running_cluster(_made(folder / "redis"), network.host, keeps_rows=True))
        postgres = _postgres(folder / "postgres", network.host)
        closing.callback(postgres.destroy)
        url = postgres.start().replace(_LOOPBACK, network.host)
        _allow(objects, "to-postgres", [int(url.rpartition(":")[2].partition("/")[0])])
        _allow(objects, "to-redis", redis.ports)
        _wait_for_replicas(objects)
        secret = {"postgres-url": url, "redis-url": redis.url, "secret-key": new_key(), "service-api-key": ""}
        pods = Pods(objects, secret, _made(folder / "pods"), network, source=source)
        closing.callback(pods.kill)
        migrated = pods.start("Job", "migrate", "migrate").wait(PATIENCE_SECONDS)
        assert migrated == 0, pods.log("migrate-migrate")
        api_key = pods.create_key("admin", "--administrator")
        pods.secret["service-api-key"] = pods.create_key(*SERVICE_KEY)
        # First those that are called: callers know both replicas then, and not only half a minute later.
        for roles in (SERVICES, ROLES[len(SERVICES) :]):
            for role in roles:
                pods.deploy(role, replicas)
            pods.ready(*roles)
        yield Deployment(network, pods, postgres, redis, url, api_key)


def _postgres(data_dir: Path, host: str) -> EmbeddedPostgres:
    """One that pods reach, too."""
    if host == _LOOPBACK:
        return EmbeddedPostgres(data_dir)
    postgres = EmbeddedPostgres(data_dir, settings={"listen_addresses": f"{_LOOPBACK},{host}"})
    postgres.start()
    with (data_dir / "pg18/pg_hba.conf").open("a") as rules:
        rules.write(f"host all triglot {host}/24 scram-sha-256\n")
    assert postgres.pid is not None
    os.kill(postgres.pid, signal.SIGHUP)
    return postgres


def _allow(objects: list[Manifest], policy: str, ports: Sequence[int]) -> None:
    """Patch a policy, as docs/deploy.md says to those who know where their servers are."""
    [rule] = find(objects, "NetworkPolicy", policy)["spec"]["egress"]
    rule["ports"] = [{"protocol": "TCP", "port": port} for port in ports]


def _wait_for_replicas(objects: list[Manifest]) -> None:
    """Have loads wait for Redis' replicas, as docs/deploy.md says to those whose Redis has them."""
    [settings] = [each for each in objects if each["kind"] == "ConfigMap" and "TRIGLOT_REDIS_CLUSTER" in each["data"]]
    settings["data"]["TRIGLOT_SERVING_REPLICAS"] = "1"


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder
