# ruff: noqa: N802 - methods are named after RPCs
"""The RPCs of triglot.management.v1: check the instance, do it, reply. Everything else is in the modules by noun."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from chassis import calls
from chassis.postgres import Database
from protos.gen.triglot.management.v1 import datasource_pb2 as ds
from protos.gen.triglot.management.v1 import feature_entity_pb2 as fe
from protos.gen.triglot.management.v1 import feature_view_pb2 as fv
from protos.gen.triglot.management.v1 import fg_feature_pb2 as fg_pb
from protos.gen.triglot.management.v1 import instance_pb2 as ins
from protos.gen.triglot.management.v1 import label_table_pb2 as lt
from protos.gen.triglot.management.v1 import management_service_pb2_grpc
from protos.gen.triglot.management.v1 import model_feature_pb2 as mf
from protos.gen.triglot.management.v1 import project_pb2 as pr
from protos.gen.triglot.management.v1 import task_pb2 as tk
from services.management import behaviours, csv_table, downloads, fg, json_rows, publish, sequences, training
from services.management.datasource_views import DatasourceViews
from services.management.datasources import Datasources
from services.management.inputs import check_instance, invalid, json_object, page_of
from services.management.labels import LabelTables
from services.management.models import ModelFeatures, training_set_table_of
from services.management.offline import OfflineStore
from services.management.online import OnlineStore, ServingRows
from services.management.projects import FeatureEntities, Projects
from services.management.reach import Reach
from services.management.rows import QUERIES, Row
from services.management.secrets import ConfigKeeper
from services.management.settings import ManagementSettings
from services.management.tasks import Tasks
from services.management.views import FeatureViews, offline_table_of

_MAX_JOIN_IDS = 1_000


class ManagementService(management_service_pb2_grpc.ManagementServiceServicer):
    """PAI's operations."""

    def __init__(self, database: Database, keeper: ConfigKeeper, serving: ServingRows, own: ManagementSettings) -> None:
        self._database = database
        self._own = own
        self._offline = OfflineStore(own.offline_roots)
        self._datasources = Datasources(database, keeper, own)
        self._online = OnlineStore(serving, self._datasources, own)
        self._datasource_views = DatasourceViews(database, self._online)
        self._reach = Reach(self._offline, serving, own)
        self._projects = Projects(database, self._datasources)
        self._entities = FeatureEntities(database)
        self._views = FeatureViews(database, self._datasources)
        self._labels = LabelTables(database, self._datasources)
        self._models = ModelFeatures(database)
        self._tasks = Tasks(database)

    def _check(self, request: Any) -> None:
        """Raises NotFound unless the request names this instance."""
        check_instance(request, self._own.instance_id)

    async def _instance(self) -> ins.Instance:
        made = await self._database.fetchval(QUERIES.instance)
        return ins.Instance(
            instance_id=self._own.instance_id,
            status="Running",
            type="Basic",
            region_id=self._own.region,
            progress=1,
            gmt_create_time=made,
            gmt_modified_time=made,
        )

    async def CreateInstance(self, request: ins.CreateInstanceRequest, context: Any) -> ins.CreateInstanceResponse:
        return ins.CreateInstanceResponse(instance_id=self._own.instance_id, code="InstanceAlreadyExistsErrorProblem")

    async def GetInstance(self, request: ins.GetInstanceRequest, context: Any) -> ins.GetInstanceResponse:
        self._check(request)
        return ins.GetInstanceResponse(instance=await self._instance())

    async def ListInstances(self, request: ins.ListInstancesRequest, context: Any) -> ins.ListInstancesResponse:
        page = page_of(request)
        found = [await self._instance()] if request.status in ("", "Running") else []
        shown = found[page.offset : page.offset + page.limit]
        return ins.ListInstancesResponse(instances=shown, total_count=len(found))

    async def CreateDatasource(self, request: ds.CreateDatasourceRequest, context: Any) -> ds.CreateDatasourceResponse:
        self._check(request)
        return ds.CreateDatasourceResponse(datasource_id=str(await self._datasources.create(request)))

    async def GetDatasource(self, request: ds.GetDatasourceRequest, context: Any) -> ds.GetDatasourceResponse:
        self._check(request)
        return ds.GetDatasourceResponse(datasource=await self._datasources.get(request.datasource_id))

    async def ListDatasources(self, request: ds.ListDatasourcesRequest, context: Any) -> ds.ListDatasourcesResponse:
        self._check(request)
        total, page = await self._datasources.page(request)
        return ds.ListDatasourcesResponse(datasources=page, total_count=total)

    async def UpdateDatasource(self, request: ds.UpdateDatasourceRequest, context: Any) -> ds.UpdateDatasourceResponse:
        self._check(request)
        await self._datasources.update(request)
        return ds.UpdateDatasourceResponse()

    async def DeleteDatasource(self, request: ds.DeleteDatasourceRequest, context: Any) -> ds.DeleteDatasourceResponse:
        self._check(request)
        await self._datasources.delete(request.datasource_id)
        return ds.DeleteDatasourceResponse()

    async def GetDatasourceTable(
        self, request: ds.GetDatasourceTableRequest, context: Any
    ) -> ds.GetDatasourceTableResponse:
        self._check(request)
        columns = await self._datasources.table(request.datasource_id, request.table_name)
        return ds.GetDatasourceTableResponse(table_name=request.table_name, fields=columns)

    async def ListDatasourceTables(
        self, request: ds.ListDatasourceTablesRequest, context: Any
    ) -> ds.ListDatasourceTablesResponse:
        self._check(request)
        names = await self._datasources.tables(request.datasource_id, request.table_name, request.schema_name)
        return ds.ListDatasourceTablesResponse(tables=names, total_count=len(names))

    async def CheckInstanceDatasource(
        self, request: ds.CheckInstanceDatasourceRequest, context: Any
    ) -> ds.CheckInstanceDatasourceResponse:
        self._check(request)
        kind, config = self._datasources.usable(request)
        why = await self._reach.failure(kind, request.uri, config)
        return ds.CheckInstanceDatasourceResponse(status="Failure" if why else "Success", message=why)

    async def ListDatasourceFeatureViews(
        self, request: ds.ListDatasourceFeatureViewsRequest, context: Any
    ) -> ds.ListDatasourceFeatureViewsResponse:
        self._check(request)
        return await self._datasource_views.page(request)

    async def CreateProject(self, request: pr.CreateProjectRequest, context: Any) -> pr.CreateProjectResponse:
        self._check(request)
        return pr.CreateProjectResponse(project_id=str(await self._projects.create(request)))

    async def GetProject(self, request: pr.GetProjectRequest, context: Any) -> pr.GetProjectResponse:
        self._check(request)
        return pr.GetProjectResponse(project=await self._projects.get(request.project_id))

    async def ListProjects(self, request: pr.ListProjectsRequest, context: Any) -> pr.ListProjectsResponse:
        self._check(request)
        total, page = await self._projects.page(request)
        return pr.ListProjectsResponse(projects=page, total_count=total)

    async def UpdateProject(self, request: pr.UpdateProjectRequest, context: Any) -> pr.UpdateProjectResponse:
        self._check(request)
        await self._projects.update(request)
        return pr.UpdateProjectResponse()

    async def DeleteProject(self, request: pr.DeleteProjectRequest, context: Any) -> pr.DeleteProjectResponse:
        self._check(request)
        await self._projects.delete(request.project_id)
        return pr.DeleteProjectResponse()

    async def GetProjectFeatureEntity(
        self, request: pr.GetProjectFeatureEntityRequest, context: Any
    ) -> pr.GetProjectFeatureEntityResponse:
        self._check(request)
        project, entity = await self._projects.entity_by_name(request.project_id, request.feature_entity_name)
        return pr.GetProjectFeatureEntityResponse(
            feature_entity_id=str(entity["id"]),
            name=entity["name"],
            join_id=entity["join_id"],
            project_name=project["name"],
            workspace_id=project["workspace_id"],
        )

    async def ListProjectFeatures(
        self, request: pr.ListProjectFeaturesRequest, context: Any
    ) -> pr.ListProjectFeaturesResponse:
        self._check(request)
        total, page = await self._projects.features(request)
        return pr.ListProjectFeaturesResponse(features=page, total_count=total)

    async def ListProjectFeatureViews(
        self, request: pr.ListProjectFeatureViewsRequest, context: Any
    ) -> pr.ListProjectFeatureViewsResponse:
        self._check(request)
        total, views = await self._projects.views(request.project_id)
        return pr.ListProjectFeatureViewsResponse(feature_views=views, total_count=total)

    async def CreateFeatureEntity(
        self, request: fe.CreateFeatureEntityRequest, context: Any
    ) -> fe.CreateFeatureEntityResponse:
        self._check(request)
        return fe.CreateFeatureEntityResponse(feature_entity_id=str(await self._entities.create(request)))

    async def GetFeatureEntity(self, request: fe.GetFeatureEntityRequest, context: Any) -> fe.GetFeatureEntityResponse:
        self._check(request)
        return fe.GetFeatureEntityResponse(feature_entity=await self._entities.get(request.feature_entity_id))

    async def ListFeatureEntities(
        self, request: fe.ListFeatureEntitiesRequest, context: Any
    ) -> fe.ListFeatureEntitiesResponse:
        self._check(request)
        total, page = await self._entities.page(request)
        return fe.ListFeatureEntitiesResponse(feature_entities=page, total_count=total)

    async def DeleteFeatureEntity(
        self, request: fe.DeleteFeatureEntityRequest, context: Any
    ) -> fe.DeleteFeatureEntityResponse:
        self._check(request)
        await self._entities.delete(request.feature_entity_id)
        return fe.DeleteFeatureEntityResponse()

    async def CreateFeatureView(
        self, request: fv.CreateFeatureViewRequest, context: Any
    ) -> fv.CreateFeatureViewResponse:
        self._check(request)
        return fv.CreateFeatureViewResponse(feature_view_id=str(await self._views.create(request)))

    async def GetFeatureView(self, request: fv.GetFeatureViewRequest, context: Any) -> fv.GetFeatureViewResponse:
        self._check(request)
        return fv.GetFeatureViewResponse(feature_view=await self._views.get(request.feature_view_id))

    async def ListFeatureViews(self, request: fv.ListFeatureViewsRequest, context: Any) -> fv.ListFeatureViewsResponse:
        self._check(request)
        total, page = await self._views.page(request)
        return fv.ListFeatureViewsResponse(feature_views=page, total_count=total)

    async def UpdateFeatureView(
        self, request: fv.UpdateFeatureViewRequest, context: Any
    ) -> fv.UpdateFeatureViewResponse:
        self._check(request)
        await self._views.update(request, self._online.append)
        return fv.UpdateFeatureViewResponse()

    async def DeleteFeatureView(
        self, request: fv.DeleteFeatureViewRequest, context: Any
    ) -> fv.DeleteFeatureViewResponse:
        self._check(request)
        await self._views.delete(request.feature_view_id, self._online.drop)
        return fv.DeleteFeatureViewResponse()

    async def PublishFeatureViewTable(
        self, request: fv.PublishFeatureViewTableRequest, context: Any
    ) -> fv.PublishFeatureViewTableResponse:
        self._check(request)
        view = await self._views.row(request.feature_view_id)
        config = publish.asked_for(view, request)
        await self._online.check(view)
        if config["offline_to_online"]:
            table = await self._datasources.opened(*offline_table_of(view))
            publish.check_source(view, table, config["partitions"], config["event_time"])
            if table.files:
                publish.chosen_files(table, config["partitions"])
        return fv.PublishFeatureViewTableResponse(task_id=str(await self._tasks.publish(view, config)))

    async def WriteFeatureViewTable(
        self, request: fv.WriteFeatureViewTableRequest, context: Any
    ) -> fv.WriteFeatureViewTableResponse:
        self._check(request)
        if bool(request.rows) == request.HasField("url_datasource"):
            raise invalid("UrlDatasource", "is required, or Rows, and not both")
        view = await self._views.row(request.feature_view_id)
        publish.check_own(view)
        if request.rows:
            await self._write_rows(view, request)
            return fv.WriteFeatureViewTableResponse()
        limits = downloads.limits_of(self._own)
        config = await asyncio.to_thread(csv_table.asked_for, view, request, self._offline, limits)
        _, table_name = offline_table_of(view)
        await self._datasources.writable(view["offline_datasource_id"], table_name, config["partitions"])
        return fv.WriteFeatureViewTableResponse(task_id=str(await self._tasks.write_table(view, config)))

    async def _write_rows(self, view: Row, request: fv.WriteFeatureViewTableRequest) -> None:
        """Write the rows of a request to the view's group, which is made if there is none."""
        mode = publish.mode_of(request.mode).lower()
        publish.check_online(view)
        if view["type"] == publish.SEQUENCE:
            await self._write_behaviours(view, mode, request.rows)
            return
        async with self._views.writing(view) as held:
            batch = json_rows.batch_of(publish.columns_of(held), [held["join_id"]], request.rows)
            await self._online.ensure(held)
            rows = _only(publish.arrow_stream(batch))
            await self._online.write(held, mode, rows, calls.DEFAULT_TIMEOUT_SECONDS, _confirmed)

    async def _write_behaviours(self, view: Row, mode: str, texts: Sequence[str]) -> None:
        """Join the behaviours of a request with those of the same users that were written before."""
        # One at a time for a view: what each of two would read and write back would lack the other's.
        async with self._views.writing(view, alone=True) as held:
            await self._online.write_behaviours(held, mode, behaviours.given(held, texts))

    async def ListFeatureViewOnlineFeatures(
        self, request: fv.ListFeatureViewOnlineFeaturesRequest, context: Any
    ) -> fv.ListFeatureViewOnlineFeaturesResponse:
        self._check(request)
        if len(request.join_ids) > _MAX_JOIN_IDS:
            raise invalid("JoinIds", f"takes at most {_MAX_JOIN_IDS} keys")
        view = await self._views.row(request.feature_view_id)
        if not request.join_ids:
            rows = []
        elif view["type"] == publish.SEQUENCE:
            rows = await self._sequences(view, request)
        else:
            rows = await self._online.read(view, request.join_ids)
        return fv.ListFeatureViewOnlineFeaturesResponse(online_features=rows)

    async def _sequences(self, view: Row, request: fv.ListFeatureViewOnlineFeaturesRequest) -> list[str]:
        grouped = json_object("Config", request.config).get("dlrm_hstu", False)
        if not isinstance(grouped, bool):
            raise invalid("Config", "needs true or false as dlrm_hstu")
        users = await self._online.behaviours(sequences.source_of(view), request.join_ids)
        if not users:
            return []  # Whatever is wrong with its own Config: nothing was ever written.
        shows, now = sequences.behaviours_of(view), int(time.time())
        return [text for row, kept in users for text in shows.shown(row, kept, now, grouped=grouped)]

    async def ListFeatureViewRelationships(
        self, request: fv.ListFeatureViewRelationshipsRequest, context: Any
    ) -> fv.ListFeatureViewRelationshipsResponse:
        self._check(request)
        found = await self._views.relationships(request.feature_view_id)
        return fv.ListFeatureViewRelationshipsResponse(relationships=[found])

    async def ListFeatureViewFieldRelationships(
        self, request: fv.ListFeatureViewFieldRelationshipsRequest, context: Any
    ) -> fv.ListFeatureViewFieldRelationshipsResponse:
        self._check(request)
        found = await self._views.field_relationships(request.feature_view_id, request.field_name)
        return fv.ListFeatureViewFieldRelationshipsResponse(relationships=[found])

    async def CreateLabelTable(self, request: lt.CreateLabelTableRequest, context: Any) -> lt.CreateLabelTableResponse:
        self._check(request)
        return lt.CreateLabelTableResponse(label_table_id=str(await self._labels.create(request)))

    async def GetLabelTable(self, request: lt.GetLabelTableRequest, context: Any) -> lt.GetLabelTableResponse:
        self._check(request)
        return lt.GetLabelTableResponse(label_table=await self._labels.get(request.label_table_id))

    async def ListLabelTables(self, request: lt.ListLabelTablesRequest, context: Any) -> lt.ListLabelTablesResponse:
        self._check(request)
        total, page = await self._labels.page(request)
        return lt.ListLabelTablesResponse(label_tables=page, total_count=total)

    async def UpdateLabelTable(self, request: lt.UpdateLabelTableRequest, context: Any) -> lt.UpdateLabelTableResponse:
        self._check(request)
        await self._labels.update(request)
        return lt.UpdateLabelTableResponse()

    async def DeleteLabelTable(self, request: lt.DeleteLabelTableRequest, context: Any) -> lt.DeleteLabelTableResponse:
        self._check(request)
        await self._labels.delete(request.label_table_id)
        return lt.DeleteLabelTableResponse()

    async def CreateModelFeature(
        self, request: mf.CreateModelFeatureRequest, context: Any
    ) -> mf.CreateModelFeatureResponse:
        self._check(request)
        return mf.CreateModelFeatureResponse(model_feature_id=str(await self._models.create(request)))

    async def GetModelFeature(self, request: mf.GetModelFeatureRequest, context: Any) -> mf.GetModelFeatureResponse:
        self._check(request)
        return mf.GetModelFeatureResponse(model_feature=await self._models.get(request.model_feature_id))

    async def ListModelFeatures(
        self, request: mf.ListModelFeaturesRequest, context: Any
    ) -> mf.ListModelFeaturesResponse:
        self._check(request)
        total, page = await self._models.page(request)
        return mf.ListModelFeaturesResponse(model_features=page, total_count=total)

    async def UpdateModelFeature(
        self, request: mf.UpdateModelFeatureRequest, context: Any
    ) -> mf.UpdateModelFeatureResponse:
        self._check(request)
        await self._models.update(request)
        return mf.UpdateModelFeatureResponse()

    async def DeleteModelFeature(
        self, request: mf.DeleteModelFeatureRequest, context: Any
    ) -> mf.DeleteModelFeatureResponse:
        self._check(request)
        await self._models.delete(request.model_feature_id)
        return mf.DeleteModelFeatureResponse()

    async def GetModelFeatureFGFeature(
        self, request: fg_pb.GetModelFeatureFGFeatureRequest, context: Any
    ) -> fg_pb.GetModelFeatureFGFeatureResponse:
        self._check(request)
        return fg_pb.GetModelFeatureFGFeatureResponse(fg_feature=await self._models.fg(request.model_feature_id))

    async def UpdateModelFeatureFGFeature(
        self, request: fg_pb.UpdateModelFeatureFGFeatureRequest, context: Any
    ) -> fg_pb.UpdateModelFeatureFGFeatureResponse:
        self._check(request)
        await self._models.update_fg(request)
        return fg_pb.UpdateModelFeatureFGFeatureResponse()

    async def GetModelFeatureFGInfo(
        self, request: fg_pb.GetModelFeatureFGInfoRequest, context: Any
    ) -> fg_pb.GetModelFeatureFGInfoResponse:
        self._check(request)
        return fg_pb.GetModelFeatureFGInfoResponse(content=fg.content(await self._models.fg(request.model_feature_id)))

    async def CheckModelFeatureFGFeature(
        self, request: fg_pb.CheckModelFeatureFGFeatureRequest, context: Any
    ) -> fg_pb.CheckModelFeatureFGFeatureResponse:
        self._check(request)
        results = await self._models.check_fg(request.model_feature_id)
        return fg_pb.CheckModelFeatureFGFeatureResponse(fg_check_results=results)

    async def ListModelFeatureAvailableFeatures(
        self, request: fg_pb.ListModelFeatureAvailableFeaturesRequest, context: Any
    ) -> fg_pb.ListModelFeatureAvailableFeaturesResponse:
        self._check(request)
        found = await self._models.available(request.model_feature_id, request.feature_name)
        return fg_pb.ListModelFeatureAvailableFeaturesResponse(available_features=found, total_count=len(found))

    async def ExportModelFeatureTrainingSetTable(
        self, request: mf.ExportModelFeatureTrainingSetTableRequest, context: Any
    ) -> mf.ExportModelFeatureTrainingSetTableResponse:
        self._check(request)
        model, views, selected = await self._models.exportable(request.model_feature_id)
        config = training.asked_for(request)
        plan = training.plan_of(model, views, selected, config, self._own.ttl_unit)
        for reading in plan.readings:
            table = await self._datasources.opened(reading.datasource_id, reading.table)
            training.check_reading(reading, table)
        partition = training.partition_of(model, config)
        await self._datasources.writable(model["offline_datasource_id"], training_set_table_of(model), partition)
        return mf.ExportModelFeatureTrainingSetTableResponse(task_id=str(await self._tasks.export(model, config)))

    async def GetTask(self, request: tk.GetTaskRequest, context: Any) -> tk.GetTaskResponse:
        self._check(request)
        return tk.GetTaskResponse(task=await self._tasks.get(request.task_id))

    async def ListTasks(self, request: tk.ListTasksRequest, context: Any) -> tk.ListTasksResponse:
        self._check(request)
        total, page = await self._tasks.page(request)
        return tk.ListTasksResponse(tasks=page, total_count=total)

    async def ListTaskLogs(self, request: tk.ListTaskLogsRequest, context: Any) -> tk.ListTaskLogsResponse:
        self._check(request)
        total, lines = await self._tasks.logs(request)
        return tk.ListTaskLogsResponse(logs=lines, total_count=total)

    async def StopTask(self, request: tk.StopTaskRequest, context: Any) -> tk.StopTaskResponse:
        self._check(request)
        await self._tasks.stop(request.task_id)
        return tk.StopTaskResponse()


async def _confirmed() -> None:
    """Nobody else writes these rows."""


async def _only(item: bytes) -> AsyncIterator[bytes]:
    yield item
