"""`triglot up`: the whole product on one machine, in the foreground, until Ctrl-C.

One process holds the three services, their gRPC ports and the gateway; the task worker is a child of its own, so that
moving a table does not slow a read. PostgreSQL and Redis are children too, unless URLs of others are given.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson
from pydantic import SecretStr
from rich.console import Console

from chassis import server, telemetry
from chassis.migrations import migrate
from chassis.postgres import open_database
from chassis.settings import Settings
from gateway.server import HttpServer
from gateway.settings import GatewaySettings
from services.management.settings import ManagementSettings
from triglot import keyring as keyrings
from triglot.embedded import EmbeddedPostgres, EmbeddedRedis
from triglot.embedded.process import Child, Command, Log
from triglot.sample import load, tour
from triglot.schemas import SCHEMAS
from triglot.stack import open_stack

LOOPBACK = "127.0.0.1"
ENDPOINTS = "endpoints.json"
_WORKER_STOP = ((signal.SIGTERM, 1.5),)


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    data_dir: Path
    sample: bool = True
    authentication: bool = True


def run(options: Options, console: Console) -> None:
    """Start, serve until SIGINT or SIGTERM, stop. Raises EmbeddedServerError, PortInUse or SampleUnavailable."""
    options.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    started = time.monotonic()
    with _servers(options, console) as (postgres_url, redis_url):
        deployment = _Deployment(options, console, postgres_url, redis_url, started)
        server.run(deployment.serve)


@contextmanager
def _servers(options: Options, console: Console) -> Iterator[tuple[str, str]]:
    """URLs of PostgreSQL and Redis: given ones, or those of embedded servers that live as long as the block."""
    given = Settings()
    urls = [given.postgres_url.get_secret_value(), given.redis_url.get_secret_value()]
    embedded: list[EmbeddedPostgres | EmbeddedRedis] = [
        EmbeddedPostgres(options.data_dir),
        EmbeddedRedis(options.data_dir),
    ]
    running: list[EmbeddedPostgres | EmbeddedRedis] = []
    try:
        for position, each in enumerate(embedded):
            if not urls[position]:
                console.print(f"  starting {each.name} ...", style="dim")
                urls[position] = each.start()
                running.append(each)
        yield urls[0], urls[1]
    finally:
        for each in reversed(running):
            each.stop()


class _Deployment:
    def __init__(self, options: Options, console: Console, postgres_url: str, redis_url: str, started: float) -> None:
        self._options = options
        self._console = console
        self._started = started
        self._keyring = keyrings.read_or_begin(options.data_dir)
        self._gateway = GatewaySettings()
        self._offline_root = options.data_dir.resolve() / "offline"
        self._offline_root.mkdir(exist_ok=True)
        given = Settings()
        # On a laptop everything stays on loopback, and logs are for a person, unless the environment says otherwise.
        self._settings = given.model_copy(
            update={
                "postgres_url": SecretStr(postgres_url),
                "redis_url": SecretStr(redis_url),
                "secret_key": SecretStr(self._keyring.secret_key),
                "auth": "required" if options.authentication else "off",
                "host": os.environ.get("TRIGLOT_HOST", LOOPBACK),
                "log_level": os.environ.get("TRIGLOT_LOG_LEVEL", "warning"),
                "log_format": os.environ.get("TRIGLOT_LOG_FORMAT", "console"),
                "drain_seconds": min(given.drain_seconds, 1.0),
            }
        )

    async def serve(self) -> None:
        telemetry.configure(self._settings)
        stopped = asyncio.create_task(server.until_stopped())
        serving = asyncio.create_task(self._serve(stopped))
        # Ctrl-C during a long first load ends the load, and everything else in the usual order.
        await asyncio.wait({stopped, serving}, return_when=asyncio.FIRST_COMPLETED)
        if not serving.done():
            self._console.print("\n  stopping ...", style="dim")
            serving.cancel()
        stopped.cancel()
        await asyncio.wait({serving})
        if not serving.cancelled():
            serving.result()

    async def _serve(self, stopped: asyncio.Task[None]) -> None:
        await self._prepare()
        async with AsyncExitStack() as closing:
            endpoints = await closing.enter_async_context(self._listening())
            if self._options.sample:
                root = self._offline_root / load.PROJECT
                endpoints["sample"] = await load.ensure(endpoints, root, self._options.data_dir, self._console)
            path = self._options.data_dir / ENDPOINTS
            keyrings.write_private(path, orjson.dumps(endpoints, option=orjson.OPT_INDENT_2))
            closing.callback(path.unlink, missing_ok=True)
            await tour.show(endpoints, self._console, seconds=time.monotonic() - self._started)
            await asyncio.shield(stopped)

    async def _prepare(self) -> None:
        """Migrations, and the keys that this database should know."""
        (self._options.data_dir / ENDPOINTS).unlink(missing_ok=True)
        applied = await migrate(self._settings.postgres_url.get_secret_value(), SCHEMAS)
        if applied:
            self._console.print(f"  applied {len(applied)} migrations", style="dim")
        database = await open_database(self._settings)
        try:
            self._keyring = await keyrings.complete(self._keyring, database)
        finally:
            await database.close()
        keyrings.write(self._options.data_dir, self._keyring)
        self._settings = self._settings.model_copy(update={"service_api_key": SecretStr(self._keyring.service_api_key)})

    @asynccontextmanager
    async def _listening(self) -> AsyncIterator[dict[str, object]]:
        """Everything open and answering. Gives what endpoints.json holds."""
        settings, management = self._settings, self._management()
        async with AsyncExitStack() as closing:
            stack = await closing.enter_async_context(
                open_stack(settings, management=management, gateway=self._gateway)
            )
            ports = {
                name: await closing.enter_async_context(server.listening(services, settings, port))
                for name, services, port in (
                    ("registry", stack.registry, settings.registry_port),
                    ("serving", stack.serving, settings.serving_port),
                    ("management", stack.management, settings.management_port),
                )
            }
            http = HttpServer(stack.app, self._gateway, host=settings.host, drain_seconds=settings.drain_seconds)
            http_ports = list(await http.start())
            closing.push_async_callback(http.stop)
            telemetry.serve_metrics(settings.host, settings.metrics_port)
            worker = self._start_worker(ports["serving"])
            closing.push_async_callback(asyncio.to_thread, worker.stop, _WORKER_STOP)
            yield self._endpoints(ports, http_ports, management.instance_id)

    def _management(self) -> ManagementSettings:
        given = ManagementSettings()
        return given.model_copy(update={"offline_roots": (*given.offline_roots, self._offline_root)})

    def _start_worker(self, serving_port: int) -> Child:
        """The task worker, a child that dies with us. Secrets go through its environment, which only we can read."""
        settings, roots = self._settings, [str(root) for root in self._management().offline_roots]
        environment = {name: value for name, value in os.environ.items() if name.startswith("TRIGLOT_")} | {
            "TRIGLOT_POSTGRES_URL": settings.postgres_url.get_secret_value(),
            "TRIGLOT_SERVING_TARGET": f"{LOOPBACK}:{serving_port}",
            "TRIGLOT_SECRET_KEY": settings.secret_key.get_secret_value(),
            "TRIGLOT_SERVICE_API_KEY": settings.service_api_key.get_secret_value(),
            "TRIGLOT_HOST": settings.host,
            "TRIGLOT_METRICS_PORT": "0",
            "TRIGLOT_MANAGEMENT_OFFLINE_ROOTS": orjson.dumps(roots).decode(),
        }
        command = Command(
            [sys.executable, "-m", "services.management.worker"],
            cwd=Path(__file__).resolve().parent.parent,
            death_signal=signal.SIGTERM,
            environment=environment,
        )
        return command.spawn(Log(self._options.data_dir / "logs" / "worker.log"))

    def _endpoints(self, ports: dict[str, int], http_ports: list[int], instance_id: str) -> dict[str, object]:
        settings = self._settings
        scheme = "https" if self._gateway.tls_certificate else "http"
        hidden = {"api_key": "", "access_key_id": "", "access_key_secret": ""}
        shown = self._keyring.model_dump(include=set(hidden)) if self._options.authentication else hidden
        metrics = f"http://{settings.host}:{settings.metrics_port}/metrics" if settings.metrics_port else ""
        return {
            "rest": f"{scheme}://{settings.host}:{http_ports[0]}",
            "rest_ports": http_ports,
            **{f"{name}_grpc": f"{settings.host}:{port}" for name, port in ports.items()},
            "metrics": metrics,
            "instance_id": instance_id,
            **shown,
        }
