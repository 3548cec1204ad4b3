"""The gateway as a process of its own: `python -m gateway`."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial

from chassis import server
from chassis.bundles import BundlingChannel
from chassis.client import health_of, open_channel
from chassis.limits import of_addresses
from chassis.settings import Settings
from gateway.app import create_app
from gateway.assembly import BUNDLED, SERVICES, all_dialects
from gateway.server import listening
from gateway.settings import GatewaySettings


async def live(settings: Settings) -> None:
    """Serve all dialects until cancelled."""
    own = GatewaySettings()
    targets = {
        "registry": settings.registry_target,
        "serving": settings.serving_target,
        "management": settings.management_target,
    }
    async with AsyncExitStack() as closing:
        channels = {
            name: await closing.enter_async_context(open_channel(target, settings)) for name, target in targets.items()
        }
        channels["serving"] = BundlingChannel(channels["serving"], BUNDLED)
        app = create_app(all_dialects(**channels, settings=own), own, of_addresses(settings))
        ports = await closing.enter_async_context(listening(app, own, settings))
        needs = {name: health_of(channel, SERVICES[name]) for name, channel in channels.items()}
        # A dialect whose service is away is refused in its own words; the other dialects go on.
        await server.stay("gateway", {"ports": ports}, needs, any)


main = partial(server.process, live)

if __name__ == "__main__":
    main()
