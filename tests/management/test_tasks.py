"""Whose a task is, and that none is lost: the rows of `task` and the queue, without any worker."""

from __future__ import annotations

from typing import Any

import pytest

from chassis import calls
from chassis.postgres import Database
from chassis.principals import Principal
from services.management.tasks import Tasks
from tests.management.conftest import Pai, catalogue


@pytest.fixture
async def task_id(caller: Pai, database: Database) -> int:
    """A queued task."""
    ids = await catalogue(caller)
    view = await caller.made(
        "FeatureView", Name="v", ProjectId=ids["project"], Type="Batch", WriteMethod="Custom", SyncOnlineTable=True
    )
    names = {"name": "v", "project_name": "shop", "feature_store": "shop"}
    row: dict[str, Any] = {"id": int(view), "project_id": 1, **names}
    token = calls.enter(calls.Call("R", principal=Principal("admin", administrator=True)))
    made = await Tasks(database).publish(row, {"mode": "merge"})
    calls.leave(token)
    return made


async def test_only_the_last_attempt_may_speak(database: Database, task_id: int) -> None:
    tasks = Tasks(database)
    first, second = await tasks.begin(task_id), await tasks.begin(task_id)
    assert first is not None
    assert second is not None
    assert (first["attempt"], second["attempt"]) == (1, 2)
    assert not await tasks.advance(first, 5, 10, {})
    assert not await tasks.succeed(first, "done")
    assert not await tasks.fail(first, "failed")
    assert await tasks.advance(second, 1, 10, {})
    assert await tasks.succeed(second, "done")
    assert not await tasks.advance(second, 2, 10, {})
    assert await tasks.begin(task_id) is None
    assert await database.fetchval("SELECT status FROM management.task") == "Success"
    assert await database.fetchval("SELECT last_sync_config FROM management.feature_view") == '{"mode":"merge"}'
    assert await database.fetchval("SELECT count(*) FROM management.task_log WHERE message = 'done'") == 1


async def test_how_many_wait_and_run(database: Database, task_id: int) -> None:
    tasks = Tasks(database)
    assert await tasks.active() == {"Initializing": 1, "Running": 0}
    task = await tasks.begin(task_id)
    assert task is not None
    assert await tasks.active() == {"Initializing": 0, "Running": 1}
    assert await tasks.succeed(task, "done")
    assert await tasks.active() == {"Initializing": 0, "Running": 0}


async def test_a_task_that_fell_out_of_the_queue_is_put_back(database: Database, task_id: int) -> None:
    tasks = Tasks(database)
    assert await tasks.rescue() == []
    await database.execute("DELETE FROM management.task_pgqueuer")
    assert await tasks.rescue() == [task_id]
    assert await database.fetchval("SELECT payload FROM management.task_pgqueuer") == str(task_id).encode()
    assert await tasks.rescue() == []


async def test_stopping_takes_it_out_of_the_queue(caller: Pai, database: Database, task_id: int) -> None:
    await caller.answer("StopTask", TaskId=str(task_id))
    assert await database.fetchval("SELECT count(*) FROM management.task_pgqueuer") == 0
    assert await Tasks(database).begin(task_id) is None
    assert await Tasks(database).rescue() == []


async def test_logs_go_days_after_their_task_ended(caller: Pai, database: Database, task_id: int) -> None:
    tasks = Tasks(database)
    assert await tasks.prune_logs(0) == 0  # it has not ended
    await caller.answer("StopTask", TaskId=str(task_id))
    assert await tasks.prune_logs(7) == 0
    await database.execute("UPDATE management.task SET finished_at = now() - interval '8 days'")
    lines = (await caller.answer("ListTaskLogs", TaskId=str(task_id)))["TotalCount"]
    assert await tasks.prune_logs(9) == 0
    assert await tasks.prune_logs(7) == lines == 2
    assert (await caller.answer("ListTaskLogs", TaskId=str(task_id)))["Logs"] == []
    assert (await caller.answer("GetTask", TaskId=str(task_id)))["Status"] == "Failure"


async def test_a_message_may_quote_anything(caller: Pai, database: Database, task_id: int) -> None:
    tasks = Tasks(database)
    attempt = await tasks.begin(task_id)
    assert attempt is not None
    await tasks.log(task_id, "first\nsecond")
    assert await tasks.fail(attempt, "failed: '\0' is no int" + "!" * 100_000)
    logs = (await caller.answer("ListTaskLogs", TaskId=str(task_id)))["Logs"]
    assert logs[1].endswith("first\ufffdsecond")
    assert "failed: '\ufffd' is no int!" in logs[2]
    assert len(logs[2]) < 3_000
