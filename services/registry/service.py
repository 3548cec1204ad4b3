"""feast.registry.RegistryServer: what a Feast SDK calls. Each method checks, converts, calls the store and replies.

`commit` and `allow_cache` change nothing: every write is at once durable
and visible, and there is no cache.
"""

# ruff: noqa: N802 - methods are named as the contract names them

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import aclosing
from datetime import UTC
from typing import Any, TypeVar

from google.protobuf.empty_pb2 import Empty

from chassis import errors
from protos.gen.feast.core.DataSource_pb2 import DataSource
from protos.gen.feast.core.Entity_pb2 import Entity
from protos.gen.feast.core.FeatureService_pb2 import FeatureService
from protos.gen.feast.core.FeatureView_pb2 import FeatureView, MaterializationInterval
from protos.gen.feast.core.InfraObject_pb2 import Infra
from protos.gen.feast.core.LabelView_pb2 import LabelView
from protos.gen.feast.core.OnDemandFeatureView_pb2 import OnDemandFeatureView
from protos.gen.feast.core.Permission_pb2 import Permission
from protos.gen.feast.core.Project_pb2 import Project
from protos.gen.feast.core.Registry_pb2 import Registry
from protos.gen.feast.core.SavedDataset_pb2 import SavedDataset
from protos.gen.feast.core.StreamFeatureView_pb2 import StreamFeatureView
from protos.gen.feast.core.ValidationProfile_pb2 import ValidationReference
from protos.gen.feast.registry import RegistryServer_pb2 as rpc
from protos.gen.feast.registry.RegistryServer_pb2_grpc import RegistryServerServicer
from services.registry import checks, kinds
from services.registry.kinds import Edge, Kind
from services.registry.lineage import Edges, LineageStore
from services.registry.listing import Listing, at_or_after
from services.registry.store import Page, RegistryStore

_Response = TypeVar("_Response")

# Where the whole registry's message holds the objects of each kind.
_REGISTRY_FIELDS = {
    kinds.PROJECT: "projects",
    kinds.ENTITY: "entities",
    kinds.DATA_SOURCE: "data_sources",
    kinds.FEATURE_VIEW: "feature_views",
    kinds.STREAM_FEATURE_VIEW: "stream_feature_views",
    kinds.ON_DEMAND_FEATURE_VIEW: "on_demand_feature_views",
    kinds.LABEL_VIEW: "label_views",
    kinds.FEATURE_SERVICE: "feature_services",
    kinds.SAVED_DATASET: "saved_datasets",
    kinds.VALIDATION_REFERENCE: "validation_references",
    kinds.PERMISSION: "permissions",
}


