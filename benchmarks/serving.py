"""Triglot's feature vectors over Hopsworks' REST API, under wrk.

python -m benchmarks.serving [--seconds 3] [--rounds 5] [--quick] [--json [FILE]]
"""

from __future__ import annotations

import argparse
import io
import json
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pyarrow as pa

from benchmarks import harness, processes
from benchmarks.harness import Http, figure, progress
from benchmarks.processes import ROOT, Process
from protos.gen.triglot.serving.v1 import feature_group_pb2, feature_view_pb2
from protos.gen.triglot.serving.v1 import serving_service_pb2 as rpc
from protos.gen.triglot.serving.v1.serving_service_pb2_grpc import ServingServiceStub
from triglot.embedded import EmbeddedPostgres, EmbeddedRedis

TRIGLOT = ROOT / ".venv" / "bin" / "triglot"
SCRIPT = Path(__file__).with_name("vectors.lua")
STORE, NAME = "bench", "rides"
# Ten features of one group, as mixed as a table is.
TYPES = {
    **{f"amount_{number}": "double" for number in range(4)},
    **{f"count_{number}": "bigint" for number in range(3)},
    **{f"word_{number}": "string" for number in range(2)},
    "active": "boolean",
}
_VALUES: dict[str, Callable[[int], object]] = {
    "double": lambda row: row / 7,
    "bigint": lambda row: row * 31,
    "string": lambda row: f"word {row % 1000}",
    "boolean": lambda row: row % 3 == 0,
}
_START_SECONDS = 300.0
_CALL_SECONDS = 300.0
_ROWS_OF_A_STREAM = 10_000
_BODIES = 1_000


# ---- what is asked ----


@dataclass(frozen=True, eq=False)
class Workload:
    """Requests of one shape from so many connections, and what the product aims at on two cores."""

    entries: int
    connections: int
    least_per_second: dict[str, float] = field(default_factory=dict)  # by server
    most_p50_ms: dict[str, float] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return f"{self.entries} x {len(TYPES)}"

    @property
    def path(self) -> str:
        return "/0.1.0/feature_store" if self.entries == 1 else "/0.1.0/batch_feature_store"

    def body(self, rows: int, chance: random.Random) -> dict[str, Any]:
        """A request as Hopsworks' clients send it, for rows that are there."""
        keys = [{"id": chance.randrange(rows)} for _ in range(self.entries)]
        return {
            "featureStoreName": STORE,
            "featureViewName": NAME,
            "featureViewVersion": 1,
            "entries": keys[0] if self.entries == 1 else keys,
            "metadataOptions": {"featureName": False, "featureType": False},
        }


ONE_PROCESS, GRPC_HOP = "one process", "gateway + gRPC"
WORKLOADS = (
    Workload(1, 1, most_p50_ms={ONE_PROCESS: 0.5}),
    Workload(1, 16, least_per_second={ONE_PROCESS: 9_000, GRPC_HOP: 5_000}),
    Workload(1, 64),
    Workload(100, 1),
    Workload(100, 16, least_per_second={ONE_PROCESS: 2_500}),
    Workload(100, 64),
)


# ---- the servers ----


@dataclass(eq=False)
class Server:
    """What wrk calls. `processes` are ours that have a part in an answer: PostgreSQL and Redis are not among them."""

    name: str
    url: str
    key: str
    processes: Sequence[Process]

    def cpu_seconds(self) -> float:
        return sum(process.cpu_seconds() for process in self.processes)


@contextmanager
def one_process(folder: Path) -> Iterator[tuple[Server, dict[str, Any]]]:
    """`triglot up`: gateway and serving in one process, beside their own PostgreSQL and Redis."""
    data = folder / "data"
    ports = ["--registry-port=0", "--serving-port=0", "--management-port=0", "--metrics-port=0", "--http-port=0"]
    argv: list[str | Path] = [TRIGLOT, "up", "--no-sample", f"--data-dir={data}", *ports]
    process = Process(argv, folder, processes.clean_environment(), folder / "up.log")

    def endpoints() -> dict[str, Any] | None:
        file = data / "endpoints.json"
        return json.loads(file.read_text()) if file.exists() else None

    try:
        found = process.wait_until(endpoints, _START_SECONDS)
        yield Server(ONE_PROCESS, found["rest"], found["api_key"], [process]), found
    finally:
        process.stop()
        EmbeddedPostgres(data).destroy()
        EmbeddedRedis(data).destroy()


