"""A Hologres database, which is any that speaks PostgreSQL's protocol: whether it can be used, step by step."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping, Sequence
from typing import Any

import asyncpg

_PORT = 80
_CREATE = "SELECT has_schema_privilege('public', 'CREATE')"


class Unusable(Exception):
    """What keeps a database from being used: the step that failed, and why. Never holds a password."""


async def check(uri: str, config: Mapping[str, Any], allowed: Sequence[str], timeout_seconds: float) -> None:
    """Resolve, connect, log in and ask for the right to create tables. Raises Unusable.

    `uri` is `instance/database`; `allowed` are the hosts, as `host` or `host:port`, that may be connected to.
    """
    host, port, database = _address(uri, config)
    if host not in allowed and f"{host}:{port}" not in allowed:
        raise Unusable(f"host: {host}:{port} is not among TRIGLOT_MANAGEMENT_DATASOURCE_HOSTS")
    step = "name"
    try:
        async with asyncio.timeout(timeout_seconds):
            await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
            step = "port"
            _, writer = await asyncio.open_connection(host, port)
            writer.close()
            step = "login"
            connection = await asyncpg.connect(
                host=host,
                port=port,
                user=str(config.get("user", "")),
                password=str(config.get("password", "")),
                database=database,
                timeout=timeout_seconds,
            )
            try:
                step = "permission"
                if not await connection.fetchval(_CREATE):
                    raise Unusable(f"permission: this user may not create tables in database {database}")
            finally:
                connection.terminate()
    except TimeoutError:
        raise Unusable(f"{step}: no answer within {timeout_seconds:g} s") from None
    except asyncpg.InvalidCatalogNameError:
        raise Unusable(f"database: there is no database {database}") from None
    except asyncpg.InvalidAuthorizationSpecificationError:
        raise Unusable("login: user or password is refused") from None
    except asyncpg.InsufficientPrivilegeError:
        raise Unusable(f"permission: this user may not use database {database}") from None
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
        # The text of the error may show what was sent.
        raise Unusable(f"{step}: {getattr(error, 'strerror', None) or type(error).__name__}") from None


def _address(uri: str, config: Mapping[str, Any]) -> tuple[str, int, str]:
    _, slash, database = uri.partition("/")
    if not slash or not database:
        raise Unusable("Uri: must be instance/database")
    host, port = config.get("host"), str(config.get("port", _PORT))
    if not isinstance(host, str) or not host:
        raise Unusable('Config: needs "host"')
    if not port.isdecimal() or not 0 < int(port) < 65_536:
        raise Unusable('Config: "port" must be 1 to 65535')
    return host, int(port), database
