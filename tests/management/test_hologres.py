"""Hologres, which is any PostgreSQL: its tables as a source, and online rows in it. The test's own database is one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chassis import errors
from chassis.inprocess import InProcessChannel
from chassis.settings import Settings
from services.management.hologres import quoted
from services.management.process import open_service
from services.management.settings import ManagementSettings
from services.serving.process import open_service as open_serving
from services.serving.settings import ServingSettings
from tests.management.conftest import Pai
from tests.management.test_publish import logs, online, publish, until_logged, until_task, worker

HOSTILE = "a\"; DROP TABLE x; -- '$1"
FIELDS = [
    {"Name": "id", "Type": "INT64", "Attributes": ["PrimaryKey"]},
    {"Name": HOSTILE, "Type": "DOUBLE", "Attributes": []},
    {"Name": "seen", "Type": "TIMESTAMP", "Attributes": ["EventTime"]},
]


def place(settings: Settings) -> tuple[str, dict[str, Any]]:
    """Uri and Config of a datasource that leads to the test's own database."""
    url = urlsplit(settings.postgres_url.get_secret_value())
    config = {"host": url.hostname, "port": url.port, "user": url.username, "password": url.password or ""}
    return f"instance{url.path}", config


@pytest.fixture
def own(tmp_path: Path, settings: Settings) -> ManagementSettings:
    _, config = place(settings)
    hosts = (f"{config['host']}:{config['port']}", "127.0.0.1:1")
    return ManagementSettings(
        offline_roots=(tmp_path,), lease_seconds=2, retry_seconds=0.2, datasource_hosts=hosts, ttl_unit="seconds"
    )


@pytest.fixture
async def serving(settings: Settings) -> AsyncIterator[Any]:
    async with open_serving(settings, ServingSettings()) as opened:
        yield opened


@pytest.fixture
async def services(settings: Settings, own: ManagementSettings, serving: Any) -> AsyncIterator[Any]:
    """Management with serving: stands in for the fixture without it."""
    async with open_service(settings, own, InProcessChannel(serving)) as opened:
        yield opened


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[asyncpg.Connection]:
    """A connection of somebody else who uses the database."""
    connection = await asyncpg.connect(settings.postgres_url.get_secret_value())
    yield connection
    await connection.close()


async def project(caller: Pai, settings: Settings, folder: Path, online_type: str = "Hologres") -> dict[str, str]:
    """A project whose online rows are in Hologres, and what it stands on."""
    uri, config = place(settings)
    offline = {"Type": "MaxCompute", "Uri": "p", "Config": orjson.dumps({"root": str(folder)}).decode()}
    hologres = {"Type": "Hologres", "Uri": uri, "Config": orjson.dumps(config).decode()}
    ids = {
        "offline": await caller.made("Datasource", Name="offline", WorkspaceId="1", **offline),
        "hologres": await caller.made("Datasource", Name="hologres", WorkspaceId="1", **hologres),
    }
    target = ids["hologres"]
    if online_type != "Hologres":
        target = await caller.made("Datasource", Name="online", WorkspaceId="1", Type=online_type, Uri="feature_db")
    ids["project"] = await caller.made(
        "Project", Name="Shop", WorkspaceId="1", OfflineDatasourceId=ids["offline"], OnlineDatasourceId=target
    )
    ids["entity"] = await caller.made("FeatureEntity", Name="user", JoinId="user_id", ProjectId=ids["project"])
    return ids


async def view_of(caller: Pai, ids: dict[str, str], **changes: Any) -> str:
    view = {
        "ProjectId": ids["project"], "Name": "Profile", "Type": "Batch", "FeatureEntityId": ids["entity"],
        "WriteMethod": "ByReadyMadeTable", "RegisterTable": "users", "RegisterDatasourceId": ids["offline"],
        "SyncOnlineTable": True, "Fields": FIELDS,
    }  # fmt: skip
    return await caller.made("FeatureView", **{**view, **changes})


def write(folder: Path, *rows: tuple[int | None, float | None, int | None]) -> None:
    ids, values, seen = zip(*rows, strict=True)
    table = pa.table({"id": pa.array(ids, pa.int64()), HOSTILE: values, "seen": pa.array(seen, pa.timestamp("ms"))})
    pq.write_table(table, folder / "users.parquet")


