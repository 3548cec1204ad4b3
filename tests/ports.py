"""Ports for servers that are started later, or started again."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def reserved_ports(count: int, also: int = 0, host: str = "127.0.0.1") -> Iterator[list[int]]:
    """Ports of our own that nobody else gets while the block runs; with `also`, those so far above them as well.

    Each is bound here and not listened on: connections are refused, the system gives it to nobody, and a server that
    asks for it by number (with SO_REUSEADDR, as all of ours and Redis do) may listen on it.
    """
    with ExitStack() as stack:
        found: list[int] = []
        while len(found) < count:
            port = _bound(stack, host, 0)
            if port is not None and (not also or _bound(stack, host, port + also) is not None):
                found.append(port)
        yield found


def _bound(stack: ExitStack, host: str, port: int) -> int | None:
    bound = stack.enter_context(socket.socket())
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except (OSError, OverflowError):
        return None
    return int(bound.getsockname()[1])
