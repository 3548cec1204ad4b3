"""Apply, get, list and delete: what feast.registry.RegistryServer promises, on the real database."""

from __future__ import annotations

import asyncio
import json

import pytest

from chassis import errors
from protos.gen.feast.core.DataSource_pb2 import DataSource
from protos.gen.feast.core.Entity_pb2 import Entity
from protos.gen.feast.core.FeatureService_pb2 import FeatureService
from protos.gen.feast.core.FeatureView_pb2 import AVAILABLE_ONLINE, FeatureView
from protos.gen.feast.core.LabelView_pb2 import LabelView
from protos.gen.feast.core.OnDemandFeatureView_pb2 import OnDemandFeatureView
from protos.gen.feast.core.Permission_pb2 import Permission
from protos.gen.feast.core.Project_pb2 import Project
from protos.gen.feast.core.SavedDataset_pb2 import SavedDataset
from protos.gen.feast.core.StreamFeatureView_pb2 import StreamFeatureView
from protos.gen.feast.core.ValidationProfile_pb2 import ValidationReference
from protos.gen.feast.registry import RegistryServer_pb2 as rpc
from protos.gen.feast.types.Value_pb2 import ValueType
from tests.registry.conftest import Registry


def entity(name: str = "driver", **fields: object) -> Entity:
    made = Entity()
    made.spec.name, made.spec.join_key = name, "driver_id"
    for field, value in fields.items():
        if field == "tags":
            made.spec.tags.update(value)  # type: ignore[arg-type]
        else:
            setattr(made.spec, field, value)
    return made


def source(name: str = "stats_source") -> DataSource:
    made = DataSource(name=name, type=DataSource.BATCH_FILE, timestamp_field="ts")
    made.file_options.uri = f"data/{name}.parquet"
    return made


def view(name: str = "stats", *features: str, entities: tuple[str, ...] = ("driver",), origin: str = "stats_source"):
    made = FeatureView()
    made.spec.name = name
    made.spec.entities.extend(entities)
    for feature in features or ("conv_rate", "trips"):
        made.spec.features.add(name=feature, value_type=ValueType.FLOAT)
    made.spec.batch_source.CopyFrom(source(origin))
    made.spec.online = True
    return made


def service(name: str, *views: str) -> FeatureService:
    made = FeatureService()
    made.spec.name = name
    for each in views:
        made.spec.features.add(feature_view_name=each)
    return made


async def apply_entity(registry: Registry, project: str = "demo", name: str = "driver", **fields: object) -> None:
    request = rpc.ApplyEntityRequest(entity=entity(name, **fields), project=project)
    await registry(registry.feast.ApplyEntity, request)


async def get_entity(registry: Registry, name: str = "driver", project: str = "demo") -> Entity:
    found: Entity = await registry(registry.feast.GetEntity, rpc.GetEntityRequest(name=name, project=project))
    return found


async def apply_view(registry: Registry, made: FeatureView, project: str = "demo") -> None:
    await registry(registry.feast.ApplyFeatureView, rpc.ApplyFeatureViewRequest(feature_view=made, project=project))


async def get_view(registry: Registry, name: str = "stats", project: str = "demo") -> FeatureView:
    request = rpc.GetFeatureViewRequest(name=name, project=project)
    found: FeatureView = await registry(registry.feast.GetFeatureView, request)
    return found


async def test_an_object_is_read_back_with_its_project_and_times(registry: Registry) -> None:
    await apply_entity(registry, description="d", tags={"team": "ml"}, project="demo")
    found = await get_entity(registry)
    assert (found.spec.project, found.spec.description, dict(found.spec.tags)) == ("demo", "d", {"team": "ml"})
    assert found.meta.created_timestamp == found.meta.last_updated_timestamp
    assert found.meta.created_timestamp.seconds > 0


async def test_applying_makes_the_project_with_an_id_of_36_characters(registry: Registry) -> None:
    await apply_entity(registry)
    project = await registry(registry.feast.GetProject, rpc.GetProjectRequest(name="demo"))
    assert project.spec.name == "demo"
    listed = await registry(registry.feast.ListProjectMetadata, rpc.ListProjectMetadataRequest(project="demo"))
    assert [(each.project, len(each.project_uuid)) for each in listed.project_metadata] == [("demo", 36)]
    unknown = await registry(registry.feast.ListProjectMetadata, rpc.ListProjectMetadataRequest(project="x"))
    assert not unknown.project_metadata


