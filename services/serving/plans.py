"""A feature view made ready to be read: which keys to look up, and where each byte of the answer comes from.

A plan is immutable. What a request costs is decided here: whatever does not depend on the request is worked out once.

All rows of an entry are split at their separators and laid side by side, the key values of the entry after them; the
vector is a selection (`pick`) of that list. Where it is made of key values and whole ends of rows, as most are, its
JSON text can be had without splitting them (`pieces`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import itemgetter

from chassis.datatypes import DataType
from protos.gen.triglot.serving.v1.vector_pb2 import FeatureMetadata
from services.serving import fragments, keys
from services.serving.definitions import Group, Join, ServingKey, View
from services.serving.rows import SEPARATOR

Pick = Callable[[Sequence[bytes]], tuple[bytes, ...]]


@dataclass(frozen=True, slots=True)
class KeyPart:
    """Where an entry may hold the value of one key column, most wanted first, and how it is made canonical."""

    column: str
    type: DataType
    names: tuple[str, ...]
    canonical: keys.Canonical
    canonical_many: Callable[[list[bytes]], list[bytes]]


@dataclass(frozen=True, slots=True)
class Read:
    """The row of one group that a vector needs."""

    group: Group
    key_prefix: bytes
    parts: tuple[KeyPart, ...]
    key_types: tuple[DataType, ...]
    # Fragments of a row, its event time among them, and what stands for them if there is no row.
    width: int
    absent: list[bytes]


@dataclass(frozen=True, slots=True)
class RowEnd:
    """Features that are a row's fragments from the one behind the first `skipped` on, in their order, all of them."""

    read: int
    skipped: int
    # Takes them, still joined, from the parts of a row that is split that often.
    end: Callable[[Sequence[bytes]], bytes]
    # A row of nulls, and what is between the fragments.
    absent: bytes
    separators: bytes


@dataclass(frozen=True, slots=True)
class KeyValue:
    """A feature that is a key column: its value as the entry has it."""

    position: int


