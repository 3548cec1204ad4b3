"""WriteFeatureViewTable: rows of a request to the online store, and a CSV file to the view's own offline table."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx2
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chassis import calls
from chassis.client import open_channel
from chassis.inprocess import InProcessChannel
from chassis.server import GrpcServer
from chassis.settings import Settings
from gateway.app import create_app
from gateway.dialects import pai
from gateway.settings import GatewaySettings
from protos.gen.triglot.management.v1 import feature_view_pb2, management_service_pb2_grpc
from services.management.csv_table import CsvImport
from services.management.offline import NewFile
from services.management.process import open_service
from services.management.settings import ManagementSettings
from services.serving.process import open_service as open_serving
from services.serving.settings import ServingSettings
from tests.management.conftest import INSTANCE, Pai, catalogue
from tests.management.test_downloads import Site, site
from tests.management.test_publish import logs, online, publish, until_task, worker
from tests.patience import PATIENCE_SECONDS

FIELDS = [
    {"Name": "id", "Type": "INT64", "Attributes": ["PrimaryKey"]},
    {"Name": "x", "Type": "DOUBLE", "Attributes": []},
    {"Name": "city", "Type": "STRING", "Attributes": []},
    {"Name": "at", "Type": "TIMESTAMP", "Attributes": ["EventTime"]},
]
__all__ = ("site",)
DAY = {"Name": "ds", "Type": "STRING", "Attributes": ["Partition"]}


@pytest.fixture
async def serving(settings: Settings) -> AsyncIterator[Any]:
    async with open_serving(settings, ServingSettings()) as opened:
        yield opened


@pytest.fixture
async def services(settings: Settings, own: ManagementSettings, serving: Any) -> AsyncIterator[Any]:
    """Management with serving: stands in for the fixture without it."""
    async with open_service(settings, own, InProcessChannel(serving)) as opened:
        yield opened


@asynccontextmanager
async def listening(services: Any) -> AsyncIterator[int]:
    """The port at which the services answer."""
    server = GrpcServer(services, host="127.0.0.1", port=0, max_message_bytes=1 << 20)
    port = await server.start()
    try:
        yield port
    finally:
        await server.stop(1)


async def view_of(caller: Pai, folder: Path, *more: dict[str, Any], **changes: Any) -> str:
    config = orjson.dumps({"root": str(folder)}).decode()
    ids = await catalogue(caller, config=config)
    view = {
        "ProjectId": ids["project"],
        "Name": "events",
        "Type": "Stream",
        "FeatureEntityId": ids["entity"],
        "WriteMethod": "Custom",
        "SyncOnlineTable": True,
        "Fields": [*FIELDS, *more],
    }
    return await caller.made("FeatureView", **{**view, **changes})


async def put(caller: Pai, view: str, *rows: dict[str, Any], mode: str = "Merge") -> None:
    texts = [orjson.dumps(row).decode() for row in rows]
    answer = await caller.answer("WriteFeatureViewTable", FeatureViewId=view, Mode=mode, Rows=texts)
    assert answer["TaskId"] == ""


async def test_rows_are_online_when_the_answer_comes(caller: Pai, tmp_path: Path) -> None:
    view = await view_of(caller, tmp_path)
    assert await online(caller, view, 1) == []
    await put(caller, view, {"user_id": 1, "x": 1, "at": 2_000}, {"id": 2**62, "city": "Z\u00fcrich", "at": 1_000})
    one = {"user_id": 1, "x": 1.0, "city": None, "at": 2_000}
    big = {"user_id": 2**62, "x": None, "city": "Z\u00fcrich", "at": 1_000}
    assert await online(caller, view, 1, 2**62) == [one, big]
    # Older by its event time: it changes nothing. Newer: it does.
    await put(caller, view, {"user_id": 1, "x": 9, "at": "1970-01-01T00:00:01Z"})
    assert await online(caller, view, 1) == [one]
    await put(caller, view, {"user_id": 1, "x": 9, "at": "1970-01-01T00:00:03"})
    assert [row["x"] for row in await online(caller, view, 1)] == [9.0]
    await put(caller, view, {"user_id": 3, "at": 0}, mode="Overwrite")
    assert [row["user_id"] for row in await online(caller, view, 1, 2**62, 3)] == [3]
    # A view that was written to is a feature group, as a published one is: it grows at its end, and goes with its rows.
    await caller.refused("UpdateFeatureView", 400, "InvalidParameter", FeatureViewId=view, Fields=[*reversed(FIELDS)])
    wider = [*FIELDS, {"Name": "tags", "Type": "ARRAY<STRING>", "Attributes": []}]
    await caller.answer("UpdateFeatureView", FeatureViewId=view, Fields=wider)
    await put(caller, view, {"user_id": 4, "at": 0, "tags": ["a", None]})
    assert [row["tags"] for row in await online(caller, view, 3, 4)] == [None, ["a", None]]
    await caller.answer("DeleteFeatureView", FeatureViewId=view)
    again = await caller.made(
        "FeatureView", Name="events", ProjectId="1", Type="Stream", WriteMethod="Custom", SyncOnlineTable=True,
        FeatureEntityId="1", Fields=FIELDS[:2],
    )  # fmt: skip
    assert await online(caller, again, 3) == []


async def test_rows_over_grpc_ports(
    caller: Pai, settings: Settings, own: ManagementSettings, serving: Any, tmp_path: Path
) -> None:
    """Client, management and serving, each at its own port: a Stream view is written to row by row."""
    view = await view_of(caller, tmp_path)
    metadata = calls.bearer(caller.key)
    async with (
        listening(serving) as serving_port,
        open_channel(f"127.0.0.1:{serving_port}", settings) as serving_channel,
        open_service(settings, own, serving_channel) as management,
        listening(management) as port,
        open_channel(f"127.0.0.1:{port}", settings) as channel,
    ):
        stub: Any = management_service_pb2_grpc.ManagementServiceStub(channel)

        async def sent(*rows: dict[str, Any]) -> None:
            request = feature_view_pb2.WriteFeatureViewTableRequest(
                instance_id=INSTANCE, feature_view_id=view, mode="Merge",
                rows=[orjson.dumps(row).decode() for row in rows],
            )  # fmt: skip
            answer = await stub.WriteFeatureViewTable(request, metadata=metadata, timeout=PATIENCE_SECONDS)
            assert answer.task_id == ""

        for number in range(3):
            await sent({"user_id": number, "x": number / 2, "at": 1_000})
        await sent({"user_id": 1, "city": "Bern", "at": 2_000}, {"user_id": 2, "city": "late", "at": 500})
        request = feature_view_pb2.ListFeatureViewOnlineFeaturesRequest(
            instance_id=INSTANCE, feature_view_id=view, join_ids=["2", "1", "9", "0"]
        )
        read = await stub.ListFeatureViewOnlineFeatures(request, metadata=metadata, timeout=PATIENCE_SECONDS)
        assert [orjson.loads(row) for row in read.online_features] == [
            {"user_id": 2, "x": 1.0, "city": None, "at": 1_000},
            {"user_id": 1, "x": None, "city": "Bern", "at": 2_000},
            {"user_id": 0, "x": 0.0, "city": None, "at": 1_000},
        ]
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await sent({"user_id": 3}, {"user_id": 4, "x": "much"})
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "row 2, column x" in str(refused.value.details())


@pytest.mark.parametrize(
    ("kind", "good", "shown", "bad"),
    [
        ("INT32", -7, -7, [2**31, "7", 1.5, True, [1]]),
        ("FLOAT", 0.1, 0.1, ["x", True]),
        ("STRING", "a", "a", [1, {}]),
        ("BOOLEAN", True, 1, [2, "yes"]),
        ("TIMESTAMP", "2026-01-31T00:00:00+01:00", 1_769_814_000_000, ["soon", 1.5, True, 10**18]),
        ("ARRAY<FLOAT>", [0.5], [0.5], ["x", [[1]], 3]),
        ("MAP<INT32,STRING>", {"1": "a"}, {"1": "a"}, [{"a": "b"}, {"1": 2}, [1]]),
    ],
)
async def test_types_of_rows(caller: Pai, tmp_path: Path, *, kind: str, good: Any, shown: Any, bad: list[Any]) -> None:
    view = await view_of(caller, tmp_path, Fields=[FIELDS[0], {"Name": "v", "Type": kind, "Attributes": []}])
    await put(caller, view, {"id": 1, "v": good}, {"id": 2, "v": None})
    assert await online(caller, view, 1, 2) == [{"user_id": 1, "v": shown}, {"user_id": 2, "v": None}]
    for value in bad:
        rows = [orjson.dumps({"id": 5, "v": each}).decode() for each in (good, value)]
        message = await caller.refused(
            "WriteFeatureViewTable", 400, "InvalidParameter", FeatureViewId=view, Mode="Merge", Rows=rows
        )
        assert "row 2, column v" in message, (value, message)
    assert await online(caller, view, 5) == []


async def test_rows_that_are_refused(caller: Pai, tmp_path: Path) -> None:
    view = await view_of(caller, tmp_path)
    good = {"FeatureViewId": view, "Mode": "Merge", "Rows": ['{"id": 1}']}
    wrong: list[dict[str, Any]] = [
        {"Rows": ["{"]},
        {"Rows": ["[1]"]},
        {"Rows": ['{"x": 1}']},
        {"Rows": ['{"id": null}']},
        {"Rows": ['{"id": 1, "colour": 2}']},
        {"Rows": []},
        {"Rows": ['{"id": 1}'] * 10_001},
        {"Mode": ""},
        {"Mode": "Append"},
        {"UrlDatasource": {"Path": "/x"}},
    ]
    for change in wrong:
        await caller.refused("WriteFeatureViewTable", 400, "InvalidParameter", **{**good, **change})
    await caller.refused("WriteFeatureViewTable", 404, "ResourceNotFound", **{**good, "FeatureViewId": "9"})
    offline = await caller.made(
        "FeatureView", Name="offline", ProjectId="1", Type="Batch", WriteMethod="Custom", SyncOnlineTable=False,
        FeatureEntityId="1", Fields=FIELDS,
    )  # fmt: skip
    await caller.refused("WriteFeatureViewTable", 400, "InvalidParameter", **{**good, "FeatureViewId": offline})


async def imported(caller: Pai, view: str, path: Path | str, status: str, **changes: Any) -> str:
    """Import a file, and what the task said at its end."""
    source = {"Path": str(path), "OmitHeader": True, **changes.pop("UrlDatasource", {})}
    body = {"FeatureViewId": view, "Mode": "Overwrite", "Partitions": {"ds": "1/2"}, "UrlDatasource": source, **changes}
    task = (await caller.answer("WriteFeatureViewTable", **body))["TaskId"]
    ended = await until_task(caller, task, status)
    assert ended["Type"] == "WriteTable"
    return (await logs(caller, task))[-1]


async def test_from_csv_to_online_rows(
    caller: Pai, settings: Settings, own: ManagementSettings, serving: Any, tmp_path: Path
) -> None:
    view = await view_of(caller, tmp_path, DAY)
    csv = tmp_path / "rows.csv"
    table = tmp_path / "shop_events_offline" / "ds=1%2F2" / "data.parquet"

    def kept() -> list[Any]:
        return sorted((row["id"], row["x"], row["city"]) for row in pq.read_table(table, partitioning=None).to_pylist())

    async with worker(settings, own, serving):
        csv.write_text('city,id,x,at\n"Z, ""upper""",1,0.5,2026-01-31 13:05:00\n,2,,\n"",3,1.5,\n')
        await imported(caller, view, csv, "Success")
        assert kept() == [(1, 0.5, 'Z, "upper"'), (2, None, None), (3, 1.5, "")]
        csv.write_text("3;2.5;Bern;\n4;3.5;Basel;\n")
        plain = {"Delimiter": ";", "OmitHeader": False, "Path": f"file://{csv}"}
        assert "has 4 rows" in await imported(caller, view, csv, "Success", Mode="merge", UrlDatasource=plain)
        assert kept()[1:] == [(2, None, None), (3, 2.5, "Bern"), (4, 3.5, "Basel")]
        await until_task(caller, await publish(caller, view, Partitions={"ds": "1/2"}), "Success")
        first = {"user_id": 1, "x": 0.5, "city": 'Z, "upper"', "at": 1_769_864_700_000}
        assert await online(caller, view, 1) == [first]
        # What cannot be read leaves the table as it was, and nothing beside it.
        for text, said in (
            ("id,x,city,at\n1,a,b,\n", "invalid value 'a'"),
            ("id,x,city,at\n,1,b,\n", "row 1, column id: the key is null"),
            ("id,x,city\n1,1,b\n", "has the columns id, x, city"),
            ("id,x,city,at\n1,1\n", "Expected 4 columns, got 2"),
            ("", "Empty CSV file"),
        ):
            csv.write_text(text)
            assert said in await imported(caller, view, csv, "Failure")
        assert len(kept()) == 4
        assert [path.name for path in table.parent.iterdir()] == ["data.parquet"]
        await imported(caller, view, table, "Failure")


