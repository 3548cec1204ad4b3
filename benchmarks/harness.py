"""What benchmarks share: callers over real ports, paired rounds, tables. Knows no dialect."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

import grpc
import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.processes import ROOT, Process

_STARTED = time.monotonic()
_Result = TypeVar("_Result")
progress_console = Console(stderr=True, highlight=False)


class NoAnswer(Exception):
    """A server said nothing within the time that one call may take."""


class Refused(Exception):
    """A server answered, but not with what was asked for."""


def progress(text: str) -> None:
    """One line on standard error: the figures alone go to standard output."""
    progress_console.print(f"[dim]{time.monotonic() - _STARTED:6.0f} s[/]  {text}")


# ---- callers ----


class Http:
    """Requests over one kept connection. Cheap, so that what is measured is the server."""

    def __init__(self, port: int, headers: Mapping[str, str], patience_seconds: float) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=patience_seconds)
        self._headers = dict(headers)

    def connect(self) -> None:
        """Anew: a server closes connections that nobody used for some seconds."""
        self._connection.close()
        self._connection.connect()

    def get(self, path: str, **parameters: str | int) -> bytes:
        """The body of a 200. Raises NoAnswer and Refused."""
        return self._ask("GET", f"{path}?{urlencode(parameters)}" if parameters else path)

    def post(self, path: str, content: object) -> bytes:
        """The body of a 200 to that content as JSON. Raises NoAnswer and Refused."""
        return self._ask("POST", path, json.dumps(content))

    def _ask(self, method: str, target: str, content: str | None = None) -> bytes:
        headers = self._headers | ({} if content is None else {"Content-Type": "application/json"})
        try:
            self._connection.request(method, target, body=content, headers=headers)
            response = self._connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            kind = NoAnswer if isinstance(error, TimeoutError) else Refused
            raise kind(str(error) or type(error).__name__) from error
        if response.status != 200:
            raise Refused(f"HTTP {response.status}: {body[:200].decode(errors='replace')}")
        return body

    def close(self) -> None:
        self._connection.close()


class Grpc:
    """Unary calls of serialized messages, each client over a connection of its own."""

    def __init__(self, port: int, metadata: Sequence[tuple[str, str]], patience_seconds: float) -> None:
        self._target = f"127.0.0.1:{port}"
        self._metadata = tuple(metadata)
        self._patience_seconds = patience_seconds
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._channels: list[grpc.aio.Channel] = []

    def call(self, method: str, message: bytes) -> bytes:
        """The answer. Raises NoAnswer and Refused."""
        return self._run(self._call(self._channel(0), method, message))

    def all(self, calls: Sequence[tuple[str, bytes]]) -> None:
        """Several calls at once, over one connection."""

        async def together() -> None:
            await asyncio.gather(*(self._call(self._channel(0), *call) for call in calls))

        self._run(together())

    def storm(self, method: str, message: bytes, clients: int, seconds: float) -> list[float]:
        """Clients that call without a pause, each for so long; how long each call took."""
        times: list[float] = []

        async def client(channel: grpc.aio.Channel) -> None:
            end = time.perf_counter() + seconds
            while (begin := time.perf_counter()) < end:
                await self._call(channel, method, message)
                times.append(time.perf_counter() - begin)

        async def together() -> None:
            await asyncio.gather(*(client(self._channel(number)) for number in range(clients)))

        self._run(together())
        return times

    def close(self) -> None:
        async def all_channels() -> None:
            for channel in self._channels:
                await channel.close()

        self._run(all_channels())
        self._runner.close()

    def _channel(self, number: int) -> grpc.aio.Channel:
        """Made inside of the loop, as gRPC wants it."""
        while len(self._channels) <= number:
            # Otherwise channels to one address would share a connection.
            options = [
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
            ]
            self._channels.append(grpc.aio.insecure_channel(self._target, options=options))
        return self._channels[number]

    async def _call(self, channel: grpc.aio.Channel, method: str, message: bytes) -> bytes:
        try:
            # Without serializers it takes and gives bytes.
            send: Callable[..., Awaitable[bytes]] = channel.unary_unary(method)
            return await send(message, metadata=self._metadata, timeout=self._patience_seconds, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            kind = NoAnswer if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED else Refused
            raise kind(f"{error.code().name}: {(error.details() or '')[:200]}") from error

    def _run(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        return self._runner.run(work)


# ---- paired rounds ----


@dataclass(eq=False)
class Contestant:
    """A running server of one product that holds a registry (or store) of one size."""

    product: str
    size: int
    process: Process
    http: Http
    grpc: Grpc
    stopped: str = ""  # why

    def stop(self, why: str) -> None:
        """At most once: later calls change nothing."""
        if not self.stopped:
            self.stopped = why
            self.http.close()
            self.grpc.close()
            self.process.stop()


@dataclass(frozen=True)
class Limits:
    """How long one operation is measured."""

    rounds: int
    turn_seconds: float  # one contestant's part of a round: calls one after the other
    turn_calls: int
    budget_seconds: float  # what one contestant may take in all; it then leaves, with the figures it has


@dataclass
class Sample:
    """What was measured of one operation on one contestant."""

    times: list[float] = field(default_factory=list)  # seconds of each call
    rates: list[float] = field(default_factory=list)  # calls a second of each turn
    cpu_seconds: float = 0.0  # of the server's processes, in all turns that count
    database_seconds: float = 0.0  # of the database's
    spent: float = 0.0
    note: str = ""  # why there are no figures

    @property
    def fastest_ms(self) -> float | None:
        """What the call takes when nothing else is in the way: the figure that a busy machine spoils least."""
        return min(self.times) * 1000 if self.times else None

    @property
    def median_ms(self) -> float | None:
        return statistics.median(self.times) * 1000 if self.times else None

    @property
    def p95_ms(self) -> float | None:
        """Of at least twenty calls: of fewer it would say nothing."""
        return statistics.quantiles(self.times, n=20)[-1] * 1000 if len(self.times) >= 20 else None

    @property
    def cpu_ms(self) -> float | None:
        """Processor time of a call in the server, the kernel's part included. Steadier on a busy machine."""
        return self.cpu_seconds / len(self.times) * 1000 if self.times else None

    @property
    def database_ms(self) -> float | None:
        """The same in the database."""
        return self.database_seconds / len(self.times) * 1000 if self.times else None

    @property
    def rate(self) -> float | None:
        return statistics.median(self.rates) if self.rates else None


