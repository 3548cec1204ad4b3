"""How many calls the registry takes from one account, in Feast's shape."""

from __future__ import annotations

import grpc
import httpx2
import pytest

from chassis import errors
from chassis.inprocess import InProcessChannel
from chassis.settings import Settings
from gateway.app import create_app
from gateway.dialects import feast
from gateway.settings import GatewaySettings
from protos.gen.feast.registry.RegistryServer_pb2 import ListProjectsRequest
from protos.gen.feast.registry.RegistryServer_pb2_grpc import RegistryServerStub
from services.registry.process import open_service
from services.registry.settings import RegistrySettings
from tests.conftest import Servers


async def test_calls_of_one_account(settings: Settings, servers: Servers) -> None:
    bearer = {"authorization": f"Bearer {servers.admin_key}"}
    async with open_service(settings, RegistrySettings(calls_per_second=0.001)) as services:
        channel, own = InProcessChannel(services), GatewaySettings()
        transport = httpx2.ASGITransport(app=create_app([feast.dialect(channel, own)], own))
        async with httpx2.AsyncClient(transport=transport, base_url="http://t", headers=bearer) as http:
            assert (await http.get("/api/v1/projects")).status_code == 200
            refused = await http.get("/api/v1/projects")
        assert (refused.status_code, refused.json()["status_code"]) == (429, 429)
        assert 0 < int(refused.headers["retry-after"]) <= 1000
        # The same account over Feast's own RPCs.
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await RegistryServerStub(channel).ListProjects(ListProjectsRequest(), metadata=tuple(bearer.items()))
        assert errors.from_rpc(raised.value).reason == "RATE_LIMITED"
