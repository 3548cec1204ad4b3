"""Management as a process of its own; its worker is another: `python -m services.management`."""

from __future__ import annotations

from functools import partial

from chassis import server
from chassis.client import open_channel
from chassis.settings import Settings
from services.management.process import open_service
from services.management.settings import ManagementSettings


async def live(settings: Settings) -> None:
    """Serve until cancelled."""
    async with (
        open_channel(settings.serving_target, settings) as channel,
        open_service(settings, ManagementSettings(), channel) as services,
    ):
        await server.serve("management", services, settings, settings.management_port)


main = partial(server.process, live)

if __name__ == "__main__":
    main()
