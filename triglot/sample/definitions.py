"""What the sample defines, in the words of each dialect. One meaning: the tables of `triglot.sample.tables`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import grpc
import orjson
import pyarrow
import pyarrow.parquet

from protos.gen.feast.core import (
    DataFormat_pb2,
    DataSource_pb2,
    Entity_pb2,
    Feature_pb2,
    FeatureService_pb2,
    FeatureView_pb2,
    FeatureViewProjection_pb2,
    Project_pb2,
)
from protos.gen.feast.registry import RegistryServer_pb2, RegistryServer_pb2_grpc
from protos.gen.feast.types import Value_pb2
from protos.gen.triglot.serving.v1 import feature_view_pb2, serving_service_pb2, serving_service_pb2_grpc
from triglot.sample.tables import LABEL, PROJECT, TABLES, Table

VIEW = "flight_delay"
VERSION = 1
_CALL_SECONDS = 30

ONLINE_DATASOURCE = {
    "Name": "flights_online",
    "WorkspaceId": "1",
    "Type": "FeatureDB",
    "Uri": "feature_db",
    "Config": "{}",
}


def offline_datasource(root: Path) -> dict[str, Any]:
    """The folder of Parquet files, as the MaxCompute project that it stands in for."""
    config = orjson.dumps({"driver": "parquet", "root": str(root)}).decode()
    return {"Name": "flights_offline", "WorkspaceId": "1", "Type": "MaxCompute", "Uri": PROJECT, "Config": config}


def project(offline_id: str, online_id: str) -> dict[str, Any]:
    return {
        "Name": PROJECT,
        "WorkspaceId": "1",
        "Description": "Every flight that left New York in 2013.",
        "OfflineDatasourceId": offline_id,
        "OnlineDatasourceId": online_id,
    }


def feature_view(
    table: Table, project_id: str, entity_id: str, offline_id: str, fields: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    return {
        "ProjectId": project_id,
        "Name": table.name,
        "Type": "Batch",
        "FeatureEntityId": entity_id,
        "WriteMethod": "ByReadyMadeTable",
        "RegisterDatasourceId": offline_id,
        "RegisterTable": table.name,
        "SyncOnlineTable": True,
        "Fields": list(fields),
        "Tags": ["sample"],
    }


def label_table(project_id: str, offline_id: str) -> dict[str, Any]:
    """The label: how late a flight arrived. The table is flights itself, which holds the outcome too."""
    return {
        "ProjectId": project_id,
        "DatasourceId": offline_id,
        "Name": "flights",
        "Fields": [
            {"Name": "flight_id", "Type": "INT64", "Attributes": ["FeatureField"]},
            {"Name": "scheduled_at", "Type": "TIMESTAMP", "Attributes": ["EventTime"]},
            {"Name": LABEL, "Type": "INT64", "Attributes": ["LabelField"]},
        ],
    }


def model_feature(
    project_id: str, label_table_id: str, views: Mapping[str, str], fields: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    """The same selection as the Hopsworks-style view, as PAI's model feature."""
    types = {(table, field["Name"]): field["Type"] for table, listed in fields.items() for field in listed}
    return {
        "ProjectId": project_id,
        "Name": VIEW,
        "LabelTableId": label_table_id,
        "Features": [
            {
                "FeatureViewId": views[use.table],
                "Name": name,
                "AliasName": use.prefix + name,
                "Type": types[use.table, name],
            }
            for use in USES
            for name in use.features
            if name != "flight_id"
        ],
        "LabelPriorityLevel": 1,
    }


@dataclass(frozen=True)
class Use:
    """One table in the model's view: which of its columns, and how it is joined to flights."""

    table: str
    features: tuple[str, ...]
    on: tuple[str, str] | None = None  # column of flights, key of the table
    prefix: str = ""


USES = (
    Use("flights", ("flight_id", "carrier", "origin", "dest", "scheduled_at", "distance", "dep_delay")),
    Use("planes", ("built", "manufacturer", "model", "engines", "seats"), ("tailnum", "tailnum")),
    Use("weather", ("temp", "humid", "wind_speed", "precip", "visib"), ("weather_key", "weather_key")),
    Use("airports", ("name", "lat", "lon", "alt", "observes_dst"), ("dest", "faa"), "dest_"),
)


def example(root: Path) -> dict[str, Any]:
    """One call that answers COMPLETE: the first flight whose plane, weather and airport are known."""
    files = {name: str(root / f"{name}.parquet") for name in ("flights", "planes", "weather", "airports")}
    with duckdb.connect() as connection:
        for name, file in files.items():
            connection.read_parquet(file).create_view(name)
        row = connection.execute(
            """
            SELECT f.flight_id, f.tailnum, f.weather_key, f.dest
            FROM flights f
            JOIN planes p ON p.tailnum = f.tailnum
            JOIN weather w ON w.weather_key = f.weather_key
            JOIN airports a ON a.faa = f.dest
            ORDER BY f.flight_id LIMIT 1
            """
        ).fetchall()[0]
    entry = dict(zip(("flight_id", "tailnum", "weather_key", "dest_faa"), row, strict=True))
    return {"feature_store": PROJECT, "feature_view": VIEW, "version": VERSION, "entry": entry}


