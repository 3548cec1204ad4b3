"""Search over all kinds of objects and all projects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gateway.dialect import Row
from gateway.dialects.feast import parameters
from gateway.dialects.feast.parameters import BadRequest, MissingQuery
from gateway.exchange import Answer, Exchange, json_answer
from protos.gen.triglot.registry.v1 import registry_service_pb2 as rpc

_SORTS = ["match_score", "name", "type"]
_ORDERS = ["asc", "desc"]


def rows(prefix: str, registry: Any) -> Sequence[Row]:
    """The routes below a prefix."""
    return (Row(("GET",), f"{prefix}/search", "search", registry.SearchObjects, _request, _answer),)


def _request(exchange: Exchange) -> rpc.SearchObjectsRequest:
    parameters.flag(exchange, "allow_cache")
    query = exchange.parameter("query")
    if query is None:
        raise MissingQuery("query parameter 'query': Field required", field="query")
    page, limit = _page(exchange)
    return rpc.SearchObjectsRequest(
        query=query,
        projects=[project for project in exchange.query.get("projects", ()) if project.strip()],
        tags=parameters.tags(exchange),
        sort_by=_choice(exchange, "sort_by", _SORTS) or "match_score",
        ascending=_choice(exchange, "sort_order", _ORDERS) == "asc",
        page=page,
        limit=limit,
    )


def _choice(exchange: Exchange, name: str, options: Sequence[str]) -> str | None:
    value = exchange.parameter(name)
    if value is not None and value not in options:
        raise BadRequest(f"Invalid {name} parameter: '{value}'. Valid options are: {options}", field=name)
    return value


def _page(exchange: Exchange) -> tuple[int, int]:
    most = parameters.MAX_LIMIT
    page, limit = _number(exchange, "page", 1), _number(exchange, "limit", parameters.DEFAULT_LIMIT)
    if limit > most:
        shown = exchange.parameter("limit")
        raise BadRequest(f"Invalid limit parameter: '{shown}'. Must be less than or equal to {most}", field="limit")
    return page, limit


def _number(exchange: Exchange, name: str, default: int) -> int:
    text = exchange.parameter(name)
    if text is None:
        return default
    value = int(text) if text.isascii() and text.isdigit() and len(text) <= 7 else 0
    if value < 1:
        raise BadRequest(f"Invalid {name} parameter: '{text}'. Must be a whole number from 1", field=name)
    return value


def _answer(exchange: Exchange, reply: rpc.SearchObjectsResponse) -> Answer:
    unknown = ", ".join(reply.unknown_projects)
    return json_answer(
        {
            "query": exchange.parameter("query"),
            "projects_searched": list(reply.projects_searched),
            "results": [_result(found) for found in reply.results],
            "pagination": parameters.pagination(*_page(exchange), reply.total),
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
