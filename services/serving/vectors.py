"""Feature vectors of a plan: entries in, fragments or text out. One round trip to Redis for any number of entries."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain, islice, repeat
from typing import Any, NamedTuple

from chassis import errors, tracing
from chassis.datatypes import DataType
from chassis.telemetry import Histogram
from protos.gen.triglot.serving.v1 import vector_pb2
from services.serving import keys
from services.serving.entries import Column, Entry
from services.serving.fragments import NULL
from services.serving.plans import KeyValue, Plan, Read, RowEnd
from services.serving.rows import LOST, SEPARATOR, PartlyUnavailable, Rows

_stage_seconds = Histogram(
    "triglot_vectors_stage_seconds",
    "Time that a read of vectors took to find its keys (plan), to wait for rows (redis), to make vectors (assemble).",
    ("stage",),
)
_plan_stage, _redis_stage, _assemble_stage = map(_stage_seconds.series, ("plan", "redis", "assemble"))

FOUND, KEY_WRONG, NO_ROW, NOT_READ = 200, 400, 404, 500
COMPLETE = vector_pb2.VECTOR_STATUS_COMPLETE
MISSING = vector_pb2.VECTOR_STATUS_MISSING
ERROR = vector_pb2.VECTOR_STATUS_ERROR

# Not in JSON text, which escapes it.
_BETWEEN = b"\0"
_ALL_ELSE = bytes(set(range(256)) - {*SEPARATOR, *_BETWEEN})


class Lookups(NamedTuple):
    """What to read for all entries, column by column: a list an item for each entry."""

    # For each read of the plan, the keys of its rows; None where an entry does not hold the whole key.
    keys: Sequence[Sequence[bytes | None]]
    # For each key column of each read, the value as it came.
    echo: list[list[bytes]]
    # Entries that were wrong.
    failed: Collection[int]


class Found(NamedTuple):
    """What vectors are made of, which come in the order of their entries."""

    plan: Plan
    # How many entries there are.
    size: int
    lookups: Lookups
    # For each read of the plan, the rows; None where there is no key or no row.
    rows: Sequence[Sequence[bytes | None]]
    # Entries of which a row could not be read.
    lost: Collection[int]
    # Empty, or features to put in place of what was read.
    passed: Sequence[Entry | None]

    def fragments(self) -> list[Sequence[bytes] | None]:
        """Those of each vector; None if its entry was wrong, or one of its rows could not be read."""
        fragments = _fragments(self.plan, self.rows, self.lookups, self.size)
        for position in (*self.lookups.failed, *self.lost):
            fragments[position] = None
        _overlay(self.plan, fragments, self.passed)
        return fragments

    def texts(self) -> list[bytes]:
        """Each vector as JSON text: an array, or null where `fragments` has None."""
        return [NULL if each is None else b"[%b]" % b",".join(each) for each in self.fragments()]

    def joined(self) -> bytes:
        """All of `texts`, separated by commas. Made at once where whole ends of rows can be taken."""
        usual = self.plan.pieces and not (self.passed or self.lost or self.lookups.failed)
        joined = _joined(self.plan.pieces, self.rows, self.lookups.echo) if usual else None
        return b",".join(self.texts()) if joined is None else joined

    def statuses(self) -> list[vector_pb2.VectorStatus.ValueType]:
        """COMPLETE: it has all its rows. ERROR: it is none, as `fragments` has it."""
        statuses = [COMPLETE] * self.size
        if None in chain.from_iterable(self.rows):
            statuses = [MISSING if None in rows else COMPLETE for rows in zip(*self.rows, strict=True)]
        for position in (*self.lookups.failed, *self.lost):
            statuses[position] = ERROR
        return statuses

    def read_statuses(self) -> Sequence[Sequence[int]]:
        """FOUND, KEY_WRONG, NO_ROW or NOT_READ for each read of each vector."""
        columns = [_column_statuses(*pair) for pair in zip(self.rows, self.lookups.keys, strict=True)]
        return list(zip(*columns, strict=True)) if columns else [()] * self.size


def assembled(began: float) -> None:
    """Vectors have been made of what was found, since then on time.perf_counter()'s clock."""
    _assemble_stage.observe(time.perf_counter() - began)


