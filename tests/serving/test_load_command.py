"""`triglot load` and `triglot vector` as a user runs them: processes of their own, against serving on a real port."""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import redis

from chassis import errors
from chassis.client import open_channel
from chassis.postgres import Database
from chassis.server import GrpcServer
from chassis.settings import Settings
from protos.gen.triglot.serving.v1 import serving_service_pb2 as pb
from protos.gen.triglot.serving.v1.serving_service_pb2_grpc import ServingServiceStub
from protos.gen.triglot.serving.v1.value_pb2 import Value
from services.serving.process import open_service
from services.serving.settings import ServingSettings
from tests.conftest import Servers
from tests.patience import PATIENCE_SECONDS, until
from tests.serving.conftest import Client
from triglot import load, names
from triglot.deployment import open_serving, read_endpoints

ROOT = Path(__file__).resolve().parents[2]
ROWS = pa.table(
    {
        "id": pa.array([1, 2, 3], pa.int64()),
        "word": ["one", 'say "two"', None],
        "ratio": [0.1, 2.0, None],
        "flag": [True, False, None],
        "day": pa.array([datetime.date(2022, 1, 24), None, datetime.date(1969, 12, 31)]),
        "at": pa.array([datetime.datetime(2022, 1, 24, 13, 5, 0, 250_000), None, None], pa.timestamp("us")),
        "tags": pa.array([[1, 2], [], None], pa.list_(pa.int64())),
    }
)
FLAT = ROWS.drop_columns(["tags"])


@dataclass
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        assert self.code == 0, self.err
        found: dict[str, Any] = json.loads(self.out)
        return found

    @property
    def problem(self) -> str:
        """The one line that a command says before it fails."""
        assert self.out == ""
        [line] = [line for line in self.err.splitlines() if line.startswith("triglot: ")]
        assert "Traceback" not in self.err
        return line


# Who has to be killed says what its threads did.
_OWN = {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "PYTHONFAULTHANDLER": "1"}


