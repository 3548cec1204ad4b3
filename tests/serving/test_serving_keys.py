"""The 13 settings of Hopsworks' documentation of required entries, one row each; and what entries then do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx2
import pytest

from protos.gen.triglot.serving.v1 import serving_service_pb2 as pb
from tests.serving.conftest import Client

# Keys of the left and of the right group, what they are joined on, prefix, required names ({R}: the right group's id).
SETTINGS = [
    (["id"], ["id"], [("id", "id")], "", ["id"]),
    (["id1"], ["id2"], [("id1", "id2")], "", ["id1"]),
    (["id1", "id2"], ["id1"], [("id1", "id1")], "", ["id1", "id2"]),
    (["id", "user_id"], ["id"], [("user_id", "id")], "", ["id", "user_id"]),
    (["id1"], ["id1", "id2"], [("id1", "id1")], "", ["id1", "id2"]),
    (["id"], ["id", "user_id"], [("id", "user_id")], "right_", ["id", "right_id"]),
    (["id"], ["id", "user_id"], [("id", "user_id")], "", ["id", "fgId_{R}_1_id"]),
    (["id"], ["id"], [("id", "feature_1")], "right_", ["id", "right_id"]),
    (["id"], ["id"], [("id", "feature_1")], "", ["id", "fgId_{R}_1_id"]),
    (["id"], ["id"], [("feature_1", "id")], "right_", ["id", "right_id"]),
    (["id"], ["id"], [("feature_1", "id")], "", ["id", "fgId_{R}_1_id"]),
    (["user", "year"], ["user", "year"], [("user", "user")], "right_", ["user", "year", "right_year"]),
    (["user", "year"], ["user", "year"], [("user", "user")], "", ["user", "year", "fgId_{R}_1_year"]),
]


@pytest.mark.parametrize(("left", "right", "on", "prefix", "expected"), SETTINGS)
async def test_required_entries(
    *,
    serving: Client,
    http: httpx2.AsyncClient,
    left: list[str],
    right: list[str],
    on: Sequence[tuple[str, str]],
    prefix: str,
    expected: list[str],
) -> None:
    """The names are those of the table, and an entry of just these names reads both rows."""
    values = {name: number for number, name in enumerate(["id", "id1", "id2", "user_id", "user", "year"], start=11)}
    one = await serving.group("one", dict.fromkeys([*left, "feature_1"], "int"), left)
    two = await serving.group("two", dict.fromkeys([*right, "feature_1", "x"], "int"), right)
    await serving.view("v", [{"group": "one"}, {"group": "two", "on": on, "prefix": prefix}], [(0, left[0]), (1, "x")])
    described = await serving.call(
        "DescribeFeatureView", pb.DescribeFeatureViewRequest(feature_store="demo", name="v", version=1)
    )
    expected = [name.format(R=two.id) for name in expected]
    assert list(described.required_entries) == expected
    assert set(expected) <= set(described.accepted_entries)

    # The right row's key: from the left key that it is joined on, or a value of its own, 100.
    fed = {theirs: ours for ours, theirs in on if ours in left}
    await serving.write(one, [{**{name: values[name] for name in left}, "feature_1": 0}])
    key = {name: values[fed[name]] if name in fed else 100 for name in right}
    await serving.write(two, [{**key, "feature_1": 0, "x": 77}])
    entry = {name: values.get(name, 100) if name in left else 100 for name in expected}
    body = {"featureStoreName": "demo", "featureViewName": "v", "featureViewVersion": 1, "entries": entry}
    answer: dict[str, Any] = (await http.post("/feature_store", json=body)).json()
    assert answer == {"features": [values[left[0]], 77], "metadata": None, "status": "COMPLETE"}


async def test_prefixed_and_raw_names_are_accepted(serving: Client, http: httpx2.AsyncClient) -> None:
    group = await serving.group("g", {"id": "bigint", "x": "string"}, ["id"])
    await serving.write(group, [{"id": 5, "x": "five"}])
    await serving.view("v", [{"group": "g", "prefix": "p_"}], [(0, "id"), (0, "x")])
    body: dict[str, Any] = {"featureStoreName": "demo", "featureViewName": "v", "featureViewVersion": 1}
    for entry in ({"p_id": 5}, {"id": 5}, {"p_id": 5, "id": 6}):
        answer = (await http.post("/feature_store", json={**body, "entries": entry})).json()
        assert answer["features"] == [5, "five"], entry
    refused = (await http.post("/feature_store", json={**body, "entries": {"q_id": 5}})).json()
    assert refused["code"] == 12


async def test_one_group_joined_twice(serving: Client, http: httpx2.AsyncClient) -> None:
    flights = await serving.group("flights", {"id": "int", "origin": "string", "dest": "string"}, ["id"])
    airports = await serving.group("airports", {"faa": "string", "name": "string"}, ["faa"])
    await serving.write(flights, [{"id": 1, "origin": "JFK", "dest": "LAX"}])
    await serving.write(airports, [{"faa": "JFK", "name": "Kennedy"}, {"faa": "LAX", "name": "Los Angeles"}])
    joins = [
        {"group": "flights"},
        {"group": "airports", "prefix": "from_", "on": [("origin", "faa")]},
        {"group": "airports", "prefix": "to_", "on": [("dest", "faa")]},
    ]
    await serving.view("v", joins, [(0, "id"), (1, "name"), (2, "name"), (2, "faa")])
    body = {
        "featureStoreName": "demo", "featureViewName": "v", "featureViewVersion": 1,
        "entries": {"id": 1, "from_faa": "JFK", "to_faa": "XXX"}, "options": {"includeDetailedStatus": True},
        "metadataOptions": {"featureName": True},
    }  # fmt: skip
    answer = (await http.post("/feature_store", json=body)).json()
    assert answer["features"] == [1, "Kennedy", None, "XXX"]
    assert [each["featureName"] for each in answer["metadata"]] == ["id", "from_name", "to_name", "to_faa"]
    assert answer["detailedStatus"] == [
        {"featureGroupId": flights.id, "httpStatus": 200},
        {"featureGroupId": airports.id, "httpStatus": 200},
        {"featureGroupId": airports.id, "httpStatus": 404},
    ]
