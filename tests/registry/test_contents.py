"""Whole projects: their contents and lineage, the registry as one message, and the details of one object."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.empty_pb2 import Empty

from chassis import calls, errors
from chassis.inprocess import InProcessChannel
from chassis.postgres import Database
from chassis.principals import Principal
from chassis.settings import Settings
from protos.gen.feast.core.OnDemandFeatureView_pb2 import OnDemandFeatureView
from protos.gen.feast.core.Permission_pb2 import Permission
from protos.gen.feast.core.Project_pb2 import Project
from protos.gen.feast.registry import RegistryServer_pb2 as rpc
from protos.gen.feast.registry.RegistryServer_pb2_grpc import RegistryServerStub
from protos.gen.triglot.registry.v1 import object_pb2
from protos.gen.triglot.registry.v1 import registry_service_pb2 as own
from protos.gen.triglot.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from services.registry import kinds, listing, rendered
from services.registry.listing import Listing
from services.registry.process import open_service
from services.registry.queries import QUERIES
from services.registry.settings import RegistrySettings
from tests.registry.conftest import Registry
from tests.registry.test_indexes import explain, filled  # noqa: F401 - a fixture
from tests.registry.test_lineage import DIRECT, INDIRECT, pairs, small  # noqa: F401 - a fixture
from tests.registry.test_objects import applies, apply_entity, apply_view, view
from tests.registry.test_rest import rides  # noqa: F401 - a fixture

PERMISSION = """
INSERT INTO registry.object
    (project, kind, family, name, sort_name, type, description, owner, tags, created, updated, proto, rendered)
VALUES ('p1', 'permission', 'permission', 'p', 'p', 'permission', '', '', '{}', now(), now(), '', '{}')
"""
SOURCES = (
    """
INSERT INTO registry.object
    (project, kind, family, name, sort_name, type, description, owner, tags, created, updated, proto, rendered)
SELECT 'p' || n % 4 + 1, 'dataSource', 'dataSource', 's' || n, 's' || n, 'BATCH_FILE', '', '', '{}', now(),
    now() - n * interval '1 minute', '', '{}'
FROM generate_series(1, 4000) n
""",
    """
