"""`triglot load`: a table in files becomes the rows of a feature group, through serving's WriteRows.

Files are read a batch ahead of what is sent, and no further: memory does not grow with them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import grpc
import pyarrow as pa
from rich.console import Console

from chassis import datatypes, errors
from protos.gen.triglot.serving.v1 import feature_group_pb2
from protos.gen.triglot.serving.v1 import serving_service_pb2 as pb
from triglot.deployment import Serving
from triglot.files import Table, open_table
from triglot.names import Name
from triglot.terminal import bars

MODES = {"overwrite": pb.WRITE_MODE_OVERWRITE, "merge": pb.WRITE_MODE_MERGE}
T = TypeVar("T")

_LOAD_SECONDS = 24 * 3600.0
_ABSENT = ("FEATURE_GROUP_NOT_FOUND", "FEATURE_STORE_NOT_FOUND")


@dataclass(frozen=True)
class Options:
    """What the command line asks for. With a key the group is made if it is not there."""

    files: Sequence[Path]
    group: Name
    mode: str
    key: Sequence[str] = ()
    event_time: str | None = None
    types: Mapping[str, str] | None = None  # column -> Hive type, instead of what the file suggests
    ttl_seconds: int | None = None


class Loaded(NamedTuple):
    """What a load did."""

    rows: int
    generation: int
    seconds: float
    created: bool

    @property
    def rows_per_second(self) -> int:
        return round(self.rows / self.seconds)


def described(options: Options, loaded: Loaded) -> dict[str, Any]:
    """What was done, for scripts."""
    group = options.group
    return {
        "feature_store": group.store,
        "feature_group": group.name,
        "version": group.version,
        "mode": options.mode,
        "created": loaded.created,
        "rows": loaded.rows,
        "generation": loaded.generation,
        "seconds": round(loaded.seconds, 3),
        "rows_per_second": loaded.rows_per_second,
    }


def told(options: Options, loaded: Loaded) -> str:
    """What was done, for people."""
    made = ", which was made" if loaded.created else ""
    return (
        f"{loaded.rows:,} rows loaded into {options.group}{made}, "
        f"in {loaded.seconds:.1f} s: {loaded.rows_per_second:,} rows/s"
    )


async def load(options: Options, reached: AbstractAsyncContextManager[Serving]) -> Loaded:
    """Load the files. An overwrite that raises, or is cancelled, changed nothing.

    Raises a TriglotError, or WrongSetting for a file that is not there.
    """
    tables = [open_table(path) for path in options.files]
    async with reached as serving:
        target = _Group(serving, options)
        group, created = await target.ensure(tables[0].schema)
        types = {feature.name: datatypes.arrow_type(feature.type) for feature in group.features}
        started = time.monotonic()
        with bars(Console(stderr=True, highlight=False)) as progress:
            bar = progress.add_task(options.group.name, total=_total(tables, 0), unit="rows")

            def sent(rows: int) -> None:
                progress.update(bar, completed=rows, total=_total(tables, rows))

            reply = await target.write(group, _ahead(_streams(tables, types)), sent)
            progress.update(bar, completed=reply.rows_written, total=reply.rows_written)
        return Loaded(reply.rows_written, reply.generation, time.monotonic() - started, created)


class _Group:
    """The feature group that rows are loaded into."""

    def __init__(self, serving: Serving, options: Options) -> None:
        self._serving = serving
        self._options = options

    async def ensure(self, schema: pa.Schema) -> tuple[feature_group_pb2.FeatureGroup, bool]:
        """The group, and whether it was made now. Raises NotFound if it is not there and nobody named its key."""
        name, options = self._options.group, self._options
        request = pb.GetFeatureGroupRequest(feature_store=name.store, name=name.name, version=name.version)
        try:
            found = (await self._serving.call(self._serving.stub.GetFeatureGroup, request)).feature_group
        except errors.NotFound as error:
            if error.reason not in _ABSENT:
                raise
            if not options.key:
                raise errors.NotFound(
                    f"there is no feature group {name}: name its key columns with --key to have it made",
                    reason=error.reason,
                ) from None
            return await self._make(_group_of(options, schema))
        _check_same(found, options)
        if options.ttl_seconds is not None:
            found.time_to_live.seconds = options.ttl_seconds
            return (await self._make(found))[0], False
        return found, False

    async def _make(self, group: feature_group_pb2.FeatureGroup) -> tuple[feature_group_pb2.FeatureGroup, bool]:
        request = pb.EnsureFeatureGroupRequest(feature_group=group)
        reply = await self._serving.call(self._serving.stub.EnsureFeatureGroup, request)
        return reply.feature_group, reply.created

    async def write(
        self,
        group: feature_group_pb2.FeatureGroup,
        streams: AsyncIterator[tuple[int, bytes]],
        sent: Callable[[int], None],
    ) -> pb.WriteRowsResponse:
        """Write streams of so many rows each; `sent` is told how many went out. Without all of them none is shown."""
        header = pb.WriteRowsHeader(
            feature_store=group.feature_store,
            feature_group=group.name,
            version=group.version,
            mode=MODES[self._options.mode],
        )
        call = self._serving.stub.WriteRows(timeout=_LOAD_SECONDS, metadata=self._serving.metadata)
        try:
            # That the other side has ended the call already is said by its answer.
            with suppress(asyncio.InvalidStateError):
                await call.write(pb.WriteRowsRequest(header=header))
                rows = 0
                async for count, stream in streams:
                    await call.write(pb.WriteRowsRequest(arrow_stream=stream))
                    rows += count
                    sent(rows)
                await call.write(pb.WriteRowsRequest(end=pb.WriteRowsEnd()))
                await call.done_writing()
            reply: pb.WriteRowsResponse = await call
        except grpc.aio.AioRpcError as error:
            raise errors.from_rpc(error) from None
        finally:
            call.cancel()
        return reply


def _group_of(options: Options, schema: pa.Schema) -> feature_group_pb2.FeatureGroup:
    """The group that a file suggests. Raises InvalidArgument for a column that is not there or cannot be served."""
    types = dict(options.types or {})
    for column in (*options.key, *types, *([options.event_time] if options.event_time else ())):
        if column not in schema.names:
            raise errors.InvalidArgument(f"{options.files[0]} has no column {column}: it has {', '.join(schema.names)}")
    name = options.group
    group = feature_group_pb2.FeatureGroup(
        feature_store=name.store,
        name=name.name,
        version=name.version,
        primary_key=options.key,
        event_time=options.event_time or "",
    )
    for field in schema:
        try:
            hive = types.get(field.name) or datatypes.hive_of_arrow(field.type)
        except errors.InvalidArgument as error:
            raise errors.InvalidArgument(f"column {field.name}: {error.message}") from None
        group.features.add(name=field.name, type=hive)
    if options.ttl_seconds:
        group.time_to_live.seconds = options.ttl_seconds
    return group


def _check_same(found: feature_group_pb2.FeatureGroup, options: Options) -> None:
    """Raises AlreadyExists for a group that is another one than the options describe."""
    own = {feature.name: feature.type for feature in found.features}
    described = [
        ("--key", list(options.key), list(found.primary_key)),
        ("--event-time", options.event_time, found.event_time),
        *(("--type", f"{name}={hive}", f"{name}={own.get(name)}") for name, hive in (options.types or {}).items()),
    ]
    for option, wanted, there in described:
        if wanted and wanted != there:
            raise errors.AlreadyExists(f"{options.group} exists already, and its {option} is {there}, not {wanted}")


def _total(tables: Sequence[Table], done: int) -> int | None:
    """Rows of all tables, of which so many were read; None if one of them does not know."""
    total = 0
    for table in tables:
        rows = table.total(max(0, done - total))
        if rows is None:
            return None
        total += rows
    return total


def _streams(tables: Sequence[Table], types: Mapping[str, pa.DataType]) -> Iterator[tuple[int, bytes]]:
    """How many rows each batch has, and the Arrow IPC stream that it is sent as."""
    for table in tables:
        for batch in table.batches(types):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, batch.schema) as writer:
                writer.write_batch(batch)
            yield batch.num_rows, sink.getvalue().to_pybytes()


async def _ahead(items: Iterator[T]) -> AsyncIterator[T]:
    """The items, each made in a thread while the one before it is used."""

    def following() -> asyncio.Task[T | None]:
        task = asyncio.create_task(asyncio.to_thread(next, items, None))
        # Who stops in between wants to know of no further error.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    upcoming = following()
    while (item := await upcoming) is not None:
        upcoming = following()
        yield item
