"""JSON schemas of what Feast's routes answer with: protobuf messages as protobuf JSON, and what is around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

Schema = Mapping[str, Any]


@dataclass(frozen=True)
class Component:
    """A schema that has a name: it stands once in the document, and may refer to itself."""

    name: str
    build: Callable[[], Schema]


TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "integer"}
FLAG: Schema = {"type": "boolean"}
MOMENT: Schema = {"type": "string", "format": "date-time"}
TEXTS: Schema = {"type": "object", "additionalProperties": TEXT}


def record(required: Mapping[str, Any], optional: Mapping[str, Any] | None = None) -> Schema:
    """An object with these keys."""
    properties = {**required, **(optional or {})}
    return {"type": "object", "properties": properties, "required": list(required)}


def many(item: Any) -> Schema:
    """An array."""
    return {"type": "array", "items": item}


def one_of(texts: Sequence[str]) -> Schema:
    """One of a few texts."""
    return {"type": "string", "enum": list(texts)}


def of_message(descriptor: Descriptor) -> Schema:
    """A message as protobuf JSON without default values: no key is ever required."""
    return {
        "type": "object",
        "properties": {field.json_name: _of_field(field) for field in descriptor.fields},
    }


_WELL_KNOWN: Mapping[str, Schema] = {
    "google.protobuf.Timestamp": MOMENT,
    "google.protobuf.Duration": {"type": "string", "pattern": "^-?[0-9]+([.][0-9]+)?s$"},
    "google.protobuf.StringValue": TEXT,
}
# Protobuf JSON has 64-bit integers as text, because JavaScript rounds them, and these words where JSON has no number.
_LONG: Schema = {"type": "string", "format": "int64"}
_REAL: Schema = {"anyOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}]}
_SCALARS: Mapping[int, Schema] = {
    FieldDescriptor.CPPTYPE_INT32: NUMBER,
    FieldDescriptor.CPPTYPE_UINT32: NUMBER,
    FieldDescriptor.CPPTYPE_INT64: _LONG,
    FieldDescriptor.CPPTYPE_UINT64: _LONG,
    FieldDescriptor.CPPTYPE_DOUBLE: _REAL,
    FieldDescriptor.CPPTYPE_FLOAT: _REAL,
    FieldDescriptor.CPPTYPE_BOOL: FLAG,
    FieldDescriptor.CPPTYPE_STRING: TEXT,
}


def _of_field(field: FieldDescriptor) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return {"type": "object", "additionalProperties": _of_value(field.message_type.fields_by_name["value"])}
    value = _of_value(field)
    return many(value) if field.is_repeated else value


def _of_value(field: FieldDescriptor) -> Any:
    if field.message_type is not None:
        message: Descriptor = field.message_type
        return _WELL_KNOWN.get(message.full_name) or Component(message.full_name, lambda: of_message(message))
    if field.enum_type is not None:
        return _of_enum(field.enum_type)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return {"type": "string", "contentEncoding": "base64"}
    return _SCALARS[field.cpp_type]


def _of_enum(enum: EnumDescriptor) -> Schema:
    """By name; a number that has no name here is shown as it is."""
    return {"anyOf": [one_of([value.name for value in enum.values]), NUMBER]}


def resolved(schema: Any, components: dict[str, Any]) -> Any:
    """The schema with references in place of components, which are added to `components` with all that they need."""
    if isinstance(schema, Component):
        if schema.name not in components:
            components[schema.name] = {}
            components[schema.name] = resolved(schema.build(), components)
        return {"$ref": f"#/components/schemas/{schema.name}"}
    if isinstance(schema, Mapping):
        return {key: resolved(value, components) for key, value in schema.items()}
    if isinstance(schema, list):
        return [resolved(value, components) for value in schema]
    return schema


PAGINATION = Component(
    "Pagination",
    lambda: record(
        {
            **dict.fromkeys(("page", "limit", "total", "totalCount", "totalPages"), NUMBER),
            **dict.fromkeys(("hasNext", "hasPrevious"), FLAG),
        }
    ),
)
REFERENCE = Component("ObjectReference", lambda: record({"type": TEXT, "name": TEXT}))
RELATIONSHIP = Component("Relationship", lambda: record({"source": REFERENCE, "target": REFERENCE}))
RELATIONSHIP_IN_PROJECT = Component(
    "ProjectRelationship", lambda: record({"source": REFERENCE, "target": REFERENCE, "project": TEXT})
)
RELATIONSHIPS_BY_NAME: Schema = {"type": "object", "additionalProperties": many(RELATIONSHIP)}
ERROR = Component(
    "Error",
    lambda: record({"status_code": NUMBER, "detail": {"anyOf": [TEXT, many({"type": "object"})]}, "error_type": TEXT}),
)
