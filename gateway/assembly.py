"""The three dialects side by side, in the order in which their rows are tried."""

from __future__ import annotations

from collections.abc import Sequence

import grpc

from gateway.dialect import Dialect
from gateway.dialects import feast, hopsworks, pai
from gateway.settings import GatewaySettings


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
