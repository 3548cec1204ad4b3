"""`triglot serve serving`: serving alone, with Hopsworks' REST in the same process if it is asked for."""

from __future__ import annotations

from operator import attrgetter

from gateway.dialects import hopsworks
from services.serving.process import open_service
from services.serving.settings import ServingSettings
from triglot import alone

ROLE = alone.Role(
    "serving",
    lambda settings: open_service(settings, ServingSettings()),
    attrgetter("serving_port"),
    hopsworks.dialect,
)


def run(*, with_grpc: bool, with_rest: bool) -> None:
    """Serve until told to stop."""
    alone.run(ROLE, with_grpc=with_grpc, rest_port=ServingSettings().rest_port if with_rest else None)
