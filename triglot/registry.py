"""`triglot serve registry`: the registry alone, with Feast's REST if it is asked for, as Feast's own server has it."""

from __future__ import annotations

from operator import attrgetter

from gateway.dialects import feast
from services.registry.process import open_service
from services.registry.settings import RegistrySettings
from triglot import alone

ROLE = alone.Role(
    "registry",
    lambda settings: open_service(settings, RegistrySettings()),
    attrgetter("registry_port"),
    feast.dialect,
)


def run(*, with_grpc: bool, rest_port: int | None) -> None:
    """Serve until told to stop."""
    alone.run(ROLE, with_grpc=with_grpc, rest_port=rest_port)