class RegistryServicer(RegistryServerServicer):
    """Feast's registry on our store."""

    def __init__(self, store: RegistryStore, lineage: LineageStore, max_message_bytes: int) -> None:
        self._store = store
        self._lineage = lineage
        self._max_message_bytes = max_message_bytes

    # ---- entities ----

    async def ApplyEntity(self, request: rpc.ApplyEntityRequest, context: Any) -> Empty:
        return await self._apply(kinds.ENTITY, request.entity, request.project)

    async def GetEntity(self, request: rpc.GetEntityRequest, context: Any) -> Entity:
        return Entity.FromString(await self._get(kinds.ENTITY, request))

    async def ListEntities(self, request: rpc.ListEntitiesRequest, context: Any) -> rpc.ListEntitiesResponse:
        page = await self._page(kinds.ENTITY, request)
        return _listed(rpc.ListEntitiesResponse(), "entities", page, request)

    async def DeleteEntity(self, request: rpc.DeleteEntityRequest, context: Any) -> Empty:
        await self._store.delete(kinds.ENTITY, request.name, request.project)
        return Empty()

    # ---- data sources ----

    async def ApplyDataSource(self, request: rpc.ApplyDataSourceRequest, context: Any) -> Empty:
        return await self._apply(kinds.DATA_SOURCE, request.data_source, request.project)

    async def GetDataSource(self, request: rpc.GetDataSourceRequest, context: Any) -> DataSource:
        return DataSource.FromString(await self._get(kinds.DATA_SOURCE, request))

    async def ListDataSources(self, request: rpc.ListDataSourcesRequest, context: Any) -> rpc.ListDataSourcesResponse:
        page = await self._page(kinds.DATA_SOURCE, request)
        return _listed(rpc.ListDataSourcesResponse(), "data_sources", page, request)

    async def DeleteDataSource(self, request: rpc.DeleteDataSourceRequest, context: Any) -> Empty:
        await self._store.delete(kinds.DATA_SOURCE, request.name, request.project)
        return Empty()

    # ---- feature views ----

    async def ApplyFeatureView(self, request: rpc.ApplyFeatureViewRequest, context: Any) -> Empty:
        chosen = request.WhichOneof("base_feature_view")
        kind = checks.view_kind(chosen)
        return await self._apply(kind, getattr(request, chosen or ""), request.project)

    async def DeleteFeatureView(self, request: rpc.DeleteFeatureViewRequest, context: Any) -> Empty:
        await self._store.delete(kinds.FEATURE_VIEW, request.name, request.project)
        return Empty()

    async def GetAnyFeatureView(
        self, request: rpc.GetAnyFeatureViewRequest, context: Any
    ) -> rpc.GetAnyFeatureViewResponse:
        found = await self._store.get_view(request.name, request.project)
        response = rpc.GetAnyFeatureViewResponse()
        _fill(response.any_feature_view, found.kind, found.content)
        return response

    async def ListAllFeatureViews(
        self, request: rpc.ListAllFeatureViewsRequest, context: Any
    ) -> rpc.ListAllFeatureViewsResponse:
        since = checks.moment(request, "updated_since")
        filters = {
            "entity": request.entity,
            "feature": request.feature,
            "feature_service": request.feature_service,
            "data_source": request.data_source,
        }
        page = await self._page(None, request, {**filters, **at_or_after(since)})
        response = rpc.ListAllFeatureViewsResponse(pagination=_pagination(page.total, request))
        for found in page.objects:
            _fill(response.feature_views.add(), found.kind, found.content)
        return response

    async def GetFeatureView(self, request: rpc.GetFeatureViewRequest, context: Any) -> FeatureView:
        return FeatureView.FromString(await self._get(kinds.FEATURE_VIEW, request))

    async def ListFeatureViews(
        self, request: rpc.ListFeatureViewsRequest, context: Any
    ) -> rpc.ListFeatureViewsResponse:
        page = await self._page(kinds.FEATURE_VIEW, request)
        return _listed(rpc.ListFeatureViewsResponse(), "feature_views", page, request)

    async def GetStreamFeatureView(self, request: rpc.GetStreamFeatureViewRequest, context: Any) -> StreamFeatureView:
        return StreamFeatureView.FromString(await self._get(kinds.STREAM_FEATURE_VIEW, request))

    async def ListStreamFeatureViews(
        self, request: rpc.ListStreamFeatureViewsRequest, context: Any
    ) -> rpc.ListStreamFeatureViewsResponse:
        page = await self._page(kinds.STREAM_FEATURE_VIEW, request)
        return _listed(rpc.ListStreamFeatureViewsResponse(), "stream_feature_views", page, request)

    async def GetOnDemandFeatureView(
        self, request: rpc.GetOnDemandFeatureViewRequest, context: Any
    ) -> OnDemandFeatureView:
        return OnDemandFeatureView.FromString(await self._get(kinds.ON_DEMAND_FEATURE_VIEW, request))

    async def ListOnDemandFeatureViews(
        self, request: rpc.ListOnDemandFeatureViewsRequest, context: Any
    ) -> rpc.ListOnDemandFeatureViewsResponse:
        page = await self._page(kinds.ON_DEMAND_FEATURE_VIEW, request)
        return _listed(rpc.ListOnDemandFeatureViewsResponse(), "on_demand_feature_views", page, request)

    async def GetLabelView(self, request: rpc.GetLabelViewRequest, context: Any) -> LabelView:
        return LabelView.FromString(await self._get(kinds.LABEL_VIEW, request))

    async def ListLabelViews(self, request: rpc.ListLabelViewsRequest, context: Any) -> rpc.ListLabelViewsResponse:
        page = await self._page(kinds.LABEL_VIEW, request)
        return _listed(rpc.ListLabelViewsResponse(), "label_views", page, request)

    # ---- features ----

    async def ListFeatures(self, request: rpc.ListFeaturesRequest, context: Any) -> rpc.ListFeaturesResponse:
        filters = {"feature_view": request.feature_view, "name": request.name}
        page = await self._page(checks.feature_kind(request.kind), request, filters)
        return _listed(rpc.ListFeaturesResponse(), "features", page, request)

    async def GetFeature(self, request: rpc.GetFeatureRequest, context: Any) -> rpc.Feature:
        found = await self._store.get(kinds.FEATURE, request.name, request.project, request.feature_view)
        return rpc.Feature.FromString(found)

    # ---- feature services ----

    async def ApplyFeatureService(self, request: rpc.ApplyFeatureServiceRequest, context: Any) -> Empty:
        return await self._apply(kinds.FEATURE_SERVICE, request.feature_service, request.project)

    async def GetFeatureService(self, request: rpc.GetFeatureServiceRequest, context: Any) -> FeatureService:
        return FeatureService.FromString(await self._get(kinds.FEATURE_SERVICE, request))

    async def ListFeatureServices(
        self, request: rpc.ListFeatureServicesRequest, context: Any
    ) -> rpc.ListFeatureServicesResponse:
        page = await self._page(kinds.FEATURE_SERVICE, request, {"feature_view": request.feature_view})
        return _listed(rpc.ListFeatureServicesResponse(), "feature_services", page, request)

    async def DeleteFeatureService(self, request: rpc.DeleteFeatureServiceRequest, context: Any) -> Empty:
        await self._store.delete(kinds.FEATURE_SERVICE, request.name, request.project)
        return Empty()

    # ---- saved datasets, validation references, permissions ----

    async def ApplySavedDataset(self, request: rpc.ApplySavedDatasetRequest, context: Any) -> Empty:
        return await self._apply(kinds.SAVED_DATASET, request.saved_dataset, request.project)

    async def GetSavedDataset(self, request: rpc.GetSavedDatasetRequest, context: Any) -> SavedDataset:
        return SavedDataset.FromString(await self._get(kinds.SAVED_DATASET, request))

    async def ListSavedDatasets(
        self, request: rpc.ListSavedDatasetsRequest, context: Any
    ) -> rpc.ListSavedDatasetsResponse:
        page = await self._page(
            kinds.SAVED_DATASET, request, {"namespace": request.namespace, "collection": request.collection}
        )
        return _listed(rpc.ListSavedDatasetsResponse(), "saved_datasets", page, request)

    async def DeleteSavedDataset(self, request: rpc.DeleteSavedDatasetRequest, context: Any) -> Empty:
        await self._store.delete(kinds.SAVED_DATASET, request.name, request.project)
        return Empty()

    async def CreateDatasetFromRetrieval(
        self, request: rpc.CreateDatasetFromRetrievalRequest, context: Any
    ) -> rpc.CreateDatasetFromRetrievalResponse:
        raise checks.retrieval()

    async def GetDatasetData(self, request: rpc.GetDatasetDataRequest, context: Any) -> rpc.GetDatasetDataResponse:
        raise checks.retrieval()

    async def GetDatasetJobStatus(
        self, request: rpc.GetDatasetJobStatusRequest, context: Any
    ) -> rpc.GetDatasetJobStatusResponse:
        raise errors.NotFound(f"Dataset job {request.job_id} does not exist")

    async def ListDatasetJobs(self, request: rpc.ListDatasetJobsRequest, context: Any) -> rpc.ListDatasetJobsResponse:
        """There are none. Feast's web UI asks again and again, so this is no error."""
        return rpc.ListDatasetJobsResponse()

    async def ApplyValidationReference(self, request: rpc.ApplyValidationReferenceRequest, context: Any) -> Empty:
        return await self._apply(kinds.VALIDATION_REFERENCE, request.validation_reference, request.project)

    async def GetValidationReference(
        self, request: rpc.GetValidationReferenceRequest, context: Any
    ) -> ValidationReference:
        return ValidationReference.FromString(await self._get(kinds.VALIDATION_REFERENCE, request))

    async def ListValidationReferences(
        self, request: rpc.ListValidationReferencesRequest, context: Any
    ) -> rpc.ListValidationReferencesResponse:
        page = await self._page(kinds.VALIDATION_REFERENCE, request)
        return _listed(rpc.ListValidationReferencesResponse(), "validation_references", page, request)

    async def DeleteValidationReference(self, request: rpc.DeleteValidationReferenceRequest, context: Any) -> Empty:
        await self._store.delete(kinds.VALIDATION_REFERENCE, request.name, request.project)
        return Empty()

    async def ApplyPermission(self, request: rpc.ApplyPermissionRequest, context: Any) -> Empty:
        return await self._apply(kinds.PERMISSION, request.permission, request.project)

    async def GetPermission(self, request: rpc.GetPermissionRequest, context: Any) -> Permission:
        return Permission.FromString(await self._get(kinds.PERMISSION, request))

    async def ListPermissions(self, request: rpc.ListPermissionsRequest, context: Any) -> rpc.ListPermissionsResponse:
        page = await self._page(kinds.PERMISSION, request)
        return _listed(rpc.ListPermissionsResponse(), "permissions", page, request)

    async def DeletePermission(self, request: rpc.DeletePermissionRequest, context: Any) -> Empty:
        await self._store.delete(kinds.PERMISSION, request.name, request.project)
        return Empty()

    # ---- projects ----

    async def ApplyProject(self, request: rpc.ApplyProjectRequest, context: Any) -> Empty:
        return await self._apply(kinds.PROJECT, request.project, request.project.spec.name)

    async def GetProject(self, request: rpc.GetProjectRequest, context: Any) -> Project:
        return Project.FromString(await self._store.get(kinds.PROJECT, request.name, request.name))

    async def ListProjects(self, request: rpc.ListProjectsRequest, context: Any) -> rpc.ListProjectsResponse:
        page = await self._page(kinds.PROJECT, request)
        return _listed(rpc.ListProjectsResponse(), "projects", page, request)

    async def DeleteProject(self, request: rpc.DeleteProjectRequest, context: Any) -> Empty:
        await self._store.delete_project(request.name)
        return Empty()

    async def ListProjectMetadata(
        self, request: rpc.ListProjectMetadataRequest, context: Any
    ) -> rpc.ListProjectMetadataResponse:
        response = rpc.ListProjectMetadataResponse()
        project = await self._store.project(request.project)
        if project is not None:
            response.project_metadata.add(project=project.name, project_uuid=project.uuid)
        return response

    # ---- lineage ----

    async def GetRegistryLineage(
        self, request: rpc.GetRegistryLineageRequest, context: Any
    ) -> rpc.GetRegistryLineageResponse:
        direct, indirect = [await self._edges(request, indirect=wanted) for wanted in (False, True)]
        response = rpc.GetRegistryLineageResponse(
            relationships=_relations(edge for _, edge in direct.edges),
            indirect_relationships=_relations(edge for _, edge in indirect.edges),
            relationships_pagination=_pagination(direct.total, request),
            indirect_relationships_pagination=_pagination(indirect.total, request),
        )
        return checks.sized(response, self._max_message_bytes)

    async def GetObjectRelationships(
        self, request: rpc.GetObjectRelationshipsRequest, context: Any
    ) -> rpc.GetObjectRelationshipsResponse:
        checks.lineage_type(request.object_type)
        key = (request.project, request.object_name)
        around = await self._lineage.around(request.object_type, [key], with_indirect=request.include_indirect)
        edges = around.get(key, ())
        page, limit = _page_of(request)
        shown = edges[(page - 1) * limit : page * limit] if page else edges
        response = rpc.GetObjectRelationshipsResponse(
            relationships=_relations(shown), pagination=_pagination(len(edges), request)
        )
        return checks.sized(response, self._max_message_bytes)

    # ---- infra, materialization, batches ----

    async def UpdateInfra(self, request: rpc.UpdateInfraRequest, context: Any) -> Empty:
        checks.project_name(request.project)
        await self._store.put_infra(request.project, request.infra.SerializeToString())
        return Empty()

    async def GetInfra(self, request: rpc.GetInfraRequest, context: Any) -> Infra:
        return Infra.FromString(await self._store.infra(request.project))

    async def ApplyMaterialization(self, request: rpc.ApplyMaterializationRequest, context: Any) -> Empty:
        checks.texts_and_times(request)
        interval = MaterializationInterval(start_time=request.start_date, end_time=request.end_date)
        await self._store.materialize(request.feature_view.spec.name, request.project, interval)
        return Empty()

    async def Proto(self, request: Empty, context: Any) -> Registry:
        """Everything but protected projects, with the project in each object, up to the size of a message."""
        registry = Registry()
        size = 0
        async with self._store.snapshot() as snapshot:
            for kind, field in _REGISTRY_FIELDS.items():
                objects = getattr(registry, field)
                async with aclosing(snapshot.batches(Listing(kind, hide_protected=True))) as batches:
                    async for batch in batches:
                        size += sum(len(found.content) for found in batch)
                        if size > self._max_message_bytes:
                            raise checks.too_large(self._max_message_bytes)
                        for found in batch:
                            objects.add().MergeFromString(found.content)
        for project in await self._store.projects([each.spec.name for each in registry.projects]):
            registry.project_metadata.add(project=project.name, project_uuid=project.uuid)
            updated = max(registry.last_updated.ToDatetime(UTC), project.updated)
            registry.last_updated.FromDatetime(updated)
        return registry

    async def Commit(self, request: Empty, context: Any) -> Empty:
        return Empty()

    async def Refresh(self, request: rpc.RefreshRequest, context: Any) -> Empty:
        return Empty()

    # ---- the beats that they share ----

    async def _apply(self, kind: Kind, message: Any, project: str) -> Empty:
        checks.project_name(project)
        checks.applied(kind, message)
        await self._store.apply(kind, message, project)
        return Empty()

    async def _get(self, kind: Kind, request: Any) -> bytes:
        return await self._store.get(kind, request.name, request.project)

    async def _edges(self, request: rpc.GetRegistryLineageRequest, *, indirect: bool) -> Edges:
        page, limit = _page_of(request)
        return await self._lineage.page(
            [request.project],
            request.filter_object_type,
            request.filter_object_name,
            indirect=indirect,
            page=page,
            limit=limit,
            descending=request.sorting.sort_order.lower() == "desc",
        )

    async def _page(self, kind: Kind | None, request: Any, filters: Mapping[str, Any] | None = None) -> Page:
        listing = Listing(
            kind,
            project=getattr(request, "project", ""),
            tags=getattr(request, "tags", {}),
            filters=filters or {},
            page=request.pagination.page,
            limit=request.pagination.limit,
            sort_by=request.sorting.sort_by,
            descending=request.sorting.sort_order.lower() == "desc",
            hide_protected=kind is kinds.PROJECT,
        )
        return await self._store.page(listing)


