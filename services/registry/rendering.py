"""Objects as the rows and the JSON that readers get: made once, when an object is written."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import orjson
from google.protobuf.json_format import MessageToDict

from chassis import errors
from protos.gen.feast.registry import RegistryServer_pb2 as rpc
from protos.gen.feast.types.Value_pb2 import ValueType
from services.registry.kinds import FEATURE, LABEL, LABEL_VIEW, PROJECT, Kind

_WORDS = {"DOUBLE": "Float64", "FLOAT": "Float32", "VALUE": "Array(String)"}
_COLLECTIONS = {"LIST": "Array", "SET": "Set"}


@dataclass(frozen=True)
class Row:
    """An object as its row holds it, but for ids and places."""

    name: str
    type: str
    description: str
    owner: str
    tags: str  # JSON
    proto: bytes
    rendered: bytes


def row_of(kind: Kind, message: Any, project: str) -> Row:
    """The row of an object that is applied."""
    spec = kind.spec(message)
    content = MessageToDict(message)
    front: dict[str, Any] = {"name": spec.name}
    if kind is not PROJECT:
        front["project"] = project
    if kind.is_view:
        front["type"] = kind.name
    shown = front | content
    return Row(
        name=spec.name,
        type=str(shown.get("type", kind.name)),
        description=getattr(spec, "description", ""),
        owner=getattr(spec, "owner", ""),
        tags=orjson.dumps(dict(spec.tags)).decode(),
        proto=message.SerializeToString(deterministic=True),
        rendered=orjson.dumps(shown),
    )


def feature_rows(view_kind: Kind, view: Any, project: str) -> tuple[Kind, list[Row]]:
    """The rows of a view's features or labels, in the view's order. InvalidArgument if a name occurs twice."""
    kind = LABEL if view_kind is LABEL_VIEW else FEATURE
    rows: dict[str, Row] = {}
    for spec in view.spec.features:
        if spec.name in rows:
            raise errors.InvalidArgument(
                f"Feature view {view.spec.name} defines feature {spec.name} twice", field="features"
            )
        feature = rpc.Feature(
            name=spec.name,
            feature_view=view.spec.name,
            type=type_name(spec.value_type),
            description=spec.description,
            tags=spec.tags,
            kind=kind.name,
        )
        rows[spec.name] = Row(
            name=spec.name,
            type=feature.type,
            description=spec.description,
            owner="",
            tags=orjson.dumps(dict(spec.tags)).decode(),
            proto=feature.SerializeToString(deterministic=True),
            rendered=orjson.dumps(_shown(feature, project)),
        )
    return kind, list(rows.values())


def _shown(feature: rpc.Feature, project: str) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "name": feature.name,
        "project": project,
        "featureView": feature.feature_view,
        "type": feature.type,
    }
    if feature.description:
        shown["description"] = feature.description
    if feature.tags:
        shown["tags"] = dict(feature.tags)
    return shown | {"kind": feature.kind}


@lru_cache(maxsize=256)
def type_name(value_type: Any) -> str:
    """A type as Feast writes it for people: FLOAT is "Float32", STRING_LIST is "Array(String)"."""
    name = ValueType.Enum.Name(value_type) if value_type in ValueType.Enum.values() else "INVALID"
    word, _, collection = name.rpartition("_")
    if collection in _COLLECTIONS:
        return f"{_COLLECTIONS[collection]}({_word(word)})"
    return _word(name)


def _word(name: str) -> str:
    return _WORDS.get(name) or "".join(part.capitalize() for part in name.split("_"))
