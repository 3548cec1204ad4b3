"""Who uses whom, over gRPC and over REST, on the real database."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from chassis import errors
from chassis.postgres import Database
from protos.gen.feast.registry import RegistryServer_pb2 as rpc
from services.registry.queries import QUERIES
from tests.registry.conftest import Registry
from tests.registry.test_indexes import explain, filled  # noqa: F401 - a fixture
from tests.registry.test_objects import apply_view, service, view
from tests.registry.test_rest import get, http, rides  # noqa: F401 - fixtures

Pair = tuple[str, str]


def pairs(found: Any) -> list[Pair]:
    """Edges, of protobuf or of JSON, as `type:name` twice."""
    if found and isinstance(found[0], dict):
        ends = [(each["source"], each["target"]) for each in found]
        return [(f"{s['type']}:{s['name']}", f"{t['type']}:{t['name']}") for s, t in ends]
    return [(f"{e.source.type}:{e.source.name}", f"{e.target.type}:{e.target.name}") for e in found]


# The lineage of one view and one service of it.
DIRECT = {
    ("entity:driver", "featureView:stats"),
    ("feature:conv_rate", "featureView:stats"),
    ("feature:trips", "featureView:stats"),
    ("dataSource:stats_source", "featureView:stats"),
    ("featureView:stats", "featureService:model"),
}
INDIRECT = {
    ("entity:driver", "dataSource:stats_source"),
    ("entity:driver", "featureService:model"),
    ("feature:conv_rate", "featureService:model"),
    ("feature:trips", "featureService:model"),
    ("dataSource:stats_source", "featureService:model"),
}


@pytest.fixture
async def small(registry: Registry) -> None:
    """Projects `a` and `b`, each with one view and one service of it."""
    for project in ("a", "b"):
        await apply_view(registry, view("stats"), project)
        made = rpc.ApplyFeatureServiceRequest(feature_service=service("model", "stats"), project=project)
        await registry(registry.feast.ApplyFeatureService, made)


async def lineage(registry: Registry, **fields: Any) -> Any:
    return await registry(registry.feast.GetRegistryLineage, rpc.GetRegistryLineageRequest(project="a", **fields))


@pytest.mark.usefixtures("small")
class TestOverGrpc:
    async def test_a_projects_lineage_is_its_own_and_has_no_repetition(self, registry: Registry) -> None:
        found = await lineage(registry)
        assert (len(found.relationships), set(pairs(found.relationships))) == (5, DIRECT)
        assert (len(found.indirect_relationships), set(pairs(found.indirect_relationships))) == (5, INDIRECT)
        assert found.relationships_pagination == rpc.PaginationMetadata(total_count=5, total_pages=1)

    @pytest.mark.parametrize(
        ("fields", "direct", "indirect"),
        [
            ({"filter_object_type": "entity"}, 1, 2),
            ({"filter_object_name": "model"}, 1, 4),
            ({"filter_object_type": "entity", "filter_object_name": "driver"}, 1, 2),
            ({"filter_object_type": "feature", "filter_object_name": "driver"}, 0, 0),
            ({"filter_object_type": "nothing"}, 0, 0),
        ],
    )
    async def test_filters_work_alone_and_together(
        self, registry: Registry, fields: dict[str, str], direct: int, indirect: int
    ) -> None:
        found = await lineage(registry, **fields)
        assert (len(found.relationships), len(found.indirect_relationships)) == (direct, indirect)

    async def test_pages_neither_repeat_nor_skip(self, registry: Registry) -> None:
        seen: list[Pair] = []
        for page in (1, 2, 3):
            found = await lineage(registry, pagination=rpc.PaginationParams(page=page, limit=2))
            seen += pairs(found.relationships)
            assert found.relationships_pagination.has_next == (page < 3)
        assert (len(seen), set(seen)) == (5, DIRECT)
        beyond = await lineage(registry, pagination=rpc.PaginationParams(page=4, limit=2))
        assert (len(beyond.relationships), beyond.relationships_pagination.total_count) == (0, 5)

    async def test_one_object(self, registry: Registry) -> None:
        request = rpc.GetObjectRelationshipsRequest(project="a", object_type="entity", object_name="driver")
        found = await registry(registry.feast.GetObjectRelationships, request)
        assert pairs(found.relationships) == [("entity:driver", "featureView:stats")]
        request.include_indirect = True
        found = await registry(registry.feast.GetObjectRelationships, request)
        assert set(pairs(found.relationships)) == {edge for edge in DIRECT | INDIRECT if edge[0] == "entity:driver"}
        request.pagination.page, request.pagination.limit = 2, 2
        found = await registry(registry.feast.GetObjectRelationships, request)
        assert (len(found.relationships), found.pagination.total_count) == (1, 3)

    async def test_a_type_without_lineage_is_refused(self, registry: Registry) -> None:
        request = rpc.GetObjectRelationshipsRequest(project="a", object_type="table", object_name="x")
        with pytest.raises(errors.InvalidArgument):
            await registry(registry.feast.GetObjectRelationships, request)

    async def test_deleted_objects_leave_no_lineage(self, registry: Registry) -> None:
        request = rpc.DeleteFeatureServiceRequest(name="model", project="a")
        await registry(registry.feast.DeleteFeatureService, request)
        found = await lineage(registry)
        assert pairs(found.indirect_relationships) == [("entity:driver", "dataSource:stats_source")]


@pytest.mark.usefixtures("rides")
async def test_the_documents_example(http: httpx2.AsyncClient) -> None:  # noqa: F811 - a fixture
    found = await get(http, "/lineage/objects/feature/conv_rate?project=rides")
    assert pairs(found["relationships"]) == [
        ("feature:conv_rate", "featureView:fresh"),
        ("feature:conv_rate", "featureView:stats"),
    ]
    assert (found["pagination"]["totalCount"], found["pagination"]["totalPages"]) == (2, 1)
    wider = await get(http, "/lineage/objects/feature/conv_rate?project=rides&include_indirect=true&page=1&limit=3")
    assert (len(wider["relationships"]), wider["pagination"]["total"]) == (3, 4)
    empty = await get(http, "/lineage/objects/feature/x?project=rides")
    assert (empty["relationships"], empty["pagination"]["total"]) == ([], 0)
    refused = await get(http, "/lineage/objects/table/x?project=rides", 422)
    assert "object_type" in refused["detail"]


@pytest.mark.usefixtures("small")
async def test_lineage_over_rest(http: httpx2.AsyncClient) -> None:  # noqa: F811 - a fixture
    found = await get(http, "/lineage/registry?project=a")
    assert set(pairs(found["relationships"])) == DIRECT
    assert set(pairs(found["indirect_relationships"])) == INDIRECT
    assert found["relationships_pagination"]["totalCount"] == found["indirect_relationships_pagination"]["total"] == 5
    everything = await get(http, "/lineage/registry/all?filter_object_type=entity")
    assert [each["project"] for each in everything["relationships"]] == ["a", "b"]
    assert [each["project"] for each in everything["indirect_relationships"]] == ["a", "a", "b", "b"]
    await get(http, "/lineage/registry", 422)


async def test_a_projects_lineage_is_read_from_its_index(filled: Database) -> None:  # noqa: F811 - a fixture
    direct = await explain(filled, f"{QUERIES.direct_edges}\nORDER BY 1, 2, 3, 4, 5 LIMIT 10", ["p1"], "", "")
    assert "edge_by_project" in direct
    assert "Seq Scan" not in direct
    # A whole project is a quarter of these edges; no edge of another project is sorted or joined.
    indirect = await explain(filled, f"{QUERIES.indirect_edges}\nORDER BY 1, 2, 3, 4, 5 LIMIT 10", ["p1"], "", "")
    assert "edge_by_project" in indirect
