"""Numbered SQL files, applied once each and in order, one transaction a file, one process at a time.

A service keeps its files in `migrations/NNNN_name.sql` and its tables in a schema of its own. What was applied is
kept with a checksum in `<schema>.migration`; a file that changed after it was applied is refused.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from chassis.errors import CannotStart
from chassis.postgres import connected

_FILE = re.compile(r"^(\d{4})_(\w+)\.sql$")
_LOOK_SECONDS = 1.0
_LOCK = 0x54524947  # "TRIG": any number that nobody else locks


class MigrationError(CannotStart):
    """A migration failed, or those on disk and those in the database do not fit. Its text says which."""


@dataclass(frozen=True)
class Migrations:
    """The migrations of one schema."""

    schema: str
    folder: Path

    def files(self) -> list[tuple[int, Path]]:
        """Numbers and files in order. Raises MigrationError for a gap or a badly named file."""
        found = sorted(self.folder.glob("*.sql"))
        numbered = [(match, path) for path in found if (match := _FILE.match(path.name))]
        numbers = [int(match[1]) for match, _ in numbered]
        if len(numbered) != len(found) or numbers != list(range(1, len(found) + 1)):
            raise MigrationError(f"{self.folder}: files must be 0001_name.sql, 0002_name.sql, ...")
        return list(zip(numbers, [path for _, path in numbered], strict=True))


async def migrate(postgres_url: str, plans: list[Migrations], setting: str = "TRIGLOT_POSTGRES_URL") -> list[str]:
    """Bring every schema up to date; the files that were applied. Waits while another process migrates.

    The URL must not lead through a pooler in transaction mode: what keeps other processes waiting is a session's lock.

    Raises MigrationError, and what `connected` raises, which names the `setting`.
    """
    connection = await connected(lambda url: asyncpg.connect(url, timeout=30), postgres_url, setting)
    try:
        applied = []
        with _named("cannot migrate"):
            await connection.execute("SELECT pg_advisory_lock($1)", _LOCK)
            for plan in plans:
                applied += await _migrate_schema(connection, plan)
        return applied
    finally:
        await connection.close()


async def wait_until_migrated(
    postgres_url: str, plans: list[Migrations], setting: str = "TRIGLOT_POSTGRES_URL"
) -> None:
    """Return when another process has applied all migrations that are here. More may be applied: those of a later
    version of ours.

    Raises what `connected` raises, also while waiting.
    """
    while True:
        connection = await connected(lambda url: asyncpg.connect(url, timeout=30), postgres_url, setting)
        try:
            missing = [plan for plan in plans if not await _has(connection, plan)]
        finally:
            await connection.close()
        if not missing:
            return
        await asyncio.sleep(_LOOK_SECONDS)


async def _has(connection: asyncpg.Connection, plan: Migrations) -> bool:
    table = f"{_quoted(plan.schema)}.migration"
    with _named(f"cannot read {table}"):
        if await connection.fetchval("SELECT to_regclass($1)", table) is None:
            return False
        done = {row["number"] for row in await connection.fetch(f"SELECT number FROM {table}")}  # noqa: S608 - quoted
    return all(number in done for number, _ in plan.files())


@contextmanager
def _named(what: str) -> Iterator[None]:
    """What PostgreSQL says, in one line that says of what."""
    try:
        yield
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        raise MigrationError(f"{what}: {str(error).partition(chr(10))[0]}") from error


async def _migrate_schema(connection: asyncpg.Connection, plan: Migrations) -> list[str]:
    schema = _quoted(plan.schema)
    await connection.execute(
        f"CREATE SCHEMA IF NOT EXISTS {schema};"
        f"CREATE TABLE IF NOT EXISTS {schema}.migration ("
        "number int PRIMARY KEY, name text NOT NULL, sha256 text NOT NULL,"
        "applied_at timestamptz NOT NULL DEFAULT now())"
    )
    rows = await connection.fetch(f"SELECT number, sha256 FROM {schema}.migration")  # noqa: S608 - quoted identifier
    done = {row["number"]: row["sha256"] for row in rows}
    applied = []
    for number, path in plan.files():
        text = path.read_text()
        checksum = hashlib.sha256(text.encode()).hexdigest()
        if number in done:
            if done[number] != checksum:
                raise MigrationError(f"{plan.schema}/{path.name} changed after it was applied")
            continue
        with _named(f"{plan.schema}/{path.name}"):
            async with connection.transaction():
                await connection.execute(text)
                await connection.execute(
                    f"INSERT INTO {schema}.migration (number, name, sha256) VALUES ($1, $2, $3)",  # noqa: S608
                    number,
                    path.name,
                    checksum,
                )
        applied.append(f"{plan.schema}/{path.name}")
    return applied


def _quoted(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'


async def describe(connection: asyncpg.Connection, schema: str) -> str:
    """A schema in stable text, a line each: columns, constraints and indexes. Two equal schemas give equal texts."""
    rows = await connection.fetch(_DESCRIBE, schema)
    return "".join(f"{row['line']}\n" for row in rows)


_DESCRIBE = """
SELECT line FROM (
  SELECT 1 AS part, c.relname AS name, a.attnum AS position,
         format('column %s.%s %s%s%s', c.relname, a.attname, format_type(a.atttypid, a.atttypmod),
                CASE WHEN a.attnotnull THEN ' not null' ELSE '' END,
                coalesce(' default ' || pg_get_expr(d.adbin, d.adrelid), '')) AS line
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
  LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
  WHERE n.nspname = $1 AND c.relkind IN ('r', 'p')
  UNION ALL
  SELECT 2, c.conname, 0, format('constraint %s on %s: %s', c.conname, r.relname, pg_get_constraintdef(c.oid))
  FROM pg_constraint c
  JOIN pg_class r ON r.oid = c.conrelid
  JOIN pg_namespace n ON n.oid = c.connamespace
  WHERE n.nspname = $1 AND c.contype <> 'n'
  UNION ALL
  SELECT 3, indexname, 0, indexdef FROM pg_indexes WHERE schemaname = $1
) AS everything
ORDER BY part, name COLLATE "C", position, line COLLATE "C"
"""
