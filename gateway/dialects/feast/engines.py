"""What computes features, as the web UI asks for it: Triglot's clients do, so there is one local engine a project."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from chassis import errors
from gateway.dialects.feast import parameters, schemas
from gateway.dialects.feast.routes import Asked, Route, together
from gateway.dialects.feast.schemas import FLAG, MOMENT, NUMBER, TEXT, Component, Schema, many, one_of, record
from gateway.exchange import Answer, json_answer
from protos.gen.feast.registry import RegistryServer_pb2 as feast_rpc
from protos.gen.triglot.registry.v1 import registry_service_pb2 as rpc

# The release of Feast whose contract this is; clients compare it.
FEAST_VERSION = "0.67.0"
_ENGINE: Mapping[str, Any] = {
    "engineType": "local",
    "engineClass": "LocalComputeEngine",
    "config": {"type": "local"},
}
_SUCCEEDED = "SUCCEEDED"

_STATUS = parameters.text("status", "Only jobs in this state. All that is known has succeeded.")
_FEATURE_VIEW = parameters.text("feature_view", "Only materializations of this view.")

_ENGINE_INFO = Component(
    "ComputeEngine",
    lambda: record(
        {
            "engineType": TEXT,
            "engineClass": TEXT,
            "config": {"type": "object"},
            "featureViewCount": NUMBER,
            "project": TEXT,
        }
    ),
)
_INTERVAL: Schema = record({"startTime": MOMENT, "endTime": MOMENT})
_VIEW = Component(
    "ComputedView",
    lambda: record(
        {
            "name": TEXT,
            "type": one_of(["Batch", "Stream"]),
            "online": FLAG,
            "lastMaterialized": {"anyOf": [MOMENT, {"type": "null"}]},
            "hasOverride": FLAG,
            "overrides": {"type": "null"},
            "materializationIntervals": many(_INTERVAL),
        }
    ),
)
_JOB = Component(
    "MaterializationJob",
    lambda: record(
        {"id": TEXT, "featureView": TEXT, "status": one_of([_SUCCEEDED]), "startTime": MOMENT, "endTime": MOMENT}
    ),
)


def routes(registry: Any, feast: Any) -> Sequence[Route]:
    """The routes, on stubs of both services of the registry."""
    return (
        Route(
            "GET",
            "/compute_engines",
            "compute_engines.list",
            "The engine of a project and its views: of each kind the 100 that changed last.",
            together(feast.ListFeatureViews, feast.ListStreamFeatureViews),
            _engine_request,
            _engine_answer,
            shows=record({"engine": _ENGINE_INFO, "featureViews": many(_VIEW)}),
            parameters=(parameters.PROJECT, parameters.ALLOW_CACHE),
        ),
        Route(
            "GET",
            "/compute_engines/all",
            "compute_engines.all",
            "The engine of each project, with the number of its feature views.",
            registry.CountObjects,
            lambda asked: rpc.CountObjectsRequest(),
            _engines_answer,
            shows=record({"engines": many(_ENGINE_INFO), "pagination": schemas.PAGINATION}),
            parameters=(parameters.ALLOW_CACHE, parameters.PAGE_OF_ALL, parameters.LIMIT_OF_ALL),
        ),
        Route(
            "GET",
            "/materialization_jobs",
            "materialization_jobs.list",
            "What was materialized in a project, the latest first.",
            registry.ListMaterializations,
            _jobs_request,
            _jobs_answer,
            shows=record({"jobs": many(_JOB), "pagination": schemas.PAGINATION}),
            parameters=(
                parameters.PROJECT,
                parameters.ALLOW_CACHE,
                _STATUS,
                _FEATURE_VIEW,
                parameters.PAGE_OF_ALL,
                parameters.LIMIT_OF_ALL,
            ),
        ),
        # Both are answered here; the RPC is there to look at who calls.
        Route(
            "GET",
            "/version",
            "version",
            "The release of Feast whose contract is served, and Triglot's own.",
            feast.ListProjects,
            who_calls,
            lambda asked, _: json_answer({"version": FEAST_VERSION, "triglot": metadata.version("triglot")}),
            shows=record({"version": TEXT, "triglot": TEXT}),
        ),
        *(
            Route(
                method,
                "/monitoring/{operation:path}",
                f"monitoring.{method.lower()}",
                "Data quality is not monitored here: 503.",
                feast.ListProjects,
                who_calls,
                _not_monitored,
                shows=schemas.ERROR,
                status=503,
            )
            for method in ("GET", "POST")
        ),
    )


def who_calls(asked: Asked) -> feast_rpc.ListProjectsRequest:
    """A request that costs little, of routes that need nothing but a caller who may call."""
    return feast_rpc.ListProjectsRequest(pagination=feast_rpc.PaginationParams(page=1, limit=1))


def _not_monitored(asked: Asked, reply: Any) -> Answer:
    raise errors.Unavailable("Monitoring is not enabled: Triglot does not monitor the quality of data")


def _engine_request(asked: Asked) -> tuple[Any, Any]:
    page = feast_rpc.PaginationParams(page=1, limit=parameters.MAX_LIMIT)
    newest = feast_rpc.SortingParams(sort_by="last_updated_timestamp", sort_order="desc")
    wanted: dict[str, Any] = {"project": asked[parameters.PROJECT], "pagination": page, "sorting": newest}
    return feast_rpc.ListFeatureViewsRequest(**wanted), feast_rpc.ListStreamFeatureViewsRequest(**wanted)


def _engine_answer(asked: Asked, reply: Sequence[Any]) -> Answer:
    batch, stream = reply
    views = [
        *(_computed("Batch", view) for view in batch.feature_views),
        *(_computed("Stream", view) for view in stream.stream_feature_views),
    ]
    engine = {
        **_ENGINE,
        "featureViewCount": sum(each.pagination.total_count for each in reply),
        "project": asked[parameters.PROJECT],
    }
    return json_answer({"engine": engine, "featureViews": sorted(views, key=lambda view: str(view["name"]))})


def _computed(kind: str, view: Any) -> dict[str, Any]:
    intervals = [_interval(each) for each in view.meta.materialization_intervals]
    return {
        "name": view.spec.name,
        "type": kind,
        "online": view.spec.online,
        "lastMaterialized": intervals[-1]["endTime"] if intervals else None,
        "hasOverride": False,
        "overrides": None,
        "materializationIntervals": intervals,
    }


def _interval(interval: Any) -> dict[str, str]:
    return {"startTime": interval.start_time.ToJsonString(), "endTime": interval.end_time.ToJsonString()}


def _engines_answer(asked: Asked, reply: rpc.CountObjectsResponse) -> Answer:
    page, limit = asked.page()
    engines = [
        {**_ENGINE, "project": counts.project, "featureViewCount": counts.feature_views}
        for counts in reply.projects[(page - 1) * limit : page * limit]
    ]
    return json_answer({"engines": engines, "pagination": asked.pagination(len(reply.projects))})


def _jobs_request(asked: Asked) -> rpc.ListMaterializationsRequest:
    page, limit = asked.page()
    return rpc.ListMaterializationsRequest(
        project=asked[parameters.PROJECT], feature_view=asked[_FEATURE_VIEW], page=page, limit=limit
    )


def _jobs_answer(asked: Asked, reply: rpc.ListMaterializationsResponse) -> Answer:
    fits = asked[_STATUS].upper() in ("", _SUCCEEDED)
    jobs = [
        {"id": f"{each.feature_view}-{each.number}", "featureView": each.feature_view, "status": _SUCCEEDED}
        | _interval(each)
        for each in reply.materializations
    ]
    return json_answer({"jobs": jobs if fits else [], "pagination": asked.pagination(reply.total if fits else 0)})
