"""Publishing a feature view: what has to hold, the feature group it becomes, and its rows as Arrow batches.

Memory does not grow with the table: one batch is read, converted and sent before the next one is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from chassis import datatypes, errors
from protos.gen.triglot.management.v1 import feature_view_pb2 as pb
from protos.gen.triglot.serving.v1 import feature_group_pb2
from services.management import fields, hologres, sequences
from services.management.inputs import invalid, json_object, one_of
from services.management.offline import File, Table, partition_chosen, readable
from services.management.rows import Row

SEQUENCE = sequences.TYPE
OVERWRITE, MERGE = "Overwrite", "Merge"
# Types whose rows are serving's own, and those that this service writes to itself.
SERVED_TYPES = ("FeatureDB", "Redis")
ONLINE_TYPES = (*SERVED_TYPES, hologres.TYPE)
GROUP_VERSION = 1
# Of a Sequence view, the version of its group that holds what was written row by row.
WRITTEN_VERSION = 2
_TYPES = ("Batch", "Stream", SEQUENCE)
# What an event time can be written to: a point in time, or PAI's milliseconds since 1970.
_TIMES = ("TIMESTAMP", "INT64")
_SECONDS_OF_TTL = {"days": 86_400, "seconds": 1}
_READ_BUFFER_BYTES = 1 << 20


def asked_for(view: Row, request: pb.PublishFeatureViewTableRequest) -> dict[str, Any]:
    """The task's configuration, in the form of PAI's LastSyncConfig. Raises InvalidArgument if it cannot be done."""
    mode = mode_of(request.mode)
    check_online(view)
    event_time_of(view, request.event_time)
    if not request.HasField("offline_to_online"):
        raise invalid("OfflineToOnline", "is required")
    return {
        "mode": mode.lower(),
        "partitions": partitions_of(request.partitions),
        "event_time": request.event_time,
        "config": json_object("Config", request.config),
        "offline_to_online": request.offline_to_online,
    }


def partitions_of(chosen: Mapping[str, pb.PartitionSelection]) -> dict[str, dict[str, Any]]:
    """Partitions as a task's configuration keeps them. Raises InvalidArgument."""
    kept: dict[str, dict[str, Any]] = {}
    for column, each in chosen.items():
        if each.values:
            kept[column] = {"value": each.values[0]} if len(each.values) == 1 else {"values": list(each.values)}
        elif each.start_value or each.end_value:
            kept[column] = {"start_value": each.start_value, "end_value": each.end_value}
        else:
            raise invalid("Partitions", f"give no value for {column}")
    return kept


def mode_of(text: str) -> str:
    """Overwrite or Merge, in this spelling. Raises InvalidArgument."""
    return one_of("Mode", text, (OVERWRITE, MERGE))


def check_online(view: Row) -> None:
    """Raises InvalidArgument for a view that can have no online rows of its own."""
    check_own(view)
    if not view["sync_online_table"]:
        raise invalid("FeatureViewId", "is a view with SyncOnlineTable false: it has no online table")
    if view["type"] not in _TYPES:
        raise invalid(
            "FeatureViewId", f"is a view of type {view['type']}; only {' and '.join(_TYPES)} can be published"
        )
    if view["online_type"] not in ONLINE_TYPES and not view["write_to_featuredb"]:
        raise invalid(
            "FeatureViewId",
            f"is kept in {view['online_type']}, which this deployment cannot write to; "
            f"it publishes to {', '.join(ONLINE_TYPES)}, and to FeatureDB from a view with WriteToFeatureDB",
        )
    key_of(view)


def check_own(view: Row) -> None:
    """Raises InvalidArgument for a view that shows the behaviours of another one, and has none."""
    if view["referenced_view_id"] is not None:
        raise invalid(
            "FeatureViewId", f"shows the behaviours of feature view {view['referenced_name']}: that is to be written"
        )


def event_time_of(view: Row, text: str) -> tuple[str, datetime] | None:
    """The view's event-time column, and the time of rows that have none in it. None: the publish gives no time, or the
    view has no such column. Raises InvalidArgument."""
    if not text:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise invalid("EventTime", "must be a time in ISO 8601, such as 2026-11-21T08:00:00+00:00") from None
    for field in fields.loaded(view["fields"]):
        if fields.EVENT_TIME in field["attributes"]:
            if field["type"] not in _TIMES:
                raise invalid("EventTime", f"cannot be written to {field['name']}, which is of type {field['type']}")
            return field["name"], at if at.tzinfo else at.replace(tzinfo=UTC)
    return None


