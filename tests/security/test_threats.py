"""docs/security.md says what shows each defence: all of that is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
ROWS = [
    line.split("|")[1:-1]
    for line in (ROOT / "docs" / "security.md").read_text().splitlines()
    if line.startswith("| ") and "threat | defence" not in line
]


def test_there_are_rows() -> None:
    assert len(ROWS) > 20


@pytest.mark.parametrize("row", ROWS, ids=[row[0].strip()[:40] for row in ROWS])
def test_each_threat_names_tests_that_exist(row: list[str]) -> None:
    assert len(row) == 3
    named = re.findall(r"`([^`]*)::([^`]*)`", row[2])
    assert named
    for path, test in named:
        assert test in names_in(path), f"{path}::{test}"


def names_in(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


LOCKS = sorted(path.name for path in ROOT.glob("*.lock"))


def locked(lock: str) -> dict[str, str]:
    """What a file locks, each as it stands there, by name."""
    requirements = re.split(r"(?<!\\)\n", (ROOT / lock).read_text().strip())
    return {re.split(r"[=\[]", each, maxsplit=1)[0].lower(): each for each in requirements}


@pytest.mark.parametrize("lock", LOCKS)
def test_what_is_locked_has_hashes(lock: str) -> None:
    """Every requirement is one version, with the hashes of its files."""
    for requirement in locked(lock).values():
        assert re.match(r"^[\w.\[\],-]+==[\w.+!]+", requirement), requirement
        assert "--hash=sha256:" in requirement, requirement


@pytest.mark.parametrize("lock", LOCKS)
def test_nothing_that_is_locked_has_a_known_hole(lock: str) -> None:
    lines = (ROOT / "scripts" / "advisories.txt").read_text().splitlines()
    for package, mended, number in (line.split() for line in lines if not line.startswith("#")):
        if requirement := locked(lock).get(package):
            version = requirement.partition("==")[2].split()[0]
            assert Version(version) >= Version(mended), f"{package} {version} has {number}"
