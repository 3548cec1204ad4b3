"""Feast's permissions, over gRPC and REST: what a caller may do, and what of the registry it gets to see."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import httpx2
import orjson
import pytest
from google.protobuf.empty_pb2 import Empty

from chassis import calls, errors
from chassis.inprocess import InProcessChannel
from chassis.postgres import Database
from chassis.principals import Principal
from chassis.rpc import Service
from chassis.settings import Settings
from gateway.app import create_app
from gateway.dialects import feast
from gateway.settings import GatewaySettings
from protos.gen.feast.core.Permission_pb2 import Permission, PermissionSpec
from protos.gen.feast.core.Policy_pb2 import Policy
from protos.gen.feast.core.Project_pb2 import Project
from protos.gen.feast.registry import RegistryServer_pb2 as rpc
from protos.gen.feast.registry import RegistryServer_pb2_grpc
from protos.gen.triglot.registry.v1 import object_pb2, registry_service_pb2_grpc
from protos.gen.triglot.registry.v1 import registry_service_pb2 as own
from services.registry.access import Access
from services.registry.process import open_service
from services.registry.settings import RegistrySettings
from tests.conftest import Servers
from tests.registry.conftest import Registry
from tests.registry.test_objects import applies, entity, service, source, view

Caller = Callable[..., Awaitable[Registry]]
ALL = ("CREATE", "DESCRIBE", "UPDATE", "DELETE", "READ_ONLINE", "READ_OFFLINE", "WRITE_ONLINE", "WRITE_OFFLINE")


def permission(
    name: str,
    *,
    roles: Sequence[str] = (),
    actions: Sequence[str] = ("DESCRIBE",),
    types: Sequence[str] = (),
    patterns: Sequence[str] = (),
    tags: dict[str, str] | None = None,
    policy: Policy | None = None,
) -> Permission:
    """A permission with a role-based policy, unless it gets another one."""
    made = Permission()
    made.spec.name = name
    made.spec.types.extend(made.spec.Type.Value(each) for each in types)
    made.spec.actions.extend(made.spec.AuthzedAction.Value(each) for each in actions)
    made.spec.name_patterns.extend(patterns)
    made.spec.required_tags.update(tags or {})
    if policy is not None:
        made.spec.policy.CopyFrom(policy)
    else:
        made.spec.policy.role_based_policy.roles.extend(roles)
    return made


async def put(registry: Registry, *permissions: Permission, project: str = "rides") -> None:
    for each in permissions:
        await registry(registry.feast.ApplyPermission, rpc.ApplyPermissionRequest(permission=each, project=project))


async def put_entity(registry: Registry, name: str, project: str = "rides", **fields: object) -> None:
    request = rpc.ApplyEntityRequest(entity=entity(name, **fields), project=project)
    await registry(registry.feast.ApplyEntity, request)


async def get_entity(registry: Registry, name: str, project: str = "rides") -> None:
    await registry(registry.feast.GetEntity, rpc.GetEntityRequest(name=name, project=project))


async def denied(call: Awaitable[Any]) -> str:
    with pytest.raises(errors.PermissionDenied) as raised:
        await call
    assert raised.value.reason == "ACTION_NOT_ALLOWED"
    assert raised.value.message.startswith("Permission error:\n")
    return raised.value.message


@pytest.fixture
def caller(services: list[Service], make_key: Callable[[Principal], Awaitable[str]]) -> Caller:
    """Makes a caller with roles and groups."""
    return _caller(services, make_key)


def _caller(services: list[Service], make_key: Callable[[Principal], Awaitable[str]]) -> Caller:
    channel = InProcessChannel(services)

    async def make(*roles: str, groups: Sequence[str] = (), name: str = "") -> Registry:
        key = await make_key(Principal(name or "-".join(roles) or "nobody", False, frozenset(roles), frozenset(groups)))
        return Registry(
            RegistryServer_pb2_grpc.RegistryServerStub(channel),
            registry_service_pb2_grpc.RegistryServiceStub(channel),
            calls.bearer(key),
        )

    return make


@pytest.fixture
async def rides(registry: Registry) -> None:
    """Project `rides`: two entities, a source, two views, a service. Project `open` has an entity."""
    await put_entity(registry, "driver", tags={"team": "a"})
    await put_entity(registry, "customer", tags={"team": "b"})
    await put_entity(registry, "anything", "open")
    for each in (view("driver_stats"), view("customer_stats", entities=("customer",))):
        request = rpc.ApplyFeatureViewRequest(feature_view=each, project="rides")
        await registry(registry.feast.ApplyFeatureView, request)
    await registry(registry.feast.ApplyDataSource, rpc.ApplyDataSourceRequest(data_source=source(), project="rides"))
    await registry(
        registry.feast.ApplyFeatureService,
        rpc.ApplyFeatureServiceRequest(feature_service=service("model", "driver_stats"), project="rides"),
    )


@pytest.mark.usefixtures("rides")
async def test_a_project_without_permissions_is_open(caller: Caller) -> None:
    nobody = await caller()
    await get_entity(nobody, "driver")
    await put_entity(nobody, "driver", description="changed")
    await nobody(nobody.feast.DeleteEntity, rpc.DeleteEntityRequest(name="driver", project="rides"))


@pytest.mark.usefixtures("rides")
async def test_actions_and_types(registry: Registry, caller: Caller) -> None:
    await put(
        registry,
        permission("readers", roles=("reader", "writer"), types=("ENTITY",)),
        permission("writers", roles=("writer",), actions=("CREATE", "UPDATE", "DELETE"), types=("ENTITY",)),
    )
    reader, writer, nobody = await caller("reader"), await caller("writer"), await caller()
    await get_entity(reader, "driver")
    message = await denied(get_entity(nobody, "driver"))
    assert "Permission readers denied execution of ['DESCRIBE'] to Entity:driver: Requires roles ['reader', " in message
    message = await denied(put_entity(reader, "new"))
    assert "Permission writers denied execution of ['CREATE'] to Entity:new: Requires roles ['writer']" in message
    await denied(put_entity(reader, "driver", description="changed"))
    await denied(reader(reader.feast.DeleteEntity, rpc.DeleteEntityRequest(name="driver", project="rides")))
    # One permission has to grant all that an update takes, as in Feast.
    await denied(put_entity(writer, "driver", description="changed"))
    await put(
        registry, permission("writers", roles=("writer",), actions=("CREATE", "DESCRIBE", "UPDATE"), types=("ENTITY",))
    )
    await put_entity(writer, "new")
    await put_entity(writer, "driver", description="changed")
    await denied(writer(writer.feast.DeleteEntity, rpc.DeleteEntityRequest(name="driver", project="rides")))
    # Nothing speaks of other types: they are closed now.
    request = rpc.GetDataSourceRequest(name="stats_source", project="rides")
    assert "No permission" in await denied(writer(writer.feast.GetDataSource, request))
    assert (await registry(registry.feast.GetDataSource, request)).name == "stats_source"


@pytest.mark.usefixtures("rides")
async def test_an_equal_object_is_an_update_too(registry: Registry, caller: Caller) -> None:
    """Who may not write learns nothing about what is stored."""
    await put(registry, permission("all", roles=("boss",), actions=ALL))
    nobody = await caller()
    await denied(put_entity(nobody, "driver", tags={"team": "a"}))
    await denied(put_entity(nobody, "driver", tags={"team": "x"}))


@pytest.mark.usefixtures("rides")
async def test_name_patterns(registry: Registry, caller: Caller) -> None:
    await put(registry, permission("some", roles=("r",), types=("ENTITY",), patterns=("cust.*", "exactly")))
    reader = await caller("r")
    await get_entity(reader, "customer")
    await denied(get_entity(reader, "driver"))
    # The whole name has to match.
    for each in ("my customer", "exactly_not", "exactly"):
        await put_entity(registry, each)
    await denied(get_entity(reader, "my customer"))
    await denied(get_entity(reader, "exactly_not"))
    await get_entity(reader, "exactly")
    # What PostgreSQL cannot read, or could match for hours.
    for pattern in ("(", r"(x*)(x*)z\1\2z", "x" * 201):
        with pytest.raises(errors.InvalidArgument, match="name pattern"):
            await put(registry, permission("broken", roles=("r",), patterns=(pattern,)))
    with pytest.raises(errors.InvalidArgument, match="at most 100 name patterns"):
        await put(registry, permission("many", roles=("r",), patterns=("x",) * 101))


@pytest.mark.usefixtures("rides")
async def test_required_tags_restrict(registry: Registry, caller: Caller) -> None:
    await put(registry, permission("team", roles=("a",), actions=ALL, tags={"team": "a"}))
    member = await caller("a")
    await get_entity(member, "driver")
    await denied(get_entity(member, "customer"))
    await put_entity(member, "mine", tags={"team": "a", "more": "x"})
    await denied(put_entity(member, "theirs", tags={"team": "b"}))
    await denied(put_entity(member, "customer", tags={"team": "a"}))  # what is there is not theirs
    await denied(put_entity(member, "mine", tags={}))  # what it becomes is not theirs


async def test_going_back_to_an_old_version_is_judged_by_what_it_was(registry: Registry, caller: Caller) -> None:
    theirs, ours = view("stats"), view("stats", "another")
    theirs.spec.tags["team"], ours.spec.tags["team"] = "b", "a"
    for each in (theirs, ours):
        await registry(registry.feast.ApplyFeatureView, rpc.ApplyFeatureViewRequest(feature_view=each, project="rides"))
    await put(registry, permission("team", roles=("a",), actions=ALL, tags={"team": "a"}))
    member = await caller("a")
    ours.spec.version = "v0"
    back = rpc.ApplyFeatureViewRequest(feature_view=ours, project="rides")
    await denied(member(member.feast.ApplyFeatureView, back))
    ours.spec.version = "v1"
    await member(member.feast.ApplyFeatureView, rpc.ApplyFeatureViewRequest(feature_view=ours, project="rides"))


async def test_a_protected_project_is_hidden_from_those_who_cannot_read_it_too(
    registry: Registry, caller: Caller
) -> None:
    project = Project()
    project.spec.name = "secret"
    project.spec.tags["feast.dev/protected-project"] = "true"
    await registry(registry.feast.ApplyProject, rpc.ApplyProjectRequest(project=project))
    await put_entity(registry, "treasure", "secret")
    await put(registry, permission("entities", roles=("r",), types=("ENTITY",)), project="secret")
    reader = await caller("r")
    for each in (registry, reader):
        whole = await each(each.feast.Proto, Empty())
        assert "treasure" not in [entity.spec.name for entity in whole.entities]


@pytest.mark.usefixtures("rides")
async def test_policies(registry: Registry, caller: Caller, database: Database) -> None:
    groups, combined, everyone = Policy(), Policy(), Policy(name="all")
    groups.group_based_policy.groups.append("g")
    combined.combined_group_namespace_policy.groups.append("h")
    combined.combined_group_namespace_policy.namespaces.append("n")
    bare = permission("bare", actions=ALL)
    bare.spec.ClearField("policy")
    await put(
        registry,
        permission("groups", policy=groups, patterns=("driver",)),
        permission("combined", policy=combined, patterns=("customer",)),
        permission("everyone", policy=everyone, types=("DATA_SOURCE",)),
        bare,
    )
    in_g, in_h = await caller(groups=("g",), name="in-g"), await caller(groups=("h",), name="in-h")
    await get_entity(in_g, "driver")
    assert "at least one of the permitted groups or namespaces" in await denied(get_entity(in_g, "customer"))
    await get_entity(in_h, "customer")
    assert "not added into the permitted groups" in await denied(get_entity(in_h, "driver"))
    request = rpc.GetDataSourceRequest(name="stats_source", project="rides")
    assert (await in_h(in_h.feast.GetDataSource, request)).name == "stats_source"
    # API keys belong to no namespace; tokens of Kubernetes do.
    namespaces = Policy()
    namespaces.namespace_based_policy.namespaces.append("m")
    await put(registry, permission("namespaces", policy=namespaces, patterns=("driver",)))
    access = Access(database, strict=False)
    for shown, may in (({"n"}, ["customer"]), ({"m", "x"}, ["driver"]), (set(), [])):
        call = calls.Call("id", principal=Principal("pod", namespaces=frozenset(shown)))
        token = calls.enter(call)
        rows = await access.fetch(
            "SELECT o.name FROM registry.object o WHERE o.kind = $1 AND o.project = $2", "entity", "rides"
        )
        calls.leave(token)
        assert [row["name"] for row in rows] == may


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("FEATURE_VIEW", ["batch", "plain", "stream"]),
        ("BATCH_FEATURE_VIEW", ["batch"]),
        ("STREAM_FEATURE_VIEW", ["stream"]),
        ("ON_DEMAND_FEATURE_VIEW", ["ondemand"]),
        ("ENTITY", []),
    ],
)
async def test_kinds_of_views(registry: Registry, caller: Caller, kind: str, names: list[str]) -> None:
    batch = view("batch")
    batch.spec.feature_transformation.user_defined_function.name = "f"
    stream = rpc.ApplyFeatureViewRequest(project="rides")
    stream.stream_feature_view.spec.name = "stream"
    stream.stream_feature_view.spec.entities.append("driver")
    ondemand = rpc.ApplyFeatureViewRequest(project="rides")
    ondemand.on_demand_feature_view.spec.name = "ondemand"
    for request in (
        rpc.ApplyFeatureViewRequest(feature_view=view("plain"), project="rides"),
        rpc.ApplyFeatureViewRequest(feature_view=batch, project="rides"),
        stream,
        ondemand,
    ):
        await registry(registry.feast.ApplyFeatureView, request)
    await put(registry, permission("one type", roles=("r",), types=(kind,)))
    reader = await caller("r")
    listed = await reader(reader.feast.ListAllFeatureViews, rpc.ListAllFeatureViewsRequest(project="rides"))
    found = [getattr(each, each.WhichOneof("any_feature_view")).spec.name for each in listed.feature_views]
    assert sorted(found) == names


KINDS = {
    "PROJECT": {"PROJECT"},
    "FEATURE_VIEW": {"FEATURE_VIEW", "STREAM_FEATURE_VIEW"},
    "ON_DEMAND_FEATURE_VIEW": {"ON_DEMAND_FEATURE_VIEW"},
    "BATCH_FEATURE_VIEW": set(),  # the view of `applies` is a plain one; see the test above
    "STREAM_FEATURE_VIEW": {"STREAM_FEATURE_VIEW"},
    "LABEL_VIEW": {"LABEL_VIEW"},
    "ENTITY": {"ENTITY"},
    "FEATURE_SERVICE": {"FEATURE_SERVICE"},
    "DATA_SOURCE": {"DATA_SOURCE"},
    "VALIDATION_REFERENCE": {"VALIDATION_REFERENCE"},
    "SAVED_DATASET": {"SAVED_DATASET"},
    "PERMISSION": {"PERMISSION"},
}
_MADE_OF_OTHERS = {"UNSPECIFIED", "ANY_FEATURE_VIEW", "FEATURE", "LABEL"}


async def test_each_type_covers_its_kind_and_no_other(registry: Registry, caller: Caller) -> None:
    for kind, (field, made) in applies().items():
        spec: Any = getattr(made, "spec", made)
        spec.name = kind
        verb = "FeatureView" if kind.endswith("View") else kind
        request = getattr(rpc, f"Apply{verb}Request")(**{field: made}, project="rides")
        await registry(getattr(registry.feast, f"Apply{verb}"), request)
    reader = await caller("r")
    assert KINDS.keys() == set(PermissionSpec.Type.keys())
    for kind, covered in KINDS.items():
        request = permission("Permission", roles=("r",), types=(kind,))
        await put(registry, request)
        found = set()
        for name, number in object_pb2.ObjectKind.items():
            short = name.removeprefix("OBJECT_KIND_")
            if short not in _MADE_OF_OTHERS:
                listed = await reader(reader.rendered.ListObjects, own.ListObjectsRequest(kind=number))
                found |= {short} if listed.total else set()
        assert found == covered, kind


@pytest.mark.usefixtures("rides")
async def test_each_action_allows_what_it_says_and_nothing_else(registry: Registry, caller: Caller) -> None:
    member = await caller("r")
    allowed = {"DESCRIBE": "get", "CREATE": "create", "DELETE": "delete", "WRITE_ONLINE": "materialize"}
    for action in ALL:
        await put(registry, permission("one action", roles=("r",), actions=(action,)))
        await put_entity(registry, "doomed")
        attempts = {
            "get": get_entity(member, "driver"),
            "create": put_entity(member, f"new {action}"),
            "update": put_entity(member, "driver", description=action),
            "delete": member(member.feast.DeleteEntity, rpc.DeleteEntityRequest(name="doomed", project="rides")),
            "materialize": member(
                member.feast.ApplyMaterialization,
                rpc.ApplyMaterializationRequest(feature_view=view("driver_stats"), project="rides"),
            ),
        }
        done = []
        for what, attempt in attempts.items():
            try:
                await attempt
            except errors.PermissionDenied:
                continue
            done.append(what)
        assert done == ([allowed[action]] if action in allowed else []), action
    # Permissions without tags are in nobody's way.
    tagged = rpc.ListPermissionsRequest(project="rides", tags={"team": "a"})
    assert not (await registry(registry.feast.ListPermissions, tagged)).permissions
    # What one project grants, another one does not.
    await put(registry, permission("others", roles=("x",), actions=ALL), project="open")
    await denied(get_entity(member, "anything", "open"))


@pytest.mark.usefixtures("rides")
async def test_materializing_is_writing_online(registry: Registry, caller: Caller) -> None:
    await put(registry, permission("r", roles=("r",), actions=("DESCRIBE", "UPDATE")))
    request = rpc.ApplyMaterializationRequest(feature_view=view("driver_stats"), project="rides")
    reader = await caller("r")
    await denied(reader(reader.feast.ApplyMaterialization, request))
    await put(registry, permission("w", roles=("r",), actions=("WRITE_ONLINE",), patterns=("driver_stats",)))
    await reader(reader.feast.ApplyMaterialization, request)


@pytest.mark.usefixtures("rides")
async def test_projects(registry: Registry, caller: Caller) -> None:
    await put(registry, permission("boss", roles=("boss",), actions=ALL, types=("PROJECT",)))
    boss, nobody = await caller("boss"), await caller()
    changed = Project()
    changed.spec.name, changed.spec.description = "rides", "changed"
    for call, request in (
        (nobody.feast.ApplyProject, rpc.ApplyProjectRequest(project=changed)),
        (nobody.feast.GetProject, rpc.GetProjectRequest(name="rides")),
        (nobody.feast.DeleteProject, rpc.DeleteProjectRequest(name="rides")),
        (nobody.feast.UpdateInfra, rpc.UpdateInfraRequest(project="rides")),
        (nobody.feast.GetInfra, rpc.GetInfraRequest(project="rides")),
    ):
        await denied(nobody(call, request))
    listed = await nobody(nobody.feast.ListProjects, rpc.ListProjectsRequest())
    assert [each.spec.name for each in listed.projects] == ["open"]
    metadata = rpc.ListProjectMetadataRequest(project="rides")
    assert not (await nobody(nobody.feast.ListProjectMetadata, metadata)).project_metadata
    await boss(boss.feast.ApplyProject, rpc.ApplyProjectRequest(project=changed))
    assert (await boss(boss.feast.GetProject, rpc.GetProjectRequest(name="rides"))).spec.description == "changed"
    await boss(boss.feast.UpdateInfra, rpc.UpdateInfraRequest(project="rides"))
    await boss(boss.feast.DeleteProject, rpc.DeleteProjectRequest(name="rides"))


@pytest.fixture
async def http(services: list[Service], servers: Servers) -> AsyncIterator[httpx2.AsyncClient]:
    settings = GatewaySettings()
    app = create_app([feast.dialect(InProcessChannel(services), settings)], settings)
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://feast/api/v1") as client:
        yield client


async def seen(http: httpx2.AsyncClient, reader: Registry, path: str) -> Any:
    answer = await http.get(path, headers=dict(reader.metadata))
    assert answer.status_code == 200, (path, answer.text)
    return answer.json()


@pytest.mark.usefixtures("rides")
async def test_readers_see_the_readable_part_everywhere(
    registry: Registry, caller: Caller, http: httpx2.AsyncClient
) -> None:
    """No list, count, search or lineage names what the reader may not see, nor lets it be counted."""
    await put(
        registry,
        permission("hidden", roles=("boss",), actions=ALL),
        permission("visible", roles=("r",), types=("PROJECT",)),
        permission("by name", roles=("r",), patterns=("driver.*", "stats_source")),
    )
    reader = await caller("r")
    listed = await reader(reader.feast.ListEntities, rpc.ListEntitiesRequest(project="rides"))
    assert [each.spec.name for each in listed.entities] == ["driver"]
    for path, names in (
        ("/entities?project=rides", ["driver"]),
        ("/entities/all", ["anything", "driver"]),
        ("/feature_views?project=rides&include_relationships=true", ["driver_stats"]),
        ("/feature_views?project=rides&entity=driver", ["driver_stats"]),
        ("/data_sources?project=rides&page=1&limit=1", ["stats_source"]),
        ("/feature_services?project=rides", []),
        ("/features?project=rides", ["conv_rate", "trips"]),
        ("/permissions?project=rides", []),
        ("/projects", ["open", "rides"]),
    ):
        found = await seen(http, reader, path)
        (objects,) = (value for key, value in found.items() if key not in ("pagination", "relationships"))
        assert sorted(each["name"] for each in objects) == names, path
        assert found["pagination"]["total"] == len(names), path
    everything = [
        await seen(http, reader, path)
        for path in (
            "/feature_views/all?include_relationships=true",
            "/entities/driver?project=rides&include_relationships=true",
            "/search?query=customer",
            "/search?query=",
            "/search?query=model&projects=rides",
            "/lineage/registry?project=rides",
            "/lineage/registry/all",
            "/lineage/objects/dataSource/stats_source?project=rides&include_indirect=true",
            "/metrics/resource_counts?project=rides",
            "/metrics/resource_counts",
            "/metrics/popular_tags",
        )
    ]
    hidden = re.findall(r"customer_stats|\"name\":\"(?:model|customer)\"", orjson.dumps(everything).decode())
    assert not hidden, hidden
    counts = everything[8]["counts"]
    assert (counts["entities"], counts["featureViews"], counts["featureServices"], counts["features"]) == (1, 1, 0, 2)
    searched = everything[2]
    assert (searched["results"], searched["pagination"]["totalCount"]) == ([], 0)
    around = {each["target"]["name"] for each in everything[7]["relationships"]}
    assert "driver_stats" in around
    answer = await http.get("/entities/customer?project=rides", headers=dict(reader.metadata))
    assert (answer.status_code, answer.json()["error_type"]) == (403, "FeastPermissionError")
    answer = await http.get("/entities/nothing?project=rides", headers=dict(reader.metadata))
    assert answer.status_code == 404


@pytest.fixture
async def strict(settings: Settings, make_key: Callable[[Principal], Awaitable[str]]) -> AsyncIterator[Caller]:
    """Makes callers of a registry that is strict."""
    async with open_service(settings, RegistrySettings(strict_permissions=True)) as opened:
        yield _caller(opened, make_key)


@pytest.mark.usefixtures("rides")
async def test_strict_closes_what_nobody_opened(registry: Registry, strict: Caller) -> None:
    await put(registry, permission("r", roles=("r",), types=("ENTITY",), patterns=("driver",)))
    reader = await strict("r")
    await get_entity(reader, "driver")
    there, not_there = await denied(get_entity(reader, "customer")), await denied(get_entity(reader, "costumer"))
    assert there.replace("customer", "x") == not_there.replace("costumer", "x")
    await denied(get_entity(reader, "anything", "open"))
    await denied(get_entity(reader, "anything", "no such project"))
    for name in ("customer", "costumer"):
        request = rpc.DeleteEntityRequest(name=name, project="rides")
        assert name in await denied(reader(reader.feast.DeleteEntity, request))
    await denied(put_entity(reader, "new", "new project"))
    there, not_there = await denied(put_entity(reader, "customer")), await denied(put_entity(reader, "costumer"))
    assert there.replace("customer", "x") == not_there.replace("costumer", "x")
    listed = await reader(reader.feast.ListProjects, rpc.ListProjectsRequest())
    assert not listed.projects
    boss = await registry(registry.feast.ListProjects, rpc.ListProjectsRequest())
    assert len(boss.projects) == 2
