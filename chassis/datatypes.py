"""The types of columns, and their names in every system that Triglot speaks to. docs/types.md shows the same table.

A type is written as Hive writes it: `bigint`, `decimal(10,2)`, `array<struct<a:int,b:string>>`. That spelling is the
one on the wire (Hopsworks' `featureType`) and in the catalogue; all others are derived from it here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

import pyarrow as pa

from chassis import errors

MAX_DECIMAL_PRECISION = 38
_MAX_DEPTH = 16
_MAX_LENGTH = 65_535


@dataclass(frozen=True)
class Row:
    """One row of the table. `hive` may carry arguments in use: decimal(10,2), varchar(20)."""

    hive: str
    pai: str
    arrow: pa.DataType
    postgres: str
    feast: str
    # How a value looks in the JSON of a vector.
    json: str


# The scalar types. Types that two systems lack are carried by the nearest one that loses nothing.
SCALARS: Mapping[str, Row] = MappingProxyType(
    {
        row.hive: row
        for row in (
            Row("tinyint", "INT32", pa.int8(), "smallint", "INT32", "number"),
            Row("smallint", "INT32", pa.int16(), "smallint", "INT32", "number"),
            Row("int", "INT32", pa.int32(), "integer", "INT32", "number"),
            Row("bigint", "INT64", pa.int64(), "bigint", "INT64", "number, all 64 bits exact"),
            Row("float", "FLOAT", pa.float32(), "real", "FLOAT", "number, the shortest that reads back the same"),
            Row("double", "DOUBLE", pa.float64(), "double precision", "DOUBLE", "number"),
            Row("decimal", "STRING", pa.decimal128(10, 0), "numeric", "DECIMAL", "number with all its digits"),
            Row("boolean", "BOOLEAN", pa.bool_(), "boolean", "BOOL", "1 or 0"),
            Row("string", "STRING", pa.string(), "text", "STRING", "string"),
            Row("varchar", "STRING", pa.string(), "character varying", "STRING", "string"),
            Row("char", "STRING", pa.string(), "character", "STRING", "string"),
            Row("date", "STRING", pa.date32(), "date", "UNIX_TIMESTAMP", '"2022-01-24"'),
            Row(
                "timestamp",
                "TIMESTAMP",
                pa.timestamp("us", tz="UTC"),
                "timestamp with time zone",
                "UNIX_TIMESTAMP",
                '"2022-01-24 13:05:00", in UTC, with ".123" or ".123456" if it has a fraction',
            ),
            Row("binary", "STRING", pa.binary(), "bytea", "BYTES", "base64 with padding"),
        )
    }
)

# Other names of the same types, as databases, Arrow and the dialects' own documents write them.
_HIVE_SYNONYMS = {
    "integer": "int", "long": "bigint", "real": "float", "bool": "boolean", "text": "string", "bytes": "binary",
    "varbinary": "binary", "numeric": "decimal", "datetime": "timestamp", "timestamp_ntz": "timestamp",
}  # fmt: skip
_PAI = {
    "INT32": "int", "INT64": "bigint", "FLOAT": "float", "DOUBLE": "double", "STRING": "string",
    "BOOLEAN": "boolean", "TIMESTAMP": "timestamp",
}  # fmt: skip
_POSTGRES = {
    "smallint": "smallint", "int2": "smallint", "integer": "int", "int4": "int", "int": "int", "bigint": "bigint",
    "int8": "bigint", "real": "float", "float4": "float", "double precision": "double", "float8": "double",
    "boolean": "boolean", "bool": "boolean", "text": "string", "character varying": "string", "varchar": "string",
    "character": "string", "bpchar": "string", "char": "string", "name": "string", "uuid": "string",
    "json": "string", "jsonb": "string", "date": "date", "timestamp": "timestamp", "timestamptz": "timestamp",
    "timestamp with time zone": "timestamp", "timestamp without time zone": "timestamp", "bytea": "binary",
}  # fmt: skip
_FEAST = {
    "BYTES": "binary", "STRING": "string", "INT32": "int", "INT64": "bigint", "DOUBLE": "double", "FLOAT": "float",
    "BOOL": "boolean", "UNIX_TIMESTAMP": "timestamp", "ZONED_TIMESTAMP": "timestamp", "UUID": "string",
    "TIME_UUID": "string", "JSON": "string", "DECIMAL": "decimal(38,18)", "MAP": "map<string,string>",
}  # fmt: skip


@dataclass(frozen=True)
class DataType:
    """A parsed type. `kind` is a key of SCALARS, or `array`, `map`, `struct`."""

    kind: str
    # precision and scale of a decimal; length of a varchar or char.
    arguments: tuple[int, ...] = ()
    # Element of an array; key and value of a map; fields of a struct.
    children: tuple[DataType, ...] = ()
    # Names of a struct's fields.
    names: tuple[str, ...] = ()

    @property
    def hive(self) -> str:
        """The type in Hive's spelling, in lower case (but for names of fields) and without blanks."""
        if self.kind == "struct":
            fields = (f"{name}:{child.hive}" for name, child in zip(self.names, self.children, strict=True))
            return f"struct<{','.join(fields)}>"
        if self.children:
            return f"{self.kind}<{','.join(child.hive for child in self.children)}>"
        return f"{self.kind}({','.join(map(str, self.arguments))})" if self.arguments else self.kind

    @property
    def nested(self) -> bool:
        """Whether it is an array, a map or a struct: plain JSON in a vector."""
        return bool(self.children)

    @property
    def arrow(self) -> pa.DataType:
        """The Arrow type that rows of this type are written with."""
        children = [child.arrow for child in self.children]
        if self.kind == "array":
            return pa.list_(children[0])
        if self.kind == "map":
            return pa.map_(*children)
        if self.kind == "struct":
            return pa.struct(list(zip(self.names, children, strict=True)))
        if self.kind == "decimal":
            return pa.decimal128(*self.arguments)
        return SCALARS[self.kind].arrow

    @property
    def pai(self) -> str:
        """PAI's name of the type. What PAI lacks is STRING."""
        children = ",".join(child.pai for child in self.children)
        if self.kind in ("array", "map"):
            return f"{self.kind.upper()}<{children}>"
        return "STRING" if self.kind == "struct" else SCALARS[self.kind].pai

    @property
    def postgres(self) -> str:
        """The PostgreSQL type of a column of this type."""
        if self.kind == "array":
            element = self.children[0]
            return "jsonb" if element.nested else f"{element.postgres}[]"
        if self.nested:
            return "jsonb"
        name = SCALARS[self.kind].postgres
        return f"{name}({','.join(map(str, self.arguments))})" if self.arguments else name

    @property
    def feast(self) -> str:
        """The name in Feast's enum of value types."""
        if self.kind == "array":
            element = self.children[0]
            return "VALUE_LIST" if element.kind == "array" else f"{element.feast}_LIST"
        if self.kind == "map":
            return "MAP" if self.children[0].feast == "STRING" else "SCALAR_MAP"
        return "STRUCT" if self.kind == "struct" else SCALARS[self.kind].feast


