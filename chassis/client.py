"""Channels to other services."""

from __future__ import annotations

from typing import Any

import grpc
import orjson
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chassis import calls, errors, tls
from chassis.readiness import Need
from chassis.settings import Settings

# Of a name with several addresses all are used in turn. One that is about to stop says so in its health, and gets no
# more calls. It is that of the process, not of the service: what a service lacks is its own to explain.
_SERVICE_CONFIG = orjson.dumps(
    {"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}}
).decode()


def open_channel(target: str, settings: Settings) -> grpc.aio.Channel:
    """A channel to a gRPC target, made inside the running loop. It connects when it is used, and again when it is lost.

    Of a name with several addresses (a headless Service) all are used in turn, but for those that are about to stop.
    With TLS where the settings name the authority that vouches for it.
    """
    options = (
        ("grpc.service_config", _SERVICE_CONFIG),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        # A peer that vanished without a word is noticed within a quarter of a minute.
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # What was away for long is used again within seconds of its return, at whatever address; gRPC's own two
        # minutes, and half of one for a name, are for the internet.
        ("grpc.initial_reconnect_backoff_ms", 500),
        ("grpc.max_reconnect_backoff_ms", 3_000),
        ("grpc.dns_min_time_between_resolutions_ms", 3_000),
        ("grpc.enable_retries", 0),
    )
    if settings.tls_authority:
        return tls.channel(target, settings, options)
    return grpc.aio.insecure_channel(target, options=options)


def health_of(channel: grpc.aio.Channel, service: str) -> Need:
    """Asks the other side whether its service of this full name can do its work. Raises Unavailable if not."""
    stub: Any = health_pb2_grpc.HealthStub(channel)

    async def ask() -> None:
        reply = await calls.invoke(stub.Check, health_pb2.HealthCheckRequest(service=service))
        if reply.status != health_pb2.HealthCheckResponse.SERVING:
            raise errors.Unavailable(f"{service} cannot do its work")

    return ask
