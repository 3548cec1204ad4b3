"""Serve endpoints on a gRPC port: health, reflection, graceful drain. And run a process until it is told to stop."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import uvloop
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from chassis import errors
from chassis.errors import PortInUse
from chassis.rpc import Endpoint, Service
from chassis.settings import Settings


class GrpcServer:
    """Services on one port. `start` once, inside the running loop; then `stop` once."""

    def __init__(
        self,
        services: Sequence[Service],
        *,
        host: str,
        port: int,
        max_message_bytes: int,
        with_reflection: bool = True,
        tls: grpc.ServerCredentials | None = None,
    ) -> None:
        self._services = services
        self._host, self._port = host, port
        self._tls = tls
        self._with_reflection = with_reflection
        self._options = (
            # Without this two servers share a port in silence.
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", max_message_bytes),
            # Clients behind a load balancer meet new replicas; see docs/architecture.md.
            ("grpc.max_connection_age_ms", 30 * 60 * 1000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        )
        self._server: grpc.aio.Server | None = None
        self._health = health.aio.HealthServicer()

    async def start(self) -> int:
        """Listen, and say on which port. Raises PortInUse."""
        server = grpc.aio.server(options=self._options)
        for service in self._services:
            server.add_generic_rpc_handlers((_generic_handler(service),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = [service.name for service in self._services]
        if self._with_reflection:
            shown = [*names, health.SERVICE_NAME, reflection.SERVICE_NAME]
            reflection.enable_server_reflection(shown, server)
        port = _bind(server, self._host, self._port, self._tls)
        await server.start()
        for name in ("", *names):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        self._server = server
        return port

    async def stop(self, drain_seconds: float) -> None:
        """Report NOT_SERVING, take no new calls, let those under way finish for `drain_seconds`."""
        if self._server is not None:
            await self._health.enter_graceful_shutdown()
            await self._server.stop(drain_seconds)


@asynccontextmanager
async def listening(services: Sequence[Service], settings: Settings, port: int) -> AsyncIterator[int]:
    """Serve on a port of the settings' host while the block runs, then drain. Gives the port. Raises PortInUse."""
    server = GrpcServer(
        services,
        host=settings.host,
        port=port,
        max_message_bytes=settings.max_message_bytes,
        with_reflection=settings.reflection,
    )
    bound = await server.start()
    try:
        yield bound
    finally:
        await server.stop(settings.drain_seconds)


def _bind(server: grpc.aio.Server, host: str, port: int, tls: grpc.ServerCredentials | None) -> int:
    address = f"{host}:{port}"
    try:
        bound = server.add_secure_port(address, tls) if tls else server.add_insecure_port(address)
    except RuntimeError:
        bound = 0
    if bound == 0:
        raise PortInUse(host, port)
    return bound


def _generic_handler(service: Service) -> grpc.GenericRpcHandler:
    handlers = {path.rsplit("/", 1)[1]: _adapt(endpoint) for path, endpoint in service.endpoints.items()}
    handler: grpc.GenericRpcHandler = grpc.method_handlers_generic_handler(service.name, handlers)
    return handler


def _adapt(endpoint: Endpoint) -> Any:
    """The endpoint as a handler of grpc.aio: metadata and deadline out of the context, errors into it."""

    async def unary(request: Any, context: Any) -> Any:
        metadata = dict(context.invocation_metadata())
        try:
            return await endpoint.serve_unary(request, metadata, _deadline(context), context)
        except errors.TriglotError as error:
            await context.abort(error.code, endpoint.details(error), error.trailers())

    async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
        metadata = dict(context.invocation_metadata())
        try:
            async for message in endpoint.serve_stream(request, metadata, _deadline(context), context):
                yield message
        except errors.TriglotError as error:
            await context.abort(error.code, endpoint.details(error), error.trailers())

    handler = endpoint.handler
    make: Any
    behavior: Any
    if handler.unary_unary:
        make, behavior = grpc.unary_unary_rpc_method_handler, unary
    elif handler.stream_unary:
        make, behavior = grpc.stream_unary_rpc_method_handler, unary
    else:
        make, behavior = grpc.unary_stream_rpc_method_handler, stream
    return make(behavior, handler.request_deserializer, handler.response_serializer)


def _deadline(context: Any) -> float | None:
    remaining = context.time_remaining()
    return None if remaining is None else time.monotonic() + remaining


async def until_stopped() -> None:
    """Return when the process gets SIGTERM or SIGINT. A second signal ends it at once.

    Call it when everything is open: what is in memory by then stays, so the garbage collector is told to leave it
    alone. Looking through it took 40 ms every few seconds, and the slowest requests were those that waited for it.
    """
    gc.collect()
    gc.freeze()
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    await stopped.wait()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(number)


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Run a process: one event loop (grpc.aio allows one), and one clear line for a port that is taken."""

    async def started() -> None:
        await main()

    try:
        uvloop.run(started())
    except PortInUse as error:
        sys.exit(f"triglot: {error}")
