"""Objects of the registry: lists in one project or in all, and single ones.

They arrive as JSON bytes and are spliced into answers as they are; nothing here parses them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from google.protobuf.descriptor import Descriptor

from gateway.dialects.feast import parameters, schemas
from gateway.dialects.feast.parameters import Parameter
from gateway.dialects.feast.routes import Asked, Route
from gateway.dialects.feast.schemas import NUMBER, TEXT, TEXTS, Component, Schema, many, one_of, record
from gateway.exchange import Answer
from protos.gen.feast.core import (
    DataSource_pb2,
    Entity_pb2,
    FeatureService_pb2,
    FeatureView_pb2,
    LabelView_pb2,
    OnDemandFeatureView_pb2,
    Permission_pb2,
    Project_pb2,
    SavedDataset_pb2,
    StreamFeatureView_pb2,
)
from protos.gen.triglot.registry.v1 import object_pb2
from protos.gen.triglot.registry.v1 import registry_service_pb2 as rpc

_OF_PROJECT: Schema = {"name": TEXT, "project": TEXT}


def _object(name: str, descriptor: Descriptor, front: Schema = _OF_PROJECT) -> Component:
    """An object as the registry shows it: some keys in front of its message's own."""

    def build() -> Schema:
        return record(front, {**schemas.of_message(descriptor)["properties"], **front})

    return Component(name, build)


def _view(name: str, descriptor: Descriptor) -> Component:
    return _object(f"{name[0].upper()}{name[1:]}", descriptor, {**_OF_PROJECT, "type": one_of([name])})


ENTITY = _object("Entity", Entity_pb2.Entity.DESCRIPTOR)
DATA_SOURCE = _object("DataSource", DataSource_pb2.DataSource.DESCRIPTOR)
FEATURE_VIEW = _view("featureView", FeatureView_pb2.FeatureView.DESCRIPTOR)
STREAM_FEATURE_VIEW = _view("streamFeatureView", StreamFeatureView_pb2.StreamFeatureView.DESCRIPTOR)
ON_DEMAND_FEATURE_VIEW = _view("onDemandFeatureView", OnDemandFeatureView_pb2.OnDemandFeatureView.DESCRIPTOR)
LABEL_VIEW = _view("labelView", LabelView_pb2.LabelView.DESCRIPTOR)
FEATURE_SERVICE = _object("FeatureService", FeatureService_pb2.FeatureService.DESCRIPTOR)
SAVED_DATASET = _object("SavedDataset", SavedDataset_pb2.SavedDataset.DESCRIPTOR)
PERMISSION = _object("Permission", Permission_pb2.Permission.DESCRIPTOR)
PROJECT = _object("Project", Project_pb2.Project.DESCRIPTOR, {"name": TEXT})


def _part(name: str, kind: str) -> Component:
    required = {**_OF_PROJECT, "featureView": TEXT, "type": TEXT, "kind": one_of([kind])}
    return Component(name, lambda: record(required, {"description": TEXT, "tags": TEXTS}))


FEATURE, LABEL = _part("Feature", "feature"), _part("Label", "label")


@dataclass(frozen=True)
class Resource:
    """One kind of object in paths and in JSON."""

    path: str
    kind: object_pb2.ObjectKind.ValueType
    list_key: str
    object_key: str
    shows: Sequence[Component]
    # Query parameters of its lists that are fields of ListObjectsRequest.
    filters: Sequence[Parameter[str]] = ()
    # Whether its lists can be of what changed lately.
    of_views: bool = False
    of_project: bool = True
    across_projects: bool = True
    # Its lists across projects repeat the paging keys in snake_case.
    snake_case_paging: bool = False
    # Whether a single one comes with the Python code that defines it.
    defined: bool = True
    place: str = "/{name:path}"

    @property
    def plural(self) -> str:
        """In sentences."""
        return self.path.replace("_", " ")


_ANY_VIEW = (FEATURE_VIEW, STREAM_FEATURE_VIEW, ON_DEMAND_FEATURE_VIEW)
_ENTITY = parameters.text("entity", "Only views that use this entity.")
_FEATURE = parameters.text("feature", "Only views that hold a feature of this name.")
_FEATURE_SERVICE = parameters.text("feature_service", "Only views that this feature service selects from.")
_DATA_SOURCE = parameters.text("data_source", "Only views that are read from this data source.")
_VIEW_FILTERS = (_ENTITY, _FEATURE, _FEATURE_SERVICE, _DATA_SOURCE)
_SELECTS_FROM = parameters.text("feature_view", "Only services that select from this view.")
_OF_VIEW = parameters.text("feature_view", "Only those of this view.")
_NAME = parameters.text("name", "Only those of this name.")
_NAMESPACE = parameters.text("namespace", "Only datasets of this namespace.")
_COLLECTION = parameters.text("collection", "Only datasets of this collection.")

