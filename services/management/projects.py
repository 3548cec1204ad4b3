"""Projects, each a feature store in serving, and the feature entities in them."""

from __future__ import annotations

import re

from chassis import calls, errors
from chassis.postgres import Connection, Database
from protos.gen.triglot.management.v1 import feature_entity_pb2 as entity_pb
from protos.gen.triglot.management.v1 import project_pb2 as pb
from services.management import audited, fields
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
from services.management.rows import QUERIES, Row, locked, timestamp
from services.management.tables import OFFLINE_TYPE

_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9_]{1,17}")
_HOPSWORKS_SUFFIX = "_featurestore"
_FEATURE_SORTS = ("GmtCreateTime", "GmtModifiedTime", "ModelFeatureCount")
_FILTERS = ("FeatureViewId", "FeatureViewName", "Owner", "Type")
_MAX_VIEWS = 1_000


def feature_store_of(project_name: str) -> str:
    """The feature store of a project: what serving calls it."""
    return project_name.lower().removesuffix(_HOPSWORKS_SUFFIX)


async def share_project(connection: Connection, key: str) -> Row:
    """The row of a project that the caller may use, kept from being deleted until the transaction ends."""
    row: Row | None = await connection.fetchrow(QUERIES.share_project, number("ProjectId", key))
    return permitted("Project", key, row)


def permitted(resource: str, key: object, row: Row | None) -> Row:
    """The row, if there is one and the caller may use its feature store. Raises NotFound, PermissionDenied."""
    if row is None:
        raise not_found(resource, key)
    calls.principal().require_store(row["feature_store"])
    return row


