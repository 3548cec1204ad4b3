"""The migrations make exactly the schemas that are recorded beside them."""

from __future__ import annotations

import os

import asyncpg
import pytest

from chassis.migrations import Migrations, describe
from triglot.schemas import SCHEMAS


@pytest.mark.parametrize("plan", SCHEMAS, ids=lambda plan: plan.schema)
async def test_migrations_make_the_recorded_schema(database_url: str, plan: Migrations) -> None:
    connection = await asyncpg.connect(database_url)
    found = await describe(connection, plan.schema)
    await connection.close()
    recorded = plan.folder.parent / "schema.txt"
    if os.environ.get("TRIGLOT_RECORD_SCHEMAS"):
        recorded.write_text(found)
    assert recorded.exists(), "run `make fix-schemas`"
    assert found == recorded.read_text(), "run `make fix-schemas` and read the difference"
