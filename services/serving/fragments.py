"""Values as JSON text and back: whole Arrow columns into fragments, fragments into typed values.

A fragment is the JSON text of one value as a feature vector shows it (docs/types.md). It holds no line break, because
JSON text escapes those inside strings and this module writes none outside: rows are fragments joined by line breaks.
Columns are rendered by Arrow's kernels, without Python code for each value; what has no kernel (base64, strings
with characters to escape) falls back to one C function a value.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from chassis.datatypes import DataType
from protos.gen.triglot.serving.v1.value_pb2 import Value

NULL = b"null"

_EPOCH_DAY = date(1970, 1, 1).toordinal()
_FIRST_DAY, _LAST_DAY = (day.toordinal() - _EPOCH_DAY for day in (date.min, date.max))
_DAY_US = 86_400_000_000
# What JSON has to escape: the quote, the backslash, control characters.
_TO_ESCAPE = '["\\\\\\x00-\\x1f]'
_NOT_CONTROL = bytes(range(0x20, 0x100))
_TO_ESCAPE_BYTES = np.array([byte < 0x20 or byte in b'"\\' for byte in range(256)])


def render(column: pa.Array, type_: DataType) -> pa.StringArray:
    """The fragments of a column whose Arrow type is `type_.arrow`; null for null. Raises ValueError, without a name."""
    if type_.kind == "array":
        return _array(column, type_)
    if type_.kind == "map":
        return _map(column, type_)
    if type_.kind == "struct":
        return _struct(column, type_)
    return _RENDERERS[type_.kind](column)


def plain(column: pa.Array, type_: DataType) -> pa.StringArray:
    """A scalar column as text: the fragments, without the quotes of those that are JSON strings."""
    if type_.kind in ("string", "varchar", "char"):
        return column
    if type_.kind == "date":
        return _date_text(column)
    if type_.kind == "binary":
        return _base64(column)
    return render(column, type_)


def _join(*parts: Any) -> pa.StringArray:
    """Texts put together, row by row; null if one of them is."""
    return pc.binary_join_element_wise(*parts, "")


def _quoted(column: pa.StringArray) -> pa.StringArray:
    return _join('"', column, '"')


def _float(column: pa.Array) -> pa.StringArray:
    """The fewest digits that read back as the same number. NaN and infinities are null: JSON cannot spell them."""
    if len(column) == 0:
        return pa.array([], pa.string())
    # Nulls become NaN on the way, and NaN is `null` to orjson.
    numbers = np.ascontiguousarray(column.to_numpy(zero_copy_only=False))
    text = orjson.dumps(numbers, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].decode()
    return pc.split_pattern(pa.array([text], pa.large_string()), ",").flatten().cast(pa.string())


def _decimal(column: pa.Array) -> pa.StringArray:
    """All digits of the scale, without an exponent, which Arrow writes for small numbers."""
    text = column.cast(pa.string())
    exponents = pc.match_substring(text, "E")
    if not pc.any(exponents).as_py():
        return text
    small = [format(Decimal(value), "f") for value in text.filter(exponents).to_pylist()]
    return pc.replace_with_mask(text, pc.fill_null(exponents, False), pa.array(small, pa.string()))


def _string(column: pa.Array) -> pa.StringArray:
    quoted = _quoted(column)
    if not _holds_any(column, _TO_ESCAPE_BYTES):
        return quoted
    to_escape = pc.match_substring_regex(column, _TO_ESCAPE)
    escaped = [orjson.dumps(value).decode() for value in column.filter(to_escape).to_pylist()]
    return pc.replace_with_mask(quoted, pc.fill_null(to_escape, False), pa.array(escaped, pa.string()))


def _holds_any(column: pa.StringArray, wanted: np.ndarray) -> bool:
    """Whether one of these bytes is anywhere in the texts: looked for in all of them at once."""
    _, offsets, data = column.buffers()
    if data is None:
        return False
    first, last = np.frombuffer(offsets, np.int32)[[column.offset, column.offset + len(column)]]
    return bool(wanted[np.frombuffer(data, np.uint8)[first:last]].any())


def _date_text(column: pa.Array) -> pa.StringArray:
    _require_range(column.cast(pa.int32()), _FIRST_DAY, _LAST_DAY)
    return column.cast(pa.string())


def _timestamp(column: pa.Array) -> pa.StringArray:
    """UTC with a blank, and as much of the fraction as there is: nothing, three digits or six."""
    naive = column.cast(pa.timestamp("us"))
    micros = naive.cast(pa.int64())
    _require_range(micros, _FIRST_DAY * _DAY_US, (_LAST_DAY + 1) * _DAY_US - 1)
    whole = _divides(micros, 1_000_000)
    if pc.all(whole).as_py() is not False:
        return _quoted(naive.cast(pa.timestamp("s")).cast(pa.string()))
    text = naive.cast(pa.string())
    for divisor, length in ((1_000, 23), (1_000_000, 19)):
        shorter = pc.fill_null(_divides(micros, divisor), False)
        text = pc.replace_with_mask(text, shorter, pc.utf8_slice_codeunits(text.filter(shorter), 0, length))
    return _quoted(text)


def _divides(numbers: pa.Array, divisor: int) -> pa.BooleanArray:
    return pc.equal(pc.multiply(pc.divide(numbers, divisor), divisor), numbers)


def _require_range(numbers: pa.Array, low: int, high: int) -> None:
    found = pc.min_max(numbers)
    if found["min"].is_valid and not low <= found["min"].as_py() <= found["max"].as_py() <= high:
        raise ValueError("a date or time is before the year 1 or after 9999")


def _base64(column: pa.Array) -> pa.StringArray:
    values = column.to_pylist()
    return pa.array([None if value is None else base64.b64encode(value) for value in values], pa.binary()).cast(
        pa.string()
    )


def _integer(column: pa.Array) -> pa.StringArray:
    return column.cast(pa.string())


_RENDERERS: dict[str, Callable[[pa.Array], pa.StringArray]] = {
    "tinyint": _integer,
    "smallint": _integer,
    "int": _integer,
    "bigint": _integer,
    "float": _float,
    "double": _float,
    "decimal": _decimal,
    "boolean": lambda column: pc.if_else(column, "1", "0"),
    "string": _string,
    "varchar": _string,
    "char": _string,
    "date": lambda column: _quoted(_date_text(column)),
    "timestamp": _timestamp,
    "binary": lambda column: _quoted(_base64(column)),
}


def _array(column: pa.ListArray, type_: DataType) -> pa.StringArray:
    return _join("[", _joined_lists(column, render(column.flatten(), type_.children[0])), "]")


def _map(column: pa.MapArray, type_: DataType) -> pa.StringArray:
    key_type, value_type = type_.children
    entries = column.cast(pa.list_(pa.struct([("key", key_type.arrow), ("value", value_type.arrow)])))
    flat = entries.flatten()
    keys = render(pc.struct_field(flat, [0]), key_type)
    if not _is_text(key_type):
        # JSON has only text for keys: 1 becomes "1", and what is an object already becomes its text.
        keys = _string(keys)
    values = pc.fill_null(render(pc.struct_field(flat, [1]), value_type), "null")
    return _join("{", _joined_lists(entries, _join(keys, ":", values)), "}")


def _struct(column: pa.StructArray, type_: DataType) -> pa.StringArray:
    parts = []
    for position, (name, child) in enumerate(zip(type_.names, type_.children, strict=True)):
        value = pc.fill_null(render(pc.struct_field(column, [position]), child), "null")
        parts.append(_join(orjson.dumps(name).decode() + ":", value))
    text = _join("{", pc.binary_join_element_wise(*parts, ","), "}")
    return pc.if_else(column.is_valid(), text, None)


def _joined_lists(lists: pa.ListArray, fragments: pa.StringArray) -> pa.StringArray:
    """The fragments of each list's elements joined by commas; null for a list that is null."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0)
    offsets = np.concatenate(([0], np.cumsum(lengths.to_numpy(zero_copy_only=False)))).astype(np.int32)
    # An offset that is null marks a list that is null.
    missing = np.append(lists.is_null().to_numpy(zero_copy_only=False), False)
    texts = pc.fill_null(fragments, "null")
    rebuilt = pa.ListArray.from_arrays(pa.array(offsets, pa.int32(), mask=missing), texts)
    return pc.binary_join(rebuilt, ",")


