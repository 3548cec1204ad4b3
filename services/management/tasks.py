"""Tasks: their rows, their log, their place in the queue. What a worker may still say about one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from chassis import calls, errors
from chassis.postgres import Connection, Database
from protos.gen.triglot.management.v1 import task_pb2 as pb
from services.management import audited, queue
from services.management.inputs import (
    fetch_page,
    not_found,
    number,
    number_or_none,
    numbers,
    one_of,
    page_of,
    visible_stores,
)
from services.management.projects import permitted
from services.management.rows import QUERIES, Row, locked, timestamp

OFFLINE_TO_ONLINE, WRITE_TABLE, EXPORT_TRAINING_SET = "OfflineToOnline", "WriteTable", "ExportTrainingSet"
FEATURE_VIEW, MODEL_FEATURE = "FeatureView", "ModelFeature"
_MAX_LINE = 2_000
STATUSES = ("Initializing", "Running", "Success", "Failure")


def at_work(task_id: int, resource: str = FEATURE_VIEW) -> errors.FailedPrecondition:
    """The error for what has to wait until a task has ended."""
    return errors.FailedPrecondition(
        f"task {task_id} is at work on the {resource}; wait for it, or stop it",
        reason="DEPENDENCY_EXISTS",
        resource=resource,
        dependents="a task",
    )


class Tasks:
    """Rows of `task` and `task_log`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def publish(self, view: Row, config: Mapping[str, Any]) -> int:
        """Make and queue, in one transaction, the task that publishes a view; its id."""
        async with self._database.transaction() as connection:
            return await self._make(connection, OFFLINE_TO_ONLINE, view, config)

    async def write_table(self, view: Row, config: Mapping[str, Any]) -> int:
        """The same for the task that writes a view's offline table. FailedPrecondition while another task is at work
        on the view: what two of them merged into one table would be one's or the other's."""
        async with self._database.transaction() as connection:
            row = await locked(connection, QUERIES.lock_feature_view, QUERIES.locked_feature_view, view["id"])
            if row is None:
                raise not_found("FeatureView", view["id"])
            if row["active_task"] is not None:
                raise at_work(row["active_task"])
            return await self._make(connection, WRITE_TABLE, view, config)

    async def export(self, model: Row, config: Mapping[str, Any]) -> int:
        """The same for the task that makes a training set of a model feature. Raises NotFound."""
        async with self._database.transaction() as connection:
            if await connection.fetchrow(QUERIES.lock_model_feature, model["id"]) is None:
                raise not_found(MODEL_FEATURE, model["id"])
            return await self._make(connection, EXPORT_TRAINING_SET, model, config, MODEL_FEATURE)

    async def _make(
        self,
        connection: Connection,
        kind: str,
        on: Row,
        config: Mapping[str, Any],
        object_type: str = FEATURE_VIEW,
    ) -> int:
        made: int = await connection.fetchval(
            QUERIES.insert_task,
            kind,
            object_type,
            on["id"],
            on["project_id"],
            on["project_name"],
            on["feature_store"],
            on["id"] if object_type == FEATURE_VIEW else None,
            orjson.dumps(config).decode(),
            calls.current().request_id,
            calls.principal().name,
        )
        await connection.execute(QUERIES.insert_task_log, made, f"asked for by {calls.principal().name}")
        await connection.execute(QUERIES.place_task, made, await queue.put(connection, made))
        # Without the path: it may be a URL with what signs it.
        shown = {name: value for name, value in config.items() if name != "path"}
        about = {"type": kind, "object_type": object_type, "object": on["name"], "config": shown}
        await audited.LOG.record(
            connection,
            "create",
            audited.TASK,
            str(made),
            project=on["project_name"],
            after=orjson.dumps(about).decode(),
        )
        return made

    async def get(self, key: str) -> pb.Task:
        """Raises NotFound, PermissionDenied."""
        return _shown(await self._row(key))

    async def page(self, request: pb.ListTasksRequest) -> tuple[int, list[pb.TaskSummary]]:
        """The count of all pages, and the page asked for, newest first."""
        page = page_of(request)
        total, rows = await fetch_page(
            self._database,
            QUERIES.list_tasks,
            visible_stores(),
            numbers("TaskIds", request.task_ids),
            number_or_none("ProjectId", request.project_id),
            request.type,
            one_of("Status", request.status, STATUSES) if request.status else "",
            request.object_type,
            number_or_none("ObjectId", request.object_id),
            page.limit,
            page.offset,
        )
        return total, [_summary(row) for row in rows]

    async def logs(self, request: pb.ListTaskLogsRequest) -> tuple[int, list[str]]:
        """The count of all lines, and the page asked for, oldest first. Raises NotFound."""
        row = await self._row(request.task_id)
        page = page_of(request)
        total, rows = await fetch_page(self._database, QUERIES.list_task_logs, row["id"], page.limit, page.offset)
        return total, [f"{line['logged_at'].isoformat(timespec='milliseconds')} {line['message']}" for line in rows]

    async def stop(self, key: str) -> None:
        """End a task as Failure; its worker notices within a second. NotFound; FailedPrecondition if it ended."""
        row = await self._row(key)
        async with self._database.transaction() as connection:
            stopped = await connection.fetchrow(QUERIES.stop_task, row["id"])
            if stopped is None:
                raise errors.FailedPrecondition(f"task {key} has ended already", resource="Task", id=key)
            await connection.execute(QUERIES.insert_task_log, row["id"], f"stopped by {calls.principal().name}")
            await audited.LOG.record(connection, "stop", audited.TASK, str(row["id"]), project=row["project_name"])
            if stopped["job_id"] is not None:
                await queue.remove(connection, stopped["job_id"])

    async def active(self) -> Mapping[str, int]:
        """How many tasks wait, and how many are worked on, by status."""
        found = {row["status"]: row["tasks"] for row in await self._database.fetch(QUERIES.active_tasks)}
        return {status: found.get(status, 0) for status in STATUSES[:2]}

    async def rescue(self) -> list[int]:
        """Queue again what has not ended and is in no queue, as a fault of the database at a bad moment can leave it;
        the ids."""
        async with self._database.transaction() as connection:
            lost = [row["id"] for row in await connection.fetch(QUERIES.lost_tasks)]
            for task_id in lost:
                await connection.execute(QUERIES.place_task, task_id, await queue.put(connection, task_id))
        return lost

    async def prune_logs(self, days: int) -> int:
        """Delete log lines of tasks that ended so many days ago, some of them; how many."""
        return len(await self._database.fetch(QUERIES.prune_task_logs, days))

    async def begin(self, task_id: int) -> Row | None:
        """Take a task up: its row, with the number of this attempt. None if it has ended."""
        return await self._database.fetchrow(QUERIES.begin_task, task_id)

    async def log(self, task_id: int, message: str) -> None:
        """Add a line to the task's log."""
        await self._database.execute(QUERIES.insert_task_log, task_id, _line(message))

    async def advance(self, task: Row, done: int, total: int, running: Mapping[str, Any]) -> bool:
        """Say how far an attempt is. False if the task is no longer this attempt's."""
        text = orjson.dumps({**running, "attempt": task["attempt"], "rows_done": done, "rows_total": total}).decode()
        arguments = (task["id"], task["attempt"], done, total, text)
        return await self._database.fetchval(QUERIES.advance_task, *arguments) is not None

    async def succeed(self, task: Row, message: str) -> bool:
        """End an attempt well, and note on the view what was published. False if it is no longer this attempt's."""
        async with self._database.transaction() as connection:
            ended = await self._finish(connection, task, "Success", message)
            if ended is not None and ended["type"] == OFFLINE_TO_ONLINE and ended["feature_view_id"] is not None:
                await connection.execute(QUERIES.mark_synced, ended["feature_view_id"], ended["config"])
        return ended is not None

    async def fail(self, task: Row, message: str) -> bool:
        """End an attempt badly. False if it is no longer this attempt's."""
        async with self._database.transaction() as connection:
            return await self._finish(connection, task, "Failure", message) is not None

    async def _finish(self, connection: Connection, task: Row, status: str, message: str) -> Row | None:
        ended: Row | None = await connection.fetchrow(QUERIES.finish_task, task["id"], task["attempt"], status)
        if ended is not None:
            await connection.execute(QUERIES.insert_task_log, task["id"], _line(message))
        return ended

    async def _row(self, key: str) -> Row:
        return permitted("Task", key, await self._database.fetchrow(QUERIES.task, number("TaskId", key)))


