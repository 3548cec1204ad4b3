"""A CSV file into a view's own offline table: one Parquet file for each partition, replaced as a whole.

The file is below an allowed folder, or is fetched from an allowed host before anything else is done.

Memory does not grow with the file, but that Merge holds the keys of its rows. All of it blocks: use it in a thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from chassis import datatypes, errors
from protos.gen.triglot.management.v1 import feature_view_pb2 as pb
from services.management import downloads, fields, publish
from services.management.downloads import Limits
from services.management.inputs import invalid
from services.management.offline import NewFile, OfflineStore
from services.management.rows import Row
from services.management.views import READY_MADE

_BLOCK_BYTES = 4 * 1024 * 1024


def asked_for(
    view: Row, request: pb.WriteFeatureViewTableRequest, offline: OfflineStore, limits: Limits
) -> dict[str, Any]:
    """The task's configuration. Raises InvalidArgument if it cannot be done, NotFound without the file."""
    mode = publish.mode_of(request.mode)
    if view["write_method"] == READY_MADE:
        raise invalid(
            "FeatureViewId", f"is a view of table {view['register_table']}, which is not the store's to write"
        )
    publish.key_of(view)
    _schema(view)
    delimiter = request.url_datasource.delimiter or ","
    if len(delimiter) != 1 or not delimiter.isascii() or delimiter in '"\r\n':
        raise invalid("UrlDatasource.Delimiter", "must be one ASCII character, and no quote or line break")
    path = request.url_datasource.path
    if downloads.is_url(path):
        downloads.check(path, limits)
    else:
        offline.file(path)
    return {
        "mode": mode.lower(),
        "partitions": _partition(view, request.partitions),
        "path": path,
        "delimiter": delimiter,
        "omit_header": request.url_datasource.omit_header,
    }


def _partition(view: Row, chosen: Mapping[str, pb.PartitionSelection]) -> dict[str, str]:
    columns = fields.having(fields.loaded(view["fields"]), fields.PARTITION)
    for column in chosen:
        if column not in columns:
            raise invalid("Partitions", f"names {column}, which is no partition of the view")
    for column in columns:
        if column not in chosen or len(chosen[column].values) != 1 or not chosen[column].values[0]:
            raise invalid("Partitions", f"needs one value for {column}")
    return {column: chosen[column].values[0] for column in columns}


def _schema(view: Row) -> pa.Schema:
    """The columns of the view's table that are no partitions."""
    columns = []
    for field in fields.loaded(view["fields"]):
        if fields.PARTITION not in field["attributes"]:
            kind = datatypes.arrow_type(datatypes.hive_of_pai(field["type"]))
            if pa.types.is_nested(kind):
                raise invalid("FeatureViewId", f"has {field['name']} of type {field['type']}, which CSV cannot hold")
            # CSV has times without a zone, which are taken as UTC.
            columns.append((field["name"], pa.timestamp("us") if pa.types.is_timestamp(kind) else kind))
    return pa.schema(columns)


class CsvImport:
    """One attempt: go through `steps`, then `target.finish()`. Until then the table is as it was."""

    def __init__(self, view: Row, config: Mapping[str, Any], source: Path, target: NewFile) -> None:
        made_by = {NewFile.MADE_BY: str(target.task_id)}
        self._schema = _schema(view).with_metadata(made_by)
        self._key = publish.key_of(view)
        self._config = config
        self._source = source
        self._target = target
        self._keys: list[pa.Array] = []

    def steps(self) -> Iterator[int]:
        """Write the rows of the file, then those old ones that stay; after each batch, how many it had.

        Raises InvalidArgument for a file that is not what it should be.
        """
        with self._target.writing() as path, pq.ParquetWriter(path, self._schema) as writer:
            yield from self._written(writer)

    def _written(self, writer: pq.ParquetWriter) -> Iterator[int]:
        merge = self._config["mode"] == publish.MERGE.lower()
        rows = 0
        for batch in self._new():
            keys = batch.column(self._key)
            if keys.null_count:
                at = rows + keys.is_null().index(True).as_py() + 1
                raise errors.InvalidArgument(f"{self._source.name}, row {at}, column {self._key}: the key is null")
            if merge:
                self._keys.append(keys)
            writer.write_batch(batch)
            rows += batch.num_rows
            yield batch.num_rows
        for batch in self._old() if merge else ():
            writer.write_batch(batch)
            yield batch.num_rows

    def _new(self) -> Iterator[pa.RecordBatch]:
        header = self._config["omit_header"]
        try:
            with pa.csv.open_csv(
                self._source,
                read_options=pa.csv.ReadOptions(
                    use_threads=False,
                    block_size=_BLOCK_BYTES,
                    column_names=None if header else self._schema.names,
                ),
                parse_options=pa.csv.ParseOptions(delimiter=self._config["delimiter"], newlines_in_values=True),
                convert_options=pa.csv.ConvertOptions(
                    column_types={column.name: column.type for column in self._schema},
                    null_values=[""],
                    strings_can_be_null=True,
                    quoted_strings_can_be_null=False,
                ),
            ) as reader:
                if sorted(reader.schema.names) != sorted(self._schema.names):
                    raise errors.InvalidArgument(
                        f"{self._source.name} has the columns {', '.join(reader.schema.names)}, "
                        f"not {', '.join(self._schema.names)}"
                    )
                for batch in reader:
                    yield batch.select(self._schema.names)
        except pa.ArrowInvalid as error:
            raise errors.InvalidArgument(f"{self._source.name}: {str(error).splitlines()[0]}") from None

    def _old(self) -> Iterator[pa.RecordBatch]:
        """Rows of the table whose keys are not among the new ones. A column that they lack is null."""
        kept = self._target.path
        if not kept.exists():
            return
        new_keys = pa.chunked_array(self._keys, self._schema.field(self._key).type)
        with pq.ParquetFile(kept) as reader:
            for batch in reader.iter_batches():
                stays = batch.filter(pc.invert(pc.is_in(batch.column(self._key), value_set=new_keys)))
                arrays = [
                    stays.column(column.name)
                    if column.name in stays.schema.names
                    else pa.nulls(stays.num_rows, column.type)
                    for column in self._schema
                ]
                yield pa.RecordBatch.from_arrays(arrays, schema=self._schema)
