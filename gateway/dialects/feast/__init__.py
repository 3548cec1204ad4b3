"""Feast's registry server over REST: every route with and without /api/v1, answered from triglot.registry.v1.

Objects arrive as JSON bytes and are spliced into answers as they are; nothing here parses them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import orjson
from google.protobuf.empty_pb2 import Empty

from chassis import errors
from gateway.dialect import Dialect, Row
from gateway.dialects.feast import lineage, metrics, parameters, search
from gateway.dialects.feast.faults import credential, render_error
from gateway.exchange import Answer, Exchange
from gateway.settings import GatewaySettings
from protos.gen.feast.registry import RegistryServer_pb2
from protos.gen.feast.registry.RegistryServer_pb2_grpc import RegistryServerStub
from protos.gen.triglot.registry.v1 import object_pb2
from protos.gen.triglot.registry.v1 import registry_service_pb2 as rpc
from protos.gen.triglot.registry.v1.registry_service_pb2_grpc import RegistryServiceStub

PREFIXES = ("/api/v1", "")


@dataclass(frozen=True)
class Resource:
    """One kind of object in paths and in JSON."""

    path: str
    kind: object_pb2.ObjectKind.ValueType
    list_key: str
    object_key: str
    # Query parameters of its lists that are fields of ListObjectsRequest.
    filters: Sequence[str] = ()
    of_project: bool = True
    across_projects: bool = True
    # Its lists across projects repeat the paging keys in snake_case.
    snake_case_paging: bool = False
    place: str = "/{name:path}"


_VIEW_FILTERS = ("entity", "feature", "feature_service", "data_source")
RESOURCES = (
    Resource("entities", object_pb2.OBJECT_KIND_ENTITY, "entities", "entity"),
    Resource("data_sources", object_pb2.OBJECT_KIND_DATA_SOURCE, "dataSources", "dataSource"),
    Resource(
        "feature_views", object_pb2.OBJECT_KIND_ANY_FEATURE_VIEW, "featureViews", "featureView", filters=_VIEW_FILTERS
    ),
    Resource(
        "features",
        object_pb2.OBJECT_KIND_FEATURE,
        "features",
        "feature",
        filters=("feature_view", "name"),
        snake_case_paging=True,
        place="/{feature_view}/{name:path}",
    ),
    Resource(
        "labels",
        object_pb2.OBJECT_KIND_LABEL,
        "labels",
        "label",
        filters=("feature_view", "name"),
        place="/{feature_view}/{name:path}",
    ),
    # The real server answers with label views under the keys of feature views.
    Resource("label_views", object_pb2.OBJECT_KIND_LABEL_VIEW, "featureViews", "featureView", filters=_VIEW_FILTERS),
    Resource(
        "feature_services",
        object_pb2.OBJECT_KIND_FEATURE_SERVICE,
        "featureServices",
        "featureService",
        filters=("feature_view",),
    ),
    Resource("saved_datasets", object_pb2.OBJECT_KIND_SAVED_DATASET, "savedDatasets", "savedDataset"),
    Resource("permissions", object_pb2.OBJECT_KIND_PERMISSION, "permissions", "permission", across_projects=False),
    Resource(
        "projects", object_pb2.OBJECT_KIND_PROJECT, "projects", "project", of_project=False, across_projects=False
    ),
)


def dialect(channel: grpc.aio.Channel, settings: GatewaySettings) -> Dialect:
    """The dialect on a channel to the registry."""
    registry: Any = RegistryServiceStub(channel)
    rows = [row for resource in RESOURCES for prefix in PREFIXES for row in _rows(resource, prefix, registry)]
    feast: Any = RegistryServerStub(channel)
    for prefix in PREFIXES:
        rows.append(Row(("POST",), f"{prefix}/registry/refresh", "refresh", feast.Refresh, _refresh, _refreshed))
        for part in (lineage, search, metrics):
            rows += part.rows(prefix, registry)
    # It owns what no other dialect does: Feast's paths carry no mark of their own.
    return Dialect("feast", rows, credential, render_error, owns=lambda path: True)


def _rows(resource: Resource, prefix: str, registry: Any) -> Sequence[Row]:
    path = f"{prefix}/{resource.path}"

    def row(place: str, operation: str, method: Any, request: _Request, answer: _Answer) -> Row:
        return Row(
            methods=("GET",),
            path=path + place,
            operation=f"{resource.path}.{operation}",
            rpc=method,
            request=lambda exchange: request(resource, exchange),
            answer=lambda exchange, reply: answer(resource, exchange, reply),
        )

    rows = [row("", "list", registry.ListObjects, _list_request, _list_answer)]
    if resource.across_projects:
        rows.append(row("/all", "all", registry.ListObjects, _all_request, _all_answer))
    rows.append(row(resource.place, "get", registry.GetObject, _get_request, _get_answer))
    return rows


_Request = Callable[[Resource, Exchange], Any]
_Answer = Callable[[Resource, Exchange, Any], Answer]


# ---- requests ----


def _list_request(resource: Resource, exchange: Exchange) -> rpc.ListObjectsRequest:
    request = _listing(resource, exchange, *(parameters.asked_page(exchange) or (0, 0)))
    if resource.of_project:
        request.project = parameters.required(exchange, "project")
    return request


def _all_request(resource: Resource, exchange: Exchange) -> rpc.ListObjectsRequest:
    return _listing(resource, exchange, *(parameters.asked_page(exchange) or (1, parameters.DEFAULT_LIMIT)))


def _listing(resource: Resource, exchange: Exchange, page: int, limit: int) -> rpc.ListObjectsRequest:
    parameters.flag(exchange, "allow_cache")
    request = rpc.ListObjectsRequest(
        kind=resource.kind,
        page=page,
        limit=limit,
        sort_by=exchange.parameter("sort_by") or "",
        descending=parameters.descending(exchange),
        tags=parameters.tags(exchange),
        include_relationships=parameters.flag(exchange, "include_relationships"),
    )
    for name in resource.filters:
        setattr(request, name, exchange.parameter(name) or "")
    since = exchange.parameter("updated_since") if resource.kind == object_pb2.OBJECT_KIND_ANY_FEATURE_VIEW else None
    if since:
        request.updated_since.FromDatetime(parameters.moment(since))
    return request


def _get_request(resource: Resource, exchange: Exchange) -> rpc.GetObjectRequest:
    parameters.flag(exchange, "allow_cache")
    if not exchange.path_params["name"]:
        raise errors.NotFound("Not Found", reason="OPERATION_NOT_FOUND")
    return rpc.GetObjectRequest(
        kind=resource.kind,
        project=parameters.required(exchange, "project") if resource.of_project else "",
        name=exchange.path_params["name"],
        feature_view=exchange.path_params.get("feature_view", ""),
        include_relationships=parameters.flag(exchange, "include_relationships"),
    )


def _refresh(exchange: Exchange) -> RegistryServer_pb2.RefreshRequest:
    """There is no cache to refresh; the project is taken as it comes."""
    return RegistryServer_pb2.RefreshRequest(project=exchange.parameter("project") or "")


# ---- answers ----


def _list_answer(resource: Resource, exchange: Exchange, reply: rpc.ListObjectsResponse) -> Answer:
    page, limit = parameters.asked_page(exchange) or (1, reply.total)
    return _spliced(resource, exchange, reply, parameters.pagination(page, limit, reply.total))


def _all_answer(resource: Resource, exchange: Exchange, reply: rpc.ListObjectsResponse) -> Answer:
    page, limit = parameters.asked_page(exchange) or (1, parameters.DEFAULT_LIMIT)
    pagination = parameters.pagination(page, limit, reply.total)
    if resource.snake_case_paging:
        pagination |= {
            "total_count": pagination["totalCount"],
            "total_pages": pagination["totalPages"],
            "has_next": pagination["hasNext"],
            "has_previous": pagination["hasPrevious"],
        }
    return _spliced(resource, exchange, reply, pagination)


def _spliced(
    resource: Resource, exchange: Exchange, reply: rpc.ListObjectsResponse, pagination: Mapping[str, Any]
) -> Answer:
    parts = [
        b'{"%b":[' % resource.list_key.encode(),
        b",".join(reply.objects),
        b'],"pagination":' + orjson.dumps(pagination),
    ]
    if parameters.flag(exchange, "include_relationships"):
        parts.append(b',"relationships":' + orjson.dumps(_relationships_by_name(reply.relationships)))
    return Answer(body=b"".join((*parts, b"}")))


def _relationships_by_name(found: Sequence[rpc.ObjectRelationships]) -> Mapping[str, Sequence[Any]]:
    """By name, as the document has it; what objects of the same name in several projects have is put together."""
    by_name: dict[str, list[Any]] = {}
    for each in found:
        shown = by_name.setdefault(each.name, [])
        shown.extend(relation for relation in map(parameters.relation, each.relationships) if relation not in shown)
    return by_name


def _get_answer(resource: Resource, exchange: Exchange, reply: rpc.GetObjectResponse) -> Answer:
    """The object's own keys at top level, as the real server has them, and again below its kind, as the document."""
    parts = [reply.object[:-1], b',"%b":' % resource.object_key.encode(), reply.object]
    if parameters.flag(exchange, "include_relationships"):
        parts.append(b',"relationships":' + orjson.dumps([parameters.relation(each) for each in reply.relationships]))
    return Answer(body=b"".join((*parts, b"}")))


def _refreshed(exchange: Exchange, reply: Empty) -> Answer:
    """Nothing, as the real server."""
    return Answer()
