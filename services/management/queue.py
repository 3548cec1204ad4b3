"""The queue of tasks, kept by pgqueuer in this schema (docs/adr/0002): put in, take out, work on until done.

Knows numbers of tasks, nothing of what they are. A number is put in inside the caller's own transaction.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import cast

import asyncpg
from pgqueuer.adapters.persistence import qb
from pgqueuer.db import AsyncpgDriver, AsyncpgPoolDriver
from pgqueuer.domain.errors import PgqException, RetryRequested
from pgqueuer.domain.settings import DBSettings
from pgqueuer.domain.types import JOB_STATUS, JobId
from pgqueuer.models import Job, TracebackRecord
from pgqueuer.ports.driver import Driver
from pgqueuer.qm import QueueManager
from pgqueuer.queries import Queries

from chassis.postgres import Connection
from chassis.settings import Settings
from chassis.telemetry import log
from services.management.rows import QUERIES

ENTRYPOINT = "task"
# Spelled out, so that no variable of the environment can lead the queue elsewhere.
SCHEMA = DBSettings(db_schema="management", prefix="task_")
_POLL = timedelta(seconds=1)
_PAUSE_SECONDS = 1.0


class Retry(Exception):
    """What a handler raises to get its task again after `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"again in {seconds} s")
        self.seconds = seconds


async def put(connection: Connection, task_id: int) -> int:
    """Queue a task in the transaction of `connection`; the job's number."""
    [job_id] = await _inside(connection).enqueue(ENTRYPOINT, str(task_id).encode())
    return int(job_id)


async def remove(connection: Connection, job_id: int) -> None:
    """Take a job out, in the transaction of `connection`. A worker that has it is told so. Idempotent."""
    await _inside(connection).mark_job_as_cancelled([JobId(job_id)])


async def work(
    settings: Settings,
    handle: Callable[[int], Awaitable[None]],
    stop: asyncio.Event,
    *,
    concurrency: int,
    lease_seconds: float,
) -> None:
    """Hand task numbers to `handle` until `stop` is set, then wait for those under way.

    A task whose worker has been silent for `lease_seconds` is taken over; how its handler ends is then of no
    consequence. After a fault of the database it goes on as soon as the database is back.
    """
    while not stop.is_set():
        try:
            await _work_once(settings, handle, stop, concurrency, lease_seconds)
        except (PgqException, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
            log.warning("the queue cannot be reached", error=repr(error))
            await asyncio.sleep(_PAUSE_SECONDS)


async def _work_once(
    settings: Settings,
    handle: Callable[[int], Awaitable[None]],
    stop: asyncio.Event,
    concurrency: int,
    lease_seconds: float,
) -> None:
    async with asyncpg.create_pool(
        settings.direct_postgres[0],
        min_size=2,
        max_size=3,
        command_timeout=settings.postgres_timeout_seconds,
        server_settings={"application_name": "triglot-worker"},
    ) as pool:
        manager = QueueManager(_OwnJobs(pool, settings.postgres_timeout_seconds), channel=SCHEMA.channel)

        async def entry(job: Job) -> None:
            try:
                await handle(int(job.payload or b"0"))
            except Retry as retry:
                raise RetryRequested(timedelta(seconds=retry.seconds)) from None

        manager.entrypoint(ENTRYPOINT)(entry)
        stopping = asyncio.create_task(_forward(stop, manager.shutdown))
        try:
            await manager.run(
                dequeue_timeout=_POLL,
                batch_size=1,
                max_concurrent_tasks=concurrency,
                heartbeat_timeout=timedelta(seconds=lease_seconds),
                shutdown_on_listener_failure=True,
            )
        finally:
            stopping.cancel()


async def _forward(stop: asyncio.Event, shutdown: asyncio.Event) -> None:
    await stop.wait()
    shutdown.set()


class _Queries(Queries):
    """pgqueuer's statements, in this schema."""

    def __init__(self, driver: Driver) -> None:
        super().__init__(
            driver,
            qbe=qb.QueryBuilderEnvironment(SCHEMA),
            qbq=qb.QueryQueueBuilder(SCHEMA),
            qbs=qb.QuerySchedulerBuilder(SCHEMA),
        )


class _OwnJobs(_Queries):
    """What a worker says of its jobs, unless another one has taken them over.

    pgqueuer does not ask whose a job is by now: a worker that was frozen for a while would take the job away from its
    successor.
    """

    def __init__(self, pool: asyncpg.Pool, timeout_seconds: float) -> None:
        super().__init__(AsyncpgPoolDriver(pool))
        self._pool = pool
        self._timeout_seconds = timeout_seconds

    async def log_jobs(self, job_status: list[tuple[Job, JOB_STATUS, TracebackRecord | None]]) -> None:
        """These jobs have ended."""
        async with self._owned([job for job, _, _ in job_status]) as (owned, queries):
            await queries.log_jobs([ended for ended in job_status if ended[0].id in owned])

    async def retry_job(self, job: Job, delay: timedelta, traceback_record: TracebackRecord | None) -> None:
        """This job is to be given out again."""
        async with self._owned([job]) as (owned, queries):
            if job.id in owned:
                await queries.retry_job(job, delay, traceback_record)

    @asynccontextmanager
    async def _owned(self, jobs: Sequence[Job]) -> AsyncIterator[tuple[set[int], Queries]]:
        """Those that are still with the worker that got them, and statements for as long as nobody can take them."""
        async with self._pool.acquire(timeout=self._timeout_seconds) as connection, connection.transaction():
            rows = await connection.fetch(
                QUERIES.lock_own_jobs, [job.id for job in jobs], [job.queue_manager_id for job in jobs]
            )
            yield {row["id"] for row in rows}, _inside(connection)


def _inside(connection: Connection) -> Queries:
    # A connection of a pool is a proxy of one, which mypy cannot know.
    return _Queries(AsyncpgDriver(cast(asyncpg.Connection, connection)))
