"""Logs and metrics: one line or one sample per fact, with the request id that ties them together."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import prometheus_client
import structlog

from chassis import calls
from chassis.errors import PortInUse
from chassis.settings import Settings

# From 100 microseconds to 10 seconds: Redis reads at one end, whole-table publishes at the other.
SECONDS_BUCKETS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip

rpc_seconds = prometheus_client.Histogram(
    "triglot_rpc_seconds",
    "Time from a call's arrival at its service to its answer.",
    ("rpc", "code"),
    buckets=SECONDS_BUCKETS,
)
rpc_in_flight = prometheus_client.Gauge("triglot_rpc_in_flight", "Calls that a service is working on.", ("rpc",))
http_seconds = prometheus_client.Histogram(
    "triglot_http_seconds",
    "Time from an HTTP request's arrival at the gateway to its answer.",
    ("dialect", "operation", "status"),
    buckets=SECONDS_BUCKETS,
)

log: structlog.stdlib.BoundLogger = structlog.get_logger("triglot")


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
    """Name the request and its principal in every line that is written while it runs."""
    call = calls.current_or_none()
    if call is not None:
        event.setdefault("request_id", call.request_id)
        if call.principal is not None:
            event.setdefault("principal", call.principal.name)
    return event


def serve_metrics(host: str, port: int) -> None:
    """Serve Prometheus metrics from a thread of its own until the process ends; port 0: not. Raises PortInUse."""
    if not port:
        return
    try:
        prometheus_client.start_http_server(port, addr=host)
    except OSError:
        raise PortInUse(host, port) from None
