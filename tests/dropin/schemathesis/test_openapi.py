"""Schemathesis on our own OpenAPI document: no request that it makes up finds a 5xx, or an answer without a key."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from chassis.inprocess import InProcessChannel
from chassis.settings import Settings
from gateway import server as http
from gateway.app import create_app
from gateway.dialects import feast
from gateway.settings import GatewaySettings
from services.registry.process import open_service
from services.registry.settings import RegistrySettings
from tests.conftest import Servers

pytestmark = [pytest.mark.dropin, pytest.mark.slow]

PROGRAM = Path(__file__).parents[3] / ".venv-schemathesis" / "bin" / "schemathesis"
# Printed with every run; another one finds other things.
SEED = 20261121
# What Feast's clients know as switched off by its 503.
SWITCHED_OFF = "^/monitoring/"


@pytest.fixture
async def url(settings: Settings) -> AsyncIterator[str]:
    own = GatewaySettings(ports=(0,))
    async with open_service(settings, RegistrySettings()) as services:
        app = create_app([feast.dialect(InProcessChannel(services), own)], own)
        async with http.listening(app, own, settings) as [port]:
            yield f"http://127.0.0.1:{port}"


async def run(url: str, folder: Path, *options: str) -> tuple[int, str, Counter[int]]:
    """Exit code, output, and how often each status was answered."""
    report = folder / "report.ndjson"
    program = await asyncio.create_subprocess_exec(
        PROGRAM, "--no-color", "run", f"{url}/openapi.json", f"--seed={SEED}", "--generation-database=none",
        "--phases=fuzzing", "--no-shrink", "--mode=all", "--continue-on-failure",
        f"--report-ndjson-path={report}", *options,
        cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await program.communicate()
    found: Counter[int] = Counter()
    for line in report.read_text().splitlines():
        found.update(statuses(json.loads(line)))
    assert found, output.decode()
    return program.returncode or 0, output.decode(), found


def statuses(event: Any) -> list[int]:
    """Those of all answers in an event."""
    if isinstance(event, dict):
        own = [event["status_code"]] if isinstance(event.get("status_code"), int) else []
        return own + [each for value in event.values() for each in statuses(value)]
    return [each for value in event for each in statuses(value)] if isinstance(event, list) else []


async def test_no_request_is_too_odd_for_an_answer(url: str, servers: Servers, tmp_path: Path) -> None:
    code, output, found = await run(
        url,
        tmp_path,
        f"--header=Authorization:Bearer {servers.admin_key}",
        "--checks=not_a_server_error,ignored_auth",
        "--max-examples=3",
        f"--exclude-path-regex={SWITCHED_OFF}",
    )
    assert code == 0, output
    assert found[200] > 20, found
    assert not [status for status in found if status >= 500], found


async def test_without_a_key_nothing_is_answered(url: str, tmp_path: Path) -> None:
    _, output, found = await run(url, tmp_path, "--checks=not_a_server_error", "--max-examples=1")
    assert found.keys() == {401}, (found, output)