@contextmanager
def gateway(folder: Path, beside: Server, endpoints: dict[str, Any]) -> Iterator[Server]:
    """`triglot serve gateway` before the serving of the other: a hop over gRPC for each request."""
    env = processes.clean_environment(
        TRIGLOT_HOST="127.0.0.1",
        TRIGLOT_METRICS_PORT="0",
        TRIGLOT_GATEWAY_PORTS="[0]",
        TRIGLOT_REGISTRY_TARGET=endpoints["registry_grpc"],
        TRIGLOT_SERVING_TARGET=endpoints["serving_grpc"],
        TRIGLOT_MANAGEMENT_TARGET=endpoints["management_grpc"],
    )
    process = Process([TRIGLOT, "serve", "gateway"], folder, env, folder / "gateway.log")
    try:
        [port] = process.wait_until(lambda: process.logged("serving"), _START_SECONDS)["ports"]
        yield Server(GRPC_HOP, f"http://127.0.0.1:{port}", beside.key, [process, *beside.processes])
    finally:
        process.stop()


# ---- the data ----


def fill(endpoints: dict[str, Any], rows: int) -> None:
    """A group of so many rows, and a view of its ten features, through serving's gRPC API."""
    group = feature_group_pb2.FeatureGroup(feature_store=STORE, name=NAME, version=1, primary_key=["id"])
    group.features.add(name="id", type="bigint")
    view = feature_view_pb2.FeatureView(feature_store=STORE, name=NAME, version=1)
    view.joins.add(feature_group=NAME, version=1)
    for name, kind in TYPES.items():
        group.features.add(name=name, type=kind)
        view.features.add(name=name)
    metadata = [("authorization", f"Bearer {endpoints['api_key']}")]
    with grpc.insecure_channel(endpoints["serving_grpc"]) as channel:
        serving: Any = ServingServiceStub(channel)
        serving.EnsureFeatureGroup(
            rpc.EnsureFeatureGroupRequest(feature_group=group), metadata=metadata, timeout=_CALL_SECONDS
        )
        begin = time.monotonic()
        serving.WriteRows(_messages(rows), metadata=metadata, timeout=_CALL_SECONDS)
        seconds = time.monotonic() - begin
        progress(f"{rows:,} rows through WriteRows in {seconds:.1f} s, {rows / seconds:,.0f} a second")
        serving.CreateFeatureView(
            rpc.CreateFeatureViewRequest(feature_view=view), metadata=metadata, timeout=_CALL_SECONDS
        )


def _messages(rows: int) -> Iterator[rpc.WriteRowsRequest]:
    header = rpc.WriteRowsHeader(feature_store=STORE, feature_group=NAME, version=1, mode=rpc.WRITE_MODE_OVERWRITE)
    yield rpc.WriteRowsRequest(header=header)
    for first in range(0, rows, _ROWS_OF_A_STREAM):
        table = _table(first, min(rows, first + _ROWS_OF_A_STREAM))
        stream = io.BytesIO()
        with pa.ipc.new_stream(stream, table.schema) as writer:
            writer.write_table(table)
        yield rpc.WriteRowsRequest(arrow_stream=stream.getvalue())
    yield rpc.WriteRowsRequest(end=rpc.WriteRowsEnd())


def _table(first: int, end: int) -> pa.Table:
    ids = range(first, end)
    columns: dict[str, list[Any]] = {"id": list(ids)}
    for name, kind in TYPES.items():
        columns[name] = [_VALUES[kind](number) for number in ids]
    return pa.table(columns)


# ---- measuring ----


@dataclass
class Figures:
    """What wrk said of each round."""

    rounds: list[dict[str, float]] = field(default_factory=list)

    def median(self, name: str) -> float:
        return statistics.median(each[name] for each in self.rounds)


def check(server: Server, workload: Workload, body: dict[str, Any]) -> None:
    """One request by another client: the rows are found, and all their features are there."""
    http = Http(int(server.url.rpartition(":")[2]), {"X-API-KEY": server.key}, _CALL_SECONDS)
    answer = json.loads(http.post(workload.path, body))
    http.close()
    vectors = [answer["features"]] if workload.entries == 1 else answer["features"]
    if [len(vector) for vector in vectors if None not in vector] != [len(TYPES)] * workload.entries:
        raise harness.Refused(f"not what was asked for: {answer}")


