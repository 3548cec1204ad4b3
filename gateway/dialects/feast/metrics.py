"""Counts of objects, and popular tags."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gateway.dialect import Row
from gateway.dialects.feast import parameters
from gateway.exchange import Answer, Exchange, json_answer
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


def rows(prefix: str, registry: Any) -> Sequence[Row]:
    """The routes below a prefix."""
    counts, tags = f"{prefix}/metrics/resource_counts", f"{prefix}/metrics/popular_tags"
    return (
        Row(("GET",), counts, "metrics.resource_counts", registry.CountObjects, _count_request, _count_answer),
        Row(("GET",), tags, "metrics.popular_tags", registry.ListPopularTags, _tags_request, _tags_answer),
    )


def _count_request(exchange: Exchange) -> rpc.CountObjectsRequest:
    parameters.flag(exchange, "allow_cache")
    return rpc.CountObjectsRequest(project=exchange.parameter("project") or "")


def _count_answer(exchange: Exchange, reply: rpc.CountObjectsResponse) -> Answer:
    """The documented counts, and the real server's lists behind them."""
    per_project = {
        counts.project: {key: getattr(counts, field) for key, field in _COUNTS.items()} for counts in reply.projects
    }
    total = {key: sum(counts[key] for counts in per_project.values()) for key in _COUNTS}
    one = exchange.parameter("project")
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


def _tags_request(exchange: Exchange) -> rpc.ListPopularTagsRequest:
    parameters.flag(exchange, "allow_cache")
    return rpc.ListPopularTagsRequest(project=exchange.parameter("project") or "", limit=_tag_limit(exchange))


def _tag_limit(exchange: Exchange) -> int:
    return parameters.whole_number(exchange, "limit", parameters.MAX_LIMIT) or DEFAULT_TAGS


def _tags_answer(exchange: Exchange, reply: rpc.ListPopularTagsResponse) -> Answer:
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
        "limit": _tag_limit(exchange),
    }
    return json_answer({"popular_tags": tags, "metadata": metadata})
