"""PostgreSQL for a service: a bounded pool, named queries, visible transactions. Driver exceptions die here."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import asyncpg
import prometheus_client

from chassis import errors, tracing
from chassis.settings import Settings
from chassis.telemetry import complain, log

Connection = asyncpg.Connection | asyncpg.pool.PoolConnectionProxy
Constraints = Mapping[str, Callable[[asyncpg.PostgresError], errors.TriglotError]]
T = TypeVar("T")

_START_SECONDS = 30.0
_RETRY_SECONDS = 0.5
_VOUCHED_SECONDS = 2.0

_NAME = re.compile(r"^-- name: (\w+)\s*$", re.MULTILINE)
_UNREACHABLE = (
    OSError,
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
    # A primary that became a standby.
    asyncpg.ReadOnlySQLTransactionError,
    # An idle connection that was told of its end and has not met it yet.
    asyncpg.InternalClientError,
)


# All of this process.
_open: list[Database] = []
_connections = prometheus_client.Gauge(
    "triglot_postgres_connections",
    "Connections to PostgreSQL: busy, idle, or wanted by calls that wait.",
    ("state",),
)


def _count(state: str) -> Callable[[], float]:
    return lambda: float(sum(each.connections()[state] for each in tuple(_open)))


for _state in ("busy", "idle", "wanted"):
    _connections.labels(_state).set_function(_count(_state))


def load_queries(path: Path) -> SimpleNamespace:
    """The queries of a .sql file as attributes, each under the name of the `-- name: x` line above it."""
    parts = _NAME.split(path.read_text())
    return SimpleNamespace(**{name: text.strip() for name, text in zip(parts[1::2], parts[2::2], strict=True)})


class Database:
    """A pool of connections. Everything raised inside its blocks is a TriglotError or the caller's own error.

    `constraints` says which error the violation of a named constraint is.
    """

    def __init__(self, pool: asyncpg.Pool, timeout_seconds: float, constraints: Constraints) -> None:
        self._pool = pool
        self._timeout_seconds = timeout_seconds
        self._constraints = constraints
        self._answered = float("-inf")
        self._waiting = 0
        _open.append(self)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection in autocommit mode. Unavailable if none is free or PostgreSQL does not answer."""
        translated = self._unavailable
        self._waiting += 1
        try:
            async with self._pool.acquire(timeout=self._timeout_seconds) as connection:
                self._waiting -= 1
                translated = self._translated
                yield connection
                self._answered = time.monotonic()
        except _CAUGHT as error:
            raise translated(error) from error
        finally:
            if translated != self._translated:  # it never got one
                self._waiting -= 1

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A connection inside a transaction that commits when the block ends and rolls back when it raises."""
        async with self.connection() as connection, connection.transaction():
            yield connection

    async def fetch(self, query: str, *arguments: Any) -> list[asyncpg.Record]:
        """All rows of one statement."""
        async with self.connection() as connection:
            rows: list[asyncpg.Record] = await connection.fetch(query, *arguments)
            return rows

    async def fetchrow(self, query: str, *arguments: Any) -> asyncpg.Record | None:
        """The first row of one statement, or None."""
        async with self.connection() as connection:
            return await connection.fetchrow(query, *arguments)

    async def fetchval(self, query: str, *arguments: Any) -> Any:
        """The first column of the first row of one statement, or None."""
        async with self.connection() as connection:
            return await connection.fetchval(query, *arguments)

    async def execute(self, query: str, *arguments: Any) -> str:
        """Run one statement; its command tag (`UPDATE 3`)."""
        async with self.connection() as connection:
            return await connection.execute(query, *arguments)

    async def ping(self) -> None:
        """Raises Unavailable if PostgreSQL does not answer.

        Whoever just got an answer vouches for it, so that a pool that is merely busy is not waited for.
        """
        if time.monotonic() - self._answered > _VOUCHED_SECONDS:
            await self.execute("SELECT 1")

    def connections(self) -> Mapping[str, int]:
        """How many are busy and idle, and how many callers wait for one."""
        size, idle = self._pool.get_size(), self._pool.get_idle_size()
        return {"busy": size - idle, "idle": idle, "wanted": self._waiting}

    async def close(self) -> None:
        """Close all connections, waiting a few seconds for those in use."""
        if self in _open:
            _open.remove(self)
        try:
            async with asyncio.timeout(5):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    def _unavailable(self, error: BaseException) -> errors.TriglotError:
        """What a call meets that gets no connection, whatever PostgreSQL says, or loses the one it has."""
        if isinstance(error, TimeoutError | asyncpg.QueryCanceledError):
            return errors.Unavailable("PostgreSQL did not answer in time", dependency="postgres")
        if isinstance(error, _UNREACHABLE):
            # A defect of ours may look like that, too.
            complain("PostgreSQL failed", type(error).__name__, _without_data(error)[: errors.MAX_TEXT])
        else:
            log.error("PostgreSQL lets us not in", error=repr(error))
        return errors.Unavailable("PostgreSQL cannot be reached", dependency="postgres")

    def _translated(self, error: BaseException) -> errors.TriglotError:
        name: str = getattr(error, "constraint_name", None) or ""
        if isinstance(error, asyncpg.PostgresError) and name in self._constraints:
            return self._constraints[name](error)
        if isinstance(error, (TimeoutError, *_UNREACHABLE)):
            return self._unavailable(error)
        if isinstance(error, asyncpg.SerializationError | asyncpg.DeadlockDetectedError):
            return errors.Aborted("Another writer changed the same object; try again")
        if isinstance(error, asyncpg.UniqueViolationError):
            return errors.AlreadyExists("The object exists already", constraint=name)
        if isinstance(error, asyncpg.ForeignKeyViolationError):
            return errors.FailedPrecondition(
                "The object is referenced, or refers to one that is gone",
                reason="DEPENDENCY_EXISTS",
                constraint=name,
            )
        if isinstance(error, asyncpg.DataError):
            return errors.InvalidArgument(_without_data(error))
        log.error("unexpected PostgreSQL error", error=repr(error))
        return errors.Internal("The database refused a statement")


_CAUGHT = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)


def _without_data(error: BaseException) -> str:
    """The first line of a data error. PostgreSQL's own text names no table and shows no other row."""
    return str(error).splitlines()[0] if str(error) else "invalid value"


