"""Two replicas of everything, each in a network namespace where that can be: the compatibility cases, who may call
whom, and a rolling update under load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.deploy.deployment import INSTANCE_ID, ROLES, Deployment
from tests.deploy.network import Namespaces, Place
from tests.faults.load import Load

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200)]

ROOT = Path(__file__).resolve().parents[2]
# Opens a connection to an address and a port, with the patience of somebody who knows that the way is short.
_KNOCK = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 2).close()"


def test_the_compatibility_cases(deployment: Deployment, tmp_path: Path, tell: Callable[[str], None]) -> None:
    endpoints = tmp_path / "endpoints.json"
    known = {
        "rest": deployment.gateways(),
        **{f"{name}_grpc": target for name, target in deployment.targets().items()},
        "postgres_url": deployment.postgres_url,
        "redis_url": deployment.redis.url,
        "redis_cluster": True,
        "api_key": deployment.api_key,
        "instance_id": INSTANCE_ID,
    }
    endpoints.write_text(json.dumps(known))
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/cases"],
        cwd=ROOT,
        env={**os.environ, "TRIGLOT_ENDPOINTS": str(endpoints)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-20_000:]
    tell(f"compatibility cases, two replicas, {type(deployment.network).__name__}: {run.stdout.splitlines()[-1]}")


def test_only_the_arrows_of_the_policies_are_open(deployment: Deployment) -> None:
    network = deployment.network
    if not isinstance(network, Namespaces) or not network.enforces:
        pytest.skip(Namespaces.missing() or "policies are enforced by nft, which is not installed")
    pods = {role: deployment.pods.of(role)[0].place for role in ROLES}
    client = network.place({}, {"access.triglot/clients": "true"})
    stranger = network.place({}, {"kubernetes.io/metadata.name": "elsewhere"})
    ports = {"registry": 6570, "serving": 6571, "management": 6573, "gateway": 8080}
    try:
        open_ = {
            (one, other)
            for one, place in {**pods, "client": client, "stranger": stranger}.items()
            for other, port in ports.items()
            if one != other and _reaches(place, pods[other].address, port)
        }
        services = {("gateway", "registry"), ("gateway", "serving"), ("gateway", "management")}
        services |= {("management", "serving"), ("worker", "serving")}
        assert open_ == services | {("client", other) for other in ports}
        redis, postgres = deployment.redis.ports[0], int(deployment.postgres_url.rpartition(":")[2].partition("/")[0])
        assert {role for role, place in pods.items() if _reaches(place, network.host, redis)} == {"serving"}
        needs_postgres = {role for role, place in pods.items() if _reaches(place, network.host, postgres)}
        assert needs_postgres == set(ROLES) - {"gateway"}
        assert not _reaches(stranger, pods["serving"].address, 6574)
    finally:
        network.leave(client)
        network.leave(stranger)


def _reaches(place: Place, address: str, port: int) -> bool:
    command = [*place.prefix, sys.executable, "-S", "-c", _KNOCK, address, str(port)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_a_rolling_update_of_everything_loses_no_request(deployment: Deployment, tell: Callable[[str], None]) -> None:
    with Load(deployment) as load:
        load.goes_on()
        since = time.monotonic()
        for role in ROLES:
            deployment.pods.roll(role)
        load.goes_on()
        assert not load.lost()
    tell(load.report("rolling update of all Deployments, SIGTERM to each pod", since))
    assert not load.wrong
    assert not load.failed
