"""Counts and popular tags over REST, on the real database."""

from __future__ import annotations

import httpx2
import pytest

from chassis.postgres import Database
from protos.gen.feast.registry import RegistryServer_pb2 as feast
from services.registry.queries import QUERIES
from tests.registry.conftest import Registry
from tests.registry.test_indexes import explain, filled  # noqa: F401 - a fixture
from tests.registry.test_objects import apply_entity, apply_view, view
from tests.registry.test_rest import get, http, rides  # noqa: F401 - fixtures

NOTHING = dict.fromkeys(("entities", "dataSources", "savedDatasets", "features", "featureViews", "featureServices"), 0)
RIDES = NOTHING | {"entities": 1, "dataSources": 2, "features": 4, "featureViews": 3, "featureServices": 2}


@pytest.mark.usefixtures("rides")
class TestCounts:
    async def test_of_one_project(self, http: httpx2.AsyncClient) -> None:  # noqa: F811 - a fixture
        found = await get(http, "/metrics/resource_counts?project=rides")
        assert (found["project"], found["counts"]) == ("rides", RIDES)
        assert found["featureServices"] == [{"name": name, "project": "rides"} for name in ("small", "model")]
        assert [(each["name"], each["featureCount"]) for each in found["featureViews"]] == [
            ("Alone", 1),
            ("fresh", 1),
            ("stats", 2),
        ]
        assert found["featureViews"][0]["type"] == "featureView"
        assert (found["featureViewsTotal"], found["featureServicesTotal"], found["projectsTotal"]) == (3, 2, 1)
        assert found["projects"] == [{"name": "rides"}]
        assert found["registryLastUpdated"].endswith("Z")

    async def test_of_all_projects(self, http: httpx2.AsyncClient) -> None:  # noqa: F811 - a fixture
        found = await get(http, "/metrics/resource_counts")
        assert found["perProject"] == {"other": NOTHING | {"entities": 1}, "rides": RIDES}
        assert found["total"] == RIDES | {"entities": 2}
        assert {each["name"] for each in found["projects"]} == {"rides", "other"}

    async def test_of_an_unknown_project(self, http: httpx2.AsyncClient) -> None:  # noqa: F811 - a fixture
        assert (await get(http, "/metrics/resource_counts?project=x"))["counts"] == NOTHING

    async def test_follow_every_write(self, http: httpx2.AsyncClient, registry: Registry) -> None:  # noqa: F811
        await apply_view(registry, view("stats", "conv_rate"), "rides")
        await registry(registry.feast.DeleteFeatureView, feast.DeleteFeatureViewRequest(name="fresh", project="rides"))
        found = await get(http, "/metrics/resource_counts?project=rides")
        assert found["counts"] == RIDES | {"features": 2, "featureViews": 2}
        await registry(registry.feast.DeleteProject, feast.DeleteProjectRequest(name="rides"))
        assert set((await get(http, "/metrics/resource_counts"))["perProject"]) == {"other"}
        await apply_entity(registry, "rides")
        again = await get(http, "/metrics/resource_counts?project=rides")
        assert again["counts"] == NOTHING | {"entities": 1}


async def test_popular_tags(http: httpx2.AsyncClient, registry: Registry) -> None:  # noqa: F811 - a fixture
    for project, name, tags in (
        ("a", "user_features", {"environment": "production", "team": "ml"}),
        ("a", "order_features", {"environment": "production"}),
        ("b", "plain", {}),
        ("b", "beta", {"zone": "eu"}),
    ):
        made = view(name)
        made.spec.tags.update(tags)
        await apply_view(registry, made, project)
    found = await get(http, "/metrics/popular_tags?project=a")
    assert found == {
        "popular_tags": [
            {
                "tag_key": "environment",
                "tag_value": "production",
                "feature_views": [
                    {"name": "order_features", "project": "a"},
                    {"name": "user_features", "project": "a"},
                ],
                "total_feature_views": 2,
            },
            {
                "tag_key": "team",
                "tag_value": "ml",
                "feature_views": [{"name": "user_features", "project": "a"}],
                "total_feature_views": 1,
            },
        ],
        "metadata": {"totalFeatureViews": 2, "totalTags": 2, "limit": 4},
    }
    everywhere = await get(http, "/metrics/popular_tags?limit=2")
    assert [tag["tag_key"] for tag in everywhere["popular_tags"]] == ["environment", "zone"]
    assert everywhere["metadata"] == {"totalFeatureViews": 4, "totalTags": 3, "limit": 2}
    await get(http, "/metrics/popular_tags?limit=0", 422)
    assert (await get(http, "/metrics/popular_tags?project=x"))["popular_tags"] == []


async def test_counts_read_as_much_as_they_show(filled: Database) -> None:  # noqa: F811 - a fixture
    kinds = ["featureView", "featureService"]
    plan = await explain(filled, QUERIES.newest_anywhere.rstrip(";"), kinds, 100)
    assert "object_newest" in plan
    assert "Seq Scan" not in plan
    plan = await explain(filled, QUERIES.newest_in_project.rstrip(";"), kinds, 100, "p1")
    assert "object_updated" in plan
    assert "Seq Scan" not in plan
    counted = await filled.fetch("SELECT project, kind, count(*) AS objects FROM registry.object GROUP BY 1, 2")
    tallied = await filled.fetch("SELECT project, kind, objects FROM registry.tally")
    assert sorted(map(tuple, counted)) == sorted(map(tuple, tallied))
