"""Feature vectors: Triglot beside a bare Redis client, servers that do nothing, and Feast's feature server.

python -m benchmarks.serving [--rounds 3] [--seconds 3] [--only NAME ...] [--shapes SHAPE ...] [--quick]
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import feature_servers, harness, processes
from benchmarks.feature_servers import (
    BARE,
    EMPTY,
    EMPTY_GRPC,
    FEAST_REST,
    GRPC,
    GRPC_HOP,
    GRPC_TWO,
    ONE_PROCESS,
    TWO_PROCESSES,
    Figures,
    Hopsworks,
    Server,
    Triglot,
)
from benchmarks.harness import Refused, figure, progress
from benchmarks.processes import ROOT
from benchmarks.vectors import FIVE, ONE, SHAPES, Shape
from chassis.secretbox import new_key
from triglot.embedded import EmbeddedPostgres, EmbeddedRedis

NAMES = (BARE, EMPTY, EMPTY_GRPC, FEAST_REST, ONE_PROCESS, TWO_PROCESSES, GRPC_HOP, GRPC, GRPC_TWO)
_OVER_GRPC = (EMPTY_GRPC, GRPC, GRPC_TWO)
HISTORY = ROOT / "docs" / "performance.md"
_HISTORY_ENDS = "<!-- runs end here -->"
# One and many at once; and as many as Feast is compared at.
CONNECTIONS, AGAINST_FEAST = (1, 16), 8


# ---- what is aimed at, on two cores ----


@dataclass(frozen=True)
class Goal:
    """A figure that a server should reach. `of`: in multiples of what another server has."""

    server: str
    entries: int
    view: str
    connections: int
    figure: str
    least: float = 0.0
    most: float = float("inf")
    of: str = ""
    # What a handler that does nothing reached on the machine that the goal was set on. The share of that is the goal
    # on any machine.
    empty: float = 0.0

    @property
    def text(self) -> str:
        bound = f">= {self.least:,.4g}" if self.least else f"<= {self.most:,.4g}"
        return f"{self.figure} {bound}{f' x {self.of}' if self.of else ''}"

    def reached(self, value: float) -> bool:
        """Whether a figure is good enough."""
        return self.least <= value <= self.most


PER_SECOND, P50, P99 = "requests/s", "p50 ms", "p99 ms"
# Starlette with an empty handler where the goals were set, asked for one vector and for a hundred.
_EMPTY_ONE, _EMPTY_HUNDRED = 13_500, 6_000
GOALS = (
    Goal(ONE_PROCESS, 1, ONE.name, 16, PER_SECOND, least=9_000, empty=_EMPTY_ONE),
    Goal(ONE_PROCESS, 1, ONE.name, 1, P50, most=0.5),
    Goal(ONE_PROCESS, 100, ONE.name, 16, PER_SECOND, least=2_500, empty=_EMPTY_HUNDRED),
    Goal(ONE_PROCESS, 100, ONE.name, 16, PER_SECOND, least=0.25, of=BARE),
    *(
        goal
        for entries in (1, 100)
        for goal in (
            Goal(ONE_PROCESS, entries, FIVE.name, AGAINST_FEAST, PER_SECOND, least=20, of=FEAST_REST),
            Goal(ONE_PROCESS, entries, FIVE.name, AGAINST_FEAST, P99, most=0.1, of=FEAST_REST),
        )
    ),
    Goal(GRPC_HOP, 1, ONE.name, 16, PER_SECOND, least=5_000, empty=_EMPTY_ONE),
    *(Goal(name, 1, ONE.name, 16, PER_SECOND, least=4_000, empty=_EMPTY_ONE) for name in (GRPC, GRPC_TWO)),
)


# ---- measuring ----


@dataclass
class Cell:
    """What was measured of one server, shape and number of connections, round by round."""

    server: str
    shape: Shape
    connections: int
    rounds: list[Figures] = field(default_factory=list)

    def median(self, name: str) -> float:
        return statistics.median(self.value(each, name) for each in self.rounds)

    @staticmethod
    def value(found: Figures, name: str) -> float:
        """A figure of one round."""
        derived = {
            PER_SECOND: found["requests"] / found["seconds"],
            P50: found.get("p50_ms", 0.0),
            P99: found.get("p99_ms", 0.0),
            "CPU s of 1,000": found["cpu_seconds"] / max(found["requests"], 1) * 1000,
        }
        return derived[name]


def check(server: Server, shape: Shape, rows: int) -> None:
    """One request by another client: what was loaded comes back, value by value. Raises Refused."""
    keys = next(shape.requests(rows))
    found, wanted = server.read(shape.view, keys), [shape.view.vector(key) for key in keys]
    if found != wanted:
        wrong = next((pair for pair in zip(found, wanted, strict=False) if pair[0] != pair[1]), (found, wanted))
        raise Refused(f"{server.name}, {shape.title}: {wrong[0]!r} is not what was loaded: {wrong[1]!r}")


def measure(servers: Sequence[Server], shapes: Sequence[Shape], rows: int, rounds: int, seconds: int) -> list[Cell]:
    """Rounds in which the servers take turns, in alternating order, after a second each to warm up."""
    cells: list[Cell] = []
    plan = [(shape, connections) for shape in shapes for connections in sorted({*CONNECTIONS, AGAINST_FEAST})]
    for number, (shape, connections) in enumerate(plan, 1):
        taking_part = [
            each for each in servers if connections != AGAINST_FEAST or each.name in (FEAST_REST, ONE_PROCESS)
        ]
        progress(f"{number} of {len(plan)}: {shape.title}, {connections} connections ...")
        here = {server.name: Cell(server.name, shape, connections) for server in taking_part}
        for server in taking_part:
            if server.name not in (EMPTY, EMPTY_GRPC):
                check(server, shape, rows)
            server.prepare(shape, rows)
            server.storm(connections, 1)
        for turn in range(rounds):
            for server in taking_part if turn % 2 else reversed(taking_part):
                here[server.name].rounds.append(server.storm(connections, seconds))
        cells += here.values()
    return cells


# ---- the output ----


def ratio(cells: Sequence[Cell], cell: Cell, to: str, name: str = PER_SECOND) -> float | None:
    """A figure in multiples of what another server has in the same place; None if it has none."""
    for other in cells:
        if (other.server, other.shape, other.connections) == (to, cell.shape, cell.connections) and other.median(name):
            return cell.median(name) / other.median(name)
    return None


def judged(cells: Sequence[Cell]) -> Iterator[tuple[Goal, Cell, float]]:
    """The goals that something was measured for, and how far each was reached."""
    for goal in GOALS:
        for cell in cells:
            place = cell.server, cell.shape.entries, cell.shape.view.name, cell.connections
            if place == (goal.server, goal.entries, goal.view, goal.connections):
                value = ratio(cells, cell, goal.of, goal.figure) if goal.of else cell.median(goal.figure)
                if value is not None:
                    yield goal, cell, value


def report(cells: Sequence[Cell]) -> None:
    rows = [
        [
            cell.shape.title if first else "",
            str(cell.connections) if first else "",
            cell.server,
            *(figure(cell.median(name)) for name in (PER_SECOND, P50, P99, "CPU s of 1,000")),
            *(figure(ratio(cells, cell, other), "x") for other in (BARE, FEAST_REST)),
            figure(sum(each["failed"] for each in cell.rounds)) if any(each["failed"] for each in cell.rounds) else "",
        ]
        for before, cell in zip([None, *cells], cells, strict=False)
        for first in [before is None or (before.shape, before.connections) != (cell.shape, cell.connections)]
    ]
    columns = [
        "vectors x features",
        "connections",
        "server",
        PER_SECOND,
        P50,
        P99,
        "CPU s of 1,000",
        "of bare",
        "of Feast",
    ]
    harness.table("Feature vectors (medians of the rounds)", [*columns, "failed"], rows)
    goals = [
        [
            cell.server,
            f"{cell.shape.title} at {cell.connections}",
            goal.text,
            figure(value),
            _yes(goal.reached(value)),
            figure(goal.least / goal.empty) if goal.empty else "",
            figure(ratio(cells, cell, EMPTY)) if goal.empty else "",
        ]
        for goal, cell, value in judged(cells)
    ]
    if goals:
        columns = ["server", "where", "goal", "measured", "reached", "goal of an empty handler's", "measured"]
        harness.table("What is aimed at on two cores", columns, goals)


def _share(cells: Sequence[Cell], goal: Goal, cell: Cell) -> str:
    """How a goal and its figure compare with a handler that does nothing, there and here."""
    share = ratio(cells, cell, EMPTY)
    return f" ({figure(goal.least / goal.empty)} of an empty handler: {figure(share)})" if goal.empty and share else ""


def _yes(good: bool) -> str:
    return "yes" if good else "NO"


def as_json(about: dict[str, str], cells: Sequence[Cell]) -> object:
    return {
        "machine": about,
        "workloads": [
            {
                "server": cell.server,
                "workload": cell.shape.title,
                "connections": cell.connections,
                "of_bare": ratio(cells, cell, BARE),
                "of_feast": ratio(cells, cell, FEAST_REST),
                "rounds": cell.rounds,
            }
            for cell in cells
        ],
        "goals": [
            {"server": cell.server, "workload": cell.shape.title, "connections": cell.connections, "goal": goal.text,
             "measured": value, "reached": goal.reached(value),
             **({"share_of_empty": goal.least / goal.empty, "measured_share": ratio(cells, cell, EMPTY)}
                if goal.empty else {})}
            for goal, cell, value in judged(cells)
        ],
    }  # fmt: skip


def remember(about: dict[str, str], cells: Sequence[Cell]) -> None:
    """Add the run to the history in docs/performance.md: a line, and the goals' figures."""
    figures = "; ".join(
        f"{cell.server} {cell.shape.title} at {cell.connections}: "
        f"{goal.text}, {figure(value)} {_yes(goal.reached(value))}{_share(cells, goal, cell)}"
        for goal, cell, value in judged(cells)
    )
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    loads = f"{about['load'].split()[0]} to {about['load afterwards'].split()[0]}"
    line = f"| {about['time']} | {commit or '-'} | {about['processors']} | {loads} | {figures} |\n"
    before, ends, after = HISTORY.read_text().partition(_HISTORY_ENDS)
    HISTORY.write_text(f"{before}{line}{ends}{after}")
    progress(f"added to {HISTORY.relative_to(ROOT)}")


