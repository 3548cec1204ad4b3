"""Serve endpoints on a gRPC port: health, reflection, graceful drain. And run a process until it is told to stop."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from typing import Any, NoReturn

import grpc
import uvloop
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from chassis import bundles, calls, errors, metrics_port, rdrs_config, telemetry, tls, tracing
from chassis.addresses import joined
from chassis.errors import PortInUse
from chassis.limits import Addresses, of_addresses
from chassis.readiness import Needs, board, watched
from chassis.rpc import Endpoint, Service, no_message
from chassis.settings import Settings

# In the environment of a child of `triglot serve --workers`: its number, and the file descriptor of a pipe in which it
# says that it serves.
WORKER = "TRIGLOT_WORKER"
READY_PIPE = "TRIGLOT_READY_PIPE"
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


# A key, or a token of a provider, is some 6 KiB at most; a request that was signed, some 8 KiB.
MAX_METADATA_BYTES = 32 * 1024
# How long a connection may take to say what it speaks.
HANDSHAKE_SECONDS = 10.0
# How long gRPC may take to stop once the calls under way have had their time.
STOP_SECONDS = 10.0
# How long callers that watch our health may take to hear that we go; at most a part of the time for calls under way.
_LEAVE_SECONDS = 1.0
LEAVE_PART = 0.25


class _Health(health.aio.HealthServicer):
    """gRPC's health service, which knows whether anybody watches."""

    def __init__(self) -> None:
        super().__init__()
        self.watchers = 0

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802 - gRPC's name
        """Tell of each change until the caller goes."""
        self.watchers += 1
        try:
            await super().Watch(request, context)
        finally:
            self.watchers -= 1