class Projects:
    """Rows of `project`."""

    def __init__(self, database: Database, datasources: Datasources) -> None:
        self._database = database
        self._datasources = datasources

    async def create(self, request: pb.CreateProjectRequest) -> int:
        """Id of what was made. Raises AlreadyExists, InvalidArgument, NotFound."""
        store = self._store("Name", request.name)
        required("WorkspaceId", request.workspace_id)
        life = not_negative("OfflineLifeCycle", request.offline_life_cycle)
        async with self._database.transaction() as connection:
            share = self._datasources.share
            offline = await share(connection, "OfflineDatasourceId", request.offline_datasource_id)
            online = await share(connection, "OnlineDatasourceId", request.online_datasource_id)
            if offline["type"] != OFFLINE_TYPE:
                raise invalid("OfflineDatasourceId", f"must be of type {OFFLINE_TYPE}, not {offline['type']}")
            if online["type"] == OFFLINE_TYPE:
                raise invalid("OnlineDatasourceId", f"must not be of type {OFFLINE_TYPE}")
            made: int = await connection.fetchval(
                QUERIES.insert_project,
                request.name,
                store,
                request.workspace_id,
                request.description,
                offline["id"],
                life,
                online["id"],
                calls.principal().name,
            )
            await audited.created(connection, audited.PROJECT, made)
        return made

    async def get(self, key: str) -> pb.Project:
        """Raises NotFound, PermissionDenied."""
        rows = await self._database.fetch(QUERIES.shown_projects, [number("ProjectId", key)])
        return _shown(permitted("Project", key, rows[0] if rows else None))

    async def page(self, request: pb.ListProjectsRequest) -> tuple[int, list[pb.Project]]:
        """The count of all pages, and the page asked for."""
        total, rows = await fetch_page(
            self._database,
            QUERIES.list_projects,
            visible_stores(),
            numbers("ProjectIds", request.project_ids),
            request.name,
            request.owner,
            request.workspace_id,
            *page_of(request).arguments,
        )
        found = await self._database.fetch(QUERIES.shown_projects, [row["id"] for row in rows])
        shown = {row["id"]: _shown(row) for row in found}
        return total, [shown[row["id"]] for row in rows if row["id"] in shown]

    async def update(self, request: pb.UpdateProjectRequest) -> None:
        """Raises NotFound, AlreadyExists; FailedPrecondition for a new name while there are feature views."""
        identifier = number("ProjectId", request.project_id)
        async with self._database.transaction() as connection:
            row = await locked(connection, QUERIES.lock_project, QUERIES.locked_project, identifier)
            row = permitted("Project", identifier, row)
            title = request.name if request.HasField("name") else row["name"]
            store = self._store("Name", title)
            if store != row["feature_store"] and row["has_views"]:
                raise errors.FailedPrecondition(
                    "the project has feature views, and their rows are kept under its name",
                    reason="DEPENDENCY_EXISTS",
                    resource="Project",
                    dependents="a feature view",
                )
            description = request.description if request.HasField("description") else row["description"]
            async with audited.changing(connection, audited.PROJECT, identifier):
                await connection.execute(QUERIES.update_project, identifier, title, store, description)

    async def delete(self, key: str) -> None:
        """Raises NotFound; FailedPrecondition while anything is in it."""
        identifier = number("ProjectId", key)
        async with self._database.transaction() as connection:
            row = await locked(connection, QUERIES.lock_project, QUERIES.locked_project, identifier)
            permitted("Project", identifier, row)
            async with audited.changing(connection, audited.PROJECT, identifier):
                await connection.execute(QUERIES.delete_project, identifier)

    async def entity_by_name(self, key: str, entity_name: str) -> tuple[Row, Row]:
        """Rows of a project and of its entity. Raises NotFound."""
        project, entity_name = await self._row(key), required("FeatureEntityName", entity_name)
        entity = await self._database.fetchrow(QUERIES.feature_entity_by_name, project["id"], entity_name)
        if entity is None:
            raise not_found("FeatureEntity", entity_name)
        return project, entity

    async def features(self, request: pb.ListProjectFeaturesRequest) -> tuple[int, list[pb.ProjectFeature]]:
        """The count of all pages, and the page asked for. Raises NotFound, PermissionDenied, InvalidArgument."""
        project = await self._row(request.project_id)
        wanted = _equal(request.filter)
        total, rows = await fetch_page(
            self._database,
            QUERIES.list_project_features,
            project["id"],
            request.name,
            request.alias_name,
            number_or_none("Filter.FeatureViewId", wanted.get("FeatureViewId", "")),
            wanted.get("FeatureViewName", ""),
            wanted.get("Owner", ""),
            wanted.get("Type", ""),
            *page_of(request, _FEATURE_SORTS).arguments,
        )
        return total, [_feature(row) for row in rows]

    async def views(self, key: str) -> tuple[int, list[pb.ProjectFeatureView]]:
        """The count of its feature views, and the first thousand by name. Raises NotFound, PermissionDenied."""
        project = await self._row(key)
        total, rows = await fetch_page(self._database, QUERIES.list_project_feature_views, project["id"], _MAX_VIEWS)
        return total, [_view(row) for row in rows]

    async def _row(self, key: str) -> Row:
        return permitted("Project", key, await self._database.fetchrow(QUERIES.project, number("ProjectId", key)))

    def _store(self, field: str, title: str) -> str:
        """The feature store of a project of this name, which must be a good one and the caller's to use."""
        if not _NAME.fullmatch(required(field, title)):
            raise invalid(field, "must match ^[a-zA-Z][a-zA-Z0-9_]+$ and have 2 to 18 characters")
        store = feature_store_of(title)
        calls.principal().require_store(store)
        return store