async def read(
    plan: Plan,
    rows: Rows,
    entries: Sequence[Entry],
    passed: Sequence[Entry | None],
    *,
    validate: bool,
    lenient: bool,
) -> Found:
    """What the vectors of at least one entry are made of. `passed` is empty, or has an item for each.

    A wrong entry raises InvalidArgument, and a row that cannot be read Unavailable; with `lenient` either fails its own
    vector only, unless no vector is left. A null anywhere raises.
    """
    began = time.perf_counter()
    require_readable(plan)
    if passed:
        _refuse_null_features(passed)
    lookups = (None if passed and validate else _usual(plan, entries)) or _unusual(
        plan, entries, passed if validate else (), lenient=lenient
    )
    planned = time.perf_counter()
    span = tracing.begin("redis read")
    try:
        found, lost = await _read_rows(rows, lookups.keys, lenient=lenient)
    finally:
        if span is not None:
            span.end({"db.system.name": "redis", "keys": len(plan.reads) * len(entries)})
    _plan_stage.observe(planned - began)
    _redis_stage.observe(time.perf_counter() - planned)
    return Found(plan, len(entries), lookups, found, lost, passed)


def require_readable(plan: Plan) -> None:
    """Raises FailedPrecondition, FEATURE_GROUP_DELETED, if one of the plan's groups is gone."""
    if plan.deleted_feature:
        raise errors.FailedPrecondition(
            f"Feature `{plan.deleted_feature}` is of a feature group that was deleted",
            reason="FEATURE_GROUP_DELETED",
            name=plan.deleted_feature,
        )


def _usual(plan: Plan, entries: Sequence[Entry]) -> Lookups | None:
    """The lookups of entries that all hold the usual names, only those, and good values; otherwise None."""
    usual = plan.usual
    try:
        if isinstance(entries, Column) and usual == (entries.name,):
            columns = {entries.name: entries.values}
        else:
            columns = {name: [bytes(entry[name]) for entry in entries] for name in usual}
            if not usual or sum(map(len, entries)) != len(usual) * len(entries):
                return None
        row_keys = [_usual_keys(each, columns) for each in plan.reads]
    except (KeyError, keys.WrongType):  # null is of no type
        return None
    return Lookups(row_keys, [columns[part.names[0]] for each in plan.reads for part in each.parts], ())


def _usual_keys(each: Read, columns: Mapping[str, list[bytes]]) -> list[bytes]:
    parts = [part.canonical_many(columns[part.names[0]]) for part in each.parts]
    prefix = each.key_prefix
    if len(parts) == 1:
        return [prefix + key for key in parts[0]]
    return [prefix + keys.join(key, each.key_types) for key in zip(*parts, strict=True)]


def _unusual(plan: Plan, entries: Sequence[Entry], passed: Sequence[Entry | None], *, lenient: bool) -> Lookups:
    """The lookups of any entries, one by one. Raises InvalidArgument; see `read`."""
    converted = [{name: bytes(value) for name, value in entry.items()} for entry in entries]
    _refuse_null_keys(converted)
    failed = set()
    lookups: list[_Lookup] = []
    nothing: _Lookup = [None] * len(plan.reads), [NULL] * sum(len(each.parts) for each in plan.reads)
    for position, entry in enumerate(converted):
        try:
            _check_names(plan, entry)
            if passed:
                _check_passed(plan, passed[position])
            lookups.append(_look_up(plan, entry))
        except errors.InvalidArgument:
            if not lenient:
                raise
            failed.add(position)
            lookups.append(nothing)
    row_keys, echo = zip(*lookups, strict=True)
    columns = [list(column) for column in zip(*row_keys, strict=True)]
    return Lookups(columns, [list(column) for column in zip(*echo, strict=True)], failed)


# The keys of one entry's rows, and the values to echo.
_Lookup = tuple[list[bytes | None], list[bytes]]