async def test_its_tables_are_listed(
    caller: Pai, settings: Settings, database: asyncpg.Connection, tmp_path: Path
) -> None:
    ids = await project(caller, settings, tmp_path)
    name = 'odd "name", with.dot'
    await database.execute(
        f'CREATE TABLE "{name.replace(chr(34), chr(34) * 2)}" (id bigint PRIMARY KEY, p point, t text[])'
    )
    await database.execute(
        "CREATE SCHEMA other; CREATE TABLE other.things (x real); CREATE VIEW seen AS SELECT 1 AS one"
    )
    hologres = {"DatasourceId": ids["hologres"]}
    listed = await caller.answer("ListDatasourceTables", **hologres)
    assert (listed["Tables"], listed["TotalCount"]) == ([name, "seen"], 2)
    assert (await caller.answer("ListDatasourceTables", TableName="odd", **hologres))["Tables"] == [name]
    assert (await caller.answer("ListDatasourceTables", SchemaName="other", **hologres))["Tables"] == ["other.things"]
    fields = (await caller.answer("GetDatasourceTable", TableName=name, **hologres))["Fields"]
    assert [(each["Name"], each["Type"], each["Attributes"]) for each in fields] == [
        ("id", "INT64", ["PrimaryKey"]), ("p", "STRING", []), ("t", "ARRAY<STRING>", []),
    ]  # fmt: skip
    assert (await caller.answer("GetDatasourceTable", TableName="other.things", **hologres))["Fields"][0]["Name"] == "x"
    for absent in ("nothing", "other.nothing", "\0", "'; --"):
        await caller.refused("GetDatasourceTable", 404, "ResourceNotFound", TableName=absent, **hologres)


async def test_rows_are_published_to_it(
    *, caller: Pai, settings: Settings, own: ManagementSettings, serving: Any, database: asyncpg.Connection,
    tmp_path: Path,
) -> None:  # fmt: skip
    ids = await project(caller, settings, tmp_path)
    view = await view_of(caller, ids)
    assert await online(caller, view, 1) == []
    # Of two rows of one key the newer one stays; a row without a time is the oldest.
    write(tmp_path, (1, 0.5, 1_000), (1, 9.5, 500), (2, None, None), (2, 1.5, None), (3, 2.5, 3_000))
    async with worker(settings, own, serving):
        done = await until_task(caller, await publish(caller, view), "Success")
        assert (done["RowsDone"], done["RowsTotal"]) == (5, 5)
        rows = [{"user_id": 1, HOSTILE: 0.5, "seen": 1_000}, {"user_id": 2, HOSTILE: 1.5, "seen": None}]
        assert await online(caller, view, 2, 99, 1, "x") == [rows[1], rows[0]]
        # The table is what PAI's SDKs look for.
        kept = await database.fetch("SELECT * FROM public.shop_profile_online ORDER BY user_id")
        assert [row["user_id"] for row in kept] == [1, 2, 3]
        assert kept[0]["seen"] == datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)
        # Merge: newer rows replace older ones, and not the other way round.
        write(tmp_path, (1, 7.0, 900), (2, 7.0, 5), (3, 7.0, 3_000), (4, 7.0, 1))
        await until_task(caller, await publish(caller, view, Mode="Merge"), "Success")
        assert [row[HOSTILE] for row in await online(caller, view, 1, 2, 3, 4)] == [0.5, 7.0, 7.0, 7.0]
        # An Overwrite that fails changes nothing, and leaves nothing behind.
        write(tmp_path, (5, 1.0, 1), (None, 1.0, 1))
        failed = await publish(caller, view)
        await until_task(caller, failed, "Failure")
        assert "row 2, column id: the key is null" in (await logs(caller, failed))[-1]
        assert len(await online(caller, view, 1, 2, 3, 4, 5)) == 4
        write(tmp_path, (5, 1.0, 1))
        await until_task(caller, await publish(caller, view), "Success")
        assert [row["user_id"] for row in await online(caller, view, 1, 2, 3, 4, 5)] == [5]
        # A column more.
        wider = [*FIELDS, {"Name": "y", "Type": "INT32", "Attributes": []}]
        await caller.answer("UpdateFeatureView", FeatureViewId=view, Fields=wider)
        assert await online(caller, view, 5) == [{"user_id": 5, HOSTILE: 1.0, "seen": 1, "y": None}]
    tables = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"
    assert [row["relname"] for row in await database.fetch(tables)] == ["shop_profile_online"]
    listed = await caller.answer("ListDatasourceFeatureViews", DatasourceId=ids["hologres"])
    use = listed["FeatureViews"][0]["UsageStatistics"]
    assert (use["RowCount"], use["MemoryUsage"], use["DiskUsage"] > 0) == (1, 0, True)
    assert listed["TotalUsageStatistics"]["TotalDiskUsage"] == use["DiskUsage"]
    await caller.answer("DeleteFeatureView", FeatureViewId=view)
    assert await database.fetch(tables) == []


