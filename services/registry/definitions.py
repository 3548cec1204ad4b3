"""Objects as Python source: what one would write to define them with the Feast SDK. For people to read."""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from protos.gen.feast.types.Value_pb2 import ValueType
from services.registry import kinds
from services.registry.kinds import Kind
from services.registry.rendering import type_name

# The class of the SDK for each of a data source's options, and the options that it calls by another name.
_SOURCES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "file_options": ("FileSource", {"uri": "path"}),
    "bigquery_options": ("BigQuerySource", {}),
    "snowflake_options": ("SnowflakeSource", {}),
    "redshift_options": ("RedshiftSource", {}),
    "spark_options": ("SparkSource", {}),
    "trino_options": ("TrinoSource", {}),
    "athena_options": ("AthenaSource", {}),
    "kafka_options": ("KafkaSource", {}),
    "kinesis_options": ("KinesisSource", {}),
    "custom_options": ("CustomSource", {}),
}

_Arguments = Sequence[tuple[str, str]]


def definition(kind: Kind, message: Any) -> str:
    """The source that defines an object; empty for kinds that nobody defines so."""
    describe = _KINDS.get(kind)
    return describe(kind.spec(message)) if describe else ""


def _entity(spec: Any) -> str:
    types = [("value_type", f"ValueType.{ValueType.Enum.Name(spec.value_type)}")] if _is_known(spec.value_type) else []
    join_keys = [("join_keys", repr([spec.join_key]))] if spec.join_key else []
    imports = "from feast import Entity" + (", ValueType" if types else "")
    return _source([imports], "Entity", spec, [*join_keys, *types])


def _data_source(spec: Any) -> str:
    if spec.type == spec.REQUEST_SOURCE:
        columns = spec.request_data_options.schema
        imports = ["from feast import Field, RequestSource", *_types(columns)]
        return _source(imports, "RequestSource", spec, [("schema", _fields(columns))])
    if spec.type == spec.PUSH_SOURCE:
        return _source(
            ["from feast import PushSource"],
            "PushSource",
            spec,
            [("batch_source", _identifier(spec.batch_source.name))] if spec.HasField("batch_source") else [],
        )
    chosen = spec.WhichOneof("options")
    name, renamed = _SOURCES.get(chosen or "", ("DataSource", {}))
    options = getattr(spec, chosen).ListFields() if chosen else ()
    arguments = [
        (renamed.get(field.name, field.name), repr(value)) for field, value in options if isinstance(value, str)
    ]
    for field in ("timestamp_field", "created_timestamp_column"):
        arguments += _text(spec, field)
    if spec.field_mapping:
        arguments.append(("field_mapping", repr(dict(sorted(spec.field_mapping.items())))))
    return _source([f"from feast import {name}"], name, spec, arguments)


def _feature_view(name: str, spec: Any) -> str:
    source = next((each for each in ("stream_source", "batch_source", "source") if _has(spec, each)), "")
    imports = [f"from feast import {name}, Field", *_types(spec.features)]
    arguments = [("entities", _list(map(_identifier, spec.entities))), ("schema", _fields(spec.features))]
    if spec.HasField("ttl") and spec.ttl.seconds:
        imports.insert(0, "from datetime import timedelta\n")
        arguments.append(("ttl", f"timedelta(seconds={spec.ttl.seconds})"))
    if source:
        arguments.append(("source", _identifier(getattr(spec, source).name)))
    arguments.append(("online", repr(spec.online)))
    return _source(imports, name, spec, arguments)


