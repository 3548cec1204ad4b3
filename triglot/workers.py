"""`--workers`: processes that are alike, share their ports, and are started again when they end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

import orjson

from chassis import errors, server, telemetry
from chassis.settings import Settings
from triglot.embedded.process import Child, Command
from triglot.supervision import described, keep

# On top of what requests under way may take to finish.
_STOP_SECONDS = 15.0

Ports = int | Sequence[int]


def run(arguments: Sequence[str], count: int, ports: Mapping[str, Ports]) -> NoReturn:
    """Be the parent of `count` processes `triglot <arguments>` until told to stop, or until one cannot start.

    `ports` are those that they share, by the variables that tell them: 0 becomes a free port that all of them get. A
    metrics port they cannot share, or the answers would come from any of them: each has the next one.
    """
    outcome = 0

    async def live() -> None:
        nonlocal outcome
        settings = Settings()
        telemetry.configure(settings)
        with _reserved(settings.host, ports) as shared:
            outcome = await _Workers(arguments, count, shared, settings).live()

    server.run(live)
    sys.exit(outcome)


class _Workers:
    """The processes, from the first start to the last stop."""

    def __init__(self, arguments: Sequence[str], count: int, ports: Mapping[str, Ports], settings: Settings) -> None:
        if settings.metrics_port + count - 1 > 65_535:
            raise errors.WrongSetting(f"TRIGLOT_METRICS_PORT leaves no room for the ports of {count} workers")
        self._command = [sys.executable, "-m", "triglot.cli", *arguments]
        self._numbers = range(count)
        self._ports = ports
        self._settings = settings
        self._children: dict[int, Child] = {}

    async def live(self) -> int:
        """The exit code of one that could not start; nothing else ends this but being cancelled."""
        try:
            # If the first cannot start, the others would only say so again.
            for some in (self._numbers[:1], self._numbers[1:]):
                for failed in filter(None, await asyncio.gather(*map(self._begin, some))):
                    return failed
            telemetry.log.info("serving", role="parent", workers=len(self._numbers), ports=self._ports)
            await asyncio.gather(
                *(keep(f"worker {n}", partial(self._status, n), partial(self._start, n)) for n in self._numbers)
            )
        finally:
            await asyncio.to_thread(self._stop)
        return 0

    async def _begin(self, number: int) -> int:
        """Start a worker and wait until it serves. Its exit code if it does not come to that."""
        loop = asyncio.get_running_loop()
        ours, theirs = os.pipe()
        told = asyncio.Event()
        try:
            self._start(number, theirs)
            os.close(theirs)
            loop.add_reader(ours, told.set)
            await told.wait()
            if os.read(ours, 1):
                return 0
        finally:
            loop.remove_reader(ours)
            os.close(ours)
        status = await asyncio.to_thread(self._children[number].popen.wait)
        if status not in (errors.CannotStart.exit_code, errors.WrongSetting.exit_code):
            telemetry.log.error(f"worker {number} ended before it served", ended_by=described(status))
        return status if status > 0 else errors.CannotStart.exit_code

    def _start(self, number: int, ready_pipe: int | None = None) -> None:
        metrics = self._settings.metrics_port
        own = {
            server.WORKER: str(number),
            "TRIGLOT_REUSE_PORT": "true",
            "TRIGLOT_METRICS_PORT": str(metrics + number if metrics else 0),
            **{variable: orjson.dumps(port).decode() for variable, port in self._ports.items()},
        }
        if ready_pipe is not None:
            own[server.READY_PIPE] = str(ready_pipe)
        command = Command(self._command, Path.cwd(), None, signal.SIGTERM, {**os.environ, **own})
        self._children[number] = command.spawn(None, ready_pipe)

    def _status(self, number: int) -> int | None:
        return self._children[number].exit_status

    def _stop(self) -> None:
        """All of them at the same time."""
        deadline = time.monotonic() + self._settings.drain_seconds + _STOP_SECONDS
        for child in self._children.values():
            if child.running:
                child.popen.terminate()
        for child in self._children.values():
            with suppress(subprocess.TimeoutExpired):
                child.popen.wait(max(0.0, deadline - time.monotonic()))
            child.stop(())


@contextmanager
def _reserved(host: str, ports: Mapping[str, Ports]) -> Iterator[Mapping[str, Ports]]:
    """The ports, none of them 0. Each stays ours, so that nobody gets it between two lives of a worker.

    Raises PortInUse. Workers share with us only what is bound and not listened on.
    """
    with ExitStack() as held:
        yield {
            variable: [_hold(held, host, each) for each in port]
            if isinstance(port, Sequence)
            else _hold(held, host, port)
            for variable, port in ports.items()
        }


def _hold(held: ExitStack, host: str, port: int) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        # Somebody else who shares ports would share with us: so it is first asked for as a port of ours alone.
        with socket.socket(family) as alone:
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind((host, port))
            port = int(alone.getsockname()[1])
        shared = held.enter_context(socket.socket(family))
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        shared.bind((host, port))
    except OSError:
        raise errors.PortInUse(host, port) from None
    return port
