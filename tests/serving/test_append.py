"""Columns that are appended while the group is served: old rows have null there, nobody is disturbed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from protos.gen.triglot.serving.v1 import feature_group_pb2
from protos.gen.triglot.serving.v1 import serving_service_pb2 as pb
from protos.gen.triglot.serving.v1.value_pb2 import Value
from tests.serving.conftest import MERGE, OVERWRITE, Client, arrow_stream, table_of

Refused = Callable[..., Any]
COLUMNS = {"id": "bigint", "x": "string"}


async def append(serving: Client, columns: dict[str, str], name: str = "g") -> feature_group_pb2.FeatureGroup:
    features = [feature_group_pb2.Feature(name=column, type=hive) for column, hive in columns.items()]
    request = pb.AppendFeaturesRequest(feature_store="demo", name=name, version=1, features=features)
    return (await serving.call("AppendFeatures", request)).feature_group


async def read(serving: Client, key: int) -> list[Any]:
    keys = [pb.RowKey(values=[Value(int_value=key)])]
    request = pb.ReadRowsRequest(feature_store="demo", feature_group="g", version=1, keys=keys)
    values = (await serving.call("ReadRows", request)).rows[0].values
    return [getattr(value, value.WhichOneof("kind")) if value.WhichOneof("kind") else None for value in values]


async def test_rows_from_before_have_null(serving: Client) -> None:
    group = await serving.group("g", COLUMNS, ["id"])
    await serving.write(group, [{"id": 1, "x": "a"}, {"id": 2, "x": "b"}])
    await serving.view("old", [{"group": "g"}], [(0, "x")])
    grown = await append(serving, {"y": "double", "z": "ARRAY<INT>"})
    assert [(feature.name, feature.type) for feature in grown.features] == [
        ("id", "bigint"), ("x", "string"), ("y", "double"), ("z", "array<int>"),
    ]  # fmt: skip
    assert (grown.id, grown.generation) == (group.id, 1)
    assert (await read(serving, 1))[:2] == [1, "a"]
    assert (await read(serving, 1))[2] in (None, 0)
    await serving.write(grown, [{"id": 1, "x": "A", "y": 0.5, "z": [1]}], MERGE)
    assert await read(serving, 1) == [1, "A", 0.5, "[1]"]
    await serving.view("new", [{"group": "g"}], [(0, "y"), (0, "x")])
    entries = [{"id": Value(int_value=key)} for key in (1, 2)]
    new = [list(vector.values) for vector in (await serving.vectors("new", entries)).vectors]
    assert new[0] == [Value(double_value=0.5), Value(string_value="A")]
    assert (new[1][0].WhichOneof("kind") in (None, "null_value"), new[1][1].string_value) == (True, "b")
    old = [list(vector.values) for vector in (await serving.vectors("old", entries)).vectors]
    assert old == [[Value(string_value="A")], [Value(string_value="b")]]


async def test_it_can_be_repeated_and_extended(serving: Client) -> None:
    await serving.group("g", COLUMNS, ["id"])
    once = await append(serving, {"y": "double"})
    assert await append(serving, {"y": "double"}) == once
    more = await append(serving, {"x": "string", "z": "int", "y": "double"})
    assert [feature.name for feature in more.features] == ["id", "x", "y", "z"]
    assert await serving.group("g", {**COLUMNS, "y": "double", "z": "int"}, ["id"]) == more


async def test_at_the_same_moment_each_is_appended_once(serving: Client) -> None:
    await serving.group("g", COLUMNS, ["id"])
    groups = await asyncio.gather(*(append(serving, {"y": "int", f"z{number % 3}": "int"}) for number in range(9)))
    names = [feature.name for feature in max(groups, key=lambda group: len(group.features)).features]
    assert sorted(names) == ["id", "x", "y", "z0", "z1", "z2"]


async def test_what_does_not_fit_changes_nothing(serving: Client, refused: Refused) -> None:
    group = await serving.group("g", COLUMNS, ["id"])
    error = await refused("DEFINITION_CONFLICT", append(serving, {"y": "int", "x": "int"}))
    assert error.metadata["differences"] == "x is string, not int"
    await refused("INVALID_FIELD", append(serving, {}))
    await refused("INVALID_FIELD", append(serving, {"y": "number"}))
    await refused("INVALID_FIELD", append(serving, {"a\nb": "int"}))
    await refused("INVALID_FIELD", append(serving, {f"c{number}": "int" for number in range(2_000)}))
    await refused("FEATURE_GROUP_NOT_FOUND", append(serving, {"y": "int"}, "h"))
    get = pb.GetFeatureGroupRequest(feature_store="demo", name="g", version=1)
    assert (await serving.call("GetFeatureGroup", get)).feature_group == group


@pytest.mark.parametrize("mode", [OVERWRITE, MERGE])
async def test_a_load_under_way_goes_on(serving: Client, mode: pb.WriteMode.ValueType) -> None:
    """It began with the columns from before."""
    group = await serving.group("g", COLUMNS, ["id"])
    header = pb.WriteRowsHeader(feature_store="demo", feature_group="g", version=1, mode=mode)

    async def messages() -> AsyncIterator[pb.WriteRowsRequest]:
        yield pb.WriteRowsRequest(header=header)
        yield pb.WriteRowsRequest(arrow_stream=arrow_stream(table_of(group, [{"id": 1, "x": "a"}])))
        await append(serving, {"y": "int"})
        yield pb.WriteRowsRequest(arrow_stream=arrow_stream(table_of(group, [{"id": 2, "x": "b"}])))
        yield pb.WriteRowsRequest(end=pb.WriteRowsEnd())

    assert (await serving.call("WriteRows", messages())).rows_written == 2
    assert [(await read(serving, key))[:2] for key in (1, 2)] == [[1, "a"], [2, "b"]]
