"""The real `feast` CLI on our registry: what it applies, lists, describes and deletes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from tests.dropin.feast.conftest import HERE, SDK, Sdk

pytestmark = pytest.mark.dropin

DEFINITIONS = """\
from datetime import timedelta

import pandas
from feast import Entity, FeatureService, FeatureView, Field, FileSource, Project, RequestSource
from feast.on_demand_feature_view import on_demand_feature_view
from feast.permissions.action import AuthzedAction
from feast.permissions.permission import Permission
from feast.permissions.policy import RoleBasedPolicy
from feast.types import Float32, Float64

project = Project(name="rides", description="all about rides")
driver = Entity(name="driver", join_keys=["driver_id"], description="drives")
source = FileSource(name="trips", path="drivers.parquet", timestamp_field="event_timestamp")
stats = FeatureView(
    name="stats",
    entities=[driver],
    ttl=timedelta(days=1),
    schema=[Field(name="conv_rate", dtype=Float32, description="share")],
    source=source,
    tags={"team": "rides"},
)


@on_demand_feature_view(
    sources=[stats, RequestSource(name="now", schema=[Field(name="factor", dtype=Float64)])],
    schema=[Field(name="scaled", dtype=Float64)],
)
def scaled(inputs: pandas.DataFrame) -> pandas.DataFrame:
    return pandas.DataFrame({"scaled": inputs["conv_rate"] * inputs["factor"]})


model = FeatureService(name="model", features=[stats], owner="ann")
readers = Permission(
    name="readers",
    types=[FeatureView],
    name_patterns=["st.*"],
    policy=RoleBasedPolicy(roles=["reader"]),
    actions=[AuthzedAction.DESCRIBE],
)
"""
# Command, and what its output must hold.
READS = (
    ("entities list", ["driver", "drives"]),
    ("entities describe driver", ["joinKey: driver_id", "description: drives"]),
    ("data-sources list", ["trips"]),
    ("data-sources describe trips", ["timestampField: event_timestamp"]),
    ("feature-views list", ["stats", "driver"]),
    ("feature-views list --tags team:rides", ["stats"]),
    ("feature-views describe stats", ["name: stats", "ttl: 86400s"]),
    ("on-demand-feature-views list", ["scaled"]),
    ("on-demand-feature-views describe scaled", ["name: scaled"]),
    ("stream-feature-views list", []),
    ("label-views list", []),
    ("features list", ["conv_rate", "scaled"]),
    ("features describe conv_rate", ["stats"]),
    ("feature-services list", ["model", "conv_rate"]),
    ("feature-services describe model", ["owner: ann"]),
    ("permissions list", ["readers"]),
    ("permissions list --verbose", ["readers"]),
    ("permissions describe readers", ["- DESCRIBE", "reader"]),
    ("permissions list-roles", ["reader"]),
    ("projects list", ["rides", "all about rides"]),
    ("projects describe rides", ["description: all about rides"]),
    ("projects current_project", ["rides"]),
    ("saved-datasets list", []),
    ("validation-references list", []),
    ("registry-dump", ['"name": "driver"', '"name": "stats"']),
)


async def commands(sdk: Sdk, folder: Path, *lines: str) -> Sequence[Any]:
    asked = json.dumps([line.split() for line in lines])
    printed = await sdk.run(HERE / "commands.py", asked, cwd=folder)
    seen: Sequence[Any] = json.loads(printed.splitlines()[-1])
    return seen


async def test_apply_list_describe_and_delete(sdk: Sdk, repository: Callable[..., Path]) -> None:
    folder = repository()
    (folder / "definitions.py").write_text(DEFINITIONS)
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    driven = pyarrow.table({"driver_id": [1], "conv_rate": [0.5], "event_timestamp": [moment]})
    parquet.write_table(driven, folder / "drivers.parquet")
    await sdk.run(SDK / "feast", "apply", cwd=folder)
    seen = await commands(sdk, folder, *(line for line, _ in READS))
    wrong = [
        (line, shown)
        for (line, expected), shown in zip(READS, seen, strict=True)
        if (shown["code"], shown["raised"]) != (0, "") or not all(text in shown["output"] for text in expected)
    ]
    assert wrong == []
    missing, *deleted, views, entities, gone = await commands(
        sdk,
        folder,
        "entities describe nobody",
        "delete model",
        "delete scaled",
        "delete stats",
        "delete driver",
        "feature-views list",
        "entities list",
        "delete driver",
    )
    assert missing["code"] == 1
    assert "Entity nobody does not exist in project rides" in missing["output"]
    assert [each["code"] for each in deleted] == [0, 0, 0, 0], deleted
    assert "stats" not in views["output"]
    assert "driver" not in entities["output"]
    assert gone["code"] != 0 or "not found" in gone["output"].lower(), gone
    plan, applied, listed, dropped, projects = await commands(
        sdk, folder, "plan", "apply", "feature-views list", "projects delete rides --yes", "projects list"
    )
    assert (plan["code"], applied["code"], dropped["code"]) == (0, 0, 0), (plan, applied, dropped)
    assert "stats" in listed["output"]
    assert "rides" not in projects["output"]
