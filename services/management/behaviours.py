"""Behaviours written to a Sequence view row by row: what of a request is kept of each user, as a row of the user.

They are kept beside those that a publish brought, and joined with them when they are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from chassis import datatypes
from services.management import fields, json_rows, publish, sequences
from services.management.inputs import invalid
from services.management.rows import Row

Kept = dict[str, Any]
_KEYS = ("INT32", "INT64", "STRING")
_TIMES = ("INT64", "INT32", "TIMESTAMP")


def given(view: Row, texts: Sequence[str]) -> dict[Any, list[Kept]]:
    """The behaviours of rows, JSON texts, by their user; those of a user from the last row to the first one.

    Raises InvalidArgument for a view whose Config names no columns of behaviours, and what `json_rows.batch_of` does.
    """
    behaviours = sequences.behaviours_of(view)
    config = behaviours.config
    for name, column in (
        ("item_id_field", config.item), ("event_field", config.event), ("timestamp_field", config.time)
    ):  # fmt: skip
        if not column:
            raise invalid("Rows", f"cannot be written to a Sequence view whose Config has no {name}")
    kinds = {
        each["name"]: each["type"]
        for each in fields.loaded(view["fields"])
        if fields.PARTITION not in each["attributes"]
    }
    # What is no field of the view is taken as what a sequence shows of it.
    told = dict.fromkeys(behaviours.columns, "STRING") | {config.time: "INT64"}
    if config.play_time:
        told[config.play_time] = "DOUBLE"
    kinds = told | kinds
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
    found: dict[Any, list[Kept]] = {}
    for row in reversed(rows):
        play_time = row[config.play_time] if config.play_time else None
        kept = {
            "item": _text(row[config.item]),
            "event": _text(row[config.event]),
            "time": _seconds(row[config.time]),
            "play_time": None if play_time is None else float(play_time),
            **{f"more_{number}": _text(row[name]) for number, name in enumerate(behaviours.more)},
        }
        found.setdefault(row[view["join_id"]], []).append(kept)
    return found


def batch_of(view: Row, users: Mapping[Any, Sequence[Kept]]) -> pa.RecordBatch:
    """A row for each user, of those of the behaviours that sequences show."""
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


def _text(value: Any) -> str | None:
    """A value as DuckDB casts it to a text."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, datetime):
        return value.astimezone(UTC).replace(tzinfo=None).isoformat(" ")
    return str(value)


def _seconds(value: Any) -> int:
    return value if isinstance(value, int) else int(value.timestamp())
