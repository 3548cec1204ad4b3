"""The document's limit of 8 KB for a request, where it is switched on."""

from __future__ import annotations

from typing import Any

import pytest

from chassis.inprocess import InProcessChannel
from gateway.app import create_app
from gateway.dialects import pai
from gateway.settings import GatewaySettings
from tests.management.conftest import INSTANCE, Pai

ROOT = "/api/PaiFeatureStore/2023-06-21"


@pytest.fixture
async def app(services: Any) -> Any:
    """A gateway that takes 8 KB: stands in for the one that takes more."""
    gateway = GatewaySettings(ports=(0,), pai_max_request_bytes=8192)
    return create_app([pai.dialect(InProcessChannel(services), gateway)], gateway)


async def test_query_and_body_count(caller: Pai) -> None:
    query = f"InstanceId={INSTANCE}&Name="
    for method, path, size, status in (
        ("GET", f"{ROOT}/ListProjects", 8192, 200),
        ("GET", f"{ROOT}/ListProjects", 8193, 400),
        ("GET", f"/api/v1/instances/{INSTANCE}/projects", 8193, 400),
    ):
        response = await caller.raw(method, f"{path}?{query}{'x' * (size - len(query))}")
        assert response.status_code == status, (path, size)
        if status == 400:
            assert response.json()["Code"] == "InvalidParameter"
            assert "8193 bytes" in response.json()["Message"]
    await caller.answer("ListProjects", Name="x" * 8000)
    await caller.refused("ListProjects", 400, "InvalidParameter", Name="x" * 8192)
    # Who calls is asked first, as ever.
    await Pai(caller.client, "0123456789abcdef.wrong").refused(
        "ListProjects", 403, "UnauthorizedOperation", Name="x" * 9000
    )
