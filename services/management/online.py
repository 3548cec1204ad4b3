"""Online rows of feature views: in serving, whose groups they are then, or in a Hologres database.

Make a view's place, drop it, stream rows into it, read rows as JSON texts.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import grpc
import numpy as np
import orjson

from chassis import calls, errors
from chassis.settings import Settings
from protos.gen.triglot.serving.v1 import (
    feature_group_pb2,
    serving_service_pb2,
    serving_service_pb2_grpc,
    value_pb2,
)
from services.management import behaviours, hologres, sequences
from services.management.datasources import Datasources
from services.management.hologres_rows import HologresRows
from services.management.hologres_sequences import HologresSequences
from services.management.publish import (
    GROUP_VERSION,
    OVERWRITE,
    WRITTEN_VERSION,
    arrow_stream,
    features_of,
    group_of,
    time_to_live_seconds,
    versions_of,
)
from services.management.rows import Row
from services.management.sequence_config import config_of
from services.management.settings import ManagementSettings

_ABSENT = ("FEATURE_GROUP_NOT_FOUND", "FEATURE_STORE_NOT_FOUND")
_EPOCH = date(1970, 1, 1)
_HOLOGRES_READS = 8
_GROUPS_IN_A_CALL = 500
_KEYS_IN_A_CALL = 1_000


@dataclass(frozen=True)
class Use:
    """What a view's online rows take, and what was done with them on which days. Nothing before any were written."""

    rows: int = 0
    bytes: int = 0
    disk_bytes: int = 0
    days: Sequence[serving_service_pb2.DailyUse] = ()

    def __add__(self, other: Use) -> Use:
        """Both together, with each day once."""
        days: dict[str, serving_service_pb2.DailyUse] = {}
        for day in (*self.days, *other.days):
            both = days.setdefault(day.date, serving_service_pb2.DailyUse(date=day.date))
            both.rows_read += day.rows_read
            both.rows_written += day.rows_written
        return Use(
            self.rows + other.rows,
            self.bytes + other.bytes,
            self.disk_bytes + other.disk_bytes,
            [days[name] for name in sorted(days)],
        )


