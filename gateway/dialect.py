"""What a dialect is: rows that tie an HTTP route to an RPC, a way to find the credential, a way to show an error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from chassis import errors
from gateway.exchange import Answer, Exchange

Metadata = Sequence[tuple[str, str | bytes]]


@dataclass(frozen=True)
class Row:
    """One route: `rpc` is a stub's method; `request` makes its message, `answer` turns its answer into HTTP.

    Without `rpc` the row is answered by the gateway itself, and `answer` gets None.
    """

    methods: tuple[str, ...]
    path: str  # Starlette's pattern, `/entities/{name}`
    operation: str  # its name in metrics and logs
    rpc: Callable[..., Any] | None
    request: Callable[[Exchange], Any]
    # Gets the RPC's answer; of one that answers with several messages, an iterator of them.
    answer: Callable[[Exchange, Any], Answer]
    streams: bool = False  # whether the RPC answers with several messages


@dataclass(frozen=True)
class Dialect:
    """A dialect. `owns` says whether a path that no row matches should be refused in this dialect's words."""

    name: str
    rows: Sequence[Row]
    credential: Callable[[Exchange], Metadata]
    render_error: Callable[[errors.TriglotError, Exchange], Answer]
    owns: Callable[[str], bool]
    # Whether its services count the calls of its rows, those that are refused before they reach one included.
    metered: bool = False
