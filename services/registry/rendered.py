"""triglot.registry.v1: objects as JSON, in pages, with their relationships."""

# ruff: noqa: N802 - methods are named as the contract names them

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

from chassis import calls
from protos.gen.triglot.registry.v1 import object_pb2
from protos.gen.triglot.registry.v1 import registry_service_pb2 as rpc
from protos.gen.triglot.registry.v1.registry_service_pb2_grpc import RegistryServiceServicer
from services.registry import checks, definitions, kinds
from services.registry.contents import Contents
from services.registry.counts import CountStore, Newest, PopularTag
from services.registry.kinds import Edge
from services.registry.lineage import Edges, LineageStore
from services.registry.listing import Listing, at_or_after
from services.registry.rendering import row_of
from services.registry.search import Match, Search, SearchStore
from services.registry.store import Content, RegistryStore
from services.registry.views import Materialization, Version
from services.registry.visits import Visit, VisitStore

# Lists that come along with counts end here, so that they cost the same in a large registry.
NEWEST = 100
_FEATURE_VIEWS = [kind for kind in kinds.VIEWS if kind is not kinds.LABEL_VIEW]


class RenderedServicer(RegistryServiceServicer):
    """Our own view of the registry. A page holds at most `max_page` objects, whole projects a message's bytes."""

    def __init__(
        self,
        store: RegistryStore,
        lineage: LineageStore,
        search: SearchStore,
        counts: CountStore,
        visits: VisitStore,
        *,
        max_page: int,
        max_message_bytes: int,
    ) -> None:
        self._store = store
        self._visits = visits
        self._search = search
        self._counts = counts
        self._lineage = lineage
        self._max_page = max_page
        self._contents = Contents(store, lineage, max_message_bytes)
        self._max_message_bytes = max_message_bytes

    async def ListObjects(self, request: rpc.ListObjectsRequest, context: Any) -> rpc.ListObjectsResponse:
        checks.page(request.page, request.limit, self._max_page)
        page = await self._store.page(_listing(request), rendered=True)
        response = rpc.ListObjectsResponse(total=page.total)
        response.objects.extend(found.content for found in page.objects)
        if request.include_relationships:
            response.relationships.extend(await self._relationships(page.objects))
        return response

    async def GetObject(self, request: rpc.GetObjectRequest, context: Any) -> rpc.GetObjectResponse:
        kind = checks.object_kind(request.kind)
        project = request.name if kind is kinds.PROJECT else request.project
        found = await self._store.get_rendered(kind, request.name, project, request.feature_view)
        response = rpc.GetObjectResponse(object=found.content)
        if request.include_relationships:
            for each in await self._relationships([found]):
                response.relationships.extend(each.relationships)
        if request.include_details:
            await self._describe(response, found, request.feature_view)
        return response

    async def _describe(self, response: rpc.GetObjectResponse, found: Content, parent: str) -> None:
        message: Any = found.kind.message()
        message.MergeFromString(await self._store.get(found.kind, found.name, found.project, parent))
        response.definition = definitions.definition(found.kind, message)
        if found.kind is kinds.ENTITY:
            sources, total = await self._lineage.sources_of_entity(found.name, found.project, NEWEST)
            response.data_sources.extend(sources)
            response.data_sources_total = total

    async def ListRelationships(
        self, request: rpc.ListRelationshipsRequest, context: Any
    ) -> rpc.ListRelationshipsResponse:
        checks.page(request.page, request.limit, self._max_page)
        projects = [request.project] if request.project else await self._lineage.projects()
        direct, indirect = [
            await self._lineage.page(
                projects,
                request.object_type,
                request.object_name,
                indirect=wanted,
                page=request.page,
                limit=request.limit,
                descending=request.descending,
            )
            for wanted in (False, True)
        ]
        response = rpc.ListRelationshipsResponse(
            relationships=_in_projects(direct),
            indirect_relationships=_in_projects(indirect),
            total=direct.total,
            indirect_total=indirect.total,
        )
        return checks.sized(response, self._max_message_bytes)

    async def ListObjectRelationships(
        self, request: rpc.ListObjectRelationshipsRequest, context: Any
    ) -> rpc.ListObjectRelationshipsResponse:
        checks.page(request.page, request.limit, self._max_page)
        checks.lineage_type(request.object.type)
        key = (request.project, request.object.name)
        around = await self._lineage.around(request.object.type, [key], with_indirect=request.include_indirect)
        edges = around.get(key, ())
        start = (request.page - 1) * request.limit if request.page else 0
        shown = edges[start : start + request.limit] if request.page else edges
        response = rpc.ListObjectRelationshipsResponse(relationships=_relationships(shown), total=len(edges))
        return checks.sized(response, self._max_message_bytes)

    async def SearchObjects(self, request: rpc.SearchObjectsRequest, context: Any) -> rpc.SearchObjectsResponse:
        checks.search(request.query, request.sort_by)
        checks.page(request.page or 1, request.limit, self._max_page)
        known = await self._lineage.projects()
        asked = list(dict.fromkeys(request.projects))
        searched = [project for project in asked if project in known] if asked else known
        wanted = Search(
            request.query,
            searched,
            request.tags,
            page=request.page or 1,
            limit=request.limit,
            sort_by=request.sort_by or "match_score",
            descending=not request.ascending,
        )
        found, total = await self._search.search(wanted)
        return rpc.SearchObjectsResponse(
            results=[_result(match) for match in found],
            total=total,
            projects_searched=searched,
            unknown_projects=[project for project in asked if project not in known],
        )

    async def CountObjects(self, request: rpc.CountObjectsRequest, context: Any) -> rpc.CountObjectsResponse:
        projects = [request.project] if request.project else await self._lineage.projects()
        tallies = await self._counts.tallies(projects)
        newest = [
            await self._counts.newest(wanted, NEWEST, request.project)
            for wanted in (_FEATURE_VIEWS, [kinds.FEATURE_SERVICE], [kinds.PROJECT])
        ]
        response = rpc.CountObjectsResponse(
            projects=[_counts(project, tallies.get(project, {})) for project in projects],
            newest_feature_views=map(_newest, newest[0]),
            newest_feature_services=map(_newest, newest[1]),
            newest_projects=map(_newest, newest[2]),
        )
        updated = await self._counts.last_update(projects)
        if updated is not None:
            response.last_updated.FromDatetime(updated)
        return response

    async def ListPopularTags(self, request: rpc.ListPopularTagsRequest, context: Any) -> rpc.ListPopularTagsResponse:
        checks.tag_limit(request.limit)
        projects = [request.project] if request.project else await self._lineage.projects()
        tags, total = await self._counts.popular_tags(projects, request.limit, NEWEST)
        tallies = await self._counts.tallies(projects)
        return rpc.ListPopularTagsResponse(
            tags=map(_popular, tags),
            total_tags=total,
            total_feature_views=sum(_counts(name, tally).feature_views for name, tally in tallies.items()),
        )

    async def GetProjectContents(
        self, request: rpc.GetProjectContentsRequest, context: Any
    ) -> rpc.GetProjectContentsResponse:
        checks.project_name(request.project)
        checks.page(request.page, request.limit, self._max_page)
        (contents,) = await self._contents.of([request.project], request.page, request.limit)
        return rpc.GetProjectContentsResponse(contents=contents)

    async def StreamProjectContents(  # type: ignore[override]  # it writes what it answers
        self, request: rpc.StreamProjectContentsRequest, context: Any
    ) -> None:
        checks.project_name(request.project)
        checks.page(request.page, request.limit, self._max_page)
        async with aclosing(self._contents.parts(request.project, request.page, request.limit)) as parts:
            async for part in parts:
                await context.write(part)

    async def ListProjectContents(
        self, request: rpc.ListProjectContentsRequest, context: Any
    ) -> rpc.ListProjectContentsResponse:
        checks.page(request.page, request.limit, self._max_page)
        wanted = Listing(kinds.PROJECT, page=request.page, limit=request.limit, hide_protected=True)
        projects = await self._store.page(wanted, rendered=True)
        contents = await self._contents.of([found.name for found in projects.objects])
        return rpc.ListProjectContentsResponse(projects=contents, total=projects.total)

    async def ListMaterializations(
        self, request: rpc.ListMaterializationsRequest, context: Any
    ) -> rpc.ListMaterializationsResponse:
        checks.project_name(request.project)
        checks.page(request.page or -1, request.limit, self._max_page)
        found, total = await self._store.materializations(
            request.project, request.feature_view, request.page, request.limit
        )
        return rpc.ListMaterializationsResponse(materializations=map(_materialization, found), total=total)

    async def RegisterSavedDataset(
        self, request: rpc.RegisterSavedDatasetRequest, context: Any
    ) -> rpc.RegisterSavedDatasetResponse:
        checks.project_name(request.project)
        checks.applied(kinds.SAVED_DATASET, request.saved_dataset)
        name, project = request.saved_dataset.spec.name, request.project
        taken = None if request.allow_override else checks.dataset_taken(name, project)
        await self._store.apply(kinds.SAVED_DATASET, request.saved_dataset, project, taken=taken)
        return rpc.RegisterSavedDatasetResponse()

    async def RecordVisit(self, request: rpc.RecordVisitRequest, context: Any) -> rpc.RecordVisitResponse:
        checks.visit(request)
        self._visits.note(
            Visit(
                principal=calls.principal().identity,
                project=request.project,
                object=request.object,
                object_name=request.object_name,
                path=request.path,
                method=request.method,
                visited=datetime.now(UTC),
            )
        )
        return rpc.RecordVisitResponse()

    async def ListVisits(self, request: rpc.ListVisitsRequest, context: Any) -> rpc.ListVisitsResponse:
        checks.visit_sort(request.sort_by)
        checks.page(request.page, request.limit, self._max_page)
        caller = calls.principal()
        found, total = await self._visits.visits(
            caller.identity,
            request.project,
            request.object,
            page=request.page,
            limit=request.limit,
            sort_by=request.sort_by or "timestamp",
            descending=request.descending,
        )
        return rpc.ListVisitsResponse(visits=[_visit(each, caller.name) for each in found], total=total)

    async def ListFeatureViewVersions(
        self, request: rpc.ListFeatureViewVersionsRequest, context: Any
    ) -> rpc.ListFeatureViewVersionsResponse:
        checks.page(request.page, request.limit, self._max_page)
        found, total = await self._store.versions(request.name, request.project, request.page, request.limit)
        return rpc.ListFeatureViewVersionsResponse(versions=map(_version, found), total=total)

    async def GetFeatureViewVersion(
        self, request: rpc.GetFeatureViewVersionRequest, context: Any
    ) -> rpc.GetFeatureViewVersionResponse:
        found = await self._store.version(request.name, request.project, request.number)
        row = row_of(found.kind, found.definition, request.project)
        return rpc.GetFeatureViewVersionResponse(version=_version(found), object=row.rendered)

    async def _relationships(self, objects: Sequence[Content]) -> Sequence[rpc.ObjectRelationships]:
        if not objects:
            return ()
        keys = [(found.project, found.name) for found in objects]
        kind = objects[0].kind
        edges = await (
            self._lineage.covered(keys, NEWEST)
            if kind is kinds.PERMISSION
            else self._lineage.around(kind.lineage, keys)
        )
        return [
            rpc.ObjectRelationships(project=key[0], name=key[1], relationships=_relationships(edges[key]))
            for key in dict.fromkeys(keys)
            if key in edges
        ]