def _line(message: str) -> str:
    """A message as a line of a log: it may quote data, and PostgreSQL takes no NUL."""
    return "".join(each if each.isprintable() else "\ufffd" for each in message[:_MAX_LINE])


def _shown(row: Row) -> pb.Task:
    return pb.Task(
        task_id=str(row["id"]),
        type=row["type"],
        status=row["status"],
        object_type=row["object_type"],
        object_id=str(row["object_id"]),
        project_id=str(row["project_id"]),
        project_name=row["project_name"],
        config=row["config"],
        running_config=row["running_config"],
        rows_done=row["rows_done"],
        rows_total=row["rows_total"],
        gmt_create_time=timestamp(row["created_at"]),
        gmt_executed_time=timestamp(row["executed_at"]),
        gmt_finished_time=timestamp(row["finished_at"]),
        gmt_modified_time=timestamp(row["modified_at"]),
    )


def _summary(row: Row) -> pb.TaskSummary:
    return pb.TaskSummary(
        task_id=str(row["id"]),
        type=row["type"],
        status=row["status"],
        object_type=row["object_type"],
        object_id=str(row["object_id"]),
        project_id=str(row["project_id"]),
        project_name=row["project_name"],
        gmt_create_time=timestamp(row["created_at"]),
        gmt_executed_time=timestamp(row["executed_at"]),
        gmt_finished_time=timestamp(row["finished_at"]),
        rows_done=row["rows_done"],
        rows_total=row["rows_total"],
    )
