"""Behaviours written to a Sequence view row by row: what of a request is kept of each user, as a row of the user.

They are kept beside those that a publish brought, and joined with them when they are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from chassis import datatypes
from services.management import json_rows, publish, sequences
from services.management.inputs import invalid
from services.management.rows import Row

_KEYS = ("INT32", "INT64", "STRING")
_TIMES = ("INT64", "INT32", "TIMESTAMP")


def given(view: Row, texts: Sequence[str]) -> dict[Any, list[dict[str, Any]]]:
    """The behaviours of rows, JSON texts, as values of their columns, by their user; those of a user from the last row
    to the first one.

    Raises InvalidArgument for a view whose Config names no columns of behaviours, and what `json_rows.batch_of` does.
    """
    behaviours = sequences.written_of(view)
    config = behaviours.config
    kinds = behaviours.kinds
    _check_type(behaviours.key, kinds, _KEYS)
    _check_type(config.time, kinds, _TIMES)
    columns = [
        (name, view["join_id"] if name == behaviours.key else name, datatypes.hive_of_pai(kind))
        for name, kind in kinds.items()
    ]
    needed = [view["join_id"], config.item, config.event, config.time]
    rows = json_rows.batch_of(columns, needed, texts).to_pylist()
    for number, row in enumerate(rows, 1):
        for name in (config.item, config.event):
            if row[name] == "":
                raise invalid("Rows", f"row {number}: {name} is empty")
    found: dict[Any, list[dict[str, Any]]] = {}
    for row in reversed(rows):
        found.setdefault(row.pop(view["join_id"]), []).append(row)
    return found


def batch_of(view: Row, users: Mapping[Any, Sequence[sequences.Kept]]) -> pa.RecordBatch:
    """A row for each user, of those of the behaviours that are kept."""
    behaviours = sequences.behaviours_of(view)
    values = ([*users], [behaviours.newest(each) for each in users.values()])
    columns = publish.columns_of(view)
    return pa.RecordBatch.from_arrays(
        [pa.array(some, datatypes.arrow_type(kind)) for some, (_, _, kind) in zip(values, columns, strict=True)],
        names=[served for _, served, _ in columns],
    )


def _check_type(name: str, kinds: Mapping[str, str], allowed: Sequence[str]) -> None:
    if kinds[name] not in allowed:
        raise invalid("Rows", f"cannot be written where {name} is {kinds[name]}: it must be {' or '.join(allowed)}")
