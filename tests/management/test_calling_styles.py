"""How calls arrive: where parameters stand, which methods are taken, how they are signed, how faults are shown."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import httpx2
import orjson
import pytest

from chassis import errors
from gateway.dialects.pai.faults import render
from gateway.exchange import Exchange
from tests.conftest import Servers
from tests.management.conftest import INSTANCE, Pai, catalogue
from tests.signer import Signer

ROOT = "/api/PaiFeatureStore/2023-06-21"
SDK = f"/api/v1/instances/{INSTANCE}"


async def test_parameters_anywhere(caller: Pai) -> None:
    datasource = {"Name": "d", "WorkspaceId": "1", "Type": "Hologres", "Uri": "i/db"}
    forms: list[dict[str, Any]] = [
        {"params": {"InstanceId": INSTANCE}, "json": {**datasource, "Name": "in the body"}},
        {"json": {"InstanceId": INSTANCE, "body": {**datasource, "Name": "nested"}}},
        {"params": {"InstanceId": INSTANCE, **datasource, "Name": "in the query"}},
        {
            "params": {"InstanceId": "wrong", "Name": "x"},
            "json": {"InstanceId": INSTANCE, **datasource, "Name": "wins"},
        },
    ]
    for form in forms:
        response = await caller.raw("POST", f"{ROOT}/CreateDatasource", **form)
        assert response.status_code == 200, response.text
    listed = (await caller.answer("ListDatasources", Order="ASC", Unknown=[{"is": "ignored"}]))["Datasources"]
    assert [each["Name"] for each in listed] == ["in the body", "nested", "in the query", "wins"]


@pytest.mark.parametrize("spelling", ['Ids=["1","3"]', "Ids=1&Ids=3", "Ids=1,3", "Ids.1=1&Ids.2=3", "Ids=[1, 3]"])
async def test_lists_in_a_query(caller: Pai, spelling: str) -> None:
    ids = await catalogue(caller)
    for title in ("b", "c"):
        await caller.made("FeatureEntity", Name=title, JoinId="k", ProjectId=ids["project"])
    query = spelling.replace("Ids", "FeatureEntityIds")
    response = await caller.raw("GET", f"{ROOT}/ListFeatureEntities?InstanceId={INSTANCE}&Order=ASC&{query}")
    assert [each["FeatureEntityId"] for each in response.json()["FeatureEntities"]] == ["1", "3"]


async def test_methods_and_unknown_operations(caller: Pai) -> None:
    for method, path, status, code in (
        ("GET", f"{ROOT}/ListInstances", 200, None),
        ("POST", f"{ROOT}/ListInstances", 200, None),
        ("DELETE", f"{ROOT}/ListInstances", 405, "UnsupportedHTTPMethod"),
        ("GET", f"{ROOT}/DeleteProject", 405, "UnsupportedHTTPMethod"),
        ("POST", f"{ROOT}/CreateLLMConfig", 404, "InvalidApi.NotFound"),
        ("GET", f"{ROOT}/ExportEverything", 404, "InvalidApi.NotFound"),
        ("GET", "/api/PaiFeatureStore/2020-01-01/ListInstances", 404, "InvalidApi.NotFound"),
        ("POST", f"{SDK}/llmconfigs", 404, "InvalidApi.NotFound"),
        ("GET", "/api/v1/serviceidentityroles/x", 404, "InvalidApi.NotFound"),
        ("DELETE", f"{SDK}/tasks/1", 405, "UnsupportedHTTPMethod"),
        ("GET", "/api/v1/instances", 200, None),
    ):
        response = await caller.raw(method, path)
        answer = response.json()
        assert (response.status_code, answer.get("Code")) == (status, code), (method, path, answer)
        assert answer["RequestId"]


async def test_bad_bodies(caller: Pai) -> None:
    for content in (b"{", b"[]", b"null", b'"x"', b"\xff"):
        response = await caller.raw("POST", f"{ROOT}/ListInstances", content=content)
        assert (response.status_code, response.json()["Code"]) == (400, "InvalidParameter")
    large = await caller.raw("POST", f"{ROOT}/ListInstances", content=b" " * (4 * 1024 * 1024 + 1))
    assert (large.status_code, large.json()["Code"]) == (400, "InvalidParameter")
    wrong: list[dict[str, Any]] = [{"PageSize": True}, {"PageSize": 1.5}, {"PageSize": "many"}, {"Status": {"a": 1}}]
    for body in wrong:
        message = await caller.refused("ListInstances", 400, "InvalidParameter", **body)
        assert next(iter(body)) in message


async def test_names_in_paths_may_hold_anything(caller: Pai) -> None:
    ids = await catalogue(caller)
    title = "a/b c?d%2F"
    await caller.made("FeatureEntity", Name=title, JoinId="k", ProjectId=ids["project"])
    path = f"{SDK}/projects/{ids['project']}/featureentities/"
    response = await caller.raw("GET", path + quote(title, safe=""))
    assert response.json()["Name"] == title
    deeper = await caller.raw("GET", path + "a/b")
    assert (deeper.status_code, deeper.json()["Code"]) == (404, "InvalidApi.NotFound")


async def test_join_ids_are_asked_for_on_the_sdk_route_only(caller: Pai) -> None:
    ids = await catalogue(caller)
    view = await caller.made(
        "FeatureView", Name="v", ProjectId=ids["project"], Type="Batch", WriteMethod="Custom", SyncOnlineTable=True
    )
    assert (await caller.answer("ListFeatureViewOnlineFeatures", FeatureViewId=view))["OnlineFeatures"] == []
    response = await caller.raw("GET", f"{SDK}/featureviews/{view}/onlinefeatures")
    assert (response.status_code, response.json()["Code"]) == (400, "InvalidParameter")


async def test_bearer_token_header(caller: Pai) -> None:
    headers = {"x-acs-bearer-token": caller.key, "x-acs-signature-type": "BEARERTOKEN"}
    response = await caller.client.get("/api/v1/instances", headers=headers)
    assert response.status_code == 200
    odd = await caller.client.get("/api/v1/instances", headers={"x-acs-bearer-token": "k\u00e9y".encode("latin-1")})  # type: ignore[dict-item]
    assert (odd.status_code, odd.json()["Code"]) == (403, "UnauthorizedOperation")


async def test_signatures(app: Any, servers: Servers) -> None:
    signer = Signer(*servers.access_key)
    body = orjson.dumps({"Name": "d", "WorkspaceId": "1", "Type": "Hologres", "Uri": "i/db"})
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://test") as client:

        async def send(headers: dict[str, str], content: bytes = body) -> tuple[int, str | None]:
            response = await client.post(f"{SDK}/datasources", headers=headers, content=content)
            return response.status_code, response.json().get("Code")

        good = signer.headers("POST", f"{SDK}/datasources", {}, body)
        assert await send(good) == (200, None)
        assert await send(good) == (400, "SignatureNonceUsed")
        fresh = signer.headers("POST", f"{SDK}/datasources", {}, body)
        assert await send(fresh, body.replace(b'"d"', b'"e"')) == (400, "SignatureDoesNotMatch")
        old = (datetime.now(UTC) - timedelta(minutes=16)).strftime("%Y-%m-%dT%H:%M:%SZ")
        stale = signer.headers("POST", f"{SDK}/datasources", {}, body, **{"x-acs-date": old})
        assert await send(stale) == (400, "InvalidTimeStamp.Expired")
        unsigned = signer.headers("POST", f"{SDK}/datasources", {}, body, unsigned="x-acs-date")
        assert await send(unsigned) == (400, "IncompleteSignature")
        assert await send({**fresh, "x-acs-signature-nonce": "other"}) == (400, "SignatureDoesNotMatch")
        elsewhere = signer.headers("POST", f"{SDK}/projects", {}, body)
        assert await send(elsewhere) == (400, "SignatureDoesNotMatch")
        wrong = Signer(servers.access_key[0], "wrong").headers("POST", f"{SDK}/datasources", {}, body)
        assert await send(wrong) == (400, "SignatureDoesNotMatch")
        unknown = Signer("LTAInobody", "x").headers("POST", f"{SDK}/datasources", {}, body)
        assert await send(unknown) == (404, "InvalidAccessKeyId.NotFound")
        rsa = {**fresh, "authorization": fresh["authorization"].replace("HMAC-SHA256", "RSA-SHA256")}
        assert await send(rsa) == (400, "SignatureTypeNotSupported")
        # A space in the query is signed as %20 and sent as +.
        query = {"Name": "a b&c", "PageSize": "5"}
        headers = signer.headers("GET", f"{SDK}/datasources", query, b"")
        response = await client.get(f"{SDK}/datasources?Name=a+b%26c&PageSize=5", headers=headers)
        assert (response.status_code, response.json().get("TotalCount")) == (200, 0)


def test_throttling_says_when_to_come_back() -> None:
    exchange = Exchange("GET", "/", b"/", b"", {}, {}, b"", "ID")
    answer = render(errors.ResourceExhausted("slow down", retry_after_ms=250), exchange)
    assert (answer.status, answer.headers["x-acs-retry-after"]) == (429, "250")
    assert orjson.loads(answer.body) == {"RequestId": "ID", "Code": "Throttling", "Message": "slow down"}


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.Unavailable("away"), 503, "ServiceUnavailable"),
        (errors.Internal("oops"), 500, "InternalError"),
        (errors.AlreadyExists("twice", reason="DEFINITION_CONFLICT"), 400, "ResourceAlreadyExists"),
        (errors.NotFound("gone", reason="FEATURE_GROUP_NOT_FOUND"), 404, "ResourceNotFound"),
    ],
)
def test_other_faults(error: errors.TriglotError, status: int, code: str) -> None:
    answer = render(error, Exchange("GET", "/", b"/", b"", {}, {}, b"", "ID"))
    assert (answer.status, orjson.loads(answer.body)["Code"]) == (status, code)
