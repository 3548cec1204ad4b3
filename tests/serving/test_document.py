"""The examples of the user's two Hopsworks documents, as they are printed there."""

from __future__ import annotations

import datetime
from typing import Any

import httpx2
import pytest

from tests.serving.conftest import Client

BODY: dict[str, Any] = {
    "featureStoreName": "fsdb002",
    "featureViewName": "sample_2",
    "featureViewVersion": 1,
    "passedFeatures": {},
    "entries": {"id1": 36},
    "metadataOptions": {"featureName": True, "featureType": True},
    "options": {"validatePassedFeatures": True, "includeDetailedStatus": True},
}
METADATA = [
    {"featureName": "id1", "featureType": "bigint"},
    {"featureName": "ts", "featureType": "date"},
    {"featureName": "data1", "featureType": "string"},
    {"featureName": "data2", "featureType": "string"},
]


@pytest.fixture
async def groups(serving: Client) -> list[int]:
    """View sample_2 of the documents, over two groups joined on their common key; the groups' ids."""
    days = {36: 24, 16: 27, 48: 26, 29: 3, 81: 29}
    left = await serving.group("sample_1", {"id1": "bigint", "ts": "date"}, ["id1"], store="fsdb002")
    right = await serving.group(
        "sample_2", {"id1": "bigint", "data1": "string", "data2": "string"}, ["id1"], store="fsdb002"
    )
    await serving.write(left, [{"id1": key, "ts": datetime.date(2022, 1, day)} for key, day in days.items()])
    texts = {36: ("int24", "str14"), 16: ("int31", "str24"), 48: ("int92", "str31"), 29: ("int53", "str91")}
    await serving.write(right, [{"id1": key, "data1": one, "data2": two} for key, (one, two) in texts.items()])
    await serving.view(
        "sample_2",
        [{"group": "sample_1"}, {"group": "sample_2", "on": [("id1", "id1")]}],
        [(0, "id1"), (0, "ts"), (1, "data1"), (1, "data2")],
        store="fsdb002",
    )
    return [left.id, right.id]


async def post(http: httpx2.AsyncClient, path: str, **changes: Any) -> httpx2.Response:
    return await http.post(path, json=BODY | changes)


async def test_single_vector(http: httpx2.AsyncClient, groups: list[int]) -> None:
    response = await post(http, "/feature_store")
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.json() == {
        "features": [36, "2022-01-24", "int24", "str14"],
        "metadata": METADATA,
        "status": "COMPLETE",
        "detailedStatus": [{"featureGroupId": each, "httpStatus": 200} for each in groups],
    }


async def test_missing_row(http: httpx2.AsyncClient, groups: list[int]) -> None:
    response = await post(http, "/feature_store", entries={"id1": 9876543}, metadataOptions=None, options=None)
    assert response.status_code == 200
    assert response.json() == {"features": [9876543, None, None, None], "metadata": None, "status": "MISSING"}


async def test_row_missing_in_one_group(http: httpx2.AsyncClient, groups: list[int]) -> None:
    answer = (await post(http, "/feature_store", entries={"id1": 81})).json()
    assert answer["features"] == [81, "2022-01-29", None, None]
    assert answer["status"] == "MISSING"
    assert [each["httpStatus"] for each in answer["detailedStatus"]] == [200, 404]


async def test_batch(http: httpx2.AsyncClient, groups: list[int]) -> None:
    entries = [{"id1": each} for each in (16, 36, 71, 48, 29)]
    response = await post(http, "/batch_feature_store", entries=entries, passedFeatures=[], requestId=None)
    assert response.status_code == 200
    statuses = [200, 200, 404, 200, 200]
    assert response.json() == {
        "features": [
            [16, "2022-01-27", "int31", "str24"],
            [36, "2022-01-24", "int24", "str14"],
            [71, None, None, None],
            [48, "2022-01-26", "int92", "str31"],
            [29, "2022-01-03", "int53", "str91"],
        ],
        "metadata": METADATA,
        "status": ["COMPLETE", "COMPLETE", "MISSING", "COMPLETE", "COMPLETE"],
        "detailedStatus": [[{"featureGroupId": each, "httpStatus": status} for each in groups] for status in statuses],
    }


async def test_batch_with_a_wrong_entry(http: httpx2.AsyncClient, groups: list[int]) -> None:
    entries = [{"id1": 36}, {"wrong": 5}, {"id1": 51}]
    response = await post(http, "/batch_feature_store", entries=entries, passedFeatures=None, metadataOptions=None)
    assert response.status_code == 200
    assert response.json() == {
        "features": [[36, "2022-01-24", "int24", "str14"], None, [51, None, None, None]],
        "metadata": None,
        "status": ["COMPLETE", "ERROR", "MISSING"],
        "detailedStatus": [
            [{"featureGroupId": each, "httpStatus": status} for each in groups] for status in (200, 400, 404)
        ],
    }


async def test_wrong_key_name(http: httpx2.AsyncClient, groups: list[int]) -> None:
    response = await post(http, "/feature_store", entries={"ts": 36})
    assert response.status_code == 400
    answer = response.json()
    assert set(answer) == {"code", "message", "reason"}
    assert (answer["code"], answer["reason"]) == (12, "Incorrect primary key.")
    assert "`ts`" in answer["message"]


async def test_unknown_feature_store(http: httpx2.AsyncClient, groups: list[int]) -> None:
    response = await post(http, "/feature_store", featureStoreName="fsdb003")
    assert response.status_code == 400
    assert (response.json()["code"], response.json()["reason"]) == (2, "Feature store does not exist.")


async def test_no_key_no_answer(http: httpx2.AsyncClient, groups: list[int]) -> None:
    for key in ("", "wrong", "0123456789abcdef.wrong"):
        response = await http.post("/feature_store", json=BODY, headers={"X-API-KEY": key})
        assert response.status_code == 401


async def test_passed_features_overwrite(http: httpx2.AsyncClient, groups: list[int]) -> None:
    answer = (await post(http, "/feature_store", passedFeatures={"data1": "mine", "ts": "2020-02-02"})).json()
    assert answer["features"] == [36, "2020-02-02", "mine", "str14"]
    assert answer["status"] == "COMPLETE"


async def test_ping_and_health_are_open(http: httpx2.AsyncClient) -> None:
    http.headers.clear()
    ping, health = await http.get("/ping"), await http.get("/health")
    assert (ping.status_code, ping.content) == (200, b"")
    assert (health.status_code, health.text) == (200, "0")
