"""`triglot serve registry`: the registry alone, over gRPC, over REST, or over both, as Feast's own server has it."""

from __future__ import annotations

from contextlib import AsyncExitStack

from chassis import server
from chassis.inprocess import InProcessChannel
from chassis.settings import Settings
from gateway import server as http
from gateway.app import create_app
from gateway.dialects import feast
from gateway.settings import GatewaySettings
from services.registry.process import open_service
from services.registry.settings import RegistrySettings


def run(*, grpc: bool, rest_port: int | None) -> None:
    """Serve until told to stop. Without a port no REST; without gRPC no gRPC port is opened."""

    async def live(settings: Settings) -> None:
        opened: dict[str, object] = {}
        async with AsyncExitStack() as closing:
            services = await closing.enter_async_context(open_service(settings, RegistrySettings()))
            if grpc:
                listening = server.listening(services, settings, settings.registry_port)
                opened["port"] = await closing.enter_async_context(listening)
            if rest_port is not None:
                own = GatewaySettings(ports=(rest_port,))
                app = create_app([feast.dialect(InProcessChannel(services), own)], own)
                [opened["rest_port"]] = await closing.enter_async_context(http.listening(app, own, settings))
            await server.stay("registry", **opened)

    server.process(live)
