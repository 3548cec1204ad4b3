"""One service as a process of its own, over gRPC, over REST, or over both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass

import grpc

from chassis import server
from chassis.inprocess import InProcessChannel
from chassis.limits import of_addresses
from chassis.rpc import Service
from chassis.settings import Settings
from gateway import server as http
from gateway.app import create_app
from gateway.dialect import Dialect
from gateway.settings import GatewaySettings


@dataclass(frozen=True)
class Role:
    """A service, and the dialect in which it is served over REST."""

    name: str
    open_service: Callable[[Settings], AbstractAsyncContextManager[Sequence[Service]]]
    grpc_port: Callable[[Settings], int]
    dialect: Callable[[grpc.aio.Channel, GatewaySettings], Dialect]


def run(role: Role, *, with_grpc: bool, rest_port: int | None) -> None:
    """Serve until told to stop. Without a port no REST; without gRPC no gRPC port is opened."""

    async def live(settings: Settings) -> None:
        opened: dict[str, object] = {}
        async with AsyncExitStack() as closing:
            services = await closing.enter_async_context(role.open_service(settings))
            if with_grpc:
                listening = server.listening(services, settings, role.grpc_port(settings))
                opened["port"] = await closing.enter_async_context(listening)
            if rest_port is not None:
                own = GatewaySettings(ports=(rest_port,))
                app = create_app([role.dialect(InProcessChannel(services), own)], own, of_addresses(settings))
                [opened["rest_port"]] = await closing.enter_async_context(http.listening(app, own, settings))
            await server.stay(role.name, opened, server.needs_of(services))

    server.process(live)
