"""Applying an object: what that changes of what is stored, and the one statement that writes it."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import asyncpg

from chassis import audit, errors
from chassis.postgres import Connection
from protos.gen.feast.types.Value_pb2 import ValueType
from services.registry import kinds, views
from services.registry.access import Access, Target, check_patterns
from services.registry.kinds import Edge, Kind
from services.registry.queries import QUERIES
from services.registry.rendering import Row, feature_rows, row_of


@dataclass(frozen=True)
class Plan:
    """What an apply will write: the message as it should be stored, but for the times that a write sets."""

    message: Any
    is_new: bool
    edges: Sequence[Edge] | None  # None: those that are stored
    change: views.Change | None = None  # of views


@dataclass(frozen=True)
class Applying:
    """Objects of one kind, applied to one project over one connection."""

    connection: Connection
    access: Access  # over that connection
    kind: Kind
    project: str

    async def apply(self, message: Any, taken: errors.AlreadyExists | None) -> bool:
        """Apply an object as `RegistryStore.apply` says; False: nothing was written, the project's turn is needed.

        That is so if the project is not there, or somebody else wrote to it since it was read, or if there is more to
        write than one statement can and the connection is in no transaction. With the project's turn it is done.
        """
        name = self.kind.spec(message).name
        stored = await self.connection.fetchrow(QUERIES.before_apply, self.project, self.kind.family, name)
        assert stored is not None  # noqa: S101 - the query gives a row, whatever there is
        await self.access.require_to_apply(partial(self._target, message))
        if stored["seen"] is None:
            return False
        there = stored if stored["id"] is not None else None
        if there is not None and taken is not None:
            raise taken
        plan = await self._planned(message, there)
        if plan is None:
            return True
        if plan.change and plan.change.intervals and not self.connection.is_in_transaction():
            return False
        return await self.write(plan, stored["seen"], stored["now"])

    async def _planned(self, message: Any, stored: asyncpg.Record | None) -> Plan | None:
        """What applying a message will write, given the object's row if there is one; None: nothing, it is equal."""
        kind = self.kind
        merged: Any = kind.message()
        merged.CopyFrom(message)
        spec = kind.spec(merged)
        if kind is not kinds.PROJECT:
            spec.project = self.project
        if kind is kinds.FEATURE_SERVICE:
            await self._resolve(spec)
        if stored is not None and stored["kind"] != kind.name:
            raise self._name_taken(spec.name, stored["kind"])
        before: Any = kind.message.FromString(stored["content"]) if stored is not None else None
        change = None
        if kind.is_view:
            change = await views.change(self.connection, kind, merged, stored, before)
            if change is None:
                return None
            if change.definition.spec != spec:
                # The view goes back to an old version: that is what the caller needs to be allowed.
                await self.access.require_to_apply(partial(self._target, change.definition))
            merged = change.definition
        else:
            if kind.timed:
                _take_times(merged, before)
            if merged == before:
                return None
        if kind is kinds.PERMISSION:
            await check_patterns(self.connection, spec.name_patterns)
        edges = list(kinds.edges(kind, merged))
        same_edges = before is not None and edges == list(kinds.edges(kind, before))
        return Plan(merged, is_new=before is None, edges=None if same_edges else edges, change=change)

    async def _resolve(self, service: Any) -> None:
        """Give a feature service's projections the columns of their views.

        NotFound if there is no such view or version that the caller may read: the service would show its columns.
        """
        names = [projection.feature_view_name for projection in service.features]
        rows = {row["name"]: row for row in await self.access.fetch(QUERIES.get_views, self.project, names)}
        for projection in service.features:
            name = projection.feature_view_name
            if name not in rows:
                raise errors.NotFound(
                    f"Feature view '{name}' not found in project '{self.project}'",
                    reason=kinds.FEATURE_VIEW.reason,
                    name=name,
                    project=self.project,
                )
            kind = kinds.BY_NAME[rows[name]["kind"]]
            if not projection.view_type and kind is kinds.LABEL_VIEW:
                projection.view_type = kind.name
            proto = rows[name]["proto"]
            if projection.HasField("version_tag"):
                version = await views.version(self.access, name, self.project, projection.version_tag)
                proto = version.proto if version else proto
            _select_columns(projection, kind.message.FromString(proto))

    async def write(self, plan: Plan, seen: datetime, now: datetime) -> bool:
        """Write an object with all that follows from its definition: its row, its features, its version, its edges.

        Nothing is written, and the answer is False, if the project was written to since it was `seen`.
        """
        kind, message, change = self.kind, plan.message, plan.change
        if kind.timed:
            message.meta.last_updated_timestamp.FromDatetime(now)
            if plan.is_new:
                message.meta.created_timestamp.FromDatetime(now)
        row = row_of(kind, message, self.project)
        feature_kind, features = feature_rows(kind, message, self.project) if kind.is_view else (kinds.FEATURE, [])
        object_id: int | None = await self.connection.fetchval(
            QUERIES.put_object,
            *(self.project, seen, now),
            *(kind.name, kind.family, row.name, row.name.lower(), row.type, row.description, row.owner, row.tags),
            *(row.proto, row.rendered),
            *((change.state, change.version) if change else (0, None)),
            *(bool(change and change.is_new_version), str(uuid.uuid4())),
            *(feature_kind.name, feature_kind.family, *_columns(features)),
            *(plan.edges is not None, *_transposed(plan.edges or ())),
            *audit.caller(),
        )
        if object_id is None:
            return False
        if change and change.intervals:
            await views.add_intervals(self.connection, object_id, change.intervals)
        return True

    def _target(self, message: Any) -> Target:
        """An object as it is judged before it is applied."""
        row = row_of(self.kind, message, self.project)
        return Target(self.kind, self.project, row.name, row.tags, row.rendered)

    def _name_taken(self, name: str, stored: str) -> errors.AlreadyExists:
        kind = self.kind.name
        return errors.AlreadyExists(
            f"Feature view name '{name}' is already used by a {stored}. Cannot register a {kind} with the same name.",
            reason="FEATURE_VIEW_NAME_CONFLICT",
            name=name,
            project=self.project,
        )


def _take_times(message: Any, before: Any) -> None:
    """Times are the registry's own: a message has those of the object that is stored, or none."""
    message.meta.ClearField("created_timestamp")
    message.meta.ClearField("last_updated_timestamp")
    if before is not None:
        message.meta.created_timestamp.CopyFrom(before.meta.created_timestamp)
        message.meta.last_updated_timestamp.CopyFrom(before.meta.last_updated_timestamp)


def _select_columns(projection: Any, view: Any) -> None:
    """Give a projection the columns of its view: all of them if it names none, and their types."""
    if not projection.feature_columns:
        projection.feature_columns.extend(view.spec.features)
    features = {feature.name: feature for feature in view.spec.features}
    for column in projection.feature_columns:
        if column.value_type == ValueType.INVALID:
            if column.name not in features:
                raise errors.InvalidArgument(
                    f"Feature view {view.spec.name} has no feature {column.name}", field="features"
                )
            column.CopyFrom(features[column.name])


def _columns(rows: Sequence[Row]) -> Sequence[Sequence[Any]]:
    return (
        [row.name for row in rows],
        [row.name.lower() for row in rows],
        [row.type for row in rows],
        [row.description for row in rows],
        [row.tags for row in rows],
        [row.proto for row in rows],
        [row.rendered for row in rows],
    )


def _transposed(edges: Sequence[Edge]) -> Sequence[Sequence[str]]:
    return [list(column) for column in zip(*edges, strict=True)] if edges else [[], [], [], []]
