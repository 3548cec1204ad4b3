"""The services behind the gateway, and the three dialects side by side, in the order in which their rows are tried."""

from __future__ import annotations

from collections.abc import Sequence

import grpc

from gateway.dialect import Dialect
from gateway.dialects import feast, hopsworks, pai
from gateway.settings import GatewaySettings

# Whose gRPC health says that the process behind a channel can do its work.
SERVICES = {
    "registry": "feast.registry.RegistryServer",
    "serving": "triglot.serving.v1.ServingService",
    "management": "triglot.management.v1.ManagementService",
}
# Calls that share a message with others: small ones, many at once.
BUNDLED = frozenset({"/triglot.serving.v1.ServingService/RenderFeatureVectors"})


def all_dialects(
    *,
    registry: grpc.aio.Channel,
    serving: grpc.aio.Channel,
    management: grpc.aio.Channel,
    settings: GatewaySettings,
) -> Sequence[Dialect]:
    """The hot one first; Feast, which owns every path that nobody else does, last."""
    return (
        hopsworks.dialect(serving, settings),
        pai.dialect(management, settings),
        feast.dialect(registry, settings),
    )
