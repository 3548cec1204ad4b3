"""Rows on their way from Arrow to Redis: checked, rendered column by column, written, and shown when complete."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from chassis import errors
from chassis.datatypes import DataType
from chassis.telemetry import log
from services.serving import arrow_streams, columns, fragments, keys
from services.serving.catalogue import Catalogue
from services.serving.definitions import Group
from services.serving.rows import Batch, Rows


@dataclass(frozen=True)
class Loaded:
    """What a load did."""

    rows_written: int
    generation: int


class Loads:
    """Loads of one process. Conversion runs in threads, so that reads go on meanwhile."""

    def __init__(
        self,
        catalogue: Catalogue,
        rows: Rows,
        *,
        batch_rows: int,
        max_stream_bytes: int,
        replicas: int = 0,
        replicas_seconds: float = 0.0,
    ) -> None:
        self._catalogue = catalogue
        self._rows = rows
        self._replicas, self._replicas_seconds = replicas, replicas_seconds
        self._batch_rows = batch_rows
        self._max_stream_bytes = max_stream_bytes

    async def overwrite(self, group: Group, streams: AsyncIterator[bytes]) -> Loaded:
        """Replace all rows, at once and at the end. Whatever fails before, readers keep the old rows.

        `streams`, of Arrow IPC, must raise if they are cut off.

        Raises InvalidArgument for rows that do not fit the group, Aborted if the group was deleted meanwhile,
        Unavailable if Redis may have lost some of the rows.
        """
        row_set = await self._catalogue.begin_load(group)
        try:
            servers = await self._rows.servers()
            written = 0
            async for rows in self._encoded(group, row_set, streams):
                await self._catalogue.touch_load(row_set)
                written += await self._write(group, rows)
            await self._require_kept(servers)
            return Loaded(written, await self._catalogue.show_load(group, row_set, written))
        except BaseException:
            await asyncio.shield(self._discard(row_set))
            raise

    async def merge(self, group: Group, streams: AsyncIterator[bytes]) -> Loaded:
        """Write rows into those that readers see, batch by batch; those of a batch before a wrong one stay written.

        Raises InvalidArgument and Unavailable as above, Aborted if an overwrite or a deletion took the rows away
        meanwhile.
        """
        if group.row_set is None:
            raise errors.Aborted("the feature group was deleted")
        servers = await self._rows.servers()
        written = 0
        async for rows in self._encoded(group, group.row_set, streams):
            await self._catalogue.require_live(group.row_set)
            written += await self._write(group, rows)
        await self._require_kept(servers)
        await self._catalogue.require_live(group.row_set)
        return Loaded(written, group.generation)

    async def _require_kept(self, servers: frozenset[str]) -> None:
        """Raises Unavailable unless the servers that took the rows still have them, and enough replicas as well."""
        await self._rows.require_replicas(self._replicas, self._replicas_seconds)
        await self._rows.require_same(servers)

    async def _batches(self, streams: AsyncIterator[bytes]) -> AsyncIterator[pa.RecordBatch]:
        """Batches of bounded size. Opening a stream takes a thread, so that reads go on meanwhile."""
        async for stream in streams:
            opened = arrow_streams.batches(stream, self._max_stream_bytes)
            while (batch := await asyncio.to_thread(next, opened, None)) is not None:
                for start in range(0, batch.num_rows, self._batch_rows):
                    yield batch.slice(start, self._batch_rows)

    async def _encoded(self, group: Group, row_set: int, streams: AsyncIterator[bytes]) -> AsyncIterator[Batch]:
        """What is to be written, each batch made in a thread while the one before it is written."""
        prefix = self._rows.prefix(row_set)

        async def encoded() -> AsyncIterator[Batch]:
            async for batch in self._batches(streams):
                yield await asyncio.to_thread(encode, group, batch, prefix)

        batches = encoded()
        upcoming = asyncio.ensure_future(anext(batches, None))
        try:
            while (batch := await upcoming) is not None:
                upcoming = asyncio.ensure_future(anext(batches, None))
                yield batch
        finally:
            upcoming.cancel()
            await asyncio.gather(upcoming, return_exceptions=True)

    async def _write(self, group: Group, batch: Batch) -> int:
        write = self._rows.write_newer if group.event_time else self._rows.write
        await write(batch, group.time_to_live_ms)
        return len(batch.keys)

    async def _discard(self, row_set: int) -> None:
        """Have half a load removed. If even that fails, the sweeper finds it abandoned."""
        try:
            await self._catalogue.retire(row_set)
        except errors.TriglotError as error:
            log.warning("a broken load will be removed later", row_set=row_set, error=error.message)


def encode(group: Group, batch: pa.RecordBatch, prefix: bytes) -> Batch:
    """Redis keys and values of a batch of rows. Raises InvalidArgument, naming the column that does not fit."""
    converted = columns.converted(group, batch)
    for name in group.primary_key:
        if converted[group.positions[name]].null_count:
            raise errors.InvalidArgument(f"key column {name} holds a null", field="arrow_stream", name=name)
    key_types = [column.type for column in group.key_columns]
    key_texts = keys.of_columns([converted[group.positions[name]] for name in group.primary_key], key_types)
    parts = [_event_times(group, converted)]
    parts += [
        _rendered(column.name, array, column.type) for column, array in zip(group.columns, converted, strict=True)
    ]
    return Batch(pc.binary_join_element_wise(prefix.decode(), key_texts, ""), parts)


def _rendered(name: str, array: pa.Array, type_: DataType) -> pa.StringArray:
    try:
        return fragments.render(array, type_)
    except ValueError as error:
        raise errors.InvalidArgument(f"column {name}: {_line(error)}", field="arrow_stream", name=name) from None


def _event_times(group: Group, converted: list[pa.Array]) -> pa.StringArray:
    """What each row's age is compared by: a number that rises with time, or nothing."""
    if not group.event_time:
        return pa.repeat(pa.scalar(""), len(converted[0]))
    column = converted[group.positions[group.event_time]]
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    elif pa.types.is_date(column.type):
        column = column.cast(pa.int32())
    return pc.fill_null(column.cast(pa.string()), "")


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