@cache
def parse(hive: str) -> DataType:
    """The type that a Hive spelling names; case and blanks do not matter. Raises InvalidArgument, field `type`."""
    parser = _Parser(hive)
    found = parser.type(0)
    parser.end()
    return found


def arrow_type(hive: str) -> pa.DataType:
    """The Arrow type of a Hive type. Raises InvalidArgument."""
    return parse(hive).arrow


def pai_of_hive(hive: str) -> str:
    """PAI's name of a Hive type. Raises InvalidArgument."""
    return parse(hive).pai


def hive_of_pai(name: str) -> str:
    """The Hive type of a PAI field type (`INT64`, `ARRAY<FLOAT>`). Unknown is a string, as in PAI's SDKs."""
    text = re.sub(r"\s", "", name).upper()
    if text in _PAI:
        return _PAI[text]
    if text.startswith("ARRAY<") and text.endswith(">"):
        return f"array<{hive_of_pai(text[6:-1])}>"
    if text.startswith("MAP<") and text.endswith(">"):
        key, comma, value = text[4:-1].partition(",")
        if comma and key in _PAI:
            return f"map<{_PAI[key]},{hive_of_pai(value)}>"
    return "string"


def hive_of_arrow(arrow: pa.DataType) -> str:
    """The Hive type that holds every value of an Arrow type. Raises InvalidArgument where there is none."""
    types = pa.types
    if types.is_dictionary(arrow):
        return hive_of_arrow(arrow.value_type)
    if types.is_list(arrow) or types.is_large_list(arrow) or types.is_fixed_size_list(arrow):
        return f"array<{hive_of_arrow(arrow.value_type)}>"
    if types.is_map(arrow):
        return f"map<{hive_of_arrow(arrow.key_type)},{hive_of_arrow(arrow.item_type)}>"
    if types.is_struct(arrow):
        return f"struct<{','.join(f'{field.name}:{hive_of_arrow(field.type)}' for field in arrow)}>"
    if types.is_decimal(arrow) and arrow.precision <= MAX_DECIMAL_PRECISION:
        return f"decimal({arrow.precision},{max(arrow.scale, 0)})"
    for accepts, hive in _OF_ARROW:
        if accepts(arrow):
            return hive
    raise _unknown(str(arrow), "Arrow")


