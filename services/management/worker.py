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
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import grpc
import orjson
import prometheus_client
import pyarrow as pa

from chassis import calls, errors, server
from chassis.client import open_channel
from chassis.postgres import Database, open_database
from chassis.readiness import board
from chassis.settings import Settings
from chassis.telemetry import Counter, log
from services.management import downloads, publish, queue, scratch, sequences, training
from services.management.constraints import CONSTRAINTS
from services.management.csv_table import CsvImport
from services.management.datasources import Datasources
from services.management.life_cycle import LifeCycle
from services.management.models import ModelFeatures, training_set_table_of
from services.management.offline import NewFile, OfflineStore, readable
from services.management.online import OnlineStore, ServingRows
from services.management.rows import Row
from services.management.secrets import ConfigKeeper
from services.management.settings import ManagementSettings
from services.management.tasks import EXPORT_TRAINING_SET, OFFLINE_TO_ONLINE, WRITE_TABLE, Tasks
from services.management.training_set import TrainingSet
from services.management.views import FeatureViews, offline_table_of
from services.management.workspace import Workspace

T = TypeVar("T")

_ended = Counter(
    "triglot_tasks_attempts",
    "Attempts at tasks that ended in this worker: success, failure, again (after a pause), lost (stopped, or another "
    "worker's by now), handed over (this worker stops).",
    ("type", "outcome"),
)
_rows = Counter("triglot_tasks_rows", "Rows that tasks of this worker read, wrote or moved.", ("type",))
_active = prometheus_client.Gauge(
    "triglot_tasks_active", "Tasks that wait (Initializing) or are worked on (Running), of all workers.", ("status",)
)

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
    _tenths_told: int = 0

    def line(self) -> str:
        """What the log has to be told; empty: nothing new. A line for each tenth of the rows, but for the last one."""
        tenths = 10 * self.done // self.total if self.total else 0
        if tenths <= self._tenths_told or tenths >= 10:
            return ""
        self._tenths_told = tenths
        return f"{self.done} of {self.total} rows"


