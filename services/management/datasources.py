"""Datasources: where tables are. Keeps their secrets encrypted, shows them masked."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chassis.postgres import Connection, Database
from protos.gen.triglot.management.v1 import datasource_pb2 as pb
from services.management import audited
from services.management.inputs import (
    fetch_page,
    invalid,
    name,
    not_found,
    number,
    one_of,
    page_of,
    required,
)
from services.management.offline import OfflineStore, Table
from services.management.rows import QUERIES, Row, timestamp
from services.management.secrets import ConfigKeeper, holds_secret
from services.management.settings import ManagementSettings
from services.management.tables import OFFLINE_TYPE, READ_TYPES, Tables, tables_of

TYPES = (*READ_TYPES, "GraphCompute", "Redis", "Tablestore", "FeatureDB")
_REDIS_URI = re.compile(r"(rediss?://)?(\[[0-9a-fA-F:.]+\]|[\w.-]+)(:\d{1,5})?(/\d*)?")


class Datasources:
    """Rows of `datasource`, and the tables they lead to."""

    def __init__(self, database: Database, keeper: ConfigKeeper, own: ManagementSettings) -> None:
        self._database = database
        self._keeper = keeper
        self._own = own
        self._offline = OfflineStore(own.offline_roots)

    async def create(self, request: pb.CreateDatasourceRequest) -> int:
        """Id of what was made. Nothing is connected to. Raises AlreadyExists, InvalidArgument."""
        title = name("Name", request.name)
        if title.isdecimal():
            raise invalid("Name", "must not be a number: GetDatasource finds by id or by name")
        kind = one_of("Type", request.type, TYPES)
        required("WorkspaceId", request.workspace_id)
        kept = self._keeper.keep(request.config)
        self._check(kind, request.uri, kept.whole)
        async with self._database.transaction() as connection:
            made: int = await connection.fetchval(
                QUERIES.insert_datasource, title, request.workspace_id, kind, request.uri, kept.shown, kept.sealed
            )
            await audited.created(connection, audited.DATASOURCE, made)
        return made

    def usable(self, request: pb.CheckInstanceDatasourceRequest) -> tuple[str, dict[str, Any]]:
        """Type and whole configuration of a datasource that could be made. Raises InvalidArgument."""
        kind = one_of("Type", request.type, TYPES)
        config = self._keeper.keep(request.config).whole
        self._check(kind, request.uri, config)
        return kind, config

    async def get(self, key: str) -> pb.Datasource:
        """By id, or by name if it is no number. Raises NotFound."""
        if required("DatasourceId", key).isdecimal():
            row = await self._database.fetchrow(QUERIES.datasource, number("DatasourceId", key))
        else:
            row = await self._database.fetchrow(QUERIES.datasource_by_name, key)
        if row is None:
            raise not_found("Datasource", key)
        return _shown(row)

    async def page(self, request: pb.ListDatasourcesRequest) -> tuple[int, list[pb.Datasource]]:
        """The count of all pages, and the page asked for."""
        kind = one_of("Type", request.type, TYPES) if request.type else ""
        page = page_of(request)
        total, rows = await fetch_page(
            self._database, QUERIES.list_datasources, request.name, kind, request.workspace_id, *page.arguments
        )
        return total, [_shown(row) for row in rows]

    async def update(self, request: pb.UpdateDatasourceRequest) -> None:
        """Raises NotFound, AlreadyExists, InvalidArgument."""
        identifier = number("DatasourceId", request.datasource_id)
        title = name("Name", request.name)
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(QUERIES.lock_datasource, identifier)
            if row is None:
                raise not_found("Datasource", identifier)
            shown, sealed, config = row["config"], row["config_sealed"], self._keeper.open(row)
            if request.HasField("config"):
                kept = self._keeper.keep(request.config, config)
                shown, sealed, config = kept.shown, kept.sealed, kept.whole
            self._check(row["type"], request.uri, config)
            async with audited.changing(connection, audited.DATASOURCE, identifier):
                await connection.execute(QUERIES.update_datasource, identifier, title, request.uri, shown, sealed)

    async def delete(self, key: str) -> None:
        """Raises NotFound; FailedPrecondition while a project, a view or a label table refers to it."""
        identifier = number("DatasourceId", key)
        async with (
            self._database.transaction() as connection,
            audited.changing(connection, audited.DATASOURCE, identifier),
        ):
            if await connection.fetchval(QUERIES.delete_datasource, identifier) is None:
                raise not_found("Datasource", identifier)

    async def table(self, key: str, table_name: str) -> list[pb.TableField]:
        """Columns of an offline table, read from the table itself."""
        table = await (await self.tables_of(number("DatasourceId", key))).open(required("TableName", table_name))
        return [pb.TableField(name=title, type=kind, attributes=marks) for title, kind, marks in table.columns()]

    async def tables(self, key: str, part: str, schema: str) -> list[str]:
        """Names of the offline tables that contain `part`, in a schema where the datasource has such."""
        found = await (await self.tables_of(number("DatasourceId", key))).tables(schema)
        return [title for title in found if part in title]

    async def share(self, connection: Connection, field: str, key: str) -> Row:
        """The row, kept from being deleted until the transaction ends. Raises NotFound."""
        row: Row | None = await connection.fetchrow(QUERIES.share_datasource, number(field, key))
        if row is None:
            raise not_found("Datasource", key)
        return row

    async def config(self, identifier: int) -> dict[str, Any]:
        """The whole configuration. Raises NotFound."""
        _, _, config = await self.whole(identifier)
        return config

    async def whole(self, identifier: int) -> tuple[str, str, dict[str, Any]]:
        """Type, URI and whole configuration. Raises NotFound."""
        row = await self._database.fetchrow(QUERIES.datasource, identifier)
        if row is None:
            raise not_found("Datasource", identifier)
        return row["type"], row["uri"], self._keeper.open(row)

    async def tables_of(self, identifier: int) -> Tables:
        """Its offline tables. Raises NotFound, InvalidArgument for a type that has none."""
        return tables_of(*await self.whole(identifier), self._offline, self._own)

    async def writable(self, identifier: int, table_name: str, partition: Mapping[str, str]) -> tuple[Path, Path]:
        """The folders of a table that is the store's own, and of its partition. Raises NotFound, InvalidArgument."""
        config = await self.config(identifier)
        return await asyncio.to_thread(self._offline.folder, config, table_name, partition)

    async def opened(self, identifier: int, table_name: str) -> Table:
        """An offline table with its columns. Raises NotFound, InvalidArgument, Unavailable."""
        return await (await self.tables_of(identifier)).open(table_name)

    def _check(self, kind: str, uri: str, config: Mapping[str, Any]) -> None:
        required("Uri", uri)
        if holds_secret(uri):
            raise invalid("Uri", "is shown to everybody; who calls and with which password belongs into Config")
        if kind == "Redis" and not _REDIS_URI.fullmatch(uri):
            raise invalid("Uri", "must look like host:port/db")
        if kind == "FeatureDB" and not all(isinstance(value, str) for value in config.values()):
            raise invalid("Config", "must hold texts only, because that is what PAI's SDKs can read")
        if kind == OFFLINE_TYPE:
            tables_of(kind, uri, config, self._offline, self._own).check()


def _shown(row: Row) -> pb.Datasource:
    return pb.Datasource(
        datasource_id=str(row["id"]),
        name=row["name"],
        workspace_id=row["workspace_id"],
        type=row["type"],
        uri=row["uri"],
        config=row["config"],
        gmt_create_time=timestamp(row["created_at"]),
        gmt_modified_time=timestamp(row["modified_at"]),
    )
