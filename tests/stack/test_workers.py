"""`triglot serve ... --workers`: processes that share ports, what becomes of them, and serving with REST in one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import httpx2
import pytest

from chassis.settings import Settings
from protos.gen.triglot.serving.v1 import serving_service_pb2 as pb
from protos.gen.triglot.serving.v1.serving_service_pb2_grpc import ServingServiceStub
from tests.certificates import make
from tests.conftest import Servers
from tests.patience import PATIENCE_SECONDS, eventually
from tests.ports import reserved_ports
from tests.stack.conftest import ROOT, alive

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]


class Parent:
    """A running `triglot serve`; its log lines as they come."""

    def __init__(self, arguments: tuple[str, ...], environment: dict[str, str]) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "triglot.cli", "serve", *arguments],
            cwd=ROOT, env=environment, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        self.lines: list[dict[str, Any]] = []

    def logged(self, event: str, **fields: object) -> dict[str, Any]:
        """The next line of the log that is so."""
        assert self.popen.stderr is not None
        for text in self.popen.stderr:
            line = json.loads(text)
            self.lines.append(line)
            if line["event"] == event and fields.items() <= line.items():
                return dict(line)
        raise AssertionError(f"no {event} in {self.lines}")

    def children(self) -> set[int]:
        """Workers, by process id."""
        task = Path(f"/proc/{self.popen.pid}/task/{self.popen.pid}/children")
        return alive({int(child) for child in task.read_text().split()})


Serve = Callable[..., Parent]


@pytest.fixture
def serve(settings: Settings, servers: Servers) -> Iterator[Serve]:
    """Starts a role on this test's databases."""
    started: list[Parent] = []

    def start(*arguments: str, **environment: str) -> Parent:
        common = {
            "TRIGLOT_POSTGRES_URL": settings.postgres_url.get_secret_value(),
            "TRIGLOT_REDIS_URL": servers.redis_url,
            "TRIGLOT_SECRET_KEY": settings.secret_key.get_secret_value(),
            "TRIGLOT_HOST": "127.0.0.1",
            "TRIGLOT_METRICS_PORT": "0",
        }
        clean = {name: value for name, value in os.environ.items() if not name.startswith("TRIGLOT_")}
        started.append(Parent(arguments, clean | common | environment))
        return started[-1]

    yield start
    for each in started:
        with suppress(ProcessLookupError):
            each.popen.kill()
        each.popen.communicate()


def vector(base: str, key: str) -> httpx2.Response:
    body = {"featureStoreName": "x", "featureViewName": "y", "featureViewVersion": 1, "entries": {"id": 1}}
    # A connection of its own: the system gives it to one of the workers.
    return httpx2.post(f"{base}/0.1.0/feature_store", json=body, headers={"X-API-KEY": key}, timeout=PATIENCE_SECONDS)


def ping(port: int) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        ServingServiceStub(channel).Ping(pb.PingRequest(), timeout=PATIENCE_SECONDS)


def test_workers_share_ports_and_are_started_again(serve: Serve, servers: Servers) -> None:
    with reserved_ports(1, also=1) as [metrics, *_]:
        parent = serve("serving", "--rest-api", "--port=0", "--rest-port=0", "--workers=2",
                       TRIGLOT_METRICS_PORT=str(metrics))  # fmt: skip
        ports = parent.logged("serving", role="parent")["ports"]
        port, rest_port = ports["TRIGLOT_SERVING_PORT"], ports["TRIGLOT_SERVING_REST_PORT"]
        base = f"http://127.0.0.1:{rest_port}"
        for _ in range(20):
            assert vector(base, servers.admin_key).json()["code"] == 2
            ping(port)
        calls = []
        for each in (metrics, metrics + 1):
            page = httpx2.get(f"http://127.0.0.1:{each}/metrics", timeout=PATIENCE_SECONDS).text
            assert "triglot_http_seconds" in page
            lines = [line for line in page.splitlines() if line.startswith("triglot_http_seconds_count{")]
            calls.append(sum(float(line.rpartition(" ")[2]) for line in lines))
        assert sum(calls) == 20

        first = parent.children()
        assert len(first) == 2
        killed = min(first)
        os.kill(killed, signal.SIGKILL)
        parent.logged("serving", role="serving")  # the one that took its place
        assert parent.lines[-2]["ended_by"] == "signal 9 (Killed)"
        assert eventually(lambda: len(parent.children()) == 2)
        assert killed not in parent.children()
        assert vector(base, servers.admin_key).json()["code"] == 2
        workers = parent.children()
        parent.popen.send_signal(signal.SIGTERM)
        assert parent.popen.wait(PATIENCE_SECONDS) == 0
        assert not alive(workers)
        with pytest.raises(httpx2.TransportError):
            vector(base, servers.admin_key)