def _check_names(plan: Plan, entry: Mapping[str, bytes]) -> None:
    if not entry.keys() <= plan.accepted:
        unknown = next(name for name in entry if name not in plan.accepted)
        raise errors.InvalidArgument(
            f"Provided primary key `{unknown}` does not belong to the set of primary keys.",
            reason="INCORRECT_PRIMARY_KEY",
            name=unknown,
        )
    if not entry:
        raise errors.InvalidArgument("No entries found", reason="INCORRECT_PRIMARY_KEY")


def _look_up(plan: Plan, entry: Mapping[str, bytes]) -> _Lookup:
    echo: list[bytes] = []
    return [_row_key(each, entry, echo) for each in plan.reads], echo


def _row_key(read: Read, entry: Mapping[str, bytes], echo: list[bytes]) -> bytes | None:
    """The key of one row; None, whatever it holds, if the entry lacks a part of it. Appends its values to `echo`."""
    values = [next((entry[name] for name in part.names if name in entry), None) for part in read.parts]
    echo += [NULL if value is None else value for value in values]
    parts: list[bytes] = []
    for part, value in zip(read.parts, values, strict=True):
        if value is None or None in values:
            return None
        try:
            parts.append(part.canonical(value))
        except keys.WrongType:
            raise errors.InvalidArgument(
                f"Primary key '{part.column}' should be in '{part.type.hive}' format.",
                reason="WRONG_KEY_TYPE",
                name=part.column,
                type=part.type.hive,
            ) from None
    return read.key_prefix + keys.join(parts, read.key_types)


async def _read_rows(
    rows: Rows, row_keys: Sequence[Sequence[bytes | None]], *, lenient: bool
) -> tuple[list[Sequence[bytes | None]], Collection[int]]:
    """For each read, the row of each entry; None where there is no key or no row. One round trip for all.

    And the entries of which a row could not be read, where it is LOST.
    """
    wanted: list[Any] = [*chain.from_iterable(row_keys)]
    if None in wanted:
        wanted = [key for key in wanted if key is not None]
    try:
        answers = await rows.read(wanted)
    except PartlyUnavailable as error:
        columns = _columns(error.found, wanted, row_keys)
        lost = {position for column in columns for position, row in enumerate(column) if row == LOST}
        if not lenient or len(lost) == len(row_keys[0]):
            raise
        return columns, lost
    return _columns(answers, wanted, row_keys), ()


def _columns(
    answers: Sequence[bytes | None], wanted: Sequence[bytes], row_keys: Sequence[Sequence[bytes | None]]
) -> list[Sequence[bytes | None]]:
    if len(row_keys) == 1 and len(wanted) == len(row_keys[0]):
        return [answers]
    found = iter(answers)
    if len(wanted) == sum(map(len, row_keys)):
        return [list(islice(found, len(column))) for column in row_keys]
    return [[None if key is None else next(found) for key in column] for column in row_keys]


def _fragments(
    plan: Plan, found: Sequence[Sequence[bytes | None]], lookups: Lookups, entries: int
) -> list[Sequence[bytes] | None]:
    """Rows split and laid side by side, key values after them, and the vector picked out of that."""
    if not plan.reads:
        return [()] * entries
    laid_out: Iterable[Sequence[bytes]]
    columns: list[Iterable[Sequence[bytes]]] = [
        _split(each, column) for each, column in zip(plan.reads, found, strict=True)
    ]
    if plan.echoes:
        columns.append(zip(*lookups.echo, strict=True))
    laid_out = columns[0] if len(columns) == 1 else map(list, map(chain.from_iterable, zip(*columns, strict=True)))
    return list(map(plan.pick, laid_out))


def _split(read: Read, column: Sequence[bytes | None]) -> list[list[bytes]]:
    absent, width = read.absent, read.width
    split = [absent if row is None else row.split(SEPARATOR) for row in column]
    if any(map(width.__ne__, map(len, split))):
        # Written before a column was appended, or after this plan was made.
        split = [[*fragments, *absent][:width] for fragments in split]
    return split