# ---- the run ----


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    rows, rounds, seconds = (500, 1, 1) if options.quick else (options.rows, options.rounds, options.seconds)
    shapes = [shape for shape in SHAPES if shape.title in options.shapes]
    left_out = () if _has("h2load", f"{' and '.join(_OVER_GRPC)} are left out") else _OVER_GRPC
    names = [name for name in options.only if name not in left_out]
    _has("wrk", "a slower load generator is taken for HTTP, which is Python itself")
    processes.interruptible()
    about = harness.machine()
    with ExitStack() as closing:
        folder = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="triglot-bench-")))
        servers = _start(closing, folder, rows, names)
        cells = measure(servers, shapes, rows, rounds, seconds)
    about["load afterwards"] = harness.machine()["load"]
    print("\n".join(f"{name}: {value}" for name, value in about.items()))
    report(cells)
    harness.write_results(options.json, as_json(about, cells))
    progress(f"written: {options.json}")
    if not options.quick and set(names) == set(NAMES) and len(shapes) == len(SHAPES):
        remember(about, cells)


def filled(closing: ExitStack, folder: Path, rows: int) -> Triglot:
    """`triglot up` on a PostgreSQL and a Redis that hold the tables. All stop with `closing`."""
    store = EmbeddedRedis(folder)
    closing.callback(store.destroy)
    redis_url = store.start()
    closing.callback(store.stop)
    database = EmbeddedPostgres(folder)
    closing.callback(database.destroy)
    postgres_url = database.start()
    closing.callback(database.stop)
    progress("triglot up ...")
    urls = {"TRIGLOT_POSTGRES_URL": postgres_url, "TRIGLOT_REDIS_URL": redis_url}
    ours = closing.enter_context(feature_servers.triglot(folder, **urls, TRIGLOT_SECRET_KEY=new_key()))
    feature_servers.fill(ours, rows)
    return ours