RESOURCES = (
    Resource("entities", object_pb2.OBJECT_KIND_ENTITY, "entities", "entity", [ENTITY]),
    Resource("data_sources", object_pb2.OBJECT_KIND_DATA_SOURCE, "dataSources", "dataSource", [DATA_SOURCE]),
    Resource(
        "feature_views",
        object_pb2.OBJECT_KIND_ANY_FEATURE_VIEW,
        "featureViews",
        "featureView",
        _ANY_VIEW,
        filters=_VIEW_FILTERS,
        of_views=True,
    ),
    Resource(
        "features",
        object_pb2.OBJECT_KIND_FEATURE,
        "features",
        "feature",
        [FEATURE],
        filters=(_OF_VIEW, _NAME),
        snake_case_paging=True,
        place="/{feature_view}/{name:path}",
    ),
    Resource(
        "labels",
        object_pb2.OBJECT_KIND_LABEL,
        "labels",
        "label",
        [LABEL],
        filters=(_OF_VIEW, _NAME),
        place="/{feature_view}/{name:path}",
    ),
    # The real server answers with label views under the keys of feature views.
    Resource(
        "label_views",
        object_pb2.OBJECT_KIND_LABEL_VIEW,
        "featureViews",
        "featureView",
        [LABEL_VIEW],
        filters=_VIEW_FILTERS,
        of_views=True,
    ),
    Resource(
        "feature_services",
        object_pb2.OBJECT_KIND_FEATURE_SERVICE,
        "featureServices",
        "featureService",
        [FEATURE_SERVICE],
        filters=(_SELECTS_FROM,),
    ),
    Resource(
        "saved_datasets",
        object_pb2.OBJECT_KIND_SAVED_DATASET,
        "savedDatasets",
        "savedDataset",
        [SAVED_DATASET],
        filters=(_NAMESPACE, _COLLECTION),
    ),
    Resource(
        "permissions",
        object_pb2.OBJECT_KIND_PERMISSION,
        "permissions",
        "permission",
        [PERMISSION],
        across_projects=False,
        defined=False,
    ),
    Resource(
        "projects",
        object_pb2.OBJECT_KIND_PROJECT,
        "projects",
        "project",
        [PROJECT],
        of_project=False,
        across_projects=False,
        defined=False,
    ),
)


def routes(registry: Any) -> Sequence[Route]:
    """The routes of every resource."""
    return [route for resource in RESOURCES for route in _routes(resource, registry)]


def _routes(resource: Resource, registry: Any) -> Sequence[Route]:
    path, plural = f"/{resource.path}", resource.plural
    project = (parameters.PROJECT,) if resource.of_project else ()
    listed = (parameters.INCLUDE_RELATIONSHIPS, parameters.ALLOW_CACHE, parameters.TAGS)
    filters = (*resource.filters, *((parameters.UPDATED_SINCE,) if resource.of_views else ()))
    found = [
        Route(
            "GET",
            path,
            f"{resource.path}.list",
            f"The {plural} of a project." if resource.of_project else f"All {plural}.",
            registry.ListObjects,
            lambda asked: _list_request(resource, asked),
            lambda asked, reply: _list_answer(resource, asked, reply),
            shows=_list_schema(resource, schemas.PAGINATION),
            parameters=(*project, *listed, *filters, *parameters.PAGING),
        )
    ]
    if resource.across_projects:
        found.append(
            Route(
                "GET",
                f"{path}/all",
                f"{resource.path}.all",
                f"The {plural} of all projects.",
                registry.ListObjects,
                lambda asked: _list_request(resource, asked),
                lambda asked, reply: _list_answer(resource, asked, reply),
                shows=_list_schema(resource, _BOTH_SPELLINGS if resource.snake_case_paging else schemas.PAGINATION),
                parameters=(*listed, *filters, *parameters.PAGING_OF_ALL),
            )
        )
    found.append(
        Route(
            "GET",
            path + resource.place,
            f"{resource.path}.get",
            f"One of the {plural}.",
            registry.GetObject,
            lambda asked: _get_request(resource, asked),
            lambda asked, reply: _get_answer(resource, asked, reply),
            shows=_get_schema(resource),
            parameters=(*project, parameters.INCLUDE_RELATIONSHIPS, parameters.ALLOW_CACHE),
            errors=(404,),
        )
    )
    return found


# ---- lists ----


