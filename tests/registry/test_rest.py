"""Feast's REST dialect through the gateway's application, on the real registry."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from chassis.inprocess import InProcessChannel
from chassis.rpc import Service
from gateway.app import create_app
from gateway.dialects import feast
from gateway.settings import GatewaySettings
from protos.gen.feast.registry import RegistryServer_pb2 as rpc
from tests.conftest import Servers
from tests.registry.conftest import Registry
from tests.registry.test_objects import apply_entity, apply_view, service, source, view

PAGING = {"page", "limit", "total", "totalCount", "totalPages", "hasNext", "hasPrevious"}


@pytest.fixture
async def http(services: list[Service], servers: Servers) -> AsyncIterator[httpx2.AsyncClient]:
    settings = GatewaySettings()
    app = create_app([feast.dialect(InProcessChannel(services), settings)], settings)
    headers = {"Authorization": f"Bearer {servers.admin_key}"}
    async with httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app=app), base_url="http://feast/api/v1", headers=headers
    ) as client:
        yield client


async def get(http: httpx2.AsyncClient, path: str, status: int = 200) -> Any:
    answer = await http.get(path)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    return answer.json()


def names(listed: dict[str, Any]) -> list[str]:
    (objects,) = (value for key, value in listed.items() if key not in ("pagination", "relationships"))
    return [each["name"] for each in objects]


@pytest.fixture
async def rides(registry: Registry) -> None:
    """Project `rides`: an entity, two sources, three views, two services. Project `other`: an entity."""
    await apply_entity(registry, "rides", description="d", tags={"team": "ml"})
    await apply_entity(registry, "other", "rider")
    for name in ("stats_source", "fresh_source"):
        await registry(
            registry.feast.ApplyDataSource, rpc.ApplyDataSourceRequest(data_source=source(name), project="rides")
        )
    tagged = view("stats", "conv_rate", "trips")
    tagged.spec.tags["env"] = "prod"
    await apply_view(registry, tagged, "rides")
    await apply_view(registry, view("fresh", "conv_rate", origin="fresh_source"), "rides")
    await apply_view(registry, view("Alone", "age", entities=("rider",)), "rides")
    for name, views in (("model", ("stats", "fresh")), ("small", ("fresh",))):
        request = rpc.ApplyFeatureServiceRequest(feature_service=service(name, *views), project="rides")
        await registry(registry.feast.ApplyFeatureService, request)


@pytest.mark.usefixtures("rides")
class TestRides:
    async def test_an_entity_has_its_keys_at_top_level_and_under_its_kind(self, http: httpx2.AsyncClient) -> None:
        found = await get(http, "/entities/driver?project=rides")
        shown = found.pop("entity")
        assert "Entity(" in found.pop("featureDefinition")
        assert [each["name"] for each in found.pop("dataSources")] == ["fresh_source", "stats_source"]
        assert found.pop("dataSourcesTotal") == 2
        assert found == shown
        assert (found["name"], found["project"]) == ("driver", "rides")
        assert found["spec"] == {
            "name": "driver",
            "project": "rides",
            "description": "d",
            "joinKey": "driver_id",
            "tags": {"team": "ml"},
        }
        assert set(found["meta"]) == {"createdTimestamp", "lastUpdatedTimestamp"}

    @pytest.mark.parametrize(
        ("path", "key"),
        [
            ("/data_sources/stats_source", "dataSource"),
            ("/feature_views/stats", "featureView"),
            ("/feature_services/model", "featureService"),
            ("/features/stats/trips", "feature"),
        ],
    )
    async def test_every_kind_has(self, http: httpx2.AsyncClient, path: str, key: str) -> None:
        found = await get(http, f"{path}?project=rides&allow_cache=false")
        shown = found.pop(key)
        assert "from feast import" in found.pop("featureDefinition")
        assert found == shown
        assert (found["name"], found["project"]) == (path.rpartition("/")[2], "rides")

    async def test_a_project_has_no_project_but_itself(self, http: httpx2.AsyncClient) -> None:
        found = await get(http, "/projects/rides")
        assert found.pop("project") == found
        assert found["spec"] == {"name": "rides"}
        assert names(await get(http, "/projects")) == ["other", "rides"]

    async def test_a_list_without_paging_is_whole(self, http: httpx2.AsyncClient) -> None:
        listed = await get(http, "/feature_views?project=rides")
        assert names(listed) == ["Alone", "fresh", "stats"]
        assert listed["featureViews"][0]["type"] == "featureView"
        assert listed["pagination"] == {
            "page": 1,
            "limit": 3,
            "total": 3,
            "totalCount": 3,
            "totalPages": 1,
            "hasNext": False,
            "hasPrevious": False,
        }

    @pytest.mark.parametrize(
        ("query", "expected", "neighbours"),
        [
            ("page=1&limit=2", ["Alone", "fresh"], (True, False)),
            ("page=2&limit=2", ["stats"], (False, True)),
            ("limit=1", ["Alone"], (True, False)),
            ("page=1", ["Alone", "fresh", "stats"], (False, False)),
            ("page=9&limit=2", [], (False, True)),
            ("sort_by=name&sort_order=desc", ["stats", "fresh", "Alone"], (False, False)),
            ("page=1&limit=1&sort_by=created_timestamp", ["stats"], (True, False)),
            ("page=1&limit=1&sort_by=meta.createdTimestamp&sort_order=desc", ["Alone"], (True, False)),
            ("sort_by=no.such.thing", ["Alone", "fresh", "stats"], (False, False)),
        ],
    )
    async def test_pages(
        self, http: httpx2.AsyncClient, query: str, expected: list[str], neighbours: tuple[bool, bool]
    ) -> None:
        listed = await get(http, f"/feature_views?project=rides&{query}")
        assert names(listed) == expected
        pagination = listed["pagination"]
        assert set(pagination) == PAGING
        assert (pagination["total"], pagination["totalCount"]) == (3, 3)
        assert (pagination["hasNext"], pagination["hasPrevious"]) == neighbours

    @pytest.mark.parametrize(
        ("path", "expected"),
        [
            ("/feature_views?entity=rider", ["Alone"]),
            ("/feature_views?feature=conv_rate", ["fresh", "stats"]),
            ("/feature_views?feature_service=small", ["fresh"]),
            ("/feature_views?data_source=stats_source", ["Alone", "stats"]),
            ("/feature_views?entity=driver&feature=trips", ["stats"]),
            ("/feature_views?entity=nobody", []),
            ("/feature_views?tags=env:prod", ["stats"]),
            ("/feature_views?tags=env%3Dprod", ["stats"]),
            ("/feature_views?tags=env:prod&tags=team:ml", []),
            ("/feature_views?updated_since=2020-01-01", ["Alone", "fresh", "stats"]),
            ("/feature_views?updated_since=2999-01-01T00:00:00Z", []),
            ("/entities?", ["driver"]),
            ("/entities?tags=team:ml", ["driver"]),
            ("/entities?tags=team:other", []),
            ("/data_sources?sort_by=name&sort_order=desc", ["stats_source", "fresh_source"]),
            ("/feature_services?feature_view=stats", ["model"]),
            ("/features?feature_view=stats", ["conv_rate", "trips"]),
            ("/features?name=conv_rate", ["conv_rate", "conv_rate"]),
            ("/features?sort_by=name", ["age", "conv_rate", "conv_rate", "trips"]),
            ("/saved_datasets?", []),
            ("/permissions?", []),
        ],
    )
    async def test_filters(self, http: httpx2.AsyncClient, path: str, expected: list[str]) -> None:
        listed = await get(http, f"{path}&project=rides")
        assert names(listed) == expected
        assert listed["pagination"]["total"] == len(expected)

    async def test_all_projects(self, http: httpx2.AsyncClient) -> None:
        listed = await get(http, "/entities/all")
        assert [(each["project"], each["name"]) for each in listed["entities"]] == [
            ("other", "rider"),
            ("rides", "driver"),
        ]
        assert (listed["pagination"]["page"], listed["pagination"]["limit"]) == (1, 50)
        assert names(await get(http, "/entities/all?sort_by=name&page=1&limit=1")) == ["driver"]
        assert names(await get(http, "/data_sources/all")) == ["fresh_source", "stats_source"]
        assert names(await get(http, "/feature_views/all?limit=1")) == ["Alone"]
        assert names(await get(http, "/feature_services/all")) == ["model", "small"]
        assert names(await get(http, "/saved_datasets/all")) == []

    async def test_features_of_all_projects_show_both_spellings_of_paging(self, http: httpx2.AsyncClient) -> None:
        listed = await get(http, "/features/all?limit=3")
        assert [(each["featureView"], each["name"]) for each in listed["features"]] == [
            ("Alone", "age"),
            ("fresh", "conv_rate"),
            ("stats", "conv_rate"),
        ]
        pagination = listed["pagination"]
        assert set(pagination) == PAGING | {"total_count", "total_pages", "has_next", "has_previous"}
        assert (pagination["total_count"], pagination["total_pages"], pagination["has_next"]) == (4, 2, True)

    async def test_a_feature_is_as_documented(self, http: httpx2.AsyncClient) -> None:
        listed = await get(http, "/features?project=rides&feature_view=fresh")
        assert listed["features"] == [
            {"name": "conv_rate", "project": "rides", "featureView": "fresh", "type": "Float32", "kind": "feature"}
        ]

    async def test_relationships_of_an_entity(self, http: httpx2.AsyncClient) -> None:
        found = await get(http, "/entities/driver?project=rides&include_relationships=true")
        shown = [tuple(f"{each[end]['type']}:{each[end]['name']}" for end in each) for each in found["relationships"]]
        assert shown == [
            ("entity:driver", "featureView:fresh"),
            ("entity:driver", "featureView:stats"),
            ("entity:driver", "dataSource:fresh_source"),
            ("entity:driver", "dataSource:stats_source"),
            ("entity:driver", "featureService:model"),
            ("entity:driver", "featureService:small"),
        ]

    async def test_relationships_of_a_list_are_keyed_by_name(self, http: httpx2.AsyncClient) -> None:
        listed = await get(http, "/features?project=rides&include_relationships=true&page=1&limit=2")
        assert names(listed) == ["age", "conv_rate"]
        assert listed["relationships"]["age"] == [
            {"source": {"type": "feature", "name": "age"}, "target": {"type": "featureView", "name": "Alone"}}
        ]
        targets = [each["target"]["name"] for each in listed["relationships"]["conv_rate"]]
        assert targets == ["fresh", "stats", "model", "small"]
        listed = await get(http, "/feature_services?project=rides&include_relationships=true")
        sources = [each["source"]["name"] for each in listed["relationships"]["small"]]
        assert sources == ["fresh", "fresh_source", "driver", "conv_rate"]
        listed = await get(http, "/data_sources/all?include_relationships=1")
        targets = [each["target"]["name"] for each in listed["relationships"]["fresh_source"]]
        # Its view; itself, from the view's entity; the services that select from the view.
        assert targets == ["fresh", "fresh_source", "model", "small"]

    async def test_the_prefix_is_optional(self, http: httpx2.AsyncClient) -> None:
        with_prefix = await get(http, "/entities?project=rides")
        assert await get(http, "http://feast/entities?project=rides") == with_prefix

    async def test_a_change_is_seen_at_once(self, http: httpx2.AsyncClient, registry: Registry) -> None:
        await apply_view(registry, view("stats", "other"), "rides")
        assert names(await get(http, "/features?project=rides&feature_view=stats")) == ["other"]
        assert names(await get(http, "/feature_views?project=rides&feature=trips")) == []
        await registry(registry.feast.DeleteFeatureView, rpc.DeleteFeatureViewRequest(name="stats", project="rides"))
        found = await get(http, "/entities/driver?project=rides&include_relationships=true")
        assert "stats" not in str(found["relationships"])


async def test_names_may_hold_slashes(http: httpx2.AsyncClient, registry: Registry) -> None:
    await registry(
        registry.feast.ApplyDataSource, rpc.ApplyDataSourceRequest(data_source=source("a/b ü.parquet"), project="p")
    )
    for path in ("/data_sources/a%2Fb%20%C3%BC.parquet", "/data_sources/a/b ü.parquet"):
        assert (await get(http, f"{path}?project=p"))["name"] == "a/b ü.parquet"


NOT_FOUND = {
    "/entities/user_id": "Entity 'user_id' does not exist in project 'demo_project'",
    "/data_sources/x": "Data source 'x' does not exist in project 'demo_project'",
    "/feature_views/x": "Feature view 'x' does not exist in project 'demo_project'",
    "/feature_services/x": "Feature service 'x' does not exist in project 'demo_project'",
    "/saved_datasets/x": "Saved dataset 'x' does not exist in project 'demo_project'",
    "/permissions/x": "Permission 'x' does not exist in project 'demo_project'",
    "/projects/x": "Project 'x' does not exist",
    "/features/v/x": "Feature x not found in feature view v in project demo_project",
}


@pytest.mark.parametrize("path", NOT_FOUND)
async def test_what_is_missing_answers_the_documented_404(http: httpx2.AsyncClient, path: str) -> None:
    assert await get(http, f"{path}?project=demo_project", 404) == {
        "status_code": 404,
        "detail": NOT_FOUND[path],
        "error_type": "FeastObjectNotFoundException",
    }


@pytest.mark.parametrize(
    ("path", "names_the_field"),
    [
        ("/entities", "project"),
        ("/entities?project=", "project"),
        ("/entities/driver", "project"),
        ("/features", "project"),
        ("/entities?project=p&page=0", "page"),
        ("/entities?project=p&page=x", "page"),
        ("/entities?project=p&page=99999999999999999999", "page"),
        ("/entities?project=p&limit=101", "limit"),
        ("/entities/all?limit=0", "limit"),
        ("/entities?project=p&sort_order=up", "sort_order"),
        ("/entities?project=p&include_relationships=maybe", "include_relationships"),
        ("/entities?project=p&allow_cache=maybe", "allow_cache"),
        ("/entities?project=p&tags=nothing", "tags"),
    ],
)
async def test_bad_parameters_answer_422(http: httpx2.AsyncClient, path: str, names_the_field: str) -> None:
    answer = await get(http, path, 422)
    assert (answer["status_code"], answer["error_type"]) == (422, "RequestValidationError")
    assert f"'{names_the_field}'" in answer["detail"]
    assert set(answer) == {"status_code", "detail", "error_type"}


async def test_a_bad_time_answers_400(http: httpx2.AsyncClient) -> None:
    answer = await get(http, "/feature_views?project=p&updated_since=yesterday", 400)
    assert (answer["status_code"], answer["error_type"]) == (400, "HTTPException")


@pytest.mark.parametrize("shown", ["", "Bearer nonsense", "Bearer 0123456789abcdef.wrong", "Basic YTpi", "Bearer ü"])
async def test_without_a_good_key_401(http: httpx2.AsyncClient, shown: str) -> None:
    answer = await http.get("/entities?project=p", headers={"Authorization": shown.encode("latin-1")})
    assert answer.status_code == 401
    assert answer.json() == {
        "status_code": 401,
        "detail": "Invalid or expired access token",
        "error_type": "HTTPException",
    }


async def test_unknown_paths_and_methods(http: httpx2.AsyncClient) -> None:
    for path in ("/nothing", "http://feast/nothing", "http://feast/api/v2/entities", "/entities/?project=p"):
        assert await get(http, path, 404) == {"detail": "Not Found"}
    answer = await http.put("/entities?project=p")
    assert (answer.status_code, answer.json()) == (405, {"detail": "Method Not Allowed"})


async def test_an_unknown_project_is_empty(http: httpx2.AsyncClient) -> None:
    listed = await get(http, "/entities?project=nobody")
    assert listed["entities"] == []
    assert listed["pagination"] == {
        "page": 1,
        "limit": 0,
        "total": 0,
        "totalCount": 0,
        "totalPages": 0,
        "hasNext": False,
        "hasPrevious": False,
    }
