"""`triglot up` as a process of its own, on free ports, in an empty data folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.patience import PATIENCE_SECONDS
from triglot.embedded import EmbeddedPostgres, EmbeddedRedis

ROOT = Path(__file__).resolve().parents[2]
FREE_PORTS = ("--http-port=0", "--registry-port=0", "--serving-port=0", "--management-port=0", "--metrics-port=0")


class Up:
    """A running (or failed) `triglot up`."""

    def __init__(
        self, data_dir: Path, *arguments: str, env: dict[str, str] | None = None, terminal: bool = False
    ) -> None:
        self.data_dir = data_dir
        # Ours, and the end of the process that prints.
        self._terminal, printed = os.openpty() if terminal else (-1, subprocess.PIPE)
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "triglot.cli", "up", f"--data-dir={data_dir}", *arguments],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
            env={name: value for name, value in os.environ.items() if not name.startswith("TRIGLOT_")} | (env or {}),
            start_new_session=True,
        )
        self.output = ""
        if terminal:
            os.close(printed)

    def ready(self, seconds: float = 150) -> dict[str, Any]:
        """What endpoints.json holds, once it is there. An AssertionError with the output if that takes too long."""
        path = self.data_dir / "endpoints.json"
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.popen.poll() is None:
            if path.exists():
                found: dict[str, Any] = json.loads(path.read_text())
                return found
            time.sleep(0.05)
        raise AssertionError(f"triglot up is not ready:\n{self.stop()[1]}")

    def stop(self, number: signal.Signals = signal.SIGINT) -> tuple[int, str]:
        """Send a signal and wait; exit code and output."""
        if self.popen.poll() is None:
            self.popen.send_signal(number)
        try:
            output, _ = self.popen.communicate(timeout=PATIENCE_SECONDS)
            self.output += output.decode() if output is not None else _read(self._terminal)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            output, _ = self.popen.communicate()
            raise AssertionError(f"triglot up did not stop:\n{output.decode()}") from None
        return self.popen.returncode, self.output

    def processes(self) -> set[int]:
        """The process and all its descendants."""
        parents = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(stat.parent.name)] = int(fields[1])
        found = {self.popen.pid}
        while True:
            more = {child for child, parent in parents.items() if parent in found} - found
            if not more:
                return found
            found |= more


def has_terminals() -> bool:
    """Whether a terminal can be made here; a bare chroot has none to give."""
    try:
        ends = os.openpty()
    except OSError:
        return False
    for end in ends:
        os.close(end)
    return True


def _read(terminal: int) -> str:
    """What was printed on a terminal that nobody holds any more; closes it."""
    output = b""
    with suppress(OSError):  # so its end is told
        while True:
            output += os.read(terminal, 65_536)
    os.close(terminal)
    return output.decode()


def alive(pids: set[int]) -> set[int]:
    """Those that run and are no zombies."""
    running = set()
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            running.add(pid)
    return running


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    """Starts `triglot up` on this test's data folder, on free ports and without the sample unless told otherwise."""
    started: list[Up] = []
    data_dir = tmp_path / "data"

    def make(
        *arguments: str,
        sample: bool = False,
        ports: bool = True,
        env: dict[str, str] | None = None,
        terminal: bool = False,
    ) -> Up:
        # The last one counts where an option is given twice.
        chosen = [*(FREE_PORTS if ports else ()), *arguments, *(() if sample else ("--no-sample",))]
        started.append(Up(data_dir, *chosen, env=env, terminal=terminal))
        return started[-1]

    yield make
    for each in started:
        if each.popen.poll() is None:
            each.popen.kill()
            each.popen.communicate()
    EmbeddedPostgres(data_dir).destroy()
    EmbeddedRedis(data_dir).destroy()
