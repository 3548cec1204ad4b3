"""`triglot up` from start to stop, as a user would run it."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from tests.patience import PATIENCE_SECONDS, eventually
from tests.ports import reserved_ports
from tests.stack.conftest import FREE_PORTS, Up, alive, has_terminals
from triglot.embedded import EmbeddedPostgres, EmbeddedRedis

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]
Start = Callable[..., Up]


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One stack for the tests that only ask."""
    data_dir = tmp_path_factory.mktemp("up") / "data"
    running = Up(data_dir, *FREE_PORTS, "--no-sample")
    yield running
    running.stop()
    EmbeddedPostgres(data_dir).destroy()
    EmbeddedRedis(data_dir).destroy()


def test_it_answers_and_stops_without_a_trace(start: Start) -> None:
    up = start()
    endpoints = up.ready()
    for name in ("rest", "registry_grpc", "serving_grpc", "management_grpc", "api_key", "access_key_id"):
        assert endpoints[name], name
    assert {"metrics", "access_key_secret", "instance_id"} <= set(endpoints)
    with httpx2.Client(base_url=endpoints["rest"]) as client:
        assert client.get("/0.1.0/ping").status_code == 200
        bearer = {"Authorization": f"Bearer {endpoints['api_key']}"}
        assert client.get("/api/v1/projects", headers=bearer).status_code == 200
        assert client.get("/api/v1/projects").status_code == 401
        listed = client.get("/api/PaiFeatureStore/2023-06-21/ListInstances", headers=bearer).json()
        assert [each["InstanceId"] for each in listed["Instances"]] == [endpoints["instance_id"]]
    processes = up.processes()
    assert len(processes) >= 4  # itself, its worker, PostgreSQL, Redis
    code, output = up.stop()
    assert code == 0, output
    assert "Traceback" not in output
    assert eventually(lambda: not alive(processes))
    assert not (up.data_dir / "endpoints.json").exists()


GROUP = {
    "feature_store": "demo",
    "name": "from_buf",
    "version": 1,
    "features": [{"name": "id", "type": "bigint"}],
    "primary_key": ["id"],
}


@pytest.mark.parametrize(
    ("service", "path", "message", "expected"),
    [
        ("registry", "feast.registry.RegistryServer/ListProjects", {}, "{}"),
        ("serving", "triglot.serving.v1.ServingService/EnsureFeatureGroup", {"feature_group": GROUP}, '"from_buf"'),
        ("management", "triglot.identity.v1.IdentityService/WhoAmI", {}, '"administrator"'),
    ],
)
def test_clients_in_any_language(up: Up, service: str, path: str, message: object, expected: str) -> None:
    """buf curl knows nothing of us: it learns the contract by reflection and speaks plain gRPC."""
    endpoints = up.ready()
    buf = Path(sys.executable).parent / "buf"
    command = [buf, "curl", "--protocol", "grpc", "--http2-prior-knowledge"]
    called = [f"http://{endpoints[f'{service}_grpc']}/{path}", "-d", json.dumps(message)]
    key = ["-H", f"authorization: Bearer {endpoints['api_key']}"]
    answered = subprocess.run([*command, *key, *called], capture_output=True, timeout=PATIENCE_SECONDS, check=False)
    assert answered.returncode == 0, answered.stderr
    assert expected in answered.stdout.decode()
    refused = subprocess.run([*command, *called], capture_output=True, timeout=PATIENCE_SECONDS, check=False)
    assert b"unauthenticated" in refused.stderr


