"""What the store wrote itself goes when its project says so; nothing else ever does. The clock is the test's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chassis.inprocess import InProcessChannel
from chassis.postgres import Database
from chassis.settings import Settings
from services.management.life_cycle import LifeCycle
from services.management.offline import NewFile, OfflineStore
from services.management.process import open_service
from services.management.settings import ManagementSettings
from services.serving.process import open_service as open_serving
from services.serving.settings import ServingSettings
from tests.management.conftest import Pai
from tests.management.test_publish import until_task, worker
from tests.management.test_training import DAYS, day_of, export, model_of_clicks

NOW = datetime.now(UTC)


@pytest.fixture
async def serving(settings: Settings) -> AsyncIterator[Any]:
    async with open_serving(settings, ServingSettings()) as opened:
        yield opened


@pytest.fixture
async def services(settings: Settings, own: ManagementSettings, serving: Any) -> AsyncIterator[Any]:
    """Management with serving: stands in for the fixture without it."""
    async with open_service(settings, own, InProcessChannel(serving)) as opened:
        yield opened


async def test_tables_of_a_project_with_a_life_cycle(
    *, caller: Pai, settings: Settings, own: ManagementSettings, serving: Any, database: Database, tmp_path: Path
) -> None:
    model, ids = await model_of_clicks(caller, tmp_path, life_cycle=3)
    csv = tmp_path / "rows.csv"
    csv.write_text("1\n")
    view = await caller.made(
        "FeatureView", ProjectId=ids["project"], Name="own", Type="Batch", FeatureEntityId=ids["entity"],
        WriteMethod="Custom", SyncOnlineTable=True,
        Fields=[{"Name": "id", "Type": "INT64", "Attributes": ["PrimaryKey"]}],
    )  # fmt: skip
    source = {"UrlDatasource": {"Path": str(csv)}}
    async with worker(settings, own, serving):
        for day in DAYS[:2]:
            await until_task(caller, await export(caller, model, **day_of(day)), "Success")
        written = await caller.answer("WriteFeatureViewTable", FeatureViewId=view, Mode="Overwrite", **source)
        await until_task(caller, written["TaskId"], "Success")
    made, custom = tmp_path / "brief_ranking_training_set", tmp_path / "brief_own_offline"
    # Somebody put a file of their own beside one of ours, and one in the place of another.
    theirs = made / f"ds={DAYS[0]}" / "theirs.parquet"
    pq.write_table(pa.table({"x": [1]}), theirs)
    replaced = made / f"ds={DAYS[1]}" / "data.parquet"
    pq.write_table(pa.table({"x": [1]}), replaced)
    life_cycle = LifeCycle(database, OfflineStore(own.offline_roots))
    assert await life_cycle.remove_expired(NOW + timedelta(days=2, hours=23)) == []
    removed = await life_cycle.remove_expired(NOW + timedelta(days=3, hours=1))
    assert sorted(removed) == sorted([theirs.parent / "data.parquet", custom / "data.parquet"])
    assert not custom.exists()
    assert sorted(made.glob("*/*")) == sorted([theirs, replaced])
    # What the views and label tables are made of was there before us.
    assert {path.name for path in tmp_path.iterdir()} >= {"clicks", "users.parquet", "rows.csv"}
    assert await life_cycle.remove_expired(NOW + timedelta(days=999)) == []


async def test_a_file_that_is_written_again_lasts_from_then_on(database: Database, tmp_path: Path) -> None:
    life_cycle = LifeCycle(database, OfflineStore((tmp_path,)))
    table = tmp_path / "t"

    async def show(task_id: int, days: int) -> Path:
        file = NewFile(table, task_id, 1)
        with file.writing() as path:
            pq.write_table(pa.table({"x": [1]}).replace_schema_metadata({NewFile.MADE_BY: str(task_id)}), path)
        await life_cycle.show(file, table, days)
        return file.path

    first = await show(1, 1)
    assert await show(2, 5) == first
    assert await life_cycle.remove_expired(NOW + timedelta(days=3)) == []
    # In the end it is kept for ever.
    await show(3, 0)
    assert await life_cycle.remove_expired(NOW + timedelta(days=999)) == []
    await show(4, 1)
    assert await life_cycle.remove_expired(NOW + timedelta(days=3)) == [first]
    assert [*tmp_path.iterdir()] == []


async def test_a_folder_that_is_not_allowed_any_more_is_left_alone(database: Database, tmp_path: Path) -> None:
    file = NewFile(tmp_path / "t", 1, 1)
    with file.writing() as path:
        pq.write_table(pa.table({"x": [1]}).replace_schema_metadata({NewFile.MADE_BY: "1"}), path)
    await LifeCycle(database, OfflineStore((tmp_path,))).show(file, tmp_path / "t", 1)
    elsewhere = LifeCycle(database, OfflineStore((tmp_path / "other",)))
    assert await elsewhere.remove_expired(NOW + timedelta(days=9)) == []
    assert file.path.exists()
