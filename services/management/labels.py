"""Label tables: entries of the catalogue for tables of an offline store."""

from __future__ import annotations

from chassis import calls
from chassis.postgres import Database
from protos.gen.triglot.management.v1 import label_table_pb2 as pb
from services.management import audited, fields
from services.management.datasources import Datasources
from services.management.inputs import (
    fetch_page,
    invalid,
    name,
    not_found,
    number,
    number_or_none,
    numbers,
    page_of,
    visible_stores,
)
from services.management.projects import permitted, share_project
from services.management.rows import QUERIES, Row, timestamp
from services.management.tables import READ_TYPES


class LabelTables:
    """Rows of `label_table`."""

    def __init__(self, database: Database, datasources: Datasources) -> None:
        self._database = database
        self._datasources = datasources

    async def create(self, request: pb.CreateLabelTableRequest) -> int:
        """Id of what was made. Raises AlreadyExists, InvalidArgument, NotFound."""
        title = name("Name", request.name)
        columns = fields.dumped(fields.kept_label_fields(request.fields))
        async with self._database.transaction() as connection:
            project = await share_project(connection, request.project_id)
            datasource = await self._datasources.share(connection, "DatasourceId", request.datasource_id)
            _check_type(datasource)
            made: int = await connection.fetchval(
                QUERIES.insert_label_table, project["id"], datasource["id"], title, columns, calls.principal().name
            )
            await audited.created(connection, audited.LABEL_TABLE, made)
        return made

    async def get(self, key: str) -> pb.LabelTable:
        """Raises NotFound, PermissionDenied."""
        row = await self._database.fetchrow(QUERIES.label_table, number("LabelTableId", key))
        return _shown(permitted("LabelTable", key, row))

    async def page(self, request: pb.ListLabelTablesRequest) -> tuple[int, list[pb.LabelTableSummary]]:
        """The count of all pages, and the page asked for."""
        total, rows = await fetch_page(
            self._database,
            QUERIES.list_label_tables,
            visible_stores(),
            numbers("LabelTableIds", request.label_table_ids),
            request.name,
            request.owner,
            number_or_none("ProjectId", request.project_id),
            *page_of(request).arguments,
        )
        return total, [_summary(row) for row in rows]

    async def update(self, request: pb.UpdateLabelTableRequest) -> None:
        """Raises NotFound, AlreadyExists; InvalidArgument if fields are added, removed, renamed or get another type."""
        identifier = number("LabelTableId", request.label_table_id)
        permitted("LabelTable", identifier, await self._database.fetchrow(QUERIES.label_table, identifier))
        columns = fields.kept_label_fields(request.fields)
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(QUERIES.lock_label_table, identifier)
            if row is None:
                raise not_found("LabelTable", identifier)
            old = {field["name"]: field["type"] for field in fields.loaded(row["fields"])}
            if {field["name"]: field["type"] for field in columns} != old:
                raise invalid("Fields", "must be the table's fields with their types; only attributes can be changed")
            datasource_id = row["datasource_id"]
            if request.HasField("datasource_id"):
                datasource = await self._datasources.share(connection, "DatasourceId", request.datasource_id)
                _check_type(datasource)
                datasource_id = datasource["id"]
            title = name("Name", request.name) if request.HasField("name") else row["name"]
            async with audited.changing(connection, audited.LABEL_TABLE, identifier):
                await connection.execute(
                    QUERIES.update_label_table, identifier, datasource_id, title, fields.dumped(columns)
                )

    async def delete(self, key: str) -> None:
        """Raises NotFound; FailedPrecondition while a model feature uses it."""
        identifier = number("LabelTableId", key)
        permitted("LabelTable", key, await self._database.fetchrow(QUERIES.label_table, identifier))
        async with (
            self._database.transaction() as connection,
            audited.changing(connection, audited.LABEL_TABLE, identifier),
        ):
            await connection.execute(QUERIES.delete_label_table, identifier)


def _check_type(datasource: Row) -> None:
    if datasource["type"] not in READ_TYPES:
        raise invalid("DatasourceId", f"must be of type {' or '.join(READ_TYPES)}, not {datasource['type']}")


def _shown(row: Row) -> pb.LabelTable:
    return pb.LabelTable(
        label_table_id=str(row["id"]),
        name=row["name"],
        project_id=str(row["project_id"]),
        project_name=row["project_name"],
        datasource_id=str(row["datasource_id"]),
        datasource_name=row["datasource_name"],
        fields=[pb.LabelTableField(**field) for field in fields.loaded(row["fields"])],
        related_model_features=row["models"],
        owner=row["owner"],
        gmt_create_time=timestamp(row["created_at"]),
        gmt_modified_time=timestamp(row["modified_at"]),
    )


def _summary(row: Row) -> pb.LabelTableSummary:
    return pb.LabelTableSummary(
        label_table_id=str(row["id"]),
        name=row["name"],
        project_id=str(row["project_id"]),
        project_name=row["project_name"],
        datasource_id=str(row["datasource_id"]),
        datasource_name=row["datasource_name"],
        owner=row["owner"],
        gmt_create_time=timestamp(row["created_at"]),
        gmt_modified_time=timestamp(row["modified_at"]),
    )
