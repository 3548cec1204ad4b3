"""`triglot up` starts its children again, at any address, and takes the keys that the environment gives."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import httpx2
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chassis.identity.store import ACCESS_KEY_PURPOSE
from chassis.secretbox import SecretBox, new_key
from chassis.settings import Settings
from tests.certificates import make
from tests.conftest import Servers
from tests.patience import PATIENCE_SECONDS, eventually
from tests.stack.conftest import Up, alive
from triglot.embedded.binaries import find_redis

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]
Start = Callable[..., Up]
# A part of the command line of each child.
CHILDREN = {"worker": b"services.management.worker", "postgres": b"max_connections=", "redis": b"redis-server"}


def child(up: Up, name: str) -> int | None:
    """The process id of a child, if it runs now."""
    for pid in alive(up.processes()):
        try:
            if CHILDREN[name] in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        except OSError:
            continue
    return None


def answers(endpoints: dict[str, Any]) -> bool:
    """Whether PostgreSQL is asked, and Redis, and both answer."""
    bearer = {"Authorization": f"Bearer {endpoints['api_key']}"}
    with httpx2.Client(base_url=endpoints["rest"], headers=bearer, timeout=PATIENCE_SECONDS) as client:
        return client.get("/api/v1/projects").status_code == 200 and client.get("/0.1.0/health").text == "0"


@pytest.mark.parametrize("name", CHILDREN)
def test_a_killed_child_is_started_again(name: str, start: Start) -> None:
    up = start()
    endpoints = up.ready()
    killed = child(up, name)
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    assert eventually(lambda: child(up, name) not in {None, killed})
    assert eventually(lambda: answers(endpoints))
    code, output = up.stop()
    assert code == 0, output
    [line] = [line for line in output.splitlines() if "starting it again" in line and f"{name} ended" in line]
    assert "signal 9 (Killed)" in line
    assert f"{name}.log" in line


def test_what_cannot_be_started_again_stops_everything(start: Start, tmp_path: Path) -> None:
    program = tmp_path / "redis-server"
    program.symlink_to(find_redis().path)
    up = start(env={"EMBEDDED_REDIS_BIN": str(program)})
    up.ready()
    processes, killed = up.processes(), child(up, "redis")
    assert killed is not None
    program.unlink()
    os.kill(killed, signal.SIGKILL)
    assert up.popen.wait(PATIENCE_SECONDS) == 1
    output = up.stop()[1]
    assert "triglot: No usable Redis was found" in output
    assert "Traceback" not in output
    assert eventually(lambda: not alive(processes))
    assert not (up.data_dir / "endpoints.json").exists()


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("host", "called"),
    [
        ("127.0.0.2", "127.0.0.2"),
        ("0.0.0.0", "127.0.0.1"),
        pytest.param("::1", "[::1]", marks=pytest.mark.skipif(not has_ipv6(), reason="no IPv6 on the loopback")),
    ],
)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_it_answers_at_any_address(host: str, called: str, tls: bool, start: Start, tmp_path: Path) -> None:
    """That the worker reaches serving wherever it listens is shown by the sample's test."""
    certificate = make(tmp_path)
    up = start(f"--host={host}", *(certificate.options() if tls else ()))
    endpoints = up.ready()
    assert endpoints["rest"].rpartition(":")[0] == f"http{'s' if tls else ''}://{called}"
    context = certificate.trust()
    context.check_hostname = False  # the certificate does not name 127.0.0.2
    with httpx2.Client(base_url=endpoints["rest"], verify=context) as client:
        assert client.get("/0.1.0/ping", timeout=PATIENCE_SECONDS).status_code == 200
    trusted = grpc.ssl_channel_credentials(certificate.certificate.read_bytes())
    for name in ("registry_grpc", "serving_grpc", "management_grpc"):
        target = endpoints[name]
        assert target.rpartition(":")[0] == called
        named = [("grpc.ssl_target_name_override", "localhost")]
        with grpc.secure_channel(target, trusted, named) if tls else grpc.insecure_channel(target) as channel:
            asked = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_SECONDS)
            assert asked.status == health_pb2.HealthCheckResponse.SERVING
    code, output = up.stop()
    assert code == 0, output
    assert output.rstrip().endswith("stopping ...")


def test_keys_of_the_environment_win(database_url: str, start: Start, servers: Servers) -> None:
    secret_key = new_key()
    given = {"TRIGLOT_POSTGRES_URL": database_url, "TRIGLOT_REDIS_URL": servers.redis_url}
    first = start(env=given)
    made = first.ready()
    assert first.stop()[0] == 0
    up = start(env=given | {"TRIGLOT_SECRET_KEY": secret_key, "TRIGLOT_SERVICE_API_KEY": servers.admin_key})
    endpoints = up.ready()
    worker = child(up, "worker")
    environment = Path(f"/proc/{worker}/environ").read_text().split("\0")
    assert f"TRIGLOT_SECRET_KEY={secret_key}" in environment
    assert f"TRIGLOT_SERVICE_API_KEY={servers.admin_key}" in environment
    sealed = asyncio.run(_sealed(database_url, endpoints["access_key_id"]))
    box = SecretBox(Settings(secret_key=secret_key).secret_key)
    assert box.decrypt(sealed, ACCESS_KEY_PURPOSE) == endpoints["access_key_secret"]
    assert up.stop()[0] == 0
    # An API key is not encrypted, so another secret does not change it; the access key could not be read any more.
    assert endpoints["api_key"] == made["api_key"]
    assert endpoints["access_key_id"] != made["access_key_id"]


async def _sealed(database_url: str, access_key_id: str) -> bytes:
    connection = await asyncpg.connect(database_url)
    try:
        found: bytes = await connection.fetchval(
            "SELECT secret_encrypted FROM identity.access_key WHERE access_key_id = $1", access_key_id
        )
        return found
    finally:
        await connection.close()
