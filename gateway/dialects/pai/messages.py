"""JSON into messages and back, by their descriptors: compiled once for each message, the field's JSON name is PAI's.

Not protobuf's own JSON: numbers stay numbers, whatever their width; a text may stand for a number or a list, because a
query holds nothing but texts; unknown names are ignored, as Alibaba does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any

import orjson
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from chassis import errors

Read = Callable[[str, Any], Any]
Write = Callable[[Any], Any]

_TIMESTAMP = "google.protobuf.Timestamp"
_PARTITION = "triglot.management.v1.PartitionSelection"
_WHOLE = "the request"
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def read_message(kind: type[Message], values: Mapping[str, Any]) -> Message:
    """A message from parameters by name. Raises InvalidArgument, naming the parameter, for a value of a wrong type."""
    made: Message = _reader(kind.DESCRIPTOR)(_WHOLE, values)
    return made


def write_message(message: Message) -> dict[str, Any]:
    """A message as JSON. What an answer holds as its only field, an object, is the answer itself."""
    descriptor: Any = message.DESCRIPTOR
    only = descriptor.fields[0] if len(descriptor.fields) == 1 else None
    if only is not None and only.message_type is not None and not _is_repeated(only):
        message = getattr(message, only.name)
    written: dict[str, Any] = _writer(message.DESCRIPTOR)(message)
    return written


def _invalid(name: str, why: str) -> errors.InvalidArgument:
    return errors.InvalidArgument(f"{name} {why}", field=name)


def _is_repeated(field: FieldDescriptor) -> bool:
    return bool(field.is_repeated)


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


# --- JSON to message ---------------------------------------------------------------------------------------------


@cache
def _reader(descriptor: Descriptor) -> Read:
    if descriptor.full_name == _PARTITION:
        return _read_partition
    kind = GetMessageClass(descriptor)
    readers = {field.json_name: (field.name, _field_reader(field)) for field in descriptor.fields}

    def read(name: str, value: Any) -> Any:
        value = _parsed(name, value)
        if not isinstance(value, Mapping):
            raise _invalid(name, "must be an object")
        given = {}
        for key, (field, reader) in readers.items():
            if value.get(key) is not None:
                given[field] = reader(key if name == _WHOLE else f"{name}.{key}", value[key])
        return kind(**given)

    return read


def _field_reader(field: FieldDescriptor) -> Read:
    entry: Any = field.message_type
    if _is_map(field):
        value_reader = _single_reader(entry.fields_by_name["value"])

        def read_map(name: str, value: Any) -> Any:
            value = _parsed(name, value)
            if not isinstance(value, Mapping):
                raise _invalid(name, "must be an object")
            return {key: value_reader(f"{name}.{key}", item) for key, item in value.items()}

        return read_map
    single = _single_reader(field)
    if not _is_repeated(field):
        return single
    is_message = field.message_type is not None

    def read_list(name: str, value: Any) -> Any:
        if isinstance(value, str):
            value = _parsed(name, value) if is_message or value.lstrip().startswith("[") else _split(value)
        if not isinstance(value, list):
            raise _invalid(name, "must be a list")
        return [single(f"{name}[{position}]", item) for position, item in enumerate(value)]

    return read_list


def _single_reader(field: FieldDescriptor) -> Read:
    if field.message_type is not None:
        return _reader(field.message_type)
    return _SCALAR_READERS[field.cpp_type]


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")] if text.strip() else []


def _parsed(name: str, value: Any) -> Any:
    """A value that may come as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise _invalid(name, f"is not JSON: {error}") from None


def _read_text(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # an id that was written as a number
    raise _invalid(name, "must be a string")


def _integer_reader(bits: int) -> Read:
    limit = 1 << (bits - 1)

    def read(name: str, value: Any) -> int:
        if isinstance(value, str) and value.strip().removeprefix("-").isdecimal() and len(value) < 32:
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise _invalid(name, "must be an integer")
        if not -limit <= value < limit:
            raise _invalid(name, f"must fit into {bits} bits")
        return value

    return read


def _read_boolean(name: str, value: Any) -> bool:
    if isinstance(value, str):
        value = _BOOLEANS.get(value.strip().lower())
    if not isinstance(value, bool):
        raise _invalid(name, "must be true or false")
    return value


def _read_number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _invalid(name, "must be a number")
    return float(value)


_SCALAR_READERS: dict[int, Read] = {
    FieldDescriptor.CPPTYPE_STRING: _read_text,
    FieldDescriptor.CPPTYPE_INT32: _integer_reader(32),
    FieldDescriptor.CPPTYPE_INT64: _integer_reader(64),
    FieldDescriptor.CPPTYPE_BOOL: _read_boolean,
    FieldDescriptor.CPPTYPE_DOUBLE: _read_number,
}


def _read_partition(name: str, value: Any) -> Any:
    """The values of a partition column, in any of the forms that PAI's documents and SDKs show:

    "20230820", {"value": "20230820"}, {"Values": ["20230820", ..]}, {"StartValue": "..", "EndValue": ".."}
    """
    forms = {key.lower(): item for key, item in value.items()} if isinstance(value, Mapping) else {"value": value}
    values = forms.get("values", [])
    if not isinstance(values, list):
        raise _invalid(name, "needs a list of values")
    if forms.get("value") is not None:
        values = [*values, forms["value"]]
    texts = [_read_text(name, item) for item in values]
    ends = {
        end: _read_text(name, forms[key])
        for end, key in (("start_value", "startvalue"), ("end_value", "endvalue"))
        if forms.get(key) is not None
    }
    if bool(texts) == bool(ends):
        raise _invalid(name, "must be a value, {value}, {Values} or {StartValue, EndValue}")
    return {"values": texts, **ends}


# --- message to JSON ---------------------------------------------------------------------------------------------


@cache
def _writer(descriptor: Descriptor) -> Write:
    if descriptor.full_name == _TIMESTAMP:
        return _write_timestamp
    writers = [
        (field.name, field.json_name, _field_writer(field), _may_be_absent(field)) for field in descriptor.fields
    ]

    def write(message: Any) -> dict[str, Any]:
        return {
            key: writer(getattr(message, name))
            for name, key, writer, optional in writers
            if not optional or message.HasField(name)
        }

    return write


def _may_be_absent(field: FieldDescriptor) -> bool:
    return not _is_repeated(field) and field.has_presence


def _field_writer(field: FieldDescriptor) -> Write:
    nested = field.message_type
    if nested is None:
        return list if _is_repeated(field) else _same
    if _is_repeated(field):
        write_one = _writer(nested)
        return lambda messages: [write_one(message) for message in messages]
    return _writer(nested)


def _same(value: Any) -> Any:
    return value


def _write_timestamp(message: Any) -> str:
    """Milliseconds and a numeric offset: 2021-12-15T23:24:33.132+00:00."""
    at = datetime.fromtimestamp(message.seconds, UTC).replace(microsecond=message.nanos // 1000)
    return at.isoformat(timespec="milliseconds")
