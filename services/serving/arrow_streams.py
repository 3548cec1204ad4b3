"""Arrow IPC streams from outside: sound, and no larger when they are opened than a message may be.

A few bytes of Arrow can stand for any number of rows: compressed, as a dictionary, as views of one text, as buffers
that overlap, as nulls without a buffer. So what a stream claims is checked in its metadata before any of it is opened,
and what its columns come to before they are.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from chassis import errors

_types = pa.types

# Flatbuffers of Arrow's format (Message.fbs): union members and the numbers of fields.
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3
_HEADER_TYPE, _HEADER = 1, 2
_DICTIONARY_DATA = 1
_NODES, _BUFFERS, _COMPRESSION = 1, 2, 3
# How streams were marked as compressed before there was a field for it.
_OLD_COMPRESSION = b"ARROW:experimental_compression"


def batches(arrow_stream: bytes, max_bytes: int) -> Iterator[pa.RecordBatch]:
    """The batches of a stream, one by one, each checked to be sound.

    Raises InvalidArgument if it is no sound stream, is compressed, or holds more than `max_bytes` values or bytes of
    values.
    """
    try:
        for message in pa.ipc.MessageReader.open_stream(arrow_stream):
            _check_claims(message, max_bytes)
        left = max_bytes
        with pa.ipc.open_stream(arrow_stream) as reader:
            for field in reader.schema:
                _check_type(field)
            for batch in reader:
                batch.validate()
                left -= sum(_opened_bytes(column) for column in batch.columns)
                if left < 0:
                    raise _too_large(max_bytes)
                batch.validate(full=True)
                yield batch
    except (pa.ArrowException, OSError, ValueError, struct.error) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise errors.InvalidArgument(f"not a sound Arrow IPC stream: {line}", field="arrow_stream") from None


def _too_large(max_bytes: int) -> errors.InvalidArgument:
    return errors.InvalidArgument(
        f"an Arrow stream stands for more than {max_bytes} values or bytes: send its rows as several",
        field="arrow_stream",
        limit_bytes=max_bytes,
    )


def _check_claims(message: pa.ipc.Message, max_bytes: int) -> None:
    metadata = message.metadata.to_pybytes()
    root = _Table(metadata, *struct.unpack_from("<I", metadata))
    kind_at = root.field(_HEADER_TYPE)
    kind = metadata[kind_at] if kind_at else 0
    if kind not in (_DICTIONARY_BATCH, _RECORD_BATCH):
        return
    batch = root.table(_HEADER)
    if kind == _DICTIONARY_BATCH:
        batch = batch.table(_DICTIONARY_DATA)
    if batch.field(_COMPRESSION) or _OLD_COMPRESSION in metadata:
        raise errors.InvalidArgument(
            "the Arrow stream is compressed: send it plain, and let gRPC compress it", field="arrow_stream"
        )
    # Lengths of arrays at any depth, and of buffers: second and first of the two numbers of each.
    values, sizes = batch.pairs(_NODES)[:, 0], batch.pairs(_BUFFERS)[:, 1]
    body = message.body.size if message.body else 0
    if _total(sizes) > body:
        raise ValueError("its buffers overlap or are cut off")
    if _total(values) > max_bytes:
        raise _too_large(max_bytes)


def _total(lengths: np.ndarray) -> int:
    if (lengths < 0).any():
        raise ValueError("a length is negative")
    return sum(lengths.tolist())


class _Table:
    """A table of a flatbuffer. Raises struct.error or ValueError where the bytes end."""

    def __init__(self, data: bytes, position: int) -> None:
        self._data = data
        self._position = position
        (offset,) = struct.unpack_from("<i", data, position)
        self._fields = position - offset
        (self._fields_size,) = struct.unpack_from("<H", data, self._fields)

    def field(self, number: int) -> int:
        """Where a field is; 0 if it is absent."""
        slot = 4 + 2 * number
        (offset,) = struct.unpack_from("<H", self._data, self._fields + slot) if slot < self._fields_size else (0,)
        return self._position + offset if offset else 0

    def table(self, number: int) -> _Table:
        return _Table(self._data, self._referred(number))

    def pairs(self, number: int) -> np.ndarray:
        """A vector of pairs of 64-bit numbers."""
        if not self.field(number):
            return np.empty((0, 2), np.int64)
        position = self._referred(number)
        (count,) = struct.unpack_from("<I", self._data, position)
        return np.frombuffer(self._data, "<i8", 2 * count, position + 4).reshape(count, 2)

    def _referred(self, number: int) -> int:
        position = self.field(number)
        if not position:
            raise ValueError("a part of its metadata is missing")
        (offset,) = struct.unpack_from("<I", self._data, position)
        return position + int(offset)


def _check_type(field: pa.Field) -> None:
    """Rows may share values in a column, by a dictionary or by views, but not deeper inside of one."""
    type_ = field.type.value_type if _types.is_dictionary(field.type) else field.type
    if not (_is_plain(type_) or _is_view(field.type)):
        raise errors.InvalidArgument(f"column {field.name}: {field.type} is not taken", field="arrow_stream")


def _is_plain(type_: pa.DataType) -> bool:
    """Whether its buffers hold each value once for each row."""
    if _types.is_nested(type_):
        lists = (_types.is_list, _types.is_large_list, _types.is_fixed_size_list, _types.is_map, _types.is_struct)
        return any(test(type_) for test in lists) and all(
            _is_plain(type_.field(index).type) for index in range(type_.num_fields)
        )
    shared = _is_view(type_) or _types.is_dictionary(type_) or _types.is_run_end_encoded(type_)
    return not (shared or isinstance(type_, pa.BaseExtensionType))


def _is_view(type_: pa.DataType) -> bool:
    return any(test(type_) for test in (_types.is_string_view, _types.is_binary_view))


def _opened_bytes(column: pa.Array) -> int:
    """Bytes of a column's values once each row has its own."""
    if not _types.is_dictionary(column.type):
        return int(_view_lengths(column).sum()) if _is_view(column.type) else 0
    values = column.dictionary
    if _types.is_nested(values.type):
        raise ValueError(f"a dictionary of {values.type}")
    if not _is_text(values.type):
        return len(column) * values.type.bit_width // 8 if not _types.is_null(values.type) else 0
    return pc.sum(pc.binary_length(values).cast(pa.int64()).take(column.indices)).as_py() or 0


def _is_text(type_: pa.DataType) -> bool:
    tests = (_types.is_string, _types.is_large_string, _types.is_binary, _types.is_large_binary)
    return any(test(type_) for test in tests)


def _view_lengths(column: pa.Array) -> np.ndarray:
    """The first of the four 32-bit numbers of each view. Arrow has no kernel for it."""
    views = column.buffers()[1]
    if views is None:
        return np.empty(0, np.int64)
    lengths = np.frombuffer(views, "<i4", 4 * len(column), 16 * column.offset)[::4]
    return np.where(column.is_valid(), np.maximum(lengths, 0), 0).astype(np.int64)
