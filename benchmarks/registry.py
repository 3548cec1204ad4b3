"""Triglot's registry beside Feast's own registry server, on one PostgreSQL, in one run.

python -m benchmarks.registry [--sizes 100 2000 20000] [--only triglot] [--quick] [--json [FILE]]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import asyncpg

from benchmarks import catalogue, harness, processes
from benchmarks.contestants import FEAST, PRODUCTS, SERVICE, Place
from benchmarks.harness import Contestant, Limits, Refused, Sample, Turn, figure, progress
from protos.gen.feast.registry import RegistryServer_pb2 as rpc
from protos.gen.feast.types.Value_pb2 import ValueType
from triglot.embedded import EmbeddedPostgres

SIZES = (100, 2_000, 20_000)
_NAMES = ("Triglot", "Feast")
# Written apart from what is read, so that writing does not make it bigger.
_SCRATCH = "scratch"
_CONCURRENT = 8


# ---- what is measured ----


@dataclass(frozen=True)
class Operation:
    """One row of the result, for each size."""

    title: str
    turn: Turn
    goal_ms: float | None = None
    goal_size: int | None = None  # the size that the goal is for, if not for each
    flat: bool = False  # whether it should take as long at any size
    most_calls: int | None = None  # in one turn: writes make the registry bigger


def read(path: str, check: Callable[[dict[str, Any], int], bool], **parameters: str | int) -> Turn:
    """GET that path; `check` says whether the answer, at that size, is what was asked for. Checked once a turn."""

    def turn(contestant: Contestant, limits: Limits) -> list[float]:
        answers: list[bytes] = []

        def prepare(_: Contestant) -> Callable[[], object]:
            answers.clear()
            return lambda: answers.append(contestant.http.get(f"/api/v1{path}", **parameters))

        contestant.http.connect()
        times = harness.one_by_one(prepare)(contestant, limits)
        if not check(json.loads(answers[-1]), contestant.size):
            raise Refused(f"not what was asked for: {answers[-1][:300]!r}")
        return times

    return turn


def apply_view(*, changed: bool) -> Turn:
    """ApplyFeatureView of a view that is new, or of the first few again, with other types of its features each time."""
    # Each contestant counts for itself: otherwise how many there are would decide which types follow each other.
    numbers: defaultdict[Contestant, Iterator[int]] = defaultdict(itertools.count)

    def prepare(contestant: Contestant) -> Callable[[], object]:
        number = next(numbers[contestant])
        view = catalogue.feature_view(number % 5 if changed else number, "made", _SCRATCH)
        if changed:
            types = (ValueType.FLOAT, ValueType.INT64, ValueType.DOUBLE)
            for feature in view.spec.features:
                feature.value_type = types[number // 5 % len(types)]
        message = rpc.ApplyFeatureViewRequest(feature_view=view, project=_SCRATCH, commit=True).SerializeToString()
        return lambda: contestant.grpc.call(f"{SERVICE}ApplyFeatureView", message)

    return harness.one_by_one(prepare)


def get_entity(clients: int) -> Turn:
    """GetEntity by so many clients at once; Feast may answer from its cache."""
    message = rpc.GetEntityRequest(
        name=catalogue.ENTITIES[0], project=catalogue.PROJECT, allow_cache=True
    ).SerializeToString()
    return lambda contestant, limits: contestant.grpc.storm(
        f"{SERVICE}GetEntity", message, clients, limits.turn_seconds
    )


PROJECT = catalogue.PROJECT
ONE_CLIENT = Operation("GetEntity, gRPC, 1 client", get_entity(1), goal_ms=1, flat=True)
ALL_CLIENTS = Operation(f"GetEntity, gRPC, {_CONCURRENT} clients", get_entity(_CONCURRENT), flat=True)
LINEAGE = Operation(
    "lineage/complete",
    read("/lineage/complete", lambda found, size: found["project"] == PROJECT, project=PROJECT),
    goal_ms=400,
    goal_size=2_000,
)
# What takes Feast longest comes last: who does not answer stays out of what follows.
OPERATIONS = (
    ONE_CLIENT,
    ALL_CLIENTS,
    Operation("ApplyFeatureView, new", apply_view(changed=False), goal_ms=8, flat=True, most_calls=5),
    Operation("ApplyFeatureView, other types", apply_view(changed=True), goal_ms=8, flat=True, most_calls=5),
    Operation(
        "metrics/resource_counts",
        read(
            "/metrics/resource_counts",
            lambda found, size: found["counts"]["featureViews"] == size,
            project=PROJECT,
        ),
        goal_ms=15,
        flat=True,
    ),
    Operation(
        "search, 96 matches",
        read(
            "/search",
            lambda found, size: len(found["results"]) >= 96,
            query=catalogue.RARE,
            projects=PROJECT,
            page=1,
            limit=100,
        ),
        goal_ms=15,
        flat=True,
    ),
    Operation(
        "entities/{name}",
        read(
            f"/entities/{catalogue.ENTITIES[0]}",
            lambda found, size: found["spec"]["name"] == catalogue.ENTITIES[0],
            project=PROJECT,
        ),
        goal_ms=15,
        flat=True,
    ),
    Operation(
        "feature_views, page of 10 with relationships",
        read(
            "/feature_views",
            lambda found, size: len(found["featureViews"]) == 10,
            project=PROJECT,
            page=1,
            limit=10,
            include_relationships="true",
        ),
        goal_ms=15,
        flat=True,
    ),
)

Results = dict[Operation, dict[Contestant, Sample]]


def measure(
    operations: Sequence[Operation],
    contestants: Sequence[Contestant],
    limits: Limits,
    database_cpu: Callable[[], float],
) -> Results:
    results: Results = {}
    for operation in operations:
        progress(f"{operation.title} ...")
        calls = min(limits.turn_calls, operation.most_calls or limits.turn_calls)
        results[operation] = harness.compare(
            contestants, operation.turn, replace(limits, turn_calls=calls), database_cpu
        )
    return results


@dataclass(frozen=True)
class Memory:
    """Resident memory of a server's processes, in MiB: before lineage/complete was asked for, the most, and after."""

    before: float
    peak: float
    after: float


