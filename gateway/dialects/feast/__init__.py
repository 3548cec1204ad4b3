"""Feast's registry server over REST: every route with and without /api/v1, answered from triglot.registry.v1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty

from gateway.dialect import Dialect, Row
from gateway.dialects.feast import (
    datasets,
    engines,
    labels,
    lineage,
    metrics,
    objects,
    openlineage,
    pages,
    parameters,
    search,
    writes,
)
from gateway.dialects.feast.faults import credential, render_error
from gateway.dialects.feast.routes import Asked, Route
from gateway.dialects.feast.visits import Visits
from gateway.exchange import Answer
from gateway.settings import GatewaySettings
from protos.gen.feast.registry.RegistryServer_pb2 import RefreshRequest
from protos.gen.feast.registry.RegistryServer_pb2_grpc import RegistryServerStub
from protos.gen.triglot.registry.v1.registry_service_pb2_grpc import RegistryServiceStub


def dialect(channel: grpc.aio.Channel, settings: GatewaySettings) -> Dialect:
    """The dialect on a channel to the registry."""
    registry: Any = RegistryServiceStub(channel)
    visits = Visits(registry, settings.feast_visit_patterns, settings.feast_default_project, settings.timeout_seconds)
    found = routes(registry, RegistryServerStub(channel), visits, settings.feast_default_project)
    rows: list[Row] = []
    for route in found:
        noted = route.method == "GET"
        rows += [replace(row, answer=visits.noted(row.answer)) if noted else row for row in route.rows()]
    if settings.feast_pages:
        rows += pages.rows(found)
    # It owns what no other dialect does: Feast's paths carry no mark of their own.
    return Dialect("feast", rows, credential, render_error, owns=lambda path: True)


def routes(registry: Any, feast: Any, visits: Visits, default_project: str) -> Sequence[Route]:
    """All routes, in the order in which they are tried."""
    return (
        *datasets.routes(registry, feast),
        *objects.routes(registry),
        *labels.routes(registry, default_project),
        *writes.routes(feast),
        *lineage.routes(registry),
        *openlineage.routes(feast),
        *search.routes(registry),
        *metrics.routes(registry, visits.list, default_project),
        *engines.routes(registry, feast),
        Route(
            "POST",
            "/registry/refresh",
            "registry.refresh",
            "Changes nothing: there is no cache that could be old.",
            feast.Refresh,
            lambda asked: RefreshRequest(project=asked[parameters.ANY_PROJECT]),
            _refreshed,
            shows=None,
            parameters=(parameters.ANY_PROJECT,),
        ),
    )


def _refreshed(asked: Asked, reply: Empty) -> Answer:
    """Nothing, as the real server."""
    return Answer()