@dataclass(frozen=True)
class Step:
    """One gRPC call: which stub's method, with which message. `repeatable` says that ALREADY_EXISTS is fine."""

    service: str
    method: str
    message: Any
    repeatable: bool = False

    async def perform(
        self, serving: grpc.aio.Channel, registry: grpc.aio.Channel, metadata: Sequence[tuple[str, str]]
    ) -> None:
        """Make the call. Raises grpc.aio.AioRpcError."""
        stub: Any = (
            serving_service_pb2_grpc.ServingServiceStub(serving)
            if self.service == "serving"
            else RegistryServer_pb2_grpc.RegistryServerStub(registry)
        )
        try:
            await getattr(stub, self.method)(self.message, metadata=tuple(metadata), timeout=_CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            if not (self.repeatable and error.code() == grpc.StatusCode.ALREADY_EXISTS):
                raise


def serving_calls() -> list[Step]:
    """The model's view over four groups, with the label that is not served."""
    view = feature_view_pb2.FeatureView(
        feature_store=PROJECT, name=VIEW, version=VERSION, description="Will this flight be late?"
    )
    for index, use in enumerate(USES):
        join = view.joins.add(feature_group=use.table, version=1, prefix=use.prefix)
        if use.on:
            join.on.add(left=use.on[0], right=use.on[1])
        for name in use.features:
            view.features.add(join_index=index, name=name)
    view.features.add(join_index=0, name=LABEL, label=True)
    request = serving_service_pb2.CreateFeatureViewRequest(feature_view=view)
    return [Step("serving", "CreateFeatureView", request, repeatable=True)]


def feast_calls(root: Path) -> list[Step]:
    """The same definitions as Feast has them: project, entities, file sources, feature views, a feature service."""
    described = Project_pb2.Project(
        spec=Project_pb2.ProjectSpec(name=PROJECT, description="Every flight that left New York in 2013.")
    )
    steps = [Step("registry", "ApplyProject", RegistryServer_pb2.ApplyProjectRequest(project=described, commit=True))]
    views = {}
    for table in TABLES:
        columns = pyarrow.parquet.read_schema(root / f"{table.name}.parquet")
        source = _file_source(table, root)
        view = views[table.name] = _feature_view(table, columns, source)
        steps += [
            _apply("ApplyEntity", RegistryServer_pb2.ApplyEntityRequest(entity=_entity(table, columns))),
            _apply("ApplyDataSource", RegistryServer_pb2.ApplyDataSourceRequest(data_source=source)),
            _apply("ApplyFeatureView", RegistryServer_pb2.ApplyFeatureViewRequest(feature_view=view)),
        ]
    service = _feature_service(views)
    steps.append(_apply("ApplyFeatureService", RegistryServer_pb2.ApplyFeatureServiceRequest(feature_service=service)))
    return steps


def _apply(method: str, message: Any) -> Step:
    message.project = PROJECT
    message.commit = True
    return Step("registry", method, message)


def _value_type(column: pyarrow.DataType) -> Value_pb2.ValueType.Enum.ValueType:
    kinds = Value_pb2.ValueType
    if pyarrow.types.is_integer(column):
        return kinds.INT64
    if pyarrow.types.is_floating(column):
        return kinds.DOUBLE
    if pyarrow.types.is_boolean(column):
        return kinds.BOOL
    return kinds.UNIX_TIMESTAMP if pyarrow.types.is_timestamp(column) else kinds.STRING


def _entity(table: Table, columns: pyarrow.Schema) -> Entity_pb2.Entity:
    spec = Entity_pb2.EntitySpecV2(
        name=table.entity,
        project=PROJECT,
        join_key=table.key,
        value_type=_value_type(columns.field(table.key).type),
        description=table.description,
    )
    return Entity_pb2.Entity(spec=spec)


def _file_source(table: Table, root: Path) -> DataSource_pb2.DataSource:
    parquet = DataFormat_pb2.FileFormat(parquet_format=DataFormat_pb2.FileFormat.ParquetFormat())
    return DataSource_pb2.DataSource(
        name=f"{table.name}_file",
        project=PROJECT,
        type=DataSource_pb2.DataSource.BATCH_FILE,
        description=table.description,
        data_source_class_type="feast.infra.offline_stores.file_source.FileSource",
        file_options=DataSource_pb2.DataSource.FileOptions(
            uri=str(root / f"{table.name}.parquet"), file_format=parquet
        ),
    )


def _feature_view(
    table: Table, columns: pyarrow.Schema, source: DataSource_pb2.DataSource
) -> FeatureView_pb2.FeatureView:
    spec = FeatureView_pb2.FeatureViewSpec(
        name=table.name,
        project=PROJECT,
        entities=[table.entity],
        description=table.description,
        tags={"sample": "nycflights13"},
        online=True,
        batch_source=source,
    )
    for column in columns:
        target = spec.entity_columns if column.name == table.key else spec.features
        if column.name != LABEL:
            target.add(name=column.name, value_type=_value_type(column.type))
    return FeatureView_pb2.FeatureView(spec=spec)


def _feature_service(views: Mapping[str, FeatureView_pb2.FeatureView]) -> FeatureService_pb2.FeatureService:
    spec = FeatureService_pb2.FeatureServiceSpec(
        name=VIEW, project=PROJECT, description="Will this flight be late?", tags={"sample": "nycflights13"}
    )
    for use in USES:
        columns = {feature.name: feature for feature in views[use.table].spec.features}
        chosen: list[Feature_pb2.FeatureSpecV2] = [columns[name] for name in use.features if name in columns]
        spec.features.append(
            FeatureViewProjection_pb2.FeatureViewProjection(
                feature_view_name=use.table,
                feature_columns=chosen,
                join_key_map={use.on[1]: use.on[0]} if use.on and use.on[0] != use.on[1] else {},
            )
        )
    return FeatureService_pb2.FeatureService(spec=spec)
