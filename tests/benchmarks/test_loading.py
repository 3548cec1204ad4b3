"""The benchmark of loading runs and prints its figures. How big they are is nothing for a test to say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.stack.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_both_have_their_figures(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks.loading", "--quick", f"--json={results}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "150,000 rows/s" in done.stdout
    turns = json.loads(results.read_text())["turns"]
    assert [len(each) for each in turns.values()] == [1, 1]
    assert all(turn["rows"] == 2_000 for each in turns.values() for turn in each)
