"""Fragments as typed values: what rows hold, and what callers may send in their place."""

from __future__ import annotations

import pytest

from chassis import datatypes
from protos.gen.triglot.serving.v1.value_pb2 import Value
from protos.gen.triglot.serving.v1.vector_pb2 import FeatureVector
from services.serving import fragments

NOTHING = Value(null_value=0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "fragment", "value"),
    [
        ("bigint", "-9223372036854775808", Value(int_value=-(2**63))),
        ("bigint", '"36"', Value(int_value=36)),
        ("int", "9223372036854775808", Value(json_value="9223372036854775808")),
        ("bigint", "1.5", Value(json_value="1.5")),
        ("bigint", '"x"', Value(json_value='"x"')),
        ("bigint", "null", NOTHING),
        ("float", "0.1", Value(float_value=0.1)),
        ("double", "1e-7", Value(double_value=1e-7)),
        ("double", "36", Value(double_value=36.0)),
        ("double", '"36"', Value(double_value=36.0)),
        ("double", "true", Value(json_value="true")),
        ("double", "null", NOTHING),
        ("string", '"Zürich"', Value(string_value="Zürich")),
        ("string", '"a \\"b\\" \\u00e9\\n"', Value(string_value='a "b" é\n')),
        ("string", "36", Value(string_value="36")),
        ("string", '"null"', Value(string_value="null")),
        ("string", "null", NOTHING),
        ("boolean", "1", Value(bool_value=True)),
        ("boolean", "false", Value(bool_value=False)),
        ("boolean", "2", Value(json_value="2")),
        ("decimal(10,2)", "12.50", Value(decimal_value="12.50")),
        ("date", '"1970-01-02"', Value(date_value=1)),
        ("date", '"soon"', Value(json_value='"soon"')),
        ("timestamp", '"1970-01-01 00:00:01.5"', Value(timestamp_value=1_500_000)),
        ("binary", '"AP8="', Value(bytes_value=b"\x00\xff")),
        ("array<int>", "[1,null]", Value(json_value="[1,null]")),
        ("array<int>", "null", NOTHING),
    ],
)
def test_a_fragment_is_added_as_its_type_or_as_its_text(kind: str, fragment: str, value: Value) -> None:
    vector = FeatureVector()
    fragments.writer(datatypes.parse(kind))(vector.values.add, fragment.encode())
    assert list(vector.values) == [value]
