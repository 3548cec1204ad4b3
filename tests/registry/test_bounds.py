"""Lists end at the size of a message: a clear refusal that names paging, and no more in memory than that."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import asyncpg
import httpx2
import pytest

from chassis import errors
from chassis.inprocess import InProcessChannel
from chassis.rpc import Service
from chassis.settings import Settings
from gateway.app import create_app
from gateway.dialects import feast as dialect
from gateway.settings import GatewaySettings
from protos.gen.feast.core.FeatureView_pb2 import FeatureView
from protos.gen.feast.core.Project_pb2 import Project
from protos.gen.feast.registry import RegistryServer_pb2 as feast
from protos.gen.feast.registry.RegistryServer_pb2_grpc import RegistryServerStub
from protos.gen.triglot.registry.v1 import object_pb2
from protos.gen.triglot.registry.v1 import registry_service_pb2 as rpc
from protos.gen.triglot.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from services.registry.access import Access
from services.registry.process import open_service
from services.registry.settings import RegistrySettings
from tests.registry.conftest import Registry
from tests.registry.test_objects import applies, apply_view, view

LIMIT_BYTES = 8192
TAGS, HALF = {"t": "x" * 5000}, {"t": "x" * 2500}
OBJECTS = 6
LISTS = [
    method.name
    for method in feast.DESCRIPTOR.services_by_name["RegistryServer"].methods
    if method.name.startswith("List") and "pagination" in method.input_type.fields_by_name
]
KINDS = [number for number in object_pb2.ObjectKind.values() if number != object_pb2.OBJECT_KIND_UNSPECIFIED]


@pytest.fixture
async def channel(registry: Registry, settings: Settings) -> AsyncIterator[InProcessChannel]:
    """Project `wide` and others, with six large objects of every kind, in a process whose messages hold one of them."""
    for number in range(OBJECTS):
        project = Project()
        project.spec.name = f"p{number}"
        project.spec.tags.update(TAGS)
        await registry(registry.feast.ApplyProject, feast.ApplyProjectRequest(project=project))
        for kind, (field, made) in applies().items():
            spec: Any = getattr(made, "spec", made)
            spec.name = f"{kind}{number}"
            spec.tags.update(HALF if kind.endswith("View") else TAGS)
            if kind.endswith("View"):
                del spec.features[:]
                spec.features.add(name="f", value_type=1, tags=HALF)
            verb = "FeatureView" if kind.endswith("View") else kind
            request = getattr(feast, f"Apply{verb}Request")(**{field: made}, project="wide")
            await registry(getattr(registry.feast, f"Apply{verb}"), request)
    small = settings.model_copy(update={"max_message_bytes": LIMIT_BYTES})
    async with open_service(small, RegistrySettings()) as services:
        yield InProcessChannel(services)


@pytest.fixture
def tight(channel: InProcessChannel, registry: Registry) -> Registry:
    return Registry(RegistryServerStub(channel), RegistryServiceStub(channel), registry.metadata)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each query answered."""
    counted: list[int] = []
    fetch = Access.fetch

    async def counting(self: Access, query: str, *arguments: Any) -> list[asyncpg.Record]:
        rows = await fetch(self, query, *arguments)
        counted.append(len(rows))
        return rows

    monkeypatch.setattr(Access, "fetch", counting)
    return counted


async def too_large(registry: Registry, method: Any, request: Any) -> None:
    with pytest.raises(errors.ResourceExhausted) as raised:
        await registry(method, request)
    assert (raised.value.reason, raised.value.metadata) == ("ANSWER_TOO_LARGE", {"limit_bytes": str(LIMIT_BYTES)})
    assert "page" in raised.value.message
    assert "TRIGLOT_MAX_MESSAGE_BYTES" in raised.value.message


async def test_lists_of_feasts_contract(tight: Registry, read: list[int]) -> None:
    assert len(LISTS) == 13
    for name in LISTS:
        method, kind = getattr(tight.feast, name), getattr(feast, f"{name}Request")
        in_project = {"project": "wide"} if "project" in kind.DESCRIPTOR.fields_by_name else {}
        read.clear()
        await too_large(tight, method, kind(**in_project))
        assert len(read) == 1, name
        assert read[0] < OBJECTS, name  # what is too much stays where it is
        page = await tight(method, kind(**in_project, pagination=feast.PaginationParams(page=2, limit=1)))
        assert page.pagination.total_count >= OBJECTS, name


@pytest.mark.parametrize("kind", KINDS)
async def test_lists_of_our_contract(tight: Registry, read: list[int], kind: object_pb2.ObjectKind.ValueType) -> None:
    await too_large(tight, tight.rendered.ListObjects, rpc.ListObjectsRequest(kind=kind))
    await too_large(tight, tight.rendered.ListObjects, rpc.ListObjectsRequest(kind=kind, page=1, limit=5))
    assert len(read) == 2
    assert max(read) < OBJECTS
    page = await tight(tight.rendered.ListObjects, rpc.ListObjectsRequest(kind=kind, page=2, limit=1))
    assert (len(page.objects), page.total >= OBJECTS) == (1, True)


