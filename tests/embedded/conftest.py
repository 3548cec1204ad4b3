"""Folders for real servers, and stacks in processes of their own that a test may kill."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from triglot.embedded import EmbeddedPostgres, EmbeddedRedis

ROOT = Path(__file__).resolve().parents[2]

STACK = """
import json, sys, time
from pathlib import Path
from triglot.embedded import EmbeddedPostgres, EmbeddedRedis, process
data_dir, die_with_parent = Path(sys.argv[1]), sys.argv[2] == "True"
if not die_with_parent:
    process._die_with_parent = lambda death_signal: None
servers = {"postgres": EmbeddedPostgres(data_dir), "redis": EmbeddedRedis(data_dir)}
wanted = {name: server for name, server in servers.items() if name in sys.argv[3:]}
urls = {name: server.start() for name, server in wanted.items()}
print(json.dumps({"urls": urls, "pids": {name: s.pid for name, s in wanted.items()}}), flush=True)
time.sleep(600)
"""


class Stack:
    """A process that has started servers and waits to be killed."""

    def __init__(self, data_dir: Path, *names: str, die_with_parent: bool = True) -> None:
        self._popen = subprocess.Popen(
            [sys.executable, "-c", STACK, data_dir, str(die_with_parent), *names],
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )
        assert self._popen.stdout
        line = self._popen.stdout.readline()
        if not line:
            self.kill()
            raise AssertionError("the stack did not start: see its output")
        told = json.loads(line)
        self.pid: int = self._popen.pid
        self.urls: dict[str, str] = told["urls"]
        self.pids: dict[str, int] = told["pids"]

    def kill(self) -> None:
        self._popen.kill()
        self._popen.wait()
        if self._popen.stdout:
            self._popen.stdout.close()


@pytest.fixture(scope="module")
def new_data_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Path]]:
    """Makes data folders whose data is deleted in the end, also what root has under /var/lib."""
    made = []

    def make() -> Path:
        made.append(tmp_path_factory.mktemp("embedded") / "data")
        return made[-1]

    yield make
    for data_dir in made:
        EmbeddedPostgres(data_dir).destroy()
        EmbeddedRedis(data_dir).destroy()


@pytest.fixture
def new_stack() -> Iterator[Callable[..., Stack]]:
    stacks: list[Stack] = []

    def make(data_dir: Path, *names: str, die_with_parent: bool = True) -> Stack:
        stacks.append(Stack(data_dir, *names, die_with_parent=die_with_parent))
        return stacks[-1]

    yield make
    for stack in stacks:
        stack.kill()


@pytest.fixture
def command_lines() -> Callable[[], bytes]:
    """What `ps` shows of every process."""

    def read() -> bytes:
        texts = []
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                texts.append(file.read_bytes())
            except OSError:
                continue
        return b"\n".join(texts)

    return read
