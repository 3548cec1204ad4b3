"""The OpenAPI document of Feast's routes is valid, complete, and true: real answers of every operation fit it."""

from __future__ import annotations

import copy
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import httpx2
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from chassis.inprocess import InProcessChannel
from chassis.settings import Settings
from gateway.app import create_app
from gateway.dialects import feast
from gateway.dialects.feast.openapi import shown_path
from gateway.dialects.feast.routes import PREFIXES
from gateway.settings import GatewaySettings
from tests.cases.world import World, open_world
from tests.conftest import Servers

FEAST = "feast.registry.RegistryServer"
SOURCE = {
    "name": "trips",
    "type": "BATCH_FILE",
    "timestampField": "ts",
    "fileOptions": {"uri": "trips", "fileFormat": {"parquetFormat": {}}},
    "tags": {"team": "rides"},
}
FEATURES = [{"name": "rate", "valueType": "FLOAT", "description": "share", "tags": {"a": "b"}}]
VIEW = {"spec": {"name": "stats", "entities": ["driver"], "features": FEATURES, "batchSource": SOURCE, "ttl": "1.5s"}}
MOMENTS = {"startDate": "2026-01-01T00:00:00Z", "endDate": "2026-01-02T00:00:00.5Z"}
ON_DEMAND = {
    "name": "scaled",
    "features": [{"name": "twice", "valueType": "DOUBLE_LIST"}],
    "sources": {
        "stats": {"featureViewProjection": {"featureViewName": "stats", "featureColumns": FEATURES}},
        "now": {"requestDataSource": {"name": "now", "type": "REQUEST_SOURCE"}},
    },
    "featureTransformation": {"userDefinedFunction": {"name": "f", "body": "AAE=", "bodyText": "def f(): ..."}},
}
STREAM = {
    "name": "fresh",
    "entities": ["driver"],
    "features": [{"name": "now", "valueType": "UNIX_TIMESTAMP"}],
    "batchSource": SOURCE,
    "streamSource": {"name": "kafka", "type": "STREAM_KAFKA", "kafkaOptions": {"topic": "t"}},
}
LABELS = {
    "name": "verdicts",
    "entities": ["driver"],
    "entityColumns": [{"name": "driver_id", "valueType": "INT64"}],
    "features": FEATURES,
    "source": {"name": "pushed", "type": "PUSH_SOURCE", "batchSource": SOURCE},
    "tags": {"feast.io/label-values:rate": "good, bad", "feast.io/field-role:rate": "label"},
}
POLICY = {"roleBasedPolicy": {"roles": ["reader"]}}
# One object of every kind, with fields of every type.
WRITTEN: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("ApplyEntity", {"entity": {"spec": {"name": "driver", "valueType": "INT64", "tags": {"team": "rides"}}}}),
    ("ApplyDataSource", {"dataSource": SOURCE}),
    ("ApplyFeatureView", {"featureView": VIEW}),
    ("ApplyMaterialization", {"featureView": VIEW, **MOMENTS}),
    ("ApplyFeatureView", {"onDemandFeatureView": {"spec": ON_DEMAND}}),
    ("ApplyFeatureView", {"streamFeatureView": {"spec": STREAM}}),
    ("ApplyFeatureView", {"labelView": {"spec": LABELS}}),
    (
        "ApplyFeatureService",
        {"featureService": {"spec": {"name": "model", "features": [{"featureViewName": "stats"}]}}},
    ),
    (
        "ApplySavedDataset",
        {
            "savedDataset": {
                "spec": {
                    "name": "training",
                    "features": ["stats:rate"],
                    "columns": [{"name": "rate", "nullable": True}],
                    "storage": {"customStorage": {"configuration": "e30="}},
                }
            }
        },
    ),
    (
        "ApplyPermission",
        {"permission": {"spec": {"name": "readers", "types": ["ENTITY"], "actions": ["DESCRIBE"], "policy": POLICY}}},
    ),
)
NAMED = {"project": "demo", "name": "new"}
# What is asked of every operation, but for those that need nothing but a project.
QUERIES = {
    "search": ["query=rides", "query=&projects=demo&projects=gone", "query=rate"],
    "metrics.resource_counts": ["", "project=demo"],
    "features.all": ["limit=1"],
}
NAMES = {
    "entities": "driver",
    "data_sources": "trips",
    "features": "stats/rate",
    "labels": "verdicts/rate",
    "label_views": "verdicts",
    "feature_services": "model",
    "saved_datasets": "training",
    "permissions": "readers",
    "projects": "demo",
}
PATHS = {
    **{f"{resource}.get": [f"/{resource}/{name}"] for resource, name in NAMES.items()},
    "feature_views.get": [f"/feature_views/{name}" for name in ("stats", "scaled", "fresh")],
    "labels.editing": ["/annotation-config/verdicts"],
    "lineage.object": ["/lineage/objects/entity/driver"],
    "saved_datasets.job": ["/saved_datasets/jobs/1"],
    "saved_datasets.data": ["/saved_datasets/data/training"],
    "monitoring.get": ["/monitoring/metrics/features"],
    "monitoring.post": ["/monitoring/compute"],
    "entities.delete": ["/entities/new"],
    "data_sources.delete": ["/data_sources/new"],
    "feature_views.delete": ["/feature_views/new"],
    "feature_services.delete": ["/feature_services/new"],
    "permissions.delete": ["/permissions/new"],
    "saved_datasets.delete": ["/saved_datasets/new"],
}
BODIES = {
    "entities.apply": {**NAMED, "tags": {"a": "b"}, "owner": None},
    "data_sources.apply": {**NAMED, "type": 5, "redshift_options": {"table": "t", "schema_": "s"}},
    "feature_views.apply": {
        **NAMED,
        "entities": ["driver"],
        "features": [{"name": "f", "value_type": 3}],
        "batch_source": "trips",
        "ttl_seconds": 60,
    },
    "feature_services.apply": {
        **NAMED,
        "features": [{"feature_view_name": "stats", "feature_names": ["rate"]}],
    },
    "permissions.apply": {
        **NAMED,
        "types": ["ENTITY"],
        "actions": ["READ_ONLINE"],
        "policy": {"role_based_policy": {"roles": ["r"]}},
    },
    "labels.records": {"feature_view": "verdicts", "limit": 200},
    "labels.quality": {"feature_view": "verdicts"},
    "saved_datasets.apply": {**NAMED, "storage_path": "a.b.c", "storage_type": "couchbase"},
    "saved_datasets.create": {
        **NAMED,
        "features": ["stats:rate"],
        "entity_keys": ["driver"],
        "entity_values": "1",
        "storage_path": "p",
    },
}
# What Triglot does not do; a refusal is the only answer there is.
REFUSED = {
    "saved_datasets.create": 409,
    "saved_datasets.data": 409,
    "saved_datasets.job": 404,
    "monitoring.get": 503,
    "monitoring.post": 503,
}