def key_of(view: Row) -> str:
    """Name of the view's key column. Raises InvalidArgument for a view that has none, or no entity to name it by."""
    if view["join_id"] is None:
        raise invalid("FeatureViewId", "is a feature view without a feature entity, whose JoinId names the key")
    if view["type"] == SEQUENCE:
        return sequences.written_of(view).key
    keys = fields.having(fields.loaded(view["fields"]), fields.PRIMARY_KEY)
    if not keys:
        raise invalid("FeatureViewId", "is a feature view without a primary key: no field has that attribute")
    return keys[0]


def columns_of(view: Row) -> list[tuple[str, str, str]]:
    """Name in the table, name in the group and Hive type of each column that is served, in the view's order."""
    if view["type"] == SEQUENCE:
        return sequences.online_columns(view)
    key = key_of(view)
    columns = [
        (
            field["name"],
            view["join_id"] if field["name"] == key else field["name"],
            datatypes.hive_of_pai(field["type"]),
        )
        for field in fields.loaded(view["fields"])
        if fields.PARTITION not in field["attributes"] or field["name"] == key
    ]
    if len({served for _, served, _ in columns}) < len(columns):
        raise invalid("FeatureViewId", f"has a field {view['join_id']} besides its key, which is served by that name")
    return columns


def versions_of(view: Row) -> tuple[int, ...]:
    """The versions that a view's feature group may have."""
    return (GROUP_VERSION, WRITTEN_VERSION) if view["type"] == SEQUENCE else (GROUP_VERSION,)


def features_of(view: Row) -> list[feature_group_pb2.Feature]:
    """The columns of the view's feature group."""
    return [feature_group_pb2.Feature(name=served, type=kind) for _, served, kind in columns_of(view)]


def group_of(view: Row, ttl_unit: str, version: int = GROUP_VERSION) -> feature_group_pb2.FeatureGroup:
    """The feature group that the view is in serving. `ttl_unit`: what its TTL counts, days or seconds."""
    served = {name: served_name for name, served_name, _ in columns_of(view)}
    event_times = fields.having(fields.loaded(view["fields"]), fields.EVENT_TIME)
    group = feature_group_pb2.FeatureGroup(
        feature_store=view["feature_store"],
        name=view["name"],
        version=version,
        features=features_of(view),
        primary_key=[view["join_id"]],
        event_time=served.get(event_times[0], "") if event_times else "",
    )
    group.time_to_live.seconds = time_to_live_seconds(view, ttl_unit)
    return group


def time_to_live_seconds(view: Row, ttl_unit: str) -> int:
    """How long a row of the view holds; 0: for ever."""
    return int(view["ttl"] * _SECONDS_OF_TTL[ttl_unit])