async def test_an_equal_object_is_not_written_and_a_changed_one_keeps_its_creation(registry: Registry) -> None:
    await apply_entity(registry)
    first = await get_entity(registry)
    stale = entity()
    stale.meta.created_timestamp.seconds = 5
    await registry(registry.feast.ApplyEntity, rpc.ApplyEntityRequest(entity=stale, project="demo"))
    assert await get_entity(registry) == first
    await apply_entity(registry, description="now with one")
    changed = await get_entity(registry)
    assert changed.meta.created_timestamp == first.meta.created_timestamp
    assert changed.meta.last_updated_timestamp.ToNanoseconds() > first.meta.last_updated_timestamp.ToNanoseconds()


async def test_the_callers_message_is_left_alone(registry: Registry) -> None:
    """The in-process channel hands messages over as they are."""
    request = rpc.ApplyEntityRequest(entity=entity(), project="demo")
    await registry(registry.feast.ApplyEntity, request)
    assert request == rpc.ApplyEntityRequest(entity=entity(), project="demo")


async def test_projects_do_not_see_each_other(registry: Registry) -> None:
    await apply_entity(registry, "one", description="1")
    await apply_entity(registry, "two", description="2")
    assert (await get_entity(registry, project="one")).spec.description == "1"
    listed = await registry(registry.feast.ListEntities, rpc.ListEntitiesRequest(project="one"))
    assert [each.spec.description for each in listed.entities] == ["1"]
    await registry(registry.feast.DeleteEntity, rpc.DeleteEntityRequest(name="driver", project="one"))
    assert (await get_entity(registry, project="two")).spec.description == "2"
    with pytest.raises(errors.NotFound):
        await get_entity(registry, project="one")


MISSING = {
    "Entity": ("ENTITY_NOT_FOUND", "Entity x does not exist in project p"),
    "DataSource": ("DATA_SOURCE_NOT_FOUND", "Data source x does not exist in project p"),
    "FeatureView": ("FEATURE_VIEW_NOT_FOUND", "Feature view x does not exist in project p"),
    "AnyFeatureView": ("FEATURE_VIEW_NOT_FOUND", "Feature view x does not exist in project p"),
    "StreamFeatureView": ("FEATURE_VIEW_NOT_FOUND", "Feature view x does not exist in project p"),
    "OnDemandFeatureView": ("FEATURE_VIEW_NOT_FOUND", "Feature view x does not exist in project p"),
    "LabelView": ("FEATURE_VIEW_NOT_FOUND", "Feature view x does not exist in project p"),
    "FeatureService": ("FEATURE_SERVICE_NOT_FOUND", "Feature service x does not exist in project p"),
    "SavedDataset": ("SAVED_DATASET_NOT_FOUND", "Saved dataset x does not exist in project p"),
    "ValidationReference": ("VALIDATION_REFERENCE_NOT_FOUND", "Validation reference x does not exist in project p"),
    "Permission": ("PERMISSION_NOT_FOUND", "Permission x does not exist in project p"),
}


@pytest.mark.parametrize("kind", MISSING)
async def test_what_is_missing_is_not_found_and_not_deleted(registry: Registry, kind: str) -> None:
    verbs = ("Get",) if kind.endswith("View") and kind != "FeatureView" else ("Get", "Delete")
    for verb in verbs:
        request = getattr(rpc, f"{verb}{kind}Request")(name="x", project="p")
        with pytest.raises(errors.NotFound) as raised:
            await registry(getattr(registry.feast, f"{verb}{kind}"), request)
        assert (raised.value.reason, raised.value.message) == MISSING[kind]


