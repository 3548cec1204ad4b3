"""`triglot up`: the whole product on one machine, in the foreground, until Ctrl-C.

One process holds the three services, their gRPC ports and the gateway; the task worker is a child of its own, so that
moving a table does not slow a read. PostgreSQL and Redis are children too, unless URLs of others are given. A child
that ends is started again; if that fails, everything stops.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import orjson
from pydantic import SecretStr
from rich.console import Console

from chassis import metrics_port, server, telemetry, tracing
from chassis.addresses import callable_host, joined
from chassis.migrations import migrate
from chassis.postgres import open_database
from chassis.readiness import board
from chassis.settings import Settings
from gateway import server as http
from gateway.settings import GatewaySettings
from services.management.settings import ManagementSettings
from triglot import keyring as keyrings
from triglot.embedded import EmbeddedPostgres, EmbeddedRedis, EmbeddedServerError
from triglot.embedded.process import Child, Command, Log
from triglot.embedded.server import EmbeddedServer
from triglot.sample import load, tour
from triglot.schemas import SCHEMAS
from triglot.stack import Stack, open_stack
from triglot.supervision import keep

LOOPBACK = "127.0.0.1"
ENDPOINTS = "endpoints.json"
# On a laptop everything stays on loopback, and logs are for a person, unless the environment says otherwise.
_LAPTOP: dict[str, Any] = {"host": LOOPBACK, "log_level": "warning", "log_format": "console"}
_WORKER_STOP = ((signal.SIGTERM, 1.5),)


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    data_dir: Path
    sample: bool = True
    authentication: bool = True


@dataclass(frozen=True)
class _Servers:
    """Where PostgreSQL and Redis are, and which of them are our children."""

    postgres_url: str
    redis_url: str
    embedded: dict[str, EmbeddedServer]  # by their URL


def run(options: Options, console: Console) -> None:
    """Start, serve until SIGINT or SIGTERM, stop. Raises CannotStart; what happens later ends the process."""
    options.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    started = time.monotonic()
    given = Settings()
    with _servers(given, options, console) as servers:
        deployment = _Deployment(given, options, console, servers, started)
        server.run(deployment.serve)


@contextmanager
def _servers(given: Settings, options: Options, console: Console) -> Iterator[_Servers]:
    """The given servers, or embedded ones that live as long as the block."""
    urls = [given.postgres_url.get_secret_value(), given.redis_url.get_secret_value()]
    servers: tuple[EmbeddedServer, ...] = (EmbeddedPostgres(options.data_dir), EmbeddedRedis(options.data_dir))
    running: dict[str, EmbeddedServer] = {}
    try:
        for position, each in enumerate(servers):
            if not urls[position]:
                console.print(f"  starting {each.name} ...", style="dim")
                urls[position] = each.start()
                running[urls[position]] = each
        yield _Servers(urls[0], urls[1], running)
    finally:
        for each in reversed(running.values()):
            each.stop()


class _Deployment:
    def __init__(self, given: Settings, options: Options, console: Console, servers: _Servers, started: float) -> None:
        self._options = options
        self._console = console
        self._servers = servers
        self._started = started
        self._keyring = keyrings.read_or_begin(options.data_dir, given)
        self._gateway = GatewaySettings()
        self._offline_root = options.data_dir.resolve() / "offline"
        self._offline_root.mkdir(exist_ok=True)
        self._worker: Child | None = None
        self._serving_port = 0
        self._key_is_new = False
        self._settings = Settings(
            postgres_url=SecretStr(servers.postgres_url),
            redis_url=SecretStr(servers.redis_url),
            secret_key=SecretStr(self._keyring.secret_key),
            auth="required" if options.authentication else "off",
            drain_seconds=min(given.drain_seconds, 1.0),
            **{name: value for name, value in _LAPTOP.items() if name not in given.model_fields_set},
        )

    async def serve(self) -> None:
        """Serve until cancelled, or until a child cannot be started again."""
        telemetry.configure(self._settings)
        server.warn_of_rdrs_config()
        with tracing.tracing(self._settings):
            await self._serve_and_keep()

    async def _serve_and_keep(self) -> None:
        tasks = [asyncio.create_task(each) for each in (self._serve(), *self._keeping())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            # Ctrl-C during a long first load ends the load, and everything else in the usual order.
            self._console.print("\n  stopping ...", style="dim")
            raise
        finally:
            for task in reversed(tasks):
                task.cancel()
            await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.result()

    def _keeping(self) -> Iterator[Coroutine[object, object, NoReturn]]:
        """What starts our children again."""
        logs = self._options.data_dir / "logs"
        for url, each in self._servers.embedded.items():
            yield _keep_server(each, url, logs / f"{each.name}.log")
        yield keep("worker", self._worker_status, self._start_worker, logs / "worker.log")

    def _worker_status(self) -> int | None:
        return self._worker.exit_status if self._worker else None

    async def _serve(self) -> NoReturn:
        await self._prepare()
        async with AsyncExitStack() as closing:
            await closing.enter_async_context(board.beating())
            stack, endpoints = await closing.enter_async_context(self._listening())
            if self._options.sample:
                root, data_dir = self._offline_root / load.PROJECT, self._options.data_dir
                endpoints["sample"] = await load.ensure(endpoints, stack, root, data_dir, self._console)
            path = self._options.data_dir / ENDPOINTS
            keyrings.write_private(path, orjson.dumps(endpoints, option=orjson.OPT_INDENT_2))
            closing.callback(path.unlink, missing_ok=True)
            await self._show(endpoints, path)
            served = (*stack.registry, *stack.serving, *stack.management)
            await server.stay("everything", {"rest": endpoints["rest"]}, server.needs_of(served))

    async def _show(self, endpoints: dict[str, object], path: Path) -> None:
        """The key is shown when it is new, and otherwise to a person only: what is no terminal may be a log."""
        shown = self._key_is_new or self._console.file.isatty()
        seconds = time.monotonic() - self._started
        await tour.show(endpoints, self._console, seconds=seconds, key_place="" if shown else str(path))

    async def _prepare(self) -> None:
        """Migrations, and the keys that this database should know."""
        (self._options.data_dir / ENDPOINTS).unlink(missing_ok=True)
        url, setting = self._settings.direct_postgres
        applied = await migrate(url, SCHEMAS, setting)
        if applied:
            self._console.print(f"  applied {len(applied)} migrations", style="dim")
        database = await open_database(self._settings)
        try:
            kept = self._keyring
            self._keyring = await keyrings.complete(kept, database)
            self._key_is_new = self._keyring.api_key != kept.api_key
        finally:
            await database.close()
        keyrings.write(self._options.data_dir, self._keyring)
        if not self._settings.service_api_key.get_secret_value():
            made = SecretStr(self._keyring.service_api_key)
            self._settings = self._settings.model_copy(update={"service_api_key": made})

    @asynccontextmanager
    async def _listening(self) -> AsyncIterator[tuple[Stack, dict[str, object]]]:
        """Everything open and answering. Gives the stack, and what endpoints.json holds."""
        settings, management = self._settings, self._management()
        plain = {"tls_certificate": "", "tls_key": "", "client_authority": ""}
        private = settings.model_copy(update={"host": LOOPBACK, **plain})
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
            http_ports = list(await closing.enter_async_context(http.listening(stack.app, self._gateway, settings)))
            metrics_port.serve(settings, board.answer)
            # Whatever address and certificate the others get, our worker calls a plain port of its own.
            self._serving_port = await closing.enter_async_context(server.listening(stack.serving, private, 0))
            self._start_worker()
            closing.push_async_callback(self._stop_worker)
            yield stack, self._endpoints(ports, http_ports, management.instance_id)

    def _management(self) -> ManagementSettings:
        given = ManagementSettings()
        return given.model_copy(update={"offline_roots": (*given.offline_roots, self._offline_root)})

    def _start_worker(self) -> None:
        """The task worker, a child that dies with us. Secrets go through its environment, which only we can read."""
        settings, roots = self._settings, [str(root) for root in self._management().offline_roots]
        environment = {name: value for name, value in os.environ.items() if name.startswith("TRIGLOT_")} | {
            "TRIGLOT_POSTGRES_URL": settings.postgres_url.get_secret_value(),
            "TRIGLOT_SERVING_TARGET": joined(LOOPBACK, self._serving_port),
            "TRIGLOT_SECRET_KEY": settings.secret_key.get_secret_value(),
            "TRIGLOT_SERVICE_API_KEY": settings.service_api_key.get_secret_value(),
            "TRIGLOT_HOST": LOOPBACK,
            "TRIGLOT_METRICS_PORT": "0",
            "TRIGLOT_TLS_CERTIFICATE": "",
            "TRIGLOT_TLS_KEY": "",
            "TRIGLOT_TLS_AUTHORITY": "",
            "TRIGLOT_CLIENT_AUTHORITY": "",
            "TRIGLOT_METRICS_TLS": "false",
            "TRIGLOT_MANAGEMENT_OFFLINE_ROOTS": orjson.dumps(roots).decode(),
        }
        command = Command(
            [sys.executable, "-m", "services.management.worker"],
            cwd=Path(__file__).resolve().parent.parent,
            death_signal=signal.SIGTERM,
            environment=environment,
        )
        self._worker = command.spawn(Log(self._options.data_dir / "logs" / "worker.log"))

    async def _stop_worker(self) -> None:
        if self._worker is not None:
            await asyncio.to_thread(self._worker.stop, _WORKER_STOP)

    def _endpoints(self, ports: dict[str, int], http_ports: list[int], instance_id: str) -> dict[str, object]:
        settings, host = self._settings, callable_host(self._settings.host)
        certificate = str(Path(settings.tls_certificate).resolve()) if settings.tls_certificate else ""
        hidden = {"api_key": "", "access_key_id": "", "access_key_secret": ""}
        shown = self._keyring.model_dump(include=set(hidden)) if self._options.authentication else hidden
        scheme = "https" if settings.metrics_tls else "http"
        metrics = f"{scheme}://{joined(host, settings.metrics_port)}/metrics" if settings.metrics_port else ""
        return {
            "rest": f"{'https' if certificate else 'http'}://{joined(host, http_ports[0])}",
            "rest_ports": http_ports,
            **{f"{name}_grpc": joined(host, port) for name, port in ports.items()},
            "certificate": certificate,
            "metrics": metrics,
            "instance_id": instance_id,
            **shown,
        }


def _keep_server(embedded: EmbeddedServer, url: str, output: Path) -> Coroutine[object, object, NoReturn]:
    def start() -> None:
        if embedded.start() != url:  # by which everybody knows it
            raise EmbeddedServerError(f"{embedded.name} ended, and its port is taken by another program")

    return keep(embedded.name, lambda: embedded.exit_status, start, output)
