"""Every call of Feast's REST document, as it is printed, on objects of the names that it uses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from chassis.settings import Settings
from tests.cases.world import World, open_world
from tests.conftest import Servers
from tests.gateway.test_feast_openapi import FEAST, check

CALLS = """
/data_sources/all?include_relationships=true
/data_sources/all?page=1&limit=10&sort_by=name
/data_sources/user_data?project=my_project
/data_sources/user_data?project=my_project&include_relationships=true
/data_sources?project=my_project
/data_sources?project=my_project&include_relationships=true&page=1&limit=10
/entities/all?include_relationships=true
/entities/all?page=1&limit=10&sort_by=name
/entities/user_id?project=my_project
/entities/user_id?project=my_project&include_relationships=true
/entities?project=my_project
/entities?project=my_project&include_relationships=true
/entities?project=my_project&page=1&limit=10&sort_by=name
/feature_services/all?include_relationships=true
/feature_services/all?page=1&limit=10&sort_by=name
/feature_services/recommendation_service?project=my_project
/feature_services/recommendation_service?project=my_project&include_relationships=true
/feature_services?project=my_project
/feature_services?project=my_project&feature_view=user_profile
/feature_services?project=my_project&include_relationships=true&page=1&limit=10
/feature_views/all?include_relationships=true
/feature_views/all?page=1&limit=10&sort_by=name
/feature_views/user_features?project=my_project
/feature_views/user_features?project=my_project&include_relationships=true
/feature_views?project=my_project
/feature_views?project=my_project&data_source=user_profile_source
/feature_views?project=my_project&entity=user
/feature_views?project=my_project&entity=user&feature=age
/feature_views?project=my_project&feature=age
/feature_views?project=my_project&feature_service=user_service
/feature_views?project=my_project&include_relationships=true&page=1&limit=5&sort_by=name
/features/all?include_relationships=true
/features/all?page=1&limit=5&sort_by=name
/features/driver_hourly_stats/conv_rate?project=my_project
/features/driver_hourly_stats/conv_rate?project=my_project&include_relationships=true
/features?project=my_project
/features?project=my_project&include_relationships=true&page=1&limit=5
/lineage/complete/all
/lineage/complete?project=my_project
/lineage/objects/feature/conv_rate?project=my_project&include_indirect=true
/lineage/registry/all
/lineage/registry?project=my_project
/metrics/popular_tags
/metrics/popular_tags?project=my_project
/metrics/popular_tags?project=my_project&limit=3
/metrics/recently_visited?project=my_project
/metrics/recently_visited?project=my_project&object=entities
/metrics/recently_visited?project=my_project&page=1&limit=10
/metrics/recently_visited?project=my_project&sort_by=timestamp&sort_order=desc
/metrics/resource_counts
/metrics/resource_counts?project=my_project
/permissions/read_features?project=my_project
/permissions/read_features?project=my_project&include_relationships=true
/permissions?project=my_project
/permissions?project=my_project&include_relationships=true&page=1&limit=10
/projects
/projects/my_project
/projects?page=1&limit=10&sort_by=name
/saved_datasets/all?include_relationships=true
/saved_datasets/all?page=1&limit=10&sort_by=name
/saved_datasets/training_data?project=my_project
/saved_datasets/training_data?project=my_project&include_relationships=true
/saved_datasets?project=my_project
/saved_datasets?project=my_project&include_relationships=true&page=1&limit=10
/search?query=&projects=my_project&page=1&limit=20
/search?query=conv_rate&page=1&limit=10&sort_by=name&sort_order=asc
/search?query=driver&projects=ride_sharing&projects=analytics
/search?query=features&tags=environment:production&tags=team:ml
/search?query=user
"""


_PAGE = "page limit sort_by sort_order"
# Parameters that the document names for each endpoint, with the common ones that it has for all lists.
PARAMETERS = {
    "/entities": f"project include_relationships allow_cache tags {_PAGE}",
    "/entities/user_id": "project include_relationships allow_cache",
    "/entities/all": f"allow_cache include_relationships {_PAGE}",
    "/data_sources": f"project include_relationships allow_cache tags {_PAGE}",
    "/data_sources/user_data": "project include_relationships allow_cache",
    "/data_sources/all": f"allow_cache include_relationships {_PAGE}",
    "/feature_views": "project include_relationships allow_cache tags entity feature feature_service data_source "
    + _PAGE,
    "/feature_views/user_features": "project include_relationships allow_cache",
    "/feature_views/all": f"allow_cache include_relationships {_PAGE}",
    "/features": f"project feature_view name include_relationships allow_cache tags {_PAGE}",
    "/features/user_features/age": "project include_relationships allow_cache",
    "/features/all": f"include_relationships allow_cache {_PAGE}",
    "/feature_services": f"project include_relationships allow_cache tags feature_view {_PAGE}",
    "/feature_services/user_service": "project include_relationships allow_cache",
    "/feature_services/all": f"allow_cache include_relationships {_PAGE}",
    "/lineage/registry": "project allow_cache filter_object_type filter_object_name page limit",
    "/lineage/objects/feature/age": "project include_indirect allow_cache page limit",
    "/lineage/complete": "project allow_cache page limit",
    "/lineage/registry/all": "allow_cache filter_object_type filter_object_name",
    "/lineage/complete/all": "allow_cache",
    "/permissions": f"project include_relationships allow_cache {_PAGE}",
    "/permissions/read_features": "project include_relationships allow_cache",
    "/projects": f"allow_cache {_PAGE}",
    "/projects/my_project": "allow_cache",
    "/saved_datasets": f"project include_relationships allow_cache tags {_PAGE}",
    "/saved_datasets/training_data": "project include_relationships allow_cache",
    "/saved_datasets/all": f"allow_cache include_relationships {_PAGE}",
    "/metrics/resource_counts": "project",
    "/metrics/recently_visited": f"project object {_PAGE}",
    "/metrics/popular_tags": "project limit allow_cache",
    "/search": f"query projects allow_cache tags {_PAGE}",
}
GIVEN = {
    **{"project": "my_project", "projects": "my_project", "allow_cache": "false", "query": "user", "name": "age"},
    **{"include_relationships": "true", "include_indirect": "true", "page": "1", "limit": "5", "tags": "team:ml"},
    **{"sort_by": "name", "sort_order": "desc", "entity": "user", "feature": "age", "feature_service": "user_service"},
    **{"data_source": "user_data", "feature_view": "user_features", "object": "entities"},
    **{"filter_object_type": "featureView", "filter_object_name": "user_features"},
}


def view(name: str, source: str, *features: str) -> Mapping[str, Any]:
    return {
        "featureView": {
            "spec": {
                "name": name,
                "entities": ["user", "user_id"],
                "features": [{"name": feature, "valueType": "FLOAT"} for feature in features],
                "batchSource": {"name": source, "type": "BATCH_FILE", "fileOptions": {"uri": source}},
                "tags": {"environment": "production", "team": "ml"},
            }
        }
    }


def service(name: str, *views: str) -> Mapping[str, Any]:
    return {"featureService": {"spec": {"name": name, "features": [{"featureViewName": each} for each in views]}}}


WRITTEN: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("ApplyEntity", {"entity": {"spec": {"name": "user_id"}}}),
    ("ApplyDataSource", {"dataSource": {"name": "user_data", "type": "BATCH_FILE", "fileOptions": {"uri": "data"}}}),
    ("ApplyFeatureView", view("user_features", "user_data", "age")),
    ("ApplyFeatureView", view("user_profile", "user_profile_source", "age")),
    ("ApplyFeatureView", view("driver_hourly_stats", "driver_stats", "conv_rate", "acc_rate")),
    ("ApplyFeatureView", view("driver_hourly_stats_fresh", "driver_stats", "conv_rate")),
    ("ApplyFeatureService", service("recommendation_service", "user_profile")),
    ("ApplyFeatureService", service("user_service", "user_features")),
    ("ApplyFeatureService", service("driver_activity_v1", "driver_hourly_stats", "driver_hourly_stats_fresh")),
    ("ApplyPermission", {"permission": {"spec": {"name": "read_features", "actions": ["DESCRIBE"]}}}),
    ("ApplySavedDataset", {"savedDataset": {"spec": {"name": "training_data", "features": ["user_features:age"]}}}),
)
# What filters must find; every other list finds something.
FOUND = {
    "/feature_views?project=my_project&entity=user&feature=age": ["user_features", "user_profile"],
    "/feature_views?project=my_project&data_source=user_profile_source": ["user_profile"],
    "/feature_views?project=my_project&feature_service=user_service": ["user_features"],
    "/feature_services?project=my_project&feature_view=user_profile": ["recommendation_service"],
    "/search?query=driver&projects=ride_sharing&projects=analytics": [],
}


@pytest.fixture
async def world(settings: Settings, servers: Servers) -> AsyncIterator[World]:
    async with open_world(settings, servers) as opened:
        for method, message in WRITTEN:
            await opened.rpc(f"{FEAST}/{method}", {"project": "my_project", **message})
        yield opened


async def test_every_call_of_the_document(world: World) -> None:
    headers = {"Authorization": f"Bearer {world.api_key}"}
    document = (await world.http.get("/openapi.json")).json()
    for call in CALLS.split():
        answer = await world.http.get(f"/api/v1{call}", headers=headers)
        assert answer.status_code == 200, (call, answer.text)
        check(document, operation(document, call), answer)
        lists = [value for value in answer.json().values() if isinstance(value, list)]
        if call in FOUND:
            assert [each["name"] for each in lists[-1] if isinstance(each, dict)] == FOUND[call], call
        elif "object=" not in call and lists:
            assert any(lists), (call, answer.text)


async def test_every_parameter_of_the_document(world: World) -> None:
    headers = {"Authorization": f"Bearer {world.api_key}"}
    document = (await world.http.get("/openapi.json")).json()
    assert len(PARAMETERS) == 31
    for path, named in PARAMETERS.items():
        given = {name: GIVEN[name] for name in named.split()}
        if path == "/metrics/recently_visited":
            given["sort_by"] = "timestamp"
        described = operation(document, path)
        assert given.keys() <= {each["name"] for each in described["parameters"] if each["in"] == "query"}, path
        answer = await world.http.get(f"/api/v1{path}", params=given, headers=headers)
        assert answer.status_code == 200, (path, answer.text)
        check(document, described, answer)


def operation(document: Any, call: str) -> Any:
    """The operation that a call asks for: of the paths that fit, the one with the fewest parameters."""
    asked = call.partition("?")[0].split("/")

    def fits(path: str) -> bool:
        parts = path.split("/")
        pairs = zip(parts, asked, strict=False)
        return len(parts) == len(asked) and all(part.startswith("{") or part == given for part, given in pairs)

    path = min(filter(fits, document["paths"]), key=lambda path: path.count("{"))
    return document["paths"][path]["get"]
