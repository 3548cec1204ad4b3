"""Redis for the one service that owns rows: a client with bounded waits, for a single server or a cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import redis.asyncio
import redis.asyncio.cluster
import redis.exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from chassis import errors
from chassis.settings import Settings

Client = redis.asyncio.Redis | redis.asyncio.cluster.RedisCluster


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
    try:
        if settings.redis_cluster:
            return redis.asyncio.cluster.RedisCluster.from_url(
                url, socket_timeout=timeout, socket_connect_timeout=timeout, retry=retry
            )
        return redis.asyncio.Redis.from_url(
            url, socket_timeout=timeout, socket_connect_timeout=timeout, retry=retry, max_connections=64
        )
    except ValueError:  # its text may show a part of the password
        raise errors.WrongSetting("TRIGLOT_REDIS_URL is no URL such as redis://:password@host:6379/0") from None


@asynccontextmanager
async def translated() -> AsyncIterator[None]:
    """Driver exceptions die here: whatever Redis did not do is Unavailable, dependency `redis`."""
    try:
        yield
    except (redis.exceptions.RedisError, OSError, TimeoutError) as error:
        raise errors.Unavailable("Redis did not answer", dependency="redis") from error
