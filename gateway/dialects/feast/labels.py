"""What Feast's web UI asks about a label view besides the view: its records, their quality, how they are edited.

Triglot's registry reads no offline store, so there are no records; what there is comes from the view's definition.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import orjson

from chassis import errors
from gateway.dialects.feast.parameters import bad_request
from gateway.dialects.feast.routes import Asked, Route
from gateway.dialects.feast.schemas import NUMBER, TEXT, TEXTS, Schema, many, record
from gateway.exchange import Answer, json_answer
from protos.gen.triglot.registry.v1 import object_pb2
from protos.gen.triglot.registry.v1 import registry_service_pb2 as rpc

_LABELER = "labeler"
_POLICY = "LAST_WRITE_WINS"
# Tags of a label view that say how its labels are edited; the first three end in the name of a field.
_ROLE, _VALUES, _WIDGET = "feast.io/field-role:", "feast.io/label-values:", "feast.io/label-widget:"
_METHOD = "feast.io/labeling-method"
_TEXT_LIST: Schema = many(TEXT)
_NOTHING: Schema = {"type": "null"}
_NONE: Schema = {"type": "object", "maxProperties": 0}


class LabelsBody(msgspec.Struct):
    feature_view: str
    limit: int | None = None


class QualityBody(msgspec.Struct):
    feature_view: str


def routes(registry: Any, default_project: str) -> Sequence[Route]:
    """The routes. A view is sought in the default project; without one, the first of its name is taken."""

    def wanted(name: str) -> rpc.ListObjectsRequest:
        kind = object_pb2.OBJECT_KIND_LABEL_VIEW
        return rpc.ListObjectsRequest(kind=kind, project=default_project, name=name, page=1, limit=1)

    return (
        Route(
            "POST",
            "/list-labels",
            "labels.records",
            "The records of a label view. Triglot reads no offline store: none.",
            registry.ListObjects,
            lambda asked: wanted(asked.body.feature_view),
            _answering(lambda asked: asked.body.feature_view, _records),
            shows=record(
                {
                    **dict.fromkeys(("columns", "feature_names", "entity_names"), _TEXT_LIST),
                    "labels": many({"type": "object"}),
                    "total_count": NUMBER,
                    "total_entities": NUMBER,
                    "conflict_policy": TEXT,
                    "hint": TEXT,
                }
            ),
            body=LabelsBody,
            errors=(400, 404),
        ),
        Route(
            "POST",
            "/label-quality",
            "labels.quality",
            "How good the records of a label view are. Triglot reads no offline store: there are none.",
            registry.ListObjects,
            lambda asked: wanted(asked.body.feature_view),
            _answering(lambda asked: asked.body.feature_view, _quality),
            shows=record(
                {
                    "total_entities": NUMBER,
                    "total_annotations": NUMBER,
                    "feature_names": _TEXT_LIST,
                    **dict.fromkeys(("distributions", "coverage_pct", "null_counts", "labeler_stats"), _NONE),
                    **dict.fromkeys(("staleness_seconds", "oldest_label_ts", "newest_label_ts"), _NOTHING),
                    "labeler_field": TEXT,
                    "conflict_policy": TEXT,
                    "hint": TEXT,
                }
            ),
            body=QualityBody,
            errors=(400, 404),
        ),
        Route(
            "GET",
            "/annotation-config/{label_view:path}",
            "labels.editing",
            "How the records of a label view are edited, by its tags.",
            registry.ListObjects,
            lambda asked: wanted(asked.part("label_view")),
            _answering(lambda asked: asked.part("label_view"), _editing),
            shows=record(
                {
                    **dict.fromkeys(("label_view", "profile", "labeler_field"), TEXT),
                    **dict.fromkeys(("field_roles", "label_widgets"), TEXTS),
                    "label_values": {"type": "object", "additionalProperties": _TEXT_LIST},
                    **dict.fromkeys(("entities", "features"), _TEXT_LIST),
                    "push_source_name": {"anyOf": [TEXT, _NOTHING]},
                }
            ),
            errors=(404,),
        ),
    )


def _answering(
    name: Callable[[Asked], str], shown: Callable[[Mapping[str, Any]], Any]
) -> Callable[[Asked, rpc.ListObjectsResponse], Answer]:
    """An answer that shows something of the label view that was asked for. NotFound if there is none."""

    def answer(asked: Asked, reply: rpc.ListObjectsResponse) -> Answer:
        if not reply.objects:
            raise errors.NotFound(f"Label view '{name(asked)}' not found")
        return json_answer(shown(orjson.loads(reply.objects[0])["spec"]))

    return answer


def _names(fields: Sequence[Mapping[str, Any]]) -> list[str]:
    return [field["name"] for field in fields]


def _keys(spec: Mapping[str, Any]) -> list[str]:
    """The join keys: a definition of the SDK lists them as columns."""
    return _names(spec.get("entityColumns", ())) or list(spec.get("entities", ()))


def _offline(spec: Mapping[str, Any]) -> None:
    """Raise InvalidArgument, 400, for a view whose labels no offline store keeps."""
    source = spec.get("source", {})
    if not source or (source.get("type", "").startswith("PUSH") and "batchSource" not in source):
        raise bad_request(f"No batch source for '{spec['name']}'", "feature_view")


def _records(spec: Mapping[str, Any]) -> dict[str, Any]:
    _offline(spec)
    keys, features = _keys(spec), _names(spec.get("features", ()))
    return {
        "labels": [],
        "columns": keys + features,
        "feature_names": features,
        "entity_names": keys,
        "total_count": 0,
        "total_entities": 0,
        "conflict_policy": spec.get("conflictPolicy", _POLICY).lower(),
        "hint": "No label data found yet. Push labels to get started.",
    }


def _quality(spec: Mapping[str, Any]) -> dict[str, Any]:
    _offline(spec)
    return {
        "total_entities": 0,
        "total_annotations": 0,
        "feature_names": _names(spec.get("features", ())),
        **{key: {} for key in ("distributions", "coverage_pct", "null_counts", "labeler_stats")},
        **dict.fromkeys(("staleness_seconds", "oldest_label_ts", "newest_label_ts")),
        "labeler_field": spec.get("labelerField", _LABELER),
        "conflict_policy": spec.get("conflictPolicy", _POLICY).lower(),
        "hint": "No label data found yet. Push labels to compute quality metrics.",
    }


def _editing(spec: Mapping[str, Any]) -> dict[str, Any]:
    tags: Mapping[str, str] = spec.get("tags", {})

    def told(prefix: str) -> dict[str, str]:
        return {key.removeprefix(prefix): value for key, value in tags.items() if key.startswith(prefix)}

    values = {field: [each.strip() for each in text.split(",")] for field, text in told(_VALUES).items()}
    return {
        "label_view": spec["name"],
        "profile": tags.get(_METHOD, "table"),
        "field_roles": told(_ROLE),
        "label_values": values,
        "label_widgets": told(_WIDGET),
        "entities": list(spec.get("entities", ())),
        "features": _names(spec.get("features", ())),
        "labeler_field": spec.get("labelerField", _LABELER),
        "push_source_name": spec.get("source", {}).get("name"),
    }
