"""Training sets: each row of a label table with what the views of a model feature held at its event time.

What is read and how it is joined is planned here; `training_set` does it. Knows the catalogue, and no rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from chassis import errors
from protos.gen.triglot.management.v1 import model_feature_pb2 as pb
from services.management import fields, publish, sequences
from services.management.inputs import distinct, invalid, not_negative
from services.management.models import seen_name
from services.management.offline import Table
from services.management.rows import Row
from services.management.sequence_config import config_of
from services.management.views import mock_table_of, offline_table_of
from services.management.workspace import Time

_DAY_SECONDS = 86_400


@dataclass(frozen=True)
class Reading:
    """A table to read, and what of it."""

    datasource_id: int
    table: str
    partitions: Mapping[str, Mapping[str, Any]]
    # Columns that it must have.
    columns: Sequence[str]


@dataclass(frozen=True)
class Key:
    """What a view is looked up by: a column of the label table, or, with `view`, a column of that view's row."""

    column: str
    kind: str
    view: int | None = None


@dataclass(frozen=True)
class Join:
    """How one view is joined."""

    name: str
    readings: Sequence[Reading]
    key: Key
    key_column: str
    key_kind: str
    time: Time | None
    # Column in the table, and its PAI type; features first, then what other views are looked up by.
    columns: Mapping[str, str]
    # Column of the label table that must be equal to the view's column of that name, with its type there.
    second: tuple[str, str] | None = None
    equal: bool = False
    # How much older than the label a row may be. 0: any age.
    oldest_seconds: int = 0
    # Of a table of behaviours, the sequences that are made of it. Its columns are then named by these.
    behaviours: sequences.Behaviours | None = None


@dataclass(frozen=True)
class Plan:
    """What is read, how it is joined, and the columns of the result."""

    label: Reading
    label_kinds: Mapping[str, str]
    time: Time | None
    joins: Sequence[Join]
    # Name in the training set -> where it comes from: a column of the label table (None), or of a join.
    output: Mapping[str, tuple[int | None, str]]

    @property
    def readings(self) -> list[Reading]:
        """All that is read."""
        return [self.label, *(reading for join in self.joins for reading in join.readings)]


def asked_for(request: pb.ExportModelFeatureTrainingSetTableRequest) -> dict[str, Any]:
    """The task's configuration. Raises InvalidArgument."""
    label, target = request.label_input_config, request.training_set_config
    return {
        "label_input_config": {"partitions": publish.partitions_of(label.partitions), "event_time": label.event_time},
        "feature_view_config": {name: _kept(each) for name, each in sorted(request.feature_view_config.items())},
        "training_set_config": {"partitions": publish.partitions_of(target.partitions)},
        "real_time_iterate_interval": not_negative("RealTimeIterateInterval", request.real_time_iterate_interval),
        "real_time_partition_count_value": not_negative(
            "RealTimePartitionCountValue", request.real_time_partition_count_value
        ),
    }


def _kept(each: pb.TrainingSetFeatureViewConfig) -> dict[str, Any]:
    return {
        "partitions": publish.partitions_of(each.partitions),
        "event_time": each.event_time,
        "equal": each.equal,
        "use_mock": each.use_mock,
        "snapshot": {"table": each.snapshot.table, "partitions": publish.partitions_of(each.snapshot.partitions)},
        "second_join_key": each.second_join_key,
        "join_with_label": each.join_with_label,
    }


_DEFAULTS = _kept(pb.TrainingSetFeatureViewConfig())


def partition_of(model: Row, config: Mapping[str, Any]) -> dict[str, str]:
    """Partition columns of the training set and their values: those of the label table first, in its order."""
    chosen = config["training_set_config"]["partitions"]
    for column, each in chosen.items():
        if "value" not in each or not each["value"]:
            raise invalid("TrainingSetConfig.Partitions", f"needs one value for {column}")
    labels = fields.having(fields.loaded(model["label_fields"]), fields.PARTITION)
    order = [*(column for column in labels if column in chosen), *sorted(set(chosen) - set(labels))]
    return {column: chosen[column]["value"] for column in order}


def plan_of(
    model: Row, views: Sequence[Row], selected: Sequence[Row], config: Mapping[str, Any], ttl_unit: str
) -> Plan:
    """How the training set is made. `views` are those that the model feature selects from, in its order.

    Raises InvalidArgument for what cannot be joined.
    """
    return _Planner(model, views, selected, config, ttl_unit).plan()