def storm(server: Server, workload: Workload, bodies: Path, seconds: int) -> dict[str, float]:
    """What wrk measured, and the processor time that the server used."""
    used = server.cpu_seconds()
    argv: list[str | Path] = ["wrk", "-t1", f"-c{workload.connections}", f"-d{seconds}s", "--timeout=10s"]
    argv += ["-s", SCRIPT, server.url + workload.path, "--", bodies, server.key]
    said = processes.run(argv, ROOT, processes.clean_environment())
    found: dict[str, float] = json.loads(said.splitlines()[-1])
    found["per_second"] = found["requests"] / found["seconds"]
    found["cpu_seconds_of_1000"] = (server.cpu_seconds() - used) / max(found["requests"], 1) * 1000
    return found


Results = dict[tuple[Workload, Server], Figures]


def measure(servers: Sequence[Server], folder: Path, rows: int, rounds: int, seconds: int) -> Results:
    """Rounds in which the servers take turns, in alternating order, after a second each to warm up."""
    chance = random.Random(0)
    results: Results = {}
    for workload in WORKLOADS:
        progress(f"{workload.title}, {workload.connections} connections ...")
        asked = [workload.body(rows, chance) for _ in range(_BODIES)]
        bodies = folder / "bodies.txt"
        bodies.write_text("".join(json.dumps(body) + "\n" for body in asked))
        for server in servers:
            check(server, workload, asked[0])
            storm(server, workload, bodies, 1)
            results[workload, server] = Figures()
        for number in range(rounds):
            for server in servers if number % 2 else reversed(servers):
                results[workload, server].rounds.append(storm(server, workload, bodies, seconds))
    return results


# ---- the output ----


def report(results: Results) -> None:
    rows = []
    for (workload, server), found in results.items():
        goals = []
        if least := workload.least_per_second.get(server.name):
            goals.append(f">= {least:,.0f}/s {'yes' if found.median('per_second') >= least else 'NO'}")
        if most := workload.most_p50_ms.get(server.name):
            goals.append(f"p50 < {most:g} {'yes' if found.median('p50_ms') < most else 'NO'}")
        rows.append(
            [
                workload.title,
                str(workload.connections),
                server.name,
                f"{found.median('per_second'):,.0f}",
                f"{max(each['per_second'] for each in found.rounds):,.0f}",
                f"{found.median('per_second') * workload.entries:,.0f}",
                figure(found.median("p50_ms")),
                figure(found.median("p99_ms")),
                figure(found.median("cpu_seconds_of_1000")),
                f"{sum(each['failed'] for each in found.rounds):,.0f}",
                ", ".join(goals),
            ]
        )
    columns = ["rows x features", "connections", "server", "requests/s", "best round", "vectors/s"]
    columns += ["p50 ms", "p99 ms", "CPU s\nper 1,000", "failed", "goal"]
    harness.table("Feature vectors over REST, medians of the rounds", columns, rows)


def as_json(about: dict[str, str], results: Results) -> dict[str, Any]:
    return {
        "machine": about,
        "workloads": [
            {
                "workload": workload.title,
                "connections": workload.connections,
                "server": server.name,
                "rounds": found.rounds,
            }
            for (workload, server), found in results.items()
        ],
    }


# ---- the run ----


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is missing. Debian and Ubuntu have it: apt-get install wrk")
    rows, rounds, seconds = (1_000, 1, 1) if options.quick else (options.rows, options.rounds, options.seconds)
    processes.interruptible()
    about = harness.machine()
    with ExitStack() as closing:
        folder = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="triglot-bench-")))
        progress("triglot up ...")
        first, endpoints = closing.enter_context(one_process(folder))
        servers = [first, closing.enter_context(gateway(folder, first, endpoints))]
        fill(endpoints, rows)
        results = measure(servers, folder, rows, rounds, seconds)
    about["load afterwards"] = harness.machine()["load"]
    print("\n".join(f"{name}: {value}" for name, value in about.items()))
    report(results)
    if options.json:
        harness.write_results(options.json, as_json(about, results))
        progress(f"written: {options.json}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000, metavar="N", help="rows of the table")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="turns of each server, for each line")
    parser.add_argument("--seconds", type=int, default=3, metavar="S", help="how long a turn is")
    parser.add_argument("--quick", action="store_true", help="tiny: shows that it works, not how fast it is")
    parser.add_argument(
        "--json",
        type=Path,
        nargs="?",
        const=harness.results_file("serving"),
        metavar="FILE",
        help="write the figures there too, or to benchmarks/results/serving-TIME.json",
    )
    return parser


if __name__ == "__main__":
    main()
