"""Management alone, behind the gateway's PAI dialect: over an in-process channel, and on listening ports."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from chassis.inprocess import InProcessChannel
from chassis.settings import Settings
from gateway.app import create_app
from gateway.dialects import pai
from gateway.settings import GatewaySettings
from services.management.process import open_service
from services.management.settings import ManagementSettings
from tests.conftest import Servers

INSTANCE = "fs-cn-triglot"


class Pai:
    """A caller of PAI's API in the document's style, as the administrator unless it is given another key."""

    def __init__(self, client: httpx2.AsyncClient, key: str) -> None:
        self.client = client
        self.key = key

    async def raw(self, method: str, path: str, **arguments: Any) -> httpx2.Response:
        headers = {"Authorization": f"Bearer {self.key}", **arguments.pop("headers", {})}
        return await self.client.request(method, path, headers=headers, **arguments)

    async def answer(self, operation: str, *, expect: int = 200, instance: str = INSTANCE, **body: Any) -> Any:
        """POST an operation, and its JSON; its status must be the expected one."""
        path = f"/api/PaiFeatureStore/2023-06-21/{operation}"
        response = await self.raw("POST", path, params={"InstanceId": instance}, json=body)
        answer = response.json()
        assert response.status_code == expect, (operation, response.status_code, answer)
        assert answer["RequestId"]
        return answer

    async def made(self, kind: str, **body: Any) -> str:
        """Create something; its id."""
        return str((await self.answer(f"Create{kind}", **body))[f"{kind}Id"])

    async def refused(self, operation: str, status: int, code: str, **body: Any) -> str:
        """The message of a call that must be refused."""
        answer = await self.answer(operation, expect=status, **body)
        assert answer["Code"] == code, answer
        return str(answer["Message"])


@pytest.fixture
def own(tmp_path: Path) -> ManagementSettings:
    """Settings under which tables may be below this test's folder."""
    return ManagementSettings(offline_roots=(tmp_path,), lease_seconds=2, retry_seconds=0.2)


@pytest.fixture
async def services(settings: Settings, own: ManagementSettings) -> AsyncIterator[Any]:
    """Management without serving."""
    async with open_service(settings, own, InProcessChannel([])) as opened:
        yield opened


@pytest.fixture
async def app(services: Any) -> Any:
    gateway = GatewaySettings(ports=(0,))
    return create_app([pai.dialect(InProcessChannel(services), gateway)], gateway)


@pytest.fixture
async def caller(app: Any, servers: Servers) -> AsyncIterator[Pai]:
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://test") as client:
        yield Pai(client, servers.admin_key)


async def catalogue(caller: Pai, **offline: Any) -> dict[str, str]:
    """Datasources, a project `shop` and its entity; their ids."""
    config = offline.pop("config", "{}")
    offline_id = await caller.made(
        "Datasource", Name="offline", WorkspaceId="1", Type="MaxCompute", Uri="shop", Config=config
    )
    online_id = await caller.made("Datasource", Name="online", WorkspaceId="1", Type="FeatureDB", Uri="feature_db")
    project_id = await caller.made(
        "Project", Name="shop", WorkspaceId="1", OfflineDatasourceId=offline_id, OnlineDatasourceId=online_id
    )
    entity_id = await caller.made("FeatureEntity", Name="user", JoinId="user_id", ProjectId=project_id)
    return {"offline": offline_id, "online": online_id, "project": project_id, "entity": entity_id}