def _on_demand_view(spec: Any) -> str:
    sources = [
        source.request_data_source.name
        or source.feature_view.spec.name
        or source.feature_view_projection.feature_view_name
        for _, source in sorted(spec.sources.items())
    ]
    transformation = spec.feature_transformation.user_defined_function
    function = transformation if transformation.name else spec.user_defined_function
    imports = ["from feast import Field, OnDemandFeatureView", *_types(spec.features)]
    arguments = [
        ("sources", _list(map(_identifier, sources))),
        ("schema", _fields(spec.features)),
        *_text(spec, "mode"),
    ]
    if function.name:
        arguments.append(("udf", _identifier(function.name)))
    if function.body_text:
        imports.append(f"\n{function.body_text.strip()}")
    return _source(imports, "OnDemandFeatureView", spec, arguments)


def _feature(spec: Any) -> str:
    return _source(["from feast import Field", *_imports({spec.type})], "Field", spec, [("dtype", spec.type)])


def _feature_service(spec: Any) -> str:
    selected = [
        _identifier(part.feature_view_name)
        + (f"[{[column.name for column in part.feature_columns]!r}]" if part.feature_columns else "")
        for part in spec.features
    ]
    return _source(["from feast import FeatureService"], "FeatureService", spec, [("features", _list(selected))])


def _saved_dataset(spec: Any) -> str:
    arguments = [("features", repr(list(spec.features))), ("join_keys", repr(list(spec.join_keys)))]
    return _source(["from feast.saved_dataset import SavedDataset"], "SavedDataset", spec, arguments)


_KINDS: Mapping[Kind, Callable[[Any], str]] = {
    kinds.ENTITY: _entity,
    kinds.DATA_SOURCE: _data_source,
    kinds.FEATURE_VIEW: lambda spec: _feature_view("FeatureView", spec),
    kinds.STREAM_FEATURE_VIEW: lambda spec: _feature_view("StreamFeatureView", spec),
    kinds.LABEL_VIEW: lambda spec: _feature_view("LabelView", spec),
    kinds.ON_DEMAND_FEATURE_VIEW: _on_demand_view,
    kinds.FEATURE: _feature,
    kinds.LABEL: _feature,
    kinds.FEATURE_SERVICE: _feature_service,
    kinds.SAVED_DATASET: _saved_dataset,
}


def _source(imports: Iterable[str], name: str, spec: Any, arguments: _Arguments) -> str:
    """Imports, and an assignment of a call with an argument on each line."""
    shown = [("name", repr(spec.name)), *arguments]
    for field in ("description", "owner"):
        shown += _text(spec, field)
    if spec.tags:
        shown.append(("tags", repr(dict(sorted(spec.tags.items())))))
    lines = "".join(f"    {argument}={value},\n" for argument, value in shown)
    return "\n".join(imports) + f"\n\n{_identifier(spec.name)} = {name}(\n{lines})\n"


def _text(spec: Any, field: str) -> _Arguments:
    value = getattr(spec, field, "")
    return [(field, repr(value))] if value else []


def _has(spec: Any, field: str) -> bool:
    return field in spec.DESCRIPTOR.fields_by_name and bool(spec.HasField(field))


def _is_known(value_type: int) -> bool:
    return value_type != ValueType.INVALID and value_type in ValueType.Enum.values()


def _fields(columns: Iterable[Any]) -> str:
    lines = [
        f"        Field(name={column.name!r}, dtype={type_name(column.value_type)}"
        + (f", description={column.description!r}" if column.description else "")
        + "),\n"
        for column in columns
    ]
    return f"[\n{''.join(lines)}    ]" if lines else "[]"


def _types(columns: Iterable[Any]) -> list[str]:
    """The import of the columns' types."""
    return _imports({type_name(column.value_type) for column in columns})


def _imports(types: Iterable[str]) -> list[str]:
    names = {word for each in types for word in re.findall(r"\w+", each)}
    return [f"from feast.types import {', '.join(sorted(names))}"] if names else []


def _list(parts: Iterable[str]) -> str:
    return f"[{', '.join(parts)}]"


def _identifier(name: str) -> str:
    """A variable for what has this name."""
    shown = re.sub(r"\W", "_", name)
    return f"_{shown}" if not shown or shown[0].isdigit() or keyword.iskeyword(shown) else shown
