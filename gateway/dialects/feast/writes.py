"""Objects that are written and deleted over REST: the bodies that Feast defines, made into its own messages."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import msgspec
from google.protobuf.message import Message

from chassis import errors
from gateway.dialects.feast import parameters
from gateway.dialects.feast.parameters import bad_request, invalid_body
from gateway.dialects.feast.routes import Asked, Lookup, Route, after_lookup
from gateway.dialects.feast.schemas import TEXT, one_of, record
from gateway.exchange import Answer, json_answer
from protos.gen.feast.core.DataSource_pb2 import DataSource
from protos.gen.feast.core.Entity_pb2 import Entity
from protos.gen.feast.core.FeatureService_pb2 import FeatureService
from protos.gen.feast.core.FeatureView_pb2 import FeatureView
from protos.gen.feast.core.Permission_pb2 import Permission, PermissionSpec
from protos.gen.feast.registry import RegistryServer_pb2 as feast_rpc
from protos.gen.feast.types.Value_pb2 import ValueType

_M = TypeVar("_M", bound=Message)

_MAX_TTL_SECONDS = 315_576_000_000  # protobuf's longest duration, some 10,000 years
_TtlSeconds = Annotated[int, msgspec.Meta(ge=0, le=_MAX_TTL_SECONDS)]


class EntityBody(msgspec.Struct):
    name: str
    project: str
    join_key: str | None = None  # default: the name
    value_type: int | None = 2
    description: str | None = ""
    tags: dict[str, str] | None = None
    owner: str | None = ""


class FileOptions(msgspec.Struct):
    uri: str = ""
    file_format: str | None = None  # parquet or delta
    s3_endpoint_override: str | None = ""


class QueryOptions(msgspec.Struct):
    table: str = ""
    query: str | None = ""


class WarehouseOptions(msgspec.Struct):
    table: str = ""
    database: str = ""
    schema: str = ""
    schema_: str = ""  # how Feast's own body, and so its web UI, spells it
    query: str | None = ""


class KafkaOptions(msgspec.Struct):
    kafka_bootstrap_servers: str = ""
    topic: str = ""


class KinesisOptions(msgspec.Struct):
    region: str = ""
    stream_name: str = ""


class SparkOptions(msgspec.Struct):
    table: str = ""
    path: str = ""
    query: str | None = ""
    file_format: str | None = ""
    date_partition_column_format: str | None = ""


class AthenaOptions(msgspec.Struct):
    table: str = ""
    query: str = ""
    database: str = ""
    data_source: str | None = ""


class CustomOptions(msgspec.Struct):
    configuration: str | None = ""
    config: str | None = ""  # the web UI's word for it
    class_name: str | None = ""


class DataSourceBody(msgspec.Struct):
    name: str
    project: str
    type: int | None = None
    timestamp_field: str | None = ""
    created_timestamp_column: str | None = ""
    date_partition_column: str | None = ""
    description: str | None = ""
    tags: dict[str, str] | None = None
    owner: str | None = ""
    file_options: FileOptions | None = None
    bigquery_options: QueryOptions | None = None
    snowflake_options: WarehouseOptions | None = None
    redshift_options: WarehouseOptions | None = None
    kafka_options: KafkaOptions | None = None
    spark_options: SparkOptions | None = None
    trino_options: QueryOptions | None = None
    athena_options: AthenaOptions | None = None
    kinesis_options: KinesisOptions | None = None
    custom_options: CustomOptions | None = None
    data_source_class_type: str | None = None


class FeatureBody(msgspec.Struct):
    name: str
    value_type: int = 2
    description: str | None = ""


class FeatureViewBody(msgspec.Struct):
    name: str
    project: str
    entities: list[str] | None = None
    features: list[FeatureBody] | None = None
    batch_source: str | None = ""  # name of a data source that exists
    ttl_seconds: _TtlSeconds | None = None
    online: bool | None = True
    description: str | None = ""
    tags: dict[str, str] | None = None
    owner: str | None = ""


class SelectionBody(msgspec.Struct):
    feature_view_name: str
    feature_names: list[str] | None = None  # default: all


class FeatureServiceBody(msgspec.Struct):
    name: str
    project: str
    features: list[SelectionBody]
    description: str | None = ""
    tags: dict[str, str] | None = None
    owner: str | None = ""


class RolesBody(msgspec.Struct):
    roles: list[str]


class GroupsBody(msgspec.Struct):
    groups: list[str]


class NamespacesBody(msgspec.Struct):
    namespaces: list[str]


class GroupsAndNamespacesBody(msgspec.Struct):
    groups: list[str]
    namespaces: list[str]


class PolicyBody(msgspec.Struct):
    """One of them, or none: then everybody."""

    role_based_policy: RolesBody | None = None
    group_based_policy: GroupsBody | None = None
    namespace_based_policy: NamespacesBody | None = None
    combined_group_namespace_policy: GroupsAndNamespacesBody | None = None


class PermissionBody(msgspec.Struct):
    name: str
    project: str
    policy: PolicyBody
    types: list[str] = []
    name_patterns: list[str] = []
    actions: list[str] = []
    tags: dict[str, str] | None = None
    required_tags: dict[str, str] | None = None


@dataclass(frozen=True)
class _Written:
    """A resource that can be written: RPCs by name, and how a body becomes the request of the first."""

    path: str
    body: type[msgspec.Struct]
    request: Callable[[Any], Any]
    apply: str
    delete: str
    # RPC that looks up what the body names, if the request is a Lookup.
    look_up: str = ""

    @property
    def singular(self) -> str:
        return self.path.removesuffix("s").replace("entitie", "entity").replace("_", " ")


def _given(body: msgspec.Struct, *without: str) -> dict[str, Any]:
    """What a body says, by the names of the message's fields: what is empty is left out."""
    fields: Mapping[str, Any] = msgspec.to_builtins(body)
    return {name: value for name, value in fields.items() if value and name not in ("project", *without)}