async def test_every_type_comes_back(
    caller: Pai, settings: Settings, database: asyncpg.Connection, tmp_path: Path
) -> None:
    """Rows of a stream go there at once, and are read as they were written."""
    ids = await project(caller, settings, tmp_path)
    values = {
        "INT32": -7, "INT64": 2**62, "FLOAT": 0.1, "DOUBLE": 0.1, "STRING": "Z\u00fcrich \u2603", "BOOLEAN": True,
        "TIMESTAMP": 1_600_000_000_123, "ARRAY<INT32>": [1, None, 3], "ARRAY<FLOAT>": [0.1, 2.5],
        "ARRAY<STRING>": ["a", ""],
        "ARRAY<ARRAY<FLOAT>>": [[0.5], []], "MAP<STRING,INT64>": {"a": 1}, "MAP<INT32,STRING>": {"1": "b"},
    }  # fmt: skip
    fields = [{"Name": kind, "Type": kind, "Attributes": []} for kind in values]
    view = await view_of(
        caller, ids, Type="Stream", WriteMethod="Custom", RegisterTable="", RegisterDatasourceId="",
        Fields=[{"Name": "id", "Type": "STRING", "Attributes": ["PrimaryKey"]}, *fields],
    )  # fmt: skip
    rows = [orjson.dumps({"id": "one", **values}).decode(), '{"id": "none"}']
    await caller.answer("WriteFeatureViewTable", FeatureViewId=view, Mode="Merge", Rows=rows)
    assert await online(caller, view, "one", "none") == [
        {"user_id": "one", **values},
        {"user_id": "none", **dict.fromkeys(values)},
    ]
    assert len(await database.fetch("SELECT FROM shop_profile_online")) == 2
    rows = ['{"id": "n\\u0000l"}']
    await caller.refused("WriteFeatureViewTable", 400, "InvalidParameter", FeatureViewId=view, Mode="Merge", Rows=rows)


async def seen_by_sdks(
    database: asyncpg.Connection, view: str, user: int, events: Sequence[str], length: int
) -> dict[str, list[asyncpg.Record]]:
    """What PAI's data-plane SDKs ask the two tables of a Sequence view for."""
    statement = """SELECT "item", "event", "played", "seen" FROM {}
                   WHERE "id" = $1 AND "event" = ANY($2) AND "seen" > $3 ORDER BY "seen" DESC LIMIT $4"""
    return {
        name: await database.fetch(statement.format(f"shop_{view}_{name}"), user, events, -1, length)
        for name in ("seq", "seq_offline")
    }


