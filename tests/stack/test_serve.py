"""`triglot serve`: every role a process of its own, joined by sockets, as in a deployment."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest

from chassis.settings import Settings
from tests.conftest import Servers
from tests.patience import PATIENCE_SECONDS, eventually
from tests.ports import reserved_ports
from tests.stack.conftest import ROOT

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]
ROLES = ("registry", "serving", "management", "worker", "gateway")


@dataclass(frozen=True)
class Deployment:
    gateway: str  # its address
    metrics: str  # those of serving
    processes: dict[str, subprocess.Popen[bytes]]  # by role


@pytest.fixture
def deployment(settings: Settings, servers: Servers) -> Iterator[Deployment]:
    with reserved_ports(5) as [registry, serving, management, http, metrics]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TRIGLOT_")} | {
            "TRIGLOT_POSTGRES_URL": settings.postgres_url.get_secret_value(),
            "TRIGLOT_REDIS_URL": servers.redis_url,
            "TRIGLOT_SECRET_KEY": settings.secret_key.get_secret_value(),
            "TRIGLOT_SERVICE_API_KEY": servers.admin_key,
            "TRIGLOT_HOST": "127.0.0.1",
            "TRIGLOT_METRICS_PORT": "0",
            "TRIGLOT_REGISTRY_PORT": str(registry),
            "TRIGLOT_SERVING_PORT": str(serving),
            "TRIGLOT_MANAGEMENT_PORT": str(management),
            "TRIGLOT_REGISTRY_TARGET": f"127.0.0.1:{registry}",
            "TRIGLOT_SERVING_TARGET": f"127.0.0.1:{serving}",
            "TRIGLOT_MANAGEMENT_TARGET": f"127.0.0.1:{management}",
            "TRIGLOT_GATEWAY_PORTS": f"[{http}]",
        }
        own = {"serving": {"TRIGLOT_METRICS_PORT": str(metrics)}}
        processes = {
            role: subprocess.Popen(
                [sys.executable, "-m", "triglot.cli", "serve", role],
                cwd=ROOT, env=environment | own.get(role, {}), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
            for role in ROLES
        }  # fmt: skip
        yield Deployment(f"http://127.0.0.1:{http}", f"http://127.0.0.1:{metrics}/metrics", processes)
        for process in processes.values():
            process.kill()
            process.communicate()


def answer(client: httpx2.Client, method: str, path: str, **arguments: Any) -> httpx2.Response:
    """The answer, once the processes behind it are up."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            response = client.request(method, path, **arguments)
            if response.status_code < 500 or time.monotonic() > deadline:
                return response
        except httpx2.TransportError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.2)


def vector_of(client: httpx2.Client, store: str, key: str) -> tuple[int, str]:
    """Status and text of a request for a vector of a store that is not there."""
    body = {"featureStoreName": store, "featureViewName": "y", "featureViewVersion": 1, "entries": {"id": 1}}
    found = client.post("/0.1.0/feature_store", json=body, headers={"X-API-KEY": key})
    return found.status_code, found.text


def many_at_once(client: httpx2.Client, deployment: Deployment, key: str) -> None:
    """What comes at the same time goes on to serving in one message, and each gets the answer to its own question."""
    asked = [(f"store{number}", key if number % 3 else f"wrong{number}") for number in range(32)]

    def burst() -> bool:
        with ThreadPoolExecutor(len(asked)) as threads:
            found = list(threads.map(lambda each: vector_of(client, *each), asked))
        for (store, shown), (status, text) in zip(asked, found, strict=True):
            if shown == key:
                assert status == 400 and f"feature store {store}" in text, (store, text)
            else:
                assert status == 401, (store, text)
        bundles = 'triglot_rpc_seconds_count{code="OK",rpc="/triglot.bundle.v1.BundleService/SendCalls"}'
        return bundles in httpx2.get(deployment.metrics).text

    assert eventually(burst)


def test_every_role_alone(deployment: Deployment, servers: Servers) -> None:
    processes = deployment.processes
    bearer = {"Authorization": f"Bearer {servers.admin_key}"}
    body = {"featureStoreName": "x", "featureViewName": "y", "featureViewVersion": 1, "entries": {"id": 1}}
    with httpx2.Client(base_url=deployment.gateway) as client:
        assert answer(client, "GET", "/api/v1/projects", headers=bearer).json()["projects"] == []
        listed = answer(client, "GET", "/api/PaiFeatureStore/2023-06-21/ListInstances", headers=bearer).json()
        assert listed["TotalCount"] == 1
        refused = answer(client, "POST", "/0.1.0/feature_store", json=body, headers={"X-API-KEY": servers.admin_key})
        assert (refused.status_code, refused.json()["code"]) == (400, 2)
        assert answer(client, "GET", "/0.1.0/health").text == "0"
        many_at_once(client, deployment, servers.admin_key)
    worker = processes["worker"].stdout
    assert worker is not None
    assert b"working" in worker.readline()  # it serves nobody, so its log says when it is up
    for role, process in processes.items():
        assert process.poll() is None, role
        process.terminate()
    for role, process in processes.items():
        output, _ = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 0, f"{role}: {output.decode()}"
        assert b"Traceback" not in output, role
