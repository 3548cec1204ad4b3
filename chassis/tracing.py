"""Traces: what a request did, where, and for how long, sent to a collector over OTLP. Off unless a URL is set.

A span is begun where a request enters a process, where an RPC is answered and where rows are waited for; statements are
told by the driver. The parent comes along as W3C's `traceparent`: in HTTP headers, and as metadata over gRPC. Off, a
place where one would begin costs a look at a variable.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncpg

    from chassis.settings import Settings


class _Off:
    """Nothing is traced."""

    on = False

    def begin(self, name: str, parent: Mapping[str, Any] | None) -> None:
        return None


_tracing: Any = _Off()


def begin(name: str, parent: Mapping[str, Any] | None = None) -> Any:
    """Begin a span. It is the current one until its `end` is called, in the same task; None: nothing is traced.

    With `parent`, headers or metadata of lower-case names, it is what the process does for whoever sent them.
    """
    return _tracing.begin(name, parent)


def parent() -> tuple[tuple[str, str], ...]:
    """Metadata that makes the current span the parent of what the other side does."""
    return _tracing.parent() if _tracing.on else ()


def follow(connection: asyncpg.Connection) -> None:
    """Make a span of each statement of a connection that belongs to a traced call."""
    if _tracing.on:
        connection.add_query_logger(_tracing.statement)


@contextmanager
def tracing(settings: Settings) -> Iterator[None]:
    """Trace while the block runs, if the settings ask for it, then send what is left for some seconds at most."""
    global _tracing  # noqa: PLW0603 - one for the process, as with logs
    if not settings.traces_url:
        yield
        return
    from chassis.otlp import Otlp  # noqa: PLC0415 - it takes a third of a second, and is used by few

    made = Otlp(settings)
    before, _tracing = _tracing, made
    try:
        yield
    finally:
        _tracing = before
        made.close()