def message(kind: type[_M], **fields: Any) -> _M:
    """A message of JSON values. InvalidArgument for text that protobuf does not take."""
    try:
        return kind(**fields)
    except (ValueError, TypeError) as error:
        raise invalid_body(str(error)) from None


def _one_of(number: int, known: Collection[int], field: str) -> None:
    if number not in known:
        raise invalid_body(f"`{field}` must be one of {sorted(known)}")


def _entity(body: EntityBody) -> feast_rpc.ApplyEntityRequest:
    _one_of(body.value_type or 0, ValueType.Enum.values(), "value_type")
    spec = {"join_key": body.name, **_given(body)}
    return feast_rpc.ApplyEntityRequest(entity=message(Entity, spec=spec), project=body.project, commit=True)


_FORMATS = {"parquet": "parquet_format", "delta": "delta_format"}


def _options(options: Any) -> dict[str, Any]:
    """Options as their message has them."""
    given = _given(options, "config", "class_name", "schema_")
    if isinstance(options, FileOptions) and options.file_format:
        if options.file_format not in _FORMATS:
            raise invalid_body(f"`file_format` must be one of {sorted(_FORMATS)}")
        given["file_format"] = {_FORMATS[options.file_format]: {}}
    if isinstance(options, WarehouseOptions) and options.schema_:
        given["schema"] = options.schema_
    if isinstance(options, CustomOptions):
        given["configuration"] = (options.configuration or options.config or "").encode()
    return given


_OPTIONS = [name for name in DataSourceBody.__struct_fields__ if name.endswith("_options")]


def _data_source(body: DataSourceBody) -> feast_rpc.ApplyDataSourceRequest:
    _one_of(body.type or 0, DataSource.SourceType.values(), "type")
    fields = _given(body, *_OPTIONS)
    chosen = next((name for name in _OPTIONS if getattr(body, name) is not None), None)
    if chosen is not None:
        fields[chosen] = _options(getattr(body, chosen))
    if body.custom_options is not None and body.custom_options.class_name:
        fields.setdefault("data_source_class_type", body.custom_options.class_name)
    source = message(DataSource, **fields)
    return feast_rpc.ApplyDataSourceRequest(data_source=source, project=body.project, commit=True)