async def test_sequences_are_kept_in_it(
    *, caller: Pai, settings: Settings, own: ManagementSettings, serving: Any, database: asyncpg.Connection,
    tmp_path: Path,
) -> None:  # fmt: skip
    """A row for each behaviour, where PAI's SDKs look for them: published ones, and those written since."""
    ids = await project(caller, settings, tmp_path)
    config = {
        "item_id_field": "item", "event_field": "event", "timestamp_field": "seen", "play_time_field": "played",
        "deduplication_method": ["user_id", "item_id", "event"],
        "seq_config": [
            {"online_seq_name": "s", "seq_event": "click", "seq_len": 2, "online_behavior_table_fields": ["note"]}
        ],
    }  # fmt: skip
    fields = [FIELDS[0], *(
        {"Name": name, "Type": kind, "Attributes": []}
        for name, kind in (("item", "INT64"), ("event", "STRING"), ("seen", "INT64"), ("flag", "BOOLEAN"))
    )]  # fmt: skip
    view = await view_of(caller, ids, Type="Sequence", Config=orjson.dumps(config).decode(), Fields=fields)
    assert await online(caller, view, 1) == []

    def behaviour(item: int, seen: int, played: float | None = None, note: str | None = None, **more: Any) -> Any:
        return {"id": 1, "item": item, "event": "click", "seen": seen, "played": played, "note": note, "flag": True,
                **more}  # fmt: skip

    table = [
        behaviour(1, 0, 1.0), behaviour(2, 1, 0.5, HOSTILE), behaviour(3, 2, None, "\u2603"), behaviour(3, 1, 9.0),
        behaviour(4, 9, event=None), behaviour(5, 9, event="look"), behaviour(6, 7, id=2),
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "users.parquet")
    shown = {
        "user_id": 1, "s": "3;2", "s__event": "click;click", "s__item": "3;2", "s__seen": "2;1",
        "s__played": "0.00;0.50", "s__note": f"\u2603;{HOSTILE}",
    }  # fmt: skip
    async with worker(settings, own, serving):
        for mode in ("Overwrite", "Merge", "Overwrite"):
            done = await until_task(caller, await publish(caller, view, Mode=mode), "Success")
            assert done["RowsDone"] == 3
            [row] = await online(caller, view, 1, 99, "x")
            assert len(row.pop("s__ts").split(";")) == 2
            assert row == shown
            found = await seen_by_sdks(database, "profile", 1, ["click"], 2)
            assert [tuple(row) for row in found["seq_offline"]] == [(3, "click", 0.0, 2), (2, "click", 0.5, 1)]
            assert found["seq"] == []
        # Merge: of the users that are brought only what is brought, and the others as they were.
        pq.write_table(pa.Table.from_pylist([behaviour(8, 8)]), tmp_path / "users.parquet")
        await until_task(caller, await publish(caller, view, Mode="Merge"), "Success")
        assert [row["s"] for row in await online(caller, view, 1, 2)] == ["8", "6"]
    # Row by row, and by somebody else, as a writer of a stream would; of what is equal the newest is shown.
    texts = [orjson.dumps(behaviour(item, seen)).decode() for item, seen in ((8, 9), (7, 10), (7, 10), (6, 3))]
    for mode in ("Merge", "Merge", "Overwrite"):
        await caller.answer("WriteFeatureViewTable", FeatureViewId=view, Mode=mode, Rows=texts)
        assert [row["s"] for row in await online(caller, view, 1)] == ["7;8"]
        found = await seen_by_sdks(database, "profile", 1, ["click"], 9)
        assert [row["item"] for row in found["seq"]] == [7, 8]
    insert = "INSERT INTO shop_profile_seq (id, item, event, seen, flag) VALUES (1, $1, 'click', $2, false)"
    await database.executemany(insert, [(9, 11), (8, 12)])
    assert [(row["s"], row["s__played"]) for row in await online(caller, view, 1)] == [("8;9", "0.00;0.00")]
    with pytest.raises(asyncpg.CheckViolationError):
        await database.execute(insert, None, 12)
    # What others inserted is kept beside what is written.
    await caller.answer("WriteFeatureViewTable", FeatureViewId=view, Mode="Merge",
                        Rows=[orjson.dumps(behaviour(10, 13)).decode()])  # fmt: skip
    assert [row["s"] for row in await online(caller, view, 1)] == ["10;8"]
    assert await database.fetchval("SELECT count(*) FROM shop_profile_seq") == 2
    # A column more, in both tables.
    wider = [*fields, {"Name": "page", "Type": "STRING", "Attributes": []}]
    await caller.answer("UpdateFeatureView", FeatureViewId=view, Fields=wider)
    await database.execute("SELECT page FROM shop_profile_seq UNION ALL SELECT page FROM shop_profile_seq_offline")
    listed = await caller.answer("ListDatasourceFeatureViews", DatasourceId=ids["hologres"])
    assert listed["FeatureViews"][0]["UsageStatistics"]["DiskUsage"] > 0
    await caller.answer("DeleteFeatureView", FeatureViewId=view)
    assert await database.fetchval("SELECT count(*) FROM pg_class WHERE relname LIKE 'shop_profile%'") == 0


