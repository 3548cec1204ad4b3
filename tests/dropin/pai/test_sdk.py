"""PAI's official Python SDK, unmodified, in its own environment and process, against real ports.

Needs .venv-pai, made from requirements.lock next to this file. Without it the tests fail.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chassis.inprocess import InProcessChannel
from chassis.settings import Settings
from gateway.app import create_app
from gateway.dialects import pai
from gateway.dialects.pai.operations import OPERATIONS, Operation
from gateway.server import HttpServer
from gateway.settings import GatewaySettings
from services.management.process import open_service
from services.management.settings import ManagementSettings
from services.management.worker import run_worker
from services.serving.process import open_service as open_serving
from services.serving.settings import ServingSettings
from tests.certificates import Certificate
from tests.certificates import make as make_certificate
from tests.conftest import Servers

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
SDK_PYTHON = ROOT / ".venv-pai" / "bin" / "python"
HOW_TO_INSTALL = """\
The PAI SDK's environment is missing. Make it, from the root of the repository, with
    python3 -m venv --without-pip .venv-pai
    python3 -m pip --python .venv-pai/bin/python install --require-hashes -r tests/dropin/pai/requirements.lock"""

pytestmark = pytest.mark.dropin

# What only a worker can bring to its end.
PUBLISHING = {
    "write_feature_view_table",
    "list_feature_view_online_features",
    "list_task_logs",
    "export_model_feature_training_set_table",
}


def sdk_name(operation: Operation) -> str:
    """What the SDK calls an operation."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", operation.name).lower()


@dataclass(frozen=True)
class Deployment:
    """Serving, management and a gateway that listens twice: with TLS and without. And a worker, if a test runs it."""

    addresses: Mapping[str, str]  # by scheme
    certificate: Certificate
    run_worker: Callable[[asyncio.Event], Coroutine[Any, Any, None]]

    def config(self, credential: Mapping[str, str], scheme: str = "http") -> dict[str, str]:
        """The SDK's configuration."""
        trusted = {"ca": str(self.certificate.certificate)} if scheme == "https" else {}
        return {"endpoint": self.addresses[scheme], "protocol": scheme, **trusted, **credential}


@pytest.fixture
def own(tmp_path: Path) -> ManagementSettings:
    return ManagementSettings(offline_roots=(tmp_path,), lease_seconds=2)


@pytest.fixture
async def deployment(
    settings: Settings, own: ManagementSettings, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Deployment]:
    gateway = GatewaySettings(ports=(0,))
    certificate = make_certificate(tmp_path_factory.mktemp("certificate"))
    async with AsyncExitStack() as closing:
        serving = await closing.enter_async_context(open_serving(settings, ServingSettings()))
        channel = InProcessChannel(serving)
        management = await closing.enter_async_context(open_service(settings, own, channel))
        app = create_app([pai.dialect(InProcessChannel(management), gateway)], gateway)
        addresses = {}
        for scheme, files in {
            "http": ("", ""),
            "https": (str(certificate.certificate), str(certificate.key)),
        }.items():
            http = HttpServer(app, gateway, host="127.0.0.1", drain_seconds=1, certificate=files)
            [port] = await http.start()
            closing.push_async_callback(http.stop)
            addresses[scheme] = f"127.0.0.1:{port}"
        yield Deployment(addresses, certificate, lambda stop: run_worker(settings, own, channel, stop))


@pytest.fixture
def credentials(servers: Servers) -> dict[str, dict[str, str]]:
    key_id, secret = servers.access_key
    pair = {"access_key_id": key_id, "access_key_secret": secret}
    return {
        "access key": pair,
        "access key with a session token": {**pair, "security_token": "STS.token"},
        "bearer token": {"bearer_token": servers.admin_key},
    }


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


async def sdk(config: Mapping[str, str], scenario: str, **arguments: Any) -> Any:
    """What scenario.py printed."""
    assert SDK_PYTHON.exists(), HOW_TO_INSTALL
    asked = {"config": config, "scenario": scenario, **arguments}
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


@pytest.mark.parametrize(
    ("credential", "scheme", "asynchronous"),
    [
        ("access key", "http", False),
        ("access key with a session token", "https", True),
        ("bearer token", "https", False),
    ],
)
async def test_catalogue(
    *, deployment: Deployment, credentials: Any, users: Path, credential: str, scheme: str, asynchronous: bool
) -> None:
    config = deployment.config(credentials[credential], scheme)
    seen = await sdk(config, "catalogue", asynchronous=asynchronous, root=str(users), project="shop")
    assert set(map(sdk_name, OPERATIONS)) - set(seen["called"]) == PUBLISHING
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
    check_changes(seen["changed"])
    assert seen["stopped"] == {"before": "Initializing", "after": "Failure"}
    assert seen["refused"] == {
        "missing": ["ClientException", 404, "ResourceNotFound", True],
        "other instance": ["ClientException", 404, "ResourceNotFound", True],
        "invalid": ["ClientException", 400, "InvalidParameter", True],
        "taken": ["ClientException", 400, "DatasourceAlreadyExists", True],
        "in use": ["ClientException", 400, "DependencyExists", True],
        "no join ids": ["ClientException", 400, "InvalidParameter", True],
        "not ours": ["ClientException", 404, "InvalidApi.NotFound", True],
    }
    assert len(seen["deleted"]) == 7
    assert all(each == ["ClientException", 404, "ResourceNotFound", True] for each in seen["deleted"].values())


