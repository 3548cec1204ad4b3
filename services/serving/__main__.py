"""Serving as a process of its own: `python -m services.serving`."""

from __future__ import annotations

from chassis import server, telemetry
from chassis.settings import Settings
from services.serving.process import open_service
from services.serving.settings import ServingSettings


async def serve() -> None:
    """Serve until the process is told to stop."""
    settings = Settings()
    telemetry.configure(settings)
    telemetry.serve_metrics(settings.host, settings.metrics_port)
    async with (
        open_service(settings, ServingSettings()) as services,
        server.listening(services, settings, settings.serving_port) as port,
    ):
        telemetry.log.info("serving", role="serving", port=port)
        await server.until_stopped()


def main() -> None:
    """Run the process."""
    server.run(serve)


if __name__ == "__main__":
    main()
