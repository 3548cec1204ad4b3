"""PAI's official Python SDK, unmodified, in its own environment and process, against real ports.

Needs .venv-pai, made from requirements.lock next to this file. Without it the tests fail.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chassis.inprocess import InProcessChannel
from chassis.settings import Settings
from gateway.app import create_app
from gateway.dialects import pai
from gateway.server import HttpServer
from gateway.settings import GatewaySettings
from services.management.process import open_service
from services.management.settings import ManagementSettings
from services.management.worker import run_worker
from services.serving.process import open_service as open_serving
from services.serving.settings import ServingSettings
from tests.conftest import Servers

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
SDK_PYTHON = ROOT / ".venv-pai" / "bin" / "python"
HOW_TO_INSTALL = """\
The PAI SDK's environment is missing. Make it, from the root of the repository, with
    python3 -m venv --without-pip .venv-pai
    python3 -m pip --python .venv-pai/bin/python install --require-hashes -r tests/dropin/pai/requirements.lock"""

pytestmark = pytest.mark.dropin


@pytest.fixture
async def endpoint(settings: Settings, tmp_path: Path) -> AsyncIterator[str]:
    """Serving, management with its worker, and a listening gateway; its host and port."""
    own = ManagementSettings(offline_roots=(tmp_path,), lease_seconds=2)
    gateway = GatewaySettings(ports=(0,))
    async with open_serving(settings, ServingSettings()) as serving:
        channel = InProcessChannel(serving)
        async with open_service(settings, own, channel) as management:
            app = create_app([pai.dialect(InProcessChannel(management), gateway)], gateway)
            http = HttpServer(app, gateway, host="127.0.0.1", drain_seconds=1)
            stop = asyncio.Event()
            working = asyncio.create_task(run_worker(settings, own, channel, stop))
            [port] = await http.start()
            yield f"127.0.0.1:{port}"
            await http.stop()
            stop.set()
            await working


@pytest.fixture(params=["access key", "bearer token"])
def credential(request: pytest.FixtureRequest, servers: Servers) -> dict[str, str]:
    if request.param == "bearer token":
        return {"bearer_token": servers.admin_key}
    key_id, secret = servers.access_key
    return {"access_key_id": key_id, "access_key_secret": secret}


@pytest.fixture
def users(tmp_path: Path) -> Path:
    """Two days of a table `users`; its folder. Day two changes user 3 and brings user 4."""
    days = {
        "20230820": {
            "user_id": [1, 2, 3],
            "age": [36, None, 7],
            "score": [0.1, 2.5, None],
            "city": ["Zürich", "", None],
            "seen_at": [1_600_000_000_123, 0, None],
            "tags": [["a", "b"], [], None],
        },
        "20230821": {
            "user_id": [3, 4],
            "age": [8, 50],
            "score": [1.0, 2.0],
            "city": ["Bern", "Basel"],
            "seen_at": [1, 2],
            "tags": [["c"], ["d"]],
        },
    }
    types = [pa.int64(), pa.int32(), pa.float32(), pa.string(), pa.timestamp("ms"), pa.list_(pa.string())]
    for day, columns in days.items():
        folder = tmp_path / "users" / f"ds={day}"
        folder.mkdir(parents=True)
        arrays = [pa.array(values, kind) for values, kind in zip(columns.values(), types, strict=True)]
        pq.write_table(pa.table(arrays, names=list(columns)), folder / "part-0.parquet")
    return tmp_path


async def sdk(endpoint: str, credential: dict[str, str], scenario: str, **arguments: Any) -> Any:
    """What scenario.py printed."""
    assert SDK_PYTHON.exists(), HOW_TO_INSTALL
    asked = {"endpoint": endpoint, "credential": credential, "scenario": scenario, **arguments}
    process = await asyncio.create_subprocess_exec(
        SDK_PYTHON,
        HERE / "scenario.py",
        json.dumps(asked),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, faults = await process.communicate()
    assert process.returncode == 0, faults.decode()
    return json.loads(output)


async def test_catalogue(endpoint: str, credential: dict[str, str], users: Path) -> None:
    seen = await sdk(endpoint, credential, "catalogue", root=str(users), project="shop")
    ids = seen["ids"]
    assert seen["instance"] == "fs-cn-triglot"
    assert all(identifier.isdecimal() for identifier in ids.values())
    assert seen["datasource"]["Type"] == "MaxCompute"
    assert (seen["project"]["Name"], seen["project"]["OfflineLifecycle"]) == ("shop", 90)
    assert seen["feature_entity"]["JoinId"] == "uid"
    view = seen["feature_view"]
    assert (view["TTL"], view["SyncOnlineTable"], view["RegisterTable"], view["Tags"]) == (
        90,
        True,
        "users",
        ["label1"],
    )
    assert [field["Name"] for field in view["Fields"]] == ["user_id", "age", "score", "city", "seen_at", "tags"]
    assert seen["label_table"]["RelatedModelFeatures"] == ["model"]
    assert seen["model_feature"]["Features"][0]["AliasName"] == "years"
    counts = {name: listed["TotalCount"] for name, listed in seen.items() if name.startswith("list_")}
    assert counts == {
        "list_datasources": 2,
        "list_projects": 1,
        "list_feature_entities": 1,
        "list_feature_views": 1,
        "list_label_tables": 1,
        "list_model_features": 1,
        "list_tasks": 0,
    }
    assert seen["by_name"]["FeatureEntityId"] == ids["feature_entity"]
    assert seen["tables"]["Tables"] == ["users"]
    assert seen["table"]["Fields"][-1] == {"Name": "ds", "Type": "STRING", "Attributes": ["Partition"]}
    across = seen["across"]
    [feature] = across["features"]["Features"]
    assert (feature["Name"], feature["AliasNames"], feature["ModelFeatureCount"]) == ("age", "years", 1)
    assert across["features"]["TotalCount"] == 3
    assert len(across["views"]["FeatureViews"][0]["Features"]) == 6
    assert across["models of a view"]["Relationships"][0]["Models"][0]["ModelName"] == "model"
    assert across["models of a field"]["Relationships"][0]["Models"][0]["FeatureAliasName"] == "years"
    assert across["views of a datasource"]["TotalCount"] == 1
    assert across["a datasource that works"]["Status"] == "Success"
    assert all(answer.get("requestId") or answer["RequestId"] for answer in (across | seen["fg"]).values())
    generated = seen["fg"]["get"]
    assert [each["FeatureName"] for each in generated["RawFeatures"]] == ["f_years"]
    assert generated["LookupFeatures"][0]["DefaultValue"] == ""
    assert generated["SequenceFeatures"][0]["SubFeatures"][0]["InputFeatureName"] == "years"
    assert generated["Reserves"] == ["years"]
    content = json.loads(seen["fg"]["info"]["Content"])
    assert [each.get("feature_name") or each["sequence_name"] for each in content["features"]] == [
        "f_years",
        "f_lookup",
        "clicks",
    ]
    assert [each["Status"] for each in seen["fg"]["check"]["FGCheckResults"]] == [True] * 4
    assert [each["Name"] for each in seen["fg"]["available"]["AvaliableFeatures"]] == ["years"]
    assert seen["description"] == "naïve ☃"
    assert seen["update_request_id"]
    assert seen["asynchronous"] == "shop"
    assert seen["refused"] == {
        "missing": ["ClientException", 404, "ResourceNotFound", True],
        "other instance": ["ClientException", 404, "ResourceNotFound", True],
        "invalid": ["ClientException", 400, "InvalidParameter", True],
        "taken": ["ClientException", 400, "DatasourceAlreadyExists", True],
        "in use": ["ClientException", 400, "DependencyExists", True],
        "no join ids": ["ClientException", 400, "InvalidParameter", True],
        "not ours": ["ClientException", 404, "InvalidApi.NotFound", True],
    }
    assert seen["deleted"] == ["ClientException", 404, "ResourceNotFound", True]


async def test_publish(endpoint: str, credential: dict[str, str], users: Path) -> None:
    csv = users / "rows.csv"
    csv.write_text("user_id,age\n1,36\n2,\n")
    seen = await sdk(endpoint, credential, "publish", root=str(users), project="shop", csv=str(csv))
    assert seen["before"] == []
    assert (seen["overwrite"]["Status"], seen["merge"]["Status"]) == ("Success", "Success")
    assert json.loads(seen["overwrite"]["RunningConfig"])["rows_done"] == 3
    null = {"uid": 3, "age": 7, "score": None, "city": None, "seen_at": None, "tags": None}
    full = {"uid": 1, "age": 36, "score": 0.1, "city": "Zürich", "seen_at": 1_600_000_000_123, "tags": ["a", "b"]}
    assert seen["after"] == [null, full]
    three = {"uid": 3, "age": 8, "score": 1.0, "city": "Bern", "seen_at": 1, "tags": ["c"]}
    four = {"uid": 4, "age": 50, "score": 2.0, "city": "Basel", "seen_at": 2, "tags": ["d"]}
    assert seen["merged"] == [full, three, four]
    assert all(type(seen["merged"][0][name]) is int for name in ("uid", "age", "seen_at"))
    last = json.loads(seen["view"]["LastSyncConfig"])
    assert (last["mode"], last["partitions"]) == ("merge", {"ds": {"value": "20230821"}})
    assert seen["view"]["GmtSyncTime"]
    assert (seen["imported"]["task"]["Type"], seen["imported"]["task"]["Status"]) == ("WriteTable", "Success")
    assert seen["imported"]["online"] == [{"uid": 1, "age": 36}, {"uid": 2, "age": None}]
    assert any("rows/s" in line for line in seen["logs"])
    assert seen["tasks"]["TotalCount"] == 1
    assert seen["tasks"]["Tasks"][0]["ObjectType"] == "FeatureView"
    assert seen["stop"][:3] == ["ClientException", 400, "InvalidParameter"]
    assert seen["model_in_use"][:3] == ["ClientException", 400, "DependencyExists"]


async def test_bad_credentials(endpoint: str, servers: Servers) -> None:
    key_id, _ = servers.access_key
    for credential, status, code in (
        ({"access_key_id": key_id, "access_key_secret": "wrong"}, 400, "SignatureDoesNotMatch"),
        ({"access_key_id": "LTAInobody", "access_key_secret": "x"}, 404, "InvalidAccessKeyId.NotFound"),
        ({"bearer_token": "0123456789abcdef.wrong"}, 403, "UnauthorizedOperation"),
    ):
        assert await sdk(endpoint, credential, "rejected") == ["ClientException", status, code, True]