@dataclass(frozen=True)
class Source:
    """The rows to publish. Reading blocks: use it in a thread."""

    table: Table
    files: Sequence[File]
    columns: Sequence[tuple[str, str, str]]
    key: str
    # Conditions on columns that the files hold, where the partition is not a folder.
    filters: Mapping[str, Mapping[str, Any]]
    # The column, and the value, of what has no event time of its own.
    event_time: tuple[str, datetime] | None = None

    def count(self) -> int:
        """Rows in the files, from their footers: those that filters will leave out are counted too."""
        with readable():
            return sum(pq.read_metadata(file.path).num_rows for file in self.files)

    def batches(self, rows: int, max_bytes: int) -> Iterator[pa.RecordBatch]:
        """All rows, in batches of at most `rows`, named and typed as the group has them.

        Raises InvalidArgument, naming file, row and column, for a value that does not fit or a key that is null.
        """
        names = [name for name, _, _ in self.columns]
        wanted = list(dict.fromkeys([*names, *self.filters]))
        given = self.event_time[0] if self.event_time else None
        for file in self.files:
            first_row = 1
            with pq.ParquetFile(file.path, buffer_size=_READ_BUFFER_BYTES, pre_buffer=False) as reader:
                present = set(reader.schema_arrow.names)
                for missing in (name for name in wanted if name not in present and name != given):
                    raise errors.InvalidArgument(f"{file.shown} has no column {missing}")
                read = [name for name in wanted if name in present]
                for batch in reader.iter_batches(batch_size=rows, columns=read):
                    yield from self._converted(batch, file, first_row, max_bytes)
                    first_row += batch.num_rows

    def _converted(self, batch: pa.RecordBatch, file: File, first_row: int, max_bytes: int) -> Iterator[pa.RecordBatch]:
        arrays = []
        for name, _, kind in self.columns:
            place = _Place(file.shown, first_row, name)
            array = self._array(batch, name, datatypes.arrow_type(kind), place)
            if name == self.key and array.null_count:
                raise place.at(array.is_null().index(True).as_py(), "the key is null")
            arrays.append(array)
        converted = pa.RecordBatch.from_arrays(arrays, names=[served for _, served, _ in self.columns])
        if self.filters:
            converted = converted.filter(_mask(batch, self.filters))
        pieces = max(1, -(-converted.nbytes // max_bytes))
        size = max(1, -(-converted.num_rows // pieces))
        for start in range(0, converted.num_rows, size):
            yield converted.slice(start, size)

    def _array(self, batch: pa.RecordBatch, name: str, target: pa.DataType, place: _Place) -> pa.Array:
        if self.event_time is None or name != self.event_time[0]:
            return _cast(batch.column(name), target, place)
        at = self.event_time[1]
        value = pa.scalar(at if pa.types.is_timestamp(target) else round(at.timestamp() * 1000), target)
        if name not in batch.schema.names:
            return pa.repeat(value, batch.num_rows)
        return pc.fill_null(_cast(batch.column(name), target, place), value)


def read_columns_of(view: Row) -> list[str]:
    """What is read of the view's table."""
    if view["type"] == SEQUENCE:
        return sequences.behaviours_of(view).columns
    return [name for name, _, _ in columns_of(view)]


def check_source(
    view: Row, table: Table, partitions: Mapping[str, Mapping[str, Any]], event_time: str = ""
) -> tuple[str, datetime] | None:
    """What `event_time_of` says. Raises InvalidArgument for a column that the table has not."""
    held = set(table.schema.names)
    for column in partitions:
        if column not in held and column not in table.partition_columns:
            raise invalid("Partitions", f"names {column}, which is no column of table {table.name}")
    given = event_time_of(view, event_time)
    for name in read_columns_of(view):
        if name not in held and (given is None or name != given[0]):
            raise errors.InvalidArgument(f"table {table.name} has no column {name}")
    return given


def chosen_files(table: Table, partitions: Mapping[str, Mapping[str, Any]]) -> list[File]:
    """The files of the partitions that are folders. Raises NotFound if there are none."""
    folders = {column: chosen for column, chosen in partitions.items() if column in table.partition_columns}
    files = [
        file
        for file in table.files
        if all(partition_chosen(file.partition[column], chosen) for column, chosen in folders.items())
    ]
    if not files:
        raise errors.NotFound(f"table {table.name} has no such partition", resource="Partition", id=table.name)
    return files


def source_of(view: Row, table: Table, partitions: Mapping[str, Mapping[str, Any]], event_time: str = "") -> Source:
    """What of a table is to be published. InvalidArgument for an unknown column, NotFound if nothing is there."""
    # What a Sequence view publishes was made of its table, which was checked.
    given = None if view["type"] == SEQUENCE else check_source(view, table, partitions, event_time)
    filters = {column: chosen for column, chosen in partitions.items() if column not in table.partition_columns}
    return Source(table, chosen_files(table, partitions), columns_of(view), key_of(view), filters, given)


def arrow_stream(batch: pa.RecordBatch) -> bytes:
    """A batch as an Arrow IPC stream of its own."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


@dataclass(frozen=True)
class _Place:
    """Where a value is, for messages to people."""

    file: str
    first_row: int
    column: str

    def at(self, offset: int, why: str) -> errors.InvalidArgument:
        return errors.InvalidArgument(f"{self.file}, row {self.first_row + offset}, column {self.column}: {why}")


def _cast(array: pa.Array, target: pa.DataType, place: _Place) -> pa.Array:
    if array.type == target:
        return array
    if pa.types.is_timestamp(target) and pa.types.is_integer(array.type):
        array = array.cast(pa.int64()).cast(pa.timestamp("ms"))  # PAI's timestamps are milliseconds
    options = pc.CastOptions(target_type=target, allow_time_truncate=True)
    try:
        return pc.cast(array, options=options)
    except pa.ArrowInvalid:
        offset = _first_bad(array, options)
        raise place.at(offset, f"{array[offset].as_py()!r} is no {target}") from None
    except pa.ArrowNotImplementedError:
        raise place.at(0, f"a {array.type} cannot become a {target}") from None


def _first_bad(array: pa.Array, options: pc.CastOptions) -> int:
    """Offset of the first value that cannot be cast, by halving."""
    start, size = 0, len(array)
    while size > 1:
        half = size // 2
        try:
            pc.cast(array.slice(start, half), options=options)
        except pa.ArrowInvalid:
            size = half
        else:
            start, size = start + half, size - half
    return start


def _mask(batch: pa.RecordBatch, filters: Mapping[str, Mapping[str, Any]]) -> pa.Array:
    masks = [
        pa.array([partition_chosen(text, chosen) for text in pc.cast(batch.column(column), pa.string()).to_pylist()])
        for column, chosen in filters.items()
    ]
    mask = masks[0]
    for other in masks[1:]:
        mask = pc.and_(mask, other)
    return mask
