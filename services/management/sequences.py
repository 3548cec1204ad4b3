"""Sequences of a user's behaviours, newest first, as PAI's SDKs show them.

A sequence S of items is a text, items parted by `;`. `S__event`, `S__ts` and so on are of the same length and order.

What a sequence shows is found in the order in which PAI's stores and SDKs do it: of behaviours that are equal in what
must be unique the newest stays, of those the newest `seq_len` are taken, and what of these was not played for long
enough is left out. So what is kept of two sets of behaviours is what would be kept of both together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq

from chassis import datatypes, errors
from services.management import fields, hologres
from services.management.inputs import invalid
from services.management.offline import File, Table
from services.management.rows import Row
from services.management.sequence_config import MAX_LENGTH, Config, Wanted, config_of, unusable
from services.management.workspace import Time, Workspace, cast, quoted, time_of

TYPE = "Sequence"
# The column of a view's online rows that holds a user's behaviours, newest first.
BEHAVIOURS = "behaviours"
_SEPARATOR = ";"
# Of behaviours at the same time the one that was written last is the newest.
_NEWEST = "t DESC, part DESC, ordinal DESC, file_row_number DESC"
_OLDEST = "t, part, ordinal, file_row_number"

# A behaviour as it is kept in a user's row online: item, event, time in seconds, play_time, more_0 and so on.
Kept = dict[str, Any]


def output_of(view: Row) -> list[tuple[str, str]]:
    """Name in a training set, and in what is joined, of each column that the view gives."""
    config = config_of(view)
    if config.offline_table:
        return [(each.name, each.offline_name) for each in config.sequences]
    return [(name, name) for name in behaviours_of(view).names]


def column_of(view: Row, name: str) -> str:
    """The column, in what is joined, of a sequence by its name offline or online. Raises InvalidArgument."""
    config = config_of(view)
    for each in config.sequences:
        if name in (each.offline_name, each.name):
            return each.offline_name if config.offline_table else each.name
    raise errors.InvalidArgument(
        f"{name} is no sequence of view {view['name']}, and cannot be joined", field="Features"
    )


@dataclass(frozen=True)
class Behaviours:
    """A table of behaviours, a row for each, and the sequences that are made of it."""

    key: str
    config: Config
    # The PAI types of what the view has as fields, but for its partitions.
    fields: Mapping[str, str]
    # What else is kept of a behaviour, besides its key, item, event, time and play time.
    more: Sequence[str]

    @property
    def time(self) -> str:
        """When it was: a point in time, or seconds since 1970."""
        return self.config.time

    @property
    def columns(self) -> list[str]:
        """What is read of the table."""
        config = self.config
        told = (self.key, config.item, config.event, config.time, config.play_time, *config.unique, *self.more)
        return list(dict.fromkeys(name for name in told if name))

    @property
    def kinds(self) -> dict[str, str]:
        """The PAI type of each of these and of each field. What is no field is taken as what sequences show of it."""
        told = dict.fromkeys(self.columns, "STRING") | {self.config.time: "INT64"}
        if self.config.play_time:
            told[self.config.play_time] = "DOUBLE"
        return told | dict(self.fields)

    @property
    def table_columns(self) -> list[tuple[str, str]]:
        """Name and Hive type of each column of a table online that has a row for each behaviour."""
        kinds = self.kinds | {self.config.time: "INT64"}
        if self.config.play_time:
            kinds[self.config.play_time] = "DOUBLE"
        return [(name, datatypes.hive_of_pai(kinds[name])) for name in self.columns]

    @property
    def names(self) -> list[str]:
        """The columns of the sequences."""
        return [name for wanted in self.config.sequences for name, _ in self._told(wanted)]

    @property
    def online_kind(self) -> str:
        """The Hive type of a user's behaviours online. What else is told is named by its position."""
        more = "".join(f",more_{number}:string" for number in range(len(self.more)))
        return f"array<struct<item:string,event:string,time:bigint,play_time:double{more}>>"

    def online_sql(self, key: str) -> str:
        """DuckDB's statement that makes of table `b` a row for each key, with those behaviours that are kept."""
        more = "".join(f", more_{number} := {_text_of(name)}" for number, name in enumerate(self.more))
        return (
            f"SELECT k AS {key}, list(struct_pack(item := {_text_of(self.config.item)}, "  # noqa: S608
            f'event := {_text_of(self.config.event)}, "time" := t // 1000000, play_time := {self._play_time}{more}) '
            f"ORDER BY {_NEWEST}) AS {BEHAVIOURS} FROM ({self._kept_sql}) GROUP BY k"
        )

    def table_sql(self) -> str:
        """DuckDB's statement that makes of table `b` a row for each behaviour that is kept, the newest one last."""
        own = {self.key: "k", self.config.time: "t // 1000000"}
        if self.config.play_time:
            own[self.config.play_time] = self._play_time
        columns = (f"{own.get(name) or _column(name)} AS {quoted(name)}" for name, _ in self.table_columns)
        return f"SELECT {', '.join(columns)} FROM ({self._kept_sql}) ORDER BY {_OLDEST}"  # noqa: S608

    @property
    def _kept_sql(self) -> str:
        """The rows of table `b` that are kept."""
        event = _text_of(self.config.event)
        places, kept = [], []
        for number, (events, length, each) in enumerate(self.config.windows):
            told = f"{event} IN ({_texts(events)})" if events else "true"
            partition = f"k, {told}{f', {event}' if each else ''}"
            places.append(f"row_number() OVER (PARTITION BY {partition} ORDER BY {_NEWEST}) AS p{number}")
            kept.append(f"({told} AND p{number} <= {length})")
        return (
            f"SELECT * FROM (SELECT *, {', '.join(places)} FROM (SELECT * FROM b "  # noqa: S608
            f"WHERE k IS NOT NULL AND t IS NOT NULL AND {self._whole} "
            f"QUALIFY row_number() OVER (PARTITION BY k, {self._unique} ORDER BY {_NEWEST}) = 1)) "
            f"WHERE {' OR '.join(kept)}"
        )

    @property
    def _whole(self) -> str:
        """The condition on rows of `b` that they say what was done with what."""
        return " AND ".join(f"coalesce({_text_of(name)}, '') <> ''" for name in (self.config.item, self.config.event))

    @property
    def _unique(self) -> str:
        return ", ".join("t // 1000000" if name == self.time else _column(name) for name in self.config.unique)

    @property
    def _play_time(self) -> str:
        """For how long it was played; 0 where that is not known, as PAI's stores have it."""
        return (
            f"coalesce(CAST({_column(self.config.play_time)} AS DOUBLE), 0)" if self.config.play_time else "0::DOUBLE"
        )

    @property
    def _long_enough(self) -> str:
        """The condition on rows of `b` that says what `play_times` says."""
        event = _text_of(self.config.event)
        return "".join(
            f" AND NOT ({event} = {_texts([name])} AND {self._play_time} <= {bound!r})"
            for name, bound in self.config.play_times.items()
        )

    def kept(self, row: Mapping[str, Any]) -> Kept:
        """A behaviour, given by its columns, as it is kept in a user's row online."""
        play_time = row[self.config.play_time] if self.config.play_time else None
        return {
            "item": _text(row[self.config.item]),
            "event": _text(row[self.config.event]),
            "time": _seconds(row[self.config.time]),
            "play_time": float(play_time or 0),
            **{f"more_{number}": _text(row[name]) for number, name in enumerate(self.more)},
        }

    def newest(self, behaviours: Iterable[Kept]) -> list[Kept]:
        """Of a user's behaviours as they are kept online those that are kept, newest first; of two at the same time the
        one that is given first is the newer one. `online_sql` says the same."""
        config = self.config
        custom = f"more_{self.more.index(config.custom)}" if config.custom else ""
        names = ["item", "event", *([custom] if custom else []), *(["time"] if config.time in config.unique else [])]
        unique: dict[tuple[Any, ...], Kept] = {}
        for each in sorted(behaviours, key=lambda each: -each["time"]):
            unique.setdefault(tuple(each[name] for name in names), each)
        kept = {id(each) for window in config.windows for each in _within(unique.values(), *window)}
        return [each for each in unique.values() if id(each) in kept]

    def shown(
        self, row: Mapping[str, Any], behaviours: Iterable[Kept], now_seconds: int, *, grouped: bool
    ) -> list[str]:
        """A user's behaviours as they are kept online, those that were written last first, as PAI's SDKs show them: a
        JSON text that begins with `row`, or, where only behaviours are asked for, one for each of them.

        Grouped, which takes a `custom_deduplication_field`: behaviours that are equal in it and in the item are one,
        with the events joined by `|` and the rest as the newest of them has it.
        """
        newest = self.newest(behaviours)
        if self.config.only_behaviours:
            found = [each for each in newest if self._is_long_enough(each)]
            return [orjson.dumps({**row, **dict(self._fields(each))}).decode() for each in found]
        columns = dict(row)
        custom = self.config.custom if grouped else ""
        for wanted in self.config.sequences:
            some = _within(newest, wanted.events, wanted.length, bool(custom))
            some = [each for each in some if self._is_long_enough(each)]
            fields = dict(self._parts(wanted))
            if custom:
                field = f"more_{self.more.index(custom)}"
                some = _grouped(some, field)
                fields[f"{wanted.name}__{custom}"] = field
            for name, field in fields.items():
                columns[name] = _SEPARATOR.join(_told(each, field, now_seconds) for each in some[: wanted.length])
        return [orjson.dumps(columns).decode()]

    def _is_long_enough(self, behaviour: Kept) -> bool:
        bound = self.config.play_times.get(behaviour["event"])
        return bound is None or not (behaviour["play_time"] or 0) <= bound

    def _fields(self, behaviour: Kept) -> Iterator[tuple[str, Any]]:
        """What is known of a behaviour, as its fields."""
        config, kinds = self.config, self.kinds
        yield config.item, _typed(behaviour["item"], kinds[config.item])
        yield config.event, _typed(behaviour["event"], kinds[config.event])
        yield config.time, behaviour["time"]
        if config.play_time:
            yield config.play_time, behaviour["play_time"]
        for number, name in enumerate(self.more):
            yield name, _typed(behaviour[f"more_{number}"], kinds[name])

    def _parts(self, wanted: Wanted) -> Iterator[tuple[str, str]]:
        """The columns of a sequence, and which field of a behaviour online each shows."""
        fixed = ["item", "event", "item", "time", *(["play_time"] if self.config.play_time else []), "ts"]
        more = [f"more_{self.more.index(name)}" for name in self._else(wanted)]
        for (name, _), field in zip(self._told(wanted), [*fixed, *more], strict=True):
            yield name, field

    def sql(self, key: str, own_key: str, oldest_seconds: int) -> str:
        """DuckDB's statement that makes table `v` for the keys and times of table `s`, of the behaviours in table `b`.

        `v` has k, t and a column `f.<name>` for each of `names`.
        """
        bound = f" AND b.t >= asked.t - {oldest_seconds * 1_000_000}" if oldest_seconds else ""
        ours = "b.k" if own_key == "k" else "CAST(b.k AS VARCHAR)"
        parts, joins, shown = [], [], []
        for number, wanted in enumerate(self.config.sequences):
            events = f" AND {_text_of(self.config.event)} IN ({_texts(wanted.events)})" if wanted.events else ""
            told = ", ".join(
                f"string_agg(coalesce({value}, ''), '{_SEPARATOR}' ORDER BY place) AS {_column(name)}"
                for name, value in self._told(wanted)
            )
            parts.append(
                f"q{number} AS (SELECT at_k, at_t, {told} FROM ("  # noqa: S608 - quoted names and texts
                f"SELECT *, row_number() OVER (PARTITION BY at_k, at_t ORDER BY {_NEWEST}) AS place FROM ("
                f"SELECT * FROM seen WHERE {self._whole}{events} "
                f"QUALIFY row_number() OVER (PARTITION BY at_k, at_t, {self._unique} ORDER BY {_NEWEST}) = 1)) "
                f"WHERE place <= {wanted.length}{self._long_enough} GROUP BY at_k, at_t)"
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
            yield f"{name}__{config.play_time}", f"printf('%.2f', {self._play_time})"
        yield f"{name}__ts", "CAST((at_t - t) // 1000000 AS VARCHAR)"
        for more in self._else(wanted):
            yield f"{name}__{more}", _text_of(more)

    def _else(self, wanted: Wanted) -> list[str]:
        """What is told of a sequence besides what is told of each."""
        config = self.config
        fixed = (config.item, config.event, config.time, config.play_time, "ts")
        return [name for name in dict.fromkeys(wanted.more) if name not in fixed]


def _within(behaviours: Iterable[Kept], events: Sequence[str], length: int, each: bool) -> list[Kept]:
    """The first `length` of those of the events (none: of all), or of each event of these."""
    counts: Counter[str] = Counter()
    found = []
    for behaviour in behaviours:
        if not events or behaviour["event"] in events:
            place = behaviour["event"] if each else ""
            counts[place] += 1
            if counts[place] <= length:
                found.append(behaviour)
    return found


def written_of(view: Row) -> Behaviours:
    """As `behaviours_of`. Raises InvalidArgument also where Config has ready-made sequences and no behaviours."""
    behaviours = behaviours_of(view)
    config = behaviours.config
    for name, field in (
        ("item_id_field", config.item), ("event_field", config.event), ("timestamp_field", config.time)
    ):  # fmt: skip
        if not field:
            raise unusable(view, f"has no {name}, so that no behaviours can be kept")
    return behaviours


def online_columns(view: Row) -> list[tuple[str, str, str]]:
    """Name in what is made for publishing, name online and Hive type of each column of what a view has online."""
    behaviours = behaviours_of(view)
    if hologres.keeps(view):
        return [(name, name, kind) for name, kind in behaviours.table_columns]
    kinds = {each["name"]: each["type"] for each in fields.loaded(view["fields"])}
    key = datatypes.hive_of_pai(kinds[behaviours.key])
    return [(behaviours.key, view["join_id"], key), (BEHAVIOURS, BEHAVIOURS, behaviours.online_kind)]


def gathered(view: Row, table: Table, partitions: Mapping[str, Any], workspace: Workspace, path: Path) -> Table:
    """The behaviours of a view's table as a table to publish: a row for each user, or for each of them. Blocks."""
    behaviours = behaviours_of(view)
    known = {each["name"]: each["type"] for each in fields.loaded(view["fields"])}
    by_row = hologres.keeps(view)
    with workspace.opened():
        columns = [
            f"{cast(behaviours.key, known[behaviours.key], table)} AS k",
            f"{time_of(Time(behaviours.time, seconds=True), table)} AS t",
            *(
                f"{cast(name, known.get(name, '') if by_row else '', table)} AS {_column(name)}"
                for name in behaviours.columns
            ),
            "0 AS part, ordinal, file_row_number",
        ]
        source = workspace.rows_of(0, table) + workspace.where(partitions, table)
        workspace.run(f"CREATE TABLE b AS SELECT {', '.join(columns)} FROM {source}")  # noqa: S608
        made = behaviours.table_sql() if by_row else behaviours.online_sql(quoted(behaviours.key))
        workspace.run(f"COPY ({made}) TO ? (FORMAT parquet, ROW_GROUP_SIZE 10000)", [str(path)])
    return Table(table.name, (File(path, {}, table.name),), pq.read_schema(path), ())


def check_referenced(view: Row, source: Row) -> None:
    """Raises InvalidArgument unless the one view, which is being made, can show the behaviours of the other one."""
    what = f"cannot refer to feature view {source['name']}, which"
    if source["type"] != TYPE:
        raise invalid("Config", f"{what} is of type {source['type']}")
    if source["referenced_view_id"] is not None:
        raise invalid("Config", f"{what} refers to another one itself")
    if source["feature_entity_id"] != view["feature_entity_id"]:
        raise invalid("Config", f"{what} has another feature entity")
    config, own = behaviours_of(source), config_of(view)
    for name in ("item", "event", "time", "play_time", "unique"):
        here, there = getattr(own, name), getattr(config.config, name)
        if here != there or not (there or name == "play_time"):
            raise invalid("Config", f"{what} has {there or 'nothing'} where it has {here or 'nothing'}")
    for name in (name for wanted in own.sequences for name in wanted.more):
        if name not in config.columns and name != "ts":
            raise invalid("Config", f"{what} keeps no {name}")


def source_of(view: Row) -> Row:
    """The view whose behaviours a view shows: the one that its Config refers to, or itself."""
    if view["referenced_view_id"] is None:
        return view
    refers = {name: view[f"referenced_{name}"] for name in ("name", "config", "fields", "write_to_featuredb")}
    place = {name: view[f"referenced_{name}"] for name in ("register_table", "register_datasource_id")}
    return {**view, **refers, **place, "id": view["referenced_view_id"], "referenced_view_id": None}


def behaviours_of(view: Row) -> Behaviours:
    """Raises InvalidArgument for a view without a key, or with an unusable Config."""
    source = source_of(view)
    known = fields.loaded(source["fields"])
    keys = fields.having(known, fields.PRIMARY_KEY) or [
        each["name"] for each in known if each["name"] == view["join_id"]
    ]
    if not keys:
        raise errors.InvalidArgument(f"view {source['name']} has no primary key", field="FeatureViewId")
    config = config_of(source)
    told = [name for name in (keys[0], config.item, config.event, config.time, config.play_time, config.custom) if name]
    if len(set(told)) < len(told):
        raise unusable(source, f"needs one field for each of key, item, event, times and what is unique, not {told}")
    kinds = {each["name"]: each["type"] for each in known if fields.PARTITION not in each["attributes"]}
    told = [config.custom, *(name for wanted in config.sequences for name in wanted.more)]
    if config.only_behaviours or hologres.keeps(view):
        told += kinds
    fixed = ("", keys[0], config.item, config.event, config.time, config.play_time)
    more = [name for name in dict.fromkeys(told) if name not in fixed]
    if source is not view:
        own = config_of(view)
        config = replace(
            own, custom=config.custom, unique=config.unique, offline_table=own.offline_table, kept=MAX_LENGTH
        )
    return Behaviours(keys[0], config, kinds, more)


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


def _typed(text: str | None, kind: str) -> Any:
    """The value of which `_text` made a text; what is neither number nor boolean stays one."""
    if text is None:
        return None
    if kind in ("INT32", "INT64"):
        return int(text)
    if kind in ("FLOAT", "DOUBLE"):
        return float(text)
    return text == "true" if kind == "BOOLEAN" else text


def _text_of(name: str) -> str:
    return f"CAST({_column(name)} AS VARCHAR)"


def _texts(values: Sequence[str]) -> str:
    return ", ".join("'" + value.replace("'", "''") + "'" for value in values)
