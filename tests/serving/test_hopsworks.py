"""The rules of Hopsworks' server, one test each: what a request may hold, and what exactly it answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
import pytest

from gateway.settings import GatewaySettings
from tests.conftest import Servers
from tests.serving.conftest import Client, Stack, hopsworks_client

COLUMNS = {"id": "bigint", "name": "string", "price": "double", "flag": "boolean", "tags": "array<string>", "y": "int"}
ROW = {"id": 36, "name": "thirty-six", "price": 1.5, "flag": True, "tags": ["a"], "y": 9}
BODY: dict[str, Any] = {"featureStoreName": "demo", "featureViewName": "v", "featureViewVersion": 1}
VALIDATED = {"validatePassedFeatures": True}


@pytest.fixture(autouse=True)
async def view(serving: Client) -> Any:
    """id, name, price, flag, tags; y is the label."""
    group = await serving.group("g", COLUMNS, ["id"])
    await serving.write(group, [ROW])
    features: list[Any] = [(0, name) for name in COLUMNS if name != "y"]
    return await serving.view("v", [{"group": "g"}], [*features, (0, "y", "label")])


async def single(http: httpx2.AsyncClient, entries: Any = None, **more: Any) -> httpx2.Response:
    return await http.post("/feature_store", json=BODY | {"entries": entries or {"id": 36}} | more)


async def batch(http: httpx2.AsyncClient, entries: Any, **more: Any) -> httpx2.Response:
    return await http.post("/batch_feature_store", json=BODY | {"entries": entries} | more)


async def raw(http: httpx2.AsyncClient, body: bytes | str, path: str = "/feature_store") -> httpx2.Response:
    return await http.post(path, content=body, headers={"Content-Type": "application/json"})


def error_of(response: httpx2.Response, status: int, code: int) -> dict[str, Any]:
    assert (response.status_code, response.headers["content-type"]) == (status, "application/json"), response.text
    answer: dict[str, Any] = response.json()
    assert set(answer) == {"code", "message", "reason"}
    assert answer["code"] == code, answer
    return answer


class TestKeys:
    async def test_values_come_back_byte_for_byte(self, http: httpx2.AsyncClient) -> None:
        start = '{"featureStoreName":"demo","featureViewName":"v","featureViewVersion":1,"entries":{"id":'
        for value in ("36", '"36"', '"\\u00336"'):
            response = await raw(http, start + value + "}}")
            assert response.text.startswith('{"features":[' + value + ',"thirty-six",1.5,1,["a"]]')

    async def test_no_entry(self, http: httpx2.AsyncClient) -> None:
        response = await http.post("/feature_store", json=BODY | {"entries": {}})
        assert error_of(response, 400, 12)["message"] == "No entries found"
        response = await batch(http, [])
        assert (response.status_code, response.text) == (400, "No primary key is given.")

    async def test_unknown_names(self, http: httpx2.AsyncClient) -> None:
        answer = error_of(await single(http, {"id": 36, "idd": 1}), 400, 12)
        assert answer["reason"] == "Incorrect primary key."
        assert answer["message"] == "Provided primary key `idd` does not belong to the set of primary keys."

    @pytest.mark.parametrize("value", [1.5, "1.5", "x", "", True, [36], {"a": 36}, 2**63, "9" * 30])
    async def test_wrong_types(self, http: httpx2.AsyncClient, value: Any) -> None:
        answer = error_of(await single(http, {"id": value}), 415, 10)
        assert answer["reason"] == "Wrong data type."
        assert "'id'" in answer["message"]
        found = (await batch(http, [{"id": value}, {"id": 36}])).json()
        assert found["status"] == ["ERROR", "COMPLETE"]
        assert found["features"][0] is None

    async def test_null_refuses_the_whole_request(self, http: httpx2.AsyncClient) -> None:
        assert "`id`" in error_of(await single(http, {"id": None}), 400, 12)["message"]
        assert "entry 1" in error_of(await batch(http, [{"id": 36}, {"id": None}]), 400, 12)["message"]

    async def test_empty_entry_in_a_batch(self, http: httpx2.AsyncClient, view: Any) -> None:
        found = (await batch(http, [{}, {"id": 36}], options={"includeDetailedStatus": True})).json()
        assert found["status"] == ["ERROR", "COMPLETE"]
        assert [each[0]["httpStatus"] for each in found["detailedStatus"]] == [400, 200]
        assert {each[0]["featureGroupId"] for each in found["detailedStatus"]} == {1}

    async def test_incomplete_composite_keys(self, http: httpx2.AsyncClient, serving: Client) -> None:
        """A group whose key is not whole is not read; the others are."""
        two = await serving.group("two", {"id": "bigint", "day": "date", "z": "int"}, ["id", "day"])
        await serving.view(
            "w", [{"group": "g"}, {"group": "two", "on": [("id", "id")]}], [(0, "name"), (1, "day"), (1, "z")]
        )
        answer = (await single(http, {"id": 36}, featureViewName="w", options={"includeDetailedStatus": True})).json()
        assert answer["features"] == ["thirty-six", None, None]
        assert answer["status"] == "MISSING"
        assert answer["detailedStatus"] == [
            {"featureGroupId": 1, "httpStatus": 200}, {"featureGroupId": two.id, "httpStatus": 400},
        ]  # fmt: skip


class TestPassedFeatures:
    async def test_they_overwrite_and_change_no_status(self, http: httpx2.AsyncClient) -> None:
        passed = {"price": 9, "flag": True, "tags": [], "id": 1}
        assert (await single(http, passedFeatures=passed)).json()["features"] == [1, "thirty-six", 9, True, []]
        missing = (await single(http, {"id": 1}, passedFeatures={"name": "n"})).json()
        assert (missing["features"], missing["status"]) == ([1, "n", None, None, None], "MISSING")

    async def test_unchecked_by_default(self, http: httpx2.AsyncClient) -> None:
        found = await single(http, passedFeatures={"price": "text", "y": 5, "nothing": 1})
        assert found.json()["features"] == [36, "thirty-six", "text", True, ["a"]]

    @pytest.mark.parametrize(
        ("passed", "status", "code", "message"),
        [
            ({"nothing": 1}, 400, 11, "Feature `nothing` does not exist in the feature view"),
            ({"y": 1}, 400, 11, "Feature `y` does not exist in the feature view or it is a label"),
            ({"price": "1"}, 400, 10, "Got: 'STRING', expected: 'NUMBER' (offline type: double)"),
            ({"name": 1}, 400, 10, "Got: 'NUMBER', expected: 'STRING' (offline type: string)"),
            ({"flag": 1}, 400, 10, "Got: 'NUMBER', expected: 'BOOLEAN' (offline type: boolean)"),
            ({"tags": "a"}, 400, 10, "Got: 'STRING', expected: 'OTHER' (offline type: array<string>)"),
            ({"price": None}, 400, 13, "Passed feature `price` of entry 0 is null"),
        ],
    )
    async def test_checked_when_asked_for(
        self, http: httpx2.AsyncClient, passed: dict[str, Any], status: int, code: int, message: str
    ) -> None:
        answer = error_of(await single(http, passedFeatures=passed, options=VALIDATED), status, code)
        assert message in answer["message"]

    async def test_the_default_is_a_setting(self, stack: Stack, servers: Servers) -> None:
        settings = GatewaySettings(hopsworks_validate_passed_features=True)
        async with hopsworks_client(stack.channel, servers.admin_key, settings) as http:
            error_of(await single(http, passedFeatures={"nothing": 1}), 400, 11)
            off = {"validatePassedFeatures": False}
            assert (await single(http, passedFeatures={"nothing": 1}, options=off)).status_code == 200

    async def test_in_a_batch(self, http: httpx2.AsyncClient) -> None:
        entries = [{"id": 36}] * 3
        found = (await batch(http, entries, passedFeatures=[{"price": 2}, None, {}])).json()
        assert [row[2] for row in found["features"]] == [2, 1.5, 1.5]
        found = (await batch(http, entries, passedFeatures=[{"price": "2"}, None, {}], options=VALIDATED)).json()
        assert found["status"] == ["ERROR", "COMPLETE", "COMPLETE"]
        response = await batch(http, entries, passedFeatures=[{}])
        assert response.status_code == 400
        assert response.text.startswith("Length of passed feature does not equal")

    async def test_one_name_of_several_features(self, http: httpx2.AsyncClient, serving: Client) -> None:
        await serving.view("w", [{"group": "g"}, {"group": "g", "on": [("id", "id")]}], [(0, "price"), (1, "price")])
        found = (await single(http, featureViewName="w", passedFeatures={"price": 7}, options=VALIDATED)).json()
        assert found["features"] == [7, 7]


class TestBodies:
    @pytest.mark.parametrize(
        "change",
        [
            {"featureStoreName": None}, {"featureStoreName": ""}, {"featureStoreName": 5}, {"featureViewName": ""},
            {"featureViewVersion": "1"}, {"featureViewVersion": -1}, {"featureViewVersion": 1.5},
            {"featureViewVersion": True}, {"featureViewVersion": 2**40}, {"entries": None}, {"entries": [{"id": 1}]},
            {"entries": 5}, {"passedFeatures": []}, {"options": {"other": True}}, {"metadataOptions": {"other": True}},
            {"options": {"includeDetailedStatus": 1}}, {"metadataOptions": []},
        ],
    )  # fmt: skip
    async def test_fields_are_checked(self, http: httpx2.AsyncClient, change: dict[str, Any]) -> None:
        response = await http.post("/feature_store", json=BODY | {"entries": {"id": 36}} | change)
        assert response.status_code == 400
        assert response.text.startswith("Error:Field validation")

    async def test_missing_fields(self, http: httpx2.AsyncClient) -> None:
        for field in ("featureStoreName", "featureViewName", "featureViewVersion", "entries"):
            body = {name: value for name, value in (BODY | {"entries": {"id": 36}}).items() if name != field}
            response = await http.post("/feature_store", json=body)
            assert (response.status_code, field in response.text) == (400, True)

    @pytest.mark.parametrize("entries", [{"id": 36}, [5], [{"id": 36}, None], [[]]])
    async def test_batches_are_lists_of_objects(self, http: httpx2.AsyncClient, entries: Any) -> None:
        response = await batch(http, entries)
        assert response.status_code == 400
        assert response.text.startswith("Error:Field validation")

    @pytest.mark.parametrize(
        "body",
        [
            b"", b"{", b"null", b"[]", b'{"a":1}x', b"\xff\xfe", b'{"featureStoreName":"\xff"}', b"{" * 100_000,
            b'{"featureStoreName":"demo","featureViewName":"v","featureViewVersion":1,"entries":' + b'{"a":' * 50_000,
            b'{"featureStoreName":"demo","featureViewName":"v","featureViewVersion":1,"entries":{"id":'
            + b"[" * 5_000 + b"]" * 5_000 + b"}}",
            b'{"featureStoreName":"demo","featureViewName":"v","featureViewVersion":1,"entries":{"id":"\xff"}}',
            b'{"featureStoreName":"demo","featureViewName":"v","featureViewVersion":1,"entries":{"id":1e}}',
            b'{"featureStoreName":"demo","featureViewName":"v","featureViewVersion":1,"entries":{"id":"\x00"}}',
        ],
        ids=range(13),
    )  # fmt: skip
    async def test_what_is_no_json(self, http: httpx2.AsyncClient, body: bytes) -> None:
        for path in ("/feature_store", "/batch_feature_store"):
            response = await raw(http, body, path)
            assert response.status_code == 400
            assert response.text.startswith("Error:")
            assert response.headers["content-type"].startswith("text/plain")

    async def test_too_large(self, http: httpx2.AsyncClient) -> None:
        response = await raw(http, b" " * (4 * 1024 * 1024 + 1))
        assert response.status_code == 400
        assert "Request too large" in response.text

    async def test_too_many_entries(self, open_stack: Callable[..., Any], servers: Servers) -> None:
        async with open_stack(max_entries=3) as stack, hopsworks_client(stack.channel, servers.admin_key) as http:
            assert (await batch(http, [{"id": 36}] * 3)).status_code == 200
            response = await batch(http, [{"id": 36}] * 4)
            assert response.status_code == 400
            assert "at most 3" in response.text

    async def test_store_names_are_forgiving(self, http: httpx2.AsyncClient) -> None:
        for name in ("DEMO", "demo_featurestore", "Demo_FeatureStore"):
            assert (await single(http, featureStoreName=name)).status_code == 200

    async def test_unknown_members_are_ignored(self, http: httpx2.AsyncClient) -> None:
        found = await single(
            http, requestId="x", other={"a": [1]}, options=None, metadataOptions=None, passedFeatures=None
        )
        assert found.status_code == 200


class TestAnswers:
    async def test_labels_are_nowhere(self, http: httpx2.AsyncClient) -> None:
        found = (await single(http, metadataOptions={"featureName": True, "featureType": True})).json()
        assert len(found["features"]) == 5
        assert [each["featureName"] for each in found["metadata"]] == ["id", "name", "price", "flag", "tags"]

    async def test_one_metadata_option_leaves_the_other_null(self, http: httpx2.AsyncClient) -> None:
        found = (await single(http, metadataOptions={"featureType": True, "featureName": None})).json()
        assert found["metadata"][2] == {"featureName": None, "featureType": "double"}

    async def test_helpers_stay(self, http: httpx2.AsyncClient, serving: Client) -> None:
        helpers = [(0, "price", "inference_helper"), (0, "name"), (0, "flag", "training_helper")]
        await serving.view("w", [{"group": "g"}], helpers)
        assert (await single(http, featureViewName="w")).json()["features"] == [1.5, "thirty-six", 1]

    async def test_a_group_with_only_the_label_is_not_read(self, http: httpx2.AsyncClient, serving: Client) -> None:
        await serving.group("labels", {"id": "bigint", "late": "int"}, ["id"])
        joins = [{"group": "g"}, {"group": "labels", "on": [("id", "id")]}]
        await serving.view("w", joins, [(0, "name"), (1, "late", "label")])
        answer = (await single(http, featureViewName="w", options={"includeDetailedStatus": True})).json()
        assert answer["status"] == "COMPLETE"
        assert len(answer["detailedStatus"]) == 1

    async def test_a_view_of_labels_only(self, http: httpx2.AsyncClient, serving: Client) -> None:
        await serving.view("w", [{"group": "g"}], [(0, "y", "label")])
        found = (await batch(http, [{"id": 36}, {"wrong": 1}], featureViewName="w")).json()
        assert (found["features"], found["status"]) == ([[], None], ["COMPLETE", "ERROR"])
        assert (await single(http, featureViewName="w")).json()["features"] == []

    @pytest.mark.parametrize(
        ("change", "code"),
        [({"featureStoreName": "other"}, 2), ({"featureViewName": "other"}, 1), ({"featureViewVersion": 2}, 1)],
    )
    async def test_what_is_not_there(self, http: httpx2.AsyncClient, change: dict[str, Any], code: int) -> None:
        error_of(await single(http, **change), 400, code)
        error_of(await batch(http, [{"id": 1}], **change), 400, code)

    async def test_the_key_is_checked_before_anything_is_told(self, http: httpx2.AsyncClient) -> None:
        http.headers["X-API-KEY"] = "0123456789abcdef.wrong"
        response = await single(http, featureStoreName="other")
        assert response.status_code == 401
        assert "apikey" in response.text
        del http.headers["X-API-KEY"]
        assert (await single(http)).status_code == 401

    async def test_other_paths_and_methods(self, http: httpx2.AsyncClient) -> None:
        assert (await http.get("/feature_store")).status_code == 405
        assert (await http.get("/stat")).status_code == 404
        assert (await http.request("GET", "/ping", content=b"x")).status_code == 400


@pytest.fixture
async def gatherer(stack: Stack, servers: Servers) -> AsyncIterator[httpx2.AsyncClient]:
    async with hopsworks_client(stack.channel, servers.admin_key) as client:
        yield client


async def test_requests_at_the_same_moment_get_their_own_rows(gatherer: httpx2.AsyncClient, serving: Client) -> None:
    group = await serving.group("many", {"id": "bigint", "x": "bigint"}, ["id"])
    await serving.write(group, [{"id": number, "x": number * 7} for number in range(0, 1000, 2)])
    await serving.view("many", [{"group": "many"}], [(0, "id"), (0, "x")])
    asked = [
        batch(gatherer, [{"id": one} for one in range(start, start + 10)], featureViewName="many")
        for start in range(0, 1000, 10)
    ]
    answers = await asyncio.gather(*asked)
    rows = [row for answer in answers for row in answer.json()["features"]]
    assert rows == [[number, number * 7 if number % 2 == 0 else None] for number in range(1000)]
