"""A real PostgreSQL and a real Redis as child processes. Knows binaries, folders and signals.

Both servers have one shape: ``url = server.start()``, ``server.stop()``, ``server.pid``,
``server.running``. Their data lives below one data folder and survives restarts and crashes.
The calls block; make them before the event loop starts, from the main thread (see `process`).
"""

from triglot.embedded.errors import EmbeddedServerError
from triglot.embedded.postgres import EmbeddedPostgres
from triglot.embedded.redis import EmbeddedRedis

__all__ = ["EmbeddedPostgres", "EmbeddedRedis", "EmbeddedServerError"]