async def open_database(settings: Settings, constraints: Constraints | None = None) -> Database:
    """Open a pool. Raises what `connected` raises."""
    arguments: dict[str, Any] = {
        "min_size": 1,
        "max_size": settings.postgres_pool_size,
        "command_timeout": settings.postgres_timeout_seconds,
        "timeout": settings.postgres_timeout_seconds,
        "server_settings": {"application_name": "triglot"},
        "statement_cache_size": settings.postgres_statement_cache,
        "reset": _nothing_to_reset,
        "init": _follow,
    }
    pool = await connected(lambda url: asyncpg.create_pool(url, **arguments), settings.postgres_url.get_secret_value())
    return Database(pool, settings.postgres_timeout_seconds, constraints or {})


async def _follow(connection: asyncpg.Connection) -> None:
    tracing.follow(connection)


async def _nothing_to_reset(connection: object) -> None:
    """No block leaves anything in its session, so none pays a round trip for having it looked for.

    A transaction that is still open is rolled back all the same; what LISTENs has a connection of its own.
    """


async def connected(connect: Callable[[str], Awaitable[T]], url: str, setting: str = "TRIGLOT_POSTGRES_URL") -> T:
    """What `connect` gives for the URL. A PostgreSQL that is still starting gets 30 seconds.

    Raises WrongSetting if the URL is none, CannotStart if nobody answers there or we are not let in; the text names
    the `setting` that holds the URL.
    """
    if not url:
        raise errors.WrongSetting(f"{setting} is not set")
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            return await connect(url)
        except ValueError:  # asyncpg's own text may show a part of the password
            raise errors.WrongSetting(
                f"{setting} is no URL such as postgresql://user:password@host:5432/database"
            ) from None
        except _UNREACHABLE as error:
            if time.monotonic() > deadline:
                raise errors.CannotStart(f"nobody answers at {setting} ({type(error).__name__})") from None
        except asyncpg.InvalidAuthorizationSpecificationError:
            raise errors.CannotStart(f"PostgreSQL refuses the user or password of {setting}") from None
        except asyncpg.InvalidCatalogNameError:
            raise errors.CannotStart(f"PostgreSQL has not the database of {setting}") from None
        except asyncpg.PostgresError as error:
            raise errors.CannotStart(f"PostgreSQL lets us not in at {setting} ({type(error).__name__})") from None
        await asyncio.sleep(_RETRY_SECONDS)
