"""Who uses whom: of one object, of a project, of all projects; and everything that projects hold."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any

import orjson

from gateway.dialects.feast import objects, parameters, schemas
from gateway.dialects.feast.routes import Asked, Route
from gateway.dialects.feast.schemas import TEXT, Component, Schema, many, record
from gateway.exchange import Answer, json_answer
from protos.gen.triglot.registry.v1 import object_pb2
from protos.gen.triglot.registry.v1 import registry_service_pb2 as rpc

_TYPE = parameters.text("filter_object_type", "Only relationships with an object of this type at either end.")
_NAME = parameters.text("filter_object_name", "Only relationships with an object of this name at either end.")
_INDIRECT = parameters.flag("include_indirect", "Also relationships by way of a view.")

# The lists of lineage/complete: key in JSON, field of ProjectContents, what they hold.
_LISTS: Sequence[tuple[str, str, Any]] = (
    ("entities", "entities", objects.ENTITY),
    ("dataSources", "data_sources", objects.DATA_SOURCE),
    (
        "featureViews",
        "feature_views",
        {"anyOf": [objects.FEATURE_VIEW, objects.STREAM_FEATURE_VIEW, objects.ON_DEMAND_FEATURE_VIEW]},
    ),
    ("labelViews", "label_views", objects.LABEL_VIEW),
    ("featureServices", "feature_services", objects.FEATURE_SERVICE),
    ("features", "features", objects.FEATURE),
    ("labels", "labels", objects.LABEL),
    ("savedDatasets", "saved_datasets", objects.SAVED_DATASET),
)


def _lineage(relationship: Component) -> Schema:
    return record(
        {
            "relationships": many(relationship),
            "indirect_relationships": many(relationship),
            "relationships_pagination": schemas.PAGINATION,
            "indirect_relationships_pagination": schemas.PAGINATION,
        }
    )


_CONTENTS = Component(
    "ProjectContents",
    lambda: record(
        {
            "project": TEXT,
            "objects": record({key: many(shown) for key, _, shown in _LISTS}),
            "relationships": many(schemas.RELATIONSHIP),
            "indirectRelationships": many(schemas.RELATIONSHIP),
            "pagination": record(
                dict.fromkeys(
                    (*(key for key, _, _ in _LISTS), "relationships", "indirectRelationships"), schemas.PAGINATION
                )
            ),
        }
    ),
)


def routes(registry: Any) -> Sequence[Route]:
    """The routes of lineage."""
    page = (parameters.PAGE, parameters.LIMIT)
    filters = (parameters.ALLOW_CACHE, _TYPE, _NAME, *page, parameters.SORT_ORDER)
    return (
        Route(
            "GET",
            "/lineage/registry",
            "lineage.registry",
            "The lineage of a project.",
            registry.ListRelationships,
            _request,
            _answer,
            shows=_lineage(schemas.RELATIONSHIP),
            parameters=(parameters.PROJECT, *filters),
        ),
        Route(
            "GET",
            "/lineage/registry/all",
            "lineage.registry_all",
            "The lineage of all projects.",
            registry.ListRelationships,
            _request,
            _all_answer,
            shows=_lineage(schemas.RELATIONSHIP_IN_PROJECT),
            parameters=filters,
        ),
        Route(
            "GET",
            "/lineage/objects/{object_type}/{object_name:path}",
            "lineage.object",
            "The relationships of one object.",
            registry.ListObjectRelationships,
            _object_request,
            _object_answer,
            shows=record({"relationships": many(schemas.RELATIONSHIP), "pagination": schemas.PAGINATION}),
            parameters=(parameters.PROJECT, _INDIRECT, parameters.ALLOW_CACHE, *page),
        ),
        Route(
            "GET",
            "/lineage/complete",
            "lineage.complete",
            "Everything in a project, and its lineage.",
            registry.StreamProjectContents,
            _contents_request,
            lambda asked, parts: Answer(rest=_streamed(asked, parts)),
            shows=_CONTENTS,
            parameters=(parameters.PROJECT, parameters.ALLOW_CACHE, *page),
            streams=True,
        ),
        Route(
            "GET",
            "/lineage/complete/all",
            "lineage.complete_all",
            "Everything in every project, and its lineage. Pages, if asked for, are of projects.",
            registry.ListProjectContents,
            _all_contents_request,
            _all_contents_answer,
            shows=record({"projects": many(_CONTENTS), "pagination": schemas.PAGINATION}),
            parameters=(parameters.ALLOW_CACHE, *page),
        ),
    )


def _request(asked: Asked) -> rpc.ListRelationshipsRequest:
    page, limit = asked.page()
    return rpc.ListRelationshipsRequest(
        project=asked.get(parameters.PROJECT, ""),
        object_type=asked[_TYPE],
        object_name=asked[_NAME],
        page=page,
        limit=limit,
        descending=asked[parameters.SORT_ORDER] == "desc",
    )


def _object_request(asked: Asked) -> rpc.ListObjectRelationshipsRequest:
    page, limit = asked.page()
    return rpc.ListObjectRelationshipsRequest(
        project=asked[parameters.PROJECT],
        object=object_pb2.ObjectReference(type=asked.part("object_type"), name=asked.part("object_name")),
        include_indirect=asked[_INDIRECT],
        page=page,
        limit=limit,
    )


def _answer(asked: Asked, reply: rpc.ListRelationshipsResponse) -> Answer:
    return json_answer(
        {
            "relationships": [parameters.relation(each.relationship) for each in reply.relationships],
            "indirect_relationships": [parameters.relation(each.relationship) for each in reply.indirect_relationships],
            **_paginations(asked, reply),
        }
    )


def _all_answer(asked: Asked, reply: rpc.ListRelationshipsResponse) -> Answer:
    return json_answer(
        {
            "relationships": _with_project(reply.relationships),
            "indirect_relationships": _with_project(reply.indirect_relationships),
            **_paginations(asked, reply),
        }
    )


def _with_project(found: Iterable[rpc.ProjectRelationship]) -> Sequence[Any]:
    return [parameters.relation(each.relationship) | {"project": each.project} for each in found]


def _paginations(asked: Asked, reply: rpc.ListRelationshipsResponse) -> dict[str, Any]:
    return {
        "relationships_pagination": asked.pagination(reply.total),
        "indirect_relationships_pagination": asked.pagination(reply.indirect_total),
    }


def _object_answer(asked: Asked, reply: rpc.ListObjectRelationshipsResponse) -> Answer:
    return json_answer(
        {
            "relationships": [parameters.relation(each) for each in reply.relationships],
            "pagination": asked.pagination(reply.total),
        }
    )


def _contents_request(asked: Asked) -> rpc.StreamProjectContentsRequest:
    page, limit = asked.page()
    return rpc.StreamProjectContentsRequest(project=asked[parameters.PROJECT], page=page, limit=limit)


def _all_contents_request(asked: Asked) -> rpc.ListProjectContentsRequest:
    page, limit = asked.page()
    return rpc.ListProjectContentsRequest(page=page, limit=limit)


# What is in front of each list that is streamed, and its key among the totals.
_STREAMED: Mapping[int, tuple[bytes, str]] = {
    rpc.ContentsList.Value(f"CONTENTS_LIST_{field.upper()}"): (opening, key)
    for field, opening, key in (
        *((field, b'],"%b":[' % key.encode(), key) for key, field, _ in _LISTS),
        ("relationships", b']},"relationships":[', "relationships"),
        ("indirect_relationships", b'],"indirectRelationships":[', "indirectRelationships"),
    )
}


async def _streamed(asked: Asked, parts: AsyncIterator[rpc.StreamProjectContentsResponse]) -> AsyncGenerator[bytes]:
    """The same bytes as `_contents` gives, of parts as they arrive."""
    totals: dict[str, Any] = {}
    before, listed = b"", 0
    async for part in parts:
        opening, key = _STREAMED[part.list]
        if not listed:
            opening = b'{"project":%b,"objects":{%b' % (orjson.dumps(asked[parameters.PROJECT]), opening[2:])
        if part.list != listed:
            before, listed = before + opening, part.list
        if part.elements:
            yield before + b",".join(part.elements)
            before = b","
        if part.HasField("total"):
            totals[key] = asked.pagination(part.total)
            before = before.removesuffix(b",")
    yield b'%b],"pagination":%b}' % (before, orjson.dumps(totals))


def _contents(contents: rpc.ProjectContents, pagination: Callable[[int], Any]) -> bytes:
    lists = [(key, getattr(contents, field)) for key, field, _ in _LISTS]
    totals = {key: found.total for key, found in lists}
    totals |= {
        "relationships": contents.relationships_total,
        "indirectRelationships": contents.indirect_relationships_total,
    }
    return b'{"project":%b,"objects":{%b},"relationships":%b,"indirectRelationships":%b,"pagination":%b}' % (
        orjson.dumps(contents.project),
        b",".join(b'"%b":[%b]' % (key.encode(), b",".join(found.objects)) for key, found in lists),
        contents.relationships,
        contents.indirect_relationships,
        orjson.dumps({key: pagination(total) for key, total in totals.items()}),
    )


def _all_contents_answer(asked: Asked, reply: rpc.ListProjectContentsResponse) -> Answer:
    """The lists of each project are whole, whatever page of projects it is."""
    projects = b",".join(
        _contents(each, lambda total: parameters.pagination(1, total, total)) for each in reply.projects
    )
    return Answer(body=b'{"projects":[%b],"pagination":%b}' % (projects, orjson.dumps(asked.pagination(reply.total))))
