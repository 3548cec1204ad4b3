"""A table of Parquet files into online rows, by PublishFeatureViewTable: how fast, in how much memory, by whom.

python -m benchmarks.publish [--rows 1000000] [--large 10000000] [--rounds 3] [--quick] [--json [FILE]]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pyarrow.parquet as pq
import redis

from benchmarks import harness, processes
from benchmarks.feature_servers import TRIGLOT
from benchmarks.harness import figure, progress
from benchmarks.loading import redis_cpu, table
from benchmarks.processes import ROOT, Process
from chassis.identity.store import IdentityStore
from chassis.migrations import migrate
from chassis.postgres import open_database
from chassis.principals import Principal
from chassis.secretbox import SecretBox, new_key
from chassis.settings import Settings
from protos.gen.triglot.management.v1 import datasource_pb2, feature_entity_pb2, feature_view_pb2, project_pb2, task_pb2
from protos.gen.triglot.management.v1.management_service_pb2_grpc import ManagementServiceStub
from triglot.embedded import EmbeddedPostgres, EmbeddedRedis
from triglot.schemas import SCHEMAS

GOAL_ROWS_PER_SECOND = 100_000
# How much more a worker may hold for ten times the rows.
GOAL_MEMORY_MIB = 32
HISTORY = ROOT / "docs" / "performance.md"
_HISTORY_ENDS = "<!-- publishing runs end here -->"
_INSTANCE = "fs-cn-triglot"
# So many it does at a time: with as many partitions for each worker, none can take another one's.
_TASKS_OF_A_WORKER = 2
_ROWS, _LARGE, _WORKERS = 1_000_000, 10_000_000, 2
_START_SECONDS = 120.0
_POLL_SECONDS = 0.1
_MEMORY_SECONDS = 0.05
_PAI_TYPES = {
    "int64": "INT64", "int32": "INT32", "double": "DOUBLE", "float": "FLOAT", "string": "STRING", "bool": "BOOLEAN",
    "timestamp[us]": "TIMESTAMP",
}  # fmt: skip


@dataclass
class Turn:
    """One publish. Processor seconds are of the worker, of serving and of Redis."""

    what: str
    rows: int
    seconds: float
    worker_cpu: float
    serving_cpu: float
    redis_cpu: float
    # Of the worker: the most that was resident, sampled.
    memory_mib: float

    @property
    def rows_per_second(self) -> float:
        return self.rows / self.seconds

    def per_million(self, cpu_seconds: float) -> float:
        """Processor seconds of a million rows: what a busy machine spoils least."""
        return cpu_seconds / self.rows * 1e6


class Stack:
    """Serving, management and workers as processes of their own, as in a deployment."""

    def __init__(self, folder: Path, redis_url: str, postgres_url: str, closing: ExitStack) -> None:
        self.folder = folder
        self.redis_url = redis_url
        self._closing = closing
        secret = new_key()
        key = asyncio.run(_identity(postgres_url, secret))
        self._env = processes.clean_environment(
            TRIGLOT_POSTGRES_URL=postgres_url,
            TRIGLOT_REDIS_URL=redis_url,
            TRIGLOT_SECRET_KEY=secret,
            TRIGLOT_SERVICE_API_KEY=key,
            TRIGLOT_HOST="127.0.0.1",
            TRIGLOT_SERVING_PORT="0",
            TRIGLOT_MANAGEMENT_PORT="0",
            TRIGLOT_METRICS_PORT="0",
            TRIGLOT_MANAGEMENT_OFFLINE_ROOTS=json.dumps([str(folder)]),
        )
        self.serving, port = self._served("serving")
        self._env["TRIGLOT_SERVING_TARGET"] = f"127.0.0.1:{port}"
        _, port = self._served("management")
        channel = closing.enter_context(grpc.insecure_channel(f"127.0.0.1:{port}"))
        self._stub = ManagementServiceStub(channel)
        self._metadata = (("authorization", f"Bearer {key}"),)
        self._project = self._catalogue()

    def call(self, operation: str, request: Any) -> Any:
        """An operation's answer."""
        return getattr(self._stub, operation)(request, metadata=self._metadata, timeout=60)

    @contextmanager
    def workers(self, count: int) -> Iterator[list[Process]]:
        """So many worker processes, ready to work."""
        running = [
            Process([TRIGLOT, "serve", "worker"], self.folder, self._env, self.folder / f"worker{number}.log")
            for number in range(count)
        ]
        try:
            for each in running:
                each.wait_until(lambda each=each: each.logged("working"), _START_SECONDS)  # type: ignore[misc]
            yield running
        finally:
            for each in running:
                each.stop()

    def view(self, name: str) -> str:
        """A view of a table in the folder; its id."""
        request = feature_view_pb2.CreateFeatureViewRequest(
            instance_id=_INSTANCE, project_id=self._project, name=name, type="Batch", feature_entity_id="1",
            write_method="ByReadyMadeTable", register_table=name, register_datasource_id="1", sync_online_table=True,
            fields=[
                feature_view_pb2.FeatureViewField(
                    name=column.name, type=_PAI_TYPES[str(column.type)],
                    attributes=["PrimaryKey"] if column.name == "id" else [],
                )
                for column in table(0, 1).schema
            ],
        )  # fmt: skip
        return str(self.call("CreateFeatureView", request).feature_view_id)

    def publish(self, view: str, mode: str = "Overwrite", **partitions: str) -> str:
        """The id of the task."""
        chosen = {name: feature_view_pb2.PartitionSelection(values=[value]) for name, value in partitions.items()}
        request = feature_view_pb2.PublishFeatureViewTableRequest(
            instance_id=_INSTANCE, feature_view_id=view, mode=mode, partitions=chosen, offline_to_online=True
        )
        return str(self.call("PublishFeatureViewTable", request).task_id)

    def wait(self, task: str) -> task_pb2.Task:
        """The task, once it has ended well."""
        while True:
            request = task_pb2.GetTaskRequest(instance_id=_INSTANCE, task_id=task)
            found: task_pb2.Task = self.call("GetTask", request).task
            if found.status == "Success":
                return found
            if found.status == "Failure":
                raise RuntimeError("\n".join(self.logs(task)))
            time.sleep(_POLL_SECONDS)

    def logs(self, task: str) -> list[str]:
        """What the task did."""
        request = task_pb2.ListTaskLogsRequest(instance_id=_INSTANCE, task_id=task, page_size=100)
        return list(self.call("ListTaskLogs", request).logs)

    def _served(self, role: str) -> tuple[Process, int]:
        process = Process([TRIGLOT, "serve", role], self.folder, self._env, self.folder / f"{role}.log")
        self._closing.callback(process.stop)
        said = process.wait_until(lambda: process.logged("serving"), _START_SECONDS)
        return process, int(said["port"])

    def _catalogue(self) -> str:
        config = json.dumps({"root": str(self.folder)})
        for name, kind in (("offline", "MaxCompute"), ("online", "FeatureDB")):
            self.call(
                "CreateDatasource",
                datasource_pb2.CreateDatasourceRequest(
                    instance_id=_INSTANCE, name=name, workspace_id="1", type=kind, uri=name,
                    config=config if kind == "MaxCompute" else "{}",
                ),
            )  # fmt: skip
        project = self.call(
            "CreateProject",
            project_pb2.CreateProjectRequest(
                instance_id=_INSTANCE, name="bench", workspace_id="1", offline_datasource_id="1",
                online_datasource_id="2",
            ),
        ).project_id  # fmt: skip
        entity = feature_entity_pb2.CreateFeatureEntityRequest(
            instance_id=_INSTANCE, name="user", join_id="user_id", project_id=project
        )
        self.call("CreateFeatureEntity", entity)
        return str(project)