@pytest.fixture
async def world(settings: Settings, servers: Servers) -> AsyncIterator[World]:
    async with open_world(settings, servers) as opened:
        for method, message in WRITTEN:
            await opened.rpc(f"{FEAST}/{method}", {"project": "demo", **message})
        yield opened


@pytest.fixture
async def document(world: World) -> Any:
    answer = await world.http.get("/openapi.json")
    assert answer.status_code == 200
    return answer.json()


def app(settings: GatewaySettings) -> tuple[Any, Any]:
    dialect = feast.dialect(InProcessChannel([]), settings)
    return dialect, create_app([dialect], settings)


async def test_the_document_is_valid_and_has_every_route_and_no_other() -> None:
    dialect, application = app(GatewaySettings())
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=application), base_url="http://t") as http:
        shown = (await http.get("/openapi.json")).json()
        assert (await http.get("/api/v1/openapi.json")).json() == shown
    OpenAPIV31SpecValidator(shown).validate()
    described = {(method, path) for path, methods in shown["paths"].items() for method in methods}
    for prefix in PREFIXES:
        served = {
            (method.lower(), shown_path(row.path.removeprefix(prefix)))
            for row in dialect.rows
            for method in row.methods
            if not row.operation.startswith("pages.") and row.path.startswith("/api/v1") == (prefix == "/api/v1")
        }
        assert served == described
    assert {server["url"] for server in shown["servers"]} == {"/api/v1", "/"}


async def test_answers_of_every_operation_are_as_described(world: World, document: Any) -> None:
    headers = {"Authorization": f"Bearer {world.api_key}"}
    for method, path, operation in in_order(document):
        name = operation["operationId"]
        for url in urls(path, operation):
            body = BODIES.get(name)
            if body is not None:
                validate(document, operation["requestBody"]["content"]["application/json"]["schema"], body)
            answer = await world.http.request(method, url, headers=headers, json=body)
            good = [int(status) for status in operation["responses"] if status[0] == "2"]
            assert [answer.status_code] == ([REFUSED[name]] if name in REFUSED else good), (name, url, answer.text)
            check(document, operation, answer)


