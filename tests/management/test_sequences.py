"""Sequence views: behaviours are published, and shown as PAI's SDKs show them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chassis.inprocess import InProcessChannel
from chassis.settings import Settings
from services.management import sequences
from services.management.offline import OfflineStore
from services.management.process import open_service
from services.management.settings import ManagementSettings
from services.management.workspace import Workspace
from services.serving.process import open_service as open_serving
from services.serving.settings import ServingSettings
from tests.management.conftest import Pai, catalogue
from tests.management.test_publish import logs, online, publish, until_task, worker
from tests.management.test_training import SEQUENCES, START, kept_fields, sequence, shown, view_row

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
                played = shown(expected, lambda each: f"{each['played'] or 0:.2f}")
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
        ({"item_id_field": "user"}, "one field for each"), ({"play_time_field": "when"}, "one field for each"),
        ({"custom_deduplication_field": ["price"]}, "custom_deduplication_field"),
        ({"custom_deduplication_field": "item"}, "custom_deduplication_field"),
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
    view = await caller.made(
        "FeatureView", ProjectId=ids["project"], Name="ready", Type="Sequence", FeatureEntityId=ids["entity"],
        WriteMethod="ByReadyMadeTable", RegisterTable="behaviours", RegisterDatasourceId=ids["offline"],
        SyncOnlineTable=True, Fields=FIELDS, Config=orjson.dumps({
            "offline_seq_table_name": "ready", "offline_seq_table_pk_field": "user",
            "offline_seq_table_event_time_field": "when", "seq_config": [first],
        }).decode(),
    )  # fmt: skip
    message = await caller.refused(
        "PublishFeatureViewTable", 400, "InvalidParameter", FeatureViewId=view, Mode="Merge", OfflineToOnline=True
    )
    assert "has no item_id_field" in message
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


async def test_behaviours_that_were_played_too_shortly_are_not_shown(
    caller: Pai, settings: Settings, own: ManagementSettings, serving: Any, tmp_path: Path
) -> None:
    """As in PAI: one that was played too shortly takes the place of an older one, and its place in the sequence."""
    config = {**SEQUENCES, "play_time_filter": "look:1.5;buy:2", "seq_config": [{"online_seq_name": "s", "seq_len": 5}]}
    rows = [
        {"user": "u", "item": item, "event": event, "when": when, "played": played, "price": None}
        for when, (item, event, played) in enumerate((
            ("old", "click", 9.0), ("again", "look", 9.0), ("long", "look", 1.6), ("just", "look", 1.5),
            ("again", "look", 0.1), ("short", "click", 0.1), ("bought", "buy", 3.0),
        ))
    ]  # fmt: skip
    write(tmp_path, rows)
    view = await view_of(caller, tmp_path, Config=orjson.dumps(config).decode())
    async with worker(settings, own, serving):
        await until_task(caller, await publish(caller, view), "Success")
    await written(caller, view, *(behaviour("w", r["item"], r["event"], r["when"], played=r["played"]) for r in rows))
    for row in await online(caller, view, "u", "w"):
        assert (row["s"], row["s__when"]) == ("bought;short;long", "6;5;2")


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


async def test_behaviours_without_sequences(
    caller: Pai, settings: Settings, own: ManagementSettings, serving: Any, tmp_path: Path
) -> None:
    """`only_behavior`: the behaviours themselves are shown, with all fields of the view, as PAI's SDKs read them."""
    more = (("price", "DOUBLE"), ("first", "BOOLEAN"), ("count", "INT32"))
    fields = [*FIELDS, *({"Name": name, "Type": kind, "Attributes": []} for name, kind in more)]
    config = {**SEQUENCES, "registration_mode": "only_behavior", "seq_len_online": 2, "play_time_filter": "look:1"}
    view = await view_of(caller, tmp_path, Fields=fields, Config=orjson.dumps(config).decode())
    rows = [
        {"user": "u", "item": item, "event": event, "when": when, "played": played, "price": when / 2,
         "first": when == 1, "count": None}
        for when, (item, event, played) in enumerate((
            ("a", "click", None), ("b", "click", 0.5), ("c", "click", 2.0), ("b", "click", 1.0), ("d", "look", 1.0),
        ))
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "behaviours.parquet")
    async with worker(settings, own, serving):
        await until_task(caller, await publish(caller, view), "Success")

    def expected(row: dict[str, Any], user: str) -> dict[str, Any]:
        return {"user_id": user, **{name: value for name, value in row.items() if name != "user"}}

    # Of each event the two newest are kept; of these the one that was played too shortly is left out.
    assert await online(caller, view, "u", "nobody") == [expected(rows[3], "u"), expected(rows[2], "u")]
    await written(caller, view, {**expected(rows[0], "u"), "when": 9, "played": 1.0})
    assert [(row["item"], row["when"]) for row in await online(caller, view, "u")] == [("a", 9), ("b", 3)]
    # What is kept of each is what the view had then.
    wider = [*fields, {"Name": "page", "Type": "STRING", "Attributes": []}]
    message = await caller.refused("UpdateFeatureView", 400, "InvalidParameter", FeatureViewId=view, Fields=wider)
    assert "can have no more fields" in message
    # There are no sequences that a model could take.
    label = await caller.made(
        "LabelTable", ProjectId="1", DatasourceId="1", Name="behaviours",
        Fields=[{"Name": "user_id", "Type": "STRING", "Attributes": []},
                {"Name": "when", "Type": "INT64", "Attributes": ["EventTime"]}],
    )  # fmt: skip
    model = await caller.made(
        "ModelFeature", ProjectId="1", Name="m", LabelTableId=label, SequenceFeatureViewIds=[view],
        Features=[{"FeatureViewId": view, "Name": "item", "Type": "STRING"}],
    )  # fmt: skip
    message = await caller.refused("ExportModelFeatureTrainingSetTable", 400, "InvalidParameter", ModelFeatureId=model)
    assert "no sequences" in message


