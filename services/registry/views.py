"""What only feature views have: versions, materialized intervals, and a `meta` that is kept in columns.

A view's message is its definition alone. `meta` is put behind it when it is read, so that a materialization writes a
row of its own and two columns, however long the view's definition is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any

import asyncpg
import orjson
from google.protobuf.json_format import MessageToDict

from chassis import errors
from chassis.postgres import Connection
from protos.gen.feast.core.FeatureView_pb2 import FeatureView, FeatureViewState, MaterializationInterval
from services.registry import checks
from services.registry.access import Access
from services.registry.kinds import BY_NAME, FEATURE_VIEW, LABEL_VIEW, ON_DEMAND_FEATURE_VIEW, STREAM_FEATURE_VIEW, Kind
from services.registry.queries import QUERIES

# Of more intervals than these the oldest are joined, so that reading a view has a bound.
KEPT_INTERVALS = 1000

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_STATES = {number: f'"{name}"' for name, number in FeatureViewState.items()}

# Fields besides features and entities whose change makes a new version. Where data lies is not one of them.
_TRANSFORMATION: Mapping[Kind, Sequence[str]] = {
    FEATURE_VIEW: ("source_views", "feature_transformation", "mode"),
    STREAM_FEATURE_VIEW: (
        "user_defined_function",
        "feature_transformation",
        "aggregations",
        "timestamp_field",
        "mode",
    ),
    ON_DEMAND_FEATURE_VIEW: ("sources", "user_defined_function", "feature_transformation", "aggregations", "mode"),
}


# ---- reading ----


def whole_message(kind: Kind, row: asyncpg.Record) -> bytes:
    """A view's message from its row. Protobuf messages are joined by joining their bytes."""
    view: Any = kind.message()
    _set(view.meta.created_timestamp, row["created"])
    _set(view.meta.last_updated_timestamp, row["updated"])
    if row["state"]:
        view.meta.state = row["state"]
    if row["version"]:
        view.meta.current_version_number = row["version"]
    return b"".join((row["content"], view.SerializeToString(), row["intervals"] or b""))


def whole_json(row: asyncpg.Record) -> bytes:
    """A view's JSON from its row. Written by hand, because lists are made of it."""
    meta = f'"createdTimestamp":"{_shown(row["created"])}","lastUpdatedTimestamp":"{_shown(row["updated"])}"'
    if row["intervals"]:
        meta += f',"materializationIntervals":[{row["intervals"]}]'
    if row["version"]:
        meta += f',"currentVersionNumber":{row["version"]}'
    if row["state"]:
        meta += f',"state":{_STATES.get(row["state"], row["state"])}'
    return b'%b,"meta":{%b}}' % (row["content"][:-1], meta.encode())


def _set(time: Any, moment: datetime) -> None:
    """What `FromDatetime` does, several times faster: lists are made of it."""
    since = moment - _EPOCH
    time.seconds = since.days * 86_400 + since.seconds
    time.nanos = since.microseconds * 1000


def _shown(moment: datetime) -> str:
    """A time as protobuf JSON has it, with 0, 3 or 6 digits of a second. PostgreSQL's times come in UTC."""
    digits = "auto" if moment.microsecond % 1000 else "milliseconds" if moment.microsecond else "seconds"
    return f"{moment.isoformat(timespec=digits)[:-6]}Z"


@dataclass(frozen=True)
class Version:
    """What a view was at some time."""

    kind: Kind
    number: int
    id: str
    created: datetime
    active: bool
    proto: bytes  # only where one version was asked for

    @property
    def definition(self) -> Any:
        """The view's message without `meta`."""
        return _definition(self.kind.message.FromString(self.proto))


@dataclass(frozen=True)
class Materialization:
    """That a view was materialized, `number` times after the first."""

    view: str
    number: int
    interval: MaterializationInterval


