"""What OpenTelemetry's SDK does for chassis.tracing, which imports it only where traces are asked for."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

from opentelemetry import context, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from chassis.settings import Settings

_PARENT = "traceparent"
_EXPORT_SECONDS = 5.0
_COMMENTS = re.compile(r"--[^\n]*\n|\s+")
_MAX_QUERY_LENGTH = 2_000


class Otlp:
    """Spans that are sent to a collector."""

    on = True

    def __init__(self, settings: Settings) -> None:
        self._propagator = TraceContextTextMapPropagator()
        self._provider = TracerProvider(
            # What the environment says (OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES) comes before what we say.
            resource=Resource.create({"service.name": "triglot"}).merge(OTELResourceDetector().detect()),
            sampler=ParentBased(TraceIdRatioBased(settings.traces_share)),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(OTLPSpanExporter(settings.traces_url, timeout=_EXPORT_SECONDS))
        )
        self._tracer = self._provider.get_tracer("triglot")

    def begin(self, name: str, parent: Mapping[str, Any] | None) -> _Span:
        """See tracing.begin."""
        kinds = trace.SpanKind
        if parent is None:
            return _Span(self._tracer.start_span(name, kind=kinds.CLIENT))
        # Without a parent that was sent, that of the caller in this process.
        around = self._propagator.extract(parent) if _PARENT in parent else None
        return _Span(self._tracer.start_span(name, around, kind=kinds.SERVER))

    def parent(self) -> tuple[tuple[str, str], ...]:
        """See tracing.parent."""
        found: dict[str, str] = {}
        self._propagator.inject(found)
        return tuple(found.items())

    def statement(self, told: Any) -> None:
        """What asyncpg says about a statement, in the context of the call that it belongs to."""
        if trace.get_current_span().is_recording():
            text = _COMMENTS.sub(" ", told.query).strip()[:_MAX_QUERY_LENGTH]
            now = time.time_ns()
            span = self._tracer.start_span(
                f"postgres {text.partition(' ')[0]}",
                kind=trace.SpanKind.CLIENT,
                attributes={"db.system.name": "postgresql", "db.query.text": text},
                start_time=now - int(told.elapsed * 1e9),
            )
            if told.exception is not None:
                span.set_status(trace.StatusCode.ERROR, type(told.exception).__name__)
            span.end(now)

    def close(self) -> None:
        """Send what is left."""
        self._provider.force_flush(int(_EXPORT_SECONDS * 1000))
        self._provider.shutdown()


class _Span:
    """A span that is the current one."""

    __slots__ = ("_span", "_token")

    def __init__(self, span: trace.Span) -> None:
        self._span = span
        self._token = context.attach(trace.set_span_in_context(span))

    def end(self, attributes: Mapping[str, str | int], fault: str = "") -> None:
        """It is over. `fault` says what went wrong, without any data of the caller's."""
        context.detach(self._token)
        self._span.set_attributes(dict(attributes))
        if fault:
            self._span.set_status(trace.StatusCode.ERROR, fault)
        self._span.end()