async def test_a_view_shows_the_behaviours_of_another_one(
    caller: Pai, settings: Settings, own: ManagementSettings, serving: Any, tmp_path: Path
) -> None:
    """`referenced_feature_view_id`, as in PAI: the sequences are the view's own, the behaviours those of the other."""
    rows = behaviours(4)
    write(tmp_path, rows)
    fields = [*FIELDS, {"Name": "price", "Type": "INT64", "Attributes": []}]
    config = {**SEQUENCES, "registration_mode": "only_behavior"}
    view = await view_of(caller, tmp_path, Fields=fields, Config=orjson.dumps(config).decode())

    def referring(**changes: Any) -> dict[str, Any]:
        own_config = {**SEQUENCES, "referenced_feature_view_id": int(view), **changes.pop("config", {})}
        return {
            "ProjectId": "1", "Name": "sequences", "Type": "Sequence", "FeatureEntityId": "1",
            "WriteMethod": "Custom", "SyncOnlineTable": True, "Fields": FIELDS,
            "Config": orjson.dumps(own_config).decode(), **changes,
        }  # fmt: skip

    shows = await caller.made("FeatureView", **referring())
    # What goes by its name finds it, too.
    got = await caller.answer("GetFeatureView", FeatureViewId=shows)
    assert got["PublishTableScript"] == ""
    kept = orjson.loads(got["Config"])
    assert kept == {**SEQUENCES, "referenced_feature_view_id": int(view), "referenced_feature_view_name": "behaviours"}
    async with worker(settings, own, serving):
        await until_task(caller, await publish(caller, view), "Success")
        await written(caller, view, behaviour("new", "z", "click", 5))
        found = {row["user_id"]: row for row in await online(caller, shows, "u0", "u1", "u2", "u3", "new")}
        assert found["new"]["clicks"] == "z"
        for user in ("u0", "u1", "u2", "u3"):
            own_rows = [each for each in rows if each["user"] == user]
            for name, events, length in (("clicks", ("click", "buy"), 3), ("all", (), 2)):
                expected = sequence(own_rows, 10**9, events, length)
                assert found[user][name] == shown(expected, lambda each: each["item"])
            prices = shown(expected, lambda each: "" if each["price"] is None else str(each["price"]))
            assert found[user]["all__price"] == prices
        # Its training sets are made of the other one's table.
        label = await caller.made(
            "LabelTable", ProjectId="1", DatasourceId="1", Name="labels",
            Fields=[{"Name": "user_id", "Type": "STRING", "Attributes": []},
                    {"Name": "at", "Type": "TIMESTAMP", "Attributes": ["EventTime"]}],
        )  # fmt: skip
        labels = [{"user_id": f"u{n}", "at": START + timedelta(minutes=1)} for n in range(4)]
        pq.write_table(pa.Table.from_pylist(labels), tmp_path / "labels.parquet")
        model = await caller.made(
            "ModelFeature", ProjectId="1", Name="m", LabelTableId=label,
            # As in PAI, a sequence is a feature by its name offline.
            Features=[{"FeatureViewId": shows, "Name": "clicks", "AliasName": "last", "Type": "STRING"}],
        )  # fmt: skip
        task = (await caller.answer("ExportModelFeatureTrainingSetTable", ModelFeatureId=model,
                                    RealTimeIterateInterval=5))["TaskId"]  # fmt: skip
        await until_task(caller, task, "Success")
    assert any("RealTimeIterateInterval has no effect" in line for line in await logs(caller, task))
    made = pq.read_table(tmp_path / "shop_m_training_set").to_pylist()
    assert {row["user_id"]: row["last"] for row in made} == {
        f"u{n}": shown(
            sequence([each for each in rows if each["user"] == f"u{n}"], 10**9, ("click", "buy"), 3),
            lambda each: each["item"],
        )
        for n in range(4)
    }
    # It has no rows of its own, and nobody takes the other one's away.
    row = orjson.dumps(behaviour("u0", "a", "click", 1)).decode()
    for operation, asked in (
        ("PublishFeatureViewTable", {"Mode": "Overwrite", "OfflineToOnline": True}),
        ("WriteFeatureViewTable", {"Mode": "Merge", "Rows": [row]}),
        ("WriteFeatureViewTable", {"Mode": "Merge", "UrlDatasource": {"Path": "x.csv"}}),
    ):
        message = await caller.refused(operation, 400, "InvalidParameter", FeatureViewId=shows, **asked)
        assert "shows the behaviours of feature view behaviours" in message
    await caller.refused("DeleteFeatureView", 400, "DependencyExists", FeatureViewId=view)
    other = await caller.made("FeatureEntity", Name="other", JoinId="other_id", ProjectId="1")
    plain = await caller.made("FeatureView", **referring(Name="plain", Type="Batch"))
    by_time = ["user_id", "item_id", "event", "timestamp"]
    for change, said in (
        ({"config": {"referenced_feature_view_name": "other"}}, "as other"),
        ({"config": {"referenced_feature_view_id": 0, "referenced_feature_view_name": "behaviours"}}, "needs a ref"),
        ({"config": {"referenced_feature_view_id": "1"}}, "needs a number"),
        ({"config": {"referenced_feature_view_id": int(shows)}}, "refers to another one"),
        ({"config": {"referenced_feature_view_id": int(plain)}}, "of type Batch"),
        ({"config": {"item_id_field": "thing"}}, "has item where it has thing"),
        ({"config": {"deduplication_method": by_time}}, "has ['item', 'event'] where"),
        ({"config": {"seq_config": []}}, "seq_config"),
        ({"config": {"registration_mode": "both"}}, "registration_mode"),
        ({"config": {"seq_len_online": -1}}, "seq_len_online"),
        ({"config": {"seq_config": [{**SEQUENCES["seq_config"][1], "online_behavior_table_fields": ["x"]}]}}, "no x"),
        ({"FeatureEntityId": other}, "another feature entity"),
    ):  # fmt: skip
        message = await caller.refused("CreateFeatureView", 400, "InvalidParameter", **referring(Name="v", **change))
        assert said in message, (change, message)
    await caller.refused(
        "CreateFeatureView", 404, "ResourceNotFound", **referring(config={"referenced_feature_view_id": 999})
    )
    await caller.answer("DeleteModelFeature", ModelFeatureId=model)
    await caller.answer("DeleteFeatureView", FeatureViewId=shows)
    await caller.answer("DeleteFeatureView", FeatureViewId=view)