async def _identity(postgres_url: str, secret: str) -> str:
    """Bring the database up to date; an administrator's key."""
    await migrate(postgres_url, SCHEMAS)
    database = await open_database(Settings(postgres_url=postgres_url))
    try:
        store = IdentityStore(database, SecretBox(Settings(secret_key=secret).secret_key))
        await store.create_principal(Principal("bench", administrator=True))
        key, _ = await store.create_api_key("bench")
        return key
    finally:
        await database.close()


def write_table(folder: Path, name: str, rows: int, parts: Sequence[str]) -> None:
    """Parquet files of ten columns: one, or one in each partition `ds`."""
    for number, part in enumerate(parts):
        path = folder / name / part / "part-0.parquet"
        path.parent.mkdir(parents=True)
        first, end = rows * number // len(parts), rows * (number + 1) // len(parts)
        with pq.ParquetWriter(path, table(0, 1).schema) as writer:
            for start in range(first, end, 100_000):
                writer.write_table(table(start, min(end, start + 100_000)))


@contextmanager
def watched(process: Process) -> Iterator[list[float]]:
    """The most that is resident in a process while the block runs, as the last item of a list."""
    most, stop = [process.memory_mib()], threading.Event()

    def watch() -> None:
        while not stop.wait(_MEMORY_SECONDS):
            most.append(max(most[-1], process.memory_mib()))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield most
    finally:
        stop.set()
        watching.join()