INSERT INTO registry.entity_source (project, entity, source, views)
SELECT 'p' || n % 4 + 1, 'entity' || n % 10, 's' || n, 1 FROM generate_series(1, 4000) n
""",
    "ANALYZE registry.object",
    "ANALYZE registry.entity_source",
)
LISTS = ("entities", "data_sources", "feature_views", "label_views", "feature_services", "features", "labels")


async def contents(registry: Registry, **fields: Any) -> Any:
    """What a project holds: in one message, and the same in parts."""
    reply = await registry(registry.rendered.GetProjectContents, own.GetProjectContentsRequest(**fields))
    found: own.ProjectContents = reply.contents
    assert await streamed(registry, **fields) == {
        field: (list(getattr(found, field).objects), getattr(found, field).total)
        for field in (*LISTS, "saved_datasets")
    } | {
        field: (json.loads(getattr(found, field)), getattr(found, f"{field}_total"))
        for field in ("relationships", "indirect_relationships")
    }
    return found


async def streamed(registry: Registry, **fields: Any) -> dict[str, tuple[list[Any], int]]:
    """Each list of StreamProjectContents, and how many it says there are."""
    lists: dict[str, tuple[list[Any], int]] = {}
    request = own.StreamProjectContentsRequest(**fields)
    async for part in calls.stream(registry.rendered.StreamProjectContents, request, metadata=registry.metadata):
        field = own.ContentsList.Name(part.list).removeprefix("CONTENTS_LIST_").lower()
        elements, total = lists.get(field, ([], -1))
        assert total == -1, "a list ends with its total"
        assert field == list(lists)[-1] if field in lists else True, "one list after the other"
        assert len(part.elements) <= 200
        if "relationships" in field:
            elements += json.loads(b"[" + b",".join(part.elements) + b"]")
        else:
            elements += part.elements
        lists[field] = elements, part.total if part.HasField("total") else -1
    return lists


def names(listed: Any) -> list[str]:
    return [json.loads(each)["name"] for each in listed.objects]


@pytest.mark.usefixtures("rides")
async def test_a_project_in_lists_by_kind(registry: Registry) -> None:
    found = await contents(registry, project="rides")
    assert {field: names(getattr(found, field)) for field in LISTS} == {
        "entities": ["driver"],
        "data_sources": ["fresh_source", "stats_source"],
        "feature_views": ["Alone", "fresh", "stats"],
        "label_views": [],
        "feature_services": ["model", "small"],
        "features": ["age", "conv_rate", "conv_rate", "trips"],
        "labels": [],
    }
    assert (found.features.total, found.relationships_total) == (4, len(json.loads(found.relationships)))


@pytest.mark.usefixtures("small")
async def test_its_lineage_is_that_of_the_lineage_rpc(registry: Registry) -> None:
    found = await contents(registry, project="a")
    assert set(pairs(json.loads(found.relationships))) == DIRECT
    assert set(pairs(json.loads(found.indirect_relationships))) == INDIRECT
    listed = await registry(registry.rendered.ListRelationships, own.ListRelationshipsRequest(project="a"))
    assert pairs(json.loads(found.relationships)) == pairs([each.relationship for each in listed.relationships])


@pytest.mark.usefixtures("small")
async def test_pages_page_each_list(registry: Registry) -> None:
    seen = []
    for page in (1, 2, 3):
        found = await contents(registry, project="a", page=page, limit=2)
        seen += pairs(json.loads(found.relationships))
        assert (found.relationships_total, found.indirect_relationships_total, found.features.total) == (5, 5, 2)
        assert len(found.features.objects) == (2 if page == 1 else 0)
    assert (len(seen), set(seen)) == (5, DIRECT)
    assert json.loads((await contents(registry, project="a", page=9, limit=2)).relationships) == []


async def test_names_are_quoted_in_lineage(registry: Registry) -> None:
    name = 'qu"ote\\ü\n'
    await apply_view(registry, view(name, "a"), "a")
    found = await contents(registry, project="a")
    assert {each["target"]["name"] for each in json.loads(found.relationships)} == {name}


async def test_parts_show_one_moment_however_long_they_are_read(registry: Registry) -> None:
    for number in range(450):
        await apply_entity(registry, "many", f"e{number:03}")
    request = own.StreamProjectContentsRequest(project="many")
    parts = calls.stream(registry.rendered.StreamProjectContents, request, metadata=registry.metadata)
    first = await anext(parts)
    await registry(registry.feast.DeleteProject, rpc.DeleteProjectRequest(name="many"))
    rest = [part async for part in parts]
    found = [
        json.loads(element)["name"] for part in (first, *rest) if part.list == first.list for element in part.elements
    ]
    assert found == [f"e{number:03}" for number in range(450)]
    assert len((await contents(registry, project="many")).entities.objects) == 0


async def test_an_unknown_project_is_empty_and_none_is_refused(registry: Registry) -> None:
    found = await contents(registry, project="x")
    assert (found.project, found.relationships, found.entities.total) == ("x", b"[]", 0)
    with pytest.raises(errors.InvalidArgument):
        await contents(registry)
    with pytest.raises(errors.InvalidArgument):
        await contents(registry, project="x", page=1, limit=1001)


@pytest.mark.usefixtures("rides")
async def test_all_projects_but_protected_ones(registry: Registry) -> None:
    hidden = Project()
    hidden.spec.name = "hidden"
    hidden.spec.tags["feast.dev/protected-project"] = "true"
    await registry(registry.feast.ApplyProject, rpc.ApplyProjectRequest(project=hidden))
    await apply_entity(registry, "hidden", "secret")
    found = await registry(registry.rendered.ListProjectContents, own.ListProjectContentsRequest())
    assert [(each.project, names(each.entities)) for each in found.projects] == [
        ("other", ["rider"]),
        ("rides", ["driver"]),
    ]
    assert found.projects[1] == await contents(registry, project="rides")
    second = await registry(registry.rendered.ListProjectContents, own.ListProjectContentsRequest(page=2, limit=1))
    assert ([each.project for each in second.projects], second.total) == (["rides"], 2)
    beyond = await registry(registry.rendered.ListProjectContents, own.ListProjectContentsRequest(page=3, limit=1))
    assert ([*beyond.projects], beyond.total) == ([], 2)


@pytest.mark.usefixtures("rides")
async def test_projects_beyond_a_message_are_refused_and_pages_of_them_are_not(
    registry: Registry, settings: Settings
) -> None:
    for number in range(4):
        await apply_entity(registry, "wide", f"e{number}", description="d" * 2000)
    tight = settings.model_copy(update={"max_message_bytes": 8192})
    async with open_service(tight, RegistrySettings()) as services:
        registry.rendered = RegistryServiceStub(InProcessChannel(services))
        for method, request in (
            (registry.rendered.ListProjectContents, own.ListProjectContentsRequest()),
            (registry.rendered.GetProjectContents, own.GetProjectContentsRequest(project="wide")),
        ):
            with pytest.raises(errors.ResourceExhausted) as raised:
                await registry(method, request)
            assert raised.value.reason == "ANSWER_TOO_LARGE"
        assert len((await contents(registry, project="wide", page=1, limit=2)).entities.objects) == 2
        assert len((await streamed(registry, project="wide"))["entities"][0]) == 4
        await registry(registry.rendered.ListProjectContents, own.ListProjectContentsRequest(page=1, limit=1))


# ---- the registry as one message ----


async def test_the_whole_registry_holds_every_kind_with_its_project(registry: Registry) -> None:
    for project in ("a", "b"):
        for field, made in applies().values():
            if hasattr(made, "spec"):
                made.spec.name = f"x_{field}"
            verb = "FeatureView" if field.endswith("view") else "".join(map(str.title, field.split("_")))
            request = getattr(rpc, f"Apply{verb}Request")(**{field: made}, project=project)
            await registry(getattr(registry.feast, f"Apply{verb}"), request)
    request = rpc.ApplyMaterializationRequest(feature_view=view("x_feature_view"), project="a", end_date={"seconds": 5})
    await registry(registry.feast.ApplyMaterialization, request)
    found = await registry(registry.feast.Proto, Empty())
    fields = (
        *("entities", "data_sources", "feature_views", "stream_feature_views", "on_demand_feature_views"),
        *("label_views", "feature_services", "saved_datasets", "validation_references", "permissions"),
    )
    for field in fields:
        shown = [getattr(each, "spec", each).project for each in getattr(found, field)]
        assert shown == ["a", "b"], field
    assert [each.spec.name for each in found.projects] == ["a", "b"]
    assert [(each.project, len(each.project_uuid)) for each in found.project_metadata] == [("a", 36), ("b", 36)]
    assert [len(each.meta.materialization_intervals) for each in found.feature_views] == [1, 0]
    assert found.last_updated == found.feature_views[0].meta.last_updated_timestamp
    ask = rpc.GetFeatureViewRequest(name="x_feature_view", project="a")
    assert found.feature_views[0] == await registry(registry.feast.GetFeatureView, ask)


async def test_an_empty_registry_is_an_empty_message(registry: Registry) -> None:
    found = await registry(registry.feast.Proto, Empty())
    assert found == type(found)()


async def test_a_registry_beyond_a_message_is_refused_before_it_is_read_whole(
    registry: Registry, settings: Settings
) -> None:
    await apply_entity(registry, description="d" * 5000)
    tight = settings.model_copy(update={"max_message_bytes": 4096})
    async with open_service(tight, RegistrySettings()) as services:
        registry.feast = RegistryServerStub(InProcessChannel(services))
        with pytest.raises(errors.ResourceExhausted) as raised:
            await registry(registry.feast.Proto, Empty())
    assert raised.value.reason == "ANSWER_TOO_LARGE"


async def test_commit_and_refresh_take_anything_and_change_nothing(registry: Registry) -> None:
    request = rpc.ApplyEntityRequest(entity=applies()["Entity"][1], project="demo", commit=False)
    await registry(registry.feast.ApplyEntity, request)
    before = await registry(registry.feast.Proto, Empty())
    assert len(before.entities) == 1
    assert await registry(registry.feast.Commit, Empty()) == Empty()
    for project in ("demo", "None", ""):
        assert await registry(registry.feast.Refresh, rpc.RefreshRequest(project=project)) == Empty()
    assert await registry(registry.feast.Proto, Empty()) == before


# ---- the details of one object ----


async def details(registry: Registry, kind: str, name: str, **fields: Any) -> own.GetObjectResponse:
    number = object_pb2.ObjectKind.Value(f"OBJECT_KIND_{kind}")
    request = own.GetObjectRequest(kind=number, project="rides", name=name, include_details=True, **fields)
    found: own.GetObjectResponse = await registry(registry.rendered.GetObject, request)
    return found


@pytest.mark.usefixtures("rides")
async def test_an_entity_has_the_data_sources_of_its_views_last_come_first(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = await details(registry, "ENTITY", "driver")
    assert [json.loads(each)["name"] for each in found.data_sources] == ["fresh_source", "stats_source"]
    assert found.data_sources_total == 2
    await apply_view(registry, view("stats", entities=("rider",)), "rides")
    await apply_view(registry, view("stats"), "rides")
    found = await details(registry, "ENTITY", "driver")
    assert [json.loads(each)["name"] for each in found.data_sources] == ["stats_source", "fresh_source"]
    # What it has already keeps its place.
    await apply_view(registry, view("more", origin="fresh_source"), "rides")
    found = await details(registry, "ENTITY", "driver")
    assert [json.loads(each)["name"] for each in found.data_sources] == ["stats_source", "fresh_source"]
    monkeypatch.setattr(rendered, "NEWEST", 1)
    found = await details(registry, "ENTITY", "driver")
    assert [json.loads(each)["name"] for each in found.data_sources] == ["stats_source"]
    assert found.data_sources_total == 2


@pytest.mark.usefixtures("rides")
async def test_data_sources_follow_every_write(registry: Registry, database: Database) -> None:
    async def shown() -> set[str]:
        return {json.loads(each)["name"] for each in (await details(registry, "ENTITY", "driver")).data_sources}

    await apply_view(registry, view("more", origin="fresh_source"), "rides")
    await registry(registry.feast.DeleteFeatureView, rpc.DeleteFeatureViewRequest(name="fresh", project="rides"))
    assert await shown() == {"fresh_source", "stats_source"}
    await apply_view(registry, view("more", origin="stats_source"), "rides")
    assert await shown() == {"stats_source"}
    await apply_view(registry, view("stats", entities=("rider",)), "rides")
    await apply_view(registry, view("more", entities=("rider",)), "rides")
    assert await shown() == set()
    await registry(registry.feast.DeleteProject, rpc.DeleteProjectRequest(name="rides"))
    assert await database.fetchval("SELECT count(*) FROM registry.entity_source") == 0


@pytest.mark.usefixtures("rides")
async def test_details_are_left_out_unless_asked_for(registry: Registry) -> None:
    request = own.GetObjectRequest(kind=object_pb2.OBJECT_KIND_ENTITY, project="rides", name="driver")
    found = await registry(registry.rendered.GetObject, request)
    assert (found.definition, list(found.data_sources)) == ("", [])


@pytest.mark.usefixtures("rides")
@pytest.mark.parametrize(
    ("kind", "name", "lines"),
    [
        ("ENTITY", "driver", ["driver = Entity(", "    join_keys=['driver_id'],", "    tags={'team': 'ml'},"]),
        ("DATA_SOURCE", "stats_source", ["    path='data/stats_source.parquet',", "    timestamp_field='ts',"]),
        (
            "ANY_FEATURE_VIEW",
            "stats",
            ["from feast.types import Float32", "    entities=[driver],", "    source=stats_source,"],
        ),
        ("FEATURE_SERVICE", "model", ["    features=[stats[['conv_rate', 'trips']], fresh[['conv_rate']]],"]),
        ("PROJECT", "rides", [""]),
    ],
)
async def test_a_definition_is_python_that_defines_it(
    registry: Registry, kind: str, name: str, lines: list[str]
) -> None:
    found = (await details(registry, kind, name)).definition
    compile(found, name, "exec")
    assert not set(lines) - set(found.split("\n")), found


@pytest.mark.usefixtures("rides")
async def test_the_definition_of_a_feature(registry: Registry) -> None:
    found = (await details(registry, "FEATURE", "trips", feature_view="stats")).definition
    assert "trips = Field(\n    name='trips',\n    dtype=Float32,\n)" in found


@pytest.mark.parametrize("kind", applies())
async def test_every_kind_of_object_has_details(registry: Registry, kind: str) -> None:
    field, made = applies()[kind]
    verb = "FeatureView" if kind.endswith("View") else kind
    request = getattr(rpc, f"Apply{verb}Request")(**{field: made}, project="rides")
    await registry(getattr(registry.feast, f"Apply{verb}"), request)
    found = (await details(registry, field.upper(), "x")).definition
    compile(found, kind, "exec")
    assert bool(found) == (kind not in ("Permission", "ValidationReference"))


async def test_the_code_of_a_transformation_is_shown_and_not_run(registry: Registry) -> None:
    made = OnDemandFeatureView()
    made.spec.name = "2 rates!"
    function = made.spec.feature_transformation.user_defined_function
    function.name, function.body, function.body_text = "double", b"\x80bad", "def double(x):\n    return x * 2\n"
    request = rpc.ApplyFeatureViewRequest(on_demand_feature_view=made, project="rides")
    await registry(registry.feast.ApplyFeatureView, request)
    found = (await details(registry, "ANY_FEATURE_VIEW", "2 rates!")).definition
    assert "def double(x):\n    return x * 2\n" in found
    assert "_2_rates_ = OnDemandFeatureView(\n    name='2 rates!'," in found


# ---- permissions ----


def permission(name: str, **spec: Any) -> Permission:
    return json_format.ParseDict({"spec": {"name": name, "actions": ["DESCRIBE"], **spec}}, Permission())


async def allow(registry: Registry, *permissions: Permission) -> None:
    for each in permissions:
        request = rpc.ApplyPermissionRequest(permission=each, project="rides")
        await registry(registry.feast.ApplyPermission, request)


@pytest.mark.usefixtures("rides")
async def test_permissions_relate_to_what_they_speak_of(registry: Registry) -> None:
    await allow(
        registry,
        permission("views", types=["FEATURE_VIEW"]),
        permission("named", namePatterns=["st.*", "driver"]),
        permission("tagged", requiredTags={"team": "ml"}),
        permission("nothing", namePatterns=["fres"], types=["FEATURE_VIEW", "ENTITY"]),
    )
    request = own.ListObjectsRequest(
        kind=object_pb2.OBJECT_KIND_PERMISSION, project="rides", include_relationships=True
    )
    listed = await registry(registry.rendered.ListObjects, request)
    assert {each.name: [target for _, target in pairs(each.relationships)] for each in listed.relationships} == {
        "named": ["dataSource:stats_source", "entity:driver", "featureView:stats"],
        "tagged": ["entity:driver"],
        "views": ["featureView:Alone", "featureView:fresh", "featureView:stats"],
    }
    one = own.GetObjectRequest(
        kind=object_pb2.OBJECT_KIND_PERMISSION, project="rides", name="tagged", include_relationships=True
    )
    found = await registry(registry.rendered.GetObject, one)
    assert pairs(found.relationships) == [("permission:tagged", "entity:driver")]


@pytest.mark.usefixtures("rides")
async def test_whoever_may_read_a_part_gets_that_part(
    registry: Registry, make_key: Callable[[Principal], Awaitable[str]]
) -> None:
    await allow(registry, permission("named", namePatterns=["stats.*"], policy={"roleBasedPolicy": {"roles": ["r"]}}))
    key = await make_key(Principal("reader", roles=frozenset({"r"})))
    reader = Registry(registry.feast, registry.rendered, calls.bearer(key))
    found = await contents(reader, project="rides")
    assert {field: names(getattr(found, field)) for field in LISTS} == {
        "entities": [],
        "data_sources": ["stats_source"],
        "feature_views": ["stats"],
        "label_views": [],
        "feature_services": [],
        "features": ["conv_rate", "trips"],
        "labels": [],
    }
    whole = await reader(reader.feast.Proto, Empty())
    assert [each.spec.name for each in whole.feature_views] == ["stats"]
    assert [each.spec.project for each in whole.entities] == ["other"]
    with pytest.raises(errors.PermissionDenied):
        request = own.ListFeatureViewVersionsRequest(project="rides", name="fresh")
        await reader(reader.rendered.ListFeatureViewVersions, request)
    with pytest.raises(errors.PermissionDenied):
        await details(reader, "ENTITY", "driver")


@pytest.mark.usefixtures("rides")
@pytest.mark.parametrize("most", [1, 100])
async def test_of_an_entitys_data_sources_those_are_shown_that_may_be_read(
    registry: Registry, make_key: Callable[[Principal], Awaitable[str]], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is hidden is not counted, and takes no place: `fresh_source` came last."""
    monkeypatch.setattr(rendered, "NEWEST", most)
    readable = ["driver", "stats_source"]
    await allow(registry, permission("some", namePatterns=readable, policy={"roleBasedPolicy": {"roles": ["r"]}}))
    key = await make_key(Principal("reader", roles=frozenset({"r"})))
    found = await details(Registry(registry.feast, registry.rendered, calls.bearer(key)), "ENTITY", "driver")
    assert [json.loads(each)["name"] for each in found.data_sources] == ["stats_source"]
    assert found.data_sources_total == 1


