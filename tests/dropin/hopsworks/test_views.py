"""The `hopsworks` 5.2.1 client on views that join two stores, with a label, helpers, a prefix and keys of dates.

One process of the client makes all calls, because starting it takes seconds. It shows values as Python writes them:
`1`, `1.0` and `True` are three different answers. Needs .venv-hopsworks; without it the test fails.
"""

from __future__ import annotations

import datetime
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from chassis.principals import Principal
from tests.conftest import Servers
from tests.serving.conftest import Client

pytestmark = pytest.mark.dropin

RIDERS = {
    "rider_id": "bigint", "home": "bigint", "churned": "date", "seen": "timestamp", "seen_ms": "timestamp",
    "hint": "bigint", "blob": "binary", "big": "bigint", "origin": "string", "ratio": "double", "half": "float",
    "flag": "boolean", "name": "string", "tags": "array<string>", "joined": "date",
}  # fmt: skip
CITIES = {"id": "bigint", "name": "string", "people": "bigint", "founded": "date", "emblem": "binary"}
MOMENTS = {"day": "date", "at": "timestamp", "x": "int"}

# Two days of which one is a label: a client that counted it would decode the wrong positions.
RIDER = {
    "rider_id": 1, "home": 7, "churned": datetime.date(2023, 5, 6),
    "seen": datetime.datetime(2022, 1, 24, 13, 5), "seen_ms": datetime.datetime(2022, 1, 24, 13, 5, 0, 250_000),
    "hint": 17, "blob": b"\x00\xff\xfe", "big": 2**53 + 1, "origin": "import", "ratio": 0.1, "half": 0.1,
    "flag": True, "name": "Zoë ☃", "tags": ["a", None, "ü"], "joined": datetime.date(2020, 2, 29),
}  # fmt: skip
EDGES = {
    "rider_id": 2**53 + 1, "home": 8, "churned": None,
    "seen": datetime.datetime(1969, 12, 31, 23, 59, 59, 999_999), "seen_ms": datetime.datetime(1970, 1, 1),
    "hint": 0, "blob": b"", "big": -(2**63), "origin": "", "ratio": -1e300, "half": 0.0,
    "flag": False, "name": "", "tags": [], "joined": datetime.date(1969, 12, 31),
}  # fmt: skip
NULLS = {**dict.fromkeys(RIDERS), "rider_id": 2}
CITY = {"id": 7, "name": "Zürich", "people": 2**53 + 1, "founded": datetime.date(1218, 1, 1), "emblem": b"\x01"}
EMPTY_CITY = {**dict.fromkeys(CITIES), "id": 8}
MOMENT = {"day": datetime.date(2022, 1, 24), "at": datetime.datetime(2022, 1, 24, 13, 5, 0, 250_000), "x": 5}

# Join, column and marks, in the order of the vector.
RIDING: list[tuple[Any, ...]] = [
    (0, "rider_id"), (0, "churned", "label"), (0, "seen"), (0, "hint", "inference_helper"), (0, "seen_ms"),
    (0, "blob"), (0, "big"), (0, "origin", "training_helper"), (1, "name"), (0, "ratio"), (0, "half"), (0, "flag"),
    (0, "name"), (1, "founded"), (0, "tags"), (0, "joined"), (1, "people"), (1, "emblem"),
]  # fmt: skip
PLAIN: list[tuple[Any, ...]] = [
    (0, "churned", "label"), (0, "origin", "training_helper"), (0, "rider_id"), (0, "joined"), (0, "blob"), (0, "flag"),
]  # fmt: skip


def named(index: int, column: str) -> str:
    return f"city_{column}" if index else column


SERVED = [(index, column) for index, column, *marks in RIDING if "label" not in marks]
KEPT = [(index, column) for index, column, *marks in RIDING if not marks]


def row(rider: dict[str, Any] | None, city: dict[str, Any] | None, *, text: bool = True) -> dict[str, Any]:
    """A vector by name, as the engine answers it; `text`: timestamps as the engine hands them on."""
    found = {}
    for index, column in KEPT:
        value = ((city if index else rider) or {}).get(column)
        if text and isinstance(value, datetime.datetime):
            value = str(value).removesuffix("000") if value.microsecond else str(value)
        # Hopsworks keeps booleans in tinyint columns.
        found[named(index, column)] = int(value) if isinstance(value, bool) else value
    return found


