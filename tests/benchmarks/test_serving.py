"""The benchmark of feature vectors runs and prints its figures. How big they are is nothing for a test to say."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.feature_servers import (
    BARE,
    EMPTY,
    EMPTY_GRPC,
    GRPC,
    GRPC_HOP,
    GRPC_TWO,
    ONE_PROCESS,
    TWO_PROCESSES,
)
from benchmarks.serving import AGAINST_FEAST, CONNECTIONS
from tests.stack.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def run(folder: Path, servers: list[str], path: str) -> list[dict[str, Any]]:
    """What was measured. Feast's environment is made by `make bench-serving`, not by `make test`."""
    results = folder / "results.json"
    command = [sys.executable, "-m", "benchmarks.serving", "--quick", "--shapes", "1 x 10", f"--json={results}"]
    done = subprocess.run(
        [*command, "--only", *servers], cwd=ROOT, env=os.environ | {"PATH": path},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "requests/s" in done.stdout
    measured: list[dict[str, Any]] = json.loads(results.read_text())["workloads"]
    for each in measured:
        assert all(told["requests"] > 0 and told["failed"] == 0 for told in each["rounds"]), each
    return measured


@pytest.mark.skipif(not (shutil.which("wrk") and shutil.which("h2load")), reason="wrk or h2load is not installed")
def test_every_server_has_its_figures(tmp_path: Path) -> None:
    servers = [BARE, EMPTY, EMPTY_GRPC, ONE_PROCESS, TWO_PROCESSES, GRPC_HOP, GRPC, GRPC_TWO]
    measured = run(tmp_path, servers, os.environ["PATH"])
    everywhere = {(server, count) for server in servers for count in CONNECTIONS}
    assert {(each["server"], each["connections"]) for each in measured} == everywhere | {(ONE_PROCESS, AGAINST_FEAST)}


def test_without_a_load_generator_its_own_is_taken_and_grpc_left_out(tmp_path: Path) -> None:
    measured = run(tmp_path, [EMPTY, EMPTY_GRPC, ONE_PROCESS, GRPC], str(tmp_path))
    assert {each["server"] for each in measured} == {EMPTY, ONE_PROCESS}
