"""A registry, a repository that points at it, and the real Feast SDK to work it with."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from chassis.server import GrpcServer
from chassis.settings import Settings
from services.registry.process import open_service
from services.registry.settings import RegistrySettings
from tests.conftest import Servers
from tests.patience import PATIENCE_SECONDS

HERE = Path(__file__).parent
SDK = HERE.parents[2] / ".venv-feast" / "bin"

CONFIGURATION = """\
project: {project}
provider: local
registry:
  registry_type: remote
  path: {path}
  {trust}
auth:
  type: oidc
  token: {token}
online_store:
  type: sqlite
  path: online.db
entity_key_serialization_version: 3
"""
_SECONDS = 250.0


class Sdk:
    """Runs scripts in the SDK's environment, each in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._forks: subprocess.Popen[str] | None = None

    async def run(self, script: Path, *arguments: str | Path, cwd: Path, **variables: str) -> str:
        """What a script prints, with environment variables of its own. It must succeed."""
        output, errors = self._folder / "output", self._folder / "errors"
        asked = {
            "script": str(script),
            "arguments": [str(argument) for argument in arguments],
            "cwd": str(cwd),
            "variables": {"HOME": str(cwd)} | variables,
            "output": str(output),
            "errors": str(errors),
        }
        for file in (output, errors):
            file.write_text("")
        try:
            async with asyncio.timeout(_SECONDS):
                code = await asyncio.to_thread(self._ask, json.dumps(asked))
        except BaseException:
            self.stop(at_once=True)
            raise
        assert code == "0", f"exit code {code!r}: {errors.read_text()[-4000:]}"
        return output.read_text()

    async def client(self, repository: Path, scenario: str, **variables: str) -> Any:
        """What a scenario of client.py saw."""
        printed = await self.run(HERE / "client.py", repository, scenario, cwd=repository, **variables)
        return json.loads(printed.splitlines()[-1])

    def _ask(self, line: str) -> str:
        if self._forks is None:
            self._start()
        answer = self._said(line)
        if not answer:
            self.stop(at_once=True)
        return answer

    def _start(self) -> None:
        assert (SDK / "python").exists(), "no .venv-feast: see test_contract.py"
        # The SDK would otherwise look for a token of its own, and report its use to Feast.
        own = {"HOME": str(self._folder), "TMPDIR": str(self._folder)}
        clean = {"PATH": os.environ["PATH"], "FEAST_USAGE": "False", "PYTHONWARNINGS": "ignore"}
        self._forks = subprocess.Popen(
            [SDK / "python", HERE / "forks.py"],
            env=clean | own,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._said() == "ready"

    def _said(self, line: str = "") -> str:
        """The next line of its output, after one more of its input; empty if it has ended."""
        forks = self._forks
        assert forks is not None
        assert forks.stdin is not None
        assert forks.stdout is not None
        if line:
            with suppress(BrokenPipeError):
                forks.stdin.write(line + "\n")
                forks.stdin.flush()
        return forks.stdout.readline().strip()

    def stop(self, *, at_once: bool = False) -> None:
        """End it: at the end of its input, or at once, with a script that hangs. It is started again when asked."""
        forks, self._forks = self._forks, None
        if forks is not None:
            with suppress(subprocess.TimeoutExpired):
                forks.communicate(timeout=0.0 if at_once else PATIENCE_SECONDS)
            with suppress(ProcessLookupError):
                os.killpg(forks.pid, signal.SIGKILL)
            forks.communicate()


@pytest.fixture(scope="session")
def sdk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sdk]:
    made = Sdk(tmp_path_factory.mktemp("sdk"))
    yield made
    made.stop()


@pytest.fixture
async def port(settings: Settings) -> AsyncIterator[int]:
    """The registry on a port of its own."""
    async with open_service(settings, RegistrySettings()) as services:
        server = GrpcServer(services, host="127.0.0.1", port=0, max_message_bytes=settings.max_message_bytes)
        yield await server.start()
        await server.stop(1)


@pytest.fixture
def repository(tmp_path: Path, port: int, servers: Servers) -> Callable[..., Path]:
    """Makes a folder with a feature_store.yaml."""

    def make(token: str = servers.admin_key, project: str = "rides") -> Path:
        text = CONFIGURATION.format(project=project, path=f"127.0.0.1:{port}", trust="", token=token)
        (tmp_path / "feature_store.yaml").write_text(text)
        return tmp_path

    return make