class OnlineStore:
    """Where each view's rows are. Raises InvalidArgument for a datasource that may not be connected to."""

    def __init__(self, serving: ServingRows, datasources: Datasources, own: ManagementSettings) -> None:
        self._serving = serving
        self._datasources = datasources
        self._own = own
        # What is asked for at the same time shares this many connections to all Hologres databases.
        self._turn = asyncio.Semaphore(_HOLOGRES_READS)

    async def check(self, view: Row) -> None:
        """Raises InvalidArgument unless rows of the view could be written. Connects to nothing."""
        if hologres.keeps(view):
            (await self._hologres(view)).check()

    async def ensure(self, view: Row) -> None:
        """Make a view's group or table, or confirm it. Raises AlreadyExists if it exists with other columns."""
        if hologres.keeps(view):
            await (await self._target(view)).ensure(view)
        else:
            await self._serving.ensure(group_of(view, self._own.ttl_unit))

    async def append(self, view: Row) -> None:
        """Give a view's group or table the columns that it lacks. Nothing before a publish. Idempotent.

        Raises FailedPrecondition where each behaviour is kept with the fields that the view had.
        """
        if hologres.keeps(view):
            await (await self._target(view)).append(view)
            return
        if view["type"] == sequences.TYPE and config_of(view).only_behaviours:
            raise errors.FailedPrecondition(
                f"behaviours of view {view['name']} are kept with the fields that it has: it can have no more fields"
            )
        await self._serving.append(view)

    async def drop(self, view: Row) -> None:
        """Delete a view's rows. Idempotent."""
        if hologres.keeps(view):
            await (await self._target(view)).drop(view)
        else:
            for version in versions_of(view):
                await self._serving.drop(view, version)

    async def write(
        self,
        view: Row,
        mode: str,
        arrow_streams: AsyncIterator[bytes],
        timeout_seconds: float,
        confirm: Callable[[], Awaitable[None]],
    ) -> int:
        """Write Arrow IPC streams; how many rows were written. If an Overwrite fails, the old rows stay. `confirm` is
        called, and may raise, before rows are shown that are not written batch by batch."""
        if hologres.keeps(view):
            target = await self._target(view)
            return await target.write(view, mode, arrow_streams, timeout_seconds, confirm)
        return await self._serving.write(group_of(view, self._own.ttl_unit), mode, arrow_streams, timeout_seconds)

    async def read(self, view: Row, keys: Sequence[str]) -> list[str]:
        """A JSON object as text for each key that has a row, in the order of the keys. Nothing before a publish."""
        if hologres.keeps(view):
            async with self._turn:
                lifetime = time_to_live_seconds(view, self._own.ttl_unit)
                return await HologresRows(await self._hologres(view)).read(view, keys, lifetime)
        return [row for row in await self._serving.read(view, keys, GROUP_VERSION) if row is not None]

    async def write_behaviours(self, view: Row, mode: str, users: Mapping[Any, Sequence[dict[str, Any]]]) -> None:
        """Write behaviours of a Sequence view beside those that were published: of each user, by columns, from the last
        one to the first. Merge joins them with those that were written before. One call at a time for a view."""
        if hologres.keeps(view):
            await HologresSequences(await self._hologres(view)).write_behaviours(view, mode, users)
            return
        group = group_of(view, self._own.ttl_unit, WRITTEN_VERSION)
        await self._serving.ensure(group)
        shows = sequences.behaviours_of(view)
        kept = {key: [shows.kept(row) for row in rows] for key, rows in users.items()}
        if mode != OVERWRITE.lower():
            keys = [*kept]
            for start in range(0, len(keys), _KEYS_IN_A_CALL):
                some = keys[start : start + _KEYS_IN_A_CALL]
                texts = await self._serving.read(view, [str(key) for key in some], WRITTEN_VERSION)
                for key, text in zip(some, texts, strict=True):
                    kept[key] += [] if text is None else orjson.loads(text)[sequences.BEHAVIOURS]
        stream = _only(arrow_stream(behaviours.batch_of(view, kept)))
        await self._serving.write(group, mode, stream, calls.DEFAULT_TIMEOUT_SECONDS)

    async def behaviours(self, view: Row, keys: Sequence[str]) -> list[tuple[dict[str, Any], list[sequences.Kept]]]:
        """Of each key that has any behaviours what else is in its row, and these: those that were written row by row,
        then those that were published."""
        if hologres.keeps(view):
            async with self._turn:
                return await HologresSequences(await self._hologres(view)).behaviours(view, keys)
        written = await self._serving.read(view, keys, WRITTEN_VERSION)
        published = await self._serving.read(view, keys, GROUP_VERSION)
        found = []
        for pair in zip(written, published, strict=True):
            rows = [orjson.loads(row) for row in pair if row is not None]
            kept = [each for row in rows for each in row.pop(sequences.BEHAVIOURS) or []]
            if rows:
                found.append((rows[0], kept))
        return found

    async def uses(self, views: Sequence[Row], first: date, last: date) -> list[Use]:
        """What each view's rows take now, and their use from one day to another."""
        served = [view for view in views if not hologres.keeps(view)]
        found = dict(zip((view["id"] for view in served), await self._serving.uses(served, first, last), strict=True))
        for view in views:
            if hologres.keeps(view):
                rows, size = await (await self._target(view)).use(view)
                found[view["id"]] = Use(rows, disk_bytes=size)
        return [found[view["id"]] for view in views]

    async def _target(self, view: Row) -> HologresRows | HologresSequences:
        database = await self._hologres(view)
        return HologresSequences(database) if view["type"] == sequences.TYPE else HologresRows(database)

    async def _hologres(self, view: Row) -> hologres.Hologres:
        _, uri, config = await self._datasources.whole(view["online_datasource_id"])
        own = self._own
        return hologres.Hologres(uri, config, own.datasource_hosts, own.check_timeout_seconds, own.publish_batch_rows)


async def _only(item: bytes) -> AsyncIterator[bytes]:
    yield item


