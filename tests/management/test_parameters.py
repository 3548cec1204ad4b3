"""The document's parameter tables, row by row, and what each operation cannot do without: parameters.yaml, run."""

from __future__ import annotations

import itertools
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from chassis.inprocess import InProcessChannel
from chassis.settings import Settings
from gateway.dialects.pai.operations import OPERATIONS
from services.management.process import open_service
from services.management.settings import ManagementSettings
from services.serving.process import open_service as open_serving
from services.serving.settings import ServingSettings
from tests.management.conftest import INSTANCE, Pai, catalogue

CONTENT = yaml.safe_load((Path(__file__).parent / "parameters.yaml").read_text())
OPERATION_ROWS: dict[str, dict[str, Any]] = CONTENT["operations"]
TABLES: dict[str, dict[str, dict[str, Any]]] = CONTENT["tables"]
LONG_NAME = "x" * 129
VALUES = {"$long": LONG_NAME, "$hundred": ["1"] * 100, "$hundred_and_one": ["1"] * 101}
REFUSALS = {"wrong_type": (400, "InvalidParameter"), "out_of_range": (400, "InvalidParameter")} | {
    "unknown": (404, "ResourceNotFound")
}
# Nothing to do with an instance.
WITHOUT_INSTANCE = {"CreateInstance", "ListInstances"}


@pytest.fixture
async def services(settings: Settings, own: ManagementSettings) -> AsyncIterator[Any]:
    """Management with serving: stands in for the fixture without it."""
    async with (
        open_serving(settings, ServingSettings()) as serving,
        open_service(settings, own, InProcessChannel(serving)) as opened,
    ):
        yield opened


class World:
    """What calls refer to, and names that nothing has."""

    def __init__(self, caller: Pai, ids: dict[str, str]) -> None:
        self._caller = caller
        self._ids = ids
        self._numbers = itertools.count()

    async def call(self, operation: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        path = f"/api/PaiFeatureStore/2023-06-21/{operation}"
        response = await self._caller.raw("POST", path, json=await self.filled({"InstanceId": INSTANCE, **body}))
        return response.status_code, response.json()

    async def filled(self, value: Any) -> Any:
        """The value with what its placeholders stand for."""
        if isinstance(value, dict):
            return {key: await self.filled(item) for key, item in value.items()}
        if isinstance(value, list):
            return [await self.filled(item) for item in value]
        if not isinstance(value, str) or not value.startswith("$"):
            return value
        if value == "$new":
            return f"new_{next(self._numbers)}"
        if value.startswith("$new "):
            operation = value.removeprefix("$new ")
            status, answer = await self.call(operation, OPERATION_ROWS[operation]["call"])
            assert status == 200, (operation, answer)
            return next(answer[key] for key in answer if key.endswith("Id") and key != "RequestId")
        return VALUES[value] if value in VALUES else self._ids[value.removeprefix("$")]


@pytest.fixture
async def world(caller: Pai, tmp_path: Path) -> World:
    folder = tmp_path / "users" / "ds=20230820"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"user_id": [1], "age": pa.array([36], pa.int32())}), folder / "part.parquet")
    ids = await catalogue(caller, config=orjson.dumps({"root": str(tmp_path)}).decode())
    fields = [
        {"Name": "user_id", "Type": "INT64", "Attributes": ["PrimaryKey"]},
        {"Name": "age", "Type": "INT32", "Attributes": []},
    ]
    day = {"Name": "ds", "Type": "STRING", "Attributes": ["Partition"]}
    common = {"ProjectId": ids["project"], "FeatureEntityId": ids["entity"], "SyncOnlineTable": True}
    ids["view"] = await caller.made(
        "FeatureView", **common, Name="profile", Type="Batch", WriteMethod="ByReadyMadeTable", RegisterTable="users",
        RegisterDatasourceId=ids["offline"], Fields=[*fields, day],
    )  # fmt: skip
    ids["stream"] = await caller.made(
        "FeatureView", **common, Name="stream", Type="Stream", WriteMethod="Custom",
        Fields=[{"Name": "id", "Type": "INT64", "Attributes": ["PrimaryKey"]}],
    )  # fmt: skip
    ids["sequence"] = await caller.made(
        "FeatureView", **common, Name="sequence", Type="Sequence", WriteMethod="Custom", Fields=fields
    )
    clicks = pa.table({"user_id": [1], "when": pa.array([0], pa.timestamp("ms")), "clicked": [1]})
    pq.write_table(clicks, tmp_path / "clicks.parquet")
    ids["clicks"] = await caller.made(
        "LabelTable", ProjectId=ids["project"], DatasourceId=ids["offline"], Name="clicks",
        Fields=[
            {"Name": "user_id", "Type": "INT64", "Attributes": []},
            {"Name": "when", "Type": "TIMESTAMP", "Attributes": ["EventTime"]},
            {"Name": "clicked", "Type": "INT64", "Attributes": ["LabelField"]},
        ],
    )  # fmt: skip
    ids["ranking"] = await caller.made(
        "ModelFeature", ProjectId=ids["project"], Name="ranking", LabelTableId=ids["clicks"],
        Features=[{"FeatureViewId": ids["view"], "Name": "age", "Type": "INT32"}],
    )  # fmt: skip
    world = World(caller, ids)
    for name, operation in (
        ("label", "CreateLabelTable"), ("model", "CreateModelFeature"), ("task", "PublishFeatureViewTable")
    ):  # fmt: skip
        ids[name] = await world.filled(f"$new {operation}")
    return world


