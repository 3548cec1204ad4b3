"""Redis for the one service that owns rows: a client with bounded waits, for a single server or a cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import redis.asyncio
import redis.exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from chassis import errors
from chassis.redis_nodes import Cluster
from chassis.settings import Settings
from chassis.telemetry import complain

Client = redis.asyncio.Redis | Cluster

# To one server. Whoever uses the client must be content with fewer: one too many is not waited for, it fails.
_MAX_CONNECTIONS = 64


@asynccontextmanager
async def open_redis(settings: Settings) -> AsyncIterator[Client]:
    """A client that answers bytes. Connections are made when they are needed; a lost one is made again.

    Raises WrongSetting if the URL is none, CannotStart if Redis lets us not in. It may be down for now.
    """
    client = _client(settings)
    try:
        with suppress(redis.exceptions.RedisError, OSError):
            await _knock(client)
        yield client
    finally:
        await client.aclose()


async def _knock(client: Client) -> None:
    try:
        await client.ping()
    except redis.exceptions.AuthenticationError:
        raise errors.CannotStart("Redis refuses the user or password of TRIGLOT_REDIS_URL") from None


def _client(settings: Settings) -> Client:
    url = settings.redis_url.get_secret_value()
    if not url:
        raise errors.WrongSetting("TRIGLOT_REDIS_URL is not set")
    timeout = settings.redis_timeout_seconds
    # One more attempt at once, for a connection that a restarted server left behind. The driver's own default waits
    # for seconds, and callers would rather know.
    retry = Retry(NoBackoff(), 1, supported_errors=(redis.exceptions.ConnectionError,))

    def connect(url: str) -> redis.asyncio.Redis:
        return redis.asyncio.Redis.from_url(
            url,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=retry,
            max_connections=_MAX_CONNECTIONS,
        )

    try:
        return Cluster(url, timeout, connect) if settings.redis_cluster else connect(url)
    except ValueError:  # its text may show a part of the password
        raise errors.WrongSetting("TRIGLOT_REDIS_URL is no URL such as redis://:password@host:6379/0") from None


@contextmanager
def translated() -> Iterator[None]:
    """Driver exceptions die here: whatever Redis did not do is Unavailable, dependency `redis`. Why is in the log."""
    try:
        yield
    except (redis.exceptions.RedisError, OSError, TimeoutError) as error:
        report(error)
        raise errors.Unavailable("Redis did not answer", dependency="redis") from error


def report(error: BaseException) -> None:
    """Log what Redis did not do, once in a while."""
    # The driver puts the command before the cause, and the server its arguments after it: keys and rows.
    cause = str(error).rpartition(" caused error: ")[2].partition(", with args ")[0]
    complain("Redis failed", type(error).__name__, cause[: errors.MAX_TEXT])
