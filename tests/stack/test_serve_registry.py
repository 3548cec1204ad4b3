"""`triglot serve registry` in Feast's three modes, with and without TLS: what listens, and that it answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx2
import pytest

from chassis.settings import Settings
from protos.gen.feast.registry import RegistryServer_pb2, RegistryServer_pb2_grpc
from tests.certificates import Certificate, make
from tests.conftest import Servers
from tests.patience import PATIENCE_SECONDS
from tests.stack.conftest import ROOT

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]
Serve = Callable[..., tuple[subprocess.Popen[bytes], dict[str, Any]]]


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    return make(tmp_path)


@pytest.fixture
def serve(settings: Settings, servers: Servers) -> Iterator[Serve]:
    """Starts a role; the process, and the log line that says what it serves."""
    started = []

    def start(*arguments: str, **environment: str) -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
        common = {
            "TRIGLOT_POSTGRES_URL": settings.postgres_url.get_secret_value(),
            "TRIGLOT_HOST": "127.0.0.1",
            "TRIGLOT_METRICS_PORT": "0",
        }
        clean = {name: value for name, value in os.environ.items() if not name.startswith("TRIGLOT_")}
        process = subprocess.Popen(
            [sys.executable, "-m", "triglot.cli", "serve", *arguments],
            cwd=ROOT, env=clean | common | environment, stderr=subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith(b"{"), line + process.stderr.read()
        return process, json.loads(line)

    yield start
    for process in started:
        process.kill()
        process.communicate()


def listening(process: subprocess.Popen[bytes]) -> set[int]:
    """The TCP ports that a process listens on."""
    inodes = set()
    for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
        try:
            inodes.add(str(descriptor.readlink()).removeprefix("socket:[").removesuffix("]"))
        except FileNotFoundError:
            continue
    rows = [line.split() for file in ("tcp", "tcp6") for line in Path(f"/proc/net/{file}").read_text().splitlines()[1:]]
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A" and row[9] in inodes}


def ask_grpc(target: str, key: str, certificate: Certificate | None) -> RegistryServer_pb2.ListProjectsResponse:
    trusted = grpc.ssl_channel_credentials(certificate.certificate.read_bytes()) if certificate else None
    opened = grpc.secure_channel(target, trusted) if trusted else grpc.insecure_channel(target)
    with opened as channel:
        return RegistryServer_pb2_grpc.RegistryServerStub(channel).ListProjects(
            RegistryServer_pb2.ListProjectsRequest(),
            metadata=[("authorization", f"Bearer {key}")],
            timeout=PATIENCE_SECONDS,
        )


def ask_rest(base: str, key: str, certificate: Certificate | None) -> httpx2.Response:
    with httpx2.Client(base_url=base, verify=certificate.trust() if certificate else True) as client:
        return client.get("/api/v1/projects", headers={"Authorization": f"Bearer {key}"}, timeout=PATIENCE_SECONDS)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize(
    ("options", "opened"),
    [((), {"port"}), (("--rest-api",), {"port", "rest_port"}), (("--rest-api", "--no-grpc"), {"rest_port"})],
    ids=["gRPC", "both", "REST"],
)
def test_modes(
    *, options: tuple[str, ...], opened: set[str], tls: bool, serve: Serve, servers: Servers, certificate: Certificate
) -> None:
    shown = certificate if tls else None
    ports = ["--port=0"] + (["--rest-port=0"] if "rest_port" in opened else [])
    process, said = serve("registry", *options, *ports, *(shown.options() if shown else ()))
    assert said["event"] == "serving"
    assert {name for name in ("port", "rest_port") if name in said} == opened
    assert listening(process) == {said[name] for name in opened}
    if "port" in opened:
        assert not ask_grpc(f"127.0.0.1:{said['port']}", servers.admin_key, shown).projects
    if "rest_port" in opened:
        base = f"{'https' if tls else 'http'}://127.0.0.1:{said['rest_port']}"
        assert ask_rest(base, servers.admin_key, shown).json()["projects"] == []
        assert ask_rest(base, "wrong", shown).status_code == 401
    process.terminate()
    assert process.wait(PATIENCE_SECONDS) == 0


def test_who_speaks_no_tls_is_not_heard(serve: Serve, servers: Servers, certificate: Certificate) -> None:
    _, said = serve("registry", "--rest-api", "--port=0", "--rest-port=0", *certificate.options())
    with pytest.raises(grpc.RpcError) as raised:
        ask_grpc(f"127.0.0.1:{said['port']}", servers.admin_key, None)
    assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
    with pytest.raises(httpx2.TransportError):
        ask_rest(f"http://127.0.0.1:{said['rest_port']}", servers.admin_key, None)


def test_the_gateway_calls_services_with_tls(serve: Serve, servers: Servers, certificate: Certificate) -> None:
    _, registry = serve("registry", "--port=0", *certificate.options())
    _, gateway = serve(
        "gateway",
        TRIGLOT_GATEWAY_PORTS="[0]",
        TRIGLOT_REGISTRY_TARGET=f"localhost:{registry['port']}",
        TRIGLOT_TLS_AUTHORITY=str(certificate.certificate),
    )
    answer = ask_rest(f"http://127.0.0.1:{gateway['ports'][0]}", servers.admin_key, None)
    assert answer.json()["projects"] == []


def refused(*arguments: str, **environment: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "triglot.cli", "serve", "registry", *arguments],
        cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False,
    )  # fmt: skip
    assert done.stderr.count("\n") == 1, done.stderr
    return done.returncode, done.stderr


def test_what_cannot_be_served_is_one_clear_line(certificate: Certificate, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    another_key = make(other).key
    code, text = refused("--no-grpc")
    assert (code, "--rest-api" in text) == (2, True)
    for options, says in [
        ((f"--cert={certificate.certificate}",), "TRIGLOT_TLS_KEY"),
        ((f"--cert={tmp_path / 'none'}", f"--key={certificate.key}"), "No such file"),
        ((f"--cert={certificate.certificate}", f"--key={another_key}"), "KEY_VALUES_MISMATCH"),
    ]:
        code, text = refused(*options)
        assert code == 2
        assert "TRIGLOT_TLS_CERTIFICATE" in text
        assert says in text
    code, text = refused(TRIGLOT_TLS_AUTHORITY=str(tmp_path / "none"))
    assert code == 2
    assert "TRIGLOT_TLS_AUTHORITY: No such file" in text


def test_the_default_ports_are_feasts() -> None:
    command = [sys.executable, "-m", "triglot.cli", "serve", "registry", "--help"]
    shown = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=True
    ).stdout
    assert "[default: 6570]" in shown
    assert "[default: 6572]" in shown
    assert Settings().registry_port == 6570
