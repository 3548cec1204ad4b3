"""The rows that the benchmark of feature vectors reads: made of their numbers, so that every answer can be foretold."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

STORE = "bench"
KEY = "id"
_REQUESTS = 500

_VALUES: Mapping[str, Callable[[int], object]] = {
    "double": lambda row: row / 7,
    "bigint": lambda row: row * 31,
    "string": lambda row: f"word {row % 1000}",
    "boolean": lambda row: row % 3 == 0,
}
# As mixed as a table is.
_KINDS = ("double", "bigint", "string", "double", "bigint", "boolean", "double", "bigint", "string", "double", "bigint")


@dataclass(frozen=True)
class Group:
    """A table: a key `id`, and features with the names and the Hive types of `types`."""

    name: str
    types: Mapping[str, str]
    seed: int

    def vector(self, row: int) -> list[object]:
        """The features of a row."""
        return [_VALUES[kind](row + self.seed) for kind in self.types.values()]

    def table(self, first: int, end: int) -> pa.Table:
        """Rows of those keys, with the key."""
        keys = range(first, end)
        columns: dict[str, list[object]] = {KEY: list(keys)}
        for name, kind in self.types.items():
            columns[name] = [_VALUES[kind](row + self.seed) for row in keys]
        return pa.table(columns)


def _group(name: str, features: int, seed: int) -> Group:
    return Group(name, {f"{name}_{number}": kind for number, kind in enumerate(_KINDS[:features])}, seed)


TENS = tuple(_group(f"ten_{letter}", 10, seed) for seed, letter in enumerate("abcde"))
ELEVEN = _group("eleven", 11, 5)
GROUPS = (*TENS, ELEVEN)


@dataclass(frozen=True)
class View:
    """Features that are asked for together."""

    name: str
    groups: tuple[Group, ...]

    def vector(self, row: int) -> list[object]:
        """What must come back."""
        return [value for group in self.groups for value in group.vector(row)]


ONE, FIVE, WIDE = View("one_group", TENS[:1]), View("five_groups", TENS), View("wide_group", (ELEVEN,))
VIEWS = (ONE, FIVE, WIDE)


@dataclass(frozen=True)
class Shape:
    """Requests for so many vectors of a view."""

    entries: int
    view: View

    @property
    def title(self) -> str:
        return f"{self.entries} x {sum(len(group.types) for group in self.view.groups)}"

    def requests(self, rows: int) -> Iterator[Sequence[int]]:
        """The keys of some hundred requests, the same in every run; all of them are there."""
        chance = random.Random(self.title)
        for _ in range(_REQUESTS):
            yield [chance.randrange(rows) for _ in range(self.entries)]


SHAPES = (Shape(1, ONE), Shape(100, ONE), Shape(1, FIVE), Shape(100, FIVE), Shape(500, WIDE))
