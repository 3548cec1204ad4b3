"""A database that is used again is like one that was never used."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest

from chassis.migrations import describe
from tests.conftest import TEMPLATE, Servers
from tests.databases import Databases
from triglot.schemas import SCHEMAS


@pytest.fixture
async def databases(servers: Servers) -> AsyncIterator[Databases]:
    made = Databases(servers.postgres_url, TEMPLATE)
    yield made
    connection = await asyncpg.connect(servers.postgres_url)
    for name in made.known:
        await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await connection.close()


async def content(url: str) -> dict[str, object]:
    """Rows of all tables, where sequences are, and what the schemas look like."""
    connection = await asyncpg.connect(url)
    found: dict[str, object] = {}
    for (table,) in await connection.fetch(
        "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND oid >= 16384"
    ):
        rows = await connection.fetch(f"SELECT t::text FROM {table} AS t ORDER BY 1")
        found[table] = [row[0] for row in rows]
    for (sequence,) in await connection.fetch("SELECT seqrelid::regclass::text FROM pg_sequence"):
        found[sequence] = tuple(await connection.fetchrow(f"SELECT last_value, is_called FROM {sequence}"))
    for plan in SCHEMAS:
        found[plan.schema] = await describe(connection, plan.schema)
    await connection.close()
    return found


async def test_what_was_written_is_gone(databases: Databases, servers: Servers) -> None:
    name = await databases.take()
    fresh = await content(servers.database_url(name))
    connection = await asyncpg.connect(servers.database_url(name))
    await connection.execute("""
        INSERT INTO registry.project (name, uuid, updated) VALUES ('p', repeat('u', 36), now());
        INSERT INTO identity.principal (name, administrator) VALUES ('other', false);
        UPDATE identity.principal SET administrator = false;
        DELETE FROM identity.api_key;
        SELECT nextval(seqrelid) FROM pg_sequence;
    """)
    await connection.close()
    assert await content(servers.database_url(name)) != fresh
    databases.give_back(name)
    assert await databases.take() == name
    assert await content(servers.database_url(name)) == fresh


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE public.other (id int)",
        "ALTER TABLE registry.project ADD COLUMN other int",
        "ALTER TABLE registry.edge DISABLE TRIGGER USER",
        "CREATE INDEX other ON registry.project (uuid)",
        "DROP SCHEMA management CASCADE",
        "ANALYZE registry.project",
        "SELECT lo_create(0)",
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET jit = on', current_database()); END $$",
    ],
)
async def test_what_is_more_than_rows_is_dropped(databases: Databases, servers: Servers, statement: str) -> None:
    name = await databases.take()
    fresh = await content(servers.database_url(name))
    connection = await asyncpg.connect(servers.database_url(name))
    await connection.execute(statement)
    await connection.close()
    databases.give_back(name)
    other = await databases.take()
    assert other != name
    assert await content(servers.database_url(other)) == fresh


async def test_who_is_still_there_is_sent_away(databases: Databases, servers: Servers) -> None:
    name = await databases.take()
    connection = await asyncpg.connect(servers.database_url(name))
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("DELETE FROM identity.api_key")
    databases.give_back(name)
    assert await databases.take() == name
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
        await connection.execute("SELECT 1")
    connection.terminate()


async def test_one_that_is_gone_is_no_matter(databases: Databases, servers: Servers) -> None:
    name = await databases.take()
    connection = await asyncpg.connect(servers.postgres_url)
    await connection.execute(f"DROP DATABASE {name}")
    await connection.close()
    databases.give_back(name)
    assert await databases.take() != name
