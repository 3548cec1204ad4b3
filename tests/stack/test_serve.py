"""`triglot serve`: every role a process of its own, joined by sockets, as in a deployment."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from chassis.settings import Settings
from tests.conftest import Servers
from tests.patience import PATIENCE_SECONDS
from tests.ports import reserved_ports
from tests.stack.conftest import ROOT

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]
ROLES = ("registry", "serving", "management", "worker", "gateway")


@pytest.fixture
def deployment(settings: Settings, servers: Servers) -> Iterator[tuple[str, dict[str, subprocess.Popen[bytes]]]]:
    """The gateway's address, and the processes by role."""
    with reserved_ports(4) as [registry, serving, management, http]:
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
        processes = {
            role: subprocess.Popen(
                [sys.executable, "-m", "triglot.cli", "serve", role],
                cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
            for role in ROLES
        }  # fmt: skip
        yield f"http://127.0.0.1:{http}", processes
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


def test_every_role_alone(deployment: tuple[str, dict[str, subprocess.Popen[bytes]]], servers: Servers) -> None:
    base, processes = deployment
    bearer = {"Authorization": f"Bearer {servers.admin_key}"}
    body = {"featureStoreName": "x", "featureViewName": "y", "featureViewVersion": 1, "entries": {"id": 1}}
    with httpx2.Client(base_url=base) as client:
        assert answer(client, "GET", "/api/v1/projects", headers=bearer).json()["projects"] == []
        listed = answer(client, "GET", "/api/PaiFeatureStore/2023-06-21/ListInstances", headers=bearer).json()
        assert listed["TotalCount"] == 1
        refused = answer(client, "POST", "/0.1.0/feature_store", json=body, headers={"X-API-KEY": servers.admin_key})
        assert (refused.status_code, refused.json()["code"]) == (400, 2)
        assert answer(client, "GET", "/0.1.0/health").text == "0"
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
