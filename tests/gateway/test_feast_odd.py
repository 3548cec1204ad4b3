"""Whatever a caller sends to Feast's routes, it is the caller's error and never the server's."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import pytest

from chassis.settings import Settings
from tests.cases.world import World, open_world
from tests.conftest import Servers

TEXTS = ("\0", "a\0b", "\ud800", "x" * 5000, "", " ", "é😀", "a/b", "..", "%00", "\\", "'", '"', "\n")
PATHS = (
    "/entities?project={}",
    "/entities/{}?project=p",
    "/entities/all?sort_by={}",
    "/features?project=p&name={}",
    "/feature_views?project=p&updated_since={}",
    "/saved_datasets?project=p&namespace={}",
    "/saved_datasets/jobs/{}",
    "/lineage/registry?project=p&filter_object_name={}",
    "/lineage/objects/entity/{}?project=p",
    "/search?query={}",
    "/search?query=x&projects={}",
    "/search?query=&tags={}:x",
    "/materialization_jobs?project={}",
    "/compute_engines?project={}",
    "/metrics/popular_tags?project={}",
    "/metrics/resource_counts?project={}",
)
RAW = (
    b"",
    b"[]",
    b"null",
    b"\xff",
    b"[" * 100_000,
    b'{"name":"n","project":"p","unknown":' + b"[" * 5_000,
    b'{"name":"n","project":"p","value_type":1e400}',
    b'{"name":"n","project":"p","value_type":99999999999999999999}',
    b'{"name":"n","project":"p","type":-1,"value_type":true}',
)
WRITTEN = ("/entities", "/data_sources", "/feature_views", "/feature_services", "/permissions", "/saved_datasets")


def bodies(text: str) -> list[tuple[str, Any]]:
    named = {"name": "n", "project": "p"}
    policy = {"role_based_policy": {"roles": [text]}}
    return [
        ("/entities", {"name": text, "project": "p"}),
        ("/entities", {"name": "n", "project": text}),
        ("/entities", {**named, "description": text, "owner": text, "join_key": text, "tags": {text: text}}),
        ("/data_sources", {**named, "type": 1, "timestamp_field": text, "file_options": {"uri": text}}),
        ("/data_sources", {**named, "type": 6, "custom_options": {"config": text, "class_name": text}}),
        ("/feature_views", {**named, "entities": [text], "features": [{"name": text, "description": text}]}),
        ("/feature_views", {**named, "entities": ["e"], "batch_source": text}),
        ("/feature_services", {**named, "features": [{"feature_view_name": text, "feature_names": [text]}]}),
        ("/permissions", {**named, "actions": ["DELETE"], "name_patterns": [text], "policy": policy}),
        ("/permissions", {**named, "actions": [text], "policy": {}, "required_tags": {text: text}}),
        ("/saved_datasets", {**named, "features": [text], "storage_path": text, "description": text}),
        ("/saved_datasets", {**named, "storage_path": f"a{text}", "storage_type": "couchbase"}),
    ]


@pytest.fixture
async def world(settings: Settings, servers: Servers) -> AsyncIterator[World]:
    async with open_world(settings, servers) as opened:
        yield opened


async def test_odd_requests_are_never_the_servers_fault(world: World) -> None:
    shown = {"Authorization": f"Bearer {world.api_key}", "Content-Type": "application/json"}
    asked: list[tuple[str, str, bytes]] = [("POST", path, raw) for path in WRITTEN for raw in RAW]
    for text in TEXTS:
        odd = quote(text.encode("utf-8", "surrogatepass"), safe="")
        asked += [("GET", path.replace("{}", odd), b"") for path in PATHS]
        asked += [("POST", path, json.dumps(body).encode()) for path, body in bodies(text)]
        asked += [("DELETE", f"{path}/{odd}?project={odd}", b"") for path in WRITTEN]
    for method, path, content in asked:
        answer = await world.http.request(method, path, headers=shown, content=content)
        assert answer.status_code < 500 and ".py" not in answer.text, (method, path[:100], content[:100], answer.text)
        if answer.status_code == 422:
            assert set(answer.json()) == {"status_code", "detail", "error_type"}
