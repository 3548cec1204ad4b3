"""What groups hold and what is done with them, at a cost that does not grow with either."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime

from services.serving.catalogue import Catalogue
from services.serving.definitions import Group
from services.serving.gathering import Gathered
from services.serving.rows import Rows, Sample

_FLUSH_SECONDS = 10.0
# Of a thousand keys each.
_MAX_SCANS = 100
_NEW_ROWS_SECONDS = 1.0


@dataclass(frozen=True)
class Count:
    """Rows of a group, and bytes of their keys and values."""

    rows: int
    bytes: int
    estimated: bool
    counted_at: datetime


class Census:
    """Counts the rows of all groups in one go, at most once in `every_seconds`, whoever asks."""

    def __init__(self, rows: Rows, every_seconds: float) -> None:
        self._rows = rows
        self._every_seconds = every_seconds
        self._counting = asyncio.Lock()
        self._sample = Sample({}, {}, whole=True)
        self._counted_at = datetime.now(UTC)
        self._counted = float("-inf")
        # Row sets in which nothing was found: looking again would find as little.
        self._empty: set[int] = set()

    async def count(self, group: Group) -> Count:
        """Raises Unavailable if Redis does not answer."""
        async with self._counting:
            row_set = group.row_set or 0
            age = time.monotonic() - self._counted
            old = age >= self._every_seconds
            # Rows that an overwrite has shown since then are not in it at all.
            unknown = row_set not in self._sample.rows and row_set not in self._empty
            if old or (unknown and age >= _NEW_ROWS_SECONDS):
                if old:
                    self._empty.clear()
                counted_at, counted = datetime.now(UTC), time.monotonic()
                self._sample = await self._rows.sample(_MAX_SCANS)
                self._counted_at, self._counted = counted_at, counted
                if row_set not in self._sample.rows:
                    self._empty.add(row_set)
            average = await self._rows.average_bytes(self._sample.examples.get(row_set, ()))
            found = self._sample.rows.get(row_set, 0)
            return Count(found, round(found * average), not self._sample.whole, self._counted_at)


class Usage(Gathered):
    """Counts rows read and written by this process, and adds them to the tables from time to time."""

    def __init__(self, catalogue: Catalogue) -> None:
        super().__init__("rows read and written", _FLUSH_SECONDS)
        self._catalogue = catalogue
        self._reads: defaultdict[tuple[int, ...], int] = defaultdict(int)
        self._writes: Counter[int] = Counter()

    def read(self, group_ids: tuple[int, ...], rows: int) -> None:
        """So many rows were read of each of these groups. Every request comes here: it is one addition."""
        self._reads[group_ids] += rows

    def wrote(self, group_id: int, rows: int) -> None:
        """So many rows were written."""
        self._writes[group_id] += rows

    async def days(self, groups: Sequence[Group], days: int) -> list[list[tuple[date, int, int]]]:
        """For each group day, rows read and rows written: all that this process did, what others did up to some seconds
        ago."""
        await self.flush()
        found = await self._catalogue.usage([group.id for group in groups], days)
        return [found[group.id] for group in groups]

    async def _write(self) -> None:
        reads, self._reads = self._reads, defaultdict(int)
        writes, self._writes = self._writes, Counter()
        try:
            if reads or writes:
                await self._catalogue.add_usage(_by_group(reads), writes)
        except BaseException:
            for group_ids, rows in reads.items():
                self._reads[group_ids] += rows
            self._writes.update(writes)
            raise


def _by_group(reads: dict[tuple[int, ...], int]) -> Counter[int]:
    found: Counter[int] = Counter()
    for group_ids, rows in reads.items():
        for group_id in group_ids:
            found[group_id] += rows
    return found
