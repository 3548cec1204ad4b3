"""Databases for tests: each like a fresh copy of the migrated template, most of them used many times.

Making and dropping one costs a thousand files. File systems look for room where files have just been deleted, so that a
run which did it for each test spent more than half of its processor time in there. A database is emptied instead, and
dropped only if a test did more to it than write rows.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection
from graphlib import TopologicalSorter

import asyncpg

# What rows do not show: relations, columns, functions, settings, statistics. `xmin` changes with any change of a row.
_SHAPE = """
SELECT md5(string_agg(line, ' ' ORDER BY line)) FROM (
    SELECT 'relation ' || oid || xmin || reltuples FROM pg_class WHERE oid >= 16384
    UNION ALL SELECT 'column ' || attrelid || '.' || attnum || xmin FROM pg_attribute WHERE attrelid >= 16384
    UNION ALL SELECT 'default ' || oid || xmin FROM pg_attrdef
    UNION ALL SELECT 'constraint ' || oid || xmin FROM pg_constraint WHERE oid >= 16384
    UNION ALL SELECT 'trigger ' || oid || xmin FROM pg_trigger
    UNION ALL SELECT 'function ' || oid || xmin FROM pg_proc WHERE oid >= 16384
    UNION ALL SELECT 'type ' || oid || xmin FROM pg_type WHERE oid >= 16384
    UNION ALL SELECT 'word ' || oid || xmin FROM pg_enum
    UNION ALL SELECT 'policy ' || oid || xmin FROM pg_policy
    UNION ALL SELECT 'statistics ' || oid || xmin FROM pg_statistic_ext
    UNION ALL SELECT 'large object ' || oid || xmin FROM pg_largeobject_metadata
    UNION ALL SELECT 'right ' || oid || xmin FROM pg_default_acl
    UNION ALL SELECT 'schema ' || oid || xmin FROM pg_namespace
    UNION ALL SELECT 'extension ' || oid || xmin FROM pg_extension
    UNION ALL SELECT 'setting ' || setrole || setconfig::text FROM pg_db_role_setting
        JOIN pg_database ON pg_database.oid = setdatabase WHERE datname = current_database()
    UNION ALL SELECT 'database ' || oid || xmin FROM pg_database WHERE datname = current_database()
) AS lines (line)
"""
_TABLES = """
SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND oid >= 16384 AND relpersistence <> 't'
"""
# What it refers to, by table; whether rows that are referred to may go first.
_REFERENCES = """
SELECT conrelid::regclass::text, confrelid::regclass::text, confdeltype NOT IN ('a', 'r') FROM pg_constraint
WHERE contype = 'f' AND conrelid <> confrelid
"""
_SEQUENCES = "SELECT seqrelid::regclass::text FROM pg_sequence"
_OTHERS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
_END_OTHERS = """
SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
# Emptied tables keep their files; a test that wrote more than this leaves them to nobody.
_MOST_GROWN_BYTES = 4 << 20


def url_of(server_url: str, name: str) -> str:
    """The URL of another database of the same server."""
    return server_url.rsplit("/", 1)[0] + f"/{name}"


class Databases:
    """Copies of a template on one server, for one test after the other.

    `template` must not be written to any more.
    """

    def __init__(self, server_url: str, template: str) -> None:
        self._server_url, self._template = server_url, template
        # Those that tests have done with, whatever they left in there.
        self._used: list[str] = []
        # What a copy looks like that nobody has used: its shape by name, its size, and what makes one so again.
        self._shapes: dict[str, str] = {}
        self._bytes = 0
        self._emptying = ""

    @property
    def known(self) -> Collection[str]:
        """The names of all there are."""
        return self._shapes.keys()

    async def take(self) -> str:
        """The name of a database that is like the template, and that nobody is connected to."""
        if not self._emptying:
            await self._study()
        while self._used:
            name = self._used.pop()
            if await self._is_emptied(name):
                return name
            await self._administer(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
            del self._shapes[name]
        name = f"test_{secrets.token_hex(6)}"
        # Files are copied in half the time that it takes to write all their pages into the log.
        await self._administer(f"CREATE DATABASE {name} TEMPLATE {self._template} STRATEGY FILE_COPY")
        connection = await asyncpg.connect(url_of(self._server_url, name))
        self._shapes[name] = await connection.fetchval(_SHAPE)
        self._bytes = self._bytes or await connection.fetchval("SELECT pg_database_size(current_database())")
        await connection.close()
        return name

    def give_back(self, name: str) -> None:
        """A test has done with it. It is emptied when it is taken again: nobody is left then who could write to it."""
        self._used.append(name)

    async def _study(self) -> None:
        """Find out what makes a used copy like the template again."""
        connection = await asyncpg.connect(url_of(self._server_url, self._template))
        tables = [name for (name,) in await connection.fetch(_TABLES)]
        kept = {name: await connection.fetchval(f"SELECT json_agg(t) FROM {name} AS t") for name in tables}
        emptied = TopologicalSorter[str](dict.fromkeys(tables, ()))
        filled = TopologicalSorter[str]({name: () for name in tables if kept[name]})
        for referring, referred, let_go in await connection.fetch(_REFERENCES):
            if not let_go:
                emptied.add(referred, referring)
            if kept[referring]:
                filled.add(referring, referred)
        statements = [f"DELETE FROM {table}" for table in emptied.static_order()]
        statements += [
            f"INSERT INTO {table} OVERRIDING SYSTEM VALUE"
            f" SELECT * FROM json_populate_recordset(NULL::{table}, {_literal(kept[table])})"
            for table in filled.static_order()
        ]
        for (sequence,) in await connection.fetch(_SEQUENCES):
            last, called = await connection.fetchrow(f"SELECT last_value, is_called FROM {sequence}")
            statements.append(f"SELECT setval({_literal(sequence)}, {last}, {called})")
        await connection.close()
        self._emptying = ";\n".join(statements)

    async def _is_emptied(self, name: str) -> bool:
        """Whether a used one is like the template again. Who still has connections to it loses them."""
        try:
            connection = await asyncpg.connect(url_of(self._server_url, name))
        except asyncpg.PostgresError:  # gone, or not to be connected to
            return False
        try:
            await connection.execute(_END_OTHERS)
            grown = await connection.fetchval("SELECT pg_database_size(current_database())") - self._bytes
            if grown > _MOST_GROWN_BYTES or await connection.fetchval(_SHAPE) != self._shapes[name]:
                return False
            if await connection.fetchval(_OTHERS):
                return False
            await connection.execute(self._emptying)
            return True
        finally:
            await connection.close()

    async def _administer(self, statement: str) -> None:
        connection = await asyncpg.connect(self._server_url)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
