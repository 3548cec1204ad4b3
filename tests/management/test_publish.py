"""Publishing, with the real serving service: progress, failures that lose nothing, workers that die.

What happens while a publish runs happens while the brake holds it, however fast or slow the machine is.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chassis.client import open_channel
from chassis.inprocess import InProcessChannel
from chassis.postgres import Database
from chassis.server import GrpcServer
from chassis.settings import Settings
from services.management.process import open_service
from services.management.settings import ManagementSettings
from services.management.tasks import OFFLINE_TO_ONLINE
from services.management.worker import run_worker
from services.serving.process import open_service as open_serving
from services.serving.settings import ServingSettings
from tests.chassis.test_telemetry import sample
from tests.management.brake import Brake
from tests.management.conftest import Pai, catalogue
from tests.patience import PATIENCE_SECONDS, until
from tests.ports import reserved_ports

ROOT = Path(__file__).resolve().parents[2]
FIELDS = [
    {"Name": "id", "Type": "INT64", "Attributes": ["PrimaryKey"]},
    {"Name": "x", "Type": "DOUBLE", "Attributes": []},
]


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


@asynccontextmanager
async def worker(settings: Settings, own: ManagementSettings, serving: Any) -> AsyncIterator[None]:
    """A worker in this process."""
    stop = asyncio.Event()
    working = asyncio.create_task(run_worker(settings, own, InProcessChannel(serving), stop))
    try:
        yield
    finally:
        stop.set()
        await working


def write(folder: Path, ids: Iterator[int] | range, x: float = 0.5) -> None:
    table = pa.table({"id": pa.array(ids, pa.int64())})
    table = table.append_column("x", pa.array([x] * table.num_rows))
    pq.write_table(table, folder / "users.parquet", row_group_size=100_000)


async def view_of_users(caller: Pai, folder: Path, **changes: Any) -> str:
    """A view of the table `users` in the folder; its id."""
    config = orjson.dumps({"driver": "parquet", "root": str(folder)}).decode()
    ids = await catalogue(caller, config=config)
    view = {
        "ProjectId": ids["project"],
        "Name": "profile",
        "Type": "Batch",
        "FeatureEntityId": ids["entity"],
        "WriteMethod": "ByReadyMadeTable",
        "RegisterTable": "users",
        "RegisterDatasourceId": ids["offline"],
        "SyncOnlineTable": True,
        "Fields": FIELDS,
    }
    return await caller.made("FeatureView", **{**view, **changes})


async def publish(caller: Pai, view: str, **changes: Any) -> str:
    body = {"FeatureViewId": view, "Mode": "Overwrite", "OfflineToOnline": True, **changes}
    return str((await caller.answer("PublishFeatureViewTable", **body))["TaskId"])


async def until_task(caller: Pai, task: str, *statuses: str, rows: int = 0) -> dict[str, Any]:
    """The task, once it has one of the statuses and so many rows done."""
    found: dict[str, Any] = {}

    async def reached() -> bool:
        found.update(await caller.answer("GetTask", TaskId=task))
        done = found["Status"] in statuses and found["RowsDone"] >= rows
        assert done or found["Status"] not in {"Success", "Failure"} - set(statuses), await logs(caller, task)
        return done

    await until(reached)
    return found


async def until_logged(caller: Pai, task: str, text: str) -> None:
    async def logged() -> bool:
        return any(text in line for line in await logs(caller, task))

    await until(logged)


async def until_under_way(brake: Brake, count: int) -> None:
    """Wait until so many calls of WriteRows are under way."""

    async def counted() -> bool:
        return brake.calls == count

    await until(counted)


async def logs(caller: Pai, task: str) -> list[str]:
    return list((await caller.answer("ListTaskLogs", TaskId=task, PageSize=100))["Logs"])


async def online(caller: Pai, view: str, *keys: int | str) -> list[Any]:
    answer = await caller.answer("ListFeatureViewOnlineFeatures", FeatureViewId=view, JoinIds=list(keys))
    return [orjson.loads(text) for text in answer["OnlineFeatures"]]


def counted(outcome: str) -> tuple[float, float]:
    """How many publishes of this process ended so, and how many rows all of them moved."""
    attempts = sample("triglot_tasks_attempts_total", type=OFFLINE_TO_ONLINE, outcome=outcome)
    return attempts, sample("triglot_tasks_rows_total", type=OFFLINE_TO_ONLINE)


async def test_from_parquet_to_online_rows(
    caller: Pai, settings: Settings, own: ManagementSettings, serving: Any, tmp_path: Path
) -> None:
    write(tmp_path, range(50_000))
    view = await view_of_users(caller, tmp_path)
    task = await publish(caller, view)
    waiting = await caller.answer("GetTask", TaskId=task)
    assert (waiting["Status"], waiting["RowsDone"], waiting["TaskId"]) == ("Initializing", 0, task)
    assert "GmtExecutedTime" not in waiting
    counted = {"type": OFFLINE_TO_ONLINE, "outcome": "success"}
    before = (
        sample("triglot_tasks_attempts_total", **counted),
        sample("triglot_tasks_rows_total", type=OFFLINE_TO_ONLINE),
    )
    async with worker(settings, own, serving):
        done = await until_task(caller, task, "Success")
    after = (
        sample("triglot_tasks_attempts_total", **counted),
        sample("triglot_tasks_rows_total", type=OFFLINE_TO_ONLINE),
    )
    assert [round(more - less) for more, less in zip(after, before, strict=True)] == [1, 50_000]
    assert (done["RowsDone"], done["RowsTotal"]) == (50_000, 50_000)
    assert orjson.loads(done["RunningConfig"])["feature_group"] == "profile"
    assert orjson.loads(done["Config"])["mode"] == "overwrite"
    assert done["GmtExecutedTime"] <= done["GmtFinishedTime"]
    assert await online(caller, view, 49_999, 50_000, "0") == [{"user_id": 49_999, "x": 0.5}, {"user_id": 0, "x": 0.5}]
    assert (await caller.answer("GetFeatureView", FeatureViewId=view))["LastSyncConfig"] == done["Config"]
    await caller.refused("StopTask", 400, "InvalidParameter", TaskId=task)
    # The view is a feature group now; columns can come after the others, and that is all.
    await caller.refused(
        "UpdateFeatureView",
        400,
        "InvalidParameter",
        FeatureViewId=view,
        Fields=[{"Name": "y", "Type": "INT32"}, *FIELDS],
    )
    await caller.answer("DeleteFeatureView", FeatureViewId=view)
    again = await caller.made(
        "FeatureView", Name="profile", ProjectId="1", Type="Batch", WriteMethod="Custom", SyncOnlineTable=True,
        FeatureEntityId="1", Fields=[FIELDS[0]],
    )  # fmt: skip
    assert await online(caller, again, 1) == []
    assert (await caller.answer("GetTask", TaskId=task))["Status"] == "Success"


async def test_a_failed_overwrite_leaves_the_old_rows(
    caller: Pai, settings: Settings, own: ManagementSettings, serving: Any, tmp_path: Path
) -> None:
    write(tmp_path, range(30_000))
    view = await view_of_users(caller, tmp_path)
    async with worker(settings, own, serving):
        await until_task(caller, await publish(caller, view), "Success")
        table = pa.table({"id": [*range(40_000), None], "x": [9.5] * 40_001})
        pq.write_table(table, tmp_path / "users.parquet")
        task = await publish(caller, view)
        await until_task(caller, task, "Failure")
    assert "row 40001, column id: the key is null" in (await logs(caller, task))[-1]
    assert await online(caller, view, 1, 35_000) == [{"user_id": 1, "x": 0.5}]
    assert (await caller.answer("GetFeatureView", FeatureViewId=view))["LastSyncConfig"] != ""


async def test_merge(caller: Pai, settings: Settings, own: ManagementSettings, serving: Any, tmp_path: Path) -> None:
    write(tmp_path, range(10))
    view = await view_of_users(caller, tmp_path)
    async with worker(settings, own, serving):
        await until_task(caller, await publish(caller, view), "Success")
        write(tmp_path, range(9, 12), x=2.5)
        await until_task(caller, await publish(caller, view, Mode="merge"), "Success")
        assert [row["x"] for row in await online(caller, view, *range(13))] == [0.5] * 9 + [2.5] * 3
        await until_task(caller, await publish(caller, view), "Success")
        assert [row["user_id"] for row in await online(caller, view, *range(13))] == [9, 10, 11]


async def test_without_copying(
    caller: Pai, settings: Settings, own: ManagementSettings, serving: Any, tmp_path: Path
) -> None:
    view = await view_of_users(caller, tmp_path)
    await caller.refused(
        "PublishFeatureViewTable", 404, "ResourceNotFound", FeatureViewId=view, Mode="Merge", OfflineToOnline=True
    )
    async with worker(settings, own, serving):
        task = await publish(caller, view, OfflineToOnline="false")
        assert (await until_task(caller, task, "Success"))["RowsTotal"] == 0


async def test_what_is_refused_at_once(caller: Pai, tmp_path: Path) -> None:
    write(tmp_path, range(1))
    view = await view_of_users(caller, tmp_path)
    for wrong in (
        {"Mode": ""},
        {"Mode": "Append"},
        {"Partitions": {"ds": "1"}},
        {"Partitions": {"x": {}}},
        {"Partitions": [1]},
        {"EventTime": "yesterday"},
        {"Config": "{"},
    ):
        body = {"FeatureViewId": view, "Mode": "Overwrite", "OfflineToOnline": True, **wrong}
        await caller.refused("PublishFeatureViewTable", 400, "InvalidParameter", **body)
    plain = {
        "ProjectId": "1",
        "Type": "Batch",
        "WriteMethod": "Custom",
        "SyncOnlineTable": True,
        "FeatureEntityId": "1",
    }
    for number, change in enumerate(
        (
            {"SyncOnlineTable": False, "Fields": FIELDS},
            {"Fields": FIELDS[1:]},
            {"FeatureEntityId": "", "Fields": FIELDS},
            {"Type": "Sequence", "Fields": FIELDS},
        )
    ):
        other = await caller.made("FeatureView", **{**plain, "Name": f"v{number}", **change})
        await caller.refused("PublishFeatureViewTable", 400, "InvalidParameter", FeatureViewId=other, Mode="Merge")
    hologres = await caller.made("Datasource", Name="h", WorkspaceId="1", Type="Hologres", Uri="i/db")
    project = await caller.made(
        "Project", Name="holo", WorkspaceId="1", OfflineDatasourceId="1", OnlineDatasourceId=hologres
    )
    entity = await caller.made("FeatureEntity", Name="e", JoinId="k", ProjectId=project)
    elsewhere = {**plain, "ProjectId": project, "FeatureEntityId": entity, "Name": "v", "Fields": FIELDS}
    made = await caller.made("FeatureView", **elsewhere)
    # A Hologres datasource that leads nowhere.
    asked = {"FeatureViewId": made, "Mode": "Merge", "OfflineToOnline": True}
    assert "Hologres" in await caller.refused("PublishFeatureViewTable", 400, "InvalidParameter", **asked)


async def test_stop(
    *, caller: Pai, settings: Settings, own: ManagementSettings, serving: Any, brake: Brake, tmp_path: Path
) -> None:
    write(tmp_path, range(50_000))
    view = await view_of_users(caller, tmp_path)
    waiting = await publish(caller, view)
    await caller.refused("DeleteFeatureView", 400, "DependencyExists", FeatureViewId=view)
    await caller.answer("StopTask", TaskId=waiting)
    assert (await caller.answer("GetTask", TaskId=waiting))["Status"] == "Failure"
    async with worker(settings, own, serving):
        brake.hold()
        running = await publish(caller, view)
        await until_task(caller, running, "Running", rows=1)
        await caller.answer("StopTask", TaskId=running)
        stopped = await caller.answer("GetTask", TaskId=running)
        assert (stopped["Status"], stopped["RowsTotal"]) == ("Failure", 50_000)
        assert 0 < stopped["RowsDone"] < 50_000
        # The worker breaks off, and from then on says nothing more of the task.
        await until_under_way(brake, 0)
        brake.release()
    assert await caller.answer("GetTask", TaskId=running) | {"RequestId": ""} == stopped | {"RequestId": ""}
    assert "stopped by admin" in (await logs(caller, running))[-1]
    assert await online(caller, view, 1) == []


async def test_a_task_comes_back_when_serving_does(
    caller: Pai, settings: Settings, own: ManagementSettings, serving: Any, tmp_path: Path
) -> None:
    """Serving cannot be reached at first. The task waits, tries again, and succeeds."""
    attempts, _ = counted("again")
    patient = own.model_copy(update={"task_attempts": 20})
    write(tmp_path, range(10))
    view = await view_of_users(caller, tmp_path)
    task = await publish(caller, view)
    stop = asyncio.Event()
    with reserved_ports(1) as [port]:
        async with open_channel(f"127.0.0.1:{port}", settings) as channel:
            working = asyncio.create_task(run_worker(settings, patient, channel, stop))
            await until_logged(caller, task, "again in")
            assert (await caller.answer("GetTask", TaskId=task))["Status"] == "Running"
            back = GrpcServer(serving, host="127.0.0.1", port=port, max_message_bytes=1 << 20)
            await back.start()
            await until_task(caller, task, "Success")
            stop.set()
            await working
            await back.stop(1)
    assert await online(caller, view, 3) == [{"user_id": 3, "x": 0.5}]
    assert counted("again")[0] > attempts


async def test_a_task_gives_up_in_the_end(
    caller: Pai, settings: Settings, own: ManagementSettings, serving: Any, tmp_path: Path
) -> None:
    write(tmp_path, range(10))
    view = await view_of_users(caller, tmp_path)
    task = await publish(caller, view)
    stop = asyncio.Event()
    few = own.model_copy(update={"task_attempts": 2})
    async with open_channel("127.0.0.1:1", settings) as channel:
        working = asyncio.create_task(run_worker(settings, few, channel, stop))
        await until_task(caller, task, "Failure")
        stop.set()
        await working
    assert "failed after 2 attempts" in (await logs(caller, task))[-1]


async def test_a_worker_outlives_its_connections(
    *, caller: Pai, settings: Settings, own: ManagementSettings, serving: Any, brake: Brake, tmp_path: Path
) -> None:
    """PostgreSQL drops every connection of the worker, while it waits and while it works."""
    write(tmp_path, range(50_000))
    view = await view_of_users(caller, tmp_path)
    async with worker(settings, own, serving):
        await until_task(caller, await publish(caller, view), "Success")
        await drop_connections(settings)
        brake.hold()
        task = await publish(caller, view)
        await until_task(caller, task, "Running", rows=1)
        await drop_connections(settings)
        brake.release()
        await until_task(caller, task, "Success")
        await until_task(caller, await publish(caller, view), "Success")
    assert len(await online(caller, view, 0, 49_999)) == 2


async def drop_connections(settings: Settings) -> None:
    connection = await asyncpg.connect(settings.postgres_url.get_secret_value())
    dropped = await connection.fetch(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'triglot-worker'"
    )
    await connection.close()
    assert dropped


async def test_a_stopping_worker_gives_its_task_back(
    *, caller: Pai, settings: Settings, own: ManagementSettings, serving: Any, brake: Brake, tmp_path: Path
) -> None:
    write(tmp_path, range(50_000))
    view = await view_of_users(caller, tmp_path)
    brake.hold()
    async with worker(settings, own, serving):
        task = await publish(caller, view)
        await until_task(caller, task, "Running", rows=1)
    assert (await caller.answer("GetTask", TaskId=task))["Status"] == "Running"
    brake.release()
    async with worker(settings, own, serving):
        await until_task(caller, task, "Success")
    assert sum("attempt" in line for line in await logs(caller, task)) == 2
    assert len(await online(caller, view, 0, 49_999)) == 2


class Process:
    """`python -m services.management.worker` in a process of its own."""

    def __init__(self, settings: Settings, serving_port: int, roots: Path, lease_seconds: int) -> None:
        self._environment = {
            **os.environ,
            "TRIGLOT_POSTGRES_URL": settings.postgres_url.get_secret_value(),
            "TRIGLOT_SECRET_KEY": settings.secret_key.get_secret_value(),
            "TRIGLOT_SERVICE_API_KEY": settings.service_api_key.get_secret_value(),
            "TRIGLOT_SERVING_TARGET": f"127.0.0.1:{serving_port}",
            "TRIGLOT_METRICS_PORT": "0",
            "TRIGLOT_MANAGEMENT_OFFLINE_ROOTS": orjson.dumps([str(roots)]).decode(),
            "TRIGLOT_MANAGEMENT_LEASE_SECONDS": str(lease_seconds),
        }

    async def __aenter__(self) -> asyncio.subprocess.Process:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.management.worker", cwd=ROOT, env=self._environment
        )
        return self._process

    async def __aexit__(self, *_: object) -> None:
        try:
            if self._process.returncode is None:
                self._process.send_signal(signal.SIGCONT)
                self._process.terminate()
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self._process.wait()
        finally:
            if self._process.returncode is None:
                self._process.kill()


@pytest.fixture
async def start_process(settings: Settings, serving: Any, tmp_path: Path) -> AsyncIterator[Callable[[int], Process]]:
    """Starts a worker process whose lease is so many seconds, with serving behind a port.

    A worker takes a task over when the other one has been silent for as long as its own lease says. The first worker of
    a test, which is to lose its task and not to win it back, has a lease without an end.
    """
    server = GrpcServer(serving, host="127.0.0.1", port=0, max_message_bytes=64 << 20)
    port = await server.start()
    yield lambda lease_seconds: Process(settings, port, tmp_path, lease_seconds)
    await server.stop(1)


FIRST_LEASE, SECOND_LEASE = 600, 2


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM], ids=lambda how: how.name)
async def test_another_worker_takes_over(
    caller: Pai, start_process: Callable[[int], Process], brake: Brake, tmp_path: Path, how: signal.Signals
) -> None:
    """One worker is killed, or frozen, or told to stop in the middle of a publish; another one finishes it."""
    write(tmp_path, range(200_000))
    view = await view_of_users(caller, tmp_path)
    brake.hold()
    async with start_process(FIRST_LEASE) as first:
        task = await publish(caller, view)
        await until_task(caller, task, "Running", rows=1)
        first.send_signal(how)
        async with start_process(SECOND_LEASE):
            await until_logged(caller, task, "attempt 2 by worker")
            brake.release()
            await until_task(caller, task, "Success")
            assert len(await online(caller, view, 0, 100_000, 199_999)) == 3
            if how is signal.SIGSTOP:
                # Back from the dead, the first one finds that the task is not its own any more.
                first.send_signal(signal.SIGCONT)
                await until_under_way(brake, 0)
    done = await caller.answer("GetTask", TaskId=task)
    assert (done["Status"], done["RowsDone"]) == ("Success", 200_000)
    assert len(await online(caller, view, 0, 100_000, 199_999)) == 3
    lines = await logs(caller, task)
    assert sum("by worker" in line for line in lines) == 2, lines
    assert sum("done:" in line for line in lines) == 1, lines


async def test_a_worker_that_wakes_up_leaves_the_task_to_its_successor(
    caller: Pai, database: Database, start_process: Callable[[int], Process], brake: Brake, tmp_path: Path
) -> None:
    """A frozen worker wakes while another one works on its task: nothing that it says takes the task away again."""
    write(tmp_path, range(200_000))
    view = await view_of_users(caller, tmp_path)
    queued = "SELECT id, status, queue_manager_id FROM management.task_pgqueuer"
    brake.hold()
    async with start_process(FIRST_LEASE) as first:
        task = await publish(caller, view)
        await until_task(caller, task, "Running", rows=1)
        first.send_signal(signal.SIGSTOP)
        async with start_process(SECOND_LEASE):
            await until_under_way(brake, 2)
            taken_over = await database.fetch(queued)
            first.send_signal(signal.SIGCONT)
            await until_under_way(brake, 1)
            # When it has ended, it has said all that it had to say.
            first.terminate()
            assert await first.wait() == 0
            assert await database.fetch(queued) == taken_over
            brake.release()
            await until_task(caller, task, "Success")
    assert await database.fetch(queued) == []
    lines = await logs(caller, task)
    assert sum("by worker" in line for line in lines) == 2, lines


async def test_a_datasource_tells_what_its_views_take(
    caller: Pai, settings: Settings, own: ManagementSettings, serving: Any, tmp_path: Path
) -> None:
    write(tmp_path, range(10))
    view = await view_of_users(caller, tmp_path)
    await caller.made(
        "FeatureView", Name="unused", ProjectId="1", Type="Stream", WriteMethod="Custom", SyncOnlineTable=True
    )
    async with worker(settings, own, serving):
        await until_task(caller, await publish(caller, view), "Success")
    assert len(await online(caller, view, 1, 2, 99)) == 2
    today = datetime.now(UTC).date().isoformat()

    async def listed(**changes: Any) -> Any:
        return await caller.answer("ListDatasourceFeatureViews", DatasourceId="2", **changes)

    # The day may have changed since.
    answer = await listed(EndDate=(date.fromisoformat(today) + timedelta(days=1)).isoformat())
    assert [each["Name"] for each in answer["FeatureViews"]] == ["unused", "profile"]
    unused, used = (each["UsageStatistics"] for each in answer["FeatureViews"])
    assert (unused["RowCount"], unused["ReadWriteCount"]) == (0, [])
    assert (used["RowCount"], used["DiskUsage"]) == (10, 0)
    assert sum(day["ReadCount"] for day in used["ReadWriteCount"]) == 3
    assert sum(day["WriteCount"] for day in used["ReadWriteCount"]) == 10
    total = answer["TotalUsageStatistics"]
    assert total["TotalMemoryUsage"] == used["MemoryUsage"] > 0
    assert [day["TotalReadCount"] for day in total["TotalReadWriteCount"]] == [
        day["ReadCount"] for day in used["ReadWriteCount"]
    ]
    busiest = await listed(SortBy="WriteCount", PageSize=1)
    assert ([each["Name"] for each in busiest["FeatureViews"]], busiest["TotalCount"]) == (["profile"], 2)
    brief = await listed(ShowStorageUsage=False)
    assert "RowCount" not in brief["FeatureViews"][1]["UsageStatistics"]
    assert "TotalMemoryUsage" not in brief["TotalUsageStatistics"]
    assert "UsageStatistics" not in (await listed(Verbose=False))["FeatureViews"][1]
    # The view's table is in the other datasource, its rows are not.
    offline = await caller.answer("ListDatasourceFeatureViews", DatasourceId="1", Name="prof")
    assert ["UsageStatistics" in each for each in offline["FeatureViews"]] == [False]
    assert "TotalUsageStatistics" not in offline


async def test_columns_come_after_a_publish(
    caller: Pai, settings: Settings, own: ManagementSettings, serving: Any, *, brake: Brake, tmp_path: Path
) -> None:
    write(tmp_path, range(3))
    view = await view_of_users(caller, tmp_path)
    wider = {"FeatureViewId": view, "Fields": [*FIELDS, {"Name": "y", "Type": "INT32", "Attributes": []}]}
    async with worker(settings, own, serving):
        brake.hold()
        task = await publish(caller, view)
        await until_under_way(brake, 1)
        await caller.refused("UpdateFeatureView", 400, "DependencyExists", **wider)
        brake.release()
        await until_task(caller, task, "Success")
        await caller.answer("UpdateFeatureView", **wider)
        assert await online(caller, view, 1) == [{"user_id": 1, "x": 0.5, "y": None}]
        pq.write_table(pa.table({"id": [1], "x": [1.5], "y": [7]}), tmp_path / "users.parquet")
        await until_task(caller, await publish(caller, view, Mode="Merge"), "Success")
    assert await online(caller, view, 1, 2) == [
        {"user_id": 1, "x": 1.5, "y": 7},
        {"user_id": 2, "x": 0.5, "y": None},
    ]
    # What it has got it keeps, and asking again changes nothing.
    await caller.answer("UpdateFeatureView", **wider)
    await caller.refused("UpdateFeatureView", 400, "InvalidParameter", FeatureViewId=view, Fields=FIELDS)
    marked = [{**FIELDS[1], "Attributes": ["EventTime"]} if field is FIELDS[1] else field for field in wider["Fields"]]
    await caller.refused("UpdateFeatureView", 400, "InvalidParameter", FeatureViewId=view, Fields=marked)


async def test_the_event_time_of_a_publish(
    caller: Pai, settings: Settings, own: ManagementSettings, serving: Any, tmp_path: Path
) -> None:
    timed = [*FIELDS, {"Name": "at", "Type": "TIMESTAMP", "Attributes": ["EventTime"]}]
    times = pa.array([None, 2_000], pa.timestamp("ms"))
    pq.write_table(pa.table({"id": [1, 2], "x": [0.5, 0.5], "at": times}), tmp_path / "users.parquet")
    view = await view_of_users(caller, tmp_path, Fields=timed)
    async with worker(settings, own, serving):
        task = await publish(caller, view, EventTime="1970-01-01T01:00:01+01:00")
        await until_task(caller, task, "Success")
        assert [row["at"] for row in await online(caller, view, 1, 2)] == [1_000, 2_000]
        # A table without the column: all its rows are of that time, and a row is never replaced by an older one.
        write(tmp_path, range(4), x=2.5)
        await caller.refused(
            "PublishFeatureViewTable", 400, "InvalidParameter", FeatureViewId=view, Mode="Merge", OfflineToOnline=True
        )
        task = await publish(caller, view, Mode="Merge", EventTime="1970-01-01T00:00:01.500")
        await until_task(caller, task, "Success")
    assert [(row["x"], row["at"]) for row in await online(caller, view, 1, 2, 3)] == [
        (2.5, 1_500),
        (0.5, 2_000),
        (2.5, 1_500),
    ]
    await caller.refused(
        "PublishFeatureViewTable", 400, "InvalidParameter", FeatureViewId=view, Mode="Merge", EventTime="tomorrow"
    )