def applies() -> dict[str, tuple[str, object]]:
    """For every kind: the field of its Apply request, and an object named `x`."""
    stream, on_demand, label = StreamFeatureView(), OnDemandFeatureView(), LabelView()
    stream.spec.entities.append("driver")
    on_demand.spec.user_defined_function.body = b"\x80never unpickled"
    dataset, permission = SavedDataset(), Permission()
    permission.spec.actions.append(1)
    for made in (stream, on_demand, label, dataset, permission):
        made.spec.name = "x"
    return {
        "Entity": ("entity", entity("x")),
        "DataSource": ("data_source", source("x")),
        "FeatureView": ("feature_view", view("x")),
        "StreamFeatureView": ("stream_feature_view", stream),
        "OnDemandFeatureView": ("on_demand_feature_view", on_demand),
        "LabelView": ("label_view", label),
        "FeatureService": ("feature_service", service("x")),
        "SavedDataset": ("saved_dataset", dataset),
        "ValidationReference": ("validation_reference", ValidationReference(name="x", reference_dataset_name="d")),
        "Permission": ("permission", permission),
    }


@pytest.mark.parametrize("kind", applies())
async def test_every_kind_is_applied_read_listed_and_deleted(registry: Registry, kind: str) -> None:
    field, made = applies()[kind]
    verb = "FeatureView" if kind.endswith("View") else kind
    plural = "Entities" if kind == "Entity" else f"{kind}s"
    await registry(
        getattr(registry.feast, f"Apply{verb}"),
        getattr(rpc, f"Apply{verb}Request")(**{field: made}, project="p"),
    )
    get = getattr(rpc, f"Get{kind}Request")(name="x", project="p")
    found = await registry(getattr(registry.feast, f"Get{kind}"), get)
    assert (found if hasattr(found, "name") else found.spec).project == "p"
    ask = getattr(rpc, f"List{plural}Request")(project="p")
    listed = await registry(getattr(registry.feast, f"List{plural}"), ask)
    assert list(getattr(listed, "entities" if kind == "Entity" else f"{field}s")) == [found]
    assert (listed.pagination.total_count, listed.pagination.total_pages) == (1, 1)
    await registry(
        getattr(registry.feast, f"Delete{verb}"), getattr(rpc, f"Delete{verb}Request")(name="x", project="p")
    )
    with pytest.raises(errors.NotFound):
        await registry(getattr(registry.feast, f"Get{kind}"), get)
    empty = await registry(getattr(registry.feast, f"List{plural}"), ask)
    assert empty == type(empty)(pagination={})


async def test_the_name_of_a_view_is_taken_whatever_its_kind(registry: Registry) -> None:
    await apply_view(registry, view("x"))
    for kind in ("StreamFeatureView", "OnDemandFeatureView", "LabelView"):
        field, made = applies()[kind]
        with pytest.raises(errors.AlreadyExists) as raised:
            await registry(
                registry.feast.ApplyFeatureView, rpc.ApplyFeatureViewRequest(**{field: made}, project="demo")
            )
        assert raised.value.reason == "FEATURE_VIEW_NAME_CONFLICT"
    with pytest.raises(errors.NotFound):
        await registry(registry.feast.GetLabelView, rpc.GetLabelViewRequest(name="x", project="demo"))


async def test_any_view_comes_in_its_own_field(registry: Registry) -> None:
    for kind in ("StreamFeatureView", "OnDemandFeatureView", "LabelView"):
        field, made = applies()[kind]
        made.spec.name = field
        await registry(registry.feast.ApplyFeatureView, rpc.ApplyFeatureViewRequest(**{field: made}, project="demo"))
        request = rpc.GetAnyFeatureViewRequest(name=field, project="demo")
        found = await registry(registry.feast.GetAnyFeatureView, request)
        assert found.any_feature_view.WhichOneof("any_feature_view") == field
    listed = await registry(registry.feast.ListAllFeatureViews, rpc.ListAllFeatureViewsRequest(project="demo"))
    fields = [each.WhichOneof("any_feature_view") for each in listed.feature_views]
    assert fields == ["on_demand_feature_view", "stream_feature_view"]