def measure_lineage(
    contestants: Sequence[Contestant], limits: Limits, database_cpu: Callable[[], float]
) -> tuple[Results, dict[Contestant, Memory]]:
    """lineage/complete, and what it does to a server's memory."""
    running = [each for each in contestants if not each.stopped]
    before = {}
    for each in running:
        before[each] = each.process.memory_mib()
        each.process.forget_peak()
    results = measure([LINEAGE], contestants, limits, database_cpu)
    memory = {
        each: Memory(before[each], each.process.memory_mib("VmHWM"), each.process.memory_mib())
        for each in running
        if not each.stopped
    }
    return results, memory


# ---- the output ----


def report(results: Results, memory: dict[Contestant, Memory], sizes: Sequence[int]) -> None:
    _report_pairs(results, sizes)
    _report_processor_time(results, sizes)
    _report_throughput(results)
    if len(sizes) > 1:
        _report_flatness(results, sizes)
    harness.table(
        "Resident memory of the server's processes around lineage/complete, MiB",
        ["views", "server", "before", "peak", "after"],
        [
            [f"{each.size:,}", each.product, *(figure(mib) for mib in (found.before, found.peak, found.after))]
            for each, found in memory.items()
        ],
    )
    for operation, samples in results.items():
        for contestant, sample in samples.items():
            if sample.note:
                print(f"{operation.title}: {contestant.product} at {contestant.size:,} views: {sample.note}")


def _report_pairs(results: Results, sizes: Sequence[int]) -> None:
    rows = []
    for operation, samples in results.items():
        for size in sizes:
            found = {each.product: sample for each, sample in samples.items() if each.size == size}
            ours, theirs = found.get("Triglot", Sample()), found.get("Feast", Sample())
            ratio = theirs.median_ms / ours.median_ms if theirs.median_ms and ours.median_ms else None
            goal = operation.goal_ms if operation.goal_size in {None, size} else None
            reached = "" if goal is None or ours.median_ms is None else " yes" if ours.median_ms < goal else " NO"
            rows.append(
                [
                    operation.title,
                    f"{size:,}",
                    *(text for each in (ours, theirs) for text in _cells(each)),
                    figure(ratio, "x"),
                    (f"< {goal:g}" if goal else "") + reached,
                ]
            )
    cells = ("n", "fastest", "median", "p95")
    columns = ["milliseconds", "views", *(f"{each}\n{cell}" for each in _NAMES for cell in cells)]
    columns += ["ratio of\nmedians", "goal"]
    harness.table("Triglot and Feast, interleaved", columns, rows)


def _cells(sample: Sample) -> tuple[str, ...]:
    return (str(len(sample.times) or "-"), *map(figure, (sample.fastest_ms, sample.median_ms, sample.p95_ms)))


def _report_processor_time(results: Results, sizes: Sequence[int]) -> None:
    rows = []
    for operation, samples in results.items():
        found = {(each.product, each.size): sample for each, sample in samples.items()}
        asked = [found.get((product, size), Sample()) for product in _NAMES for size in sizes]
        rows.append([operation.title, *(f"{figure(each.cpu_ms)} + {figure(each.database_ms)}" for each in asked)])
    columns = ["server + PostgreSQL", *(f"{product}\n{size:,}" for product in _NAMES for size in sizes)]
    harness.table("Processor time of a call, ms", columns, rows)


def _report_throughput(results: Results) -> None:
    rows = []
    for one, sample in results[ONE_CLIENT].items():
        alone, together = sample.rate, results[ALL_CLIENTS][one].rate
        gain = together / alone if alone and together else None
        rows.append([f"{one.size:,}", one.product, figure(alone), figure(together), figure(gain, "x")])
    columns = ["views", "server", "1 client", f"{_CONCURRENT} clients", "gain"]
    harness.table("GetEntity over gRPC, calls a second", columns, rows)