class Worker:
    """Performs tasks, one `perform` each."""

    def __init__(
        self, database: Database, settings: Settings, own: ManagementSettings, serving: ServingRows, stop: asyncio.Event
    ) -> None:
        keeper = ConfigKeeper(settings.secret_box)
        self._tasks = Tasks(database)
        self._datasources = Datasources(database, keeper, own)
        self._views = FeatureViews(database, self._datasources)
        self._models = ModelFeatures(database)
        self._online = OnlineStore(serving, self._datasources, own)
        self._offline = OfflineStore(own.offline_roots)
        self._life_cycle = LifeCycle(database, self._offline)
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
        outcome = "failure"
        try:
            if task["attempt"] > MAX_TAKEN_UP:
                await self._tasks.fail(task, f"failed: taken up {MAX_TAKEN_UP} times, and no worker survived it")
                return
            await self._tasks.log(task["id"], f"attempt {task['attempt']} by worker {self._name}")
            message = await self._watched(task)
            await self._tasks.succeed(task, message)
            outcome = "success"
        except Lost:
            outcome = "lost"
            log.info("task given up: it is no longer this worker's", task=task["id"])
        except _PASSING as error:
            outcome = "again"
            await self._again(task, error)
            outcome = "failure"
        except errors.TriglotError as error:
            await self._tasks.fail(task, f"failed: {error.message}")
        except queue.Retry:
            outcome = "handed over"
            await self._tasks.log(task["id"], f"worker {self._name} stops; another one goes on")
            raise
        except Exception:
            log.exception("task failed", task=task["id"])
            await self._tasks.fail(task, f"failed: internal error, request id {task['request_id']}")
        finally:
            _ended.count(task["type"], outcome).add()

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
        progress, counted = Progress(), 0
        work = asyncio.create_task(self._work(task, progress))
        stopping = asyncio.create_task(self._stop.wait())
        try:
            while not work.done():
                await asyncio.wait((work, stopping), timeout=REPORT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                _rows.count(task["type"]).add(max(0, progress.done - counted))
                counted = progress.done
                if not await self._tasks.advance(task, progress.done, progress.total, progress.running):
                    raise Lost
                if line := progress.line():
                    await self._tasks.log(task["id"], line)
                if stopping.done() and not work.done():
                    raise queue.Retry(0)
            return work.result()
        finally:
            for pending in (work, stopping):
                pending.cancel()
            await asyncio.wait((work, stopping))

    async def _work(self, task: Row, progress: Progress) -> str:
        """Do what the task is for; what to say when it is done."""
        kinds = {
            OFFLINE_TO_ONLINE: self._publish,
            WRITE_TABLE: self._write_table,
            EXPORT_TRAINING_SET: self._export,
        }
        return await kinds[task["type"]](task, progress)

    async def _write_table(self, task: Row, progress: Progress) -> str:
        """Write the rows of a CSV file to the view's offline table."""
        config = orjson.loads(task["config"])
        view = await self._view(task)
        _, table_name = offline_table_of(view)
        table, folder = await self._datasources.writable(
            view["offline_datasource_id"], table_name, config["partitions"]
        )
        progress.running |= {"table": table_name, "mode": config["mode"]}
        with scratch.folder(self._own.scratch_dir) as spare:
            source = await self._source_file(task, config["path"], spare)
            target = NewFile(folder, task["id"], task["attempt"])
            csv = await asyncio.to_thread(CsvImport, view, config, source, target)
            steps = csv.steps()
            while (rows := await asyncio.to_thread(next, steps, None)) is not None:
                progress.done += rows
        await self._still_ours(task, progress)
        await self._life_cycle.show(target, table, view["offline_life_cycle"])
        progress.total = progress.done
        return f"done: table {table_name} has {progress.done} rows in this partition"

    async def _source_file(self, task: Row, path: str, spare: Path) -> Path:
        """The file to read, fetched first if it is elsewhere."""
        if not downloads.is_url(path):
            return await asyncio.to_thread(self._offline.file, path)
        # Not the whole URL: what signs it may stand in it.
        await self._tasks.log(task["id"], f"fetching from {urlsplit(path).hostname}")
        file, stop = spare / "rows.csv", downloads.Stop()
        limits = downloads.limits_of(self._own)
        await _stoppable(partial(downloads.fetch, path, limits, file, stop), stop.set)
        return file

    async def _export(self, task: Row, progress: Progress) -> str:
        """Make a training set of a model feature."""
        started = time.monotonic()
        config = orjson.loads(task["config"])
        model, views, selected = await self._models.found(task["object_id"])
        plan = training.plan_of(model, views, selected, config, self._own.ttl_unit)
        partition = training.partition_of(model, config)
        name = training_set_table_of(model)
        table, folder = await self._datasources.writable(model["offline_datasource_id"], name, partition)
        progress.running |= {"table": name, "partitions": partition, "views": [join.name for join in plan.joins]}
        if config["real_time_iterate_interval"]:
            await self._tasks.log(
                task["id"],
                "RealTimeIterateInterval has no effect: tables are read as they are, and no stream is polled",
            )
        with scratch.folder(self._own.scratch_dir) as spare:
            copies = spare / "copies"
            copies.mkdir()
            tables = []
            for reading in plan.readings:
                source = await self._datasources.tables_of(reading.datasource_id)
                columns = [*reading.columns, *reading.partitions]
                copied = await source.copy(reading.table, columns, reading.partitions, copies)
                tables.append(await asyncio.to_thread(training.chosen, reading, copied))
            made = TrainingSet(
                plan=plan,
                tables=tables,
                target=NewFile(folder, task["id"], task["attempt"]),
                workspace=self._workspace(spare),
                task_id=task["id"],
            )
            steps = made.steps()
            while (done := await _stoppable(partial(next, steps, None), made.workspace.interrupt)) is not None:
                # Each row goes through every view, and is written.
                progress.total = made.rows * (len(plan.joins) + 1)
                progress.done = min(made.passed * made.rows, progress.total)
                await self._tasks.log(task["id"], done)
            await self._still_ours(task, progress)
            await self._life_cycle.show(made.target, table, model["offline_life_cycle"])
        progress.done = progress.total = made.rows
        seconds = time.monotonic() - started
        return f"done: {made.rows} rows in table {name} in {seconds:.2f} s"

    def _workspace(self, folder: Path) -> Workspace:
        return Workspace(folder, self._own.training_memory_mb, self._own.training_threads)

    async def _publish(self, task: Row, progress: Progress) -> str:
        """Move the rows of a feature view's table to serving; what to say when it is done."""
        started = time.monotonic()
        config = orjson.loads(task["config"])
        view = await self._view(task)
        where = f"{view['feature_store']}/{view['name']}"
        progress.running |= {
            "feature_store": view["feature_store"], "feature_group": view["name"], "mode": config["mode"]
        }  # fmt: skip
        await self._online.ensure(view)
        if not config["offline_to_online"]:
            return "the feature group is there; no rows were asked for"
        with scratch.folder(self._own.scratch_dir) as folder:
            source = await self._open(view, config, folder)
            progress.total = await asyncio.to_thread(source.count)
            progress.running |= {"table": source.table.name, "files": len(source.files)}
            await self._tasks.log(
                task["id"],
                f"{config['mode']} {where}: {progress.total} rows "
                f"in {len(source.files)} files of table {source.table.name}",
            )
            written = await self._written(task, progress, view, config, source)
        seconds = time.monotonic() - started
        progress.total = progress.done
        return f"done: {written} rows in {seconds:.2f} s, {written / max(seconds, 1e-6):,.0f} rows/s"

    async def _written(
        self, task: Row, progress: Progress, view: Row, config: dict[str, Any], source: publish.Source
    ) -> int:
        """Send the rows of a source to where the view's rows are; how many there were."""
        batches = source.batches(self._own.publish_batch_rows, self._own.publish_batch_bytes)
        streams = _ArrowStreams(batches, progress)
        try:
            return await self._online.write(
                view,
                config["mode"],
                streams,
                self._own.publish_timeout_seconds,
                partial(self._still_ours, task, progress),
            )
        except (errors.TriglotError, asyncio.CancelledError):
            # A source that cannot be read ends the call too; what is wrong with it is the real reason.
            if streams.error is not None:
                raise streams.error from None
            raise
        finally:
            await streams.close()

    async def _still_ours(self, task: Row, progress: Progress) -> None:
        """Raises Lost for a task that was stopped, or given to another worker: it shows nothing any more."""
        if not await self._tasks.advance(task, progress.done, progress.total, progress.running):
            raise Lost

    async def _view(self, task: Row) -> Row:
        row = await self._views.find(task["object_id"])
        if row is None:
            raise errors.NotFound(f"feature view {task['object_id']} was deleted")
        return row

    async def _open(self, view: Row, config: dict[str, Any], folder: Path) -> publish.Source:
        datasource_id, name = offline_table_of(view)
        partitions, columns = config["partitions"], publish.read_columns_of(view)
        tables = await self._datasources.tables_of(datasource_id)
        table = await tables.copy(name, [*columns, *partitions], partitions, folder)
        if view["type"] == publish.SEQUENCE:
            publish.check_source(view, table, partitions)
            chosen = replace(table, files=publish.chosen_files(table, partitions))
            workspace, file = self._workspace(folder), folder / "behaviours.parquet"
            work = partial(sequences.gathered, view, chosen, partitions, workspace, file)
            table, partitions = await _stoppable(work, workspace.interrupt), {}
        return publish.source_of(view, table, partitions, config["event_time"])


async def _stoppable(work: Callable[[], T], stop: Callable[[], None]) -> T:
    """What `work` gives, in a thread. Cancelled, it calls `stop` and waits for the thread to end."""
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        stop()
        await asyncio.wait((running,))
        if not running.cancelled():
            running.exception()
        raise


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
        worker = Worker(database, settings, own, ServingRows(serving_channel, settings), stop)
        tending = asyncio.create_task(_tend(Tasks(database), LifeCycle(database, OfflineStore(own.offline_roots)), own))
        try:
            async with board.serving({"postgres": database.ping}):
                await queue.work(
                    settings, worker.perform, stop, concurrency=own.worker_tasks, lease_seconds=own.lease_seconds
                )
        finally:
            tending.cancel()
            await asyncio.wait((tending,))
    finally:
        await database.close()


async def _tend(tasks: Tasks, life_cycle: LifeCycle, own: ManagementSettings) -> None:
    """Look after tasks that nobody works on, and after what has been kept long enough."""
    while True:
        try:
            for status, number in (await tasks.active()).items():
                _active.labels(status).set(number)
            for task_id in await tasks.rescue():
                log.warning("task was in no queue and is queued again", task=task_id)
            if own.task_log_days:
                await tasks.prune_logs(own.task_log_days)
            for path in await life_cycle.remove_expired(datetime.now(UTC)):
                log.info("removed: kept as long as its project says", path=str(path))
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