@pytest.fixture
async def views(serving: tuple[Client, int]) -> dict[str, Any]:
    """Writes rows and makes the views; what Hopsworks' metadata would tell its client of each."""
    client, _ = serving
    riders = await client.group("riders", RIDERS, ["rider_id"], store="shop")
    cities = await client.group("cities", CITIES, ["id"], store="atlas", version=2)
    moments = await client.group("moments", MOMENTS, ["day", "at"], store="shop")
    await client.write(riders, [RIDER, NULLS, EDGES])
    await client.write(cities, [CITY, EMPTY_CITY])
    await client.write(moments, [MOMENT])
    types, ids = [RIDERS, CITIES], [riders.id, cities.id]

    async def made(name: str, joins: list[dict[str, Any]], features: list[tuple[Any, ...]], *of: Any) -> dict[str, Any]:
        columns, groups = of or (types, ids)
        view = await client.view(name, joins, features, store="shop")
        return {
            "features": [
                {
                    "name": named(index, column),
                    "type": columns[index][column],
                    "group_id": groups[index],
                    "marks": marks,
                }
                for index, column, *marks in features
            ],
            "serving_keys": [
                {
                    "feature_name": key.feature_name,
                    "join_index": key.join_index,
                    "group_id": groups[key.join_index],
                    "required": key.required,
                    "prefix": key.prefix,
                }
                for key in view.serving_keys
            ],
        }

    joined = {"group": "cities", "version": 2, "store": "atlas", "prefix": "city_", "on": [("home", "id")]}
    times, of_times = [{"group": "moments"}], ([MOMENTS], [moments.id])
    return {
        "riding": await made("riding", [{"group": "riders"}, joined], RIDING),
        "plain": await made("plain", [{"group": "riders"}], PLAIN),
        "by_moment": await made("by_moment", times, [(0, "x")], *of_times),
        "moments": await made("moments", times, [(0, "day"), (0, "at"), (0, "x")], *of_times),
    }


@pytest.fixture
async def seen(
    serving: tuple[Client, int],
    servers: Servers,
    views: dict[str, Any],
    make_key: Callable[[Principal], Awaitable[str]],
    run_client: Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]],
) -> dict[str, Any]:
    may = ("featurestore:RenderFeatureVectors",)
    keys = {
        "both": await make_key(Principal("both", feature_stores=frozenset({"shop", "atlas"}), actions=may)),
        "one": await make_key(Principal("one", feature_stores=frozenset({"shop"}), actions=may)),
        "other": await make_key(Principal("other", feature_stores=frozenset({"atlas"}), actions=may)),
        "wrong": "0123456789abcdef.wrong",
    }
    given = {"port": serving[1], "key": servers.admin_key, "other_keys": keys, "views": views}
    return await run_client("scenario.py", given)


async def test_the_client_on_views(seen: dict[str, Any], views: dict[str, Any]) -> None:
    check_raw(seen["raw"], views["riding"])
    check_engine(seen["engine"])
    check_server(seen["server"])
    check_positions(seen["positions"])
    check_moments(seen["moments"])
    check_refusals(seen["refusals"])
    check_keys(seen["keys"])


def check_raw(seen: dict[str, Any], view: dict[str, Any]) -> None:
    assert (seen["ping"], seen["connected"]) == ([200, ""], True)
    left, right = dict.fromkeys(each["group_id"] for each in view["features"])
    served = [each for each in view["features"] if "label" not in each["marks"]]
    single, batch = seen["single"], seen["batch"]
    assert single["status"] == "COMPLETE"
    assert single["metadata"] == [{"featureName": each["name"], "featureType": each["type"]} for each in served]
    assert len(single["features"]) == len(SERVED) == len(RIDING) - 1
    assert "2023-05-06" not in repr(single)
    assert [single["features"][SERVED.index((0, helper))] for helper in ("hint", "origin")] == [17, "import"]
    both_read = [{"featureGroupId": each, "httpStatus": 200} for each in (left, right)]
    assert single["detailedStatus"] == both_read

    assert batch["status"] == ["COMPLETE", "MISSING"]
    assert (batch["features"][0], batch["metadata"]) == (single["features"], single["metadata"])
    assert len(batch["features"][1]) == len(SERVED)
    missing = [{"featureGroupId": left, "httpStatus": 404}, {"featureGroupId": right, "httpStatus": 200}]
    assert batch["detailedStatus"] == [both_read, missing]