def _feature_view(body: FeatureViewBody) -> Lookup | feast_rpc.ApplyFeatureViewRequest:
    for feature in body.features or ():
        _one_of(feature.value_type, ValueType.Enum.values(), "value_type")
    spec = _given(body, "batch_source", "ttl_seconds", "online") | {"online": body.online is not False}
    if body.ttl_seconds is not None:
        spec["ttl"] = {"seconds": body.ttl_seconds}
    view = message(FeatureView, spec=spec)
    request = feast_rpc.ApplyFeatureViewRequest(feature_view=view, project=body.project, commit=True)
    if not body.batch_source:
        return request

    def on_source(source: DataSource | None) -> feast_rpc.ApplyFeatureViewRequest:
        if source is None:
            raise errors.NotFound(
                f"Data source {body.batch_source} does not exist in project {body.project}",
                reason="DATA_SOURCE_NOT_FOUND",
                name=body.batch_source,
                project=body.project,
            )
        request.feature_view.spec.batch_source.CopyFrom(source)
        return request

    return Lookup(feast_rpc.GetDataSourceRequest(name=body.batch_source, project=body.project), on_source)


def _feature_service(body: FeatureServiceBody) -> feast_rpc.ApplyFeatureServiceRequest:
    spec = _given(body, "features")
    # The registry knows the types of what is selected by name, and all of a view if no name is given.
    spec["features"] = [
        {
            "feature_view_name": selected.feature_view_name,
            "feature_columns": [{"name": name} for name in selected.feature_names or ()],
        }
        for selected in body.features
    ]
    service = message(FeatureService, spec=spec)
    return feast_rpc.ApplyFeatureServiceRequest(feature_service=service, project=body.project, commit=True)


def _permission(body: PermissionBody) -> feast_rpc.ApplyPermissionRequest:
    _known(body.types, PermissionSpec.Type.keys(), "types")
    _known(body.actions, PermissionSpec.AuthzedAction.keys(), "actions")
    spec = _given(body, "policy") | {"policy": _first(msgspec.to_builtins(body.policy))}
    permission = message(Permission, spec=spec)
    return feast_rpc.ApplyPermissionRequest(permission=permission, project=body.project, commit=True)


def _known(names: Sequence[str], known: Sequence[str], field: str) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise bad_request(f"Invalid {field}: {unknown}. Valid options are: {list(known)}", field)


def _first(policies: Mapping[str, Any]) -> dict[str, Any]:
    """A message holds one policy; as in Feast the first one that is given counts."""
    return dict([(name, policy) for name, policy in policies.items() if policy is not None][:1])


_WRITTEN = (
    _Written("entities", EntityBody, _entity, "ApplyEntity", "DeleteEntity"),
    _Written("data_sources", DataSourceBody, _data_source, "ApplyDataSource", "DeleteDataSource"),
    _Written(
        "feature_views",
        FeatureViewBody,
        _feature_view,
        "ApplyFeatureView",
        "DeleteFeatureView",
        look_up="GetDataSource",
    ),
    _Written("feature_services", FeatureServiceBody, _feature_service, "ApplyFeatureService", "DeleteFeatureService"),
    _Written("permissions", PermissionBody, _permission, "ApplyPermission", "DeletePermission"),
)


def routes(feast: Any) -> Sequence[Route]:
    """POST and DELETE of every resource that has them, on a stub of feast.registry.RegistryServer."""
    return [route for written in _WRITTEN for route in _routes(written, feast)]


def _routes(written: _Written, feast: Any) -> Sequence[Route]:
    apply = getattr(feast, written.apply)
    return (
        Route(
            "POST",
            f"/{written.path}",
            f"{written.path}.apply",
            f"Create a {written.singular}, or replace the one of its name.",
            after_lookup(getattr(feast, written.look_up), apply) if written.look_up else apply,
            lambda asked: written.request(asked.body),
            _applied,
            shows=_shows("applied"),
            body=written.body,
            status=201,
            errors=(400, 404, 409),
        ),
        Route(
            "DELETE",
            f"/{written.path}/{{name:path}}",
            f"{written.path}.delete",
            f"Delete a {written.singular}.",
            getattr(feast, written.delete),
            lambda asked: getattr(feast_rpc, f"{written.delete}Request")(
                name=asked.part("name"), project=asked[parameters.PROJECT], commit=True
            ),
            _deleted,
            shows=_shows("deleted"),
            parameters=(parameters.PROJECT,),
            errors=(404,),
        ),
    )


def _shows(status: str) -> Any:
    return record({"name": TEXT, "project": TEXT, "status": one_of([status])})


def _applied(asked: Asked, reply: Any) -> Answer:
    return json_answer({"name": asked.body.name, "project": asked.body.project, "status": "applied"}, 201)


def _deleted(asked: Asked, reply: Any) -> Answer:
    return json_answer({"name": asked.part("name"), "project": asked[parameters.PROJECT], "status": "deleted"})
