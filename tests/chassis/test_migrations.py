"""Who waits for migrations goes on when all of them are there, whoever applied them."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

import asyncpg
import pytest

from chassis import migrations
from chassis.migrations import Migrations, migrate, wait_until_migrated
from tests.conftest import Servers
from tests.patience import PATIENCE_SECONDS


async def test_waiting_ends_with_the_last_migration(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema, looks = f"m_{secrets.token_hex(4)}", 0
    plans = [Migrations(schema, tmp_path)]
    (tmp_path / "0001_a.sql").write_text("SELECT 1")

    async def looked(seconds: float) -> None:
        """Between two looks one more thing happens: the first migration, the second, and then nothing is missing."""
        nonlocal looks
        looks += 1
        if looks == 1:
            await migrate(servers.postgres_url, plans)
            (tmp_path / "0002_b.sql").write_text("SELECT 1")
        if looks == 2:
            await migrate(servers.postgres_url, plans)

    monkeypatch.setattr(migrations.asyncio, "sleep", looked)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await wait_until_migrated(servers.postgres_url, plans)
    assert looks == 2
    (tmp_path / "0002_b.sql").unlink()
    await wait_until_migrated(servers.postgres_url, plans)  # the database may know more than we do
    connection = await asyncpg.connect(servers.postgres_url)
    await connection.execute(f"DROP SCHEMA {schema} CASCADE")
    await connection.close()