async def test_behaviours_that_hologres_cannot_keep(
    caller: Pai, settings: Settings, database: asyncpg.Connection, tmp_path: Path
) -> None:
    ids = await project(caller, settings, tmp_path)
    config = {"item_id_field": "item", "event_field": "event", "timestamp_field": "seen",
              "registration_mode": "only_behavior"}  # fmt: skip
    tags = {"Name": "tags", "Type": "ARRAY<STRING>", "Attributes": []}
    view = await view_of(
        caller, ids, Type="Sequence", Config=orjson.dumps(config).decode(), Fields=[FIELDS[0], tags],
    )  # fmt: skip
    row = orjson.dumps({"id": 1, "item": "a", "event": "click", "seen": 1}).decode()
    asked = {"FeatureViewId": view, "Mode": "Merge", "Rows": [row]}
    assert "single values only" in await caller.refused("WriteFeatureViewTable", 400, "InvalidParameter", **asked)
    # A table of that name which is somebody else's stays.
    await database.execute("CREATE TABLE shop_other_seq (id bigint)")
    other = await view_of(
        caller, ids, Type="Sequence", Config=orjson.dumps(config).decode(), Fields=FIELDS[:1], Name="other"
    )
    await caller.refused("WriteFeatureViewTable", 400, "TableAlreadyExists", **{**asked, "FeatureViewId": other})
    await caller.answer("DeleteFeatureView", FeatureViewId=other)
    assert await database.fetchval("SELECT count(*) FROM shop_other_seq") == 0


async def test_rows_expire(caller: Pai, settings: Settings, tmp_path: Path) -> None:
    ids = await project(caller, settings, tmp_path)
    view = await view_of(caller, ids, Type="Stream", WriteMethod="Custom", TTL=3600)
    now = datetime.now(UTC)
    times = {1: now, 2: now - timedelta(hours=2), 3: None}
    rows = [
        orjson.dumps({"id": key, "seen": None if time is None else time.isoformat()}).decode()
        for key, time in times.items()
    ]
    await caller.answer("WriteFeatureViewTable", FeatureViewId=view, Mode="Overwrite", Rows=rows)
    assert [row["user_id"] for row in await online(caller, view, 1, 2, 3)] == [1, 3]


async def test_a_table_that_is_somebody_elses_stays(
    caller: Pai, settings: Settings, own: ManagementSettings, serving: Any, *, database: asyncpg.Connection,
    tmp_path: Path,
) -> None:  # fmt: skip
    await database.execute(
        "CREATE TABLE shop_profile_online (user_id bigint PRIMARY KEY); INSERT INTO shop_profile_online VALUES (7)"
    )
    ids = await project(caller, settings, tmp_path)
    view = await view_of(caller, ids)
    write(tmp_path, (1, 0.5, 1))
    async with worker(settings, own, serving):
        task = await publish(caller, view)
        await until_task(caller, task, "Failure")
    assert "is not of this view" in (await logs(caller, task))[-1]
    await caller.answer("DeleteFeatureView", FeatureViewId=view)
    assert await database.fetchval("SELECT user_id FROM shop_profile_online") == 7


async def test_a_table_of_it_is_published(
    caller: Pai, settings: Settings, own: ManagementSettings, serving: Any, *, database: asyncpg.Connection,
    tmp_path: Path,
) -> None:  # fmt: skip
    await database.execute(f"CREATE TABLE facts (id bigint, {quoted(HOSTILE)} numeric, seen timestamptz, ds text)")
    await database.execute(
        "INSERT INTO facts SELECT n, n / 2.0, to_timestamp(n), CASE WHEN n > 3 THEN '20260102' ELSE '20260101' END"
        " FROM generate_series(1, 5) n"
    )
    ids = await project(caller, settings, tmp_path, "FeatureDB")
    view = await view_of(caller, ids, RegisterTable="facts", RegisterDatasourceId=ids["hologres"])
    async with worker(settings, own, serving):
        task = await publish(caller, view, Partitions={"ds": {"StartValue": "20260102"}})
        done = await until_task(caller, task, "Success")
        assert done["RowsTotal"] == 2
        assert await online(caller, view, 1, 4) == [{"user_id": 4, HOSTILE: 2.0, "seen": 4_000}]
        await until_task(caller, await publish(caller, view), "Success")
        assert len(await online(caller, view, 1, 2, 3, 4, 5)) == 5
        # Somebody holds the table. The task waits for it, and stops when it is told to.
        async with database.transaction():
            await database.execute("LOCK TABLE facts IN ACCESS EXCLUSIVE MODE")
            model = await model_of(caller, ids, view)
            waiting = str((await caller.answer("ExportModelFeatureTrainingSetTable", ModelFeatureId=model))["TaskId"])
            await until_task(caller, waiting, "Running")
            await caller.answer("StopTask", TaskId=waiting)
            assert (await caller.answer("GetTask", TaskId=waiting))["Status"] == "Failure"
        export = str((await caller.answer("ExportModelFeatureTrainingSetTable", ModelFeatureId=model))["TaskId"])
        await until_task(caller, export, "Success")
    # Its worker may still have had to say that it takes the task up.
    assert any("stopped by admin" in line for line in await logs(caller, waiting))
    made = pq.read_table(tmp_path / "shop_ranking_training_set" / "data.parquet").to_pylist()
    assert sorted((row["id"], row["feature"]) for row in made) == [(n, n / 2) for n in range(1, 6)]


