"""Serving as a process of its own: `python -m services.serving`."""

from __future__ import annotations

from functools import partial

from chassis import server
from chassis.settings import Settings
from services.serving.process import open_service
from services.serving.settings import ServingSettings


async def live(settings: Settings) -> None:
    """Serve until cancelled."""
    async with open_service(settings, ServingSettings()) as services:
        await server.serve("serving", services, settings, settings.serving_port)


main = partial(server.process, live)

if __name__ == "__main__":
    main()
