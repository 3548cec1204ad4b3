"""The whole deployment in one process: three services, their in-process channels, the gateway's application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from chassis.inprocess import InProcessChannel
from chassis.limits import of_addresses
from chassis.rpc import Service
from chassis.settings import Settings
from gateway.app import create_app
from gateway.assembly import all_dialects
from gateway.settings import GatewaySettings
from services.management.process import open_service as open_management
from services.management.settings import ManagementSettings
from services.registry.process import open_service as open_registry
from services.registry.settings import RegistrySettings
from services.serving.process import open_service as open_serving
from services.serving.settings import ServingSettings


@dataclass(frozen=True)
class Stack:
    """What was opened."""

    registry: Sequence[Service]
    serving: Sequence[Service]
    management: Sequence[Service]
    app: Callable[..., Awaitable[None]]  # the gateway, an ASGI application


@asynccontextmanager
async def open_stack(
    settings: Settings,
    *,
    registry: RegistrySettings | None = None,
    serving: ServingSettings | None = None,
    management: ManagementSettings | None = None,
    gateway: GatewaySettings | None = None,
) -> AsyncIterator[Stack]:
    """Open everything on migrated databases; close it in the opposite order. Opens no port."""
    gateway = gateway or GatewaySettings()
    async with AsyncExitStack() as closing:
        opened_serving = await closing.enter_async_context(open_serving(settings, serving or ServingSettings()))
        serving_channel = InProcessChannel(opened_serving)
        opened_registry = await closing.enter_async_context(open_registry(settings, registry or RegistrySettings()))
        opened_management = await closing.enter_async_context(
            open_management(settings, management or ManagementSettings(), serving_channel)
        )
        dialects = all_dialects(
            registry=InProcessChannel(opened_registry),
            serving=serving_channel,
            management=InProcessChannel(opened_management),
            settings=gateway,
        )
        app = create_app(dialects, gateway, of_addresses(settings))
        yield Stack(opened_registry, opened_serving, opened_management, app)