def _list_request(resource: Resource, asked: Asked) -> rpc.ListObjectsRequest:
    page, limit = asked.page()
    request = rpc.ListObjectsRequest(
        kind=resource.kind,
        project=asked.get(parameters.PROJECT, ""),
        page=page,
        limit=limit,
        sort_by=asked[parameters.SORT_BY],
        descending=asked[parameters.SORT_ORDER] == "desc",
        tags=asked[parameters.TAGS],
        include_relationships=asked[parameters.INCLUDE_RELATIONSHIPS],
    )
    for parameter in resource.filters:
        setattr(request, parameter.name, asked[parameter])
    since = asked.get(parameters.UPDATED_SINCE, None)
    if since is not None:
        request.updated_since.FromDatetime(since)
    return request


def _list_answer(resource: Resource, asked: Asked, reply: rpc.ListObjectsResponse) -> Answer:
    pagination = asked.pagination(reply.total)
    if resource.snake_case_paging and not asked.get(parameters.PROJECT, ""):
        pagination |= {snake: pagination[camel] for snake, camel in _SPELLINGS.items()}
    parts = [
        b'{"%b":[' % resource.list_key.encode(),
        b",".join(reply.objects),
        b'],"pagination":' + orjson.dumps(pagination),
    ]
    if asked[parameters.INCLUDE_RELATIONSHIPS]:
        parts.append(b',"relationships":' + orjson.dumps(_relationships_by_name(reply.relationships)))
    return Answer(body=b"".join((*parts, b"}")))


_SPELLINGS = {
    "total_count": "totalCount",
    "total_pages": "totalPages",
    "has_next": "hasNext",
    "has_previous": "hasPrevious",
}


def _both_spellings() -> Schema:
    properties = schemas.PAGINATION.build()["properties"]
    return record({**properties, **{snake: properties[camel] for snake, camel in _SPELLINGS.items()}})


_BOTH_SPELLINGS = Component("PaginationInBothSpellings", _both_spellings)


def _relationships_by_name(found: Sequence[rpc.ObjectRelationships]) -> Mapping[str, Sequence[Any]]:
    """By name, as the document has it; what objects of the same name in several projects have is put together."""
    by_name: dict[str, list[Any]] = {}
    for each in found:
        shown = by_name.setdefault(each.name, [])
        shown.extend(relation for relation in map(parameters.relation, each.relationships) if relation not in shown)
    return by_name


def _list_schema(resource: Resource, pagination: Component) -> Schema:
    shown = {resource.list_key: many(_any_of(resource.shows)), "pagination": pagination}
    return record(shown, {"relationships": schemas.RELATIONSHIPS_BY_NAME})


def _any_of(shown: Sequence[Component]) -> Schema | Component:
    return shown[0] if len(shown) == 1 else {"anyOf": list(shown)}


# ---- single objects ----


def _get_request(resource: Resource, asked: Asked) -> rpc.GetObjectRequest:
    return rpc.GetObjectRequest(
        kind=resource.kind,
        project=asked[parameters.PROJECT] if resource.of_project else "",
        name=asked.part("name"),
        feature_view=asked.part("feature_view") if "{feature_view}" in resource.place else "",
        include_relationships=asked[parameters.INCLUDE_RELATIONSHIPS],
        include_details=resource.defined,
    )


def _get_answer(resource: Resource, asked: Asked, reply: rpc.GetObjectResponse) -> Answer:
    """The object's own keys at top level, as the real server has them, and again below its kind, as the document."""
    parts = [reply.object[:-1], b',"%b":' % resource.object_key.encode(), reply.object]
    if resource.kind == object_pb2.OBJECT_KIND_ENTITY:
        sources = b",".join(reply.data_sources), reply.data_sources_total
        parts.append(b',"dataSources":[%b],"dataSourcesTotal":%d' % sources)
    if resource.defined:
        parts.append(b',"featureDefinition":' + orjson.dumps(reply.definition))
    if asked[parameters.INCLUDE_RELATIONSHIPS]:
        parts.append(b',"relationships":' + orjson.dumps([parameters.relation(each) for each in reply.relationships]))
    return Answer(body=b"".join((*parts, b"}")))


def _get_schema(resource: Resource) -> Schema | Component:
    return _any_of([_single(resource, shown) for shown in resource.shows])


def _single(resource: Resource, shown: Component) -> Component:
    def build() -> Schema:
        alone = shown.build()
        required = {key: alone["properties"][key] for key in alone["required"]} | {resource.object_key: shown}
        if resource.kind == object_pb2.OBJECT_KIND_ENTITY:
            required |= {"dataSources": many(DATA_SOURCE), "dataSourcesTotal": NUMBER}
        if resource.defined:
            required["featureDefinition"] = TEXT
        return record(required, {**alone["properties"], "relationships": many(schemas.RELATIONSHIP), **required})

    return Component(f"Single{shown.name}", build)
