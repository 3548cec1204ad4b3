"""Tables in files: Parquet, CSV, Arrow. Their schema, how many rows, and the rows in batches of bounded size.

What a file is shows in its first bytes; CSV, which has none of its own, in its name. Memory does not grow with a file,
but that an Arrow file is read a record batch at a time, however large its writer made them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from chassis.errors import InvalidArgument, WrongSetting

BATCH_ROWS = 10_000
_BATCH_BYTES = 4 * 1024 * 1024
_READ_BUFFER_BYTES = 1 << 20
_CSV_BLOCK_BYTES = 4 * 1024 * 1024
# What a CSV file's name may end with, and how it is compressed.
_CSV = {".csv": None, ".csv.gz": "gzip", ".csv.zst": "zstd", ".csv.bz2": "bz2"}


class Table(Protocol):
    """A table in one file. Everything raises InvalidArgument, in one line, for a file that cannot be read."""

    @property
    def schema(self) -> pa.Schema:
        """Of a CSV file, what its first megabytes look like."""

    def batches(self, types: Mapping[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
        """All rows. `types` are those that columns of CSV are read as; the other formats have their own."""

    def total(self, done: int) -> int | None:
        """How many rows there are; of a CSV file an estimate from where its first `done` end; None if nobody knows."""


def open_table(path: Path) -> Table:
    """The table in a file. Raises WrongSetting if there is no such file, InvalidArgument if it is none of these."""
    if not path.is_file():
        raise WrongSetting(f"{path} is no file")
    with _readable(path):
        with path.open("rb") as file:
            begins = file.read(6)
        if begins[:4] == b"PAR1":
            return _Parquet(path)
        if begins == b"ARROW1":
            return _ArrowFile(path)
        if begins[:4] == b"\xff\xff\xff\xff":
            return _ArrowStream(path)
        for suffix, compression in _CSV.items():
            if path.name.lower().endswith(suffix):
                return _Csv(path, compression)
    raise InvalidArgument(f"{path} is no Parquet and no Arrow file, and its name does not end with {', '.join(_CSV)}")


class _Parquet:
    def __init__(self, path: Path) -> None:
        self._path = path
        metadata = pq.read_metadata(path)
        self.schema: pa.Schema = metadata.schema.to_arrow_schema()
        self._rows: int = metadata.num_rows

    def batches(self, types: Mapping[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
        with (
            _readable(self._path),
            pq.ParquetFile(self._path, buffer_size=_READ_BUFFER_BYTES, pre_buffer=False) as file,
        ):
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                yield from _bounded(batch)

    def total(self, done: int) -> int | None:
        return self._rows


class _ArrowFile:
    def __init__(self, path: Path) -> None:
        self._path = path
        with pa.OSFile(str(path)) as source, pa.ipc.open_file(source) as reader:
            self.schema: pa.Schema = reader.schema
            self._rows: int = reader.count_rows()

    def batches(self, types: Mapping[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
        with _readable(self._path), pa.OSFile(str(self._path)) as source, pa.ipc.open_file(source) as reader:
            for number in range(reader.num_record_batches):
                yield from _bounded(reader.get_batch(number))

    def total(self, done: int) -> int | None:
        return self._rows


class _ArrowStream:
    def __init__(self, path: Path) -> None:
        self._path = path
        with pa.OSFile(str(path)) as source, pa.ipc.open_stream(source) as reader:
            self.schema: pa.Schema = reader.schema

    def batches(self, types: Mapping[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
        with _readable(self._path), pa.OSFile(str(self._path)) as source, pa.ipc.open_stream(source) as reader:
            for batch in reader:
                yield from _bounded(batch)

    def total(self, done: int) -> int | None:
        return None


class _Csv:
    """Text that is empty is a string; so are `NULL` and the like, which in all other columns are null."""

    def __init__(self, path: Path, compression: str | None) -> None:
        self._path = path
        self._compression = compression
        self._bytes = path.stat().st_size
        self._read_bytes = 0
        with self._open({}) as (_, reader):
            self.schema: pa.Schema = pa.schema([_inferred(field) for field in reader.schema])

    def batches(self, types: Mapping[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
        wanted = {field.name: _read_as(field.type, types.get(field.name, field.type)) for field in self.schema}
        with _readable(self._path), self._open(wanted) as (source, reader):
            for batch in reader:
                # It reads ahead, which matters less the larger the file is.
                self._read_bytes = source.tell()
                yield from _bounded(batch)
            self._read_bytes = self._bytes

    def total(self, done: int) -> int | None:
        return max(done, done * self._bytes // self._read_bytes) if self._read_bytes else None

    @contextmanager
    def _open(self, types: Mapping[str, pa.DataType]) -> Iterator[tuple[Any, Any]]:
        with pa.OSFile(str(self._path)) as source:
            text = pa.CompressedInputStream(source, self._compression) if self._compression else source
            with pyarrow.csv.open_csv(
                text,
                read_options=pyarrow.csv.ReadOptions(block_size=_CSV_BLOCK_BYTES),
                parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
                convert_options=pyarrow.csv.ConvertOptions(column_types=types),
            ) as reader:
                yield source, reader


def _inferred(field: pa.Field) -> pa.Field:
    """Whether there are fractions of seconds cannot be told from the beginning of a file."""
    if pa.types.is_timestamp(field.type):
        return field.with_type(pa.timestamp("us", field.type.tz))
    return field


def _read_as(inferred: pa.DataType, wanted: pa.DataType) -> pa.DataType:
    """Times are read with a zone if the file has one. What CSV cannot hold stays as it looks, for serving to judge."""
    if pa.types.is_nested(wanted) or pa.types.is_timestamp(inferred):
        return inferred
    return pa.timestamp("us") if pa.types.is_timestamp(wanted) else wanted


def _bounded(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    pieces = max(1, -(-batch.nbytes // _BATCH_BYTES), -(-batch.num_rows // BATCH_ROWS))
    size = max(1, -(-batch.num_rows // pieces))
    for start in range(0, batch.num_rows, size):
        yield batch.slice(start, size)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise InvalidArgument(f"{path} cannot be read: {line}") from None
