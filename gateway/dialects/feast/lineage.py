"""Who uses whom: of one object, of a project, of all projects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from gateway.dialect import Row
from gateway.dialects.feast import parameters
from gateway.exchange import Answer, Exchange, json_answer
from protos.gen.triglot.registry.v1 import object_pb2
from protos.gen.triglot.registry.v1 import registry_service_pb2 as rpc


def rows(prefix: str, registry: Any) -> Sequence[Row]:
    """The routes below a prefix."""
    return (
        Row(("GET",), f"{prefix}/lineage/registry", "lineage.registry", registry.ListRelationships, _request, _answer),
        Row(
            ("GET",),
            f"{prefix}/lineage/registry/all",
            "lineage.registry_all",
            registry.ListRelationships,
            _all_request,
            _all_answer,
        ),
        Row(
            ("GET",),
            f"{prefix}/lineage/objects/{{object_type}}/{{object_name:path}}",
            "lineage.object",
            registry.ListObjectRelationships,
            _object_request,
            _object_answer,
        ),
    )


def _all_request(exchange: Exchange) -> rpc.ListRelationshipsRequest:
    parameters.flag(exchange, "allow_cache")
    page, limit = parameters.asked_page(exchange) or (0, 0)
    return rpc.ListRelationshipsRequest(
        object_type=exchange.parameter("filter_object_type") or "",
        object_name=exchange.parameter("filter_object_name") or "",
        page=page,
        limit=limit,
        descending=parameters.descending(exchange),
    )


def _request(exchange: Exchange) -> rpc.ListRelationshipsRequest:
    request = _all_request(exchange)
    request.project = parameters.required(exchange, "project")
    return request


def _object_request(exchange: Exchange) -> rpc.ListObjectRelationshipsRequest:
    parameters.flag(exchange, "allow_cache")
    page, limit = parameters.asked_page(exchange) or (0, 0)
    return rpc.ListObjectRelationshipsRequest(
        project=parameters.required(exchange, "project"),
        object=object_pb2.ObjectReference(
            type=exchange.path_params["object_type"], name=exchange.path_params["object_name"]
        ),
        include_indirect=parameters.flag(exchange, "include_indirect"),
        page=page,
        limit=limit,
    )


def _answer(exchange: Exchange, reply: rpc.ListRelationshipsResponse) -> Answer:
    return json_answer(
        {
            "relationships": [parameters.relation(each.relationship) for each in reply.relationships],
            "indirect_relationships": [parameters.relation(each.relationship) for each in reply.indirect_relationships],
            **_paginations(exchange, reply),
        }
    )


def _all_answer(exchange: Exchange, reply: rpc.ListRelationshipsResponse) -> Answer:
    return json_answer(
        {
            "relationships": _with_project(reply.relationships),
            "indirect_relationships": _with_project(reply.indirect_relationships),
            **_paginations(exchange, reply),
        }
    )


def _with_project(found: Iterable[rpc.ProjectRelationship]) -> Sequence[Any]:
    return [parameters.relation(each.relationship) | {"project": each.project} for each in found]


def _paginations(exchange: Exchange, reply: rpc.ListRelationshipsResponse) -> dict[str, Any]:
    return {
        "relationships_pagination": _pagination(exchange, reply.total),
        "indirect_relationships_pagination": _pagination(exchange, reply.indirect_total),
    }


def _object_answer(exchange: Exchange, reply: rpc.ListObjectRelationshipsResponse) -> Answer:
    return json_answer(
        {
            "relationships": [parameters.relation(each) for each in reply.relationships],
            "pagination": _pagination(exchange, reply.total),
        }
    )


def _pagination(exchange: Exchange, total: int) -> dict[str, Any]:
    page, limit = parameters.asked_page(exchange) or (1, total)
    return parameters.pagination(page, limit, total)