class FeatureEntities:
    """Rows of `feature_entity`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, request: entity_pb.CreateFeatureEntityRequest) -> int:
        """Id of what was made. Raises AlreadyExists, InvalidArgument, NotFound."""
        title, join_id = name("Name", request.name), name("JoinId", request.join_id)
        parent = number_or_none("ParentFeatureEntityId", request.parent_feature_entity_id) or None
        async with self._database.transaction() as connection:
            project = await share_project(connection, request.project_id)
            if parent and await connection.fetchrow(QUERIES.share_feature_entity, project["id"], parent) is None:
                raise not_found("FeatureEntity", parent)
            made: int = await connection.fetchval(
                QUERIES.insert_feature_entity, project["id"], title, join_id, parent, calls.principal().name
            )
            await audited.created(connection, audited.FEATURE_ENTITY, made)
        return made

    async def get(self, key: str) -> entity_pb.FeatureEntity:
        """Raises NotFound, PermissionDenied."""
        row = await self._database.fetchrow(QUERIES.feature_entity, number("FeatureEntityId", key))
        return _shown_entity(permitted("FeatureEntity", key, row))

    async def page(self, request: entity_pb.ListFeatureEntitiesRequest) -> tuple[int, list[entity_pb.FeatureEntity]]:
        """The count of all pages, and the page asked for."""
        total, rows = await fetch_page(
            self._database,
            QUERIES.list_feature_entities,
            visible_stores(),
            numbers("FeatureEntityIds", request.feature_entity_ids),
            request.name,
            request.owner,
            number_or_none("ProjectId", request.project_id),
            number_or_none("ParentFeatureEntityId", request.parent_feature_entity_id),
            *page_of(request).arguments,
        )
        return total, [_shown_entity(row) for row in rows]

    async def delete(self, key: str) -> None:
        """Raises NotFound; FailedPrecondition while it has feature views or children."""
        identifier = number("FeatureEntityId", key)
        row = await self._database.fetchrow(QUERIES.feature_entity, identifier)
        permitted("FeatureEntity", key, row)
        async with (
            self._database.transaction() as connection,
            audited.changing(connection, audited.FEATURE_ENTITY, identifier),
        ):
            await connection.execute(QUERIES.delete_feature_entity, identifier)


def _shown(row: Row) -> pb.Project:
    return pb.Project(
        project_id=str(row["id"]),
        name=row["name"],
        workspace_id=row["workspace_id"],
        description=row["description"],
        offline_datasource_id=str(row["offline_datasource_id"]),
        offline_datasource_name=row["offline_name"],
        offline_datasource_type=row["offline_type"],
        offline_life_cycle=row["offline_life_cycle"],
        online_datasource_id=str(row["online_datasource_id"]),
        online_datasource_name=row["online_name"],
        online_datasource_type=row["online_type"],
        feature_entity_count=row["entities"],
        feature_view_count=row["views"],
        model_count=row["models"],
        owner=row["owner"],
        gmt_create_time=timestamp(row["created_at"]),
        gmt_modified_time=timestamp(row["modified_at"]),
    )


def _equal(text: str) -> dict[str, str]:
    """What of a feature must be equal: values by PAI's names of them."""
    wanted = json_object("Filter", text)
    for field, value in wanted.items():
        one_of("Filter", field, _FILTERS)
        if not isinstance(value, str):
            raise invalid(f"Filter.{field}", "must be a string")
    return {one_of("Filter", field, _FILTERS): value for field, value in wanted.items()}


def _feature(row: Row) -> pb.ProjectFeature:
    return pb.ProjectFeature(
        name=row["name"],
        type=row["type"],
        alias_names=",".join(row["aliases"]),
        model_feature_count=row["models"],
        feature_view_id=str(row["id"]),
        feature_view_name=row["view_name"],
        owner=row["owner"],
        gmt_create_time=timestamp(row["created_at"]),
    )


def _view(row: Row) -> pb.ProjectFeatureView:
    return pb.ProjectFeatureView(
        feature_view_id=str(row["id"]),
        name=row["name"],
        type=row["type"],
        join_id=row["join_id"] or "",
        parent_join_id=row["parent_join_id"] or "",
        features=[
            pb.ProjectFeatureViewField(name=field["name"], type=field["type"], attributes=field["attributes"])
            for field in fields.loaded(row["fields"])
        ],
    )


def _shown_entity(row: Row) -> entity_pb.FeatureEntity:
    return entity_pb.FeatureEntity(
        feature_entity_id=str(row["id"]),
        name=row["name"],
        join_id=row["join_id"],
        project_id=str(row["project_id"]),
        project_name=row["project_name"],
        parent_feature_entity_id=text_id(row["parent_id"]),
        parent_feature_entity_name=row["parent_name"] or "",
        parent_join_id=row["parent_join_id"] or "",
        owner=row["owner"],
        gmt_create_time=timestamp(row["created_at"]),
    )
