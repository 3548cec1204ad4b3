"""What is written comes back, type by type: typed over gRPC, as JSON through RenderFeatureVectors, and by ReadRows."""

from __future__ import annotations

import asyncio
import base64
import datetime
import math
import struct
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chassis import datatypes
from protos.gen.triglot.serving.v1 import serving_service_pb2 as pb
from protos.gen.triglot.serving.v1.value_pb2 import Value
from tests.serving.conftest import Client

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
UTC_MOMENTS = st.datetimes(timezones=st.just(datetime.UTC))


def float32(number: float) -> float:
    return float(struct.unpack("f", struct.pack("f", number))[0])


# Hive type -> values to draw.
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "tinyint": st.integers(-(2**7), 2**7 - 1),
    "smallint": st.integers(-(2**15), 2**15 - 1),
    "int": st.integers(-(2**31), 2**31 - 1),
    "bigint": st.integers(-(2**63), 2**63 - 1),
    "float": st.floats(width=32),
    "double": st.floats(),
    "decimal(38,18)": st.decimals(min_value=-(10**19), max_value=10**19, places=18),
    "decimal(5,0)": st.decimals(min_value=-99999, max_value=99999, places=0),
    "boolean": st.booleans(),
    "string": st.text(),
    "varchar(10)": st.text(max_size=10),
    "date": st.dates(),
    "timestamp": st.one_of(UTC_MOMENTS, UTC_MOMENTS.map(lambda moment: moment.replace(microsecond=0))),
    "binary": st.binary(),
    "array<bigint>": st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), max_size=4),
    "array<array<float>>": st.lists(st.none() | st.lists(st.floats(width=32), max_size=3), max_size=3),
    "map<string,double>": st.dictionaries(st.text(max_size=4), st.none() | st.floats(), max_size=3),
    "map<int,string>": st.dictionaries(st.integers(-(2**31), 2**31 - 1), st.text(max_size=3), max_size=3),
    "struct<a:bigint,b:struct<c:string,d:date>>": st.fixed_dictionaries(
        {
            "a": st.none() | st.integers(-(2**63), 2**63 - 1),
            "b": st.none() | st.fixed_dictionaries({"c": st.none() | st.text(max_size=4), "d": st.none() | st.dates()}),
        }
    ),
    "array<struct<x:boolean,y:decimal(10,2)>>": st.lists(
        st.none() | st.fixed_dictionaries({"x": st.booleans(), "y": st.decimals(-1000, 1000, places=2)}), max_size=3
    ),
}  # fmt: skip
COLUMNS = {"id": "bigint", **{f"c{position}": hive for position, hive in enumerate(VALUES)}}
ROWS = st.lists(
    st.fixed_dictionaries({f"c{position}": st.none() | values for position, values in enumerate(VALUES.values())}),
    min_size=1,
    max_size=6,
)


def as_json(value: Any, hive: str) -> Any:
    """What a value looks like in a vector, worked out the slow way."""
    type_ = datatypes.parse(hive)
    kind = type_.kind
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if kind == "array":
        return [as_json(each, type_.children[0].hive) for each in value]
    if kind == "map":
        return {str(key): as_json(each, type_.children[1].hive) for key, each in value.items()}
    if kind == "struct":
        return {name: as_json(value[name], child.hive) for name, child in zip(type_.names, type_.children, strict=True)}
    if kind == "date":
        return f"{value.year:04}-{value.month:02}-{value.day:02}"
    if kind == "timestamp":
        text = f"{value.year:04}-{value.month:02}-{value.day:02} {value.hour:02}:{value.minute:02}:{value.second:02}"
        micros = value.microsecond
        return text + (f".{micros // 1000:03}" if micros and micros % 1000 == 0 else f".{micros:06}" if micros else "")
    if kind == "binary":
        return base64.b64encode(value).decode()
    if kind == "decimal":
        return float(value)
    if kind == "float":
        return float(str(np.float32(value)))  # the fewest digits that tell it from other 32-bit numbers
    return int(value) if kind == "boolean" else value