async def versions(
    access: Access, name: str, project: str, page: int, limit: int
) -> tuple[Sequence[Version], int] | None:
    """One page of a view's versions, oldest first, and how many it has. Page 0: all of them. None: no such view."""
    rows = await access.fetch(QUERIES.get_versions, project, name, limit or None, max(page - 1, 0) * limit)
    if not rows:
        return None
    return [_version(row) for row in rows if row["number"] is not None], rows[0]["total"]


async def version(access: Access, name: str, project: str, number: int) -> Version | None:
    """One version of a view; None: no such view. Raises NotFound for a version that it does not have."""
    row = await access.fetchrow(QUERIES.get_version, project, name, number)
    if row is None:
        return None
    if row["number"] is None:
        raise errors.NotFound(
            f"Version v{number} of feature view {name} does not exist in project {project}",
            reason="FEATURE_VIEW_VERSION_NOT_FOUND",
            name=name,
            project=project,
            version=number,
        )
    return _version(row)


async def materializations(
    access: Access, project: str, name: str, page: int, limit: int
) -> tuple[Sequence[Materialization], int]:
    """One page of what was materialized of a project's feature views, or of one of them, and how much there is."""
    total: int = await access.fetchval(QUERIES.count_materializations, project, name)
    rows = await access.fetch(QUERIES.materializations, project, name, limit, (page - 1) * limit)
    return [Materialization(row["name"], row["position"] - 1, *_intervals(row["proto"])) for row in rows], total


def _version(row: asyncpg.Record) -> Version:
    return Version(BY_NAME[row["kind"]], *(row[name] for name in ("number", "id", "created", "active", "proto")))


# ---- writing ----


@dataclass(frozen=True)
class Change:
    """What an apply makes of a view."""

    definition: Any  # the message without `meta`
    state: int
    version: int | None
    is_new_version: bool
    intervals: Sequence[MaterializationInterval]  # to add


async def change(
    connection: Connection, kind: Kind, sent: Any, stored: asyncpg.Record | None, before: Any
) -> Change | None:
    """What applying `sent` changes about a view, given its row and its definition if it has them; None: nothing.

    An apply takes away neither intervals nor, if it brings none, the state. A pin to a version that exists restores
    that version. FailedPrecondition, reason FEATURE_VIEW_PIN_CONFLICT, if the definition was edited as well.
    """
    wanted = _definition(sent)
    definition, version, is_new = await _versioned(connection, kind, wanted, before, stored)
    state = getattr(sent.meta, "state", 0) or (stored["state"] if stored is not None else 0)
    intervals = _unknown_intervals(kind, sent, stored["intervals"] if stored is not None else None)
    if stored is not None and not intervals and not is_new:
        same = _in_order(definition) == _in_order(before)
        if same and (state, version) == (stored["state"], stored["version"]):
            return None
    return Change(definition, state, version, is_new, intervals)


async def add_intervals(connection: Connection, view_id: int, intervals: Iterable[MaterializationInterval]) -> None:
    """Add intervals behind those of a view. The caller has the project's turn of writing."""
    newest = await connection.fetchval(QUERIES.put_intervals, view_id, *zip(*map(_fragments, intervals), strict=True))
    oldest = await connection.fetch(QUERIES.oldest_intervals, view_id, newest - KEPT_INTERVALS + 1)
    if len(oldest) > 1:
        parts = [_intervals(row["proto"])[0] for row in oldest]
        joined = MaterializationInterval(
            start_time=min((part.start_time for part in parts), key=_moment),
            end_time=max((part.end_time for part in parts), key=_moment),
        )
        await connection.execute(QUERIES.drop_intervals, view_id, oldest[-1]["position"])
        await connection.execute(QUERIES.set_interval, view_id, oldest[-1]["position"], *_fragments(joined))


def rendered_interval(interval: MaterializationInterval) -> str:
    """An interval as JSON."""
    return orjson.dumps(MessageToDict(interval)).decode()


def _definition(view: Any) -> Any:
    definition = type(view)()
    definition.spec.CopyFrom(view.spec)
    return definition


