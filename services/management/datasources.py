"""Datasources: where tables are. Keeps their secrets encrypted, shows them masked."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any

from chassis.postgres import Connection, Database
from protos.gen.triglot.management.v1 import datasource_pb2 as pb
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
from services.management.offline import OfflineStore
from services.management.rows import QUERIES, Row, timestamp
from services.management.secrets import ConfigKeeper, holds_secret

OFFLINE_TYPE = "MaxCompute"
# Types whose rows are serving's own.
SERVED_TYPES = ("FeatureDB", "Redis")
TYPES = (OFFLINE_TYPE, "Hologres", "GraphCompute", "Redis", "Tablestore", "FeatureDB")
_REDIS_URI = re.compile(r"(rediss?://)?(\[[0-9a-fA-F:.]+\]|[\w.-]+)(:\d{1,5})?(/\d*)?")


class Datasources:
    """Rows of `datasource`, and the tables they lead to."""

    def __init__(self, database: Database, keeper: ConfigKeeper, offline: OfflineStore) -> None:
        self._database = database
        self._keeper = keeper
        self._offline = offline

    async def create(self, request: pb.CreateDatasourceRequest) -> int:
        """Id of what was made. Nothing is connected to. Raises AlreadyExists, InvalidArgument."""
        title = name("Name", request.name)
        if title.isdecimal():
            raise invalid("Name", "must not be a number: GetDatasource finds by id or by name")
        kind = one_of("Type", request.type, TYPES)
        required("WorkspaceId", request.workspace_id)
        kept = self._keeper.keep(request.config)
        self._check(kind, request.uri, kept.whole)
        made: int = await self._database.fetchval(
            QUERIES.insert_datasource, title, request.workspace_id, kind, request.uri, kept.shown, kept.sealed
        )
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
            await connection.execute(QUERIES.update_datasource, identifier, title, request.uri, shown, sealed)

    async def delete(self, key: str) -> None:
        """Raises NotFound; FailedPrecondition while a project, a view or a label table refers to it."""
        identifier = number("DatasourceId", key)
        if await self._database.fetchval(QUERIES.delete_datasource, identifier) is None:
            raise not_found("Datasource", identifier)

    async def table(self, key: str, table_name: str) -> list[pb.TableField]:
        """Columns of an offline table, read from the table itself."""
        config = await self._offline_config(key)
        table = await asyncio.to_thread(self._offline.open, config, table_name)
        return [pb.TableField(name=title, type=kind, attributes=marks) for title, kind, marks in table.columns()]

    async def tables(self, key: str, part: str) -> list[str]:
        """Names of the offline tables that contain `part`."""
        config = await self._offline_config(key)
        return [title for title in await asyncio.to_thread(self._offline.tables, config) if part in title]

    async def share(self, connection: Connection, field: str, key: str) -> Row:
        """The row, kept from being deleted until the transaction ends. Raises NotFound."""
        row: Row | None = await connection.fetchrow(QUERIES.share_datasource, number(field, key))
        if row is None:
            raise not_found("Datasource", key)
        return row

    async def config(self, identifier: int) -> dict[str, Any]:
        """The whole configuration. Raises NotFound."""
        row = await self._database.fetchrow(QUERIES.datasource, identifier)
        if row is None:
            raise not_found("Datasource", identifier)
        return self._keeper.open(row)

    async def _offline_config(self, key: str) -> dict[str, Any]:
        row = await self._database.fetchrow(QUERIES.datasource, number("DatasourceId", key))
        if row is None:
            raise not_found("Datasource", key)
        if row["type"] != OFFLINE_TYPE:
            raise invalid("DatasourceId", f"is of type {row['type']}; tables are listed for {OFFLINE_TYPE} only")
        return self._keeper.open(row)

    def _check(self, kind: str, uri: str, config: Mapping[str, Any]) -> None:
        required("Uri", uri)
        if holds_secret(uri):
            raise invalid("Uri", "is shown to everybody; who calls and with which password belongs into Config")
        if kind == "Redis" and not _REDIS_URI.fullmatch(uri):
            raise invalid("Uri", "must look like host:port/db")
        if kind == "FeatureDB" and not all(isinstance(value, str) for value in config.values()):
            raise invalid("Config", "must hold texts only, because that is what PAI's SDKs can read")
        if kind == OFFLINE_TYPE:
            self._offline.check(config)


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
