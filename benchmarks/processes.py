"""Servers as processes of their own: started as a user starts them, watched, and stopped with all that they started."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parent.parent
_STOP_SECONDS = 10.0
# Fields of /proc/PID/stat, counted behind the name.
_PARENT, _GROUP, _OF_THREADS, _OF_ENDED_CHILDREN = 1, 2, (11, 12), (13, 14)
_Result = TypeVar("_Result")


def interruptible() -> None:
    """End by SIGTERM as by Ctrl-C: what was started is stopped. In the background Python would not even mind SIGINT."""

    def leave(*_: object) -> None:
        raise SystemExit(130)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)


class Process:
    """A server and its children, in a process group of their own; what they print goes to a file."""

    def __init__(self, argv: Sequence[str | Path], cwd: Path, env: Mapping[str, str], log: Path) -> None:
        self.log = log
        with log.open("wb") as output:
            self._popen = subprocess.Popen(
                [str(part) for part in argv],
                cwd=cwd,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Of the server itself."""
        return self._popen.pid

    def wait_until(self, ready: Callable[[], _Result | None], seconds: float) -> _Result:
        """What `ready` gives once it is not None. Raises RuntimeError with the end of the log."""
        deadline = time.monotonic() + seconds
        while (result := ready()) is None:
            if self._popen.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self._popen.args!r} does not serve:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.1)
        return result

    def memory_mib(self, line: str = "VmRSS") -> float:
        """Resident memory of the group now; with VmHWM the most that it was since `forget_peak`."""
        return sum(_status_kib(pid, line) for pid in self._group()) / 1024

    def forget_peak(self) -> None:
        """Begin VmHWM anew."""
        for pid in self._group():
            Path(f"/proc/{pid}/clear_refs").write_text("5")

    def logged(self, event: str, **facts: object) -> dict[str, Any] | None:
        """The line of JSON by which one of our processes says that, with these facts among others, if it has."""
        for line in self.log.read_text().splitlines():
            said: dict[str, Any] = json.loads(line) if line.startswith("{") and line.endswith("}") else {}
            if said.items() >= {"event": event, **facts}.items():
                return said
        return None

    def cpu_seconds(self) -> float:
        """What the group has used so far."""
        return cpu_seconds(self._group())

    def stop(self) -> None:
        """End it as a user would, then what is left of its group: Feast leaves its children behind."""
        if self._popen.poll() is None:
            self._popen.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._popen.wait(_STOP_SECONDS)
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + _STOP_SECONDS
            with suppress(ProcessLookupError):
                os.killpg(self._popen.pid, number)
                while time.monotonic() < deadline:
                    self._popen.poll()
                    os.killpg(self._popen.pid, 0)
                    time.sleep(0.05)
        self._popen.wait()

    def _group(self) -> list[int]:
        return [int(each.name) for each in Path("/proc").glob("[0-9]*") if _stat(each, _GROUP) == self._popen.pid]


class Family(Process):
    """A server whose workers have process groups of their own."""

    def cpu_seconds(self) -> float:
        """What it and its workers have used so far."""
        return family_cpu_seconds(self._popen.pid)


def cpu_seconds(pids: Iterable[int]) -> float:
    """Processor time of processes, with that of their threads that ended, the kernel's part included."""
    ticks = sum(_stat(Path(f"/proc/{pid}"), number) or 0 for pid in pids for number in _OF_THREADS)
    return ticks / os.sysconf("SC_CLK_TCK")


def family_cpu_seconds(parent: int) -> float:
    """Processor time of a process and of those that it started, the ended ones included."""
    living = [int(each.name) for each in Path("/proc").glob("[0-9]*") if _stat(each, _PARENT) == parent]
    ticks = sum(_stat(Path(f"/proc/{parent}"), number) or 0 for number in _OF_ENDED_CHILDREN)
    return cpu_seconds([parent, *living]) + ticks / os.sysconf("SC_CLK_TCK")


def _stat(process: Path, number: int) -> int | None:
    """A number of /proc/PID/stat; None if the process is gone."""
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[number])
    except OSError:
        return None


def _status_kib(pid: int, line: str) -> int:
    try:
        rows = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(row.split()[1]) for row in rows if row.startswith(f"{line}:"))


def run(argv: Sequence[str | Path], cwd: Path, env: Mapping[str, str]) -> str:
    """What a command prints. Raises RuntimeError with its errors if it fails."""
    done = subprocess.run(
        [str(part) for part in argv], cwd=cwd, env=dict(env), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{argv} failed:\n{done.stderr[-4000:]}")
    return done.stdout


def clean_environment(**variables: str) -> dict[str, str]:
    """The environment as a user has it who has set nothing for either product."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TRIGLOT_", "FEAST_"))}
    return kept | variables


@contextmanager
def reserved_ports(count: int) -> Iterator[list[int]]:
    """Ports for servers that cannot choose a free one; nobody else gets them while the block runs."""
    with ExitStack() as stack:
        ports = []
        for _ in range(count):
            bound = stack.enter_context(socket.socket())
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(("127.0.0.1", 0))
            ports.append(int(bound.getsockname()[1]))
        yield ports
