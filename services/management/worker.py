"""The task worker: takes tasks from the queue and performs them. Any number of processes may run it.

    python -m services.management.worker

A task belongs to the attempt that took it up last. Twice a second an attempt says how far it is; when it hears that the
task is no longer its own (stopped, or given to another worker) it gives up. Overwrite makes running twice safe.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc
import orjson
import pyarrow as pa

from chassis import calls, errors, server
from chassis.client import open_channel
from chassis.postgres import Database, open_database
from chassis.secretbox import SecretBox
from chassis.settings import Settings
from chassis.telemetry import log
from services.management import publish, queue
from services.management.constraints import CONSTRAINTS
from services.management.csv_table import CsvImport
from services.management.datasources import Datasources
from services.management.offline import OfflineStore, readable
from services.management.online import OnlineStore
from services.management.rows import Row
from services.management.secrets import ConfigKeeper
from services.management.settings import ManagementSettings
from services.management.tasks import OFFLINE_TO_ONLINE, WRITE_TABLE, Tasks
from services.management.views import FeatureViews, offline_table_of

REPORT_SECONDS = 0.5
# A task that kills every worker that takes it up is not given to another one for ever.
MAX_TAKEN_UP = 30
# Faults that pass: the same attempt may well succeed a little later.
_PASSING = (errors.Unavailable, errors.DeadlineExceeded, errors.Aborted, errors.ResourceExhausted)


class Lost(Exception):
    """The task is no longer this attempt's."""


@dataclass
class Progress:
    """How far an attempt is."""

    done: int = 0
    total: int = 0
    # What else is shown in the task's RunningConfig.
    running: dict[str, Any] = field(default_factory=dict)


