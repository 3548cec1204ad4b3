"""A row is found however its key is written; what is no key of the column is refused; two keys never meet."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import httpx2
import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chassis import datatypes
from protos.gen.triglot.serving.v1 import serving_service_pb2 as pb
from protos.gen.triglot.serving.v1.value_pb2 import Value
from services.serving import keys
from tests.serving.conftest import Client

NOON = datetime.datetime(2022, 1, 24, 12, 0, 0, 123000, tzinfo=datetime.UTC)
DAY = datetime.date(2022, 1, 24)
DAY_MS, NOON_MS = 1_642_982_400_000, 1_643_025_600_123

# Hive type, the value as it is written, JSON texts that find it, JSON texts that are refused.
SPELLINGS: list[tuple[str, Any, list[str], list[str]]] = [
    ("bigint", 36, ["36", '"36"', '"036"', '"\\u0033\\u0036"'],
     ["36.0", "3.6e1", '"36.0"', "true", '" 36"', '"+36"', "[36]"]),
    ("bigint", -(2**63), ["-9223372036854775808", '"-9223372036854775808"'], ["-9223372036854775809"]),
    ("bigint", 0, ["0", "-0", '"0"', '"-0"', '"00"'], ['"-"', '""']),
    ("tinyint", 100, ["100", '"100"'], ["128", "-129", "1000"]),
    ("string", "36", ["36", '"36"', '"\\u00336"'], ["true", "{}", "[]", '["36"]', '{"a":1}']),
    ("string", "a|b\\c\n\"é😀", ['"a|b\\\\c\\n\\"é😀"', '"a|b\\\\c\\n\\"\\u00e9\\ud83d\\ude00"'], []),
    ("string", "", ['""'], []),
    ("string", ",", ['","'], ['["x","y"]']),
    ("varchar(5)", "abc", ['"abc"'], []),
    ("boolean", True, ["1", "true", '"1"', '"true"'], ["2", '"yes"']),
    ("date", DAY, ['"2022-01-24"', '"2022-01-24 00:00:00"', '"2022-01-24T00:00:00Z"', str(DAY_MS), str(DAY_MS + 5)],
     ['"2022-01-32"', '"2022-01-24 01:00:00"', '"yesterday"', "1.5", "9" * 30, "true"]),
    ("timestamp", NOON,
     ['"2022-01-24 12:00:00.123"', '"2022-01-24T12:00:00.123Z"', '"2022-01-24 13:00:00.123+01:00"', str(NOON_MS)],
     ['"noon"', "1.5", "true"]),
    ("decimal(10,2)", Decimal("1.50"), ["1.5", "1.50", '"1.5"', "15e-1"],
     ["1.505", '"NaN"', "1e999999999", "true", '"1,5"']),
    ("decimal(10,2)", Decimal("0.00"), ["0", "-0", "0.00", "0e10"], []),
    ("binary", b"\x00\xff", ['"AP8="', '"AP8\\u003d"'], ['"AP8"', "5", '"?"']),
]  # fmt: skip


@pytest.mark.parametrize(("hive", "value", "found", "refused"), SPELLINGS)
async def test_spellings(
    *, serving: Client, http: httpx2.AsyncClient, hive: str, value: Any, found: list[str], refused: list[str]
) -> None:
    group = await serving.group("g", {"k": hive, "x": "int"}, ["k"])
    await serving.write(group, [{"k": value, "x": 1}])
    await serving.view("v", [{"group": "g"}], [(0, "x")])
    start = '{"featureStoreName":"demo","featureViewName":"v","featureViewVersion":1,"entries":'
    for text in found:
        response = await http.post("/feature_store", content=(start + '{"k":' + text + "}}").encode())
        assert (response.status_code, response.json().get("features")) == (200, [1]), text
    for text in refused:
        response = await http.post("/feature_store", content=(start + '{"k":' + text + "}}").encode())
        assert (response.status_code, response.json()["code"]) == (415, 10), text


COLUMN_VALUES = {
    "bigint": st.integers(-(2**63), 2**63 - 1),
    "string": st.text(),
    "date": st.dates(),
    "timestamp": st.datetimes(timezones=st.just(datetime.UTC)),
    "decimal(20,3)": st.decimals(-(10**16), 10**16, places=3),
    "boolean": st.booleans(),
    "binary": st.binary(),
}
TYPES = [datatypes.parse(hive) for hive in COLUMN_VALUES]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(st.tuples(*COLUMN_VALUES.values()), min_size=1, max_size=5))
def test_columns_and_requests_agree(rows: list[tuple[Any, ...]]) -> None:
    """The key that a written row gets is the one that a request for it looks up, alone and as part of another."""
    columns = [pa.array(values, type_.arrow) for values, type_ in zip(zip(*rows, strict=True), TYPES, strict=True)]
    together = keys.of_columns(columns, TYPES).to_pylist()
    for number, row in enumerate(rows):
        parts = [keys.canonical(type_)(request_of(value)) for value, type_ in zip(row, TYPES, strict=True)]
        assert keys.join(parts, TYPES).decode() == together[number]
        for part, column, type_ in zip(parts, columns, TYPES, strict=True):
            assert keys.of_columns([column], [type_]).to_pylist()[number] == part.decode()


def request_of(value: Any) -> bytes:
    if isinstance(value, datetime.datetime):
        return orjson.dumps(value.replace(tzinfo=None).isoformat(" "))
    if isinstance(value, bytes):
        import base64

        return orjson.dumps(base64.b64encode(value).decode())
    return str(value).encode() if isinstance(value, Decimal) else orjson.dumps(value)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.tuples(st.text("|\\ab"), st.text("|\\ab")), st.tuples(st.text("|\\ab"), st.text("|\\ab")))
def test_two_keys_never_meet(one: tuple[str, str], other: tuple[str, str]) -> None:
    string = datatypes.parse("string")
    joined = [keys.join([part.encode() for part in key], [string, string]) for key in (one, other)]
    assert (joined[0] == joined[1]) == (one == other)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_many_are_what_each_is(data: st.DataObject) -> None:
    hive = data.draw(st.sampled_from([hive for hive, *_ in SPELLINGS]))
    texts = [text for _, _, found, refused in SPELLINGS for text in (*found, *refused, "null")]
    raws = [text.encode() for text in data.draw(st.lists(st.sampled_from(texts), min_size=1, max_size=6))]
    type_ = datatypes.parse(hive)
    try:
        expected = [keys.canonical(type_)(raw) for raw in raws]
    except keys.WrongType:
        with pytest.raises(keys.WrongType):
            keys.canonical_many(type_)(raws)
    else:
        assert keys.canonical_many(type_)(raws) == expected


def test_commas_that_make_up_for_missing_quotes() -> None:
    many = keys.canonical_many(datatypes.parse("string"))
    assert many([b'","', b"5", b'","']) == [b",", b"5", b","]
    for odd in (b'["x","y"]', b"null", b"true"):
        with pytest.raises(keys.WrongType):
            many([b'","', odd, b"5", b'","'])


async def test_composite_keys(serving: Client, http: httpx2.AsyncClient) -> None:
    group = await serving.group("g", {"x": "int", "user": "string", "day": "date"}, ["user", "day"])
    rows = [{"x": number, "user": user, "day": DAY} for number, user in enumerate(["a", "a|b", "a\\", "|"])]
    await serving.write(group, rows)
    await serving.view("v", [{"group": "g"}], [(0, "day"), (0, "x"), (0, "user")])
    body = {
        "featureStoreName": "demo", "featureViewName": "v", "featureViewVersion": 1,
        "entries": [{"user": row["user"], "day": "2022-01-24"} for row in rows],
    }  # fmt: skip
    answer = (await http.post("/batch_feature_store", json=body)).json()
    assert answer["features"] == [["2022-01-24", row["x"], row["user"]] for row in rows]


async def test_read_rows_by_typed_keys(serving: Client, refused: Callable[..., Any]) -> None:
    group = await serving.group("g", {"k": "date", "x": "int"}, ["k"])
    await serving.write(group, [{"k": DAY, "x": 1}])

    def request(*values: Value) -> pb.ReadRowsRequest:
        return pb.ReadRowsRequest(feature_store="demo", feature_group="g", version=1, keys=[pb.RowKey(values=values)])

    days = DAY.toordinal() - datetime.date(1970, 1, 1).toordinal()
    for value in (Value(date_value=days), Value(string_value="2022-01-24"), Value(int_value=DAY_MS)):
        reply = await serving.call("ReadRows", request(value))
        assert reply.rows[0].values[0].date_value == days
        assert [feature.name for feature in reply.features] == ["k", "x"]
    await refused("WRONG_KEY_TYPE", serving.call("ReadRows", request(Value(string_value="x"))))
    await refused("WRONG_KEY_TYPE", serving.call("ReadRows", request(Value())))
    await refused("WRONG_KEY_TYPE", serving.call("ReadRows", request(Value(date_value=2**31 - 1))))
    await refused("WRONG_KEY_TYPE", serving.call("ReadRows", request(Value(decimal_value="x"))))
    await refused("INCORRECT_PRIMARY_KEY", serving.call("ReadRows", request()))
    await refused("INCORRECT_PRIMARY_KEY", serving.call("ReadRows", request(*[Value(int_value=1)] * 2)))


async def test_typed_vectors(serving: Client, refused: Callable[..., Any]) -> None:
    group = await serving.group("g", {"k": "bigint", "x": "double", "tags": "array<int>"}, ["k"])
    await serving.write(group, [{"k": 1, "x": 0.5, "tags": [1]}])
    await serving.view("v", [{"group": "g"}], [(0, "k"), (0, "x"), (0, "tags")])
    good, wrong, text = (
        {"k": value} for value in (Value(int_value=1), Value(double_value=1.5), Value(string_value="1"))
    )
    options = {"include_detailed_status": True, "include_names": True}
    reply = await serving.vectors("v", [good, wrong, text, {"x": Value(int_value=1)}], options=options)
    assert [vector.status for vector in reply.vectors] == [1, 3, 1, 3]
    assert list(reply.vectors[2].values) == [Value(int_value=1), Value(double_value=0.5), Value(json_value="[1]")]
    assert [[group.http_status for group in vector.groups] for vector in reply.vectors] == [[200], [400], [200], [400]]
    assert [each.feature_name for each in reply.metadata] == ["k", "x", "tags"]
    passed = pb.GetFeatureVectorsRequest(
        feature_store="demo", feature_view="v", version=1, entries=[{"keys": good}],
        passed_features=[{"values": {"x": Value(string_value="text"), "tags": Value(json_value="[2,\n3]")}}],
    )  # fmt: skip
    values = (await serving.call("GetFeatureVectors", passed)).vectors[0].values
    assert (values[1].json_value, orjson.loads(values[2].json_value)) == ('"text"', [2, 3])
    passed.passed_features[0].values["tags"].json_value = "[1,"
    await refused("INCORRECT_FEATURE_VALUE", serving.call("GetFeatureVectors", passed))
    await refused("NO_PRIMARY_KEY_GIVEN", serving.vectors("v", []))
    await refused("INCORRECT_PRIMARY_KEY", serving.vectors("v", [{"k": Value(null_value=0)}]))
