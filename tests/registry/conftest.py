"""The registry on this test's database, and stubs on its in-process channel."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from chassis import calls
from chassis.inprocess import InProcessChannel
from chassis.rpc import Service
from chassis.settings import Settings
from protos.gen.feast.registry import RegistryServer_pb2_grpc
from protos.gen.triglot.registry.v1 import registry_service_pb2_grpc
from services.registry.process import open_service
from services.registry.settings import RegistrySettings
from tests.conftest import Servers


@dataclass
class Registry:
    """Both services of the registry, called by the administrator."""

    feast: Any
    rendered: Any
    metadata: Sequence[tuple[str, str]]

    async def __call__(self, method: Callable[..., Any], request: Any) -> Any:
        return await calls.invoke(method, request, metadata=self.metadata)


@pytest.fixture
async def services(settings: Settings) -> AsyncIterator[list[Service]]:
    async with open_service(settings, RegistrySettings()) as opened:
        yield opened


@pytest.fixture
def registry(services: list[Service], servers: Servers) -> Registry:
    channel = InProcessChannel(services)
    return Registry(
        RegistryServer_pb2_grpc.RegistryServerStub(channel),
        registry_service_pb2_grpc.RegistryServiceStub(channel),
        calls.bearer(servers.admin_key),
    )
