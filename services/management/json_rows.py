"""Rows given as JSON texts, in the form in which ListFeatureViewOnlineFeatures shows them, as an Arrow batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pyarrow as pa

from chassis import datatypes
from services.management.inputs import invalid, json_object

MAX_ROWS = 10_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_REFUSED = (pa.ArrowException, ValueError, TypeError, OverflowError, AttributeError)


def batch_of(columns: Sequence[tuple[str, str, str]], needed: Sequence[str], texts: Sequence[str]) -> pa.RecordBatch:
    """The rows. Of each column, name in the view, name in the batch and Hive type are given. What a row lacks is null.

    Raises InvalidArgument, naming row and column, for a name that is no column, a value of another type, and a row that
    lacks what is needed, by the names in the batch.
    """
    if len(texts) > MAX_ROWS:
        raise invalid("Rows", f"takes at most {MAX_ROWS} rows")
    known = {name: served for name, served, _ in columns} | {served: served for _, served, _ in columns}
    rows = []
    for number, text in enumerate(texts, 1):
        given = json_object(f"Rows[{number - 1}]", text)
        for name in given:
            if name not in known:
                raise invalid("Rows", f"row {number}: {name!r} is no field of the view")
        row = {known[name]: value for name, value in given.items()}
        for name in needed:
            if row.get(name) is None:
                raise invalid("Rows", f"row {number}: {name} is missing")
        rows.append(row)
    arrays = [_column(served, kind, [row.get(served) for row in rows]) for _, served, kind in columns]
    return pa.RecordBatch.from_arrays(arrays, names=[served for _, served, _ in columns])


def _column(name: str, kind: str, values: Sequence[Any]) -> pa.Array:
    target = datatypes.arrow_type(kind)
    read = _reader(target)

    def array(some: Sequence[Any]) -> pa.Array:
        return pa.array([None if value is None else read(value) for value in some], target)

    try:
        return array(values)
    except _REFUSED:
        for number, value in enumerate(values, 1):
            try:
                array([value])
            except _REFUSED:
                shown = orjson.dumps(value).decode()[:100]
                raise invalid("Rows", f"row {number}, column {name}: {shown} is no {kind}") from None
        raise


def _reader(target: pa.DataType) -> Callable[[Any], Any]:
    """What makes of a JSON value what Arrow takes for a value of the type."""
    if pa.types.is_timestamp(target):
        return _time
    if pa.types.is_boolean(target):
        return _boolean
    if pa.types.is_integer(target):
        return _integer
    if pa.types.is_map(target):
        integers = pa.types.is_integer(target.key_type)
        return lambda value: [(int(key) if integers else key, item) for key, item in value.items()]
    return _same


def _same(value: Any) -> Any:
    if isinstance(value, bool):
        raise TypeError
    return value


def _integer(value: Any) -> int:
    """Arrow would cut off what stands behind the point."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError
    return value


def _boolean(value: Any) -> bool:
    if value not in (0, 1):
        raise ValueError
    return bool(value)


def _time(value: Any) -> datetime:
    """Milliseconds since 1970, or a text in ISO 8601."""
    if isinstance(value, str):
        at = datetime.fromisoformat(value)
        return at if at.tzinfo else at.replace(tzinfo=UTC)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError
    return _EPOCH + timedelta(milliseconds=value)