@dataclass(frozen=True, slots=True)
class PassedSlot:
    """A position that a passed feature overwrites."""

    position: int
    type: DataType


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that reading a view takes, but for the request and the rows."""

    view: View
    # Feature stores of its groups beyond the view's own.
    other_stores: tuple[str, ...]
    group_ids: frozenset[int]
    # A feature whose group was deleted: nothing can be read. Empty: none.
    deleted_feature: str
    required: tuple[str, ...]
    accepted: frozenset[str]
    # The names that most entries hold, and only those: the most wanted name of every key column that is read.
    usual: tuple[str, ...]
    reads: tuple[Read, ...]
    # Groups of the reads, one for each.
    read_groups: tuple[int, ...]
    pick: Pick
    # The vector in parts. Empty: it has no such.
    pieces: tuple[RowEnd | KeyValue, ...]
    # Whether a key column is a feature, so that the entry's own values are laid out too.
    echoes: bool
    passed: Mapping[str, tuple[PassedSlot, ...]]
    names: tuple[str, ...]
    types: tuple[DataType, ...]
    writers: tuple[fragments.Writer, ...]
    # By (with names, with types).
    metadata: Mapping[tuple[bool, bool], Sequence[FeatureMetadata]]


def compile_plan(view: View, key_prefix: Callable[[int], bytes]) -> Plan:
    """The plan of a view. `key_prefix` tells what the keys of a row set begin with."""
    served = [feature for feature in view.features if not feature.label]
    deleted = [each.name for each in view.features if view.joins[each.join_index].group.row_set is None]
    # A group that only carries a label is not read.
    wanted = sorted({feature.join_index for feature in served})
    reads = {} if deleted else {index: _read(view, index, key_prefix) for index in wanted}
    names = tuple(view.joins[each.join_index].prefix + each.name for each in served)
    groups = [view.joins[each.join_index].group for each in served]
    types = tuple(group.columns[group.positions[each.name]].type for group, each in zip(groups, served, strict=True))
    passed: dict[str, tuple[PassedSlot, ...]] = {}
    for position, name in enumerate(names):
        passed[name] = (*passed.get(name, ()), PassedSlot(position, types[position]))
    stores = dict.fromkeys(join.group.store for join in view.joins)
    sources = [_source(reads, each.join_index, each.name) for each in served] if reads else []
    return Plan(
        view=view,
        other_stores=tuple(store for store in stores if store != view.store),
        group_ids=frozenset(join.group.id for join in view.joins),
        deleted_feature=deleted[0] if deleted else "",
        required=tuple(dict.fromkeys(key.required_entry for key in view.serving_keys if key.required)),
        accepted=frozenset(
            name for key in view.serving_keys for name in (key.prefix + key.feature_name, key.feature_name)
        ),
        usual=tuple(dict.fromkeys(part.names[0] for read in reads.values() for part in read.parts)),
        reads=tuple(reads.values()),
        read_groups=tuple(read.group.id for read in reads.values()),
        pick=_pick(sources),
        pieces=_pieces(sources, tuple(reads.values())),
        echoes=bool(reads) and max(sources) >= sum(read.width for read in reads.values()),
        passed=passed,
        names=names,
        types=types,
        writers=tuple(fragments.writer(type_) for type_ in types),
        metadata=_metadata(names, types),
    )


def _read(view: View, index: int, key_prefix: Callable[[int], bytes]) -> Read:
    join: Join = view.joins[index]
    group = join.group
    serving = {key.feature_name: key for key in view.serving_keys if key.join_index == index}
    parts = tuple(
        KeyPart(
            column.name,
            column.type,
            _entry_names(serving[column.name]),
            keys.canonical(column.type),
            keys.canonical_many(column.type),
        )
        for column in group.key_columns
    )
    width = 1 + len(group.columns)
    return Read(
        group=group,
        key_prefix=key_prefix(group.row_set or 0),
        parts=parts,
        key_types=tuple(column.type for column in group.key_columns),
        width=width,
        absent=[fragments.NULL] * width,
    )


def _entry_names(key: ServingKey) -> tuple[str, ...]:
    return tuple(dict.fromkeys((key.required_entry, key.prefix + key.feature_name, key.feature_name)))


def _source(reads: Mapping[int, Read], join_index: int, name: str) -> int:
    """Where in the list of an entry's rows and key values a feature is found."""
    rows_before = keys_before = 0
    for index, read in reads.items():
        if index == join_index:
            if name in read.group.primary_key:
                rows = sum(each.width for each in reads.values())
                return rows + keys_before + read.group.primary_key.index(name)
            return rows_before + 1 + read.group.positions[name]
        rows_before += read.width
        keys_before += len(read.parts)
    raise LookupError(name)


def _pick(sources: Sequence[int]) -> Pick:
    if len(sources) > 1:
        return itemgetter(*sources)
    return lambda laid_out: tuple(laid_out[source] for source in sources)


def _pieces(sources: Sequence[int], reads: Sequence[Read]) -> tuple[RowEnd | KeyValue, ...]:
    """The vector's parts; empty if one of them ends before its row does."""
    starts = list(accumulate((read.width for read in reads), initial=0))
    pieces: list[RowEnd | KeyValue] = []
    left = list(sources)
    while left:
        if left[0] >= starts[-1]:
            pieces.append(KeyValue(left.pop(0) - starts[-1]))
            continue
        index = bisect_right(starts, left[0]) - 1
        width = starts[index + 1] - left[0]
        if left[:width] != list(range(left[0], starts[index + 1])):
            return ()
        absent, skipped = SEPARATOR.join(reads[index].absent), reads[index].width - width
        pieces.append(RowEnd(index, skipped, itemgetter(skipped), absent, SEPARATOR * (width - 1)))
        del left[:width]
    return tuple(pieces)


def _metadata(names: Sequence[str], types: Sequence[DataType]) -> Mapping[tuple[bool, bool], Sequence[FeatureMetadata]]:
    described = list(zip(names, types, strict=True))
    return {
        (False, False): (),
        (True, False): [FeatureMetadata(feature_name=name) for name in names],
        (False, True): [FeatureMetadata(feature_type=type_.hive) for type_ in types],
        (True, True): [FeatureMetadata(feature_name=name, feature_type=type_.hive) for name, type_ in described],
    }