def check_engine(seen: dict[str, Any]) -> None:
    whole, edges, no_city = row(RIDER, CITY), row(EDGES, EMPTY_CITY), row(RIDER, None)
    no_rider, nobody = row({"rider_id": 99}, CITY), row({"rider_id": 2**53}, None)
    of_rider = {name: value for name, value in whole.items() if not name.startswith("city_")}
    of_city = {name: value for name, value in whole.items() if name.startswith("city_")}
    mine = {"name": "mine", "city_people": 5}
    expected = {
        "dict": repr(whole),
        "list": repr(list(whole.values())),
        "of numpy": repr(whole),
        "helpers": repr({"hint": 17}),
        "no city": repr(no_city),
        "no city, dropped": repr(of_rider),
        "null city, dropped": repr(of_rider),
        "passed": repr(whole | mine),
        # One more than 2^53 is a rider, 2^53 itself is none: as doubles they would be the same.
        "batch": [repr(each) for each in (whole, no_rider, edges, nobody, whole)],
        "batch, dropped": [repr(each) for each in (whole, of_city, edges, {}, whole)],
        "batch, passed": [repr(no_city | mine), repr(row(RIDER, CITY))],
    }
    assert seen == expected


def check_server(seen: dict[str, Any]) -> None:
    whole, nulls = row(RIDER, CITY, text=False), row(NULLS, EMPTY_CITY, text=False)
    nobody, no_city = row({"rider_id": 99}, None), row(RIDER, None, text=False)
    refused = seen.pop("no city, refused")
    assert refused["type"] == "FeatureStoreException"
    for name in ("city_name", "city_founded", "city_people", "city_emblem"):
        assert name in refused["text"]
    assert seen == {
        "list": repr(list(whole.values())),
        "list, passed": repr(list((whole | {"name": "mine"}).values())),
        "no city": repr(list(no_city.values())),
        "nobody": "None",
        "batch": [repr(list(each.values())) for each in (whole, nulls)],
        "batch, nothing dropped": [repr(list(each.values())) for each in (whole, nobody, nulls)],
        "pandas": [list(whole), repr("Zürich")],
        "helpers": repr({"hint": 17}),
    }


def check_positions(seen: dict[str, Any]) -> None:
    whole = [1, datetime.date(2020, 2, 29), b"\x00\xff\xfe", 1]
    assert seen == {
        # The label has no position, the training helper has the first.
        "positions": [1, 2, 3, 4],
        "list": repr(whole),
        "batch": [repr(whole), repr([2, None, None, None])],
    }


def check_moments(seen: dict[str, Any]) -> None:
    found, missing = repr({"x": 5}), repr({"x": None})
    assert seen == {
        "found": [found, found, missing, missing],
        "vector": repr([5]),
        "keys in the vector": [repr(list(MOMENT.values()))] * 2,
    }


def check_refusals(seen: dict[str, Any]) -> None:
    of_code = {
        "unknown view": (400, 1, "Feature view does not exist."),
        "unknown view, batch": (400, 1, "Feature view does not exist."),
        "unknown version": (400, 1, "Feature view does not exist."),
        "unknown store": (400, 2, "Feature store does not exist."),
        "wrong key name": (400, 12, "Incorrect primary key."),
        "null keys": (400, 12, "Incorrect primary key."),
    }
    for case, (status, code, reason) in of_code.items():
        assert seen[case][0] == status, case
        assert (seen[case][1]["code"], seen[case][1]["reason"]) == (code, reason), case
        assert seen[case][1]["message"], case
    assert seen["empty batch"] == [400, "No primary key is given."]
    # All of it on one connection: no error closed it.
    assert (seen["still answers"], seen["connections"]) == ("answered", [1, True])


def check_keys(seen: dict[str, Any]) -> None:
    plain, riding = seen["both"]
    assert (plain[0], riding[0], seen["both, batch"][0]) == ("answered", "answered", "answered")
    assert seen["one"][0][0] == "answered"
    for unshared in (seen["one"][1], seen["one, batch"], *seen["other"], seen["other, batch"]):
        status, body = unshared
        assert status == 401
        assert (body["code"], body["reason"]) == (17, "Accessing unshared feature store failed")
    for status, text in (*seen["wrong"], seen["wrong, batch"]):
        assert status == 401
        assert text.startswith("Unauthorized.")
