"""Serving and the gateway on real ports, and the `hopsworks` client in its own environment and process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from chassis.client import open_channel
from chassis.server import GrpcServer
from chassis.settings import Settings
from gateway.app import create_app
from gateway.dialects import hopsworks
from gateway.server import HttpServer
from gateway.settings import GatewaySettings
from protos.gen.triglot.serving.v1.serving_service_pb2_grpc import ServingServiceStub
from services.serving.process import open_service
from services.serving.settings import ServingSettings
from tests import certificates
from tests.certificates import Certificate
from tests.conftest import Servers
from tests.serving.conftest import Client

ROOT = Path(__file__).resolve().parents[3]
HOW_TO_INSTALL = """\
The client's environment is missing. `make dropin-environments` makes it; so do, from the repository's root,
    python3 -m venv --without-pip .venv-{name}
    python3 -m pip --python .venv-{name}/bin/python install --require-hashes \\
        -r tests/dropin/{name}/requirements.lock"""


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    return certificates.make(tmp_path)


@dataclass(frozen=True)
class Ports:
    """Where the gateway listens."""

    plain: int
    tls: int


@pytest.fixture
async def listening(
    settings: Settings, servers: Servers, certificate: Certificate
) -> AsyncIterator[tuple[Client, Ports]]:
    """Serving on a gRPC port, the gateway on HTTP ports with and without TLS that calls it there; and a client."""
    async with open_service(settings, ServingSettings()) as services, AsyncExitStack() as closing:
        server = GrpcServer(services, host="127.0.0.1", port=0, max_message_bytes=2**24)
        closing.push_async_callback(server.stop, 0)
        port = await server.start()
        channel = await closing.enter_async_context(open_channel(f"127.0.0.1:{port}", settings))
        own = GatewaySettings(ports=(0,))
        app = create_app([hopsworks.dialect(channel, own)], own)
        shown = str(certificate.certificate), str(certificate.key)
        ports = []
        for pair in (("", ""), shown):
            http = HttpServer(app, own, host="127.0.0.1", drain_seconds=1, certificate=pair)
            closing.push_async_callback(http.stop)
            ports += await http.start()
        yield Client(ServingServiceStub(channel), (("authorization", f"Bearer {servers.admin_key}"),)), Ports(*ports)


@pytest.fixture
def serving(listening: tuple[Client, Ports]) -> tuple[Client, int]:
    """The client, and the port without TLS."""
    client, ports = listening
    return client, ports.plain


@pytest.fixture
def run_client() -> Callable[..., Awaitable[dict[str, Any]]]:
    """Runs a script of a client's folder in the client's environment; what it answered."""

    async def run(script: str, given: dict[str, Any], name: str = "hopsworks") -> dict[str, Any]:
        python = ROOT / f".venv-{name}" / "bin" / "python"
        if not python.exists():
            pytest.fail(HOW_TO_INSTALL.format(name=name))
        here = ROOT / "tests" / "dropin" / name
        process = await asyncio.create_subprocess_exec(
            str(python), str(here / script), json.dumps(given), cwd=here,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(), 250)
        answers = [line for line in out.decode().splitlines() if line.startswith("ANSWER ")]
        assert answers, err.decode()[-3000:] + out.decode()[-1000:]
        found: dict[str, Any] = json.loads(answers[-1].removeprefix("ANSWER "))
        return found

    return run