def published(stack: Stack, what: str, view: str, rows: int) -> Turn:
    """One publish by a worker of its own, which has done nothing before."""
    with stack.workers(1) as [worker], redis.Redis.from_url(stack.redis_url) as client, watched(worker) as most:
        used = worker.cpu_seconds(), stack.serving.cpu_seconds(), redis_cpu(client)
        begin = time.perf_counter()
        stack.wait(stack.publish(view))
        seconds = time.perf_counter() - begin
        now = worker.cpu_seconds(), stack.serving.cpu_seconds(), redis_cpu(client)
        cpu = [after - before for before, after in zip(used, now, strict=True)]
        turn = Turn(what, rows, seconds, cpu[0], cpu[1], cpu[2], most[-1])
    progress(f"{what}: {turn.rows_per_second:,.0f} rows/s, {turn.memory_mib:.0f} MiB")
    return turn


def shared(stack: Stack, view: str, rows: int, parts: Sequence[str]) -> tuple[float, dict[str, list[str]]]:
    """Workers that share partitions, a task for each: seconds, and what each task's log says of who did what."""
    with stack.workers(len(parts) // _TASKS_OF_A_WORKER):
        begin = time.perf_counter()
        tasks = {part: stack.publish(view, "Merge", ds=part) for part in parts}
        for task in tasks.values():
            stack.wait(task)
        seconds = time.perf_counter() - begin
    progress(f"{len(parts)} partitions: {rows / seconds:,.0f} rows/s")
    return seconds, {
        part: [line for line in stack.logs(task) if "by worker" in line or "done:" in line]
        for part, task in tasks.items()
    }


# ---- the run ----


def report(turns: Sequence[Turn], seconds: float, rows: int, told: dict[str, list[str]]) -> dict[str, Any]:
    """Print what was found; the figures that are aimed at."""
    shown = []
    for what in dict.fromkeys(turn.what for turn in turns):
        some = [turn for turn in turns if turn.what == what]
        cpu = [
            figure(statistics.median(turn.per_million(getattr(turn, name)) for turn in some), " s")
            for name in ("worker_cpu", "serving_cpu", "redis_cpu")
        ]
        rates = [turn.rows_per_second for turn in some]
        memory = figure(max(turn.memory_mib for turn in some), " MiB")
        shown.append([what, figure(statistics.median(rates)), figure(max(rates)), *cpu, memory])
    columns = [
        "rows of 10 columns",
        "rows/s",
        "best",
        "worker cpu / 1e6 rows",
        "serving cpu",
        "Redis cpu",
        "worker memory",
    ]
    harness.table("Publishing rows of 10 columns, one worker", columns, shown)
    workers = {line.rpartition("by worker ")[2] for lines in told.values() for line in lines if "by worker" in line}
    print(f"\n{len(told)} partitions at once, {rows / seconds:,.0f} rows/s by {len(workers)} workers:")
    for part, lines in told.items():
        print(*(f"  {part}  {line}" for line in lines), sep="\n")
    first, last = turns[0].what, turns[-1].what
    grown = max(t.memory_mib for t in turns if t.what == last) - max(t.memory_mib for t in turns if t.what == first)
    best = max(turn.rows_per_second for turn in turns)
    goals = {
        f"{GOAL_ROWS_PER_SECOND:,} rows/s": (best >= GOAL_ROWS_PER_SECOND, f"{best:,.0f}"),
        f"from {first} to {last} rows at most {GOAL_MEMORY_MIB} MiB more": (
            grown <= GOAL_MEMORY_MIB,
            f"{grown:+.0f} MiB",
        ),
        f"{len(told) // _TASKS_OF_A_WORKER} workers share the partitions": (
            len(workers) == len(told) // _TASKS_OF_A_WORKER,
            f"{len(workers)}",
        ),
    }
    print()
    for goal, (reached, found) in goals.items():
        print(f"aimed at: {goal}; {found} is {'reached' if reached else 'not reached'}")
    return {
        "goals": {goal: {"reached": reached, "found": found} for goal, (reached, found) in goals.items()},
        "rows_per_second": best,
        "cpu_seconds_per_million_rows": min(
            turn.per_million(turn.worker_cpu + turn.serving_cpu + turn.redis_cpu) for turn in turns
        ),
        "memory_growth_mib": grown,
        "rows_per_second_of_all_workers": rows / seconds,
    }


def remember(about: dict[str, str], found: dict[str, Any]) -> None:
    """Add a line to the history."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    reached = sum(goal["reached"] for goal in found["goals"].values())
    line = (
        f"| {about['time']} | {commit} | {about['processors']} | {about['load']}; {about['load afterwards']} "
        f"| {found['rows_per_second']:,.0f} | {found['cpu_seconds_per_million_rows']:.1f} s "
        f"| {found['memory_growth_mib']:+.0f} MiB | {found['rows_per_second_of_all_workers']:,.0f} "
        f"| {reached} of {len(found['goals'])} |\n"
    )
    text = HISTORY.read_text()
    HISTORY.write_text(text.replace(_HISTORY_ENDS, line + _HISTORY_ENDS))


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    rows, large, rounds = (2_000, 20_000, 1) if options.quick else (options.rows, options.large, options.rounds)
    parts = [f"ds={number}" for number in range(options.workers * _TASKS_OF_A_WORKER)]
    processes.interruptible()
    about = harness.machine()
    with ExitStack() as closing:
        folder = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="triglot-bench-")))
        progress("writing tables ...")
        for name, count, folders in (("small", rows, [""]), ("large", large, [""]), ("parted", rows, parts)):
            write_table(folder, name, count, folders)
        store, database = EmbeddedRedis(folder), EmbeddedPostgres(folder / "data")
        for embedded in (store, database):
            closing.callback(embedded.destroy)
        stack = Stack(folder, store.start(), database.start(), closing)
        views = {name: stack.view(name) for name in ("small", "large", "parted")}
        turns = [published(stack, f"{rows:,}", views["small"], rows) for _ in range(rounds)]
        turns.append(published(stack, f"{large:,}", views["large"], large))
        seconds, told = shared(stack, views["parted"], rows, [part.removeprefix("ds=") for part in parts])
    about["load afterwards"] = harness.machine()["load"]
    print("\n".join(f"{name}: {value}" for name, value in about.items()))
    found = report(turns, seconds, rows, told)
    harness.write_results(
        options.json, {"machine": about, "turns": [vars(turn) for turn in turns], "workers": told, **found}
    )
    progress(f"written: {options.json}")
    if (rows, large, options.workers) == (_ROWS, _LARGE, _WORKERS):
        remember(about, found)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.publish", description=__doc__)
    parser.add_argument("--rows", type=int, default=_ROWS, metavar="N", help="rows of the table that is timed")
    parser.add_argument("--large", type=int, default=_LARGE, metavar="N", help="rows of the table for memory")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="publishes of the first one")
    parser.add_argument(
        "--workers", type=int, default=_WORKERS, metavar="N", help="workers that share twice as many partitions"
    )
    parser.add_argument("--quick", action="store_true", help="tiny: shows that it works, not how fast it is")
    parser.add_argument(
        "--json",
        type=Path,
        default=harness.results_file("publish"),
        metavar="FILE",
        help="where the figures are written (benchmarks/results/publish-TIME.json)",
    )
    return parser


if __name__ == "__main__":
    main()
