# ruff: noqa: N802 - methods are named after RPCs
"""The RPCs of triglot.serving.v1: each checks, converts, calls and replies."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from chassis import calls, errors
from protos.gen.triglot.serving.v1 import serving_service_pb2 as pb
from protos.gen.triglot.serving.v1 import serving_service_pb2_grpc as pb_grpc
from protos.gen.triglot.serving.v1 import vector_pb2
from protos.gen.triglot.serving.v1.value_pb2 import Value
from services.serving import fragments, keys, messages, vectors
from services.serving.audited import Merges
from services.serving.catalogue import MAX_USAGE_DAYS, Catalogue
from services.serving.definition_cache import DefinitionCache
from services.serving.definitions import MAX_JOINS, Group, View, store_name
from services.serving.entries import Entry, parsed
from services.serving.loads import Loads
from services.serving.plans import Plan
from services.serving.rows import SEPARATOR, Rows
from services.serving.statistics import Census, Usage

_MAX_GROUPS = 1_000
_USAGE_DAYS = 30


class ServingService(pb_grpc.ServingServiceServicer):
    """See protos/triglot/serving/v1/serving_service.proto."""

    def __init__(
        self,
        *,
        catalogue: Catalogue,
        definitions: DefinitionCache,
        rows: Rows,
        loads: Loads,
        usage: Usage,
        merges: Merges,
        census: Census,
        max_entries: int,
    ) -> None:
        self._catalogue = catalogue
        self._definitions = definitions
        self._rows = rows
        self._loads = loads
        self._usage = usage
        self._merges = merges
        self._census = census
        self._max_entries = max_entries

    # Feature groups

    async def EnsureFeatureGroup(
        self, request: pb.EnsureFeatureGroupRequest, context: Any
    ) -> pb.EnsureFeatureGroupResponse:
        group = messages.group_of(request.feature_group)
        calls.principal().require_store(group.store)
        stored, created = await self._catalogue.ensure_group(group)
        self._definitions.changed(f"g {stored.id}")
        return pb.EnsureFeatureGroupResponse(feature_group=messages.group_message(stored), created=created)

    async def GetFeatureGroup(self, request: pb.GetFeatureGroupRequest, context: Any) -> pb.GetFeatureGroupResponse:
        store = _permitted(request.feature_store)
        group = await self._catalogue.group(store, request.name, request.version)
        return pb.GetFeatureGroupResponse(feature_group=messages.group_message(group))

    async def ListFeatureGroups(
        self, request: pb.ListFeatureGroupsRequest, context: Any
    ) -> pb.ListFeatureGroupsResponse:
        groups = await self._catalogue.groups(_permitted(request.feature_store))
        return pb.ListFeatureGroupsResponse(feature_groups=[messages.group_message(group) for group in groups])

    async def AppendFeatures(self, request: pb.AppendFeaturesRequest, context: Any) -> pb.AppendFeaturesResponse:
        store = _permitted(request.feature_store)
        columns = messages.columns_of(request.features)
        group = await self._catalogue.append_features(store, request.name, request.version, columns)
        self._definitions.changed(f"g {group.id}")
        return pb.AppendFeaturesResponse(feature_group=messages.group_message(group))

    async def GetFeatureGroupStatistics(
        self, request: pb.GetFeatureGroupStatisticsRequest, context: Any
    ) -> pb.GetFeatureGroupStatisticsResponse:
        store = _permitted(request.feature_store)
        group = await self._catalogue.group(store, request.name, request.version)
        [message] = await self._statistics([group], request.days)
        return message

    async def ListFeatureGroupStatistics(
        self, request: pb.ListFeatureGroupStatisticsRequest, context: Any
    ) -> pb.ListFeatureGroupStatisticsResponse:
        if len(request.feature_groups) > _MAX_GROUPS:
            raise errors.InvalidArgument(f"at most {_MAX_GROUPS} groups can be asked for", field="feature_groups")
        named = {(_permitted(each.feature_store), each.name, each.version): each for each in request.feature_groups}
        found = {
            (group.store, group.name, group.version): group for group in await self._catalogue.groups_named([*named])
        }
        groups = [found[name] for name in named if name in found]
        told = await self._statistics(groups, request.days)
        return pb.ListFeatureGroupStatisticsResponse(
            statistics=[
                pb.FeatureGroupStatistics(
                    feature_group=named[group.store, group.name, group.version], statistics=message
                )
                for group, message in zip(groups, told, strict=True)
            ]
        )

    async def _statistics(self, groups: Sequence[Group], days: int) -> list[pb.GetFeatureGroupStatisticsResponse]:
        if not 0 <= days <= MAX_USAGE_DAYS:
            raise errors.InvalidArgument(f"days must be 1 to {MAX_USAGE_DAYS}", field="days")
        used = await self._usage.days(groups, days or _USAGE_DAYS)
        counts = [await self._census.count(group) for group in groups]
        return [messages.statistics_message(count, each) for count, each in zip(counts, used, strict=True)]

    async def DeleteFeatureGroup(
        self, request: pb.DeleteFeatureGroupRequest, context: Any
    ) -> pb.DeleteFeatureGroupResponse:
        group_id = await self._catalogue.delete_group(_permitted(request.feature_store), request.name, request.version)
        self._definitions.changed(f"g {group_id}")
        return pb.DeleteFeatureGroupResponse()

    # Feature views

    async def CreateFeatureView(
        self, request: pb.CreateFeatureViewRequest, context: Any
    ) -> pb.CreateFeatureViewResponse:
        message = request.feature_view
        store = _permitted(message.feature_store)
        if not 1 <= len(message.joins) <= MAX_JOINS:
            raise errors.InvalidArgument(f"a feature view has 1 to {MAX_JOINS} joins", field="joins")
        groups = [
            await self._catalogue.group(_permitted(join.feature_store or store), join.feature_group, join.version)
            for join in message.joins
        ]
        view = View(
            store=store,
            name=message.name,
            version=message.version,
            joins=tuple(messages.join_of(join, group) for join, group in zip(message.joins, groups, strict=True)),
            features=messages.view_features_of(message),
            description=message.description,
        )
        view.check()
        created = await self._catalogue.create_view(view)
        self._definitions.changed(f"v {created.store}/{created.name}/{created.version}")
        return pb.CreateFeatureViewResponse(feature_view=messages.view_message(created))

    async def GetFeatureView(self, request: pb.GetFeatureViewRequest, context: Any) -> pb.GetFeatureViewResponse:
        view = await self._catalogue.view(_permitted(request.feature_store), request.name, request.version)
        return pb.GetFeatureViewResponse(feature_view=messages.view_message(view))

    async def ListFeatureViews(self, request: pb.ListFeatureViewsRequest, context: Any) -> pb.ListFeatureViewsResponse:
        views = await self._catalogue.views(_permitted(request.feature_store))
        return pb.ListFeatureViewsResponse(feature_views=[messages.view_message(view) for view in views])

    async def DeleteFeatureView(
        self, request: pb.DeleteFeatureViewRequest, context: Any
    ) -> pb.DeleteFeatureViewResponse:
        store = _permitted(request.feature_store)
        await self._catalogue.delete_view(store, request.name, request.version)
        self._definitions.changed(f"v {store}/{request.name}/{request.version}")
        return pb.DeleteFeatureViewResponse()

    async def DescribeFeatureView(
        self, request: pb.DescribeFeatureViewRequest, context: Any
    ) -> pb.DescribeFeatureViewResponse:
        plan = await self._plan(request.feature_store, request.name, request.version)
        vectors.require_readable(plan)
        return pb.DescribeFeatureViewResponse(
            required_entries=plan.required,
            accepted_entries=sorted(plan.accepted),
            features=plan.metadata[True, True],
            feature_groups=[messages.group_message(read.group) for read in plan.reads],
        )

    # Rows

    async def WriteRows(self, request: AsyncIterator[pb.WriteRowsRequest], context: Any) -> pb.WriteRowsResponse:
        first = await anext(aiter(request), None)
        if first is None or first.WhichOneof("part") != "header":
            raise errors.InvalidArgument("the first message must hold the header", field="header")
        header = first.header
        # Never from the cache: the rows must go where readers are now.
        group = await self._catalogue.group(_permitted(header.feature_store), header.feature_group, header.version)
        if header.mode == pb.WRITE_MODE_OVERWRITE:
            loaded = await self._loads.overwrite(group, _arrow_streams(request))
        elif header.mode == pb.WRITE_MODE_MERGE:
            loaded = await self._loads.merge(group, _arrow_streams(request))
            self._merges.add(group, loaded.rows_written)
        else:
            raise errors.InvalidArgument("mode must be OVERWRITE or MERGE", field="mode")
        self._definitions.changed(f"g {group.id}")
        self._usage.wrote(group.id, loaded.rows_written)
        return pb.WriteRowsResponse(rows_written=loaded.rows_written, generation=loaded.generation)

    async def ReadRows(self, request: pb.ReadRowsRequest, context: Any) -> pb.ReadRowsResponse:
        store = _permitted(request.feature_store)
        self._require_few(len(request.keys))
        group = await self._definitions.group(store, request.feature_group, request.version)
        found = await self._rows.read(self._row_keys(group, request.keys))
        self._usage.read((group.id,), len(found))
        writers = [fragments.writer(column.type) for column in group.columns]
        response = pb.ReadRowsResponse(features=[messages.feature_message(column) for column in group.columns])
        for row in found:
            message = response.rows.add(found=row is not None)
            if row is not None:
                _add_values(message, writers, _columns(row, len(writers)))
        return response

    async def DeleteRows(self, request: pb.DeleteRowsRequest, context: Any) -> pb.DeleteRowsResponse:
        store = _permitted(request.feature_store)
        self._require_few(len(request.keys))
        # Never from the cache: the rows must go from where readers are now.
        group = await self._catalogue.group(store, request.feature_group, request.version)
        deleted = await self._rows.delete(self._row_keys(group, request.keys))
        await self._catalogue.rows_deleted(group, len(request.keys), deleted)
        return pb.DeleteRowsResponse(rows_deleted=deleted)

    def _row_keys(self, group: Group, row_keys: Sequence[pb.RowKey]) -> list[bytes]:
        prefix = self._rows.prefix(group.row_set or 0)
        return [prefix + _row_key(group, key.values) for key in row_keys]

    # Vectors

    async def GetFeatureVectors(
        self, request: pb.GetFeatureVectorsRequest, context: Any
    ) -> pb.GetFeatureVectorsResponse:
        plan = await self._plan(request.feature_store, request.feature_view, request.version)
        entries = [_fragments_of(entry.keys, "WRONG_KEY_TYPE") for entry in request.entries]
        passed = [_fragments_of(each.values, "INCORRECT_FEATURE_VALUE") for each in request.passed_features]
        options = request.options
        found = await self._read(plan, entries, passed, options, batch=True)
        began = time.perf_counter()
        response = pb.GetFeatureVectorsResponse(metadata=plan.metadata[options.include_names, options.include_types])
        groups = _group_statuses(found) if options.include_detailed_status else [[]] * found.size
        for each, status, statuses in zip(found.fragments(), found.statuses(), groups, strict=True):
            message = response.vectors.add(status=status, groups=statuses)
            if each is not None:
                _add_values(message, plan.writers, each)
        vectors.assembled(began)
        return response

    async def RenderFeatureVectors(
        self, request: pb.RenderFeatureVectorsRequest, context: Any
    ) -> pb.RenderFeatureVectorsResponse:
        plan = await self._plan(request.feature_store, request.feature_view, request.version)
        entries, passed = parsed(request.entries, request.passed_features, plan.usual, batch=request.batch)
        options = request.options
        found = await self._read(plan, entries, passed, options, batch=request.batch)
        began = time.perf_counter()
        response = pb.RenderFeatureVectorsResponse()
        response.statuses.extend(found.statuses())
        if request.join_vectors:
            response.joined = found.joined()
        else:
            response.vectors.extend(found.texts())
        if options.include_detailed_status:
            response.details.extend(vector_pb2.GroupStatuses(groups=groups) for groups in _group_statuses(found))
        if metadata := plan.metadata[options.include_names, options.include_types]:
            response.metadata.extend(metadata)
        vectors.assembled(began)
        return response

    async def Ping(self, request: pb.PingRequest, context: Any) -> pb.PingResponse:
        await self._rows.ping()
        return pb.PingResponse()

    async def _plan(self, feature_store: str, name: str, version: int) -> Plan:
        """A view's plan, once the caller may use all of its feature stores."""
        plan = await self._definitions.plan(_permitted(feature_store), name, version)
        for store in plan.other_stores:
            calls.principal().require_store(store)
        return plan

    async def _read(
        self,
        plan: Plan,
        entries: Sequence[Entry],
        passed: Sequence[Entry | None],
        options: vector_pb2.VectorOptions,
        *,
        batch: bool,
    ) -> vectors.Found:
        if not entries:
            raise errors.InvalidArgument("No primary key is given.", reason="NO_PRIMARY_KEY_GIVEN")
        self._require_few(len(entries))
        if passed and len(passed) != len(entries):
            raise errors.InvalidArgument(
                f"{len(passed)} passed features were given for {len(entries)} entries", reason="PASSED_FEATURES_LENGTH"
            )
        self._usage.read(plan.read_groups, len(entries))
        return await vectors.read(
            plan,
            self._rows,
            entries,
            passed,
            validate=options.validate_passed_features,
            lenient=batch,
        )

    def _require_few(self, count: int) -> None:
        if count > self._max_entries:
            raise errors.InvalidArgument(
                f"{count} entries in one request: at most {self._max_entries} are taken",
                reason="TOO_MANY_ENTRIES",
                limit=self._max_entries,
            )