def fresh(call: dict[str, Any]) -> dict[str, Any]:
    """A copy in which nothing is shared, as YAML's aliases are."""
    copied: dict[str, Any] = orjson.loads(orjson.dumps(call))
    return copied


def places(parts: str, body: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The object of a call that a parameter such as `Fields[].Name` is in, and its name there."""
    *above, last = parts.split(".")
    for part in above:
        body = body[part.removesuffix("[]")][0]
    return body, last


def test_every_operation_has_a_row() -> None:
    assert {operation.name for operation in OPERATIONS} == set(OPERATION_ROWS)


async def test_what_an_operation_cannot_do_without(world: World) -> None:
    for operation, row in OPERATION_ROWS.items():
        status, answer = await world.call(operation, row["call"])
        assert status == 200, (operation, answer)
        instance = [] if operation in WITHOUT_INSTANCE else ["InstanceId"]
        for name in [*instance, *row.get("required", [])]:
            body = fresh({"InstanceId": INSTANCE, **row["call"]})
            place, last = places(name, body)
            # Absent and null are one; so is, for a list, an empty one.
            empty = [[]] if isinstance(place[last], list) else []
            for value in (None, *empty):
                place[last] = value
                status, answer = await world.call(operation, body)
                assert (status, answer.get("Code")) == (400, "InvalidParameter"), (operation, name, value, answer)
                assert names(name, answer["Message"]), (operation, name, answer)


async def test_everything_else_may_be_left_out(world: World) -> None:
    for operation, row in OPERATION_ROWS.items():
        for name in set(row["call"]) - set(row.get("required", [])):
            if (operation, name) not in TOGETHER:
                body = {key: value for key, value in row["call"].items() if key != name}
                status, answer = await world.call(operation, body)
                assert status == 200, (operation, name, answer)


# What one parameter of the call asks for, though others would do without it.
TOGETHER = {
    ("CreateFeatureView", "RegisterTable"),
    ("CreateFeatureView", "RegisterDatasourceId"),
    ("WriteFeatureViewTable", "Rows"),
}


@pytest.mark.parametrize("table", list(TABLES))
async def test_rows(world: World, table: str) -> None:
    for parameter, row in TABLES[table].items():
        for operation in row["in"]:
            for outcome in ("accepted", "wrong_type", "out_of_range", "unknown"):
                for value in row.get(outcome, []):
                    body = fresh(OPERATION_ROWS[operation]["call"])
                    place, last = places(row.get("at", parameter), body)
                    place[last] = value
                    status, answer = await world.call(operation, body)
                    expected = REFUSALS.get(outcome, (200, None))
                    assert (status, answer.get("Code")) == expected, (table, parameter, operation, value, answer)
                    if outcome in {"wrong_type", "out_of_range"}:
                        assert names(parameter, answer["Message"]), (table, parameter, operation, value, answer)


def names(parameter: str, message: str) -> bool:
    """Whether a message says which parameter is wrong."""
    return all(re.search(rf"\b{part}\b", message) for part in parameter.replace("[]", "").split("."))
