"""Groups and views: defined once, listed, refused when they disagree, gone when deleted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import pytest

from chassis.postgres import Database
from chassis.principals import Principal
from protos.gen.triglot.serving.v1 import feature_group_pb2
from protos.gen.triglot.serving.v1 import serving_service_pb2 as pb
from protos.gen.triglot.serving.v1.value_pb2 import Value
from tests.patience import until
from tests.serving.conftest import Client

COLUMNS = {"id": "bigint", "at": "timestamp", "x": "double"}
Refused = Callable[..., Any]


async def test_ensure_is_idempotent(serving: Client) -> None:
    first = await serving.group("g", COLUMNS, ["id"], description="first")
    again = await serving.group("g", COLUMNS | {"x": " DOUBLE "}, ["id"])
    assert (again.id, again.description, again.generation) == (first.id, "first", 0)
    assert [feature.type for feature in again.features] == ["bigint", "timestamp", "double"]
    other = await serving.group("g", COLUMNS, ["id"], version=2)
    assert other.id != first.id


async def test_ensure_at_the_same_moment_makes_one(serving: Client) -> None:
    groups = await asyncio.gather(*(serving.group("g", COLUMNS, ["id"]) for _ in range(8)))
    assert len({group.id for group in groups}) == 1


async def test_ensure_replaces_description_and_time_to_live(serving: Client) -> None:
    await serving.group("g", COLUMNS, ["id"])
    message = feature_group_pb2.FeatureGroup(
        feature_store="demo", name="g", version=1, primary_key=["id"], description="better",
        features=[feature_group_pb2.Feature(name=name, type=hive) for name, hive in COLUMNS.items()],
    )  # fmt: skip
    message.time_to_live.FromSeconds(5)
    await serving.call("EnsureFeatureGroup", pb.EnsureFeatureGroupRequest(feature_group=message))
    request = pb.GetFeatureGroupRequest(feature_store="DEMO_featurestore", name="g", version=1)
    found = (await serving.call("GetFeatureGroup", request)).feature_group
    assert (found.description, found.time_to_live.seconds) == ("better", 5)


@pytest.mark.parametrize(
    ("columns", "key", "more", "text"),
    [
        ({"id": "bigint", "at": "timestamp", "x": "float"}, ["id"], {}, "x is double, not float"),
        ({"id": "bigint", "at": "timestamp"}, ["id"], {}, "x is missing"),
        ({**COLUMNS, "y": "int"}, ["id"], {}, "y is new"),
        ({"x": "double", "id": "bigint", "at": "timestamp"}, ["id"], {}, "the order is id, at, x"),
        (COLUMNS, ["id", "at"], {}, "the key is id, not id, at"),
        (COLUMNS, ["id"], {"event_time": "at"}, "event_time is empty, not at"),
    ],
)
async def test_another_definition_is_refused(
    *, serving: Client, refused: Refused, columns: dict[str, str], key: list[str], more: dict[str, str], text: str
) -> None:
    await serving.group("g", COLUMNS, ["id"])
    error = await refused("DEFINITION_CONFLICT", serving.group("g", columns, key, **more))
    assert error.metadata["differences"] == text
    assert text in error.message


@pytest.mark.parametrize(
    ("columns", "key", "more", "field"),
    [
        ({}, ["id"], {}, "features"),
        ({"id": "bigint"}, [], {}, "primary_key"),
        ({"id": "bigint"}, ["x"], {}, "primary_key"),
        ({"id": "double"}, ["id"], {}, "primary_key"),
        ({"id": "array<int>"}, ["id"], {}, "primary_key"),
        ({"id": "number"}, ["id"], {}, "type"),
        ({"id": "bigint", "s": "string"}, ["id"], {"event_time": "s"}, "event_time"),
        ({"id": "bigint"}, ["id"], {"event_time": "at"}, "event_time"),
        ({"id": "bigint"}, ["id"], {"version": 0}, "version"),
        ({"id": "bigint"}, ["id"], {"store": ""}, "feature_store"),
        ({"a\nb": "bigint"}, ["a\nb"], {}, "features.name"),
    ],
)
async def test_what_is_no_group_is_refused(
    *, serving: Client, refused: Refused, columns: dict[str, str], key: list[str], more: dict[str, Any], field: str
) -> None:
    error = await refused("INVALID_FIELD", serving.group("g", columns, key, **more))
    assert error.metadata["field"] == field


async def test_views_are_kept_as_they_were_made(serving: Client, refused: Refused) -> None:
    await serving.group("g", COLUMNS, ["id"])
    made = await serving.view("v", [{"group": "g", "prefix": "p_"}], [(0, "x"), (0, "at", "label")])
    request = pb.GetFeatureViewRequest(feature_store="demo", name="v", version=1)
    assert (await serving.call("GetFeatureView", request)).feature_view == made
    assert [(each.name, each.label, each.type) for each in made.features] == [
        ("x", False, "double"), ("at", True, "timestamp"),
    ]  # fmt: skip
    listed = await serving.call("ListFeatureViews", pb.ListFeatureViewsRequest(feature_store="demo"))
    assert list(listed.feature_views) == [made]
    await refused("ALREADY_EXISTS", serving.view("v", [{"group": "g"}], [(0, "x")]))
    delete = pb.DeleteFeatureViewRequest(feature_store="demo", name="v", version=1)
    await serving.call("DeleteFeatureView", delete)
    await refused("FEATURE_VIEW_NOT_FOUND", serving.call("DeleteFeatureView", delete))
    await refused("FEATURE_VIEW_NOT_FOUND", serving.call("GetFeatureView", request))


async def test_views_of_what_is_not_there_are_refused(serving: Client, refused: Refused) -> None:
    await serving.group("g", COLUMNS, ["id"])
    joined = [{"group": "g"}, {"group": "g", "on": [("id", "nothing")]}]
    await refused("FEATURE_GROUP_NOT_FOUND", serving.view("v", [{"group": "h"}], [(0, "x")]))
    await refused("FEATURE_NOT_FOUND", serving.view("v", [{"group": "g"}], [(0, "y")]))
    await refused("FEATURE_NOT_FOUND", serving.view("v", joined, [(0, "x")]))
    await refused("INVALID_FIELD", serving.view("v", [{"group": "g"}], [(1, "x")]))
    await refused("INVALID_FIELD", serving.view("v", [{"group": "g"}, {"group": "g"}], [(0, "x")]))
    await refused("INVALID_FIELD", serving.view("v", [], [(0, "x")]))
    await refused("INVALID_FIELD", serving.view("v", [{"group": "g"}], []))


async def test_listing_and_missing_things(serving: Client, refused: Refused) -> None:
    one = await serving.group("b", COLUMNS, ["id"])
    two = await serving.group("a", COLUMNS, ["id"])
    listed = await serving.call("ListFeatureGroups", pb.ListFeatureGroupsRequest(feature_store="demo"))
    assert [group.id for group in listed.feature_groups] == [two.id, one.id]
    nowhere = pb.ListFeatureGroupsRequest(feature_store="nowhere")
    await refused("FEATURE_STORE_NOT_FOUND", serving.call("ListFeatureGroups", nowhere))
    absent = pb.GetFeatureGroupRequest(feature_store="demo", name="a", version=2)
    await refused("FEATURE_GROUP_NOT_FOUND", serving.call("GetFeatureGroup", absent))


async def test_a_deleted_group_leaves_views_that_say_so(
    serving: Client, http: httpx2.AsyncClient, refused: Refused
) -> None:
    group = await serving.group("g", {"id": "bigint", "x": "int"}, ["id"])
    await serving.write(group, [{"id": 1, "x": 2}])
    await serving.view("v", [{"group": "g"}], [(0, "x")])
    assert (await serving.vectors("v", [{"id": Value(int_value=1)}])).vectors[0].values[0].int_value == 2
    delete = pb.DeleteFeatureGroupRequest(feature_store="demo", name="g", version=1)
    await serving.call("DeleteFeatureGroup", delete)
    await refused("FEATURE_GROUP_DELETED", serving.vectors("v", [{"id": Value(int_value=1)}]))
    body = {"featureStoreName": "demo", "featureViewName": "v", "featureViewVersion": 1, "entries": {"id": 1}}
    response = await http.post("/feature_store", json=body)
    assert (response.status_code, response.json()["code"]) == (400, 3)
    await refused("FEATURE_GROUP_NOT_FOUND", serving.call("DeleteFeatureGroup", delete))
    again = await serving.group("g", {"id": "bigint", "x": "int"}, ["id"])
    assert again.id != group.id
    await refused("FEATURE_GROUP_DELETED", serving.vectors("v", [{"id": Value(int_value=1)}]))


async def test_callers_use_their_stores_and_actions_only(
    serving: Client,
    http: httpx2.AsyncClient,
    refused: Refused,
    make_key: Callable[[Principal], Awaitable[str]],
) -> None:
    mine = await serving.group("g", {"id": "bigint", "x": "int"}, ["id"], store="mine")
    theirs = await serving.group("g", {"id": "bigint", "y": "int"}, ["id"], store="theirs")
    await serving.write(mine, [{"id": 1, "x": 2}])
    await serving.write(theirs, [{"id": 1, "y": 3}])
    await serving.view("alone", [{"group": "g"}], [(0, "x")], store="mine")
    joined = [{"group": "g"}, {"group": "g", "store": "theirs", "on": [("id", "id")]}]
    await serving.view("both", joined, [(0, "x"), (1, "y")], store="mine")
    body = {"featureStoreName": "mine", "featureViewName": "alone", "featureViewVersion": 1, "entries": {"id": 1}}

    narrow = Principal("narrow", feature_stores=frozenset({"mine"}), actions=("featurestore:RenderFeatureVectors",))
    key = await make_key(narrow)
    http.headers["X-API-KEY"] = key
    assert (await http.post("/feature_store", json=body)).json()["features"] == [2]
    response = await http.post("/feature_store", json=body | {"featureViewName": "both"})
    assert response.status_code == 401
    assert (response.json()["code"], response.json()["reason"]) == (17, "Accessing unshared feature store failed")
    await refused("ACTION_NOT_ALLOWED", serving.with_key(key).group("h", {"id": "int"}, ["id"], store="mine"))

    wide = Principal("wide", feature_stores=frozenset({"mine", "theirs"}), actions=("featurestore:*",))
    http.headers["X-API-KEY"] = await make_key(wide)
    assert (await http.post("/feature_store", json=body | {"featureViewName": "both"})).json()["features"] == [2, 3]

    stranger = serving.with_key(await make_key(Principal("stranger", actions=("featurestore:*",))))
    for call in (
        stranger.group("h", {"id": "int"}, ["id"], store="mine"),
        stranger.write(mine, [{"id": 1, "x": 2}]),
        stranger.view("v", [{"group": "g"}], [(0, "x")], store="mine"),
        stranger.call("ListFeatureGroups", pb.ListFeatureGroupsRequest(feature_store="mine")),
        stranger.call("ListFeatureViews", pb.ListFeatureViewsRequest(feature_store="mine")),
        stranger.call("GetFeatureView", pb.GetFeatureViewRequest(feature_store="mine", name="alone", version=1)),
        stranger.call("ReadRows", pb.ReadRowsRequest(feature_store="mine", feature_group="g", version=1)),
        stranger.call("DeleteFeatureGroup", pb.DeleteFeatureGroupRequest(feature_store="mine", name="g", version=1)),
        stranger.call("DeleteFeatureView", pb.DeleteFeatureViewRequest(feature_store="mine", name="both", version=1)),
        stranger.call(
            "DescribeFeatureView", pb.DescribeFeatureViewRequest(feature_store="mine", name="both", version=1)
        ),
    ):
        await refused("FEATURE_STORE_NOT_SHARED", call)


async def test_strangers_do_not_learn_which_views_there_are(
    serving: Client, refused: Refused, make_key: Callable[[Principal], Awaitable[str]]
) -> None:
    await serving.group("g", {"id": "bigint", "x": "int"}, ["id"])
    await serving.view("there", [{"group": "g"}], [(0, "x")])
    stranger = serving.with_key(await make_key(Principal("stranger", actions=("featurestore:*",))))
    for view in ("there", "not there"):
        describe = pb.DescribeFeatureViewRequest(feature_store="demo", name=view, version=1)
        render = pb.RenderFeatureVectorsRequest(feature_store="demo", feature_view=view, version=1, entries=b'{"id":1}')
        await refused("FEATURE_STORE_NOT_SHARED", stranger.call("DescribeFeatureView", describe))
        await refused("FEATURE_STORE_NOT_SHARED", stranger.call("RenderFeatureVectors", render))
        await refused("FEATURE_STORE_NOT_SHARED", stranger.vectors(view, [{"id": Value(int_value=1)}]))


async def test_a_view_is_read_as_of_one_moment(serving: Client, refused: Refused, database: Database) -> None:
    """Not its name before it was deleted and its joins after."""
    await serving.group("g", COLUMNS, ["id"])
    await serving.view("v", [{"group": "g"}], [(0, "x")])
    get = pb.GetFeatureViewRequest(feature_store="demo", name="v", version=1)
    async with database.transaction() as connection:
        await connection.execute("LOCK TABLE serving.view_join IN ACCESS EXCLUSIVE MODE")
        await connection.execute("DELETE FROM serving.feature_view")
        reading = asyncio.create_task(serving.call("GetFeatureView", get))

        async def waits() -> bool:
            waiting = "SELECT count(*) FROM pg_locks WHERE relation = 'serving.view_join'::regclass AND NOT granted"
            return bool(await database.fetchval(waiting) == 1)

        await until(waits)
    await refused("FEATURE_VIEW_NOT_FOUND", reading)