def _joined(
    pieces: Sequence[RowEnd | KeyValue], rows: Sequence[Sequence[bytes | None]], echo: Sequence[Sequence[bytes]]
) -> bytes | None:
    """Whole vectors as JSON text, separated by commas; None if a row is not as wide as the plan has it."""
    columns: list[Sequence[bytes]] = []
    for piece in pieces:
        if isinstance(piece, KeyValue):
            columns.append(echo[piece.position])
            continue
        ends = _ends(piece, rows[piece.read])
        if ends is None:
            return None
        if len(pieces) == 1:
            return b"[%b]" % ends.replace(_BETWEEN, b"],[")
        columns.append(ends.split(_BETWEEN))
    return b"[%b]" % b"],[".join(map(b",".join, zip(*columns, strict=True)))


def _ends(piece: RowEnd, rows: Sequence[bytes | None]) -> bytes | None:
    """The fragments of all rows, separated by commas, with `_BETWEEN` between rows."""
    there: list[Any] = [piece.absent if row is None else row for row in rows] if None in rows else [*rows]
    try:
        ends = _BETWEEN.join(map(piece.end, map(bytes.split, there, repeat(SEPARATOR), repeat(piece.skipped))))
    except IndexError:
        return None
    # What is left when all else is taken away is known if each row is as wide as it should be.
    if ends.translate(None, _ALL_ELSE) != _BETWEEN.join([piece.separators] * len(rows)):
        return None
    return ends.replace(SEPARATOR, b",")


def _column_statuses(rows: Sequence[bytes | None], row_keys: Sequence[bytes | None]) -> list[int]:
    return [
        FOUND if row else NOT_READ if row is not None else NO_ROW if key is not None else KEY_WRONG
        for row, key in zip(rows, row_keys, strict=True)
    ]


def _refuse_null_keys(entries: Sequence[Mapping[str, bytes]]) -> None:
    for position, entry in enumerate(entries):
        if NULL in entry.values():
            name = next(name for name, value in entry.items() if value == NULL)
            raise errors.InvalidArgument(
                f"Primary key `{name}` of entry {position} is null", reason="INCORRECT_PRIMARY_KEY", name=name
            )


def _refuse_null_features(passed: Sequence[Entry | None]) -> None:
    for position, values in enumerate(passed):
        if values and NULL in values.values():
            name = next(name for name, value in values.items() if value == NULL)
            raise errors.InvalidArgument(
                f"Passed feature `{name}` of entry {position} is null", reason="INCORRECT_PASSED_FEATURE", name=name
            )


def _check_passed(plan: Plan, values: Entry | None) -> None:
    for name, value in (values or {}).items():
        slots = plan.passed.get(name)
        if slots is None:
            raise errors.InvalidArgument(
                f"Feature `{name}` does not exist in the feature view or it is a label which cannot be a passed "
                "feature.",
                reason="UNKNOWN_PASSED_FEATURE",
                name=name,
            )
        got = _kind_of(value)
        for slot in slots:
            expected = _expected_kind(slot.type)
            if got != expected:
                raise errors.InvalidArgument(
                    f"Got: '{got}', expected: '{expected}' (offline type: {slot.type.hive})",
                    reason="WRONG_FEATURE_TYPE",
                    name=name,
                    type=slot.type.hive,
                )


_KINDS = {b'"': "STRING", b"t": "BOOLEAN", b"f": "BOOLEAN", b"{": "OTHER", b"[": "OTHER"}
_EXPECTED = {
    "boolean": "BOOLEAN",
    **dict.fromkeys(("tinyint", "smallint", "int", "bigint", "float", "double", "decimal"), "NUMBER"),
    **dict.fromkeys(("array", "map", "struct"), "OTHER"),
}


def _kind_of(value: bytes) -> str:
    return _KINDS.get(value[:1], "NUMBER")


def _expected_kind(type_: DataType) -> str:
    return _EXPECTED.get(type_.kind, "STRING")


def _overlay(plan: Plan, fragments: list[Sequence[bytes] | None], passed: Sequence[Entry | None]) -> None:
    """Put passed features in place of what was read."""
    for position, values in enumerate(passed):
        read = fragments[position]
        if values and read is not None:
            changed = list(read)
            for name, value in values.items():
                for slot in plan.passed.get(name, ()):
                    changed[slot.position] = value
            fragments[position] = changed