def test_workers_do_not_outlive_their_parent(serve: Serve) -> None:
    parent = serve("gateway", "--workers=2", TRIGLOT_GATEWAY_PORTS="[0]")
    [port] = parent.logged("serving", role="parent")["ports"]["TRIGLOT_GATEWAY_PORTS"]
    assert httpx2.get(f"http://127.0.0.1:{port}/0.1.0/ping", timeout=PATIENCE_SECONDS).status_code == 200
    workers = parent.children()
    parent.popen.kill()
    assert eventually(lambda: not alive(workers))


def test_who_cannot_start_says_so_once(serve: Serve, servers: Servers) -> None:
    parent = serve("serving", "--port=0", "--workers=3", TRIGLOT_REDIS_URL="")
    _, said = parent.popen.communicate(timeout=PATIENCE_SECONDS)
    assert (parent.popen.returncode, said) == (2, b"triglot: TRIGLOT_REDIS_URL is not set\n")
    parent = serve("serving", "--rest-api", "--rest-port=0", "--port=0")
    taken = parent.logged("serving")
    for options in ((f"--port={taken['port']}",), ("--port=0", "--rest-api", f"--rest-port={taken['rest_port']}")):
        other = serve("serving", "--workers=2", *options)
        _, said = other.popen.communicate(timeout=PATIENCE_SECONDS)
        assert other.popen.returncode == 1
        assert said.startswith(b"triglot: cannot listen on 127.0.0.1:")
        assert said.count(b"\n") == 1


def test_a_config_file_of_rondb(serve: Serve, servers: Servers, tmp_path: Path) -> None:
    """Address, port, TLS, size, caching and level are honoured; what else it holds is in one warning."""
    certificate = make(tmp_path)
    with reserved_ports(1) as [rest_port]:
        file = tmp_path / "rdrs_config.json"
        content = {
            "Internal": {"maxReqSize": 2048, "BatchMaxSize": 1024},
            "REST": {"Enable": True, "ServerIP": "127.0.0.1", "ServerPort": rest_port, "NumThreads": 16},
            "RonDB": {"Mgmds": [{"IP": "localhost", "Port": 1186}]},
            "Security": {
                "TLS": {
                    "EnableTLS": True, "RequireAndVerifyClientCert": False,
                    "CertificateFile": str(certificate.certificate), "PrivateKeyFile": str(certificate.key),
                },
                "APIKey": {"UseHopsworksAPIKeys": True, "CacheRefreshIntervalMS": 5000},
            },
            "Log": {"Level": "warn", "FilePath": "rdrs.log"},
        }  # fmt: skip
        file.write_text(json.dumps(content))
        parent = serve("serving", "--rest-api", "--no-grpc", f"--rdrs-config={file}", TRIGLOT_LOG_LEVEL="info")
        parent.logged("serving", rest_port=rest_port)
        [warning] = [line for line in parent.lines if line["level"] == "warning"]
        assert warning["keys"] == [
            "Internal.BatchMaxSize", "Log.FilePath", "REST.Enable", "REST.NumThreads", "RonDB.Mgmds",
            "Security.APIKey.UseHopsworksAPIKeys",
        ]  # fmt: skip
        with httpx2.Client(base_url=f"https://127.0.0.1:{rest_port}", verify=certificate.trust()) as client:
            assert client.get("/0.1.0/health", timeout=PATIENCE_SECONDS).text == "0"
            large = client.post("/0.1.0/feature_store", content=b"x" * 2049, headers={"X-API-KEY": servers.admin_key})
            assert (large.status_code, "2048" in large.text) == (400, True)