def _listing(request: rpc.ListObjectsRequest) -> Listing:
    kind = checks.object_kind(request.kind)
    since = checks.moment(request, "updated_since")
    filters = {
        "entity": request.entity,
        "feature": request.feature,
        "feature_service": request.feature_service,
        "data_source": request.data_source,
        "feature_view": request.feature_view,
        "name": request.name,
        "namespace": request.namespace,
        "collection": request.collection,
    }
    return Listing(
        kind,
        project=request.project,
        tags=request.tags,
        filters={**filters, **at_or_after(since)},
        page=request.page,
        limit=request.limit,
        sort_by=request.sort_by,
        descending=request.descending,
        hide_protected=kind is kinds.PROJECT,
    )


def _materialization(found: Materialization) -> rpc.Materialization:
    return rpc.Materialization(
        feature_view=found.view,
        number=found.number,
        start_time=found.interval.start_time,
        end_time=found.interval.end_time,
    )


def _version(found: Version) -> rpc.FeatureViewVersion:
    shown = rpc.FeatureViewVersion(number=found.number, id=found.id, type=found.kind.name, active=found.active)
    shown.created.FromDatetime(found.created)
    return shown


def _visit(visit: Visit, user: str) -> rpc.Visit:
    shown = rpc.Visit(
        path=visit.path,
        project=visit.project,
        user=user,
        object=visit.object,
        object_name=visit.object_name,
        method=visit.method,
    )
    shown.timestamp.FromDatetime(visit.visited)
    return shown


