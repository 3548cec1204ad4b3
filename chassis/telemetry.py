"""Logs and metrics: one line or one sample per fact, with the request id that ties them together."""

from __future__ import annotations

import logging
import sys
import time
from bisect import bisect_left
from collections.abc import Iterable, MutableMapping, Sequence
from itertools import accumulate
from typing import Any

import prometheus_client
import structlog
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from chassis import calls
from chassis.settings import Settings

# From 100 microseconds to 10 seconds: Redis reads at one end, whole-table publishes at the other.
SECONDS_BUCKETS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
# How many of something there were at once.
SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


class _Collector(Collector):
    """What prometheus_client's own metrics do, without the lock at each step, which is felt in small requests.

    Written from the event loop only. The thread that serves metrics may see a sample half counted, once.
    """

    def __init__(self, name: str, documentation: str, labels: Sequence[str]) -> None:
        self._described = name, documentation, labels
        prometheus_client.REGISTRY.register(self)


class Histogram(_Collector):
    """Samples by the bounds that they are below."""

    def __init__(
        self, name: str, documentation: str, labels: Sequence[str] = (), bounds: Sequence[float] = SECONDS_BUCKETS
    ) -> None:
        self._bounds = bounds
        self._series: dict[tuple[str, ...], Series] = {}
        super().__init__(name, documentation, labels)

    def series(self, *labels: str) -> Series:
        """Where samples with these values of the labels go. Worth keeping."""
        found = self._series.get(labels)
        if found is None:
            found = self._series[labels] = Series(self._bounds)
        return found

    def collect(self) -> Iterable[Metric]:
        """What Prometheus asks for."""
        family = HistogramMetricFamily(self._described[0], self._described[1], labels=self._described[2])
        for labels, series in self._series.copy().items():
            reached = zip((*map(str, self._bounds), "+Inf"), accumulate(series.counts), strict=True)
            family.add_metric(labels, list(reached), series.sum)
        yield family


class Series:
    """How many samples fell between two bounds, and their sum."""

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a sample."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.sum += value


class Counter(_Collector):
    """Numbers that only grow."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str] = ()) -> None:
        self._counts: dict[tuple[str, ...], Count] = {}
        super().__init__(name, documentation, labels)

    def count(self, *labels: str) -> Count:
        """What counts for these values of the labels. Worth keeping."""
        found = self._counts.get(labels)
        if found is None:
            found = self._counts[labels] = Count()
        return found

    def collect(self) -> Iterable[Metric]:
        """What Prometheus asks for."""
        family = CounterMetricFamily(self._described[0], self._described[1], labels=self._described[2])
        for labels, count in self._counts.copy().items():
            family.add_metric(labels, count.value)
        yield family


class Count:
    """A number that grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def add(self, number: int = 1) -> None:
        """Count."""
        self.value += number


rpc_seconds = Histogram(
    "triglot_rpc_seconds", "Time from a call's arrival at its service to its answer.", ("rpc", "code")
)
rpc_in_flight = prometheus_client.Gauge("triglot_rpc_in_flight", "Calls that a service is working on.", ("rpc",))
http_seconds = Histogram(
    "triglot_http_seconds",
    "Time from an HTTP request's arrival at the gateway to its answer.",
    ("dialect", "operation", "status"),
)

cache_lookups = Counter(
    "triglot_cache_lookups",
    "What was looked for in memory, and whether it was there and still good.",
    ("cache", "found"),
)

log: structlog.stdlib.BoundLogger = structlog.get_logger("triglot")

_COMPLAINT_SECONDS = 5.0
# What was complained of, and when.
_complained: dict[tuple[str, str], float] = {}


def complain(what: str, kind: str, cause: str) -> None:
    """Log what another server did not do, but each kind from time to time only: while it is away every call meets it.

    `kind` is one of few, such as the class of an error.
    """
    now = time.monotonic()
    if now - _complained.get((what, kind), float("-inf")) >= _COMPLAINT_SECONDS:
        _complained[what, kind] = now
        log.warning(what, kind=kind, error=cause)


def configure(settings: Settings) -> None:
    """Set up logging for this process: to standard error, at the level and in the form the settings ask for."""
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            _add_call,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=max(level, logging.WARNING), stream=sys.stderr, force=True)


def _add_call(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Name the request, its principal and its project in every line that is written while it runs."""
    call = calls.current_or_none()
    if call is not None:
        event.setdefault("request_id", call.request_id)
        if call.principal is not None:
            event.setdefault("principal", call.principal.name)
        if project := call.project:
            event.setdefault("project", project)
    return event
