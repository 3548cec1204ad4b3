"""Instructions of a request for feature vectors, counted by valgrind: python -m benchmarks.instructions

What a processor is asked to do does not depend on what else the machine does, so two versions can be told apart that
differ by a hundredth. The kernel's part, and how well the processor does it, are not in it.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks import feature_servers, processes, serving
from benchmarks.feature_servers import EMPTY, ONE_PROCESS, Empty, Hopsworks, Triglot
from benchmarks.harness import progress
from benchmarks.processes import ROOT, Process
from benchmarks.vectors import SHAPES, Shape

CONNECTIONS = 16
_ROWS = 5_000
# Beyond which a server of ours that is fifty times slower than usual would give up what it does.
_PATIENCE = {
    "TRIGLOT_SERVING_SHED_MILLISECONDS": "0",
    "TRIGLOT_REDIS_TIMEOUT_SECONDS": "60",
    "TRIGLOT_GATEWAY_TIMEOUT_SECONDS": "60",
}
_START_SECONDS = 300.0
_CONTROL_SECONDS = 60.0


class Counted:
    """A server below valgrind, which counts what it does between `begin` and `end`."""

    def __init__(self, argv: Sequence[str | Path], folder: Path, env: dict[str, str], name: str) -> None:
        self._out = folder / f"{name}.callgrind"
        valgrind = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={self._out}"]
        self.process = Process([*valgrind, sys.executable, *argv], ROOT, env, folder / f"{name}.log")

    def begin(self) -> None:
        self._control("--instr=on")
        self._control("--zero")

    def end(self) -> int:
        """How many instructions that were."""
        self._control("--dump")
        self._control("--instr=off")
        # Dumps are numbered.
        newest = max(self._out.parent.glob(f"{self._out.name}.*"), key=lambda file: int(file.suffix[1:]))
        [total] = re.findall(r"^totals: (\d+)", newest.read_text(), re.MULTILINE)
        return int(total)

    def _control(self, order: str) -> None:
        argv = ["callgrind_control", order, str(self.process.pid)]
        subprocess.run(argv, check=True, capture_output=True, timeout=_CONTROL_SECONDS)


@contextmanager
def _one_process(folder: Path, before: Triglot) -> Iterator[tuple[Hopsworks, Counted]]:
    argv: list[str | Path] = [feature_servers.TRIGLOT, "serve", "serving", "--rest-api", "--no-grpc", "--rest-port=0"]
    env = {**before.environment, "TRIGLOT_HOST": "127.0.0.1", "TRIGLOT_METRICS_PORT": "0", **_PATIENCE}
    counted = Counted(argv, folder, processes.clean_environment(**env), "one")
    try:
        said = counted.process.wait_until(lambda: counted.process.logged("serving", role="serving"), _START_SECONDS)
        address = f"http://127.0.0.1:{said['rest_port']}"
        yield Hopsworks(ONE_PROCESS, address, before.key, [counted.process], folder), counted
    finally:
        counted.process.stop()


@contextmanager
def _empty(folder: Path) -> Iterator[tuple[Empty, Counted]]:
    with processes.reserved_ports(1) as [port]:
        argv = ["-m", "benchmarks.empty", "rest", str(port)]
        counted = Counted(argv, folder, processes.clean_environment(), "empty")
        try:
            counted.process.wait_until(lambda: feature_servers.listens(port), _START_SECONDS)
            yield Empty(EMPTY, f"http://127.0.0.1:{port}", "", [counted.process], folder), counted
        finally:
            counted.process.stop()


def measure(server: Hopsworks, counted: Counted, shape: Shape, seconds: int) -> float:
    """Instructions of one request of sixteen callers at once."""
    server.prepare(shape, _ROWS)
    server.storm(CONNECTIONS, 2)
    counted.begin()
    figures = server.storm(CONNECTIONS, seconds)
    total = counted.end()
    if figures["failed"] or not figures["requests"]:
        raise SystemExit(f"{server.name}: {figures['failed']:.0f} requests failed, {figures['requests']:.0f} did not")
    return total / figures["requests"]


def main() -> None:
    """Start, measure, print."""
    options = _parser().parse_args()
    if shutil.which("valgrind") is None:
        raise SystemExit("valgrind is missing: apt-get install valgrind")
    processes.interruptible()
    found: dict[str, dict[str, float]] = {}
    with ExitStack() as closing:
        folder = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="triglot-bench-")))
        ours = serving.filled(closing, folder, _ROWS)
        progress("servers below valgrind ...")
        servers = [closing.enter_context(_one_process(folder, ours)), closing.enter_context(_empty(folder))]
        for shape in SHAPES:
            if shape.title in options.shapes:
                progress(shape.title)
                counts = {server.name: measure(server, counted, shape, options.seconds) for server, counted in servers}
                found[shape.title] = counts
    print(f"{'thousand instructions of a request':36} {ONE_PROCESS:>14} {EMPTY:>14} {'ratio':>7}")
    for title, counts in found.items():
        one, empty = counts[ONE_PROCESS], counts[EMPTY]
        print(f"{title:36} {one / 1e3:14,.0f} {empty / 1e3:14,.0f} {one / empty:7.2f}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instructions", description=__doc__)
    titles = [shape.title for shape in SHAPES]
    parser.add_argument("--shapes", nargs="+", choices=titles, default=titles, metavar="SHAPE", help=", ".join(titles))
    parser.add_argument("--seconds", type=int, default=8, metavar="S", help="how long requests are counted")
    return parser


if __name__ == "__main__":
    main()