async def test_files_that_are_refused(caller: Pai, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "secret.csv"
    outside.write_text("id\n1\n")
    (tmp_path / "link.csv").symlink_to(outside)
    (tmp_path / "good.csv").write_text("id\n1\n")
    view = await view_of(caller, tmp_path, DAY)
    good: dict[str, Any] = {
        "FeatureViewId": view,
        "Mode": "Overwrite",
        "Partitions": {"ds": "1"},
        "UrlDatasource": {"Path": str(tmp_path / "good.csv")},
    }
    wrong: list[dict[str, Any]] = [
        *({"UrlDatasource": {"Path": path}} for path in (
            "", "relative.csv", str(outside), str(tmp_path / "link.csv"), f"{tmp_path}/../x.csv", "http://169.254.169.254/x",
            "file:///etc/passwd", "oss://bucket/x",
        )),
        *({"UrlDatasource": {**good["UrlDatasource"], "Delimiter": mark}} for mark in (";;", '"', "\n", "\u00e9")),
        *({"Partitions": chosen} for chosen in (
            {}, {"dt": "1"}, {"ds": {"Values": ["1", "2"]}}, {"ds": {"StartValue": "1"}}, {"ds": "1", "dt": "1"},
        )),
        {"UrlDatasource": None},
        {"Mode": "Append"},
    ]  # fmt: skip
    for change in wrong:
        await caller.refused("WriteFeatureViewTable", 400, "InvalidParameter", **{**good, **change})
    absent = {**good, "UrlDatasource": {"Path": str(tmp_path / "absent.csv")}}
    await caller.refused("WriteFeatureViewTable", 404, "ResourceNotFound", **absent)
    task = (await caller.answer("WriteFeatureViewTable", **good))["TaskId"]
    # One at a time, or one of two merges into the same table would be lost.
    assert f"task {task}" in await caller.refused("WriteFeatureViewTable", 400, "DependencyExists", **good)
    await caller.answer("StopTask", TaskId=task)
    await caller.answer("WriteFeatureViewTable", **good)


def test_an_import_shows_nothing_before_its_end(tmp_path: Path) -> None:
    view = {
        "fields": orjson.dumps(
            [{"name": "id", "type": "INT64", "attributes": ["PrimaryKey"]},
             {"name": "x", "type": "INT64", "attributes": []}]
        ).decode(),
        "join_id": "uid", "project_name": "shop", "name": "v", "type": "Batch",
        "register_table": "", "register_datasource_id": None, "offline_datasource_id": 1,
    }  # fmt: skip
    csv = tmp_path / "rows.csv"
    csv.write_text("1,1\n2,2\n")
    config = {"mode": "merge", "partitions": {}, "path": str(csv), "delimiter": ",", "omit_header": False}
    folder = tmp_path / "shop_v_offline"

    def attempt(number: int) -> tuple[CsvImport, NewFile]:
        target = NewFile(folder, 1, number)
        return CsvImport(view, config, csv, target), target

    folder.mkdir()
    pq.write_table(pa.table({"id": [2, 3], "x": [0, 0]}), folder / "data.parquet")
    killed, _ = attempt(1)
    steps = killed.steps()
    next(steps)
    assert len(list(folder.iterdir())) == 2
    assert pq.read_table(folder / "data.parquet").num_rows == 2
    successor, target = attempt(2)
    assert sum(successor.steps()) == 3
    target.finish()
    steps.close()
    assert [path.name for path in folder.iterdir()] == ["data.parquet"]
    assert pq.read_table(folder / "data.parquet").to_pydict() == {"id": [1, 2, 3], "x": [1, 2, 0]}


async def test_from_a_url(
    caller: Pai, settings: Settings, own: ManagementSettings, serving: Any, *, site: Site, tmp_path: Path
) -> None:
    """A CSV file is fetched from where the settings allow it, and from nowhere else."""
    view = await view_of(caller, tmp_path, DAY)
    url = site.page("/rows.csv?Signature=s3cr3t", b"id,x,city,at\n1,0.5,Bern,\n")
    body = {"FeatureViewId": view, "Mode": "Overwrite", "Partitions": {"ds": "1/2"}}
    for path in (url, "https://example.com/rows.csv", "oss://bucket/rows.csv", "http://[x"):
        source = {"Path": path, "OmitHeader": True}
        await caller.refused("WriteFeatureViewTable", 400, "InvalidParameter", **body, UrlDatasource=source)
    open_to = own.model_copy(update={"url_hosts": ("127.0.0.1",), "task_attempts": 2, "retry_seconds": 0.01})
    async with open_service(settings, open_to, InProcessChannel(serving)) as services:
        gateway = GatewaySettings(ports=(0,))
        app = create_app([pai.dialect(InProcessChannel(services), gateway)], gateway)
        async with (
            httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://test") as client,
            worker(settings, open_to, serving),
        ):
            allowed = Pai(client, caller.key)
            assert "has 1 rows" in await imported(allowed, view, url, "Success")
            assert not any("s3cr3t" in line for line in await logs(allowed, "1"))
            broken = site.page("/broken", status=503)
            assert "failed after 2 attempts" in await imported(allowed, view, broken, "Failure")
            assert "does not exist" in await imported(allowed, view, f"{site.url}/absent", "Failure")
            inside = site.page("/inside", status=302, Location="http://localhost/")
            assert "does not allow" in await imported(allowed, view, inside, "Failure")
    [table] = (tmp_path / "shop_events_offline").glob("*/*")
    assert pq.read_table(table, partitioning=None).to_pylist()[0]["city"] == "Bern"