async def test_contents_of_projects(tight: Registry, read: list[int]) -> None:
    await too_large(tight, tight.rendered.GetProjectContents, rpc.GetProjectContentsRequest(project="wide"))
    assert max(read) < OBJECTS
    await too_large(tight, tight.rendered.ListProjectContents, rpc.ListProjectContentsRequest())


async def test_lineage(registry: Registry, settings: Settings) -> None:
    """Relationships have no size of their own: what is too much is said when it is known."""
    await apply_view(registry, view("stats", *(f"feature_{number}" for number in range(60))), "wide")
    small = settings.model_copy(update={"max_message_bytes": 1024})
    ends = {"object_type": "featureView", "object_name": "stats"}
    stats = object_pb2.ObjectReference(type="featureView", name="stats")
    async with open_service(small, RegistrySettings()) as services:
        channel = InProcessChannel(services)
        tight = Registry(RegistryServerStub(channel), RegistryServiceStub(channel), registry.metadata)
        pages = {"page": 1, "limit": 5}
        theirs = {"pagination": feast.PaginationParams(**pages)}
        for method, request, paged in (
            (tight.feast.GetRegistryLineage, feast.GetRegistryLineageRequest(project="wide"), theirs),
            (
                tight.feast.GetObjectRelationships,
                feast.GetObjectRelationshipsRequest(project="wide", **ends),
                theirs,
            ),
            (tight.rendered.ListRelationships, rpc.ListRelationshipsRequest(project="wide"), pages),
            (
                tight.rendered.ListObjectRelationships,
                rpc.ListObjectRelationshipsRequest(project="wide", object=stats),
                pages,
            ),
        ):
            with pytest.raises(errors.ResourceExhausted) as raised:
                await tight(method, request)
            assert raised.value.reason == "ANSWER_TOO_LARGE"
            for field, value in paged.items():
                if isinstance(value, int):
                    setattr(request, field, value)
                else:
                    request.pagination.CopyFrom(value)
            assert len((await tight(method, request)).relationships) == 5


async def test_engines_and_jobs_read_no_more_than_they_show(
    channel: InProcessChannel, tight: Registry, registry: Registry
) -> None:
    """Two of the views are more than a message; a page of what was materialized of all of them is small."""
    for number in range(OBJECTS):
        made = FeatureView()
        made.spec.name = f"FeatureView{number}"
        for day in range(1, 4):
            request = feast.ApplyMaterializationRequest(feature_view=made, project="wide")
            request.start_date.FromDatetime(datetime(2026, 1, day, number))
            request.end_date.FromDatetime(datetime(2026, 1, day + 1, number))
            await tight(tight.feast.ApplyMaterialization, request)
    settings = GatewaySettings()
    app = create_app([dialect.dialect(channel, settings)], settings)
    async with httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app=app), base_url="http://feast", headers=dict(registry.metadata)
    ) as http:
        first = (await http.get("/materialization_jobs?project=wide&page=1&limit=7")).json()
        second = (await http.get("/materialization_jobs?project=wide&page=2&limit=7")).json()
    shown = [(each["featureView"], each["startTime"]) for answer in (first, second) for each in answer["jobs"]]
    latest = [(day, number) for day in (3, 2, 1) for number in reversed(range(OBJECTS))]
    assert shown == [(f"FeatureView{number}", f"2026-01-0{day}T0{number}:00:00Z") for day, number in latest[:14]]
    assert (first["pagination"]["total"], second["pagination"]["hasNext"]) == (3 * OBJECTS, True)


@pytest.mark.parametrize("count", [3, 130])
async def test_an_engine_shows_the_views_that_changed_last(
    services: list[Service], registry: Registry, count: int
) -> None:
    for number in range(count):
        made = view(f"v{number:03}", "f")
        await registry(registry.feast.ApplyFeatureView, feast.ApplyFeatureViewRequest(feature_view=made, project="p"))
    settings = GatewaySettings()
    app = create_app([dialect.dialect(InProcessChannel(services), settings)], settings)
    async with httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app=app), base_url="http://feast", headers=dict(registry.metadata)
    ) as http:
        shown = (await http.get("/compute_engines?project=p")).json()
    assert shown["engine"]["featureViewCount"] == count
    assert [each["name"] for each in shown["featureViews"]] == [f"v{n:03}" for n in range(max(0, count - 100), count)]


async def test_over_rest_it_is_429(channel: InProcessChannel, registry: Registry) -> None:
    settings = GatewaySettings()
    app = create_app([dialect.dialect(channel, settings)], settings)
    async with httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app=app), base_url="http://feast", headers=dict(registry.metadata)
    ) as http:
        answer = await http.get("/entities?project=wide")
        assert (answer.status_code, answer.json()["error_type"]) == (429, "HTTPException")
        assert "page" in answer.json()["detail"]
        assert (await http.get("/entities?project=wide&limit=1")).status_code == 200
