"""Columns of feature views and label tables: what is allowed, and how they are kept as JSON."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from protos.gen.triglot.management.v1.feature_view_pb2 import FeatureViewField
from protos.gen.triglot.management.v1.label_table_pb2 import LabelTableField
from services.management.inputs import distinct, invalid, name, not_negative, one_of

PRIMARY_KEY, EVENT_TIME, PARTITION = "PrimaryKey", "EventTime", "Partition"
VIEW_ATTRIBUTES = (PARTITION, PRIMARY_KEY, EVENT_TIME, "SubKey")
LABEL_ATTRIBUTES = (
    PARTITION,
    "FeatureField",
    "FeatureGenerationReserveField",
    EVENT_TIME,
    "LabelField",
    "EventTimeIsUnixTime",
)
_SCALARS = ("INT32", "INT64", "FLOAT", "DOUBLE", "STRING", "BOOLEAN", "TIMESTAMP")
_NESTED = re.compile(
    r"ARRAY<(INT32|INT64|FLOAT|DOUBLE|STRING|ARRAY<FLOAT>)>"
    r"|MAP<(INT32|INT64|STRING),(INT32|INT64|FLOAT|DOUBLE|STRING)>"
)
_MAX_FIELDS = 5_000


def kind(field: str, text: str) -> str:
    """A field type in PAI's spelling, without blanks. Raises InvalidArgument."""
    plain = re.sub(r"\s", "", text).upper()
    if plain in _SCALARS or _NESTED.fullmatch(plain):
        return plain
    raise invalid(field, f"{text!r} must be one of {', '.join(_SCALARS)}, ARRAY<..> or MAP<..,..>")


def kept_view_fields(fields: Sequence[FeatureViewField]) -> list[dict[str, Any]]:
    """The fields of a request as they are kept. Raises InvalidArgument."""
    _check_names(fields)
    kept = [
        {
            "name": name("Fields[].Name", field.name),
            "type": kind("Fields[].Type", field.type),
            "attributes": _attributes(field.attributes, VIEW_ATTRIBUTES),
            "dimension": not_negative("Fields[].Dimension", field.dimension),
            "transform": [
                {
                    "type": step.type,
                    "llm_config_id": step.llm_config_id,
                    "input": [{"name": i.name, "type": i.type, "modality": i.modality} for i in step.input],
                }
                for step in field.transform
            ],
        }
        for field in fields
    ]
    for unique in (PRIMARY_KEY, EVENT_TIME):
        if len(having(kept, unique)) > 1:
            raise invalid("Fields[].Attributes", f"mark more than one field as {unique}")
    return kept


def kept_label_fields(fields: Sequence[LabelTableField]) -> list[dict[str, Any]]:
    """The fields of a request as they are kept. Raises InvalidArgument."""
    if not fields:
        raise invalid("Fields", "is required")
    _check_names(fields)
    return [
        {
            "name": name("Fields[].Name", field.name),
            "type": kind("Fields[].Type", field.type),
            "attributes": _attributes(field.attributes, LABEL_ATTRIBUTES),
            "aligned_entity_name": field.aligned_entity_name,
        }
        for field in fields
    ]


def having(fields: Iterable[Mapping[str, Any]], attribute: str) -> list[str]:
    """Names of the fields that have an attribute."""
    return [field["name"] for field in fields if attribute in field["attributes"]]


def dumped(fields: Sequence[Mapping[str, Any]]) -> str:
    """Kept fields as the text of a jsonb column."""
    return orjson.dumps(fields).decode()


def loaded(text: str) -> list[dict[str, Any]]:
    """What `dumped` made."""
    fields: list[dict[str, Any]] = orjson.loads(text)
    return fields


def _attributes(given: Sequence[str], allowed: Sequence[str]) -> list[str]:
    found = [one_of("Fields[].Attributes", attribute, allowed) for attribute in given]
    return list(dict.fromkeys(found))


def _check_names(fields: Sequence[Any]) -> None:
    if len(fields) > _MAX_FIELDS:
        raise invalid("Fields", f"takes at most {_MAX_FIELDS} fields")
    distinct("Fields", (field.name for field in fields))
