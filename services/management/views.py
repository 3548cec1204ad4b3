"""Feature views: what they are made of, and what has to hold before one can be published."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson

from chassis import calls, errors
from chassis.postgres import Connection, Database
from protos.gen.triglot.management.v1 import feature_view_pb2 as pb
from services.management import audited, fields, scripts, sequence_config, sequences
from services.management.datasources import Datasources
from services.management.inputs import (
    fetch_page,
    invalid,
    json_object,
    name,
    not_found,
    not_negative,
    number,
    number_or_none,
    numbers,
    one_of,
    page_of,
    required,
    text_id,
    visible_stores,
)
from services.management.projects import permitted, share_project
from services.management.rows import QUERIES, Row, locked, timestamp
from services.management.tables import READ_TYPES
from services.management.tasks import at_work

TYPES = ("Batch", "Stream", sequences.TYPE, "DynamicEmbedding")
READY_MADE, CUSTOM = "ByReadyMadeTable", "Custom"


class FeatureViews:
    """Rows of `feature_view`."""

    def __init__(self, database: Database, datasources: Datasources) -> None:
        self._database = database
        self._datasources = datasources

    async def create(self, request: pb.CreateFeatureViewRequest) -> int:
        """Id of what was made. Raises AlreadyExists, InvalidArgument, NotFound."""
        title = name("Name", request.name)
        kind = one_of("Type", request.type, TYPES)
        method = one_of("WriteMethod", request.write_method, (READY_MADE, CUSTOM))
        if not request.HasField("sync_online_table"):
            raise invalid("SyncOnlineTable", "is required")
        not_negative("TTL", request.ttl)
        config = json_object("Config", request.config)
        referenced = sequence_config.referenced(request.config) if kind == sequences.TYPE else None
        columns = await self._columns(request, method)
        async with self._database.transaction() as connection:
            project = await share_project(connection, request.project_id)
            entity = await self._entity(connection, project["id"], request.feature_entity_id)
            if referenced is not None:
                shown = {"name": title, "config": request.config, "feature_entity_id": entity}
                source = await self._referenced(connection, project["id"], *referenced)
                sequences.check_referenced(shown, source)
                # PAI's SDKs look for it by its name.
                config["referenced_feature_view_name"] = source["name"]
            made: int = await connection.fetchval(
                QUERIES.insert_feature_view,
                project["id"],
                entity,
                title,
                kind,
                method,
                request.register_table,
                await self._register_datasource(connection, request.register_datasource_id),
                request.sync_online_table,
                request.write_to_featuredb,
                request.ttl,
                list(request.tags),
                orjson.dumps(config).decode() if referenced else request.config or "{}",
                fields.dumped(columns),
                calls.principal().name,
                referenced[0] if referenced else None,
            )
            await audited.created(connection, audited.FEATURE_VIEW, made)
        return made

    async def find(self, identifier: int) -> Row | None:
        """The row, whoever asks; None if there is none."""
        return await self._database.fetchrow(QUERIES.feature_view, identifier)

    async def row(self, key: str) -> dict[str, Any]:
        """The row, with names and types of what it refers to. Raises NotFound, PermissionDenied."""
        found = await self._database.fetchrow(QUERIES.feature_view, number("FeatureViewId", key))
        permitted("FeatureView", key, found)
        return dict(found or {})

    @asynccontextmanager
    async def writing(self, view: Row, *, alone: bool = False) -> AsyncIterator[Row]:
        """The row as it stays until the block ends, noted as that of a view which has rows online. Raises NotFound.

        Alone: of all such blocks of the view only one at a time.
        """
        # Noted first, by itself: if the block fails there may be a group, which has to go with the view.
        await self._database.execute(QUERIES.mark_written_online, view["id"])
        async with self._database.transaction() as connection:
            await connection.fetchrow(QUERIES.hold_feature_view if alone else QUERIES.share_feature_view, view["id"])
            row = await connection.fetchrow(QUERIES.feature_view, view["id"])
            yield permitted("FeatureView", view["id"], row)

    async def get(self, key: str) -> pb.FeatureView:
        """Raises NotFound, PermissionDenied."""
        return _shown(await self.row(key))

    async def page(self, request: pb.ListFeatureViewsRequest) -> tuple[int, list[pb.FeatureViewSummary]]:
        """The count of all pages, and the page asked for."""
        feature = orjson.dumps([{"name": request.feature_name}]).decode() if request.feature_name else None
        total, rows = await fetch_page(
            self._database,
            QUERIES.list_feature_views,
            visible_stores(),
            numbers("FeatureViewIds", request.feature_view_ids),
            request.name,
            request.owner,
            number_or_none("ProjectId", request.project_id),
            one_of("Type", request.type, TYPES) if request.type else "",
            request.tag,
            feature,
            *page_of(request).arguments,
        )
        return total, [_summary(row) for row in rows]

    async def relationships(self, key: str) -> pb.FeatureViewRelationship:
        """The view and the model features that use it. Raises NotFound, PermissionDenied."""
        row = await self.row(key)
        models = await self._database.fetch(QUERIES.models_of_view, row["project_id"], row["id"], None)
        names = {each["id"]: each["name"] for each in models}
        return pb.FeatureViewRelationship(
            feature_view_name=row["name"],
            project_name=row["project_name"],
            models=[pb.RelatedModel(model_id=str(model_id), model_name=title) for model_id, title in names.items()],
        )

    async def field_relationships(self, key: str, field: str) -> pb.FieldRelationship:
        """A field, its tables and the model features that take it. Raises NotFound, PermissionDenied."""
        row = await self.row(key)
        if required("FieldName", field) not in {each["name"] for each in fields.loaded(row["fields"])}:
            raise not_found("Field", field)
        models = await self._database.fetch(QUERIES.models_of_view, row["project_id"], row["id"], field)
        _, offline_table = offline_table_of(row)
        return pb.FieldRelationship(
            feature_name=field,
            offline_table_name=offline_table,
            online_table_name=_online_table_of(row) if row["sync_online_table"] else "",
            models=[
                pb.FieldModel(model_id=str(each["id"]), model_name=each["name"], feature_alias_name=each["alias_name"])
                for each in models
            ],
        )

    async def update(
        self, request: pb.UpdateFeatureViewRequest, append_columns: Callable[[Row], Awaitable[None]]
    ) -> None:
        """Change the fields, and what `append_columns` changes for the row as it will be, or neither.

        Raises InvalidArgument if a field goes or changes type or key. After the view was published columns may only
        come after the others, and while it is being published not even that: FailedPrecondition.
        """
        identifier = number("FeatureViewId", request.feature_view_id)
        shown = await self.row(request.feature_view_id)
        columns = fields.kept_view_fields(request.fields)
        async with self._database.transaction() as connection:
            row = await locked(connection, QUERIES.lock_feature_view, QUERIES.locked_feature_view, identifier)
            if row is None:
                raise not_found("FeatureView", identifier)
            old = fields.loaded(row["fields"])
            _check_update(old, columns)
            before, after = _stored(old), _stored(columns)
            changed = before != after
            if changed and row["active_task"] is not None:
                raise at_work(row["active_task"])
            if changed and row["was_published"] and after[: len(before)] != before:
                raise errors.FailedPrecondition(
                    "the view was published; columns can come after its others, and nothing else can change about them"
                )
            async with audited.changing(connection, audited.FEATURE_VIEW, identifier):
                await connection.execute(QUERIES.update_feature_view_fields, identifier, fields.dumped(columns))
            if changed and row["was_published"]:
                await append_columns({**shown, "fields": fields.dumped(columns)})

    async def delete(self, key: str, drop_rows: Callable[[Row], Awaitable[None]]) -> None:
        """Delete a view, and what `drop_rows` deletes of its row, or neither.

        Raises NotFound; FailedPrecondition while a model feature or a task that has not ended uses it.
        """
        shown = await self.row(key)
        async with self._database.transaction() as connection:
            row = await locked(connection, QUERIES.lock_feature_view, QUERIES.locked_feature_view, shown["id"])
            if row is None:
                raise not_found("FeatureView", key)
            if row["active_task"] is not None:
                raise at_work(row["active_task"])
            async with audited.changing(connection, audited.FEATURE_VIEW, shown["id"]):
                await connection.execute(QUERIES.delete_feature_view, shown["id"])
            if row["was_published"]:
                await drop_rows(shown)

    async def _columns(self, request: pb.CreateFeatureViewRequest, method: str) -> list[dict[str, Any]]:
        """The fields of the request; with a ready-made table and none given, the columns of the table."""
        if method == READY_MADE:
            required("RegisterTable", request.register_table)
            required("RegisterDatasourceId", request.register_datasource_id)
            if not request.fields:
                table = await self._datasources.table(request.register_datasource_id, request.register_table)
                return fields.kept_view_fields(
                    [pb.FeatureViewField(name=c.name, type=c.type, attributes=c.attributes) for c in table]
                )
        return fields.kept_view_fields(request.fields)

    async def _entity(self, connection: Connection, project_id: int, key: str) -> int | None:
        identifier = number_or_none("FeatureEntityId", key)
        if identifier is None:
            return None
        if await connection.fetchrow(QUERIES.share_feature_entity, project_id, identifier) is None:
            raise not_found("FeatureEntity", key)
        return identifier

    async def _referenced(self, connection: Connection, project_id: int, identifier: int, title: str) -> Row:
        """The view that a Config refers to; it stays until the transaction ends."""
        source: Row | None = await connection.fetchrow(QUERIES.share_referenced_view, project_id, identifier)
        if source is None:
            raise not_found("FeatureView", identifier)
        if title not in ("", source["name"]):
            raise invalid("Config", f"refers to feature view {identifier}, which is {source['name']}, as {title}")
        return source

    async def _register_datasource(self, connection: Connection, key: str) -> int | None:
        if not key:
            return None
        datasource = await self._datasources.share(connection, "RegisterDatasourceId", key)
        if datasource["type"] not in READ_TYPES:
            raise invalid(
                "RegisterDatasourceId", f"must be of type {' or '.join(READ_TYPES)}, not {datasource['type']}"
            )
        return int(datasource["id"])


def offline_table_of(view: Row) -> tuple[int, str]:
    """Datasource and name of the view's offline table: the registered one, or the one of the store's own naming."""
    if view["register_table"] and view["register_datasource_id"] is not None:
        return view["register_datasource_id"], view["register_table"]
    return view["offline_datasource_id"], f"{view['project_name']}_{view['name']}_offline".lower()


def _online_table_of(view: Row) -> str:
    """Name of the table of the view's online rows, as PAI's SDKs look for it; of behaviours, the published ones."""
    if view["type"] == sequences.TYPE:
        return f"{view['project_name']}_{sequences.source_of(view)['name']}_seq_offline".lower()
    return f"{view['project_name']}_{view['name']}_online".lower()


def mock_table_of(view: Row) -> str:
    """Name of the table that stands in for a stream when a training set is tried out; empty for other views."""
    return f"{view['project_name']}_{view['name']}_mock".lower() if view["type"] == "Stream" else ""


def _check_update(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> None:
    by_name = {field["name"]: field for field in new}
    for field in old:
        now = by_name.get(field["name"])
        if now is None or now["type"] != field["type"]:
            raise invalid("Fields", f"must keep {field['name']} with its type {field['type']}")
        if (fields.PRIMARY_KEY in now["attributes"]) != (fields.PRIMARY_KEY in field["attributes"]):
            raise invalid("Fields", f"must not change whether {field['name']} is the primary key")


def _stored(columns: list[dict[str, Any]]) -> list[tuple[str, str, bool]]:
    """What serving knows of the fields."""
    return [
        (field["name"], field["type"], fields.EVENT_TIME in field["attributes"])
        for field in columns
        if fields.PARTITION not in field["attributes"]
    ]


def _shown(row: Row) -> pb.FeatureView:
    return pb.FeatureView(
        feature_view_id=str(row["id"]),
        name=row["name"],
        type=row["type"],
        project_id=str(row["project_id"]),
        project_name=row["project_name"],
        feature_entity_id=text_id(row["feature_entity_id"]),
        feature_entity_name=row["entity_name"] or "",
        join_id=row["join_id"] or "",
        fields=[pb.FeatureViewField(**field) for field in fields.loaded(row["fields"])],
        write_method=row["write_method"],
        register_table=row["register_table"],
        register_datasource_id=text_id(row["register_datasource_id"]),
        register_datasource_name=row["register_datasource_name"] or "",
        sync_online_table=row["sync_online_table"],
        write_to_featuredb=row["write_to_featuredb"],
        ttl=row["ttl"],
        tags=row["tags"],
        config=row["config"],
        last_sync_config=row["last_sync_config"],
        publish_table_script=scripts.publish_table(row),
        mock_table_name=mock_table_of(row),
        gmt_sync_time=timestamp(row["synced_at"]),
        owner=row["owner"],
        gmt_create_time=timestamp(row["created_at"]),
        gmt_modified_time=timestamp(row["modified_at"]),
    )


def _summary(row: Row) -> pb.FeatureViewSummary:
    return pb.FeatureViewSummary(
        feature_view_id=str(row["id"]),
        name=row["name"],
        type=row["type"],
        project_id=str(row["project_id"]),
        project_name=row["project_name"],
        feature_entity_name=row["entity_name"] or "",
        register_table=row["register_table"],
        register_datasource_id=text_id(row["register_datasource_id"]),
        register_datasource_name=row["register_datasource_name"] or "",
        write_to_featuredb=row["write_to_featuredb"],
        ttl=row["ttl"],
        owner=row["owner"],
        gmt_create_time=timestamp(row["created_at"]),
        gmt_modified_time=timestamp(row["modified_at"]),
    )
