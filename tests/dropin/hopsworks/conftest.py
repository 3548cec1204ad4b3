"""Serving and the gateway on real ports, and the `hopsworks` client in its own environment and process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
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
from tests.conftest import Servers
from tests.serving.conftest import Client

HERE = Path(__file__).parent
PYTHON = HERE.parents[2] / ".venv-hopsworks" / "bin" / "python"
HOW_TO_INSTALL = """\
The Hopsworks client's environment is missing. `make dropin-environments` makes it; so do, from the repository's root,
    python3 -m venv --without-pip .venv-hopsworks
    python3 -m pip --python .venv-hopsworks/bin/python install --require-hashes \\
        -r tests/dropin/hopsworks/requirements.lock"""


@pytest.fixture
async def serving(settings: Settings, servers: Servers) -> AsyncIterator[tuple[Client, int]]:
    """Serving on a gRPC port, the gateway on an HTTP port that calls it there; a client, and the HTTP port."""
    async with open_service(settings, ServingSettings()) as services:
        server = GrpcServer(services, host="127.0.0.1", port=0, max_message_bytes=2**24)
        port = await server.start()
        async with open_channel(f"127.0.0.1:{port}", settings) as channel:
            own = GatewaySettings(ports=(0,))
            http = HttpServer(
                create_app([hopsworks.dialect(channel, own)], own), own, host="127.0.0.1", drain_seconds=1
            )
            [http_port] = await http.start()
            yield (
                Client(ServingServiceStub(channel), (("authorization", f"Bearer {servers.admin_key}"),)),
                http_port,
            )
            await http.stop()
        await server.stop(0)


@pytest.fixture
def run_client() -> Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]:
    """Runs a script of this folder in the client's environment; what it answered."""

    async def run(script: str, given: dict[str, Any]) -> dict[str, Any]:
        if not PYTHON.exists():
            pytest.fail(HOW_TO_INSTALL)
        process = await asyncio.create_subprocess_exec(
            str(PYTHON), str(HERE / script), json.dumps(given), cwd=HERE,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(), 250)
        answers = [line for line in out.decode().splitlines() if line.startswith("ANSWER ")]
        assert answers, err.decode()[-3000:] + out.decode()[-1000:]
        found: dict[str, Any] = json.loads(answers[-1].removeprefix("ANSWER "))
        return found

    return run
