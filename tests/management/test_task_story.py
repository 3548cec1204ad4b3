"""What is told of tasks: their log while they run, how they end, and lists of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chassis.inprocess import InProcessChannel
from chassis.postgres import Database
from chassis.settings import Settings
from services.management.process import open_service
from services.management.settings import ManagementSettings
from services.serving.process import open_service as open_serving
from services.serving.settings import ServingSettings
from tests.management import test_hologres
from tests.management.brake import Brake
from tests.management.conftest import Pai
from tests.management.test_publish import (
    FIELDS,
    logs,
    online,
    publish,
    until_logged,
    until_task,
    view_of_users,
    worker,
    write,
)


@pytest.fixture
def own(tmp_path: Path) -> ManagementSettings:
    return ManagementSettings(
        offline_roots=(tmp_path,), lease_seconds=2, retry_seconds=0.2, datasource_hosts=("127.0.0.1", "localhost")
    )


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


async def test_the_log_tells_how_far_it_is(
    *, caller: Pai, settings: Settings, own: ManagementSettings, serving: Any, brake: Brake, tmp_path: Path
) -> None:
    write(tmp_path, range(50_000))
    view = await view_of_users(caller, tmp_path)
    brake.hold()
    async with worker(settings, own, serving):
        task = await publish(caller, view)
        await until_logged(caller, task, "20000 of 50000 rows")
        assert (await caller.answer("GetTask", TaskId=task))["Status"] == "Running"
        brake.release()
        await until_task(caller, task, "Success")
    lines = [line.partition(" ")[2] for line in await logs(caller, task)]
    assert lines[0] == "asked for by admin"
    assert lines[1].startswith("attempt 1 by worker")
    assert lines[2] == "overwrite shop/profile: 50000 rows in 1 files of table users"
    assert lines[3] == "20000 of 50000 rows"
    assert lines[-1].startswith("done: 50000 rows")
    assert len(lines) <= 14  # a line for a tenth of the rows, at most


async def test_what_lasts_is_not_tried_again(
    caller: Pai, settings: Settings, own: ManagementSettings, serving: Any, tmp_path: Path
) -> None:
    write(tmp_path, range(3))
    view = await view_of_users(caller, tmp_path)
    for table, why in (
        (pa.table({"id": [1, None], "x": [0.5, 0.5]}), "row 2, column id: the key is null"),
        (pa.table({"id": [1], "x": ["many"]}), "row 1, column x"),
        (pa.table({"id": [1]}), "has no column x"),
    ):
        write(tmp_path, range(3))
        task = await publish(caller, view)
        # What is found is not what was there when it was asked for.
        pq.write_table(table, tmp_path / "users.parquet")
        async with worker(settings, own, serving):
            await until_task(caller, task, "Failure")
        lines = await logs(caller, task)
        assert "failed: " in lines[-1]
        assert why in lines[-1], lines
        assert sum("by worker" in line for line in lines) == 1
        assert not any("again in" in line for line in lines)


async def test_a_source_that_comes_back(
    *, caller: Pai, settings: Settings, database: Database, own: ManagementSettings, serving: Any, tmp_path: Path
) -> None:
    """Where the table is nobody answers for a while: the task waits, longer each time, and then goes on."""
    await database.execute(
        "CREATE TABLE facts AS SELECT n::bigint AS id, 0.5::float8 AS x FROM generate_series(1, 3) n"
    )
    ids = await test_hologres.project(caller, settings, tmp_path, "FeatureDB")
    source = {"RegisterTable": "facts", "RegisterDatasourceId": ids["hologres"], "Fields": FIELDS}
    view = await test_hologres.view_of(caller, ids, **source)
    uri, config = test_hologres.place(settings)

    async def listening_at(port: int) -> None:
        shown = orjson.dumps({**config, "port": port}).decode()
        await caller.answer("UpdateDatasource", DatasourceId=ids["hologres"], Name="hologres", Uri=uri, Config=shown)

    task = await publish(caller, view)
    await listening_at(1)
    async with worker(settings, own.model_copy(update={"task_attempts": 50}), serving):
        await until_logged(caller, task, "again in 0.4 s")
        await listening_at(config["port"])
        await until_task(caller, task, "Success")
    lines = await logs(caller, task)
    assert any("attempt 1 failed" in line and line.endswith("again in 0.2 s") for line in lines), lines
    assert [row["user_id"] for row in await online(caller, view, 1, 3)] == [1, 3]


async def test_lists_of_tasks(caller: Pai, tmp_path: Path) -> None:
    write(tmp_path, range(3))
    profile = await view_of_users(caller, tmp_path)
    project = (await caller.answer("GetFeatureView", FeatureViewId=profile))["ProjectId"]
    stores = (await caller.answer("ListProjects"))["Projects"][0]
    elsewhere = await caller.made(
        "Project", Name="other", WorkspaceId="1", OfflineDatasourceId=stores["OfflineDatasourceId"],
        OnlineDatasourceId=stores["OnlineDatasourceId"],
    )  # fmt: skip
    entity = await caller.made("FeatureEntity", Name="user", JoinId="user_id", ProjectId=elsewhere)
    custom = await caller.made(
        "FeatureView", Name="custom", ProjectId=elsewhere, FeatureEntityId=entity, Type="Batch",
        WriteMethod="Custom", SyncOnlineTable=True, Fields=FIELDS,
    )  # fmt: skip
    (tmp_path / "rows.csv").write_text("1,0.5\n")
    first, second = await publish(caller, profile), await publish(caller, profile)
    source = {"Path": str(tmp_path / "rows.csv")}
    written = await caller.answer("WriteFeatureViewTable", FeatureViewId=custom, Mode="Overwrite", UrlDatasource=source)
    third = str(written["TaskId"])
    await caller.answer("StopTask", TaskId=first)
    for wanted, ids in (
        ({}, [third, second, first]),
        ({"TaskIds": [first, third, "99"]}, [third, first]),
        ({"ProjectId": project}, [second, first]),
        ({"ProjectId": elsewhere}, [third]),
        ({"Status": "Failure"}, [first]),
        ({"Status": "initializing"}, [third, second]),
        ({"Status": "Success"}, []),
        ({"Type": "WriteTable"}, [third]),
        ({"Type": "OfflineToOnline", "Status": "Initializing"}, [second]),
        ({"ObjectType": "FeatureView"}, [third, second, first]),
        ({"ObjectType": "ModelFeature"}, []),
        ({"ObjectId": profile, "ObjectType": "FeatureView"}, [second, first]),
        ({"PageSize": 1, "PageNumber": 2}, [second]),
    ):
        answer = await caller.answer("ListTasks", **wanted)
        assert [each["TaskId"] for each in answer["Tasks"]] == ids, wanted
        assert answer["TotalCount"] == (3 if "PageSize" in wanted else len(ids))
    await caller.refused("ListTasks", 400, "InvalidParameter", Status="Sleeping")