def _listed(response: _Response, field: str, page: Page, request: Any) -> _Response:
    """A list's answer: the page's messages in `field`, and its pagination."""
    objects = getattr(response, field)
    for found in page.objects:
        objects.add().MergeFromString(found.content)
    pagination: rpc.PaginationMetadata = getattr(response, "pagination")  # noqa: B009 - no type says that all have it
    pagination.CopyFrom(_pagination(page.total, request))
    return response


def _fill(any_view: rpc.AnyFeatureView, kind: Kind, content: bytes) -> None:
    getattr(any_view, checks.VIEW_FIELDS[kind]).MergeFromString(content)


def _relations(edges: Iterable[Edge]) -> Iterable[rpc.EntityRelation]:
    for source_type, source_name, target_type, target_name in edges:
        yield rpc.EntityRelation(
            source=rpc.EntityReference(type=source_type, name=source_name),
            target=rpc.EntityReference(type=target_type, name=target_name),
        )


def _page_of(request: Any) -> tuple[int, int]:
    """Page and limit; both 0 unless both were asked for, as in Feast."""
    number, limit = request.pagination.page, request.pagination.limit
    return (number, limit) if number > 0 and limit > 0 else (0, 0)


def _pagination(total: int, request: Any) -> rpc.PaginationMetadata:
    """As Feast counts: all zero for an empty list; one page of everything when no page was asked for."""
    number, limit = _page_of(request)
    if total == 0:
        return rpc.PaginationMetadata()
    if number == 0:
        return rpc.PaginationMetadata(total_count=total, total_pages=1)
    pages = -(-total // limit)
    return rpc.PaginationMetadata(
        page=number,
        limit=limit,
        total_count=total,
        total_pages=pages,
        has_next=number < pages,
        has_previous=number > 1,
    )