@dataclass
class Command:
    """Runs `triglot`, with serving's address and an administrator's key in the environment."""

    folder: Path
    environment: dict[str, str]

    def start(self, *arguments: str | Path, **variables: str) -> subprocess.Popen[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("TRIGLOT_")}
        return subprocess.Popen(
            [sys.executable, "-m", "triglot.cli", *map(str, arguments)],
            cwd=self.folder,
            env=kept
            | {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "PYTHONFAULTHANDLER": "1"}
            | self.environment
            | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    async def __call__(self, *arguments: str | Path, **variables: str) -> Done:
        process = self.start(*arguments, **variables)
        out, err = await asyncio.to_thread(process.communicate, timeout=PATIENCE_SECONDS)
        return Done(process.returncode, out, err)


@pytest.fixture
async def listening(settings: Settings, servers: Servers) -> AsyncIterator[tuple[Client, str]]:
    """A client of serving, and its address."""
    patient = settings.model_copy(update={"redis_timeout_seconds": PATIENCE_SECONDS})
    async with open_service(patient, ServingSettings(write_batch_rows=1_000)) as services:
        server = GrpcServer(services, host="127.0.0.1", port=0, max_message_bytes=2**24)
        target = f"127.0.0.1:{await server.start()}"
        async with open_channel(target, settings) as channel:
            yield Client(ServingServiceStub(channel), (("authorization", f"Bearer {servers.admin_key}"),)), target
        await server.stop(0)


@pytest.fixture
def serving(listening: tuple[Client, str]) -> Client:
    return listening[0]


@pytest.fixture
def triglot(listening: tuple[Client, str], servers: Servers, tmp_path: Path) -> Command:
    return Command(tmp_path, {"TRIGLOT_SERVING_TARGET": listening[1], "TRIGLOT_API_KEY": servers.admin_key})


async def rows(serving: Client, name: str, *ids: int) -> list[list[Any] | None]:
    """Rows as JSON texts of their values, without the key."""
    keys = [pb.RowKey(values=[Value(int_value=number)]) for number in ids]
    request = pb.ReadRowsRequest(feature_store="demo", feature_group=name, version=1, keys=keys)
    reply = await serving.call("ReadRows", request)
    kinds = [[value.WhichOneof("kind") for value in row.values] for row in reply.rows]
    return [
        [
            getattr(value, kind or "") if kind != "null_value" else None
            for value, kind in zip(row.values, of, strict=True)
        ][1:]
        if row.found
        else None
        for row, of in zip(reply.rows, kinds, strict=True)
    ]


def stored(table: pa.Table, folder: Path, name: str) -> Path:
    """The table as a file of the kind that its name says."""
    path = folder / name
    kind = name.partition(".")[2]
    if kind == "parquet":
        pq.write_table(table, path)
    elif kind.startswith("csv"):
        with pa.output_stream(path, compression="gzip" if kind.endswith("gz") else None) as out:
            pyarrow.csv.write_csv(table, out)
    else:
        make = pa.ipc.new_file if kind == "arrow" else pa.ipc.new_stream
        with make(path, table.schema) as writer:
            writer.write_table(table)
    return path


SEEN = [
    ["one", 0.1, True, 19016, 1643029500250000],
    ['say "two"', 2.0, False, None, None],
    [None, None, None, -1, None],
]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.arrows", "a.csv", "a.csv.gz"])
async def test_files_become_rows_of_a_group_that_is_made(
    triglot: Command, serving: Client, tmp_path: Path, name: str
) -> None:
    csv = "csv" in name
    path = stored(FLAT if csv else ROWS, tmp_path, name)
    seen = [list(row) for row in SEEN]
    if csv:
        seen[2][0] = ""  # CSV has no other way to write it
    else:
        for row, tags in zip(seen, ["[1,2]", "[]", None], strict=True):
            row.append(tags)
    done = await triglot("load", path, "--feature-group", "demo/made", "--key", "id", "--json")
    assert {**done.json, "seconds": 0, "rows_per_second": 0} == {
        "feature_store": "demo", "feature_group": "made", "version": 1, "mode": "overwrite", "created": True,
        "rows": 3, "generation": 1, "seconds": 0, "rows_per_second": 0,
    }  # fmt: skip
    assert await rows(serving, "made", 1, 2, 3, 4) == [*seen, None]


async def test_overwrite_and_merge(triglot: Command, serving: Client, tmp_path: Path) -> None:
    group = await serving.group("g", {"id": "bigint", "x": "string"}, ["id"])
    await serving.write(group, [{"id": 1, "x": "a"}, {"id": 2, "x": "b"}])
    merged = stored(pa.table({"x": ["B"], "id": [2]}), tmp_path, "a.parquet")
    # As names of groups may be written; columns come in any order.
    done = await triglot("load", merged, "--feature-group", "demo/g/1", "--mode", "merge")
    assert done.code == 0
    assert "1 rows loaded into demo/g/1" in done.out
    assert await rows(serving, "g", 1, 2) == [["a"], ["B"]]
    parts = [stored(pa.table({"id": [number], "x": [str(number)]}), tmp_path, f"{number}.arrow") for number in (3, 4)]
    assert (await triglot("load", *parts, "--feature-group", "demo/g", "--json")).json["generation"] == 2
    assert await rows(serving, "g", 1, 2, 3, 4) == [None, None, ["3"], ["4"]]


async def test_a_key_an_event_time_types_and_a_time_to_live(
    triglot: Command, listening: tuple[Client, str], servers: Servers, tmp_path: Path
) -> None:
    serving, target = listening
    path = tmp_path / "a.csv"
    path.write_text("id,other,seen,score,code\n1,x,2022-01-24 13:05:00,1,007\n")
    options = ["--key", "id", "--key", "other", "--event-time", "seen"]
    types = ["--type", "score=double", "--type", "code=string"]
    done = await triglot(
        "load", path, "--feature-group", "demo/g", *options, *types, "--ttl-seconds", "60", "--mode", "merge", "--json"
    )
    assert done.json["created"]
    request = pb.GetFeatureGroupRequest(feature_store="demo", name="g", version=1)
    group = (await serving.call("GetFeatureGroup", request)).feature_group
    assert (list(group.primary_key), group.event_time) == (["id", "other"], "seen")
    assert [each.type for each in group.features] == ["bigint", "string", "timestamp", "double", "string"]
    assert group.time_to_live.seconds == 60
    # What it was made with may be said again; a new time to live is taken.
    path.write_text("id,other,seen,score,code\n1,x,2022-01-24 13:05:00.5,1.5,008\n")

    async def again(**said: Any) -> load.Loaded:
        options = load.Options(files=[path], group=names.parse("demo/g"), mode="merge", **said)
        return await load.load(options, open_serving(tmp_path, target, servers.admin_key))

    same = {"key": ["id", "other"], "event_time": "seen", "types": {"score": "double", "code": "string"}}
    assert not (await again(**same, ttl_seconds=90)).created
    assert (await serving.call("GetFeatureGroup", request)).feature_group.time_to_live.seconds == 90
    for wrong in ({"key": ["id"]}, {"event_time": "score"}, {"types": {"score": "float"}}):
        with pytest.raises(errors.AlreadyExists, match="exists already"):
            await again(**wrong)


async def test_what_is_wrong_is_said(
    listening: tuple[Client, str], servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process: each command takes seconds to start."""
    client, target = listening
    monkeypatch.chdir(tmp_path)
    await client.group("there", {"id": "bigint", "x": "bigint"}, ["id"])
    whole = stored(pa.table({"id": [1], "x": ["a"]}), tmp_path, "a.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[:-20])
    (tmp_path / "a.txt").write_text("id\n1\n")
    (tmp_path / "odd.csv").write_text("id,x\n1,many\n")
    stored(pa.table({"id": [1], "x": pa.array([1], pa.duration("s"))}), tmp_path, "odd.arrow")
    for file, group, more, error, says in (
        ("nowhere.parquet", "demo/g", {}, errors.WrongSetting, "^nowhere.parquet is no file$"),
        ("a.txt", "demo/g", {}, errors.InvalidArgument, "^a.txt is no Parquet"),
        ("cut.parquet", "demo/g", {}, errors.InvalidArgument, "^cut.parquet cannot be read"),
        ("a.parquet", "demo/g", {}, errors.NotFound, "no feature group demo/g/1: name its key columns with --key"),
        ("a.parquet", "demo/there/2", {}, errors.NotFound, "no feature group demo/there/2"),
        ("a.parquet", "demo/g", {"key": ["y"]}, errors.InvalidArgument, "^a.parquet has no column y: it has id, x$"),
        ("odd.arrow", "demo/g", {"key": ["id"]}, errors.InvalidArgument, "^column x: .*duration"),
        ("a.parquet", "demo/there", {}, errors.InvalidArgument, "column x does not fit bigint"),
        ("odd.csv", "demo/there", {}, errors.InvalidArgument, "^odd.csv cannot be read: .*many"),
    ):
        options = load.Options(files=[Path(file)], group=names.parse(group), mode="overwrite", **more)
        with pytest.raises(error, match=says):
            await load.load(options, open_serving(tmp_path, target, servers.admin_key))


@pytest.mark.parametrize("text", ["g", "/g", "demo/", "demo/g/", "demo/g/x", "demo/g/0", "demo/g/1/2", "", "demo/g/²"])
def test_a_name_that_is_none(text: str) -> None:
    with pytest.raises(errors.WrongSetting):
        names.parse(text)


async def test_problems_are_one_line(triglot: Command, tmp_path: Path) -> None:
    stored(FLAT, tmp_path, "a.parquet")
    for arguments, code, says in (
        (["nowhere.parquet"], 2, "nowhere.parquet is no file"),
        (["a.parquet", "--type", "x"], 2, "COLUMN=TYPE"),
        (["a.parquet", "--target", "127.0.0.1:1"], 1, "serving does not answer at 127.0.0.1:1"),
    ):
        done = await triglot("load", "--feature-group", "demo/g", *arguments)
        assert (done.code, says in done.problem) == (code, True), (arguments, done)


async def test_a_file_that_is_wrong_in_its_midst_leaves_the_old_rows(
    triglot: Command, serving: Client, tmp_path: Path
) -> None:
    """Told by the loader (what it reads) and by serving (what it is sent)."""
    group = await serving.group("g", {"id": "bigint", "x": "string"}, ["id"])
    await serving.write(group, [{"id": 1, "x": "old"}])
    cut = stored(pa.table({"id": range(50_000), "x": ["new"] * 50_000}), tmp_path, "cut.arrows")
    cut.write_bytes(cut.read_bytes()[:-1_000])
    null = stored(pa.table({"id": [*range(50_000), None], "x": ["new"] * 50_001}), tmp_path, "null.parquet")
    for path, says in ((cut, "cannot be read"), (null, "key column id holds a null")):
        done = await triglot("load", path, "--feature-group", "demo/g")
        assert (done.code, says in done.problem) == (1, True)
        assert await rows(serving, "g", 1, 2) == [["old"], None]


async def test_ctrl_c_leaves_the_old_rows(
    triglot: Command, serving: Client, tmp_path: Path, servers: Servers, database: Database
) -> None:
    """Redis takes no writes meanwhile, so the load is under way for as long as the test wants."""
    group = await serving.group("g", {"id": "bigint", "x": "string"}, ["id"])
    await serving.write(group, [{"id": 1, "x": "old"}])
    path = stored(pa.table({"id": range(100_000), "x": ["new"] * 100_000}), tmp_path, "a.parquet")

    async def loads() -> int:
        return int(await database.fetchval("SELECT count(*) FROM serving.row_set WHERE state = 'loading'"))

    async def one() -> bool:
        return await loads() == 1

    async def none() -> bool:
        return await loads() == 0

    with redis.Redis.from_url(servers.redis_url) as client:
        client.execute_command("CLIENT", "PAUSE", 600_000, "WRITE")
        try:
            process = triglot.start("load", path, "--feature-group", "demo/g")
            await until(one)
            process.send_signal(signal.SIGINT)
            try:
                _, err = await asyncio.to_thread(process.communicate, timeout=PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                # What its threads do is told on its standard error.
                process.send_signal(signal.SIGABRT)
                _, err = await asyncio.to_thread(process.communicate)
        finally:
            client.execute_command("CLIENT", "UNPAUSE")
    assert process.returncode == 130, err
    assert "Traceback" not in err
    await until(none)
    assert await rows(serving, "g", 1, 2) == [["old"], None]


async def test_the_stack_that_runs_here_is_found(
    listening: tuple[Client, str], servers: Servers, tmp_path: Path
) -> None:
    """Without anything said, its address and its key; with an address, never its key."""
    client, target = listening
    path, data_dir = stored(FLAT, tmp_path, "a.parquet"), tmp_path / ".triglot"
    options = load.Options(files=[path], group=names.parse("demo/made"), mode="overwrite", key=["id"])
    with pytest.raises(errors.CannotStart, match="start it with `triglot up`"):
        await load.load(options, open_serving(data_dir))
    data_dir.mkdir()
    endpoints = {"serving_grpc": target, "api_key": servers.admin_key, "certificate": ""}
    (data_dir / "endpoints.json").write_text(json.dumps(endpoints))
    assert read_endpoints(data_dir) == endpoints
    done = await Command(tmp_path, {})("load", path, "--feature-group", "demo/made", "--key", "id")
    assert done.code == 0, done.err
    assert (await rows(client, "made", 2))[0] == SEEN[1]
    with pytest.raises(errors.Unauthenticated, match="--api-key"):
        await load.load(options, open_serving(data_dir, target))
    assert (await load.load(options, open_serving(data_dir, target, servers.admin_key))).rows == 3


async def test_one_vector_is_printed(triglot: Command, serving: Client) -> None:
    people = await serving.group("people", {"id": "bigint", "name": "string", "home": "bigint"}, ["id"])
    cities = await serving.group("cities", {"code": "string", "score": "decimal(5,2)"}, ["code"])
    await serving.write(people, [{"id": 2**53 + 1, "name": 'Zoë "Z"', "home": None}])
    await serving.write(cities, [{"code": "007", "score": Decimal("1.50")}])
    joined = {"group": "cities", "prefix": "c_", "on": [("home", "code")]}
    await serving.view("v", [{"group": "people"}, joined], [(0, "id"), (0, "name"), (0, "home"), (1, "score")])
    entry = ["--entry", f"id={2**53 + 1}", "--entry", "c_code=007"]
    found = await triglot("vector", "demo/v", *entry, "--json")
    assert found.json == {
        "status": "COMPLETE",
        "features": [
            {"name": "id", "type": "bigint", "value": 2**53 + 1},
            {"name": "name", "type": "string", "value": 'Zoë "Z"'},
            {"name": "home", "type": "bigint", "value": None},
            {"name": "c_score", "type": "decimal(5,2)", "value": 1.5},
        ],
        "groups": [{"name": "demo/people/1", "status": 200}, {"name": "demo/cities/1", "status": 200}],
    }
    shown = await triglot("vector", "v", "--store", "demo", "--entry", "id=1")
    assert shown.code == 0
    assert [line.split() for line in shown.out.splitlines()] == [
        ["FEATURE", "TYPE", "VALUE"],
        ["id", "bigint", "1"],
        ["name", "string", "null"],
        ["home", "bigint", "null"],
        ["c_score", "decimal(5,2)", "null"],
        ["MISSING"],
        ["demo/people/1:", "it", "has", "no", "such", "row"],
        ["demo/cities/1:", "its", "key", "was", "not", "given"],
    ]
    for arguments, code, says in (
        (["demo/v", "--entry", "id"], 2, "NAME=VALUE"),
        (["demo/v", "--entry", "id=x"], 1, "bigint"),
    ):
        failed = await triglot("vector", *arguments)
        assert (failed.code, says in failed.problem) == (code, True), arguments


async def test_help_has_examples(triglot: Command) -> None:
    for command in ("load", "vector"):
        done = await triglot(command, "--help")
        assert done.code == 0
        assert f"triglot {command} " in done.out.partition("Examples:")[2]