_OF_ARROW = (
    (pa.types.is_int8, "tinyint"),
    (lambda arrow: pa.types.is_int16(arrow) or pa.types.is_uint8(arrow), "smallint"),
    (lambda arrow: pa.types.is_int32(arrow) or pa.types.is_uint16(arrow), "int"),
    (lambda arrow: pa.types.is_int64(arrow) or pa.types.is_uint32(arrow), "bigint"),
    (pa.types.is_uint64, "decimal(20,0)"),
    (lambda arrow: pa.types.is_float32(arrow) or pa.types.is_float16(arrow), "float"),
    (pa.types.is_float64, "double"),
    (pa.types.is_boolean, "boolean"),
    (
        lambda arrow: pa.types.is_string(arrow) or pa.types.is_large_string(arrow) or pa.types.is_string_view(arrow),
        "string",
    ),
    (
        lambda arrow: (
            pa.types.is_binary(arrow)
            or pa.types.is_large_binary(arrow)
            or pa.types.is_fixed_size_binary(arrow)
            or pa.types.is_binary_view(arrow)
        ),
        "binary",
    ),
    (pa.types.is_date, "date"),
    (pa.types.is_timestamp, "timestamp"),
    # A column that is null throughout.
    (pa.types.is_null, "string"),
)


def hive_of_postgres(name: str) -> str:
    """The Hive type of a PostgreSQL column type as format_type() writes it. Raises InvalidArgument."""
    text = " ".join(name.lower().split())
    if text.endswith("[]"):
        return f"array<{hive_of_postgres(text[:-2])}>"
    plain = re.sub(r"\s*\([^)]*\)", "", text)
    if plain in ("numeric", "decimal"):
        match = re.search(r"\((\d+)(?:,(\d+))?\)", text)
        return f"decimal({match[1]},{match[2] or 0})" if match else f"decimal({MAX_DECIMAL_PRECISION},18)"
    if plain not in _POSTGRES:
        raise _unknown(name, "PostgreSQL")
    return _POSTGRES[plain]


def hive_of_feast(name: str) -> str:
    """The Hive type of a name in Feast's enum of value types. Raises InvalidArgument."""
    for suffix in ("_LIST", "_SET"):
        if name.endswith(suffix) and name.removesuffix(suffix) in _FEAST:
            return f"array<{_FEAST[name.removesuffix(suffix)]}>"
    if name not in _FEAST:
        raise _unknown(name, "Feast")
    return _FEAST[name]


def _unknown(name: str, system: str) -> errors.InvalidArgument:
    return errors.InvalidArgument(f"{system} type {name!r} cannot be served", field="type", type=name)


class _Parser:
    """Reads one type from left to right."""

    _WORD = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*)\s*")
    _FIELD = re.compile(r"\s*([^\s:<>,()]+)\s*:")
    _ARGUMENTS = re.compile(r"\(\s*(\d{1,5})\s*(?:,\s*(\d{1,5})\s*)?\)\s*")

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def type(self, depth: int) -> DataType:
        word = self._match(self._WORD)
        if word is None or depth > _MAX_DEPTH:
            raise self._refused()
        kind = word[1].lower()
        if kind in ("array", "map"):
            return DataType(kind, children=self._children(1 if kind == "array" else 2, depth))
        if kind == "struct":
            return self._struct(depth)
        kind = _HIVE_SYNONYMS.get(kind, kind)
        if kind not in SCALARS:
            raise self._refused()
        return DataType(kind, self._arguments(kind))

    def end(self) -> None:
        if self._text[self._at :].strip():
            raise self._refused()

    def _match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        found = pattern.match(self._text, self._at)
        if found:
            self._at = found.end()
        return found

    def _expect(self, character: str) -> None:
        if not self._text.startswith(character, self._at):
            raise self._refused()
        self._at += 1

    def _children(self, count: int, depth: int) -> tuple[DataType, ...]:
        found = []
        for position in range(count):
            self._expect("," if position else "<")
            found.append(self.type(depth + 1))
        self._close()
        return tuple(found)

    def _struct(self, depth: int) -> DataType:
        names: list[str] = []
        children: list[DataType] = []
        self._expect("<")
        while True:
            field = self._match(self._FIELD)
            if field is None or field[1] in names:
                raise self._refused()
            names.append(field[1])
            children.append(self.type(depth + 1))
            if not self._text.startswith(",", self._at):
                break
            self._at += 1
        self._close()
        return DataType("struct", children=tuple(children), names=tuple(names))

    def _close(self) -> None:
        self._expect(">")
        while self._text[self._at : self._at + 1].isspace():
            self._at += 1

    def _arguments(self, kind: str) -> tuple[int, ...]:
        found = self._match(self._ARGUMENTS)
        given = tuple(int(number) for number in found.groups() if number is not None) if found else ()
        if kind == "decimal":
            precision, scale = (*given, *(10, 0)[len(given) :])
            if not 1 <= precision <= MAX_DECIMAL_PRECISION or scale > precision:
                raise self._refused()
            return precision, scale
        if kind == "timestamp" and len(given) == 1 and given[0] <= 6:
            return ()  # timestamp(3): a fraction is shown as far as it goes
        if kind in ("varchar", "char") and len(given) <= 1 and all(1 <= length <= _MAX_LENGTH for length in given):
            return given
        if given:
            raise self._refused()
        return ()

    def _refused(self) -> errors.InvalidArgument:
        return errors.InvalidArgument(f"{self._text!r} is not a type; see docs/types.md", field="type", type=self._text)
