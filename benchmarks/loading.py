"""A Parquet file into Redis: `triglot load` through one serving process, beside bare pipelined SETs from Python.

python -m benchmarks.loading [--rows 1000000] [--rounds 3] [--quick] [--json [FILE]]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hiredis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import redis

from benchmarks import feature_servers, harness, processes
from benchmarks.feature_servers import TRIGLOT
from benchmarks.harness import figure, progress
from triglot.embedded import EmbeddedPostgres, EmbeddedRedis

BARE, OURS = "pipelined SET", "triglot load"
GOAL_ROWS_PER_SECOND = 150_000
_GROUP = "bench/loading"
_PIPELINE = 1_000
_MICROS_OF_2020 = 1_577_836_800_000_000


@dataclass
class Turn:
    """One load. Processor seconds are of the client, of serving (where it has a part) and of Redis."""

    rows: int
    seconds: float
    client_cpu: float
    serving_cpu: float
    redis_cpu: float

    @property
    def rows_per_second(self) -> float:
        return self.rows / self.seconds

    def per_million(self, cpu_seconds: float) -> float:
        """Processor seconds of a million rows: what a busy machine spoils least."""
        return cpu_seconds / self.rows * 1e6


@dataclass
class Contestant:
    """Loads the file anew at each call."""

    name: str
    load: Callable[[], Turn]
    turns: list[Turn] = field(default_factory=list)


def table(first: int, end: int) -> pa.Table:
    """Ten columns of the types that tables have."""
    ids = np.arange(first, end)
    chance = np.random.default_rng(first)
    return pa.table(
        {
            "id": ids,
            "amount_0": ids / 7,
            "amount_1": np.round(chance.random(len(ids)) * 1000, 2),
            "ratio": chance.random(len(ids)).astype(np.float32),
            "count_0": ids * 31,
            "count_1": (ids % 1000).astype(np.int32),
            "word_0": pa.array([f"word {number % 1000}" for number in ids]),
            "word_1": pa.array([f"customer-{number:010d}" for number in ids]),
            "seen": pa.array(_MICROS_OF_2020 + ids * 1_234_567, pa.timestamp("us")),
            "active": ids % 3 == 0,
        }
    )


def write_file(path: Path, rows: int) -> None:
    with pq.ParquetWriter(path, table(0, 1).schema) as writer:
        for first in range(0, rows, 100_000):
            writer.write_table(table(first, min(rows, first + 100_000)))


# ---- contestants ----


def bare(url: str, rows: int) -> Turn:
    """Keys and values that are there already, each as large as a row is: the floor for any Python client."""
    with redis.Redis.from_url(url) as client:
        connection: Any = client.connection_pool.get_connection()
        value = b"v" * 130
        names = [b"bench:bare:%d" % number for number in range(rows)]
        in_redis, used, begin = redis_cpu(client), time.process_time(), time.perf_counter()
        for first in range(0, rows, _PIPELINE):
            chunk = names[first : first + _PIPELINE]
            # The driver's own pipeline packs word by word in Python, which takes several times as long as Redis.
            connection.send_packed_command([hiredis.pack_command((b"SET", name, value)) for name in chunk])  # type: ignore[arg-type]
            for _ in chunk:
                connection.read_response()
        seconds, cpu = time.perf_counter() - begin, time.process_time() - used
        turn = Turn(rows, seconds, cpu, 0.0, redis_cpu(client) - in_redis)
        for first in range(0, rows, _PIPELINE):
            client.unlink(*names[first : first + _PIPELINE])
        return turn


def ours(url: str, file: Path, endpoints: dict[str, Any], serving_cpu: Callable[[], float]) -> Turn:
    env = processes.clean_environment(
        TRIGLOT_SERVING_TARGET=endpoints["serving_grpc"], TRIGLOT_API_KEY=endpoints["api_key"]
    )
    command: list[str | Path] = [TRIGLOT, "load", file, "--feature-group", _GROUP, "--key", "id", "--json"]
    with redis.Redis.from_url(url) as client:
        in_redis, in_serving, used = redis_cpu(client), serving_cpu(), children_cpu()
        told = json.loads(processes.run(command, file.parent, env))
        return Turn(
            told["rows"],
            told["seconds"],
            children_cpu() - used,
            serving_cpu() - in_serving,
            redis_cpu(client) - in_redis,
        )


def redis_cpu(client: redis.Redis) -> float:
    used: Any = client.info("cpu")
    return float(used["used_cpu_sys"] + used["used_cpu_user"])


def children_cpu() -> float:
    """Of our commands that have ended, their start included."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


# ---- the run ----


def report(contestants: Sequence[Contestant]) -> None:
    rows = []
    for each in contestants:
        turns = each.turns
        middle = [
            figure(statistics.median(turn.per_million(getattr(turn, name)) for turn in turns), " s")
            for name in ("client_cpu", "serving_cpu", "redis_cpu")
        ]
        rates = [turn.rows_per_second for turn in turns]
        rows.append([each.name, figure(statistics.median(rates)), figure(max(rates)), *middle])
    columns = ["", "rows/s", "best", "client cpu / 1e6 rows", "serving cpu", "Redis cpu"]
    harness.table(f"Loading {contestants[0].turns[0].rows:,} rows of 10 columns", columns, rows)
    best = max(turn.rows_per_second for turn in contestants[-1].turns)
    reached = "reached" if best >= GOAL_ROWS_PER_SECOND else "not reached"
    print(f"aimed at: {GOAL_ROWS_PER_SECOND:,} rows/s; {figure(best)} is {reached}")


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    rows, rounds = (2_000, 1) if options.quick else (options.rows, options.rounds)
    processes.interruptible()
    about = harness.machine()
    with ExitStack() as closing:
        folder = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="triglot-bench-")))
        file = folder / "rows.parquet"
        write_file(file, rows)
        store = EmbeddedRedis(folder)
        closing.callback(store.destroy)
        url = store.start()
        closing.callback(store.stop)
        closing.callback(EmbeddedPostgres(folder / "data").destroy)
        progress("triglot up ...")
        stack = closing.enter_context(feature_servers.triglot(folder, TRIGLOT_REDIS_URL=url))
        contestants = [
            Contestant(BARE, lambda: bare(url, rows)),
            Contestant(OURS, lambda: ours(url, file, stack.endpoints, stack.process.cpu_seconds)),
        ]
        for number in range(rounds):
            for each in contestants:
                each.turns.append(each.load())
                progress(f"round {number + 1}, {each.name}: {each.turns[-1].rows_per_second:,.0f} rows/s")
    about["load afterwards"] = harness.machine()["load"]
    print("\n".join(f"{name}: {value}" for name, value in about.items()))
    report(contestants)
    results = {"machine": about, "turns": {each.name: [vars(turn) for turn in each.turns] for each in contestants}}
    harness.write_results(options.json, results)
    progress(f"written: {options.json}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loading", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, metavar="N", help="rows of the file")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="loads of each")
    parser.add_argument("--quick", action="store_true", help="tiny: shows that it works, not how fast it is")
    parser.add_argument(
        "--json",
        type=Path,
        default=harness.results_file("loading"),
        metavar="FILE",
        help="where the figures are written (benchmarks/results/loading-TIME.json)",
    )
    return parser


if __name__ == "__main__":
    main()