async def test_refusals_of_every_operation_are_as_described(world: World, document: Any) -> None:
    headers = {"Authorization": f"Bearer {world.api_key}"}
    for method, path, operation in in_order(document):
        url = re.sub(r"\{\w+\}", "x", path)
        answer = await world.http.request(method, url)
        assert answer.status_code == 401
        check(document, operation, answer)
        required = [each["name"] for each in operation["parameters"] if each["in"] == "query" and each["required"]]
        if required or "requestBody" in operation:
            answer = await world.http.request(method, url, headers=headers)
            assert answer.status_code == 422, (method, url, answer.text)
            assert not re.search(r"\.py\b|\bline \d|/\w+/\w+/", answer.text), answer.text
            check(document, operation, answer)


def in_order(document: Any) -> Iterator[tuple[str, str, Any]]:
    """Every operation: what is written before what is read, and what deletes at the end."""
    order = {"post": 0, "get": 1, "delete": 2}
    found = [(method, path, each) for path, methods in document["paths"].items() for method, each in methods.items()]
    yield from sorted(found, key=lambda each: order[each[0]])


def urls(path: str, operation: Any) -> Iterator[str]:
    """Addresses to ask for, with relationships where there are any."""
    names = {each["name"] for each in operation["parameters"]}
    query = "&".join(
        text
        for text, name in (("project=demo", "project"), ("include_relationships=true", "include_relationships"))
        if name in names
    )
    for place in PATHS.get(operation["operationId"], [path]):
        assert "{" not in place, f"{operation['operationId']} needs a path"
        for asked in QUERIES.get(operation["operationId"], [query]):
            yield f"{place}?{asked}"


def check(document: Any, operation: Any, answer: httpx2.Response) -> None:
    described = operation["responses"].get(str(answer.status_code))
    assert described is not None, (operation["operationId"], answer.status_code)
    if "content" not in described:
        assert answer.content == b""
        return
    media_type = answer.headers["content-type"]
    validate(document, described["content"][media_type]["schema"], answer.json())


def validate(document: Any, schema: Any, value: Any) -> None:
    """Nothing may be there that is not described."""
    whole = closed({"components": document["components"], **schema})
    checker = Draft202012Validator.FORMAT_CHECKER
    assert "date-time" in checker.checkers
    errors = list(Draft202012Validator(whole, format_checker=checker).iter_errors(value))
    assert not errors, (errors[0].message[:500], list(errors[0].absolute_path), schema)


def closed(schema: Any) -> Any:
    """The schema, taking no other properties than those it names."""
    schema = copy.copy(schema)
    if isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict):
            schema.setdefault("additionalProperties", False)
        return {key: closed(value) for key, value in schema.items()}
    return [closed(each) for each in schema] if isinstance(schema, list) else schema


@pytest.mark.parametrize("page", ["/", "/docs", "/api/v1/", "/api/v1/docs"])
async def test_pages_ask_no_other_host_for_anything(page: str) -> None:
    _, application = app(GatewaySettings())
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=application), base_url="http://t") as http:
        shown = await http.get(page)
        assert shown.status_code == 200
        assert shown.headers["content-type"] == "text/html; charset=utf-8"
        policy = dict(each.strip().split(" ", 1) for each in shown.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["connect-src"] == "'self'"
        assert "http" not in shown.headers["content-security-policy"]
        addresses = re.findall(r'(?:src|href)="([^"]*)"', shown.text)
        assert len(addresses) >= 3
        assert "<script>" not in shown.text
        for address in addresses:
            if address == "data:,":
                continue
            assert re.fullmatch(r"pages/[\w.-]+", address)
            file = await http.get(page.rpartition("/")[0] + "/" + address)
            assert file.status_code == 200, address
            assert file.headers["content-type"].startswith("text/")
        assert (await http.get("/pages/nothing.js")).json() == {"detail": "Not Found"}


async def test_pages_can_be_switched_off() -> None:
    _, application = app(GatewaySettings(feast_pages=False))
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=application), base_url="http://t") as http:
        for path in ("/", "/docs", "/openapi.json", "/pages/swagger.js"):
            answer = await http.get(path)
            assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})
