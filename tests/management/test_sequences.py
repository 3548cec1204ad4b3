"""Sequence views: behaviours are published, and shown as PAI's SDKs show them."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chassis.inprocess import InProcessChannel
from chassis.settings import Settings
from services.management.process import open_service
from services.management.settings import ManagementSettings
from services.serving.process import open_service as open_serving
from services.serving.settings import ServingSettings
from tests.management.conftest import Pai, catalogue
from tests.management.test_publish import logs, online, publish, until_task, worker
from tests.management.test_training import SEQUENCES, START, sequence, shown

FIELDS = [
    {"Name": "user", "Type": "STRING", "Attributes": ["PrimaryKey"]},
    {"Name": "item", "Type": "STRING", "Attributes": []},
    {"Name": "event", "Type": "STRING", "Attributes": []},
    {"Name": "when", "Type": "INT64", "Attributes": ["EventTime"]},
]


@pytest.fixture
async def serving(settings: Settings) -> AsyncIterator[Any]:
    async with open_serving(settings, ServingSettings()) as opened:
        yield opened


@pytest.fixture
async def services(settings: Settings, own: ManagementSettings, serving: Any) -> AsyncIterator[Any]:
    """Management with serving: stands in for the fixture without it."""
    async with open_service(settings, own, InProcessChannel(serving)) as opened:
        yield opened


async def view_of(caller: Pai, folder: Path, **changes: Any) -> str:
    ids = await catalogue(caller, config=orjson.dumps({"root": str(folder)}).decode())
    view = {
        "ProjectId": ids["project"], "Name": "behaviours", "Type": "Sequence", "FeatureEntityId": ids["entity"],
        "WriteMethod": "ByReadyMadeTable", "RegisterTable": "behaviours", "RegisterDatasourceId": ids["offline"],
        "SyncOnlineTable": True, "Fields": FIELDS, "Config": orjson.dumps(SEQUENCES).decode(),
    }  # fmt: skip
    return await caller.made("FeatureView", **{**view, **changes})


def behaviours(seed: int) -> list[dict[str, Any]]:
    pick = random.Random(seed)
    return [
        {"user": f"u{pick.randrange(4)}", "item": pick.choice(["a", "b", "c", None]),
         "event": pick.choice(["click", "buy", "look"]), "when": int(START.timestamp()) + pick.randrange(30),
         "played": pick.choice([None, pick.randrange(300) / 100]), "price": pick.choice([None, pick.randrange(9)])}
        for _ in range(80)
    ]  # fmt: skip


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    schema = pa.schema([("user", pa.string()), ("item", pa.string()), ("event", pa.string()), ("when", pa.int64()),
                        ("played", pa.float64()), ("price", pa.int64())])  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, schema), folder / "behaviours.parquet")


async def test_behaviours_become_sequences(
    caller: Pai, settings: Settings, own: ManagementSettings, serving: Any, tmp_path: Path
) -> None:
    rows = behaviours(1)
    write(tmp_path, rows)
    view = await view_of(caller, tmp_path)
    async with worker(settings, own, serving):
        await until_task(caller, await publish(caller, view), "Success")
        before = int(datetime.now(UTC).timestamp())
        found = {row["user_id"]: row for row in await online(caller, view, "u0", "u1", "u2", "u3", "nobody")}
        after = int(datetime.now(UTC).timestamp())
        assert set(found) == {row["user"] for row in rows}
        for user, row in found.items():
            own_rows = [each for each in rows if each["user"] == user]
            for name, events, length in (("clicks", ("click", "buy"), 3), ("all", (), 2)):
                expected = sequence(own_rows, 10**9, events, length)
                assert row[name] == row[f"{name}__item"] == shown(expected, lambda each: each["item"])
                assert row[f"{name}__event"] == shown(expected, lambda each: each["event"])
                assert row[f"{name}__when"] == shown(expected, lambda each: str(each["when"]))
                played = shown(expected, lambda each: "" if each["played"] is None else f"{each['played']:.2f}")
                assert row[f"{name}__played"] == played
                ages = [
                    int(age) + each["when"]
                    for age, each in zip(row[f"{name}__ts"].split(";"), expected or [], strict=True)
                ]
                assert all(before <= now <= after for now in ages)
            prices = shown(expected, lambda each: "" if each["price"] is None else str(each["price"]))
            assert row["all__price"] == prices
        # Overwrite: only who is in the new table. Merge: the others stay as they are.
        write(tmp_path, [{**rows[0], "user": "u9", "item": "z", "event": "click"}])
        await until_task(caller, await publish(caller, view, Mode="Merge"), "Success")
        assert [row["clicks"] for row in await online(caller, view, "u9")] == ["z"]
        assert len(await online(caller, view, *found)) == len(found)
        await until_task(caller, await publish(caller, view), "Success")
        assert len(await online(caller, view, "u9", *found)) == 1
        pq.write_table(pa.table({"user": ["u"]}), tmp_path / "behaviours.parquet")
        await caller.refused("PublishFeatureViewTable", 400, "InvalidParameter", FeatureViewId=view, Mode="Overwrite",
                             OfflineToOnline=True)  # fmt: skip
        assert await logs(caller, "1")


async def test_configurations_of_sequences(caller: Pai, tmp_path: Path) -> None:
    write(tmp_path, behaviours(2))
    ids = await catalogue(caller, config=orjson.dumps({"root": str(tmp_path)}).decode())
    good = SEQUENCES
    [first, *_] = good["seq_config"]  # type: ignore[misc]
    for number, (change, said) in enumerate((
        ({"item_id_field": ""}, "item_id_field"), ({"timestamp_field": 1}, "timestamp_field"),
        ({"seq_config": []}, "seq_config"), ({"seq_config": [1]}, "seq_config"),
        ({"seq_config": [{**first, "seq_len": 0}]}, "seq_len"),
        ({"seq_config": [{**first, "seq_len": True}]}, "seq_len"),
        ({"seq_config": [{**first, "offline_seq_name": "", "online_seq_name": ""}]}, "seq_name"),
        ({"deduplication_method": ["item_id"]}, "deduplication_method"),
        ({"play_time_filter": "x"}, "play_time_filter"),
    )):  # fmt: skip
        view = await caller.made(
            "FeatureView", ProjectId=ids["project"], Name=f"v{number}", Type="Sequence", FeatureEntityId=ids["entity"],
            WriteMethod="ByReadyMadeTable", RegisterTable="behaviours", RegisterDatasourceId=ids["offline"],
            SyncOnlineTable=True, Fields=FIELDS, Config=orjson.dumps({**good, **change}).decode(),
        )  # fmt: skip
        message = await caller.refused(
            "PublishFeatureViewTable", 400, "InvalidParameter", FeatureViewId=view, Mode="Merge", OfflineToOnline=True
        )
        assert said in message
    rows = {"FeatureViewId": "1", "Mode": "Merge", "Rows": ["{}"]}
    await caller.refused("WriteFeatureViewTable", 400, "InvalidParameter", **rows)
