"""Whoever has no permission learns nothing, by whatever RPC: every method of both services, under strict.

A method that is added is tried too: requests are made from the descriptors.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from chassis import calls, errors
from chassis.inprocess import InProcessChannel
from chassis.principals import Principal
from chassis.settings import Settings
from protos.gen.feast.core.Project_pb2 import Project
from protos.gen.feast.registry import RegistryServer_pb2 as feast
from protos.gen.feast.registry.RegistryServer_pb2_grpc import RegistryServerStub
from protos.gen.triglot.registry.v1 import registry_service_pb2 as rpc
from protos.gen.triglot.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from services.registry.access import Access
from services.registry.process import open_service
from services.registry.settings import RegistrySettings
from tests.registry.conftest import Registry
from tests.registry.test_objects import applies
from tests.registry.test_permissions import permission

METHODS: list[MethodDescriptor] = [
    *feast.DESCRIPTOR.services_by_name["RegistryServer"].methods,
    *rpc.DESCRIPTOR.services_by_name["RegistryService"].methods,
]
# Tables that hold what permissions speak of; others are only read together with one of these.
NARROWED = {"object", "project", "tally", "edge"}
JOINED = {"materialization", "version", "entity_source", "visit"}
TABLE = re.compile(r"\b(readable_|registry\.)(\w+)\b(?!\()( /\* whole \*/)?")
NARROWED_BY_NAME = ("ListFeatures", "ListFeatureServices", "ListObjects", "ListRelationships", "ListMaterializations")
SEEN, MISSING = "hidden", "absent"


@pytest.fixture
async def stranger(
    settings: Settings, registry: Registry, make_key: Callable[[Principal], Awaitable[str]]
) -> AsyncIterator[Registry]:
    """A caller without roles at a strict process. Project `rides` holds an object `hidden` of every kind."""
    project = Project()
    project.spec.name = "rides"
    project.spec.description = SEEN
    project.spec.tags["t"] = SEEN
    await registry(registry.feast.ApplyProject, feast.ApplyProjectRequest(project=project))
    for kind, (field, _) in applies().items():
        verb = "FeatureView" if kind.endswith("View") else kind
        # Names are unique among views.
        made = named(kind, SEEN if kind in ("FeatureView", verb) else f"{SEEN}{kind}")
        request = getattr(feast, f"Apply{verb}Request")(**{field: made}, project="rides")
        await registry(getattr(registry.feast, f"Apply{verb}"), request)
    request = feast.ApplyPermissionRequest(permission=permission("boss", roles=("boss",)), project="rides")
    await registry(registry.feast.ApplyPermission, request)
    key = await make_key(Principal("stranger"))
    async with open_service(settings, RegistrySettings(strict_permissions=True)) as services:
        channel = InProcessChannel(services)
        yield Registry(RegistryServerStub(channel), RegistryServiceStub(channel), calls.bearer(key))


def named(kind: str, name: str) -> Any:
    made: Any = applies()[kind][1]
    spec = getattr(made, "spec", made)
    spec.name = name
    spec.tags["t"] = SEEN
    if kind.endswith("View"):
        del spec.features[:]
        spec.features.add(name=SEEN, value_type=1)
    return made


def requests(method: MethodDescriptor, name: str) -> Iterator[Any]:
    """Requests about objects of a name; one for each kind, where a field says which."""
    kinds = {field.name: field for field in method.input_type.fields}.get("kind")
    if kinds is None or kinds.enum_type is None:
        yield request_about(method, name)
        return
    for number in kinds.enum_type.values_by_number:
        if number:
            request = request_about(method, name)
            request.kind = number
            yield request


def request_about(method: MethodDescriptor, name: str) -> Any:
    request: Any = GetMessageClass(method.input_type)()
    texts = {"project": "rides", "query": name[:4], "object_type": "featureView", "path": "/x", "name": name}
    texts |= {"feature_view": name, "object_name": name, "job_id": name}
    if "Project" in method.name and "name" in request.DESCRIPTOR.fields_by_name:
        texts["name"] = "rides" if name == SEEN else name
    for field in request.DESCRIPTOR.fields:
        # A list that is narrowed by a name would say nothing: it is asked for whole.
        if field.name in ("name", "feature_view", "object_name") and method.name in NARROWED_BY_NAME:
            continue
        if field.type == FieldDescriptor.TYPE_STRING and not field.is_repeated and field.name in texts:
            setattr(request, field.name, texts[field.name])
        elif field.name in ("page", "limit"):
            setattr(request, field.name, 1)
        elif field.name.startswith("include_"):
            setattr(request, field.name, True)
        elif field.name == "object" and field.message_type is not None:
            request.object.type, request.object.name = "featureView", name
        elif field.name == "project":  # of ApplyProject
            request.project.spec.name = "rides" if name == SEEN else name
        elif field.message_type is not None:
            for kind, (known, _) in applies().items():
                if field.name == known:
                    getattr(request, field.name).CopyFrom(named(kind, name))
    return request


def leaves(message: Message) -> Iterator[Any]:
    """All that an answer says: texts, bytes, numbers that are not 0. An enum says of which kind something is."""
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            yield from value.items()
        elif field.enum_type is None:
            for each in value if field.is_repeated else [value]:
                if isinstance(each, Message):
                    yield from leaves(each)
                elif each != 0:
                    yield each


async def answer(caller: Registry, method: MethodDescriptor, request: Any) -> Sequence[Message] | errors.TriglotError:
    """The parts of an answer: one, unless the method streams."""
    stub = caller.feast if method.containing_service.name == "RegistryServer" else caller.rendered
    call = getattr(stub, method.name)
    try:
        if method.server_streaming:
            return [part async for part in call(request, metadata=caller.metadata)]
        return [await caller(call, request)]
    except errors.TriglotError as error:
        return error
    except grpc.aio.AioRpcError as error:
        return errors.from_rpc(error)


async def test_nobody_learns_or_changes_anything_without_a_permission(registry: Registry, stranger: Registry) -> None:
    before = await registry(registry.feast.Proto, Empty())
    assert len(METHODS) >= 70
    refused = 0
    for method in METHODS:
        for request in requests(method, SEEN):
            found = await answer(stranger, method, request)
            if isinstance(found, errors.TriglotError):
                assert not isinstance(found, errors.Internal), (method.name, found)
                refused += isinstance(found, errors.PermissionDenied)
                continue
            told = [each for part in found for each in leaves(part) if each not in ("rides", b"[]")]
            assert told == [], (method.name, found)
    assert refused >= 45
    assert await registry(registry.feast.Proto, Empty()) == before


async def test_what_is_hidden_and_what_is_missing_are_not_told_apart(stranger: Registry) -> None:
    for method in METHODS:
        there = "rides" if method.name in ("ApplyProject", "GetProject", "DeleteProject") else SEEN
        for hidden, missing in zip(requests(method, SEEN), requests(method, MISSING), strict=True):
            found = [await answer(stranger, method, request) for request in (hidden, missing)]
            shown = [
                (type(each).__name__, each.reason, each.message.replace(MISSING, there))
                if isinstance(each, errors.TriglotError)
                else each
                for each in found
            ]
            assert shown[0] == shown[1], method.name


async def test_every_query_that_is_read_for_a_caller_names_only_narrowed_tables(
    stranger: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries: set[str] = set()
    narrowed = Access.narrowed

    def noting(self: Access, query: str, arguments: tuple[Any, ...]) -> tuple[str, tuple[Any, ...]]:
        queries.add(query)
        return narrowed(self, query, arguments)

    monkeypatch.setattr(Access, "narrowed", noting)
    for method in METHODS:
        for request in requests(method, SEEN):
            await answer(stranger, method, request)
    assert len(queries) >= 25
    token = calls.enter(calls.Call("id", principal=Principal("stranger")))
    try:
        for query in queries:
            text, _ = narrowed(Access(None, strict=True), query, ())  # type: ignore[arg-type] - nothing is asked
            own = text[text.rindex("readable_edge AS NOT MATERIALIZED") :].partition("\n)")[2]
            read = {(prefix, table) for prefix, table, whole in TABLE.findall(own) if not whole}
            assert {table for prefix, table in read if prefix == "registry."} <= JOINED, own
            assert NARROWED & {table for prefix, table in read if prefix == "readable_"}, own
    finally:
        calls.leave(token)