def test_a_request_can_be_followed_and_counted(start: Start) -> None:
    """The id that a caller gives stands in the service's log line; the metrics know RPC, status and dialect."""
    with reserved_ports(1) as [port]:
        up = start(f"--metrics-port={port}", env={"TRIGLOT_LOG_LEVEL": "info", "TRIGLOT_LOG_FORMAT": "json"})
        endpoints = up.ready()
    headers = {"Authorization": f"Bearer {endpoints['api_key']}", "X-Request-Id": "from-outside"}
    missing = f"{endpoints['rest']}/api/v1/entities/nobody?project=none"
    assert httpx2.get(missing, headers=headers).status_code == 404
    metrics = httpx2.get(endpoints["metrics"]).text
    code, output = up.stop()
    assert code == 0
    assert 'triglot_rpc_seconds_count{code="NOT_FOUND",rpc="/triglot.registry.v1.RegistryService/GetObject"}' in metrics
    assert 'dialect="feast"' in metrics
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    followed = [line for line in lines if line.get("request_id") == "from-outside"]
    assert [(line["principal"], line["reason"]) for line in followed] == [("administrator", "ENTITY_NOT_FOUND")]
    assert endpoints["api_key"].partition(".")[2] not in "".join(map(str, lines))


def test_killed_hard_it_leaves_no_process_and_starts_again_with_its_keys(start: Start) -> None:
    up = start()
    first = up.ready()
    processes = up.processes()
    up.popen.kill()
    up.popen.communicate()
    assert eventually(lambda: not alive(processes))
    (up.data_dir / "endpoints.json").unlink()  # so that what is read is the second one's
    again = start().ready()
    assert (again["api_key"], again["access_key_id"]) == (first["api_key"], first["access_key_id"])


def test_the_key_is_printed_when_it_is_made_and_not_again(start: Start) -> None:
    """What is printed may be kept, and read by others."""
    up = start()
    key = up.ready()["api_key"]
    assert key in up.stop()[1]
    again = start()
    assert again.ready()["api_key"] == key
    output = again.stop()[1]
    assert key.partition(".")[2] not in output
    assert f"`api_key` in {again.data_dir / 'endpoints.json'}" in output


@pytest.mark.skipif(not has_terminals(), reason="this machine gives no terminals (no /dev/pts)")
def test_on_a_terminal_the_key_is_printed_each_time(start: Start) -> None:
    up = start()
    key = up.ready()["api_key"]
    up.stop()
    on_a_terminal = start(terminal=True)
    on_a_terminal.ready()
    assert key in on_a_terminal.stop()[1]


def test_a_port_in_use_is_one_clear_line(start: Start) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        up = start(f"--http-port={port}", "--registry-port=0", "--serving-port=0", "--management-port=0", ports=False)
        code, output = up.popen.wait(PATIENCE_SECONDS), up.stop()[1]
    assert code == 1
    assert f"triglot: cannot listen on 127.0.0.1:{port}" in output
    assert "Traceback" not in output


def test_two_stacks_do_not_share_a_data_folder(start: Start) -> None:
    start().ready()
    second = start()
    assert second.popen.wait(PATIENCE_SECONDS) == 1
    output = second.stop()[1]
    assert "in use" in output
    assert "Traceback" not in output


def test_without_authentication_it_stays_on_loopback(start: Start) -> None:
    up = start("--no-auth")
    endpoints = up.ready()
    with httpx2.Client(base_url=endpoints["rest"]) as client:
        assert client.get("/api/v1/projects").status_code == 200
    assert up.stop(signal.SIGTERM)[0] == 0
    refused = start("--no-auth", "--host=0.0.0.0")
    assert refused.popen.wait(PATIENCE_SECONDS) == 2
    assert "loopback" in refused.stop()[1]


def test_given_urls_start_nothing_embedded(database_url: str, start: Start, servers, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    up = start(env={"TRIGLOT_POSTGRES_URL": database_url, "TRIGLOT_REDIS_URL": servers.redis_url})
    endpoints = up.ready()
    assert len(up.processes()) == 2  # itself and its worker
    with httpx2.Client(base_url=endpoints["rest"]) as client:
        bearer = {"Authorization": f"Bearer {endpoints['api_key']}"}
        assert client.get("/api/v1/projects", headers=bearer).status_code == 200
    assert up.stop()[0] == 0
