"""Sequence views: what their Config says, and sequences of a user's behaviours, newest first, as PAI's SDKs show them.

A sequence S of items is a text, items parted by `;`. `S__event`, `S__ts` and so on are of the same length and order.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq

from chassis import datatypes, errors
from services.management import fields
from services.management.inputs import json_object
from services.management.offline import File, Table
from services.management.rows import Row
from services.management.workspace import Time, Workspace, cast, quoted, time_of

MAX_LENGTH = 10_000
# The column of a view's online rows that holds a user's behaviours, newest first.
BEHAVIOURS = "behaviours"
_BY_ITEM = ("user_id", "item_id", "event")
_SEPARATOR = ";"
# Of behaviours at the same time the one that was written last is the newest.
_NEWEST = "t DESC, part DESC, ordinal DESC, file_row_number DESC"


@dataclass(frozen=True)
class Wanted:
    """One sequence: its names offline and online, the events in it (none: all), and what else is told of each item."""

    offline_name: str
    name: str
    events: Sequence[str]
    length: int
    more: Sequence[str]


@dataclass(frozen=True)
class Config:
    """A Sequence view's Config."""

    # The table of ready-made sequences; empty if they are made of behaviours.
    offline_table: str
    offline_key: str
    offline_time: str
    sequences: Sequence[Wanted]
    item: str
    event: str
    time: str
    play_time: str
    # Columns of which no two behaviours of a user may be equal in all.
    unique: Sequence[str]
    # The column that is one of these besides item and event; empty if there is none.
    custom: str
    # A behaviour of an event counts only if it was played for longer than this.
    play_times: Mapping[str, float]


def config_of(view: Row) -> Config:
    """Raises InvalidArgument for a Config without which nothing can be made."""
    given = json_object("Config", view["config"])

    def text(name: str, needed: bool = False) -> str:
        value = given.get(name, "")
        if not isinstance(value, str) or (needed and not value):
            raise _unusable(view, f"needs {name}")
        return value

    listed = given.get("seq_config")
    if not isinstance(listed, list) or not listed or not all(isinstance(each, dict) for each in listed):
        raise _unusable(view, "needs seq_config, a list")
    table = text("offline_seq_table_name")
    play_times = _play_times(view, text("play_time_filter"))
    item, event, time = (text(name, not table) for name in ("item_id_field", "event_field", "timestamp_field"))
    return Config(
        offline_table=table,
        offline_key=text("offline_seq_table_pk_field", bool(table)),
        offline_time=text("offline_seq_table_event_time_field", bool(table)),
        sequences=[_wanted(view, each) for each in listed],
        item=item,
        event=event,
        time=time,
        play_time=text("play_time_field", bool(play_times)),
        unique=(unique := _unique(view, given, item, event, time)),
        custom="".join(unique[2:]) if unique[2:] != [time] else "",
        play_times=play_times,
    )


def _wanted(view: Row, given: dict[str, Any]) -> Wanted:
    offline, online = given.get("offline_seq_name", ""), given.get("online_seq_name", "")
    events, length, more = given.get("seq_event", ""), given.get("seq_len"), given.get("online_behavior_table_fields")
    if not all(isinstance(each, str) for each in (offline, online, events)) or not (offline or online):
        raise _unusable(view, "needs offline_seq_name or online_seq_name in each seq_config")
    if not isinstance(length, int) or isinstance(length, bool) or not 1 <= length <= MAX_LENGTH:
        raise _unusable(view, f"needs a seq_len of 1 to {MAX_LENGTH} in each seq_config")
    if not isinstance(more or [], list) or not all(isinstance(each, str) for each in more or []):
        raise _unusable(view, "needs a list of names as online_behavior_table_fields")
    return Wanted(
        offline or online, online or offline, [each for each in events.split("|") if each], length, more or []
    )


def _unique(view: Row, given: dict[str, Any], item: str, event: str, time: str) -> list[str]:
    method = given.get("deduplication_method") or list(_BY_ITEM)
    custom = given.get("custom_deduplication_field") or ""
    if method == list(_BY_ITEM):
        return [item, event, *([custom] if custom else [])]
    if method == [*_BY_ITEM, "timestamp"]:
        return [item, event, time]
    raise _unusable(view, f"needs a deduplication_method of {list(_BY_ITEM)}, with or without 'timestamp' at its end")