def _in_projects(found: Edges) -> Iterable[rpc.ProjectRelationship]:
    for project, edge in found.edges:
        yield rpc.ProjectRelationship(project=project, relationship=next(iter(_relationships([edge]))))


def _relationships(edges: Iterable[Edge]) -> Iterable[object_pb2.Relationship]:
    for source_type, source_name, target_type, target_name in edges:
        yield object_pb2.Relationship(
            source=object_pb2.ObjectReference(type=source_type, name=source_name),
            target=object_pb2.ObjectReference(type=target_type, name=target_name),
        )


def _result(match: Match) -> rpc.SearchResult:
    return rpc.SearchResult(
        type=match.type,
        name=match.name,
        project=match.project,
        description=match.description,
        feature_view=match.parent,
        match_score=match.score,
        matched_tags=match.tags,
    )


def _counts(project: str, tally: Mapping[str, int]) -> rpc.ProjectCounts:
    return rpc.ProjectCounts(
        project=project,
        entities=tally.get(kinds.ENTITY.name, 0),
        data_sources=tally.get(kinds.DATA_SOURCE.name, 0),
        saved_datasets=tally.get(kinds.SAVED_DATASET.name, 0),
        features=tally.get(kinds.FEATURE.name, 0),
        feature_views=sum(tally.get(kind.name, 0) for kind in _FEATURE_VIEWS),
        feature_services=tally.get(kinds.FEATURE_SERVICE.name, 0),
    )


def _newest(found: Newest) -> rpc.NewestObject:
    return rpc.NewestObject(
        name=found.name,
        project=found.project,
        type=found.type,
        description=found.description,
        feature_count=found.features,
    )


def _popular(tag: PopularTag) -> rpc.PopularTag:
    views = [rpc.TaggedFeatureView(name=name, project=project) for project, name in tag.views]
    return rpc.PopularTag(key=tag.key, value=tag.value, feature_views=views, total_feature_views=tag.total)