def _report_flatness(results: Results, sizes: Sequence[int]) -> None:
    rows = []
    for operation, samples in results.items():
        found = {each.size: sample.median_ms for each, sample in samples.items() if each.product == "Triglot"}
        first, last = found.get(sizes[0]), found.get(sizes[-1])
        ratio = last / first if first and last else None
        goal = "" if ratio is None or not operation.flat else "<= 2 yes" if ratio <= 2 else "<= 2 NO"
        rows.append([operation.title, *(figure(found.get(size)) for size in sizes), figure(ratio, "x"), goal])
    columns = ["median ms", *(f"{size:,}" for size in sizes), f"{sizes[-1]:,} / {sizes[0]:,}", "goal"]
    harness.table("Triglot by the number of views", columns, rows)


def as_json(about: dict[str, str], results: Results, memory: dict[Contestant, Memory]) -> dict[str, Any]:
    return {
        "machine": about,
        "operations": [
            {
                "operation": operation.title,
                "product": contestant.product,
                "views": contestant.size,
                "n": len(sample.times),
                "fastest_ms": sample.fastest_ms,
                "median_ms": sample.median_ms,
                "p95_ms": sample.p95_ms,
                "processor_ms": sample.cpu_ms,
                "postgresql_processor_ms": sample.database_ms,
                "calls_per_second": sample.rate,
                "note": sample.note,
            }
            for operation, samples in results.items()
            for contestant, sample in samples.items()
        ],
        "lineage_memory_mib": [
            {"product": each.product, "views": each.size, **vars(found)} for each, found in memory.items()
        ],
    }


# ---- the run ----


async def _create_databases(url: str, names: Sequence[str]) -> None:
    connection = await asyncpg.connect(url)
    for name in names:
        await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()


async def _settle(url: str) -> str:
    """VACUUM ANALYZE, which autovacuum would do at some moment of the run. PostgreSQL's version."""
    connection = await asyncpg.connect(url)
    await connection.execute("VACUUM (ANALYZE)")
    version: str = await connection.fetchval("SHOW server_version")
    await connection.close()
    return version


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    sizes = (10, 20) if options.quick else tuple(sorted(set(options.sizes)))
    limits = Limits(2, 0.02, 3, 10) if options.quick else Limits(10, 0.5, 30, options.budget)
    products = [options.only] if options.only else list(PRODUCTS)
    if "feast" in products and not (FEAST / "feast").exists():
        raise SystemExit("Feast's environment is missing: start this by `make bench-registry`, or with --only triglot")
    processes.interruptible()
    about = harness.machine()
    with ExitStack() as closing:
        folder = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="triglot-bench-")))
        postgres = EmbeddedPostgres(folder / "data")
        closing.callback(postgres.destroy)
        url = postgres.start()
        asyncio.run(_create_databases(url, [f"{product}_{size}" for size in sizes for product in products]))
        contestants = []
        for size in sizes:
            content = catalogue.registry(size)
            for product in products:
                own = folder / f"{product}-{size}"
                own.mkdir()
                progress(f"{product} with {size:,} views of 10 features ...")
                place = Place(own, f"{url.rpartition('/')[0]}/{product}_{size}", options.patience)
                contestants.append(closing.enter_context(PRODUCTS[product](size, content, place)))
                about["postgresql"] = asyncio.run(_settle(place.url))
        [pid_file] = (folder / "data").glob("pg*/postmaster.pid")
        postmaster = int(pid_file.read_text().splitlines()[0])

        def database_cpu() -> float:
            return processes.family_cpu_seconds(postmaster)

        results = measure(OPERATIONS, contestants, limits, database_cpu)
        lineage, memory = measure_lineage(contestants, limits, database_cpu)
        results |= lineage
    about["load afterwards"] = harness.machine()["load"]
    print("\n".join(f"{name}: {value}" for name, value in about.items()))
    report(results, memory, sizes)
    if options.json:
        harness.write_results(options.json, as_json(about, results, memory))
        progress(f"written: {options.json}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.registry", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="N", help="views in the registry")
    parser.add_argument("--only", choices=list(PRODUCTS), help="leave the other product out")
    parser.add_argument("--quick", action="store_true", help="tiny: shows that it works, not how fast it is")
    parser.add_argument("--budget", type=float, default=40, metavar="S", help="seconds for one row of one server")
    parser.add_argument("--patience", type=float, default=150, metavar="S", help="seconds that one call may take")
    parser.add_argument(
        "--json",
        type=Path,
        nargs="?",
        const=harness.results_file("registry"),
        metavar="FILE",
        help="write the figures there too, or to benchmarks/results/registry-TIME.json",
    )
    return parser


if __name__ == "__main__":
    main()