class GrpcServer:
    """Services on one port. `start` once, inside the running loop; then `stop` once.

    Its gRPC health, asked about no service, says that the process is alive; about a service, whether that has what it
    needs.
    """

    def __init__(
        self,
        services: Sequence[Service],
        *,
        host: str,
        port: int,
        max_message_bytes: int,
        with_reflection: bool = True,
        credentials: grpc.ServerCredentials | None = None,
        reuse_port: bool = False,
        max_connections: int = 10_000,
        max_streams: int = 10_000,
        addresses: Addresses | None = None,
    ) -> None:
        self._services = services
        self._addresses = addresses
        self._host, self._port = host, port
        self._credentials = credentials
        self._with_reflection = with_reflection
        self._options = (
            # It is 1 unless it is set, and two servers share a port in silence.
            ("grpc.so_reuseport", int(reuse_port)),
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", max_message_bytes),
            ("grpc.max_allowed_incoming_connections", max_connections),
            ("grpc.max_concurrent_streams", max_streams),
            # Both the same: between them gRPC refuses some calls and takes others, by chance.
            ("grpc.max_metadata_size", MAX_METADATA_BYTES),
            ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
            ("grpc.server_handshake_timeout_ms", int(HANDSHAKE_SECONDS * 1000)),
            # A client asks for addresses when it loses a connection: so it hears of new replicas within half a minute.
            # One that knows a single replica has nowhere to turn when that goes. Calls under way go on.
            ("grpc.max_connection_age_ms", 30_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        )
        self._server: grpc.aio.Server | None = None
        self._health = _Health()
        self._closing = AsyncExitStack()

    async def start(self) -> int:
        """Listen, and say on which port. Raises PortInUse."""
        server = grpc.aio.server(options=self._options)
        served = [*self._services, bundles.service(self._services, self._addresses)]
        for service in served:
            server.add_generic_rpc_handlers((_generic_handler(service, self._addresses),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if self._with_reflection:
            shown = [*(service.name for service in served), health.SERVICE_NAME, reflection.SERVICE_NAME]
            reflection.enable_server_reflection(shown, server)
        port = _bind(server, self._host, self._port, self._credentials)
        await server.start()
        self._server = server
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        await self._closing.enter_async_context(watched(needs_of(self._services), self._tell))
        return port

    async def _tell(self, found: Mapping[str, bool]) -> None:
        for service in self._services:
            ready = all(found[need] for need in service.needs)
            status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
            await self._health.set(service.name, status)

    async def stop(self, drain_seconds: float) -> None:
        """Report NOT_SERVING, take no new calls, let those under way finish for `drain_seconds`.

        gRPC cancels calls that arrive between its decision to stop and the moment in which the caller hears of it. So
        callers that watch our health, as all channels of ours do, hear first and have a part of the time to turn away.
        """
        if self._server is not None:
            await self._closing.aclose()
            await self._health.enter_graceful_shutdown()
            if self._health.watchers:
                leave_seconds = min(_LEAVE_SECONDS, LEAVE_PART * drain_seconds)
                drain_seconds -= leave_seconds
                await asyncio.sleep(leave_seconds)
            # gRPC ends every call after the grace; it was once seen not to return when a client had been killed.
            stopping = asyncio.ensure_future(self._server.stop(drain_seconds))
            done, _ = await asyncio.wait((stopping,), timeout=drain_seconds + STOP_SECONDS)
            if done:
                stopping.result()
            else:
                stopping.cancel()
                telemetry.log.error("gRPC does not stop", port=self._port)


@asynccontextmanager
async def listening(services: Sequence[Service], settings: Settings, port: int) -> AsyncIterator[int]:
    """Serve on a port of the settings' host while the block runs, then drain. Gives the port. Raises PortInUse."""
    server = GrpcServer(
        services,
        host=settings.host,
        port=port,
        max_message_bytes=settings.max_message_bytes,
        with_reflection=settings.reflection,
        credentials=_credentials(settings),
        reuse_port=settings.reuse_port,
        max_connections=settings.max_connections,
        max_streams=settings.max_streams,
        addresses=of_addresses(settings),
    )
    bound = await server.start()
    try:
        yield bound
    finally:
        await server.stop(settings.drain_seconds)


def _credentials(settings: Settings) -> grpc.ServerCredentials | None:
    if not settings.tls_certificate:
        return None
    return tls.grpc_listener(settings.tls_certificate, settings.tls_key, settings.client_authority)


def _bind(server: grpc.aio.Server, host: str, port: int, credentials: grpc.ServerCredentials | None) -> int:
    address = joined(host, port)
    try:
        bound = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    except RuntimeError:
        bound = 0
    if bound == 0:
        raise PortInUse(host, port)
    return bound


def _generic_handler(service: Service, addresses: Addresses | None) -> grpc.GenericRpcHandler:
    handlers = {path.rsplit("/", 1)[1]: _adapt(endpoint, addresses) for path, endpoint in service.endpoints.items()}
    handler: grpc.GenericRpcHandler = grpc.method_handlers_generic_handler(service.name, handlers)
    return handler


def _adapt(endpoint: Endpoint, addresses: Addresses | None) -> Any:
    """The endpoint as a handler of grpc.aio: metadata and deadline out of the context, errors into it."""

    async def answer(request: Any, context: Any) -> Any:
        metadata = dict(context.invocation_metadata())
        if request is _UNREADABLE:
            metadata[calls.UNREADABLE] = no_message().status().SerializeToString()
        try:
            if addresses is None:
                return await endpoint.serve_unary(request, metadata, _deadline(context), context)
            with addresses.counting(context.peer()):
                return await endpoint.serve_unary(request, metadata, _deadline(context), context)
        except errors.TriglotError as error:
            await context.abort(error.code, endpoint.details(error), error.trailers())

    async def answer_stream(requests: Any, context: Any) -> Any:
        return await answer(_readable(requests), context)

    handler = endpoint.handler
    read = _reading(handler.request_deserializer)
    if handler.stream_unary:
        return grpc.stream_unary_rpc_method_handler(answer_stream, read, handler.response_serializer)
    make: Any = grpc.unary_unary_rpc_method_handler if handler.unary_unary else grpc.unary_stream_rpc_method_handler
    return make(answer, read, handler.response_serializer)


# Stands for a request that is no message of its kind. gRPC would answer it UNKNOWN, before asking who calls.
_UNREADABLE = object()


def _reading(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def read(content: bytes) -> Any:
        try:
            return deserialize(content)
        except DecodeError:
            return _UNREADABLE

    return read


async def _readable(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        if request is _UNREADABLE:
            raise no_message()
        yield request


def _deadline(context: Any) -> float | None:
    remaining = context.time_remaining()
    return None if remaining is None else time.monotonic() + remaining


async def serve(role: str, services: Sequence[Service], settings: Settings, port: int) -> NoReturn:
    """Serve on a port until cancelled. Raises PortInUse."""
    async with listening(services, settings, port) as bound:
        await stay(role, {"port": bound}, needs_of(services))


def needs_of(services: Iterable[Service]) -> Needs:
    """What any of the services needs. The same name is the same thing."""
    return {name: need for service in services for name, need in service.needs.items()}


async def stay(
    role: str, facts: Mapping[str, object], needs: Needs, enough: Callable[[Iterable[bool]], bool] = all
) -> NoReturn:
    """Everything is open: say so in the log and to probes, and stay until cancelled.

    The process is ready while `enough` of its needs answer.

    What is in memory by now stays, so the garbage collector is told to leave it alone. Looking through it took 40 ms
    every few seconds, and the slowest requests were those that waited for it.
    """
    gc.collect()
    gc.freeze()
    telemetry.log.info("serving", role=role, **facts)
    _tell_parent()
    try:
        async with board.serving(needs, enough):
            while True:
                await asyncio.get_running_loop().create_future()
    finally:
        # What is left alone at the end as well, some extension modules report as leaked.
        gc.unfreeze()


def _tell_parent() -> None:
    """Whoever started us in order to wait for this left a pipe."""
    pipe = os.environ.pop(READY_PIPE, "")
    if pipe:
        with suppress(OSError):  # it does not wait any more
            os.write(int(pipe), b"1")
        os.close(int(pipe))


def process(live: Callable[[Settings], Awaitable[None]]) -> None:
    """Be a process of a deployment: settings, logs, metrics, then `live` until the process is told to stop."""

    async def begin() -> None:
        settings = Settings()
        telemetry.configure(settings)
        warn_of_rdrs_config()
        metrics_port.serve(settings, board.answer)
        with tracing.tracing(settings):
            async with board.beating():
                await live(settings)

    run(begin)


def warn_of_rdrs_config() -> None:
    """Name, in one line, what the file holds that changes nothing; of several workers the first does."""
    ignored = rdrs_config.without_meaning()
    if ignored and os.environ.get(WORKER, "0") == "0":
        telemetry.log.warning("rdrs_config.json: these keys mean nothing here", keys=ignored)


def run(live: Callable[[], Awaitable[None]]) -> None:
    """Run `live` in an event loop (grpc.aio allows one) until it ends, or SIGTERM or SIGINT cancels it.

    It is cancelled once, and closes in order what it opened; a second signal ends the process at once.
    """
    with explained():
        uvloop.run(_until_signalled(live))


async def _until_signalled(live: Callable[[], Awaitable[None]]) -> None:
    loop = asyncio.get_running_loop()
    living = asyncio.ensure_future(live())

    def stop() -> None:
        for number in _STOP_SIGNALS:
            loop.remove_signal_handler(number)
        living.cancel()

    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, stop)
    await asyncio.wait({living})
    if not living.cancelled():
        living.result()


@contextmanager
def explained() -> Iterator[None]:
    """What keeps a process from starting becomes a clear line on standard error, and its exit code."""
    try:
        yield
    except errors.CannotStart as error:
        _exit(str(error), error.exit_code)
    except errors.TriglotError as error:
        _exit(error.message, errors.CannotStart.exit_code)


def _exit(problem: str, code: int) -> NoReturn:
    sys.stderr.write(f"triglot: {problem}\n")
    sys.exit(code)