# ---- at 20,000 views ----


async def test_large_registries_are_read_from_their_indexes(filled: Database) -> None:  # noqa: F811 - a fixture
    for statement in SOURCES:
        await filled.execute(statement)
    sources = await explain(filled, QUERIES.newest_sources_of_entity.rstrip(";"), "p1", "entity7", 100)
    assert {"entity_source_newest", "object_key"} <= set(json_names(sources))
    assert "Seq Scan" not in sources
    # A whole project is a quarter of these edges.
    page = f"{QUERIES.page_of_edges_as_json} FROM ({QUERIES.direct_edges} ORDER BY 1, 2, 3, 4, 5 LIMIT 10) e"
    assert "edge_by_project" in await explain(filled, page, ["p1"], "", "")
    await filled.execute(PERMISSION)
    covered = await explain(
        filled, QUERIES.covered_by_permissions.rstrip(";"), ["p1"], ["p"], 100, ["entity", "featureView"]
    )
    assert "object_updated" in json_names(covered)
    assert "Seq Scan" not in covered
    protos, arguments = listing.conditions(Listing(kinds.FEATURE_VIEW, hide_protected=True))
    plan = await explain(
        filled, f"{QUERIES.page_of_protos} {protos} ORDER BY o.project, o.sort_name LIMIT 10", *arguments
    )
    assert "Seq Scan" not in plan
    versions = await explain(filled, QUERIES.get_versions.rstrip(";"), "p1", "View4", 10, 0)
    assert {"object_key", "version_pkey"} <= set(json_names(versions))
    assert "Seq Scan" not in versions


def json_names(plan: str) -> list[str]:
    return [line.split('"')[3] for line in plan.splitlines() if '"Index Name"' in line]