def _start(closing: ExitStack, folder: Path, rows: int, names: Sequence[str]) -> list[Server]:
    """The servers of those names, filled; they stop with `closing`."""
    ours = filled(closing, folder, rows)
    redis_url = ours.environment["TRIGLOT_REDIS_URL"]
    found: dict[str, Server] = {BARE: feature_servers.Bare(redis_url, folder)}
    for name in {EMPTY, EMPTY_GRPC} & set(names):
        found[name] = closing.enter_context(feature_servers.empty(folder, name))
    if FEAST_REST in names:
        progress("feast serve ...")
        found[FEAST_REST] = closing.enter_context(feature_servers.feast(folder / "feast", redis_url, rows))
    found[ONE_PROCESS] = Hopsworks(ONE_PROCESS, str(ours.endpoints["rest"]), ours.key, [ours.process], folder)
    if GRPC_HOP in names:
        found[GRPC_HOP] = closing.enter_context(feature_servers.gateway(folder, ours))
    target = str(ours.endpoints["serving_grpc"])
    found[GRPC] = feature_servers.OverGrpc(GRPC, target, ours.key, [ours.process], folder)
    if {TWO_PROCESSES, GRPC_TWO} & set(names):
        found.update(closing.enter_context(feature_servers.two_workers(folder, ours)))
    return [found[name] for name in names]


def _has(tool: str, otherwise: str) -> bool:
    """Whether a load generator is installed; what that means is said if not."""
    packages = {"wrk": "wrk", "h2load": "nghttp2-client"}
    if shutil.which(tool) is None:
        progress(f"{tool} is missing (apt-get install {packages[tool]}): {otherwise}")
        return False
    return True


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    titles = [shape.title for shape in SHAPES]
    parser.add_argument("--rows", type=int, default=10_000, metavar="N", help="rows of each table")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="turns of each server, for each line")
    parser.add_argument("--seconds", type=int, default=3, metavar="S", help="how long a turn is")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--shapes", nargs="+", choices=titles, default=titles, metavar="SHAPE", help=", ".join(titles))
    parser.add_argument("--quick", action="store_true", help="tiny: shows that it works, not how fast it is")
    parser.add_argument(
        "--json",
        type=Path,
        default=harness.results_file("serving"),
        metavar="FILE",
        help="where the figures are written (benchmarks/results/serving-TIME.json)",
    )
    return parser


if __name__ == "__main__":
    main()
