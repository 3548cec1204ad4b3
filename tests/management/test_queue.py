"""The queue's tables are those that the installed pgqueuer asks for."""

from __future__ import annotations

import asyncpg
from pgqueuer.adapters.persistence.schema_ddl import render_install
from pgqueuer.domain.settings import DBSettings

from chassis.settings import Settings
from services.management import queue

_SCHEMA = """
SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
WHERE c.relnamespace = $1::regnamespace AND c.relkind = 'r' AND c.relname LIKE 'task_pgqueuer%'
ORDER BY c.relname, a.attnum
"""
_INDEXES = "SELECT indexname FROM pg_indexes WHERE schemaname = $1 AND tablename LIKE 'task_pgqueuer%' ORDER BY 1"


async def test_the_migration_makes_what_this_pgqueuer_wants(settings: Settings) -> None:
    connection = await asyncpg.connect(settings.postgres_url.get_secret_value())
    try:
        wanted = render_install(DBSettings(db_schema="wanted", prefix=queue.SCHEMA.prefix), create_schema=True)
        await connection.execute(wanted)
        for query in (_SCHEMA, _INDEXES):
            ours, theirs = await connection.fetch(query, "management"), await connection.fetch(query, "wanted")
            assert len(ours) > 5
            assert [str(tuple(row)).replace("management.", "") for row in ours] == [
                str(tuple(row)).replace("wanted.", "") for row in theirs
            ]
    finally:
        await connection.close()
