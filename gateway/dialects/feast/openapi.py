"""The OpenAPI document of the dialect, made of its routes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from typing import Any

import msgspec

from gateway.dialects.feast import schemas
from gateway.dialects.feast.routes import PREFIXES, Route
from gateway.exchange import JSON

_PATH_PARAMETER = re.compile(r"\{(\w+)(?::path)?\}")
_DESCRIPTION = (
    "Feast's registry over REST: what the Feast web UI, dashboards and curl ask for. Every path answers with and"
    " without the prefix `/api/v1`. Objects are protobuf JSON: camelCase, default values left out, 64-bit integers as"
    " text."
)
_ERRORS: Mapping[int, str] = {
    400: "The request says something that is not allowed.",
    401: "No credential, or not a good one.",
    403: "The caller may not do this.",
    404: "There is no such object.",
    409: "There is one already, or what is there does not allow this.",
    422: "A parameter or the body is wrong.",
    503: "Something that is needed does not answer, or is switched off.",
}
_OF_EVERY_ROUTE = (401, 403, 503)


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """The document, as JSON values."""
    components: dict[str, Any] = {}
    bodies = [route.body for route in routes if route.body is not None]
    of_bodies, found = msgspec.json.schema_components(bodies, ref_template="#/components/schemas/{name}")
    components.update(found)
    body_schemas = dict(zip(bodies, of_bodies, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        operation = schemas.resolved(_operation(route, body_schemas), components)
        paths.setdefault(shown_path(route.path), {})[route.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Triglot: Feast registry",
            "description": _DESCRIPTION,
            "version": metadata.version("triglot"),
        },
        "servers": [{"url": prefix or "/"} for prefix in PREFIXES],
        "security": [{"bearer": []}],
        "tags": [{"name": group} for group in dict.fromkeys(map(_group, routes))],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(components.items())),
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "description": "An API key."}},
        },
    }


def shown_path(path: str) -> str:
    """Starlette's pattern as OpenAPI writes it."""
    return _PATH_PARAMETER.sub(r"{\1}", path)


def _group(route: Route) -> str:
    return route.operation.partition(".")[0]


def _operation(route: Route, bodies: Mapping[Any, Any]) -> Mapping[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.operation,
        "summary": route.about,
        "tags": [_group(route)],
        "parameters": [*_path_parameters(route), *_query_parameters(route)],
        "responses": _responses(route),
    }
    if route.body is not None:
        operation["requestBody"] = {"required": True, "content": {JSON: {"schema": bodies[route.body]}}}
    return operation


def _path_parameters(route: Route) -> Iterable[Mapping[str, Any]]:
    for name in _PATH_PARAMETER.findall(route.path):
        yield {"name": name, "in": "path", "required": True, "schema": schemas.TEXT}


def _query_parameters(route: Route) -> Iterable[Mapping[str, Any]]:
    for parameter in route.parameters:
        yield {
            "name": parameter.name,
            "in": "query",
            "required": parameter.required,
            "description": parameter.about,
            "schema": parameter.schema,
        }


def _responses(route: Route) -> Mapping[str, Any]:
    takes_something = route.parameters or route.body is not None
    statuses = {*_OF_EVERY_ROUTE, *route.errors, *((422,) if takes_something else ())}
    answers = {str(status): _error(_ERRORS[status]) for status in sorted(statuses)}
    answers["default"] = _error("Anything else that went wrong.")
    shown: dict[str, Any] = {"description": _ERRORS.get(route.status, "Done.")}
    if route.shows is not None:
        shown["content"] = {JSON: {"schema": route.shows}}
    return {**answers, str(route.status): shown}


def _error(description: str) -> Mapping[str, Any]:
    return {"description": description, "content": {JSON: {"schema": schemas.ERROR}}}