class ServingRows:
    """Feature groups and rows in serving."""

    def __init__(self, channel: grpc.aio.Channel, settings: Settings) -> None:
        self._stub = serving_service_pb2_grpc.ServingServiceStub(channel)
        self._metadata = calls.bearer(settings.service_api_key.get_secret_value())

    async def ping(self, timeout_seconds: float) -> None:
        """Raises Unavailable, or DeadlineExceeded, unless rows can be read."""
        await calls.invoke(self._stub.Ping, serving_service_pb2.PingRequest(), timeout_seconds=timeout_seconds)

    async def uses(self, views: Sequence[Row], first: date, last: date) -> list[Use]:
        """What each view's rows take now, and their use from one day to another, asked for in a few calls."""
        found: dict[tuple[str, str], Use] = {}
        days = max(1, (datetime.now(UTC).date() - first).days + 1)
        groups = [(view, version) for view in views for version in versions_of(view)]
        for start in range(0, len(groups), _GROUPS_IN_A_CALL):
            request = serving_service_pb2.ListFeatureGroupStatisticsRequest(
                feature_groups=[
                    serving_service_pb2.FeatureGroupName(
                        feature_store=view["feature_store"], name=view["name"], version=version
                    )
                    for view, version in groups[start : start + _GROUPS_IN_A_CALL]
                ],
                days=days,
            )
            reply = await calls.invoke(self._stub.ListFeatureGroupStatistics, request, metadata=self._metadata)
            for each in reply.statistics:
                told = [day for day in each.statistics.days if first.isoformat() <= day.date <= last.isoformat()]
                key = (each.feature_group.feature_store, each.feature_group.name)
                found[key] = found.get(key, Use()) + Use(each.statistics.rows, each.statistics.bytes, days=told)
        return [found.get((view["feature_store"], view["name"]), Use()) for view in views]

    async def ensure(self, group: feature_group_pb2.FeatureGroup) -> None:
        """Make a group, or confirm it. Raises AlreadyExists if it exists with other columns."""
        request = serving_service_pb2.EnsureFeatureGroupRequest(feature_group=group)
        await calls.invoke(self._stub.EnsureFeatureGroup, request, metadata=self._metadata)

    async def append(self, view: Row) -> None:
        """Give a view's group the columns that it lacks. Nothing before a publish. Idempotent."""
        request = serving_service_pb2.AppendFeaturesRequest(
            feature_store=view["feature_store"],
            name=view["name"],
            version=GROUP_VERSION,
            features=features_of(view),
        )
        try:
            await calls.invoke(self._stub.AppendFeatures, request, metadata=self._metadata)
        except errors.NotFound as error:
            if error.reason not in _ABSENT:
                raise

    async def drop(self, view: Row, version: int) -> None:
        """Delete a view's group and rows. Idempotent."""
        request = serving_service_pb2.DeleteFeatureGroupRequest(
            feature_store=view["feature_store"], name=view["name"], version=version
        )
        try:
            await calls.invoke(self._stub.DeleteFeatureGroup, request, metadata=self._metadata)
        except errors.NotFound as error:
            if error.reason not in _ABSENT:
                raise

    async def write(
        self,
        group: feature_group_pb2.FeatureGroup,
        mode: str,
        arrow_streams: AsyncIterator[bytes],
        timeout_seconds: float,
    ) -> int:
        """Write Arrow IPC streams in one call; how many rows were written. If an Overwrite fails, the old rows stay."""
        wire_mode = (
            serving_service_pb2.WRITE_MODE_OVERWRITE
            if mode == OVERWRITE.lower()
            else serving_service_pb2.WRITE_MODE_MERGE
        )
        header = serving_service_pb2.WriteRowsHeader(
            feature_store=group.feature_store, feature_group=group.name, version=group.version, mode=wire_mode
        )

        async def messages() -> AsyncIterator[serving_service_pb2.WriteRowsRequest]:
            yield serving_service_pb2.WriteRowsRequest(header=header)
            async for stream in arrow_streams:
                yield serving_service_pb2.WriteRowsRequest(arrow_stream=stream)
            yield serving_service_pb2.WriteRowsRequest(end=serving_service_pb2.WriteRowsEnd())

        reply = await calls.invoke(
            self._stub.WriteRows, messages(), metadata=self._metadata, timeout_seconds=timeout_seconds
        )
        return int(reply.rows_written)

    async def read(self, view: Row, keys: Sequence[str], version: int) -> list[str | None]:
        """A JSON object as text for each key, None where there is no row. No row is there before a publish."""
        request = serving_service_pb2.ReadRowsRequest(
            feature_store=view["feature_store"],
            feature_group=view["name"],
            version=version,
            keys=[serving_service_pb2.RowKey(values=[value_pb2.Value(string_value=key)]) for key in keys],
        )
        try:
            reply = await calls.invoke(self._stub.ReadRows, request, metadata=self._metadata)
        except errors.NotFound as error:
            if error.reason in _ABSENT:
                return [None] * len(keys)
            raise
        names = [feature.name for feature in reply.features]
        return [
            orjson.dumps({name: _plain(value) for name, value in zip(names, row.values, strict=True)}).decode()
            if row.found
            else None
            for row in reply.rows
        ]


def _plain(value: value_pb2.Value) -> Any:
    """A value as PAI shows it: timestamps in milliseconds, arrays and maps as JSON, bytes in base64."""
    kind = value.WhichOneof("kind")
    if kind is None or kind == "null_value":
        return None
    content = getattr(value, kind)
    return _CONVERSIONS[kind](content) if kind in _CONVERSIONS else content


_CONVERSIONS: dict[str, Callable[[Any], Any]] = {
    # The shortest text that reads back the same 32 bits.
    "float_value": lambda content: float(str(np.float32(content))),
    "bytes_value": lambda content: base64.b64encode(content).decode(),
    "date_value": lambda content: (_EPOCH + timedelta(days=content)).isoformat(),
    "timestamp_value": lambda content: content // 1000,
    "json_value": orjson.Fragment,
}
