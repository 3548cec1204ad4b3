"""Memory of a load does not grow with the file: neither the loader's nor serving's."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.serving.conftest import Client
from tests.serving.test_load_command import Command, listening, serving, triglot

__all__ = ["listening", "serving", "triglot"]

pytestmark = pytest.mark.stack

ROWS, TIMES = 10_000, 10
_TEXT_BYTES = 1_500
# The larger file holds 135 MB more than the smaller one.
MOST_GROWTH_KIB = 60 * 1024


def written(folder: Path, rows: int) -> Path:
    """One row group, so that only reading it bit by bit keeps memory flat; and text that cannot be compressed."""
    path = folder / f"{rows}.parquet"
    texts = [os.urandom(_TEXT_BYTES // 2).hex() for _ in range(rows)]
    pq.write_table(pa.table({"id": range(rows), "x": texts}), path, row_group_size=rows, use_dictionary=False)
    return path


def forget_own_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def own_peak_kib() -> int:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1])


async def test_memory_stays_flat(triglot: Command, serving: Client, tmp_path: Path) -> None:
    """Serving is in this process; the loader is one of its own."""
    files = [written(tmp_path, rows) for rows in (ROWS, ROWS * TIMES)]
    await serving.group("g", {"id": "bigint", "x": "string"}, ["id"])
    loaders, servings = [], []
    for path in (files[0], *files):  # the first load warms up
        forget_own_peak()
        process = triglot.start("load", path, "--feature-group", "demo/g", "--json")
        _, status, used = await asyncio.to_thread(os.wait4, process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        _, said = process.communicate()
        assert process.returncode == 0, said
        loaders.append(used.ru_maxrss)
        servings.append(own_peak_kib())
    assert files[1].stat().st_size > 2 * MOST_GROWTH_KIB * 1024
    assert loaders[2] - loaders[1] < MOST_GROWTH_KIB
    assert servings[2] - servings[1] < MOST_GROWTH_KIB
