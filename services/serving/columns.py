"""Arrow columns as they come, made the types of their group: by name, without loss, or refused."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from chassis import datatypes, errors
from chassis.datatypes import DataType
from services.serving import fragments
from services.serving.definitions import Column, Group

_Test = Callable[[pa.DataType], bool]
_types = pa.types


def converted(group: Group, batch: pa.RecordBatch) -> list[pa.Array]:
    """The group's columns in their order and of their Arrow types.

    Raises InvalidArgument that names columns which are missing, unknown or there twice, or the first one whose type or
    values do not fit.
    """
    names = batch.schema.names
    missing = [column.name for column in group.columns if column.name not in names]
    unknown = [name for position, name in enumerate(names) if name not in group.positions or name in names[:position]]
    for listed, what in ((missing, "are missing"), (unknown, "are unknown or there twice")):
        if listed:
            raise errors.InvalidArgument(
                f"columns {what}: {', '.join(listed)}", field="arrow_stream", columns=",".join(listed)
            )
    return [_converted(column, batch.column(column.name)) for column in group.columns]


def _converted(column: Column, array: pa.Array) -> pa.Array:
    try:
        if _types.is_dictionary(array.type):
            array = array.dictionary_decode()
        found = _cast(array, column.type)
        _check_length(found, column.type)
    except (pa.ArrowException, ValueError) as error:
        raise errors.InvalidArgument(
            f"column {column.name} does not fit {column.type.hive}: {str(error).splitlines()[0]}",
            field="arrow_stream",
            name=column.name,
        ) from None
    return found


def _cast(array: pa.Array, type_: DataType) -> pa.Array:
    target = type_.arrow
    if array.type.equals(target):
        return array
    if not _fits(array.type, type_):
        raise ValueError(f"it is {array.type}")
    if type_.kind in _TEXT_KINDS and not _is_text(array.type):
        # What PAI calls STRING for want of a better name: its own text.
        source = datatypes.parse(datatypes.hive_of_arrow(array.type))
        own = array.cast(source.arrow)
        return fragments.render(own, source) if source.nested else fragments.plain(own, source)
    if type_.kind == "decimal" and _types.is_integer(array.type):
        # Arrow wants room for every integer of the source type, not for those that are there.
        array = array.cast(pa.decimal128(datatypes.MAX_DECIMAL_PRECISION, type_.arguments[1]))
    found = array.cast(target)
    if type_.kind == "date" and _types.is_timestamp(array.type):
        exact = pc.equal(found.cast(array.type), array)
        if pc.all(exact).as_py() is False:
            raise ValueError("it has a time of day")
    return found


def _is_text(arrow: pa.DataType) -> bool:
    # Binary too: Parquet files without logical types have text as bytes. The cast checks that it is UTF-8.
    return any(test(arrow) for test in (_types.is_string, _types.is_large_string, _types.is_string_view, _is_bytes))


def _is_bytes(arrow: pa.DataType) -> bool:
    tests = (_types.is_binary, _types.is_large_binary, _types.is_fixed_size_binary, _types.is_binary_view)
    return any(test(arrow) for test in tests)


def _is_list(arrow: pa.DataType) -> bool:
    return any(test(arrow) for test in (_types.is_list, _types.is_large_list, _types.is_fixed_size_list))


_TEXT_KINDS = ("string", "varchar", "char")
_NUMBERS: tuple[_Test, ...] = (_types.is_integer, _types.is_floating, _types.is_decimal)
# Kind -> the Arrow types that can hold its values. A double for a float is rounded to the nearest; all else is exact.
_SOURCES: dict[str, tuple[_Test, ...]] = {
    **dict.fromkeys(("tinyint", "smallint", "int", "bigint", "float", "double"), _NUMBERS),
    "decimal": (_types.is_integer, _types.is_decimal),
    "boolean": (_types.is_boolean,),
    **dict.fromkeys(_TEXT_KINDS, (_is_text, _types.is_date, _types.is_decimal, _types.is_nested)),
    "date": (_types.is_date, _types.is_timestamp),
    "timestamp": (_types.is_timestamp,),
    "binary": (_is_bytes,),
}


def _fits(arrow: pa.DataType, type_: DataType) -> bool:
    if _types.is_null(arrow):
        return True
    if _types.is_dictionary(arrow):
        return _fits(arrow.value_type, type_)
    if type_.kind == "array":
        return _is_list(arrow) and _fits(arrow.value_type, type_.children[0])
    if type_.kind == "map":
        parts = (arrow.key_type, arrow.item_type) if _types.is_map(arrow) else ()
        return bool(parts) and all(_fits(*pair) for pair in zip(parts, type_.children, strict=True))
    if type_.kind == "struct":
        names = tuple(field.name for field in arrow) if _types.is_struct(arrow) else ()
        fields = [arrow.field(name).type for name in names] if names == type_.names else []
        return bool(fields) and all(_fits(*pair) for pair in zip(fields, type_.children, strict=True))
    return any(test(arrow) for test in _SOURCES[type_.kind])


def _check_length(array: pa.Array, type_: DataType) -> None:
    if type_.kind not in ("varchar", "char") or not type_.arguments:
        return
    longest = pc.max(pc.utf8_length(array)).as_py()
    if longest is not None and longest > type_.arguments[0]:
        raise ValueError(f"a text has {longest} characters")