class _Planner:
    """Puts views into an order in which the key of each is known when its turn comes."""

    def __init__(
        self, model: Row, views: Sequence[Row], selected: Sequence[Row], config: Mapping[str, Any], ttl_unit: str
    ) -> None:
        self._model = model
        self._views = views
        self._selected = selected
        self._config = config
        self._ttl_unit = ttl_unit
        self._labels = {each["name"]: each for each in fields.loaded(model["label_fields"])}
        self._joins: list[Join] = []
        # Position in `joins`, by the view's id.
        self._joined: dict[int, int] = {}
        for name in config["feature_view_config"]:
            if name not in {view["name"] for view in views}:
                raise invalid("FeatureViewConfig", f"names {name}, which the model feature takes nothing from")

    def plan(self) -> Plan:
        waiting = list(self._views)
        while waiting:
            ready = next(((view, key) for view in waiting if (key := self._key(view)) is not None), None)
            if ready is None:
                view = waiting[0]
                raise errors.InvalidArgument(
                    f"view {view['name']} cannot be joined: label table {self._model['label_table_name']} has no "
                    f"column {view['join_id']}, nor has a view of a parent entity that the model feature takes from"
                )
            view, key = ready
            self._joined[view["id"]] = len(self._joins)
            self._joins.append(self._join(view, key))
            waiting.remove(view)
        time = self._label_time()
        if time is None and any(join.time for join in self._joins):
            raise invalid("LabelInputConfig.EventTime", "is required: no field of the label table is its event time")
        partitions = self._config["label_input_config"]["partitions"]
        kinds = {name: each["type"] for name, each in self._labels.items()}
        read = Reading(self._model["label_datasource_id"], self._model["label_table_name"], partitions, [*kinds])
        return Plan(read, kinds, time, self._joins, self._output())

    def _key(self, view: Row) -> Key | None:
        """What the view is looked up by; None while that is not known."""
        if view["join_id"] is None:
            raise errors.InvalidArgument(f"view {view['name']} cannot be joined: it has no feature entity")
        aligned = [each for each in self._labels.values() if each["aligned_entity_name"] == view["entity_name"]]
        named = [self._labels[view["join_id"]]] if view["join_id"] in self._labels else []
        for label in (*aligned, *named):
            return Key(label["name"], label["type"])
        if self._settings(view)["join_with_label"]:
            return None
        for other in self._views:
            if other["id"] in self._joined and other["feature_entity_id"] == view["parent_id"]:
                for each in fields.loaded(other["fields"]):
                    if each["name"] == view["join_id"]:
                        return Key(each["name"], each["type"], self._joined[other["id"]])
        return None

    def _settings(self, view: Row) -> dict[str, Any]:
        found: dict[str, Any] = self._config["feature_view_config"].get(view["name"], _DEFAULTS)
        return found

    def _join(self, view: Row, key: Key) -> Join:
        settings = self._settings(view)
        if view["type"] == sequences.TYPE:
            return self._sequence_join(view, key, settings)
        known = {each["name"]: each for each in fields.loaded(view["fields"])}
        marked = fields.having(known.values(), fields.PRIMARY_KEY)
        if not marked:
            raise errors.InvalidArgument(f"view {view['name']} cannot be joined: it has no primary key")
        time = self._view_time(view, known, settings["event_time"])
        # What views of child entities are looked up by comes along.
        carried = [
            each["join_id"] for each in self._views if each["parent_id"] == view["feature_entity_id"] is not None
        ]
        taken = [each["name"] for each in self._selected if each["feature_view_id"] == view["id"]]
        columns = {name: known[name]["type"] for name in (*taken, *carried) if name in known}
        needed = [marked[0], *columns, *([time.column] if time and time.column else [])]
        second = settings["second_join_key"]
        if second:
            if second not in known or second not in self._labels:
                raise invalid(
                    "SecondJoinKey", f"{second} must be a field of view {view['name']} and of the label table"
                )
            needed.append(second)
        return Join(
            name=view["name"],
            readings=self._readings(view, settings, list(dict.fromkeys(needed))),
            key=key,
            key_column=marked[0],
            key_kind=known[marked[0]]["type"],
            time=time,
            columns=columns,
            second=(second, known[second]["type"]) if second else None,
            equal=settings["equal"],
            oldest_seconds=self._oldest(view),
        )

    def _sequence_join(self, view: Row, key: Key, settings: Mapping[str, Any]) -> Join:
        config = config_of(view)
        if config.only_behaviours:
            raise errors.InvalidArgument(f"view {view['name']} cannot be joined: it has behaviours, and no sequences")
        if config.offline_table:
            columns = {each.offline_name: "STRING" for each in config.sequences}
            needed = [config.offline_key, config.offline_time, *columns]
            datasource_id, _ = offline_table_of(view)
            reading = Reading(datasource_id, config.offline_table, settings["partitions"], list(dict.fromkeys(needed)))
            return Join(
                name=view["name"], readings=[reading], key=key, key_column=config.offline_key, key_kind="STRING",
                time=Time(config.offline_time), columns=columns, equal=settings["equal"],
                oldest_seconds=self._oldest(view),
            )  # fmt: skip
        behaviours, source = sequences.behaviours_of(view), sequences.source_of(view)
        return Join(
            name=view["name"], readings=self._readings(source, settings, behaviours.columns), key=key,
            key_column=behaviours.key, key_kind="STRING", time=Time(behaviours.time, seconds=True),
            columns=dict.fromkeys(behaviours.names, "STRING"), oldest_seconds=self._oldest(view),
            behaviours=behaviours,
        )  # fmt: skip

    def _readings(self, view: Row, settings: Mapping[str, Any], columns: Sequence[str]) -> list[Reading]:
        """What is read for a view; of rows that are equal in all else, those read later are the valid ones."""
        datasource_id, table = offline_table_of(view)
        if settings["use_mock"]:
            table = mock_table_of(view)
            if not table:
                raise invalid("UseMock", f"cannot be: view {view['name']} of type {view['type']} has no mock table")
        snapshot = settings["snapshot"]
        before = (
            [Reading(datasource_id, snapshot["table"], snapshot["partitions"], columns)] if snapshot["table"] else []
        )
        return [*before, Reading(datasource_id, table, settings["partitions"], columns)]

    def _oldest(self, view: Row) -> int:
        """How old a row may be: as old as it is served, and, of a stream, as the request says."""
        bounds = [publish.time_to_live_seconds(view, self._ttl_unit)]
        if view["type"] == "Stream":
            bounds.append(self._config["real_time_partition_count_value"] * _DAY_SECONDS)
        return min((bound for bound in bounds if bound), default=0)

    def _view_time(self, view: Row, known: Mapping[str, Any], text: str) -> Time | None:
        marked = fields.having(known.values(), fields.EVENT_TIME)
        if not text:
            return Time(marked[0]) if marked else None
        return Time(text) if text in known else Time(at=_iso(f"FeatureViewConfig.{view['name']}.EventTime", text))

    def _label_time(self) -> Time | None:
        text = self._config["label_input_config"]["event_time"]
        if text and text not in self._labels:
            return Time(at=_iso("LabelInputConfig.EventTime", text))
        unix = fields.having(self._labels.values(), "EventTimeIsUnixTime")
        marked = [text] if text else [*fields.having(self._labels.values(), fields.EVENT_TIME), *unix]
        return Time(marked[0], seconds=marked[0] in unix) if marked else None

    def _output(self) -> dict[str, tuple[int | None, str]]:
        """Columns of the training set: the label table's but for its partitions, then the features."""
        output: dict[str, tuple[int | None, str]] = {
            name: (None, name) for name, each in self._labels.items() if fields.PARTITION not in each["attributes"]
        }
        own = {*self._labels} - {*fields.having(self._labels.values(), "FeatureField")}
        names: list[str] = []
        for each in self._selected:
            position = self._joined[each["feature_view_id"]]
            view = next(view for view in self._views if view["id"] == each["feature_view_id"])
            if each["name"] is None:
                pairs = sequences.output_of(view)
            elif view["type"] == sequences.TYPE:
                pairs = [(seen_name(each), sequences.column_of(view, each["name"]))]
            else:
                pairs = [(seen_name(each), each["name"])]
            for name, column in pairs:
                names.append(name)
                # The label table's own columns stay; of a feature that both have, the one that has priority.
                if name not in own and not (name in output and self._model["label_priority_level"] == 1):
                    output[name] = (position, column)
        distinct("Features", names)
        # Parquet's readers find no difference between names that differ in case.
        distinct("Features", [name.lower() for name in output])
        return output


def _iso(field_name: str, text: str) -> datetime:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise invalid(
            field_name, "must be a column, or a time in ISO 8601, such as 2026-11-21T08:00:00+00:00"
        ) from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def check_reading(reading: Reading, table: Table) -> None:
    """Raises InvalidArgument for a column that the table has not, NotFound for partitions that it has not."""
    held = {*table.schema.names, *table.partition_columns}
    for column in reading.partitions:
        if column not in held:
            raise invalid("Partitions", f"names {column}, which is no column of table {table.name}")
    for column in reading.columns:
        if column not in held:
            raise errors.InvalidArgument(f"table {table.name} has no column {column}")
    if table.files:
        publish.chosen_files(table, reading.partitions)


def chosen(reading: Reading, table: Table) -> Table:
    """The table with the files of the chosen partitions only. Raises what `check_reading` raises."""
    check_reading(reading, table)
    return replace(table, files=publish.chosen_files(table, reading.partitions))
