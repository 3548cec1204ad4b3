"""The driver for MaxCompute, as far as it goes without MaxCompute: what it is made of, and what it refuses."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import orjson
import pytest

from chassis import errors
from services.management.maxcompute import Project
from services.management.settings import ManagementSettings
from tests.management.conftest import Pai

GOOD = {
    "driver": "odps", "endpoint": "http://127.0.0.1:1/api", "access_id": "LTAI", "secret_access_key": "hunter2",
}  # fmt: skip


@pytest.fixture
def own(tmp_path: Path) -> ManagementSettings:
    return ManagementSettings(offline_roots=(tmp_path,), datasource_hosts=("127.0.0.1",), check_timeout_seconds=5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"endpoint": ""}, "endpoint"),
        ({"access_id": None}, "access_id"),
        ({"secret_access_key": 1}, "secret_access_key"),
        ({"endpoint": "127.0.0.1"}, "must be an http"),
        ({"endpoint": "http://[x"}, "must be an http"),
        ({"endpoint": "http://service.cn.maxcompute.aliyun.com/api"}, "TRIGLOT_MANAGEMENT_DATASOURCE_HOSTS"),
        ({"tunnel_endpoint": "http://169.254.169.254"}, "TRIGLOT_MANAGEMENT_DATASOURCE_HOSTS"),
    ],
)
async def test_configurations_that_lead_nowhere(caller: Pai, change: dict[str, Any], said: str) -> None:
    config = orjson.dumps({**GOOD, **change}).decode()
    message = await caller.refused(
        "CreateDatasource",
        400,
        "InvalidParameter",
        Name="d",
        WorkspaceId="1",
        Type="MaxCompute",
        Uri="p",
        Config=config,
    )
    assert said in message
    assert "hunter2" not in message


async def test_nobody_is_there(caller: Pai) -> None:
    """Its secret is masked, and what cannot be reached, or is not installed, is said."""
    config = orjson.dumps(GOOD).decode()
    made = await caller.made("Datasource", Name="d", WorkspaceId="1", Type="MaxCompute", Uri="p", Config=config)
    assert "hunter2" not in (await caller.answer("GetDatasource", DatasourceId=made))["Config"]
    installed = importlib.util.find_spec("odps") is not None
    status, code = (503, "ServiceUnavailable") if installed else (400, "InvalidParameter")
    message = await caller.refused("ListDatasourceTables", status, code, DatasourceId=made)
    assert ("cannot be reached" if installed else "triglot[maxcompute]") in message
    checked = await caller.answer("CheckInstanceDatasource", Type="MaxCompute", Uri="p", Config=config)
    assert (checked["Status"], "hunter2" in checked["Message"]) == ("Failure", False)


def test_its_entry_is_what_the_configuration_says() -> None:
    """With pyodps: the object that all its calls are made with."""
    entry = Project("shop", {**GOOD, "tunnel_endpoint": "http://127.0.0.1:2"}, ("127.0.0.1",), 5, 1_000)._entry()
    assert (entry.project, entry.endpoint, entry.account.access_id) == ("shop", GOOD["endpoint"], "LTAI")
    with pytest.raises(errors.InvalidArgument):
        Project("shop", GOOD, (), 5, 1_000)._entry()
