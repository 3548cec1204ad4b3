"""Sequence views: behaviours are published, and shown as PAI's SDKs show them."""

from __future__ import annotations

import asyncio
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
        *(({"play_time_filter": text}, "play_time_filter") for text in ("x", "look", ":1", "look:a", "look:nan")),
        ({"play_time_filter": "look:1", "play_time_field": ""}, "play_time_field"),
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
    # Nor can behaviours be written to the first one, which does not say what the item is.
    rows = {"FeatureViewId": "1", "Mode": "Merge", "Rows": ["{}"]}
    assert "item_id_field" in await caller.refused("WriteFeatureViewTable", 400, "InvalidParameter", **rows)


async def written(caller: Pai, view: str, *rows: dict[str, Any], mode: str = "Merge") -> None:
    texts = [orjson.dumps(row).decode() for row in rows]
    answer = await caller.answer("WriteFeatureViewTable", FeatureViewId=view, Mode=mode, Rows=texts)
    assert answer["TaskId"] == ""


def behaviour(user: str, item: str, event: str, when: int, **more: Any) -> dict[str, Any]:
    return {"user_id": user, "item": item, "event": event, "when": when, **more}


async def test_behaviours_are_written_row_by_row(
    caller: Pai, settings: Settings, own: ManagementSettings, serving: Any, tmp_path: Path
) -> None:
    """They join those that were published, whose publishing again changes nothing about them."""
    rows = [row for row in behaviours(3) if row["item"] is not None]
    table, today = rows[:40], rows[40:]
    write(tmp_path, table)
    view = await view_of(caller, tmp_path)
    await written(caller, view, behaviour("new", "a", "click", 5), behaviour("new", "b", "buy", 5, price="3"))
    [found] = await online(caller, view, "new")
    # Of two at the same time the one that was written last is the newest.
    assert (found["clicks"], found["clicks__event"], found["all__price"]) == ("b;a", "buy;click", "3;")
    async with worker(settings, own, serving):
        for _ in range(2):
            await until_task(caller, await publish(caller, view), "Success")
            for start in range(0, len(today), 7):
                await written(caller, view, *({**row, "price": str(row["price"])} for row in today[start : start + 7]))
    for row in await online(caller, view, "u0", "u1", "u2", "u3"):
        own_rows = [each for each in [*table, *today] if each["user"] == row["user_id"]]
        for name, events, length in (("clicks", ("click", "buy"), 3), ("all", (), 2)):
            expected = sequence(own_rows, 10**9, events, length)
            assert row[name] == shown(expected, lambda each: each["item"])
            assert row[f"{name}__event"] == shown(expected, lambda each: each["event"])
            assert row[f"{name}__when"] == shown(expected, lambda each: str(each["when"]))
    # Overwrite: of what was written this way only these are left. What was published stays.
    await written(caller, view, behaviour("new", "c", "look", 7), mode="Overwrite")
    assert [row["all"] for row in await online(caller, view, "new")] == ["c"]
    assert len(await online(caller, view, "new", "u0", "u1", "u2", "u3")) == 5
    good = behaviour("new", "a", "click", 5)
    for change, said in (
        ({"item": None}, "row 2: item is missing"), ({"when": None}, "row 2: when is missing"),
        ({"user_id": None}, "row 2: user_id is missing"), ({"when": "now"}, "row 2, column when"),
        ({"event": ""}, "row 2: event is empty"), ({"colour": 1}, "'colour' is no field"),
    ):  # fmt: skip
        texts = [orjson.dumps({**good, **each}).decode() for each in ({}, change)]
        message = await caller.refused(
            "WriteFeatureViewTable", 400, "InvalidParameter", FeatureViewId=view, Mode="Merge", Rows=texts
        )
        assert said in message
    assert [row["all"] for row in await online(caller, view, "new")] == ["c"]
    # Statistics are of both places: a row of each user who was published, and one of who was written.
    listed = await caller.answer("ListDatasourceFeatureViews", DatasourceId="2")
    assert listed["FeatureViews"][0]["UsageStatistics"]["RowCount"] == 5
    await caller.answer("DeleteFeatureView", FeatureViewId=view)
    project, entity = "1", "1"
    again = await caller.made(
        "FeatureView", ProjectId=project, Name="behaviours", Type="Sequence", FeatureEntityId=entity,
        WriteMethod="Custom", SyncOnlineTable=True, Fields=FIELDS, Config=orjson.dumps(SEQUENCES).decode(),
    )  # fmt: skip
    assert await online(caller, again, "new", "u0") == []


