"""The gateway as a process of its own: `python -m gateway`."""

from __future__ import annotations

from contextlib import AsyncExitStack

from chassis import server, telemetry
from chassis.client import open_channel
from chassis.settings import Settings
from gateway.app import create_app
from gateway.assembly import all_dialects
from gateway.server import HttpServer
from gateway.settings import GatewaySettings


async def serve() -> None:
    """Serve all dialects until the process is told to stop."""
    settings, own = Settings(), GatewaySettings()
    telemetry.configure(settings)
    telemetry.serve_metrics(settings.host, settings.metrics_port)
    async with AsyncExitStack() as closing:
        targets = {
            "registry": settings.registry_target,
            "serving": settings.serving_target,
            "management": settings.management_target,
        }
        channels = {
            name: await closing.enter_async_context(open_channel(target, settings)) for name, target in targets.items()
        }
        app = create_app(all_dialects(**channels, settings=own), own)
        http = HttpServer(app, own, host=settings.host, drain_seconds=settings.drain_seconds)
        ports = await http.start()
        telemetry.log.info("serving", role="gateway", ports=list(ports))
        await server.until_stopped()
        await http.stop()


def main() -> None:
    """Run the process."""
    server.run(serve)


if __name__ == "__main__":
    main()