def _is_text(type_: DataType) -> bool:
    return type_.kind in ("string", "varchar", "char", "date", "timestamp", "binary")


# From typed values to fragments


def of_value(value: Value) -> bytes:
    """The fragment of a typed value, whatever the column. Raises ValueError where it has none."""
    kind = value.WhichOneof("kind")
    if kind is None or kind == "null_value":
        return NULL
    try:
        return _OF_VALUE[kind](getattr(value, kind))
    except (OverflowError, InvalidOperation, RecursionError) as error:
        raise ValueError(f"no {kind}: {error}") from None


def _number(value: float) -> bytes:
    return orjson.dumps(value)


def _checked_decimal(text: str) -> bytes:
    number = Decimal(text) if len(text) <= 100 and text.isascii() else Decimal("NaN")
    if not number.is_finite() or abs(number.adjusted()) > 100:
        raise ValueError("not a decimal number")
    return format(number, "f").encode()


def _checked_json(text: str) -> bytes:
    orjson.loads(text)
    return text.replace("\n", " ").replace("\r", " ").encode()


def _date_of(days: int) -> bytes:
    return f'"{date.fromordinal(days + _EPOCH_DAY).isoformat()}"'.encode()


def _timestamp_of(micros: int) -> bytes:
    seconds, fraction = divmod(micros, 1_000_000)
    days, second = divmod(seconds, 86_400)
    day = date.fromordinal(days + _EPOCH_DAY).isoformat()
    text = f"{day} {second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}"
    if fraction:
        text += f".{fraction // 1000:03}" if fraction % 1000 == 0 else f".{fraction:06}"
    return f'"{text}"'.encode()