class Worker:
    """Performs tasks, one `perform` each."""

    def __init__(
        self, database: Database, settings: Settings, own: ManagementSettings, online: OnlineStore, stop: asyncio.Event
    ) -> None:
        keeper = ConfigKeeper(SecretBox(settings.secret_key))
        self._tasks = Tasks(database)
        self._datasources = Datasources(database, keeper, OfflineStore(own.offline_roots))
        self._views = FeatureViews(database, self._datasources)
        self._online = online
        self._offline = OfflineStore(own.offline_roots)
        self._own = own
        self._stop = stop
        self._name = f"{socket.gethostname()}:{os.getpid()}"

    async def perform(self, task_id: int) -> None:
        """Perform a task unless it has ended. Raises queue.Retry to get it again."""
        try:
            task = await self._tasks.begin(task_id)
        except errors.TriglotError:
            raise queue.Retry(self._own.retry_seconds) from None
        if task is None:
            return
        token = calls.enter(calls.Call(task["request_id"]))
        try:
            await self._attempt(task)
        finally:
            calls.leave(token)

    async def _attempt(self, task: Row) -> None:
        """One attempt, and what its end means for the task."""
        try:
            if task["attempt"] > MAX_TAKEN_UP:
                await self._tasks.fail(task, f"failed: taken up {MAX_TAKEN_UP} times, and no worker survived it")
                return
            await self._tasks.log(task["id"], f"attempt {task['attempt']} by worker {self._name}")
            message = await self._watched(task)
            await self._tasks.succeed(task, message)
        except Lost:
            log.info("task given up: it is no longer this worker's", task=task["id"])
        except _PASSING as error:
            await self._again(task, error)
        except errors.TriglotError as error:
            await self._tasks.fail(task, f"failed: {error.message}")
        except queue.Retry:
            await self._tasks.log(task["id"], f"worker {self._name} stops; another one goes on")
            raise
        except Exception:
            log.exception("task failed", task=task["id"])
            await self._tasks.fail(task, f"failed: internal error, request id {task['request_id']}")

    async def _again(self, task: Row, error: errors.TriglotError) -> None:
        """Another attempt after a pause, or the end if there were enough. Raises queue.Retry."""
        attempt = task["attempt"]
        try:
            if attempt >= self._own.task_attempts:
                await self._tasks.fail(task, f"failed after {attempt} attempts: {error.message}")
                return
            seconds = self._own.retry_seconds * 2 ** (attempt - 1)
            await self._tasks.log(task["id"], f"attempt {attempt} failed: {error.message}; again in {seconds:g} s")
        except errors.TriglotError:
            seconds = self._own.retry_seconds
        raise queue.Retry(seconds)

    async def _watched(self, task: Row) -> str:
        """Work, and report twice a second. Raises Lost, or queue.Retry when the worker has to stop."""
        progress = Progress()
        work = asyncio.create_task(self._work(task, progress))
        stopping = asyncio.create_task(self._stop.wait())
        try:
            while not work.done():
                await asyncio.wait((work, stopping), timeout=REPORT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if not await self._tasks.advance(task, progress.done, progress.total, progress.running):
                    raise Lost
                if stopping.done() and not work.done():
                    raise queue.Retry(0)
            return work.result()
        finally:
            for pending in (work, stopping):
                pending.cancel()
            await asyncio.wait((work, stopping))

    async def _work(self, task: Row, progress: Progress) -> str:
        """Do what the task is for; what to say when it is done."""
        kinds = {OFFLINE_TO_ONLINE: self._publish, WRITE_TABLE: self._write_table}
        return await kinds[task["type"]](task, progress)

    async def _write_table(self, task: Row, progress: Progress) -> str:
        """Write the rows of a CSV file to the view's offline table."""
        config = orjson.loads(task["config"])
        view = await self._view(task)
        folder = await self._datasources.config(view["offline_datasource_id"])
        name = f"{task['id']}-{task['attempt']}-"
        csv = await asyncio.to_thread(CsvImport, view, config, self._offline, folder, name)
        progress.running |= {"table": csv.table, "mode": config["mode"]}
        steps = csv.steps()
        while (rows := await asyncio.to_thread(next, steps, None)) is not None:
            progress.done += rows
        # A task that was stopped, or given to another worker, shows nothing any more.
        if not await self._tasks.advance(task, progress.done, progress.total, progress.running):
            raise Lost
        await asyncio.to_thread(csv.finish)
        progress.total = progress.done
        return f"done: table {csv.table} has {progress.done} rows in this partition"

    async def _publish(self, task: Row, progress: Progress) -> str:
        """Move the rows of a feature view's table to serving; what to say when it is done."""
        started = time.monotonic()
        config = orjson.loads(task["config"])
        view = await self._view(task)
        group = publish.group_of(view, self._own.ttl_unit)
        progress.running |= {"feature_store": group.feature_store, "feature_group": group.name, "mode": config["mode"]}
        await self._online.ensure(group)
        if not config["offline_to_online"]:
            return "the feature group is there; no rows were asked for"
        source = await self._open(view, config)
        progress.total = await asyncio.to_thread(source.count)
        progress.running |= {"table": source.table.name, "files": len(source.files)}
        await self._tasks.log(
            task["id"],
            f"{config['mode']} {group.feature_store}/{group.name}: {progress.total} rows "
            f"in {len(source.files)} files of table {source.table.name}",
        )
        batches = source.batches(self._own.publish_batch_rows, self._own.publish_batch_bytes)
        streams = _ArrowStreams(batches, progress)
        try:
            written = await self._online.write(group, config["mode"], streams, self._own.publish_timeout_seconds)
        except (errors.TriglotError, asyncio.CancelledError):
            # A source that cannot be read ends the call too; what is wrong with it is the real reason.
            if streams.error is not None:
                raise streams.error from None
            raise
        finally:
            await streams.close()
        seconds = time.monotonic() - started
        progress.total = progress.done
        return f"done: {written} rows in {seconds:.2f} s, {written / max(seconds, 1e-6):,.0f} rows/s"

    async def _view(self, task: Row) -> Row:
        row = await self._views.find(task["object_id"])
        if row is None:
            raise errors.NotFound(f"feature view {task['object_id']} was deleted")
        return row

    async def _open(self, view: Row, config: dict[str, Any]) -> publish.Source:
        datasource_id, table_name = offline_table_of(view)
        folder = await self._datasources.config(datasource_id)
        table = await asyncio.to_thread(self._offline.open, folder, table_name)
        return publish.source_of(view, table, config["partitions"], config["event_time"])


class _ArrowStreams:
    """Batches as Arrow IPC streams, read in a thread. While the receiver works on one, the next one is being read."""

    def __init__(self, batches: Iterator[pa.RecordBatch], progress: Progress) -> None:
        self._batches = batches
        self._progress = progress
        self._handed_out = 0
        self._reading: asyncio.Task[tuple[bytes, int] | None] | None = None
        self.error: errors.TriglotError | None = None

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        # Who asks for the next batch is done with the last one.
        self._progress.done += self._handed_out
        self._handed_out = 0
        try:
            found = await (self._reading or self._read())
        except errors.TriglotError as error:
            self.error = error
            raise
        if found is None:
            raise StopAsyncIteration
        self._reading = self._read()
        text, self._handed_out = found
        return text

    async def close(self) -> None:
        """Let the batch that is being read go."""
        if self._reading is not None:
            await asyncio.wait((self._reading,))
            if not self._reading.cancelled():
                self._reading.exception()

    def _read(self) -> asyncio.Task[tuple[bytes, int] | None]:
        return asyncio.create_task(asyncio.to_thread(self._next))

    def _next(self) -> tuple[bytes, int] | None:
        with readable():
            batch = next(self._batches, None)
        return None if batch is None else (publish.arrow_stream(batch), batch.num_rows)


async def run_worker(
    settings: Settings, own: ManagementSettings, serving_channel: grpc.aio.Channel, stop: asyncio.Event
) -> None:
    """Perform tasks until `stop` is set. Tasks under way go back to the queue then. The channel stays the caller's."""
    database = await open_database(settings, CONSTRAINTS)
    log.info("working", role="worker")
    try:
        worker = Worker(database, settings, own, OnlineStore(serving_channel, settings), stop)
        tending = asyncio.create_task(_tend(Tasks(database), own))
        try:
            await queue.work(
                settings, worker.perform, stop, concurrency=own.worker_tasks, lease_seconds=own.lease_seconds
            )
        finally:
            tending.cancel()
            await asyncio.wait((tending,))
    finally:
        await database.close()


async def _tend(tasks: Tasks, own: ManagementSettings) -> None:
    """Look after tasks that nobody works on."""
    while True:
        try:
            for task_id in await tasks.rescue():
                log.warning("task was in no queue and is queued again", task=task_id)
            if own.task_log_days:
                await tasks.prune_logs(own.task_log_days)
        except errors.TriglotError as error:
            log.warning("tasks cannot be looked through", error=error.message)
        await asyncio.sleep(2 * own.lease_seconds)


async def live(settings: Settings) -> None:
    """Work until cancelled, then give back what is under way."""
    stop = asyncio.Event()
    async with open_channel(settings.serving_target, settings) as channel:
        working = asyncio.create_task(run_worker(settings, ManagementSettings(), channel, stop))
        try:
            await asyncio.shield(working)
        finally:
            stop.set()
            await working


main = partial(server.process, live)

if __name__ == "__main__":
    main()
