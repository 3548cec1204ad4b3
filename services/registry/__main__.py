"""The registry as a process of its own: `python -m services.registry`."""

from __future__ import annotations

from functools import partial

from chassis import server
from chassis.settings import Settings
from services.registry.process import open_service
from services.registry.settings import RegistrySettings


async def live(settings: Settings) -> None:
    """Serve until cancelled."""
    async with open_service(settings, RegistrySettings()) as services:
        await server.serve("registry", services, settings, settings.registry_port)


main = partial(server.process, live)

if __name__ == "__main__":
    main()