BAD = {
    "no name": ("Entity", rpc.ApplyEntityRequest(entity=entity(""), project="demo")),
    "no project": ("Entity", rpc.ApplyEntityRequest(entity=entity())),
    "a name that no index takes": ("Entity", rpc.ApplyEntityRequest(entity=entity("ü" * 501), project="demo")),
    "a NUL": ("Entity", rpc.ApplyEntityRequest(entity=entity("a\0b"), project="demo")),
    "no view": ("FeatureView", rpc.ApplyFeatureViewRequest(project="demo")),
    "a view without entities": (
        "FeatureView",
        rpc.ApplyFeatureViewRequest(feature_view=view(entities=()), project="demo"),
    ),
    "an @": ("FeatureView", rpc.ApplyFeatureViewRequest(feature_view=view("a@v1"), project="demo")),
    "a feature twice": (
        "FeatureView",
        rpc.ApplyFeatureViewRequest(feature_view=view("a", "f", "f"), project="demo"),
    ),
    "a source of no type": ("DataSource", rpc.ApplyDataSourceRequest(data_source={"name": "s"}, project="demo")),
    "more than a server of Feast reads": (
        "Entity",
        rpc.ApplyEntityRequest(entity=entity("a", description="x" * (4 << 20)), project="demo"),
    ),
    "a permission to nothing": (
        "Permission",
        rpc.ApplyPermissionRequest(permission={"spec": {"name": "p"}}, project="demo"),
    ),
}


@pytest.mark.parametrize("what", BAD)
async def test_bad_objects_are_refused_and_leave_nothing(registry: Registry, what: str) -> None:
    kind, request = BAD[what]
    with pytest.raises(errors.InvalidArgument):
        await registry(getattr(registry.feast, f"Apply{kind}"), request)
    listed = await registry(registry.feast.ListProjects, rpc.ListProjectsRequest())
    assert not listed.projects


async def test_a_service_gets_the_columns_of_its_views(registry: Registry) -> None:
    await apply_view(registry, view("stats", "conv_rate", "trips"))
    request = rpc.ApplyFeatureServiceRequest(feature_service=service("model", "stats"), project="demo")
    await registry(registry.feast.ApplyFeatureService, request)
    found = await registry(registry.feast.GetFeatureService, rpc.GetFeatureServiceRequest(name="model", project="demo"))
    assert [column.name for column in found.spec.features[0].feature_columns] == ["conv_rate", "trips"]
    await registry(registry.feast.ApplyFeatureService, request)
    again = rpc.ListFeatureServicesRequest(project="demo", feature_view="stats")
    listed = await registry(registry.feast.ListFeatureServices, again)
    assert list(listed.feature_services) == [found]
    other = rpc.ListFeatureServicesRequest(project="demo", feature_view="other")
    assert not (await registry(registry.feast.ListFeatureServices, other)).feature_services


async def test_a_service_of_an_unknown_view_is_refused(registry: Registry) -> None:
    with pytest.raises(errors.NotFound, match="Feature view 'nope' not found in project 'demo'"):
        await registry(
            registry.feast.ApplyFeatureService,
            rpc.ApplyFeatureServiceRequest(feature_service=service("model", "nope"), project="demo"),
        )


async def test_forty_parallel_materializations_are_all_kept(registry: Registry) -> None:
    await apply_view(registry, view())

    async def materialize(number: int) -> None:
        request = rpc.ApplyMaterializationRequest(feature_view=view(), project="demo")
        request.start_date.seconds, request.end_date.seconds = number, number + 1
        await registry(registry.feast.ApplyMaterialization, request)

    await asyncio.gather(*(materialize(number) for number in range(40)))
    found = await get_view(registry)
    starts = sorted(interval.start_time.seconds for interval in found.meta.materialization_intervals)
    assert starts == list(range(40))
    assert found.meta.state == AVAILABLE_ONLINE
    # An apply that brings none keeps them.
    await apply_view(registry, view("stats", "conv_rate"))
    kept = (await get_view(registry)).meta
    assert (len(kept.materialization_intervals), kept.state) == (40, AVAILABLE_ONLINE)


async def test_parallel_creates_of_one_object_make_one(registry: Registry) -> None:
    await asyncio.gather(*(apply_entity(registry, description=str(number)) for number in range(20)))
    listed = await registry(registry.feast.ListEntities, rpc.ListEntitiesRequest(project="demo"))
    assert len(listed.entities) == 1
    projects = await registry(registry.feast.ListProjects, rpc.ListProjectsRequest())
    assert [project.spec.name for project in projects.projects] == ["demo"]


