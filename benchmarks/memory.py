"""Bytes of Redis for a row, in Triglot's layout and in Feast's: the same rows, each written by its product's own code.

python -m benchmarks.memory [--rows 20000] [--only triglot] [--json [FILE]]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import redis

from benchmarks import feature_servers, harness, processes
from benchmarks.feature_servers import FEAST, FEAST_SETTINGS, TRIGLOT
from benchmarks.harness import progress
from benchmarks.processes import ROOT
from benchmarks.vectors import KEY, STORE, TENS, Group
from triglot.embedded import EmbeddedPostgres, EmbeddedRedis

# Feast keeps all views of an entity in one hash, so what a row costs depends on how many there are.
SIZES = (1, 5)
TRIGLOT_PLAIN, TRIGLOT_TIMED, FEAST_REDIS = "Triglot", "Triglot, event time", "Feast"
_TIME = "event_timestamp"
_SAMPLE = 1_000


@dataclass(frozen=True)
class Footprint:
    """What one product's rows of so many groups take."""

    product: str
    groups: int
    rows: int  # of all groups together
    keys: int  # in Redis
    used_bytes: int  # by which Redis grew
    usage_bytes: float  # MEMORY USAGE of a row, on average

    @property
    def row_bytes(self) -> float:
        """Of one row of one group, with all that Redis keeps about it."""
        return self.used_bytes / self.rows


Writer = Callable[[Sequence[Path]], None]


def measure(product: str, client: redis.Redis, write: Writer, files: Sequence[Path], rows: int) -> Footprint:
    """The footprint of files that are written into an empty Redis."""
    client.flushall()
    before = _used(client)
    write(files)
    used, keys = _used(client) - before, int(client.dbsize())
    sample = list(islice(client.scan_iter(count=_SAMPLE), _SAMPLE))
    usage = sum(int(client.memory_usage(key, samples=0) or 0) for key in sample) / len(sample) * keys
    footprint = Footprint(product, len(files), rows * len(files), keys, used, usage / (rows * len(files)))
    progress(f"{product}, {len(files)} groups: {footprint.row_bytes:.0f} bytes a row")
    return footprint


def _used(client: redis.Redis) -> int:
    return int(client.info("memory")["used_memory"])


def raw_bytes(group: Group, rows: int) -> float:
    """The values of a row as text, without anything around them."""
    numbers = range(0, rows, max(1, rows // _SAMPLE))
    return sum(sum(len(str(value)) for value in group.vector(number)) for number in numbers) / len(numbers)


def write_file(group: Group, rows: int, folder: Path) -> Path:
    """A Parquet file as both read it: Feast wants a time for each row."""
    moment = pa.array([datetime.now(UTC)] * rows, pa.timestamp("us", tz="UTC"))
    path = folder / f"{group.name}.parquet"
    pq.write_table(group.table(0, rows).append_column(_TIME, moment), path)
    return path


# ---- writers ----


def triglot_writer(endpoints: dict[str, Any], folder: Path, *, timed: bool) -> Writer:
    """`triglot load`. Feast keeps the time of each row beside it; here it is a column of groups that want it."""
    env = processes.clean_environment(
        TRIGLOT_SERVING_TARGET=endpoints["serving_grpc"], TRIGLOT_API_KEY=endpoints["api_key"]
    )

    def write(files: Sequence[Path]) -> None:
        for file in files:
            path, more = file, ["--event-time", _TIME]
            if not timed:
                path, more = folder / f"plain_{file.name}", []
                pq.write_table(pq.read_table(file).drop_columns([_TIME]), path)
            group = f"{STORE}/{path.stem}_{len(files)}"
            processes.run([TRIGLOT, "load", path, "--feature-group", group, "--key", KEY, *more, "--json"], folder, env)

    return write


def feast_writer(redis_url: str, folder: Path) -> Writer:
    """Feast's own `write_to_online_store`."""
    address = urlsplit(redis_url)
    settings = FEAST_SETTINGS.format(
        project="bench", host=address.hostname, port=address.port, password=address.password or ""
    )
    (folder / "feature_store.yaml").write_text(settings)
    # Feast would otherwise tell its makers that it is used.
    env = processes.clean_environment(FEAST_USAGE="False")
    groups = {group.name: group for group in TENS}

    def write(files: Sequence[Path]) -> None:
        told = [{"name": file.stem, "types": groups[file.stem].types} for file in files]
        (folder / "groups.json").write_text(json.dumps(told))
        (folder / "views.json").write_text("{}")
        processes.run([FEAST / "python", ROOT / "benchmarks" / "feast" / "vectors.py", folder], folder, env)

    return write


# ---- the run ----


def report(found: Sequence[Footprint], raw: float) -> None:
    rows = []
    for each in found:
        ours = next(one for one in found if one.product == TRIGLOT_PLAIN and one.groups == each.groups)
        rows.append(
            [
                each.product,
                str(each.groups),
                f"{each.keys:,}",
                f"{each.row_bytes:,.0f}",
                f"{each.usage_bytes:,.0f}",
                f"{each.row_bytes / ours.row_bytes:.2f}",
            ]
        )
    columns = ["", "groups of an entity", "keys in Redis", "bytes a row", "MEMORY USAGE", "to Triglot's"]
    harness.table(f"Rows of 10 features, {raw:.0f} bytes as bare text, in Redis", columns, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    processes.interruptible()
    with ExitStack() as closing:
        folder = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="triglot-bench-")))
        files = [write_file(group, options.rows, folder) for group in TENS]
        store = EmbeddedRedis(folder)
        closing.callback(store.destroy)
        url = store.start()
        client = closing.enter_context(redis.Redis.from_url(url))
        closing.callback(EmbeddedPostgres(folder / "data").destroy)
        progress("triglot up ...")
        stack = closing.enter_context(feature_servers.triglot(folder, TRIGLOT_REDIS_URL=url))
        endpoints = dict(stack.endpoints)
        writers = {
            TRIGLOT_PLAIN: triglot_writer(endpoints, folder, timed=False),
            TRIGLOT_TIMED: triglot_writer(endpoints, folder, timed=True),
        }
        if options.only != "triglot":
            writers[FEAST_REDIS] = feast_writer(url, folder)
        found = [
            measure(product, client, write, files[:groups], options.rows)
            for groups in SIZES
            for product, write in writers.items()
        ]
    raw = raw_bytes(TENS[0], options.rows)
    print("\n".join(f"{name}: {value}" for name, value in harness.machine().items()))
    report(found, raw)
    if options.json:
        results = {"raw_bytes": raw, "footprints": [asdict(each) | {"row_bytes": each.row_bytes} for each in found]}
        harness.write_results(options.json, {"machine": harness.machine(), **results})
        progress(f"written: {options.json}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000, metavar="N", help="rows of each group")
    parser.add_argument("--only", choices=["triglot"], help="leave Feast out")
    parser.add_argument(
        "--json",
        type=Path,
        nargs="?",
        const=harness.results_file("memory"),
        metavar="FILE",
        help="write the figures there too, or to benchmarks/results/memory-TIME.json",
    )
    return parser


if __name__ == "__main__":
    main()
