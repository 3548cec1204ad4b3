"""Search over all kinds of objects and all projects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chassis import errors
from gateway.dialects.feast import parameters, schemas
from gateway.dialects.feast.parameters import Parameter
from gateway.dialects.feast.routes import Asked, Route
from gateway.dialects.feast.schemas import NUMBER, TEXT, TEXTS, Component, many, one_of, record
from gateway.exchange import Answer, json_answer
from protos.gen.triglot.registry.v1 import registry_service_pb2 as rpc

_SORTS = ["match_score", "name", "type"]
_ORDERS = ["asc", "desc"]
_TYPES = (
    "entity",
    "dataSource",
    "featureView",
    "labelView",
    "feature",
    "label",
    "featureService",
    "savedDataset",
)


def _query(values: Sequence[str]) -> str:
    if not values:
        # The document shows a list for this one error.
        raise errors.InvalidArgument(
            "query parameter 'query': Field required",
            field="query",
            error_type="RequestValidationError",
            missing="query_params",
        )
    return values[-1]


_QUERY = Parameter("query", "What to look for; empty finds everything.", TEXT, _query, required=True)
_PROJECTS = Parameter(
    "projects",
    "Only in this project. May be given several times; empty means all.",
    many(TEXT),
    lambda values: [project for project in values if project.strip()],
)
_PAGE = parameters.number("page", "Number of the page, from 1.", 9_999_999, 1, plain=True)
_LIMIT = parameters.number("limit", "Objects on a page.", parameters.MAX_LIMIT, parameters.DEFAULT_LIMIT, plain=True)
_SORT_BY = parameters.choice("sort_by", "What to sort by.", _SORTS, "match_score", plain=True)
_SORT_ORDER = parameters.choice("sort_order", "Smallest or largest first.", _ORDERS, "desc", plain=True)
_RESULT = Component(
    "SearchResult",
    lambda: record(
        {"type": one_of(_TYPES), "name": TEXT, "description": TEXT, "project": TEXT},
        {"featureView": TEXT, "matched_tags": TEXTS, "match_score": NUMBER},
    ),
)


def routes(registry: Any) -> Sequence[Route]:
    """The route of search."""
    return (
        Route(
            "GET",
            "/search",
            "search",
            "Objects of every kind by name, description and tags.",
            registry.SearchObjects,
            _request,
            _answer,
            shows=record(
                {
                    "query": TEXT,
                    "projects_searched": many(TEXT),
                    "results": many(_RESULT),
                    "pagination": schemas.PAGINATION,
                    "errors": many(TEXT),
                }
            ),
            parameters=(
                _QUERY,
                _PROJECTS,
                parameters.ALLOW_CACHE,
                parameters.TAGS,
                _PAGE,
                _LIMIT,
                _SORT_BY,
                _SORT_ORDER,
            ),
            errors=(400,),
        ),
    )


def _request(asked: Asked) -> rpc.SearchObjectsRequest:
    return rpc.SearchObjectsRequest(
        query=asked[_QUERY],
        projects=asked[_PROJECTS],
        tags=asked[parameters.TAGS],
        sort_by=asked[_SORT_BY],
        ascending=asked[_SORT_ORDER] == "asc",
        page=asked[_PAGE],
        limit=asked[_LIMIT],
    )


def _answer(asked: Asked, reply: rpc.SearchObjectsResponse) -> Answer:
    unknown = ", ".join(reply.unknown_projects)
    return json_answer(
        {
            "query": asked[_QUERY],
            "projects_searched": list(reply.projects_searched),
            "results": [_result(found) for found in reply.results],
            "pagination": parameters.pagination(asked[_PAGE], asked[_LIMIT], reply.total),
            "errors": [f"Following projects do not exist: {unknown}"] if unknown else [],
        }
    )


def _result(found: rpc.SearchResult) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "type": found.type,
        "name": found.name,
        "description": found.description,
        "project": found.project,
    }
    if found.feature_view:
        shown["featureView"] = found.feature_view
    if found.matched_tags:
        shown["matched_tags"] = dict(found.matched_tags)
    if found.match_score:
        shown["match_score"] = found.match_score
    return shown
