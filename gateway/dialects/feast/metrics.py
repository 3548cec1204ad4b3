"""Counts of objects, popular tags, and what the caller looked at last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gateway.dialects.feast import parameters
from gateway.dialects.feast.routes import Asked, Route
from gateway.dialects.feast.schemas import MOMENT, NUMBER, PAGINATION, TEXT, Component, Schema, many, record
from gateway.exchange import Answer, json_answer
from protos.gen.triglot.registry.v1 import registry_service_pb2 as rpc

DEFAULT_TAGS = 4
_COUNTS = {
    "entities": "entities",
    "dataSources": "data_sources",
    "savedDatasets": "saved_datasets",
    "features": "features",
    "featureViews": "feature_views",
    "featureServices": "feature_services",
}
_TAG_LIMIT = parameters.number("limit", "How many tags.", parameters.MAX_LIMIT, DEFAULT_TAGS)
_OBJECT = parameters.text("object", "Only objects of this type as paths name it: entities, feature_views, ...")
_VISIT_SORT = parameters.text("sort_by", "timestamp, path, project, object, object_name or method.")

_RESOURCE_COUNTS = Component("ResourceCounts", lambda: record(dict.fromkeys(_COUNTS, NUMBER)))
_NAMED: Schema = {"name": TEXT, "project": TEXT}


def _counts_schema() -> Schema:
    newest = {
        "featureServices": many(record(_NAMED)),
        "featureServicesTotal": NUMBER,
        "featureViews": many(record({**_NAMED, "type": TEXT, "featureCount": NUMBER})),
        "featureViewsTotal": NUMBER,
        "projects": many(record({"name": TEXT}, {"description": TEXT})),
        "projectsTotal": NUMBER,
    }
    last = {"registryLastUpdated": MOMENT}
    per_project = {"type": "object", "additionalProperties": _RESOURCE_COUNTS}
    return {
        "anyOf": [
            record({"project": TEXT, "counts": _RESOURCE_COUNTS, **newest}, last),
            record({"total": _RESOURCE_COUNTS, "perProject": per_project, **newest}, last),
        ]
    }


_POPULAR_TAG = Component(
    "PopularTagInfo",
    lambda: record(
        {"tag_key": TEXT, "tag_value": TEXT, "feature_views": many(record(_NAMED)), "total_feature_views": NUMBER}
    ),
)
_VISIT = Component(
    "Visit",
    lambda: record(
        {
            "path": TEXT,
            "timestamp": MOMENT,
            "project": TEXT,
            "user": TEXT,
            "object": TEXT,
            "object_name": TEXT,
            "method": TEXT,
        }
    ),
)


def routes(registry: Any, list_visits: Any, default_project: str) -> Sequence[Route]:
    """The routes of metrics. Visits without a project are those in the default project; without one, in all."""
    return (
        Route(
            "GET",
            "/metrics/resource_counts",
            "metrics.resource_counts",
            "How many objects of each kind there are, and what changed last.",
            registry.CountObjects,
            lambda asked: rpc.CountObjectsRequest(project=asked[parameters.ANY_PROJECT]),
            _count_answer,
            shows=_counts_schema(),
            parameters=(parameters.ANY_PROJECT, parameters.ALLOW_CACHE),
        ),
        Route(
            "GET",
            "/metrics/popular_tags",
            "metrics.popular_tags",
            "The tags that most feature views have.",
            registry.ListPopularTags,
            lambda asked: rpc.ListPopularTagsRequest(project=asked[parameters.ANY_PROJECT], limit=asked[_TAG_LIMIT]),
            _tags_answer,
            shows=record(
                {
                    "popular_tags": many(_POPULAR_TAG),
                    "metadata": record({"totalFeatureViews": NUMBER, "totalTags": NUMBER, "limit": NUMBER}),
                }
            ),
            parameters=(parameters.ANY_PROJECT, _TAG_LIMIT, parameters.ALLOW_CACHE),
        ),
        Route(
            "GET",
            "/metrics/recently_visited",
            "metrics.recently_visited",
            "What the caller looked at last.",
            list_visits,
            lambda asked: _visits_request(asked, default_project),
            _visits_answer,
            shows=record({"visits": many(_VISIT), "pagination": PAGINATION}),
            parameters=(
                parameters.ANY_PROJECT,
                _OBJECT,
                parameters.PAGE,
                parameters.LIMIT,
                _VISIT_SORT,
                parameters.SORT_ORDER,
            ),
        ),
    )


def _count_answer(asked: Asked, reply: rpc.CountObjectsResponse) -> Answer:
    """The documented counts, and the real server's lists behind them."""
    per_project = {
        counts.project: {key: getattr(counts, field) for key, field in _COUNTS.items()} for counts in reply.projects
    }
    total = {key: sum(counts[key] for counts in per_project.values()) for key in _COUNTS}
    one = asked[parameters.ANY_PROJECT]
    shown: dict[str, Any] = (
        {"project": one, "counts": per_project[one]} if one else {"total": total, "perProject": per_project}
    )
    shown |= {
        "featureServices": [{"name": each.name, "project": each.project} for each in reply.newest_feature_services],
        "featureServicesTotal": total["featureServices"],
        "featureViews": [
            {"name": each.name, "project": each.project, "type": each.type, "featureCount": each.feature_count}
            for each in reply.newest_feature_views
        ],
        "featureViewsTotal": total["featureViews"],
        "projects": [
            {"name": each.name} | ({} if one else {"description": each.description}) for each in reply.newest_projects
        ],
        "projectsTotal": len(reply.projects) if not one else len(reply.newest_projects),
    }
    if reply.HasField("last_updated"):
        shown["registryLastUpdated"] = reply.last_updated.ToJsonString()
    return json_answer(shown)


def _tags_answer(asked: Asked, reply: rpc.ListPopularTagsResponse) -> Answer:
    tags = [
        {
            "tag_key": tag.key,
            "tag_value": tag.value,
            "feature_views": [{"name": each.name, "project": each.project} for each in tag.feature_views],
            "total_feature_views": tag.total_feature_views,
        }
        for tag in reply.tags
    ]
    metadata = {
        "totalFeatureViews": reply.total_feature_views,
        "totalTags": reply.total_tags,
        "limit": asked[_TAG_LIMIT],
    }
    return json_answer({"popular_tags": tags, "metadata": metadata})


def _visits_request(asked: Asked, default_project: str) -> rpc.ListVisitsRequest:
    page, limit = asked.page()
    return rpc.ListVisitsRequest(
        project=asked[parameters.ANY_PROJECT] or default_project,
        object=asked[_OBJECT],
        page=page,
        limit=limit,
        sort_by=asked[_VISIT_SORT],
        descending=asked[parameters.SORT_ORDER] == "desc",
    )


def _visits_answer(asked: Asked, reply: rpc.ListVisitsResponse) -> Answer:
    visits = [
        {
            "path": visit.path,
            "timestamp": visit.timestamp.ToJsonString(),
            "project": visit.project,
            "user": visit.user,
            "object": visit.object,
            "object_name": visit.object_name,
            "method": visit.method,
        }
        for visit in reply.visits
    ]
    return json_answer({"visits": visits, "pagination": asked.pagination(reply.total)})