async def test_a_deleted_project_leaves_nothing_and_can_be_made_again(registry: Registry) -> None:
    for _ in range(2):
        await apply_view(registry, view())
        await apply_entity(registry)
        await registry(registry.feast.DeleteProject, rpc.DeleteProjectRequest(name="demo"))
        listed = await registry(registry.feast.ListAllFeatureViews, rpc.ListAllFeatureViewsRequest(project="demo"))
        assert not listed.feature_views
        features = await registry(registry.feast.ListFeatures, rpc.ListFeaturesRequest(project="demo"))
        assert not features.features
    with pytest.raises(errors.NotFound, match="Project demo does not exist"):
        await registry(registry.feast.DeleteProject, rpc.DeleteProjectRequest(name="demo"))


async def test_projects_keep_what_was_applied_and_hide_when_protected(registry: Registry) -> None:
    project = Project()
    project.spec.name, project.spec.description = "demo", "mine"
    await registry(registry.feast.ApplyProject, rpc.ApplyProjectRequest(project=project))
    await apply_entity(registry)
    found = await registry(registry.feast.GetProject, rpc.GetProjectRequest(name="demo"))
    assert found.spec.description == "mine"
    project.spec.tags["feast.dev/protected-project"] = "true"
    await registry(registry.feast.ApplyProject, rpc.ApplyProjectRequest(project=project))
    assert not (await registry(registry.feast.ListProjects, rpc.ListProjectsRequest())).projects
    assert (await get_entity(registry)).spec.name == "driver"


async def test_infra_is_kept_as_it_was_sent(registry: Registry) -> None:
    request = rpc.UpdateInfraRequest(project="demo")
    request.infra.infra_objects.add(infra_object_class_type="some.Class")
    assert not (await registry(registry.feast.GetInfra, rpc.GetInfraRequest(project="demo"))).infra_objects
    await registry(registry.feast.UpdateInfra, request)
    assert await registry(registry.feast.GetInfra, rpc.GetInfraRequest(project="demo")) == request.infra


async def test_features_follow_their_view(registry: Registry) -> None:
    await apply_view(registry, view("stats", "conv_rate", "trips", "acc_rate"))
    await apply_view(registry, view("fresh", "conv_rate"))
    ask = rpc.ListFeaturesRequest(project="demo")
    listed = await registry(registry.feast.ListFeatures, ask)
    assert [(each.feature_view, each.name, each.type) for each in listed.features] == [
        ("fresh", "conv_rate", "Float32"),
        ("stats", "conv_rate", "Float32"),
        ("stats", "trips", "Float32"),
        ("stats", "acc_rate", "Float32"),
    ]
    await apply_view(registry, view("stats", "acc_rate", "new"))
    listed = await registry(registry.feast.ListFeatures, rpc.ListFeaturesRequest(project="demo", feature_view="stats"))
    assert [each.name for each in listed.features] == ["acc_rate", "new"]
    named = await registry(registry.feast.ListFeatures, rpc.ListFeaturesRequest(project="demo", name="conv_rate"))
    assert [each.feature_view for each in named.features] == ["fresh"]
    one = await registry(
        registry.feast.GetFeature, rpc.GetFeatureRequest(project="demo", feature_view="stats", name="new")
    )
    assert one.type == "Float32"
    with pytest.raises(errors.NotFound, match="Feature trips not found in feature view stats in project demo"):
        await registry(
            registry.feast.GetFeature, rpc.GetFeatureRequest(project="demo", feature_view="stats", name="trips")
        )


async def test_errors_carry_the_sdks_json(services: list[object], registry: Registry) -> None:
    policy = next(service for service in services if service.name == "feast.registry.RegistryServer")  # type: ignore[attr-defined]
    endpoint = policy.endpoints["/feast.registry.RegistryServer/GetEntity"]  # type: ignore[attr-defined]
    with pytest.raises(errors.NotFound) as raised:
        await get_entity(registry, "x", "p")
    assert json.loads(endpoint.details(raised.value)) == {
        "module": "feast.errors",
        "class": "EntityNotFoundException",
        "message": "Entity x does not exist in project p",
    }


async def test_retrievals_are_refused_and_say_why(registry: Registry) -> None:
    with pytest.raises(errors.FailedPrecondition, match="runs no retrieval"):
        await registry(registry.feast.GetDatasetData, rpc.GetDatasetDataRequest(name="x"))


async def test_without_a_key_nothing_answers(registry: Registry) -> None:
    registry.metadata = ()
    with pytest.raises(errors.Unauthenticated):
        await get_entity(registry)