def _play_times(view: Row, text: str) -> dict[str, float]:
    """`play:3;look:0.5`, by event."""
    found = {}
    for part in filter(None, text.split(";")):
        event, _, bound = part.partition(":")
        try:
            found[event] = float(bound)
        except ValueError:
            found[event] = math.nan
        if not event or not math.isfinite(found[event]):
            raise _unusable(view, f"needs a play_time_filter such as 'play:3;look:0.5', and not {part!r}")
    return found


def _unusable(view: Row, why: str) -> errors.InvalidArgument:
    return errors.InvalidArgument(f"the Config of view {view['name']} {why}", field="Config")


def output_of(view: Row) -> list[tuple[str, str]]:
    """Name in a training set, and in what is joined, of each column that the view gives."""
    config = config_of(view)
    if config.offline_table:
        return [(each.name, each.offline_name) for each in config.sequences]
    return [(name, name) for name in behaviours_of(view).names]


@dataclass(frozen=True)
class Behaviours:
    """A table of behaviours, a row for each, and the sequences that are made of it."""

    key: str
    config: Config

    @property
    def time(self) -> str:
        """When it was: a point in time, or seconds since 1970."""
        return self.config.time

    @property
    def columns(self) -> list[str]:
        """What is read of the table."""
        more = (name for wanted in self.config.sequences for name in wanted.more)
        config = self.config
        told = (self.key, config.item, config.event, config.time, config.play_time, *config.unique, *more)
        return list(dict.fromkeys(name for name in told if name))

    @property
    def names(self) -> list[str]:
        """The columns of the sequences."""
        return [name for wanted in self.config.sequences for name, _ in self._told(wanted)]

    @property
    def more(self) -> list[str]:
        """What else is kept of a behaviour, of all sequences."""
        told = (name for wanted in self.config.sequences for name in wanted.more)
        return list(dict.fromkeys([*filter(None, [self.config.custom]), *told]))

    @property
    def online_kind(self) -> str:
        """The Hive type of a user's behaviours online. What else is told is named by its position."""
        more = "".join(f",more_{number}:string" for number in range(len(self.more)))
        return f"array<struct<item:string,event:string,time:bigint,play_time:double{more}>>"

    def online_sql(self, key: str) -> str:
        """DuckDB's statement that makes of table `b` a row for each key, with those behaviours that sequences show."""
        unique = ", ".join(_column(name) for name in self.config.unique)
        event = _text_of(self.config.event)
        places, shown = [], []
        each = f", {event}" if self.config.custom else ""  # as `newest` has it
        for number, wanted in enumerate(self.config.sequences):
            told = f"{event} IN ({_texts(wanted.events)})" if wanted.events else "true"
            places.append(f"row_number() OVER (PARTITION BY k, {told}{each} ORDER BY {_NEWEST}) AS p{number}")
            shown.append(f"({told} AND p{number} <= {wanted.length})")
        play_time = f"CAST({_column(self.config.play_time)} AS DOUBLE)" if self.config.play_time else "NULL::DOUBLE"
        more = "".join(f", more_{number} := {_text_of(name)}" for number, name in enumerate(self.more))
        return (
            f"SELECT k AS {key}, list(struct_pack(item := {_text_of(self.config.item)}, event := {event}, "  # noqa: S608
            f'"time" := t // 1000000, play_time := {play_time}{more}) ORDER BY {_NEWEST}) AS {BEHAVIOURS} '
            f"FROM (SELECT *, {', '.join(places)} FROM (SELECT * FROM b "
            f"WHERE k IS NOT NULL AND t IS NOT NULL AND {_column(self.config.item)} IS NOT NULL{self._long_enough} "
            f"QUALIFY row_number() OVER (PARTITION BY k, {unique} ORDER BY {_NEWEST}) = 1)) "
            f"WHERE {' OR '.join(shown)} GROUP BY k"
        )

    @property
    def _long_enough(self) -> str:
        """The condition on rows of `b` that says what `play_times` says."""
        event, play_time = _text_of(self.config.event), f"coalesce(CAST({_column(self.config.play_time)} AS DOUBLE), 0)"
        return "".join(
            f" AND NOT coalesce({event} = {_texts([name])} AND {play_time} <= {bound!r}, false)"
            for name, bound in self.config.play_times.items()
        )

    def newest(self, behaviours: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Of a user's behaviours as they are kept online those that sequences show, newest first; of two at the same
        time the one that is given first is the newer one. `online_sql` says the same."""
        config = self.config
        custom = f"more_{self.more.index(config.custom)}" if config.custom else ""
        names = ["item", "event", *([custom] if custom else []), *(["time"] if config.time in config.unique else [])]
        unique: dict[tuple[Any, ...], dict[str, Any]] = {}
        for each in sorted(behaviours, key=lambda each: -each["time"]):
            bound = config.play_times.get(each["event"])
            if bound is None or (each["play_time"] or 0) > bound:
                unique.setdefault(tuple(each[name] for name in names), each)
        counts: Counter[tuple[int, Any]] = Counter()
        found = []
        for each in unique.values():
            shown = False
            for number, wanted in enumerate(config.sequences):
                # Items that are grouped are shown with all their events: so many of each are needed.
                place = (number, each["event"] if custom else None)
                if not wanted.events or each["event"] in wanted.events:
                    counts[place] += 1
                    shown |= counts[place] <= wanted.length
            if shown:
                found.append(each)
        return found

    def shown(self, rows: Sequence[str], now_seconds: int, *, grouped: bool) -> str:
        """A user's rows as they are kept online, those of the newest behaviours first, as PAI's SDKs show them: JSON.

        Grouped, which takes a `custom_deduplication_field`: behaviours that are equal in it and in the item are one,
        with the events joined by `|` and the rest as the newest of them has it.
        """
        kept: list[dict[str, Any]] = [orjson.loads(row) for row in rows]
        behaviours = self.newest(each for row in kept for each in row.pop(BEHAVIOURS) or [])
        found: dict[str, Any] = kept[0]
        custom = self.config.custom if grouped else ""
        for wanted in self.config.sequences:
            some = [each for each in behaviours if not wanted.events or each["event"] in wanted.events]
            fields = dict(self._fields(wanted))
            if custom:
                field = f"more_{self.more.index(custom)}"
                some = _grouped(some, field)
                fields[f"{wanted.name}__{custom}"] = field
            for name, field in fields.items():
                found[name] = _SEPARATOR.join(_told(each, field, now_seconds) for each in some[: wanted.length])
        return orjson.dumps(found).decode()

    def _fields(self, wanted: Wanted) -> Iterator[tuple[str, str]]:
        """The columns of a sequence, and which field of a behaviour online each shows."""
        fixed = ["item", "event", "item", "time", *(["play_time"] if self.config.play_time else []), "ts"]
        more = [f"more_{self.more.index(name)}" for name in wanted.more]
        for (name, _), field in zip(self._told(wanted), [*fixed, *more], strict=True):
            yield name, field

    def sql(self, key: str, own_key: str, oldest_seconds: int) -> str:
        """DuckDB's statement that makes table `v` for the keys and times of table `s`, of the behaviours in table `b`.

        `v` has k, t and a column `f.<name>` for each of `names`.
        """
        bound = f" AND b.t >= asked.t - {oldest_seconds * 1_000_000}" if oldest_seconds else ""
        ours = "b.k" if own_key == "k" else "CAST(b.k AS VARCHAR)"
        unique = ", ".join(_column(name) for name in self.config.unique)
        parts, joins, shown = [], [], []
        for number, wanted in enumerate(self.config.sequences):
            events = (
                f" AND CAST({_column(self.config.event)} AS VARCHAR) IN ({_texts(wanted.events)})"
                if wanted.events
                else ""
            )
            told = ", ".join(
                f"string_agg(coalesce({value}, ''), '{_SEPARATOR}' ORDER BY place) AS {_column(name)}"
                for name, value in self._told(wanted)
            )
            parts.append(
                f"q{number} AS (SELECT at_k, at_t, {told} FROM ("  # noqa: S608 - quoted names and texts
                f"SELECT *, row_number() OVER (PARTITION BY at_k, at_t ORDER BY {_NEWEST}) AS place FROM ("
                f"SELECT * FROM seen WHERE {_column(self.config.item)} IS NOT NULL{events}{self._long_enough} "
                f"QUALIFY row_number() OVER (PARTITION BY at_k, at_t, {unique} ORDER BY {_NEWEST}) = 1)) "
                f"WHERE place <= {wanted.length} GROUP BY at_k, at_t)"
            )
            joins.append(f" LEFT JOIN q{number} ON asked.k = q{number}.at_k AND asked.t = q{number}.at_t")
            shown += [f"q{number}.{_column(name)}" for name, _ in self._told(wanted)]
        return (
            f"CREATE TABLE v AS WITH asked AS (SELECT DISTINCT {key} AS k, t FROM s "  # noqa: S608
            f"WHERE t IS NOT NULL AND {key} IS NOT NULL), "
            f"seen AS (SELECT asked.k AS at_k, asked.t AS at_t, b.* FROM asked JOIN b ON asked.k = {ours} "
            f"AND b.t <= asked.t{bound}), {', '.join(parts)} "
            f"SELECT asked.k, asked.t, {', '.join(shown)} FROM asked{''.join(joins)}"
        )

    def _told(self, wanted: Wanted) -> Iterator[tuple[str, str]]:
        """The columns of a sequence, and what each is of a behaviour."""
        config, name = self.config, wanted.name
        yield name, _text_of(config.item)
        yield f"{name}__{config.event}", _text_of(config.event)
        yield f"{name}__{config.item}", _text_of(config.item)
        yield f"{name}__{config.time}", "CAST(t // 1000000 AS VARCHAR)"
        if config.play_time:
            yield f"{name}__{config.play_time}", f"printf('%.2f', CAST({_column(config.play_time)} AS DOUBLE))"
        yield f"{name}__ts", "CAST((at_t - t) // 1000000 AS VARCHAR)"
        for more in wanted.more:
            yield f"{name}__{more}", _text_of(more)


def online_columns(view: Row) -> list[tuple[str, str, str]]:
    """Name in what is made for publishing, name online and Hive type of each column of a view's online rows."""
    behaviours = behaviours_of(view)
    kinds = {each["name"]: each["type"] for each in fields.loaded(view["fields"])}
    key = datatypes.hive_of_pai(kinds[behaviours.key])
    return [(behaviours.key, view["join_id"], key), (BEHAVIOURS, BEHAVIOURS, behaviours.online_kind)]


def gathered(view: Row, table: Table, partitions: Mapping[str, Any], workspace: Workspace, path: Path) -> Table:
    """The behaviours of a view's table as a table to publish: a row for each user. Blocks."""
    behaviours = behaviours_of(view)
    kinds = {each["name"]: each["type"] for each in fields.loaded(view["fields"])}
    with workspace.opened():
        columns = [
            f"{cast(behaviours.key, kinds[behaviours.key], table)} AS k",
            f"{time_of(Time(behaviours.time, seconds=True), table)} AS t",
            *(f"{quoted(name)} AS {_column(name)}" for name in behaviours.columns),
            "0 AS part, ordinal, file_row_number",
        ]
        source = workspace.rows_of(0, table) + workspace.where(partitions, table)
        workspace.run(f"CREATE TABLE b AS SELECT {', '.join(columns)} FROM {source}")  # noqa: S608
        workspace.run(
            f"COPY ({behaviours.online_sql(quoted(behaviours.key))}) TO ? (FORMAT parquet, ROW_GROUP_SIZE 10000)",
            [str(path)],
        )
    return Table(table.name, (File(path, {}, table.name),), pq.read_schema(path), ())


def behaviours_of(view: Row) -> Behaviours:
    """Raises InvalidArgument for a view without a key, or with an unusable Config."""
    known = fields.loaded(view["fields"])
    keys = fields.having(known, fields.PRIMARY_KEY) or [
        each["name"] for each in known if each["name"] == view["join_id"]
    ]
    if not keys:
        raise errors.InvalidArgument(f"view {view['name']} has no primary key", field="FeatureViewId")
    return Behaviours(keys[0], config_of(view))


def _grouped(behaviours: Iterable[dict[str, Any]], field: str) -> list[dict[str, Any]]:
    """One for each item and value of the field, in the place of the newest."""
    groups: dict[tuple[Any, Any], list[dict[str, Any]]] = {}
    for each in behaviours:
        groups.setdefault((each["item"], each[field]), []).append(each)
    return [{**each[0], "event": "|".join(one["event"] or "" for one in each)} for each in groups.values()]


def _column(name: str) -> str:
    return '"f.' + name.replace('"', '""') + '"'


def _told(behaviour: Mapping[str, Any], field: str, now_seconds: int) -> str:
    if field == "ts":
        return str(now_seconds - behaviour["time"])
    value = behaviour.get(field)
    if value is None:
        return ""
    return f"{value:.2f}" if field == "play_time" else str(value)


def _text_of(name: str) -> str:
    return f"CAST({_column(name)} AS VARCHAR)"


def _texts(values: Sequence[str]) -> str:
    return ", ".join("'" + value.replace("'", "''") + "'" for value in values)