def _permitted(feature_store: str) -> str:
    """The feature store's name as it is kept, once the caller may use it."""
    store = store_name(feature_store)
    calls.principal().require_store(store)
    return store


async def _arrow_streams(request: AsyncIterator[pb.WriteRowsRequest]) -> AsyncIterator[bytes]:
    """What follows the header. Raises InvalidArgument if it does not end as it must: it may have been cut off."""
    ended = False
    async for message in request:
        part = message.WhichOneof("part")
        if ended or part == "header":
            raise errors.InvalidArgument("a header comes first and once, nothing comes after the end", field="part")
        ended = part == "end"
        if not ended:
            yield message.arrow_stream
    if not ended:
        raise errors.InvalidArgument("the stream stopped before the message `end`: it may be cut off", field="end")


def _row_key(group: Group, values: Sequence[Value]) -> bytes:
    columns = group.key_columns
    if len(values) != len(columns):
        raise errors.InvalidArgument(
            f"a key of {group.name} has {len(columns)} values, not {len(values)}",
            reason="INCORRECT_PRIMARY_KEY",
            name=",".join(group.primary_key),
        )
    parts = []
    for column, value in zip(columns, values, strict=True):
        try:
            parts.append(keys.canonical(column.type)(fragments.of_value(value)))
        except ValueError:
            raise errors.InvalidArgument(
                f"key {column.name} should be a {column.type.hive}",
                reason="WRONG_KEY_TYPE",
                name=column.name,
                type=column.type.hive,
            ) from None
    return keys.join(parts, [column.type for column in columns])


def _columns(row: bytes, count: int) -> list[bytes]:
    """The fragments of a row, one for each of so many columns: it may be older than the last of them."""
    found = row.split(SEPARATOR)[1 : count + 1]
    return found + [fragments.NULL] * (count - len(found))


def _add_values(
    message: pb.Row | vector_pb2.FeatureVector, writers: Sequence[fragments.Writer], found: Sequence[bytes]
) -> None:
    add = message.values.add
    for write, fragment in zip(writers, found, strict=True):
        write(add, fragment)


def _fragments_of(values: Any, reason: str) -> dict[str, bytes]:
    """The JSON texts of typed values. Raises InvalidArgument for one that has none."""
    found = {}
    for name, value in values.items():
        try:
            found[name] = fragments.of_value(value)
        except ValueError as error:
            raise errors.InvalidArgument(f"{name}: {error}", reason=reason, name=name, type="") from None
    return found


def _group_statuses(found: vectors.Found) -> list[list[vector_pb2.GroupStatus]]:
    """Those of each vector."""
    return [
        [
            vector_pb2.GroupStatus(feature_group_id=read.group.id, http_status=status)
            for read, status in zip(found.plan.reads, statuses, strict=True)
        ]
        for statuses in found.read_statuses()
    ]