async def _versioned(
    connection: Connection, kind: Kind, wanted: Any, before: Any, stored: asyncpg.Record | None
) -> tuple[Any, int | None, bool]:
    """The definition to store, its version, and whether that is a new one."""
    if kind is LABEL_VIEW:
        return wanted, None, False
    pin = checks.pinned_version(wanted.spec.version)
    if stored is None:
        return wanted, pin or 0, True
    if pin is None:
        if _schema(kind, wanted) == _schema(kind, before):
            return wanted, stored["version"], False
        return wanted, await connection.fetchval(QUERIES.next_version, stored["id"]), True
    found = {row["number"]: row["proto"] for row in await connection.fetch(QUERIES.pin_version, stored["id"], pin)}
    if pin not in found:
        return wanted, pin, True
    known = {number: _definition(kind.message.FromString(proto)) for number, proto in found.items()}
    if all(_unpinned(wanted) != _unpinned(each) for each in (before, *known.values())):
        name = wanted.spec.name
        raise errors.FailedPrecondition(
            f"Cannot pin feature view '{name}' to v{pin} because its definition was edited as well. "
            "Change either the version or the definition.",
            reason="FEATURE_VIEW_PIN_CONFLICT",
            name=name,
            version=pin,
        )
    restored = known[pin]
    restored.spec.version = wanted.spec.version
    return restored, pin, False


def _schema(kind: Kind, view: Any) -> Any:
    """What makes a new version when it changes."""
    spec = _unpinned(view).spec
    parts = [getattr(spec, field) for field in ("features", "entities", "entity_columns", *_TRANSFORMATION[kind])]
    # Maps of messages compare by identity.
    return [dict(part) if isinstance(part, MutableMapping) else part for part in parts]


def _in_order(view: Any) -> Any:
    """A copy without an order among features and entities: the SDK sends those of stream views in any order."""
    copy = _definition(view)
    for field in ("features", "entity_columns"):
        ordered = sorted(getattr(copy.spec, field), key=attrgetter("name"))
        copy.spec.ClearField(field)
        getattr(copy.spec, field).extend(ordered)
    copy.spec.entities.sort()
    return copy


def _unpinned(view: Any) -> Any:
    """A copy without what does not define the view: its version, and functions' bytes where their text is there.

    The same function is not always pickled into the same bytes.
    """
    copy = _in_order(view)
    copy.spec.ClearField("version")
    for owner in (copy.spec, getattr(copy.spec, "feature_transformation", None)):
        function = getattr(owner, "user_defined_function", None)
        if function is not None and function.body_text:
            function.ClearField("body")
    return copy


def _unknown_intervals(kind: Kind, sent: Any, stored: bytes | None) -> Sequence[MaterializationInterval]:
    """The intervals that a message brings and the view does not have."""
    if not kind.materializes:
        return ()
    known = _intervals(stored or b"")
    seen = {each.SerializeToString(deterministic=True) for each in known}
    added = []
    for interval in sent.meta.materialization_intervals:
        key = interval.SerializeToString(deterministic=True)
        if key not in seen and not (len(known) >= KEPT_INTERVALS and _covers(known[0], interval)):
            seen.add(key)
            added.append(interval)
    return added


def _covers(wide: MaterializationInterval, narrow: MaterializationInterval) -> bool:
    starts_within = _moment(wide.start_time) <= _moment(narrow.start_time)
    return starts_within and _moment(narrow.end_time) <= _moment(wide.end_time)


def _moment(time: Any) -> tuple[int, int]:
    return time.seconds, time.nanos


def _intervals(fragments: bytes) -> Sequence[MaterializationInterval]:
    return FeatureView.FromString(fragments).meta.materialization_intervals


def _fragments(interval: MaterializationInterval) -> tuple[bytes, str]:
    """An interval as the bytes that add it to a view's message, and as JSON."""
    view = FeatureView()
    view.meta.materialization_intervals.append(interval)
    return view.SerializeToString(deterministic=True), rendered_interval(interval)