def typed(value: Any, hive: str) -> Value:
    """The typed value, worked out the slow way. Nested ones are compared as JSON."""
    kind = datatypes.parse(hive).kind
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return Value(null_value=0)
    if kind in ("tinyint", "smallint", "int", "bigint"):
        return Value(int_value=value)
    if kind == "decimal":
        scale = datatypes.parse(hive).arguments[1]
        return Value(decimal_value=format(value if value else abs(value), f".{scale}f"))
    if kind == "date":
        return Value(date_value=(value - EPOCH.date()).days)
    if kind == "timestamp":
        return Value(timestamp_value=(value - EPOCH) // datetime.timedelta(microseconds=1))
    names = {
        "float": "float_value", "double": "double_value", "boolean": "bool_value", "string": "string_value",
        "varchar": "string_value", "binary": "bytes_value",
    }  # fmt: skip
    return Value(**{names[kind]: value})


async def check_round_trip(serving: Client, group: Any, rows: list[dict[str, Any]]) -> None:
    numbered = [{"id": number, **row} for number, row in enumerate(rows)]
    await serving.write(group, numbered)
    entries = orjson.dumps([{"id": number} for number in range(len(rows))])
    rendered = await serving.call(
        "RenderFeatureVectors",
        pb.RenderFeatureVectorsRequest(
            feature_store="demo", feature_view="everything", version=1, entries=entries, batch=True
        ),
    )
    got = await serving.vectors("everything", [{"id": Value(int_value=number)} for number in range(len(rows))])
    keys = [pb.RowKey(values=[Value(int_value=number)]) for number in range(len(rows))]
    read = await serving.call(
        "ReadRows", pb.ReadRowsRequest(feature_store="demo", feature_group="everything", version=1, keys=keys)
    )
    for number, row in enumerate(numbered):
        json_values = orjson.loads(rendered.vectors[number])
        for position, (column, hive) in enumerate(COLUMNS.items()):
            value = row[column]
            where = f"row {number}, {hive}: {value!r}"
            expected = as_json(value, hive)
            assert json_values[position] == expected, where
            assert type(json_values[position]) is type(expected) or datatypes.parse(hive).kind == "decimal", where
            if datatypes.parse(hive).nested and value is not None:
                assert orjson.loads(got.vectors[number].values[position].json_value) == expected, where
            elif not datatypes.parse(hive).nested:
                assert got.vectors[number].values[position] == typed(value, hive), where
            assert read.rows[number].values[position] == got.vectors[number].values[position], where


@pytest.fixture
async def everything(serving: Client) -> Any:
    group = await serving.group("everything", COLUMNS, ["id"])
    await serving.view("everything", [{"group": "everything"}], [(0, column) for column in COLUMNS])
    return group


async def test_any_rows(serving: Client, everything: Any) -> None:
    loop = asyncio.get_running_loop()

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(rows=ROWS)
    def run(rows: list[dict[str, Any]]) -> None:
        asyncio.run_coroutine_threadsafe(check_round_trip(serving, everything, rows), loop).result(30)

    await asyncio.to_thread(run)


async def test_awkward_rows(serving: Client, everything: Any) -> None:
    texts = ['"', "\\", "\n", "\x00", "\u2028", "\x7f", "é", "😀", "a|b", "", "null", "a\r\nb", "tab\t"]
    numbers = [0.0, -0.0, 1e-300, 5e-324, 1e16, 1e15, 0.1, 1 / 3, 1.7976931348623157e308, 123456789.0, 2.0**53]
    singles = [float32(number) for number in (0.1, 16777216.0, 3.4e38, 1e-45, -2.5, 1 / 3)]
    names = {hive: f"c{position}" for position, hive in enumerate(VALUES)}
    blank = dict.fromkeys(names.values())
    rows = [{**blank, names["string"]: text, names["map<string,double>"]: {text: 1.0}} for text in texts]
    rows += [{**blank, names["double"]: number} for number in numbers]
    rows += [{**blank, names["float"]: number, names["array<array<float>>"]: [[number], []]} for number in singles]
    rows += [
        {**blank, names["decimal(38,18)"]: Decimal(text)}
        for text in ("0", "0.000000000000000001", "-12345678901234567890.5", "1E-18")
    ]
    await check_round_trip(serving, everything, rows)


async def test_numbers_keep_their_digits(serving: Client, everything: Any) -> None:
    names = {hive: f"c{position}" for position, hive in enumerate(VALUES)}
    row = dict.fromkeys(COLUMNS) | {
        "id": 1, names["bigint"]: 2**63 - 1, names["double"]: 10.0, names["float"]: float32(0.1),
        names["decimal(38,18)"]: Decimal("12345678901234567890.123456789012345678"),
        names["decimal(5,0)"]: Decimal("7"),
        names["array<bigint>"]: [2**63 - 1],
        names["array<struct<x:boolean,y:decimal(10,2)>>"]: [{"x": True, "y": Decimal("1.50")}],
    }  # fmt: skip
    await serving.write(everything, [row])
    rendered = await serving.call(
        "RenderFeatureVectors",
        pb.RenderFeatureVectorsRequest(
            feature_store="demo", feature_view="everything", version=1, entries=b'{"id": 1}'
        ),
    )
    text = rendered.vectors[0]
    for digits in (b"9223372036854775807,", b",10.0,", b",0.1,", b",12345678901234567890.123456789012345678,", b",7,"):
        assert digits in text
    assert b"[9223372036854775807]" in text
    assert b'[{"x":1,"y":1.50}]' in text


@pytest.mark.parametrize(
    ("hive", "given_type", "values", "expected"),
    [
        ("bigint", pa.int32(), [1, None], [1, None]),
        ("bigint", pa.uint64(), [2**63 - 1], [2**63 - 1]),
        ("int", pa.float64(), [3.0, None], [3, None]),
        ("double", pa.int32(), [3], [3.0]),
        ("float", pa.float64(), [0.1], [0.1]),
        ("string", pa.large_string(), ["a"], ["a"]),
        ("string", pa.dictionary(pa.int8(), pa.string()), ["a", "b", "a", None], ["a", "b", "a", None]),
        ("string", pa.binary(), [b"text"], ["text"]),
        ("string", pa.date32(), [datetime.date(2022, 1, 24)], ["2022-01-24"]),
        ("string", pa.decimal128(5, 2), [Decimal("1.50")], ["1.50"]),
        ("string", pa.list_(pa.int8()), [[1, 2]], ["[1,2]"]),
        ("string", pa.null(), [None], [None]),
        ("date", pa.timestamp("ns"), [datetime.datetime(2022, 1, 24)], ["2022-01-24"]),
        ("timestamp", pa.timestamp("ns"), [datetime.datetime(2022, 1, 24, 1, 2, 3)], ["2022-01-24 01:02:03"]),
        ("timestamp", pa.timestamp("ms", "Europe/Berlin"), [EPOCH], ["1970-01-01 00:00:00"]),
        ("array<double>", pa.list_(pa.float32(), 2), [[0.5, 1.5]], [[0.5, 1.5]]),
        ("decimal(10,2)", pa.int64(), [5], [5.0]),
        ("binary", pa.large_binary(), [b"\x00\xff"], ["AP8="]),
    ],
)  # fmt: skip
async def test_columns_of_other_types_are_taken_without_loss(
    serving: Client, hive: str, given_type: pa.DataType, values: list[Any], expected: list[Any]
) -> None:
    group = await serving.group("other", {"id": "int", "x": hive}, ["id"])
    await serving.view("other", [{"group": "other"}], [(0, "x")])
    ids = pa.array(range(len(values)), pa.int32())
    await serving.write(group, pa.table({"x": pa.array(values, given_type), "id": ids}))
    entries = orjson.dumps([{"id": number} for number in range(len(values))])
    request = pb.RenderFeatureVectorsRequest(
        feature_store="demo", feature_view="other", version=1, entries=entries, batch=True
    )
    reply = await serving.call("RenderFeatureVectors", request)
    assert [orjson.loads(vector) for vector in reply.vectors] == [[value] for value in expected]
    assert list(map(type, orjson.loads(reply.vectors[0]))) == [type(expected[0])]


@pytest.mark.parametrize(
    ("hive", "array"),
    [
        ("int", pa.array([2**31])),
        ("int", pa.array([1.5])),
        ("int", pa.array(["1"])),
        ("double", pa.array([2**53 + 1])),
        ("boolean", pa.array([1])),
        ("string", pa.array([1])),
        ("string", pa.array([b"\xff"])),
        ("varchar(2)", pa.array(["abc"])),
        ("date", pa.array([datetime.datetime(2022, 1, 24, 1)])),
        ("timestamp", pa.array([1])),
        ("timestamp", pa.array([1], pa.timestamp("ns"))),
        ("timestamp", pa.array([2**62], pa.timestamp("us"))),
        ("decimal(3,1)", pa.array([Decimal("1.25")])),
        ("array<int>", pa.array([["a"]])),
        ("struct<a:int>", pa.array([{"b": 1}])),
    ],
)
async def test_what_does_not_fit_is_refused_by_name(
    serving: Client, everything: Any, refused: Callable[..., Any], hive: str, array: pa.Array
) -> None:
    group = await serving.group("narrow", {"id": "int", "x": hive}, ["id"])
    error = await refused(
        "INVALID_FIELD", serving.write(group, pa.table({"id": pa.array([1], pa.int32()), "x": array}))
    )
    assert "x" in error.message
    assert error.metadata["name"] == "x"
