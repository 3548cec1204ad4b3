"""The registry's benchmark runs and prints its figures. How big they are is nothing for a test to say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.registry import LINEAGE, OPERATIONS
from tests.stack.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_every_operation_has_its_figures(tmp_path: Path) -> None:
    """Triglot alone: Feast's environment is made by `make bench-registry`, not by `make test`."""
    results = tmp_path / "results.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.registry", "--quick", "--only=triglot", f"--json={results}"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for operation in (*OPERATIONS, LINEAGE):
        assert operation.title in done.stdout
    measured = json.loads(results.read_text())["operations"]
    assert {each["note"] for each in measured} == {""}, done.stdout
    assert {(each["operation"], each["views"]) for each in measured if each["n"] and each["median_ms"]} == {
        (operation.title, views) for operation in (*OPERATIONS, LINEAGE) for views in (10, 20)
    }
