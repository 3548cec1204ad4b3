"""Management as a process of its own; its worker is another: `python -m services.management`."""

from __future__ import annotations

from chassis import server, telemetry
from chassis.client import open_channel
from chassis.settings import Settings
from services.management.process import open_service
from services.management.settings import ManagementSettings


async def serve() -> None:
    """Serve until the process is told to stop."""
    settings = Settings()
    telemetry.configure(settings)
    telemetry.serve_metrics(settings.host, settings.metrics_port)
    async with (
        open_channel(settings.serving_target, settings) as channel,
        open_service(settings, ManagementSettings(), channel) as services,
        server.listening(services, settings, settings.management_port) as port,
    ):
        telemetry.log.info("serving", role="management", port=port)
        await server.until_stopped()


def main() -> None:
    """Run the process."""
    server.run(serve)


if __name__ == "__main__":
    main()
