"""The queue's tables are those that the installed pgqueuer asks for, and a job is its last taker's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import asyncpg
import pytest
from pgqueuer.adapters.persistence.schema_ddl import render_install
from pgqueuer.domain.settings import DBSettings

from chassis.postgres import Database
from chassis.settings import Settings
from services.management import queue

_SCHEMA = """
SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
WHERE c.relnamespace = $1::regnamespace AND c.relkind = 'r' AND c.relname LIKE 'task_pgqueuer%'
ORDER BY c.relname, a.attnum
"""
_INDEXES = "SELECT indexname FROM pg_indexes WHERE schemaname = $1 AND tablename LIKE 'task_pgqueuer%' ORDER BY 1"


async def test_the_migration_makes_what_this_pgqueuer_wants(settings: Settings) -> None:
    connection = await asyncpg.connect(settings.postgres_url.get_secret_value())
    try:
        wanted = render_install(DBSettings(db_schema="wanted", prefix=queue.SCHEMA.prefix), create_schema=True)
        await connection.execute(wanted)
        for query in (_SCHEMA, _INDEXES):
            ours, theirs = await connection.fetch(query, "management"), await connection.fetch(query, "wanted")
            assert len(ours) > 5
            assert [str(tuple(row)).replace("management.", "") for row in ours] == [
                str(tuple(row)).replace("wanted.", "") for row in theirs
            ]
    finally:
        await connection.close()


def succeed() -> None:
    return None


def fail() -> None:
    raise ZeroDivisionError


def give_back() -> None:
    raise queue.Retry(0)


@pytest.mark.parametrize("end", [succeed, fail, give_back], ids=lambda end: end.__name__)
async def test_what_becomes_of_a_job_is_its_last_takers_to_say(
    settings: Settings, database: Database, end: Callable[[], None]
) -> None:
    async with database.transaction() as connection:
        await queue.put(connection, 7)
    begun, taken_over, stop = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def handle(task_id: int) -> None:
        assert task_id == 7
        begun.set()
        await taken_over.wait()
        end()

    # Nobody else's silence is long enough for this worker.
    working = asyncio.create_task(queue.work(settings, handle, stop, concurrency=2, lease_seconds=600))
    async with asyncio.timeout(60):
        await begun.wait()
        await database.execute("UPDATE management.task_pgqueuer SET queue_manager_id = gen_random_uuid()")
        successors = await database.fetch("SELECT * FROM management.task_pgqueuer")
        taken_over.set()
        stop.set()
        await working
    assert len(successors) == 1
    assert await database.fetch("SELECT * FROM management.task_pgqueuer") == successors


async def test_a_job_that_was_given_back_comes_again_and_one_that_ended_does_not(
    settings: Settings, database: Database
) -> None:
    async with database.transaction() as connection:
        await queue.put(connection, 7)
    handled: list[int] = []
    twice, stop = asyncio.Event(), asyncio.Event()

    async def handle(task_id: int) -> None:
        handled.append(task_id)
        if len(handled) == 1:
            raise queue.Retry(0)
        twice.set()

    working = asyncio.create_task(queue.work(settings, handle, stop, concurrency=2, lease_seconds=600))
    async with asyncio.timeout(60):
        await twice.wait()
        stop.set()
        await working
    assert handled == [7, 7]
    assert await database.fetch("SELECT * FROM management.task_pgqueuer") == []
