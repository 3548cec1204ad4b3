"""Every change of the registry is in its audit log, with who made it, and nothing else is."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from chassis import calls, errors
from chassis.audit import MAX_DOCUMENT_BYTES
from chassis.inprocess import InProcessChannel
from chassis.principals import Principal
from chassis.rpc import Service
from chassis.settings import Settings
from protos.gen.feast.core.InfraObject_pb2 import Infra
from protos.gen.feast.core.Permission_pb2 import Permission
from protos.gen.feast.core.Project_pb2 import Project
from protos.gen.feast.core.SavedDataset_pb2 import SavedDataset
from protos.gen.feast.core.ValidationProfile_pb2 import ValidationReference
from protos.gen.feast.registry import RegistryServer_pb2 as rpc
from protos.gen.feast.registry.RegistryServer_pb2_grpc import RegistryServerStub
from protos.gen.triglot.registry.v1 import registry_service_pb2 as rendered_rpc
from services.registry.process import open_service
from services.registry.settings import RegistrySettings
from tests.audit_reader import AuditReader, after, before, changing_rpcs, told
from tests.chassis.test_oidc import Provider, provider
from tests.conftest import Servers
from tests.registry.conftest import Registry
from tests.registry.test_objects import entity, service, source, view

__all__ = ["provider"]  # a fixture

# RPCs that change nothing: they write for compatibility only, or what is no definition.
NO_CHANGE = {"CreateDatasetFromRetrieval", "Commit", "Refresh", "RecordVisit"}


@pytest.fixture
def audit(services: list[Service], servers: Servers) -> AuditReader:
    return AuditReader(services, servers.admin_key)


def named(message: Any) -> Any:
    message.spec.name = "it"
    return message


def permission(name: str) -> Permission:
    """Nobody may create anything but who has a role that nobody has."""
    made = named(Permission())
    made.spec.name = name
    made.spec.actions.append(0)
    made.spec.policy.role_based_policy.roles.append("nobody")
    return made


async def test_every_rpc_that_changes_something(registry: Registry, audit: AuditReader) -> None:
    """The RPCs are those of the contracts, so that one that is added has to be here or among those above."""
    now = datetime.now(UTC)
    dataset = SavedDataset()
    dataset.spec.name, dataset.spec.storage.file_storage.uri = "saved", "s3://bucket"
    dataset.spec.features.append("stats:trips")
    reference = ValidationReference(name="profile", reference_dataset_name="it")
    interval = {"feature_view": view(), "start_date": now, "end_date": now}
    steps: list[tuple[str, dict[str, Any], str, str]] = [
        ("ApplyProject", {"project": named(Project())}, "create", "project"),
        ("ApplyEntity", {"project": "p", "entity": entity()}, "create", "entity"),
        ("ApplyDataSource", {"project": "p", "data_source": source()}, "create", "dataSource"),
        ("ApplyFeatureView", {"project": "p", "feature_view": view()}, "create", "featureView"),
        ("ApplyMaterialization", {"project": "p", **interval}, "materialize", "featureView"),
        ("ApplyFeatureService", {"project": "p", "feature_service": service("s", "stats")}, "create", "featureService"),
        ("ApplySavedDataset", {"project": "p", "saved_dataset": named(SavedDataset())}, "create", "savedDataset"),
        ("RegisterSavedDataset", {"project": "p", "saved_dataset": dataset}, "create", "savedDataset"),
        (
            "ApplyValidationReference",
            {"project": "p", "validation_reference": reference},
            "create",
            "validationReference",
        ),
        ("ApplyPermission", {"project": "p", "permission": permission("it")}, "create", "permission"),
        ("UpdateInfra", {"project": "p", "infra": Infra()}, "update", "infra"),
        ("DeletePermission", {"project": "p", "name": "it"}, "delete", "permission"),
        ("DeleteValidationReference", {"project": "p", "name": "profile"}, "delete", "validationReference"),
        ("DeleteSavedDataset", {"project": "p", "name": "it"}, "delete", "savedDataset"),
        ("DeleteFeatureService", {"project": "p", "name": "s"}, "delete", "featureService"),
        ("DeleteFeatureView", {"project": "p", "name": "stats"}, "delete", "featureView"),
        ("DeleteDataSource", {"project": "p", "name": "stats_source"}, "delete", "dataSource"),
        ("DeleteEntity", {"project": "p", "name": "driver"}, "delete", "entity"),
        ("DeleteProject", {"name": "it"}, "delete", "project"),
    ]
    for name, fields, operation, kind in steps:
        already = len(await audit.entries())
        ours = name == "RegisterSavedDataset"
        stub, messages = (registry.rendered, rendered_rpc) if ours else (registry.feast, rpc)
        await registry(getattr(stub, name), getattr(messages, f"{name}Request")(**fields))
        entries = (await audit.entries())[already:]
        # The first write to a project makes it, too.
        last = entries[-1]
        assert (last.operation, last.kind) == (operation, kind), name
        assert [each.kind for each in entries[:-1]] in ([], ["project"]), name
        assert (last.principal, last.issuer, last.service) == ("admin", "", "registry")
        assert last.request_id
        assert bool(last.before) == (operation == "delete"), name
        assert bool(last.after) == (operation != "delete"), name
        assert abs(last.time.ToDatetime(UTC) - datetime.now(UTC)).total_seconds() < 60
    contracts = (
        rpc.DESCRIPTOR.services_by_name["RegistryServer"],
        rendered_rpc.DESCRIPTOR.services_by_name["RegistryService"],
    )
    assert {name for name, *_ in steps} == set.union(*map(changing_rpcs, contracts)) - NO_CHANGE


async def test_before_and_after(registry: Registry, audit: AuditReader) -> None:
    feast = registry.feast
    for owner in ("ann", "bob"):
        await registry(feast.ApplyEntity, rpc.ApplyEntityRequest(project="p", entity=entity(owner=owner)))
    await registry(feast.DeleteEntity, rpc.DeleteEntityRequest(project="p", name="driver"))
    made, changed, deleted = await audit.entries(kind="entity")
    assert told([made, changed, deleted]) == [
        ("create", "entity", "p", "driver"),
        ("update", "entity", "p", "driver"),
        ("delete", "entity", "p", "driver"),
    ]
    assert before(made) is None
    assert after(made)["spec"]["owner"] == before(changed)["spec"]["owner"] == "ann"
    assert after(changed)["spec"]["owner"] == before(deleted)["spec"]["owner"] == "bob"
    assert after(deleted) is None


async def test_versions_of_a_view(registry: Registry, audit: AuditReader) -> None:
    for features in (("trips",), ("trips", "rate")):
        request = rpc.ApplyFeatureViewRequest(project="p", feature_view=view("stats", *features))
        await registry(registry.feast.ApplyFeatureView, request)
    changed = (await audit.entries(kind="featureView"))[-1]
    assert (before(changed)["version"], after(changed)["version"]) == (0, 1)
    assert [each["name"] for each in after(changed)["spec"]["features"]] == ["trips", "rate"]
    now = datetime.now(UTC)
    interval = rpc.ApplyMaterializationRequest(project="p", feature_view=view(), start_date=now, end_date=now)
    await registry(registry.feast.ApplyMaterialization, interval)
    [materialized] = await audit.entries(operation="materialize")
    assert set(after(materialized)) == {"startTime", "endTime"}


async def test_a_deleted_project_is_told_object_by_object(registry: Registry, audit: AuditReader) -> None:
    await registry(registry.feast.ApplyEntity, rpc.ApplyEntityRequest(project="p", entity=entity()))
    await registry(registry.feast.ApplyFeatureView, rpc.ApplyFeatureViewRequest(project="p", feature_view=view()))
    await registry(registry.feast.ApplyEntity, rpc.ApplyEntityRequest(project="other", entity=entity()))
    await registry(registry.feast.DeleteProject, rpc.DeleteProjectRequest(name="p"))
    gone = await audit.entries(operation="delete")
    assert sorted(told(gone)) == [
        ("delete", "entity", "p", "driver"),
        ("delete", "featureView", "p", "stats"),
        ("delete", "project", "p", "p"),
    ]
    assert len({each.request_id for each in gone}) == 1
    assert all(before(each)["spec"]["name"] for each in gone)


async def test_what_changes_nothing_leaves_no_entry(
    registry: Registry, audit: AuditReader, make_key: Callable[[Principal], Awaitable[str]]
) -> None:
    """An equal apply, and what is refused: for what it is, for who asks, for what is there."""
    apply = rpc.ApplyEntityRequest(project="p", entity=entity())
    await registry(registry.feast.ApplyEntity, apply)
    known = await audit.entries()
    await registry(registry.feast.ApplyEntity, apply)
    refused = [
        (registry.feast.ApplyEntity, rpc.ApplyEntityRequest(project="p", entity=entity(""))),
        (registry.feast.DeleteEntity, rpc.DeleteEntityRequest(project="p", name="absent")),
        (registry.feast.DeleteProject, rpc.DeleteProjectRequest(name="absent")),
        (
            registry.feast.ApplyFeatureService,
            rpc.ApplyFeatureServiceRequest(project="new", feature_service=service("s", "absent")),
        ),
    ]
    for method, request in refused:
        with pytest.raises(errors.TriglotError):
            await registry(method, request)
    assert await audit.entries() == known
    closing = rpc.ApplyPermissionRequest(project="p", permission=permission("closed"))
    await registry(registry.feast.ApplyPermission, closing)
    known = await audit.entries()
    nobody = await make_key(Principal("nobody"))
    with pytest.raises(errors.PermissionDenied):
        await calls.invoke(registry.feast.ApplyEntity, apply, metadata=calls.bearer(nobody))
    assert await audit.entries() == known


async def test_writers_at_the_same_time_follow_each_other(registry: Registry, audit: AuditReader) -> None:
    """Each entry begins with what the one before it ended with, however the writes met."""
    owners = [f"owner{number}" for number in range(12)]
    await asyncio.gather(
        *(
            registry(registry.feast.ApplyEntity, rpc.ApplyEntityRequest(project="p", entity=entity(owner=owner)))
            for owner in owners
        )
    )
    entries = await audit.entries(kind="entity")
    assert sorted(after(each)["spec"]["owner"] for each in entries) == sorted(owners)
    ends = {after(each)["spec"]["owner"]: each for each in entries}
    assert len([each for each in entries if before(each) is None]) == 1
    begins = [before(each)["spec"]["owner"] for each in entries if before(each) is not None]
    assert len(begins) == len(set(begins)) == len(owners) - 1
    assert set(begins) < set(ends)


async def test_large_objects_are_told_by_their_hash(registry: Registry, audit: AuditReader) -> None:
    large = entity(description="x" * MAX_DOCUMENT_BYTES)
    await registry(registry.feast.ApplyEntity, rpc.ApplyEntityRequest(project="p", entity=large))
    [made] = await audit.entries(kind="entity")
    assert after(made)["bytes"] > MAX_DOCUMENT_BYTES
    assert len(after(made)["sha256"]) == 64


async def test_infra_is_told_by_its_hash(registry: Registry, audit: AuditReader) -> None:
    infra = Infra()
    infra.infra_objects.add(infra_object_class_type="it")
    for _ in range(2):
        await registry(registry.feast.UpdateInfra, rpc.UpdateInfraRequest(project="p", infra=infra))
    [told_once] = await audit.entries(kind="infra")
    assert after(told_once) == {"sha256": hashlib.sha256(infra.SerializeToString()).hexdigest()}


async def test_a_token_of_a_provider(
    provider: Provider,
    settings: Settings,
    servers: Servers,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRIGLOT_OIDC_DISCOVERY_URL", f"{provider.url}/.well-known/openid-configuration")
    monkeypatch.setenv("TRIGLOT_OIDC_CLIENT_ID", "feast")
    async with open_service(settings, RegistrySettings()) as services:
        request = rpc.ApplyEntityRequest(project="p", entity=entity())
        shown = calls.bearer(provider.token())
        await calls.invoke(RegistryServerStub(InProcessChannel(services)).ApplyEntity, request, metadata=shown)
        made = (await AuditReader(services, servers.admin_key).entries())[-1]
    assert (made.principal, made.issuer) == ("ann", provider.url)
