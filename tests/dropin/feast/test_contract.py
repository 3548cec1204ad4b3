"""Our Feast contracts are those of the real Feast SDK, down to the last field number.

Needs the SDK's environment, .venv-feast, made from requirements.lock next to this file.
Without it the test fails: a contract that nobody compared is not a kept one.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
PROTOS = ROOT / "protos"
SDK_PYTHON = ROOT / ".venv-feast" / "bin" / "python"

HOW_TO_INSTALL = """\
The Feast SDK's environment is missing. Make it, from the root of the repository, with
    python3 -m venv --without-pip .venv-feast
    python3 -m pip --python .venv-feast/bin/python install --require-hashes \\
        -r tests/dropin/feast/requirements.lock"""


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What compare_descriptors.py says of our contracts as they are in the source tree."""
    assert SDK_PYTHON.exists(), HOW_TO_INSTALL
    descriptor_set = tmp_path_factory.mktemp("contract") / "feast.binpb"
    run(
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        f"--proto_path={PROTOS}",
        f"--descriptor_set_out={descriptor_set}",
        "--include_imports",
        *sorted((PROTOS / "feast").rglob("*.proto")),
    )
    found: dict[str, Any] = json.loads(run(SDK_PYTHON, HERE / "compare_descriptors.py", descriptor_set))
    return found


def test_the_sdk_is_installed() -> None:
    assert SDK_PYTHON.exists(), HOW_TO_INSTALL


def test_nothing_differs_from_the_sdk(report: dict[str, Any]) -> None:
    assert report["differences"] == []


def test_the_whole_contract_was_compared(report: dict[str, Any]) -> None:
    """Counted in the SDK, so that an empty comparison cannot pass for a clean one."""
    assert report["feast"] == "0.67.0"
    counted = {kind: report[kind] for kind in ("files", "messages", "fields", "rpcs")}
    assert counted == {"files": 25, "messages": 201, "fields": 763, "rpcs": 55}
    assert report["serving"] == {"files": 6, "messages": 26, "fields": 58, "rpcs": 8}