# One turn of a contestant: how long each call took, of at most so many within about so many seconds.
Turn = Callable[[Contestant, Limits], list[float]]


def one_by_one(prepare: Callable[[Contestant], Callable[[], object]]) -> Turn:
    """Calls one after the other. What `prepare` does for each is not timed."""

    def turn(contestant: Contestant, limits: Limits) -> list[float]:
        times: list[float] = []
        while len(times) < limits.turn_calls and sum(times) < limits.turn_seconds:
            call = prepare(contestant)
            begin = time.perf_counter()
            call()
            times.append(time.perf_counter() - begin)
        return times

    return turn


def compare(
    contestants: Sequence[Contestant], turn: Turn, limits: Limits, database_cpu: Callable[[], float]
) -> dict[Contestant, Sample]:
    """Rounds in which all contestants take a turn, in alternating order. The first round warms up and does not count.

    Where only that one fits into the budget, it counts (n is 1): better one figure than none. Who lets a call wait too
    long is stopped, because it may still be busy with it, and stays out of what follows. `database_cpu` says how many
    seconds of processor time the database that all share has used so far: what it uses in a turn is whose turn it is.
    """
    samples = {contestant: Sample(note=contestant.stopped) for contestant in contestants}
    warm_up = Limits(1, 0.0001, 1, 0)
    for number in range(limits.rounds + 1):
        for contestant in contestants if number % 2 else reversed(contestants):
            sample = samples[contestant]
            if sample.note or sample.spent > limits.budget_seconds:
                continue
            if number == 1:
                sample = samples[contestant] = Sample(spent=sample.spent)
            used, used_by_database = contestant.process.cpu_seconds(), database_cpu()
            begin = time.perf_counter()
            try:
                times = turn(contestant, limits if number else warm_up)
            except NoAnswer:
                waited = f"no answer in {time.perf_counter() - begin:.0f} s"
                sample.note = waited
                contestant.stop(f"stopped after {waited} to an earlier question")
            except Refused as error:
                sample.note = str(error)
            else:
                elapsed = time.perf_counter() - begin
                sample.times += times
                sample.rates.append(len(times) / elapsed)
                sample.cpu_seconds += contestant.process.cpu_seconds() - used
                sample.database_seconds += database_cpu() - used_by_database
                sample.spent += elapsed
    return samples


# ---- output ----


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; all columns but the first are aligned to the right."""
    shown = Table(title=title, title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        shown.add_column(column, justify="right" if number else "left", no_wrap=bool(number))
    for row in rows:
        shown.add_row(*row)
    # A pipe has no width of its own: no line may be broken there.
    Console(highlight=False, width=None if sys.stdout.isatty() else 160).print(shown)


def figure(value: float | None, unit: str = "") -> str:
    """Three digits that count; `-` for what was not measured."""
    if value is None:
        return "-"
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f}{unit}"


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """What half of all calls and 99 of 100 took at most, in milliseconds; of none at all: nothing."""
    ordered = sorted(seconds)
    return {
        name: ordered[int(len(ordered) * part)] * 1000 for name, part in (("p50_ms", 0.5), ("p99_ms", 0.99)) if ordered
    }


def machine() -> dict[str, str]:
    """What the figures hold for."""
    models = [row for row in Path("/proc/cpuinfo").read_text().splitlines() if row.startswith("model name")]
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "processors": f"{os.cpu_count()} x {models[0].partition(':')[2].strip() if models else platform.machine()}",
        "load": " ".join(f"{load:.1f}" for load in os.getloadavg()),
        "python": f"{platform.python_version()}, a fixed loop in {_loop_ms():.1f} ms",
    }


def _loop_ms() -> float:
    """What some plain Python takes at best, in milliseconds: builds of one version differ by more than half."""

    def once() -> float:
        began = time.process_time()
        made: dict[int, str] = {}
        for number in range(100_000):
            made[number % 100] = str([number, number + 1])
        return (time.process_time() - began) * 1000

    return min(once() for _ in range(5))


def results_file(name: str) -> Path:
    """Where the results of a run that begins now are kept."""
    return ROOT / "benchmarks" / "results" / f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.json"


def write_results(path: Path, results: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
