"""The benchmark of feature vectors runs and prints its figures. How big they are is nothing for a test to say."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.serving import WORKLOADS
from tests.stack.conftest import ROOT

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]


def run(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.serving", "--quick", *options]
    return subprocess.run(command, cwd=ROOT, env=environment or None, capture_output=True, text=True, check=False)


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_every_workload_has_its_figures(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    done = run(f"--json={results}")
    assert done.returncode == 0, done.stderr
    assert "requests/s" in done.stdout
    measured = json.loads(results.read_text())["workloads"]
    assert len(measured) == 2 * len(WORKLOADS)
    for each in measured:
        assert all(told["requests"] > 0 and told["failed"] == 0 for told in each["rounds"]), each


def test_without_wrk_it_says_what_is_missing(tmp_path: Path) -> None:
    done = run(PATH=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.strip() == "wrk is missing. Debian and Ubuntu have it: apt-get install wrk"