async def test_writers_at_once_lose_nothing(caller: Pai, tmp_path: Path) -> None:
    config = {**SEQUENCES, "seq_config": [{"online_seq_name": "all", "seq_len": 100}]}
    view = await view_of(caller, tmp_path, Config=orjson.dumps(config).decode())
    await asyncio.gather(*(written(caller, view, behaviour("u", f"i{n:02}", "click", n)) for n in range(20)))
    [row] = await online(caller, view, "u")
    assert row["all"].split(";") == [f"i{n:02}" for n in reversed(range(20))]


async def test_behaviours_that_were_played_too_shortly_count_for_nothing(
    caller: Pai, settings: Settings, own: ManagementSettings, serving: Any, tmp_path: Path
) -> None:
    config = {**SEQUENCES, "play_time_filter": "look:1.5;buy:2", "seq_config": [{"online_seq_name": "s", "seq_len": 9}]}
    rows = [
        {"user": "u", "item": item, "event": event, "when": when, "played": played, "price": None}
        for when, (item, event, played) in enumerate((
            ("long", "look", 1.6), ("just", "look", 1.5), ("none", "look", None), ("long", "look", 0.1),
            ("short", "click", 0.1), ("bought", "buy", 3.0),
        ))
    ]  # fmt: skip
    write(tmp_path, rows)
    view = await view_of(caller, tmp_path, Config=orjson.dumps(config).decode())
    async with worker(settings, own, serving):
        await until_task(caller, await publish(caller, view), "Success")
    await written(caller, view, *(behaviour("w", r["item"], r["event"], r["when"], played=r["played"]) for r in rows))
    for row in await online(caller, view, "u", "w"):
        assert (row["s"], row["s__when"]) == ("bought;short;long", "5;4;0")


async def test_items_are_grouped_with_their_events(
    caller: Pai, settings: Settings, own: ManagementSettings, serving: Any, tmp_path: Path
) -> None:
    config = {
        **SEQUENCES, "custom_deduplication_field": "price",
        "seq_config": [{"online_seq_name": "s", "seq_event": "click|buy", "seq_len": 2}],
    }  # fmt: skip
    told = (("a", "click", 1, 1), ("a", "buy", 2, 1), ("a", "click", 3, 2), ("b", "look", 4, 1), ("b", "buy", 5, 1))
    rows = [
        {"user": "u", "item": item, "event": event, "when": when, "played": when / 4, "price": price}
        for item, event, when, price in told
    ]
    write(tmp_path, rows[:3])
    view = await view_of(caller, tmp_path, Config=orjson.dumps(config).decode())
    async with worker(settings, own, serving):
        await until_task(caller, await publish(caller, view), "Success")

    async def columns(**wanted: Any) -> tuple[str, ...]:
        asked = {"FeatureViewId": view, "JoinIds": ["u"], "Config": orjson.dumps(wanted).decode()}
        [text] = (await caller.answer("ListFeatureViewOnlineFeatures", **asked))["OnlineFeatures"]
        row = orjson.loads(text)
        return tuple(row.get(f"s{name}") for name in ("", "__event", "__when", "__played", "__price"))

    assert await columns(dlrm_hstu=True) == ("a;a", "click;buy|click", "3;2", "0.75;0.50", "2;1")
    assert await columns(dlrm_hstu=False) == ("a;a", "click;buy", "3;2", "0.75;0.50", None)
    await written(caller, view, *({**row, "price": str(row["price"])} for row in rows[3:]))
    assert await columns(dlrm_hstu=True) == ("b;a", "buy;click", "5;3", "1.25;0.75", "1;2")
    for config_text in ('{"dlrm_hstu": 1}', "{"):
        await caller.refused(
            "ListFeatureViewOnlineFeatures", 400, "InvalidParameter", FeatureViewId=view, JoinIds=["u"],
            Config=config_text,
        )  # fmt: skip