def check_changes(changed: dict[str, Any]) -> None:
    assert changed["instance made"]["Code"] == "InstanceAlreadyExistsErrorProblem"
    assert changed["instance made"]["InstanceId"] == "fs-cn-triglot"
    assert (changed["instance"]["Status"], changed["instance"]["Type"]) == ("Running", "Basic")
    assert (changed["online"]["Name"], changed["online"]["Config"]) == ("another name", '{"token":"******"}')
    assert [(each["Name"], each["AliasName"]) for each in changed["model_feature"]["Features"]] == [
        ("age", ""),
        ("city", "town"),
    ]
    assert changed["model_feature"]["LabelPriorityLevel"] == 2
    assert changed["label_table"]["Name"] == "renamed"
    assert changed["label_table"]["Fields"][0]["Attributes"] == ["EventTime"]
    assert [field["Name"] for field in changed["feature_view"]["Fields"]] == [
        "user_id", "age", "score", "city", "seen_at", "tags",
    ]  # fmt: skip


@pytest.mark.parametrize(("credential", "asynchronous"), [("bearer token", False), ("access key", True)])
async def test_publish(
    deployment: Deployment, credentials: Any, users: Path, *, credential: str, asynchronous: bool
) -> None:
    csv = users / "rows.csv"
    csv.write_text("user_id,age\n1,36\n2,\n")
    (users / "labels" / "ds=20230821").mkdir(parents=True)
    pq.write_table(pa.table({"uid": [3, 4], "clicked": [1, 0]}), users / "labels" / "ds=20230821" / "a.parquet")
    config = deployment.config(credentials[credential])
    stop = asyncio.Event()
    working = asyncio.create_task(deployment.run_worker(stop))
    try:
        seen = await sdk(config, "publish", asynchronous=asynchronous, root=str(users), project="shop", csv=str(csv))
        model = seen["exported"]["model"]
        day = users / model["TrainingSetTable"] / "ds=20230821" / "data.parquet"
        made = pq.read_table(day, partitioning=None)
        if credential == "access key":
            for script in (seen["view"]["PublishTableScript"], model["ExportTrainingSetTableScript"]):
                assert (await run_script(script, config)).isdecimal()
    finally:
        stop.set()
        await working
    assert set(seen["called"]) >= PUBLISHING
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
    assert [seen["exported"]["task"][name] for name in ("Type", "ObjectType", "Status")] == [
        "ExportTrainingSet", "ModelFeature", "Success",
    ]  # fmt: skip
    # Users as they were the day before: nobody 4 yet.
    assert sorted(made.to_pylist(), key=repr) == [
        {"uid": 3, "clicked": 1, "age": 7}, {"uid": 4, "clicked": 0, "age": None},
    ]  # fmt: skip
    assert any("rows/s" in line for line in seen["logs"])
    assert seen["tasks"]["TotalCount"] == 1
    assert seen["tasks"]["Tasks"][0]["ObjectType"] == "FeatureView"
    assert seen["stop"][:3] == ["ClientException", 400, "InvalidParameter"]
    assert seen["model_in_use"][:3] == ["ClientException", 400, "DependencyExists"]


async def run_script(script: str, config: dict[str, Any]) -> str:
    """What a script that PAI shows prints, run as its first lines ask for."""
    env = {
        "ALIBABA_CLOUD_ACCESS_KEY_ID": config["access_key_id"],
        "ALIBABA_CLOUD_ACCESS_KEY_SECRET": config["access_key_secret"],
        "PAI_FEATURE_STORE_ENDPOINT": config["endpoint"],
        "DAY": "20230821",
    }
    process = await asyncio.create_subprocess_exec(
        SDK_PYTHON, "-c", script, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, faults = await process.communicate()
    assert process.returncode == 0, faults.decode()
    return output.decode().strip()


async def test_who_is_refused(deployment: Deployment, credentials: Any) -> None:
    others = {
        "wrong secret": {"access_key_secret": "wrong"},
        "unknown": {"access_key_id": "LTAInobody"},
        "wrong token": {"access_key_id": None, "access_key_secret": None, "bearer_token": "0123456789abcdef.wrong"},
    }
    seen = await sdk(deployment.config(credentials["access key"]), "refused", others=others)
    expired = ["ClientException", 400, "InvalidTimeStamp.Expired", True]
    expected = {
        "wrong secret": ["ClientException", 400, "SignatureDoesNotMatch", True],
        "unknown": ["ClientException", 404, "InvalidAccessKeyId.NotFound", True],
        "wrong token": ["ClientException", 403, "UnauthorizedOperation", True],
        "-16": expired,
        "-14": ["nothing was raised"],
        "14": ["nothing was raised"],
        "16": expired,
        "first": ["nothing was raised"],
        "again": ["ClientException", 400, "SignatureNonceUsed", True],
    }
    assert seen == {"False": expected, "True": expected}


class TestThrottling:
    """A second's worth of calls, and then none for a long time."""

    @pytest.fixture
    def own(self, tmp_path: Path) -> ManagementSettings:
        return ManagementSettings(offline_roots=(tmp_path,), calls_per_second=0.001)

    async def test_the_sdk_is_told_when_to_come_back(self, deployment: Deployment, credentials: Any) -> None:
        seen = await sdk(deployment.config(credentials["access key"]), "throttled")
        for kind, status, code, retry_after_ms in seen.values():
            assert (kind, status, code) == ("ThrottlingException", 429, "Throttling")
            assert 0 < retry_after_ms <= 1_000_000