@pytest.mark.parametrize("seed", range(12))
def test_what_is_kept_is_the_same_however_it_comes(seed: int, tmp_path: Path) -> None:
    """Published at once or in two parts, to serving or to Hologres, or written row by row."""
    pick = random.Random(seed)
    way = pick.choice(("item", "time", "custom"))
    config = {
        **SEQUENCES, "seq_len_online": pick.choice((0, 2)),
        "registration_mode": pick.choice(("full_sequence", "full_sequence", "only_behavior")),
        "deduplication_method": ["user_id", "item_id", "event", *(["timestamp"] if way == "time" else [])],
        "custom_deduplication_field": "price" if way == "custom" else "",
        "seq_config": [
            {"online_seq_name": "a", "seq_event": "click|buy", "seq_len": pick.randrange(1, 6)},
            {"online_seq_name": "b", "seq_len": pick.randrange(1, 9), "online_behavior_table_fields": ["price"]},
        ],
    }  # fmt: skip
    view = view_row(
        1, "behaviours", 1, kept_fields(("user", "STRING", "PrimaryKey"), ("item", "STRING", "")), type="Sequence",
        config=orjson.dumps(config).decode(), online_type="FeatureDB",
    )  # fmt: skip
    rows = [{**row, "user": "u", "item": row["item"] or "d"} for row in behaviours(seed)]
    half = pick.randrange(len(rows))
    shows = sequences.behaviours_of(view)
    # The last one first: of two at the same time it is the newer one.
    whole, older, newer = ([shows.kept(row) for row in some[::-1]] for some in (rows, rows[:half], rows[half:]))
    expected = shows.newest(whole)
    assert shows.newest(shows.newest(newer) + shows.newest(older)) == expected
    write(tmp_path, rows)

    def published(online_type: str, target: str) -> list[dict[str, Any]]:
        table = OfflineStore([tmp_path]).open({"root": str(tmp_path)}, "behaviours")
        (folder := tmp_path / target).mkdir()
        workspace = Workspace(folder, 200, 1)
        made = sequences.gathered({**view, "online_type": online_type}, table, {}, workspace, folder / "made.parquet")
        return pq.read_table(made.files[0].path).to_pylist()

    [row] = published("FeatureDB", "served")
    assert row["behaviours"] == expected
    assert [shows.kept(each) for each in published("Hologres", "rows")[::-1]] == expected
