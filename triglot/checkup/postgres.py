"""PostgreSQL: whether it lets us in, is new enough, is migrated, may be used, and holds what our key can read."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import asyncpg

from chassis import errors
from chassis.identity.store import ACCESS_KEY_PURPOSE
from chassis.secretbox import SecretBox
from chassis.settings import Settings
from services.management.secrets import PURPOSE as CONFIG_PURPOSE
from triglot.checkup.finding import PATIENCE_SECONDS, Finding, clock, fine, warning, wrong
from triglot.schemas import SCHEMAS

_OLDEST = 15
_MIGRATE = "run `triglot migrate`; in Kubernetes it is the migration Job"
# Secrets that are tried of each table, the newest.
_TRIED = 1_000
_BUSY = 0.8

_PRIVILEGES = """
SELECT format('%I.%I', n.nspname, c.relname) AS name
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = ANY($1::text[]) AND c.relkind IN ('r', 'p') AND c.relname <> 'migration' AND NOT (
    has_schema_privilege(n.oid, 'USAGE')
    AND has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'INSERT')
    AND has_table_privilege(c.oid, 'UPDATE') AND has_table_privilege(c.oid, 'DELETE')
)
ORDER BY 1
"""
_CONNECTIONS = """
SELECT (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS used,
    current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int AS allowed
"""


async def examine(settings: Settings) -> AsyncIterator[Finding]:
    """Through TRIGLOT_POSTGRES_URL, and TRIGLOT_POSTGRES_DIRECT_URL if there is a pooler."""
    connection = None
    for field in ("postgres_url", "postgres_direct_url"):
        url = getattr(settings, field).get_secret_value()
        if not url:
            continue
        variable = settings.variable(field)
        connected = await _connected(url, variable)
        if isinstance(connected, Finding):
            yield connected
            continue
        if connection is None:
            connection = connected
            yield fine("PostgreSQL", f"answers at {variable}")
            continue
        try:
            yield await _same_database(connection, connected, variable)
        finally:
            await connected.close()
    if connection is None:
        return
    try:
        for check in (_version, _extension, _encoding, _writable, _time, _connections, _migrations, _permissions):
            async for finding in _tried(connection, check):
                yield finding
        async for finding in _secrets(connection, settings.secret_box):
            yield finding
    finally:
        await connection.close()


async def _connected(url: str, variable: str) -> asyncpg.Connection | Finding:
    """A connection, or why there is none. What drivers say is not shown: it may hold a part of the URL."""
    check = "PostgreSQL"
    try:
        return await asyncpg.connect(url, timeout=PATIENCE_SECONDS, command_timeout=PATIENCE_SECONDS)
    except ValueError:
        return wrong(check, f"{variable} is no URL", "write it as postgresql://user:password@host:5432/database")
    except asyncpg.InvalidAuthorizationSpecificationError:
        return wrong(
            check,
            f"refuses the user or password of {variable}",
            "set the password of the database's user in the URL; characters such as @ and / are written %40 and %2F",
        )
    except asyncpg.InvalidCatalogNameError:
        return wrong(check, f"has not the database of {variable}", "create it, or name the right one in the URL")
    except asyncpg.TooManyConnectionsError:
        return wrong(
            check,
            "has no connection left",
            "raise max_connections, lower TRIGLOT_POSTGRES_POOL_SIZE, or put a pooler between",
        )
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        return wrong(
            check,
            f"does not answer at {variable} ({type(error).__name__})",
            "start it, or correct host and port in the URL; between machines look at firewalls and NetworkPolicies",
        )


async def _tried(
    connection: asyncpg.Connection, check: Callable[[asyncpg.Connection], Awaitable[list[Finding]]]
) -> AsyncIterator[Finding]:
    """What a check finds, also if PostgreSQL does not let it look."""
    try:
        for finding in await check(connection):
            yield finding
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        yield wrong(
            "PostgreSQL",
            f"did not answer what the check {check.__name__.strip('_')} asked ({type(error).__name__})",
            "look into PostgreSQL's own log at this minute",
        )


async def _version(connection: asyncpg.Connection) -> list[Finding]:
    text = str(await connection.fetchval("SHOW server_version"))
    if connection.get_server_version().major >= _OLDEST:
        return [fine("PostgreSQL version", text)]
    return [wrong("PostgreSQL version", f"{text} is older than {_OLDEST}", f"upgrade it to {_OLDEST} or newer")]


async def _extension(connection: asyncpg.Connection) -> list[Finding]:
    there = await connection.fetchval("SELECT installed_version FROM pg_available_extensions WHERE name = 'pg_trgm'")
    known = await connection.fetchval("SELECT true FROM pg_available_extensions WHERE name = 'pg_trgm'")
    if there:
        return [fine("pg_trgm", str(there))]
    if known:
        return [warning("pg_trgm", "can be installed, and is not yet", _MIGRATE)]
    return [wrong("pg_trgm", "PostgreSQL has no such extension", "install PostgreSQL's contrib modules on its machine")]


async def _encoding(connection: asyncpg.Connection) -> list[Finding]:
    found = connection.get_settings().server_encoding
    if found == "UTF8":
        return [fine("database encoding", found)]
    return [
        wrong("database encoding", f"{found}", "make a database with ENCODING 'UTF8', and move what is in this one")
    ]


async def _writable(connection: asyncpg.Connection) -> list[Finding]:
    if await connection.fetchval("SELECT pg_is_in_recovery()"):
        return [wrong("PostgreSQL role", "is a standby: nothing can be written", "let the URL lead to the primary")]
    if await connection.fetchval("SHOW transaction_read_only") == "on":
        advice = "set default_transaction_read_only = off for the user and the database"
        return [wrong("PostgreSQL role", "takes no writes from this user", advice)]
    return [fine("PostgreSQL role", "takes writes")]


async def _time(connection: asyncpg.Connection) -> list[Finding]:
    asked = datetime.now(UTC)
    return [clock("PostgreSQL clock", await connection.fetchval("SELECT clock_timestamp()"), asked)]


async def _connections(connection: asyncpg.Connection) -> list[Finding]:
    row = await connection.fetchrow(_CONNECTIONS)
    assert row is not None  # noqa: S101 - it is one row
    text = f"{row['used']} of {row['allowed']} connections are open"
    if row["used"] < row["allowed"] * _BUSY:
        return [fine("PostgreSQL connections", text)]
    advice = "raise max_connections, lower TRIGLOT_POSTGRES_POOL_SIZE, or put a pooler between"
    return [warning("PostgreSQL connections", text, advice)]


async def _migrations(connection: asyncpg.Connection) -> list[Finding]:
    found = []
    for plan in SCHEMAS:
        check = f"migrations of {plan.schema}"
        done: dict[int, Any] = {}
        if await connection.fetchval("SELECT to_regclass($1)", f"{plan.schema}.migration") is not None:
            # The schema is one of ours.
            rows = await connection.fetch(f"SELECT number, sha256 FROM {plan.schema}.migration")  # noqa: S608
            done = {row["number"]: row["sha256"] for row in rows}
        files = dict(plan.files())
        pending = [path.name for number, path in files.items() if number not in done]
        changed = [
            path.name
            for number, path in files.items()
            if number in done and done[number] != hashlib.sha256(path.read_bytes()).hexdigest()
        ]
        if changed:
            advice = "run the version of Triglot that migrated this database, or one that came after it"
            found.append(wrong(check, f"{', '.join(changed)} are not what was applied", advice))
        elif pending:
            found.append(wrong(check, f"pending: {', '.join(pending)}", _MIGRATE))
        elif done.keys() - files.keys():
            text = f"{len(done.keys() - files.keys())} more are applied than this version knows"
            found.append(warning(check, text, "finish the upgrade: a later version has migrated this database"))
        else:
            found.append(fine(check, f"all {len(files)} are applied"))
    return found


async def _permissions(connection: asyncpg.Connection) -> list[Finding]:
    closed = [row["name"] for row in await connection.fetch(_PRIVILEGES, [plan.schema for plan in SCHEMAS])]
    if not closed:
        return [fine("database permissions", "all tables can be read and written")]
    text = f"{len(closed)} tables cannot be read and written, such as {closed[0]}"
    advice = "GRANT USAGE ON SCHEMA, and SELECT, INSERT, UPDATE, DELETE ON ALL TABLES and sequences in it, to the user"
    return [wrong("database permissions", text, advice)]


async def _secrets(connection: asyncpg.Connection, box: SecretBox) -> AsyncIterator[Finding]:
    """Whether TRIGLOT_SECRET_KEY reads what is stored. No secret is kept or shown."""
    for what, purpose, query in (
        (
            "access keys",
            ACCESS_KEY_PURPOSE,
            "SELECT secret_encrypted AS sealed FROM identity.access_key ORDER BY created_at DESC LIMIT $1",
        ),
        (
            "datasources",
            CONFIG_PURPOSE,
            "SELECT config_sealed AS sealed FROM management.datasource WHERE config_sealed IS NOT NULL"
            " ORDER BY id DESC LIMIT $1",
        ),
    ):
        check = f"secrets of {what}"
        try:
            sealed = [row["sealed"] for row in await connection.fetch(query, _TRIED)]
        except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError, asyncpg.InsufficientPrivilegeError):
            continue  # which was found above
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            yield wrong(check, f"cannot be looked at ({type(error).__name__})", "look into PostgreSQL's own log")
            continue
        unreadable = sum(not _readable(box, each, purpose) for each in sealed)
        if unreadable:
            text = f"{unreadable} of {len(sealed)} cannot be read with TRIGLOT_SECRET_KEY"
            yield wrong(check, text, "set the key with which they were stored, or store them again")
        else:
            yield fine(check, f"{len(sealed)} can be read")


def _readable(box: SecretBox, sealed: bytes, purpose: str) -> bool:
    try:
        box.decrypt(sealed, purpose)
    except errors.FailedPrecondition:
        return False
    return True


async def _same_database(pooled: asyncpg.Connection, direct: asyncpg.Connection, variable: str) -> Finding:
    query = "SELECT current_database(), pg_postmaster_start_time()"
    if await pooled.fetchrow(query) == await direct.fetchrow(query):
        return fine("PostgreSQL, direct", f"{variable} leads to the same database")
    return wrong(
        "PostgreSQL, direct",
        f"{variable} leads to another database",
        "let it lead past the pooler to the database of TRIGLOT_POSTGRES_URL",
    )
