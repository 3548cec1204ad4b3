"""`triglot tasks` and `triglot usage`, as commands of their own, against management on a port."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from chassis.inprocess import InProcessChannel
from chassis.server import GrpcServer
from chassis.settings import Settings
from services.management.process import open_service
from services.management.settings import ManagementSettings
from services.management.usage import this_month
from services.serving.process import open_service as open_serving
from services.serving.settings import ServingSettings
from tests.conftest import Servers
from tests.management.brake import Brake
from tests.management.conftest import Pai
from tests.management.test_publish import publish, until_task, view_of_users, worker, write
from tests.patience import PATIENCE_SECONDS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def brake() -> Brake:
    return Brake()


@pytest.fixture
async def serving(settings: Settings, brake: Brake) -> AsyncIterator[Any]:
    async with open_serving(settings, ServingSettings()) as opened:
        yield brake.built_into(opened)


@pytest.fixture
async def services(settings: Settings, own: ManagementSettings, serving: Any) -> AsyncIterator[Any]:
    """Management with serving: stands in for the fixture without it."""
    async with open_service(settings, own, InProcessChannel(serving)) as opened:
        yield opened


class Command:
    """The command `triglot`, as a caller of this test's deployment."""

    def __init__(self, port: int, key: str) -> None:
        unset = {name: value for name, value in os.environ.items() if not name.startswith("TRIGLOT_")}
        self._environment = unset | {"TRIGLOT_MANAGEMENT_TARGET": f"127.0.0.1:{port}", "TRIGLOT_API_KEY": key}

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        command = (sys.executable, "-m", "triglot.cli", *arguments)
        return await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=self._environment, stdout=pipe, stderr=pipe)

    async def run(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, what it printed, and what went wrong."""
        process = await self.start(*arguments)
        async with asyncio.timeout(PATIENCE_SECONDS):
            output, faults = await process.communicate()
        return process.returncode or 0, output.decode(), faults.decode()


@pytest.fixture
async def triglot(services: Any, servers: Servers) -> AsyncIterator[Command]:
    server = GrpcServer(services, host="127.0.0.1", port=0, max_message_bytes=1 << 20)
    yield Command(await server.start(), servers.admin_key)
    await server.stop(1)


async def test_a_task_is_followed_to_its_end(
    *,
    caller: Pai,
    triglot: Command,
    settings: Settings,
    own: ManagementSettings,
    serving: Any,
    brake: Brake,
    tmp_path: Path,
) -> None:
    write(tmp_path, range(50_000))
    task = await publish(caller, await view_of_users(caller, tmp_path))
    watching = await triglot.start("tasks", "watch", task, "--json")
    assert watching.stdout is not None
    seen: list[dict[str, Any]] = []

    async def until_seen(status: str, rows: int) -> None:
        assert watching.stdout is not None
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not seen or seen[-1]["status"] != status or seen[-1]["rows_done"] < rows:
                seen.append(orjson.loads(await watching.stdout.readline()))

    await until_seen("Initializing", 0)
    brake.hold()
    async with worker(settings, own, serving):
        await until_seen("Running", 1)
        brake.release()
        await until_seen("Success", 50_000)
        assert await watching.wait() == 0
    assert (seen[0]["executed"], seen[0]["finished"]) == (None, None)
    assert (seen[-1]["task_id"], seen[-1]["rows_total"]) == (task, 50_000)
    assert seen[-1]["created"] <= seen[-1]["executed"] <= seen[-1]["finished"]
    # The same for a person: the log, the bar, the end.
    code, output, faults = await triglot.run("tasks", "watch", task)
    assert (code, faults) == (0, "")
    for part in ("asked for by admin", "rows/s", "━", "50000/50000 rows", "Success"):
        assert part in output, output


async def test_a_task_that_fails(
    *, caller: Pai, triglot: Command, settings: Settings, own: ManagementSettings, serving: Any, tmp_path: Path
) -> None:
    write(tmp_path, range(3))
    task = await publish(caller, await view_of_users(caller, tmp_path))
    (tmp_path / "users.parquet").write_bytes(b"no parquet")
    async with worker(settings, own, serving):
        code, output, _ = await triglot.run("tasks", "watch", task)
    assert code == 3
    assert "failed:" in output
    assert output.rstrip().endswith("Failure")


async def test_the_list_of_tasks(
    *, caller: Pai, triglot: Command, settings: Settings, own: ManagementSettings, serving: Any, tmp_path: Path
) -> None:
    write(tmp_path, range(3))
    view = await view_of_users(caller, tmp_path)
    first = await publish(caller, view)
    async with worker(settings, own, serving):
        await until_task(caller, first, "Success")
    second = await publish(caller, view)
    listed = orjson.loads((await triglot.run("tasks", "--json"))[1])
    assert [(each["task_id"], each["status"], each["rows_done"]) for each in listed] == [
        (second, "Initializing", 0),
        (first, "Success", 3),
    ]
    code, output, _ = await triglot.run("tasks", "--status", "success", "--limit", "5")
    header, line = output.splitlines()
    assert header.split() == ["ID", "TYPE", "STATUS", "PROJECT", "OBJECT", "ROWS", "CREATED"]
    assert line.split()[:7] == [first, "OfflineToOnline", "Success", "shop", "FeatureView", view, "3/3"]
    code, _, faults = await triglot.run("tasks", "watch", "99")
    assert (code, faults) == (1, "triglot: Task 99 does not exist\n")


async def test_usage_as_a_table_and_as_json(caller: Pai, triglot: Command) -> None:
    month = f"{this_month():%Y-%m}"
    for _ in range(102):
        await caller.answer("ListProjects")
    code, output, faults = await triglot.run("usage", "--operation", "ListProjects")
    assert (code, faults) == (0, "")
    assert [line.split() for line in output.splitlines()] == [
        ["MONTH", "ACCOUNT", "OPERATION", "CALLS", "PRICE"],
        [month, "admin", "ListProjects", "102", "0.002"],
        ["total", "102", "0.002"],
    ]
    shown = orjson.loads((await triglot.run("usage", "--month", "all", "--json"))[1])
    assert {
        "month": month,
        "account": "admin",
        "operation": "ListProjects",
        "calls": 102,
        "free_calls": 100,
        "price": "0.002",
    } in shown["usage"]
    assert shown["total_calls"] == sum(each["calls"] for each in shown["usage"])


async def test_nothing_to_ask(tmp_path: Path) -> None:
    command = Command(0, "")
    del command._environment["TRIGLOT_MANAGEMENT_TARGET"]
    code, _, faults = await command.run("usage", f"--data-dir={tmp_path}")
    assert (code, faults) == (1, f"triglot: nothing runs on {tmp_path}: start it with `triglot up`\n")