_OF_VALUE: dict[str, Callable[[Any], bytes]] = {
    "int_value": lambda value: b"%d" % value,
    "float_value": lambda value: orjson.dumps(np.array([value], np.float32), option=orjson.OPT_SERIALIZE_NUMPY)[1:-1],
    "double_value": _number,
    "bool_value": lambda value: b"1" if value else b"0",
    "string_value": orjson.dumps,
    "bytes_value": lambda value: b'"' + base64.b64encode(value) + b'"',
    "decimal_value": _checked_decimal,
    "date_value": _date_of,
    "timestamp_value": _timestamp_of,
    "json_value": _checked_json,
}


# From fragments to typed values

# Gets the `add` of a repeated field of values, and a fragment.
Writer = Callable[[Callable[..., Value], bytes], object]


def writer(type_: DataType) -> Writer:
    """The function that adds a fragment of a type to a repeated field: added in place, values need not be copied.

    It also takes what callers may send for a value, "36" for 36. What is none of the type is added as its JSON text.
    """
    if type_.nested:
        return _write_json
    return _WRITERS[type_.kind]


def plain_strings(texts: Sequence[bytes]) -> bool:
    """Whether each of at least one text is a JSON string with nothing escaped. They are looked at together."""
    # Two quotes a text, and one at either end of each, of which none is both. No NUL but for those between texts.
    together = b"\0".join(texts)
    return (
        together[:1] == b'"' == together[-1:]
        and together.count(b'"') == 2 * len(texts)
        and together.count(b'"\0"') == len(texts) - 1
        and min(map(len, texts)) > 1
        and b"\\" not in together
        and together.translate(None, _NOT_CONTROL) == b"\0" * (len(texts) - 1)
    )


def text_of(fragment: bytes) -> str:
    """The text of a JSON string, or the digits of a number."""
    if fragment[:1] != b'"':
        return fragment.decode()
    return str(orjson.loads(fragment)) if b"\\" in fragment else fragment[1:-1].decode()


def _write_json(add: Callable[..., Value], fragment: bytes) -> object:
    return add(null_value=0) if fragment == NULL else add(json_value=fragment.decode())


def _write_with(field: str, read: Callable[[str], Any]) -> Writer:
    def write(add: Callable[..., Value], fragment: bytes) -> object:
        if fragment == NULL:
            return add(null_value=0)
        try:
            value = read(text_of(fragment))
        except ValueError:
            return add(json_value=fragment.decode())
        return add(**{field: value})

    return write


# The kinds that most features are of, in the form that rows hold them. Everything else (null, a number in quotes, text
# with escapes) is what the general writers below, `_write_odd_...`, are for.


def _write_integer(add: Callable[..., Value], fragment: bytes) -> object:
    try:
        return add(int_value=_int64(fragment))
    except ValueError:
        return _write_odd_integer(add, fragment)


def _write_double(add: Callable[..., Value], fragment: bytes) -> object:
    try:
        return add(double_value=float(fragment))
    except ValueError:
        return _write_odd_double(add, fragment)


def _write_string(add: Callable[..., Value], fragment: bytes) -> object:
    if fragment[:1] == b'"' == fragment[-1:] and b"\\" not in fragment:
        return add(string_value=fragment[1:-1].decode())
    return _write_odd_string(add, fragment)


def _int64(text: str | bytes) -> int:
    number = int(text)
    if not -(2**63) <= number < 2**63:
        raise ValueError("more than 64 bits")
    return number


def _bool(text: str) -> bool:
    if text not in ("0", "1", "true", "false"):
        raise ValueError("not a boolean")
    return text in ("1", "true")


def days_of(text: str) -> int:
    """Days since 1970 of `2022-01-24`. Raises ValueError."""
    return date.fromisoformat(text).toordinal() - _EPOCH_DAY


def micros_of(text: str) -> int:
    """Microseconds since 1970 of `2022-01-24 13:05:00.123`, UTC unless it names its zone. Raises ValueError."""
    moment = datetime.fromisoformat(text)
    offset = moment.utcoffset()
    days = moment.toordinal() - _EPOCH_DAY
    seconds = days * 86_400 + moment.hour * 3600 + moment.minute * 60 + moment.second
    if offset is not None:
        seconds -= offset.days * 86_400 + offset.seconds
    return seconds * 1_000_000 + moment.microsecond


def bytes_of(text: str) -> bytes:
    """The bytes of base64 text with padding. Raises ValueError."""
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None


_write_odd_integer = _write_with("int_value", _int64)
_write_odd_double = _write_with("double_value", float)
_write_odd_string = _write_with("string_value", str)

_WRITERS: dict[str, Writer] = {
    "tinyint": _write_integer,
    "smallint": _write_integer,
    "int": _write_integer,
    "bigint": _write_integer,
    "float": _write_with("float_value", float),
    "double": _write_double,
    "decimal": _write_with("decimal_value", str),
    "boolean": _write_with("bool_value", _bool),
    "string": _write_string,
    "varchar": _write_string,
    "char": _write_string,
    "date": _write_with("date_value", days_of),
    "timestamp": _write_with("timestamp_value", micros_of),
    "binary": _write_with("bytes_value", bytes_of),
}