async def model_of(caller: Pai, ids: dict[str, str], view: str) -> str:
    """A model feature whose label table is the same table in Hologres."""
    label = await caller.made(
        "LabelTable", ProjectId=ids["project"], DatasourceId=ids["hologres"], Name="facts",
        Fields=[
            {"Name": "id", "Type": "INT64", "Attributes": [], "AlignedEntityName": "user"},
            {"Name": "seen", "Type": "TIMESTAMP", "Attributes": ["EventTime"]},
        ],
    )  # fmt: skip
    return await caller.made(
        "ModelFeature", ProjectId=ids["project"], Name="ranking", LabelTableId=label,
        Features=[{"FeatureViewId": view, "Name": HOSTILE, "AliasName": "feature", "Type": "DOUBLE"}],
    )  # fmt: skip


async def test_what_cannot_be_reached(
    caller: Pai, settings: Settings, own: ManagementSettings, serving: Any, tmp_path: Path
) -> None:
    ids = await project(caller, settings, tmp_path)
    view = await view_of(caller, ids)
    write(tmp_path, (1, 0.5, 1))
    uri, config = place(settings)
    datasource = {"DatasourceId": ids["hologres"], "Name": "hologres", "Uri": uri}

    async def lead_to(**changes: Any) -> None:
        await caller.answer("UpdateDatasource", **datasource, Config=orjson.dumps({**config, **changes}).decode())

    asked = {"FeatureViewId": view, "Mode": "Merge", "OfflineToOnline": True}
    await lead_to(host="169.254.169.254")
    message = await caller.refused("PublishFeatureViewTable", 400, "InvalidParameter", **asked)
    assert "TRIGLOT_MANAGEMENT_DATASOURCE_HOSTS" in message
    await caller.refused("ListDatasourceTables", 400, "InvalidParameter", DatasourceId=ids["hologres"])
    await caller.refused("ListFeatureViewOnlineFeatures", 400, "InvalidParameter", FeatureViewId=view, JoinIds=["1"])
    # Nobody listens there now: that may pass, and the task goes on trying.
    await lead_to(host="127.0.0.1", port=1)
    await caller.refused("ListDatasourceTables", 503, "ServiceUnavailable", DatasourceId=ids["hologres"])
    patient = own.model_copy(update={"task_attempts": 50})
    async with worker(settings, patient, serving):
        task = await publish(caller, view)
        await until_logged(caller, task, "again in")
        await lead_to()
        await until_task(caller, task, "Success")
    # Not let in: that will not pass.
    await lead_to(user="nobody here", password="hunter2")
    message = await caller.refused("ListDatasourceTables", 400, "InvalidParameter", DatasourceId=ids["hologres"])
    assert "hunter2" not in message


@pytest.mark.parametrize("kind", ["Tablestore", "GraphCompute"])
async def test_what_nothing_here_writes_to_is_refused(
    caller: Pai, settings: Settings, tmp_path: Path, kind: str
) -> None:
    ids = await project(caller, settings, tmp_path, kind)
    view = await view_of(caller, ids, WriteMethod="Custom")
    message = await caller.refused("PublishFeatureViewTable", 400, "InvalidParameter", FeatureViewId=view, Mode="Merge")
    assert f"is kept in {kind}, which this deployment cannot write to" in message


@pytest.mark.parametrize("name", ["", "\0", "a\0b", "x" * 64, "\u00fc" * 32, "\ud800"])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        quoted(name)


async def test_names_are_names(database: asyncpg.Connection) -> None:
    for name in (HOSTILE, '"', '""', "'", "\\", "%s $1 ?", "select", " ", "a\nb", "\u2603" * 21, "x" * 63):
        row = await database.fetchrow(f"SELECT 1 AS {quoted(name)}")
        assert [*row.keys()] == [name]
