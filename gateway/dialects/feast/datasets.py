"""Saved datasets: registered and deleted over REST, and the jobs that would fill them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
import orjson

from gateway.dialects.feast import parameters
from gateway.dialects.feast.parameters import bad_request
from gateway.dialects.feast.routes import Asked, Route
from gateway.dialects.feast.schemas import NUMBER, TEXT, Component, Schema, many, one_of, record
from gateway.dialects.feast.writes import message
from gateway.exchange import Answer, json_answer
from protos.gen.feast.core.SavedDataset_pb2 import SavedDataset
from protos.gen.feast.registry import RegistryServer_pb2 as feast_rpc
from protos.gen.triglot.registry.v1 import registry_service_pb2 as rpc

StorageType = Literal[
    "file",
    "bigquery",
    "snowflake",
    "redshift",
    "spark",
    "trino",
    "athena",
    "postgres",
    "clickhouse",
    "couchbase",
    "custom",
]


class RegisterBody(msgspec.Struct):
    name: str
    project: str
    features: list[str] = []  # `view:feature`
    join_keys: list[str] = []
    storage_path: str | None = None  # required; without it the answer is 400, as in Feast
    storage_type: StorageType = "file"
    storage_file_format: str | None = "parquet"  # of Spark's storage
    tags: dict[str, str] = {}
    full_feature_names: bool = False
    feature_service_name: str | None = None
    allow_override: bool = False
    namespace: str = ""
    collection: str = ""
    description: str = ""


class CreateBody(msgspec.Struct):
    name: str
    project: str
    feature_service_name: str | None = None
    features: list[str] | None = None
    entity_source_type: str = "inline"
    entity_source_path: str | None = None
    entity_keys: list[str] | None = None
    entity_values: str | None = None
    start_date: str | None = None
    end_date: str | None = None
    extra_columns: str | None = None
    storage_type: StorageType = "file"
    storage_path: str = ""
    tags: dict[str, str] = {}
    allow_overwrite: bool = False


_STATUS = parameters.text("status", "Only jobs in this state.")
_ROWS = parameters.number("limit", "How many rows.", parameters.MAX_LIMIT, 10)
_JOB_FIELDS = ("job_id", "dataset_name", "project", "status", "created_at", "completed_at", "error")
_JOB = Component("DatasetJob", lambda: record(dict.fromkeys(_JOB_FIELDS, TEXT)))
_DONE: Schema = record({"status": one_of(["ok"]), "name": TEXT, "project": TEXT})


def routes(registry: Any, feast: Any) -> Sequence[Route]:
    """The routes, on stubs of both services of the registry. To be tried before `/saved_datasets/{name}`."""
    return (
        Route(
            "POST",
            "/saved_datasets",
            "saved_datasets.apply",
            "Register a dataset that was saved.",
            registry.RegisterSavedDataset,
            lambda asked: _register(asked.body),
            lambda asked, _: _done(asked.body.name, asked.body.project),
            shows=_DONE,
            body=RegisterBody,
            errors=(400, 409),
        ),
        Route(
            "POST",
            "/saved_datasets/create",
            "saved_datasets.create",
            "Start a retrieval and save its rows. Triglot runs no retrievals: 409.",
            feast.CreateDatasetFromRetrieval,
            lambda asked: _create(asked.body),
            lambda asked, reply: json_answer({"job_id": reply.job_id, "status": reply.status}),
            shows=record({"job_id": TEXT, "status": TEXT}),
            body=CreateBody,
            errors=(400, 409),
        ),
        Route(
            "GET",
            "/saved_datasets/jobs",
            "saved_datasets.jobs",
            "Retrievals that are saved into datasets. Triglot runs none.",
            feast.ListDatasetJobs,
            lambda asked: feast_rpc.ListDatasetJobsRequest(
                project=asked[parameters.ANY_PROJECT], status_filter=asked[_STATUS]
            ),
            lambda asked, reply: json_answer({"jobs": [_job(each) for each in reply.jobs]}),
            shows=record({"jobs": many(_JOB)}),
            parameters=(parameters.ANY_PROJECT, _STATUS),
        ),
        Route(
            "GET",
            "/saved_datasets/jobs/{job_id}",
            "saved_datasets.job",
            "One retrieval that is saved into a dataset. Triglot runs none: 404.",
            feast.GetDatasetJobStatus,
            lambda asked: feast_rpc.GetDatasetJobStatusRequest(job_id=asked.part("job_id")),
            lambda asked, reply: json_answer(_job(reply)),
            shows=_JOB,
            errors=(404,),
        ),
        Route(
            "GET",
            "/saved_datasets/data/{name:path}",
            "saved_datasets.data",
            "Some rows of a dataset. Triglot reads no offline store: 409.",
            feast.GetDatasetData,
            lambda asked: feast_rpc.GetDatasetDataRequest(
                name=asked.part("name"), project=asked[parameters.PROJECT], limit=asked[_ROWS]
            ),
            _rows,
            shows=record(
                {"columns": many(TEXT), "rows": many({"type": "object"}), "total_rows": NUMBER, "sample_size": NUMBER}
            ),
            parameters=(parameters.PROJECT, _ROWS),
            errors=(404, 409),
        ),
        Route(
            "DELETE",
            "/saved_datasets/{name:path}",
            "saved_datasets.delete",
            "Delete a saved dataset; its rows stay where they are.",
            feast.DeleteSavedDataset,
            lambda asked: feast_rpc.DeleteSavedDatasetRequest(
                name=asked.part("name"), project=asked[parameters.PROJECT], commit=True
            ),
            lambda asked, _: _done(asked.part("name"), asked[parameters.PROJECT]),
            shows=_DONE,
            parameters=(parameters.PROJECT,),
            errors=(404,),
        ),
    )


def _done(name: str, project: str) -> Answer:
    return json_answer({"status": "ok", "name": name, "project": project})


def _needed(value: str | None, name: str, text: str) -> str:
    if not value or not value.strip():
        raise bad_request(text, name)
    return value.strip()


def _register(body: RegisterBody) -> rpc.RegisterSavedDatasetRequest:
    name = _needed(body.name, "name", "Dataset name is required.")
    project = _needed(body.project, "project", "Project is required.")
    path = _needed(body.storage_path, "storage_path", "Storage path is required: a file's path or a table's name.")
    spec: dict[str, Any] = {
        "name": name,
        "features": body.features,
        "join_keys": body.join_keys,
        "full_feature_names": body.full_feature_names,
        "storage": _storage(body.storage_type, path, body.storage_file_format or "parquet"),
        "tags": body.tags,
        "namespace": body.namespace,
        "collection": body.collection,
        "description": body.description,
        "feature_service_name": body.feature_service_name or "",
    }
    dataset = message(SavedDataset, spec=spec)
    return rpc.RegisterSavedDatasetRequest(project=project, saved_dataset=dataset, allow_override=body.allow_override)


def _storage(storage_type: StorageType, path: str, file_format: str) -> Mapping[str, Any]:
    """Where a dataset is, as SavedDatasetStorage has it. Stores that Feast has no message for are JSON, as in Feast."""
    match storage_type:
        case "file":
            return {"file_storage": {"uri": path}}
        case "spark":
            return {"spark_storage": {"path": path, "file_format": file_format}}
        case "custom":
            return {"custom_storage": {"configuration": path.encode()}}
        case "postgres" | "clickhouse":
            return {"custom_storage": {"configuration": orjson.dumps({"name": None, "query": None, "table": path})}}
        case "couchbase":
            database, scope, collection = [*path.split(".", 2), "", ""][:3]
            place = {"name": None, "query": None, "database": database, "scope": scope, "collection": collection}
            return {"custom_storage": {"configuration": orjson.dumps(place)}}
        case _:
            return {f"{storage_type}_storage": {"table": path}}


def _create(body: CreateBody) -> feast_rpc.CreateDatasetFromRetrievalRequest:
    name = _needed(body.name, "name", "Dataset name is required.")
    project = _needed(body.project, "project", "Project is required.")
    path = _needed(body.storage_path, "storage_path", "Storage path (output destination) is required.")
    if not body.feature_service_name and not body.features:
        raise bad_request("Either feature_service_name or features list is required.", "features")
    for source, field in (("inline", "entity_keys"), ("inline", "entity_values"), ("reference", "entity_source_path")):
        if body.entity_source_type == source and not getattr(body, field):
            raise bad_request(f"{field} is required when entity_source_type is '{source}'.", field)
    given = {key: value for key, value in msgspec.to_builtins(body).items() if value}
    return message(
        feast_rpc.CreateDatasetFromRetrievalRequest,
        **given | {"name": name, "project": project, "storage_path": path},
    )


def _job(job: feast_rpc.GetDatasetJobStatusResponse) -> dict[str, str]:
    return {field: getattr(job, field) for field in _JOB_FIELDS}


def _rows(asked: Asked, reply: feast_rpc.GetDatasetDataResponse) -> Answer:
    rows = [dict(zip(reply.columns, (orjson.loads(value) for value in row.values), strict=False)) for row in reply.rows]
    shown = {"columns": list(reply.columns), "rows": rows}
    return json_answer({**shown, "total_rows": reply.total_rows, "sample_size": reply.sample_size})
