"""`triglot tasks`: the tasks of a deployment, and one of them as it goes on."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf.timestamp_pb2 import Timestamp

from chassis import errors
from protos.gen.triglot.management.v1 import task_pb2 as pb
from triglot.deployment import Management, open_management
from triglot.terminal import DEFAULT_DATA_DIR, AsJson, DataDir, bars, console, print_json, print_table

app = typer.Typer()

# The exit code of a task that ended badly. 1 and 2 say that it could not be followed.
FAILED = 3
_ENDED = ("Success", "Failure")
_POLL_SECONDS = 0.2
# How long a deployment that does not answer, as one that starts again, is waited for.
_AWAY_SECONDS = 60.0
_LOG_PAGE = 100


@app.callback(invoke_without_command=True)
def list_tasks(
    context: typer.Context,
    *,
    status: Annotated[str, typer.Option(help="Only these: Initializing, Running, Success or Failure.")] = "",
    project: Annotated[str, typer.Option(help="Only those of the project with this id.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many at most, newest first.")] = 20,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """List tasks, newest first; `triglot tasks watch ID` follows one.

    Asks what `triglot up` runs on the data folder, or the deployment at `TRIGLOT_MANAGEMENT_TARGET` with the key
    `TRIGLOT_API_KEY`.

    Examples: `triglot tasks` - `triglot tasks --status Failure --json` - `triglot tasks watch 3`
    """
    if context.invoked_subcommand is not None:
        return
    wanted = pb.ListTasksRequest(status=status, project_id=project, page_size=limit)

    async def listed() -> list[dict[str, Any]]:
        async with open_management(data_dir) as management:
            answer = await management.call(management.tasks.ListTasks, wanted)
            return [_shown(each) for each in answer.tasks]

    found = asyncio.run(listed())
    if as_json:
        print_json(found)
        return
    rows = [
        (
            each["task_id"],
            each["type"],
            each["status"],
            each["project"],
            f"{each['object_type']} {each['object_id']}",
            f"{each['rows_done']}/{each['rows_total']}",
            each["created"],
        )
        for each in found
    ]
    print_table(("ID", "TYPE", "STATUS", "PROJECT", "OBJECT", "ROWS", "CREATED"), rows)


@app.command("watch")
def watch_task(
    task_id: Annotated[str, typer.Argument(metavar="ID", help="The task.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Follow a task to its end: its log, and a progress bar of its rows; with `--json` a line for each change.

    The exit code is 0 for Success and 3 for Failure. Ctrl-C ends the watching and not the task.

    Example: `triglot tasks watch 3`
    """
    ended = asyncio.run(_followed(data_dir, task_id, as_json))
    raise typer.Exit(0 if ended == "Success" else FAILED)


async def _followed(data_dir: Path, task_id: str, as_json: bool) -> str:
    """How the task ended. What happens until then is printed."""
    async with open_management(data_dir) as management:
        following = _Following(management, task_id)
        if as_json:
            before: dict[str, Any] = {}
            while before.get("status") not in _ENDED:
                now = await following.task()
                if now != before:
                    print_json(now)
                before = now
            return str(before["status"])
        with bars(console) as progress:
            bar = progress.add_task(f"task {task_id}", total=None, unit="rows")
            while True:
                task = await following.task()
                for line in await following.new_lines():
                    progress.console.print(line, markup=False, soft_wrap=True)
                progress.update(bar, completed=task["rows_done"], total=task["rows_total"] or None)
                if task["status"] in _ENDED:
                    break
        console.print(task["status"], style="green" if task["status"] == "Success" else "red")
        return str(task["status"])


class _Following:
    """A task as it is now, and what is new in its log. Waits a little before each look but the first."""

    def __init__(self, management: Management, task_id: str) -> None:
        self._management = management
        self._task_id = task_id
        self._looked = False
        self._lines = 0

    async def task(self) -> dict[str, Any]:
        if self._looked:
            await asyncio.sleep(_POLL_SECONDS)
        self._looked = True
        answer = await self._patiently(self._management.tasks.GetTask, pb.GetTaskRequest(task_id=self._task_id))
        return _shown(answer.task)

    async def new_lines(self) -> list[str]:
        found: list[str] = []
        while True:
            page, seen = divmod(self._lines, _LOG_PAGE)
            wanted = pb.ListTaskLogsRequest(task_id=self._task_id, page_number=page + 1, page_size=_LOG_PAGE)
            lines = (await self._patiently(self._management.tasks.ListTaskLogs, wanted)).logs[seen:]
            found += lines
            self._lines += len(lines)
            if self._lines % _LOG_PAGE or not lines:
                return found

    async def _patiently(self, method: Any, request: Any) -> Any:
        deadline = time.monotonic() + _AWAY_SECONDS
        while True:
            try:
                return await self._management.call(method, request)
            except (errors.Unavailable, errors.DeadlineExceeded):
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(_POLL_SECONDS)


def _shown(task: pb.Task | pb.TaskSummary) -> dict[str, Any]:
    return {
        "task_id": task.task_id,
        "type": task.type,
        "status": task.status,
        "project": task.project_name,
        "object_type": task.object_type,
        "object_id": task.object_id,
        "rows_done": task.rows_done,
        "rows_total": task.rows_total,
        "created": _time(task, "gmt_create_time"),
        "executed": _time(task, "gmt_executed_time"),
        "finished": _time(task, "gmt_finished_time"),
    }


def _time(task: pb.Task | pb.TaskSummary, name: str) -> str | None:
    at: Timestamp = getattr(task, name)
    return at.ToDatetime().isoformat(timespec="seconds") + "Z" if task.HasField(name) else None  # type: ignore[arg-type]
