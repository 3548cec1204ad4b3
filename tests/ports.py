"""Ports for servers that are started later, or started again."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def reserved_ports(count: int) -> Iterator[list[int]]:
    """Ports of the loopback that nobody else gets while the block runs.

    Each is bound here and not listened on: connections are refused, the system gives it to nobody, and a server that
    asks for it by number (with SO_REUSEADDR, as all of ours and Redis do) may listen on it.
    """
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            each.bind(("127.0.0.1", 0))
        yield [each.getsockname()[1] for each in sockets]
