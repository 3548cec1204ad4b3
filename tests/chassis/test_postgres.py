"""Migrations, and what becomes of the driver's exceptions, on the real PostgreSQL."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Thread

import asyncpg
import pytest
from structlog.testing import capture_logs

from chassis import errors, telemetry
from chassis.migrations import MigrationError, Migrations, describe, migrate
from chassis.postgres import Database, load_queries, open_database
from chassis.settings import Settings
from tests.conftest import Servers
from tests.patience import until


@pytest.fixture
def plan(tmp_path: Path) -> Migrations:
    (tmp_path / "0001_one.sql").write_text("CREATE TABLE demo.a (id int PRIMARY KEY);")
    return Migrations("demo", tmp_path)


async def test_migrations_are_applied_once_and_in_order(database_url: str, plan: Migrations) -> None:
    assert await migrate(database_url, [plan]) == ["demo/0001_one.sql"]
    (plan.folder / "0002_two.sql").write_text("ALTER TABLE demo.a ADD COLUMN b text;")
    assert await migrate(database_url, [plan]) == ["demo/0002_two.sql"]
    assert await migrate(database_url, [plan]) == []


async def test_a_changed_migration_is_refused(database_url: str, plan: Migrations) -> None:
    await migrate(database_url, [plan])
    (plan.folder / "0001_one.sql").write_text("SELECT 1;")
    with pytest.raises(MigrationError, match="changed after it was applied"):
        await migrate(database_url, [plan])


async def test_a_broken_migration_leaves_nothing(database_url: str, plan: Migrations) -> None:
    (plan.folder / "0002_two.sql").write_text("CREATE TABLE demo.b (id int); SELECT nonsense;")
    with pytest.raises(MigrationError, match=r"^demo/0002_two\.sql: column \"nonsense\" does not exist$"):
        await migrate(database_url, [plan])
    connection = await asyncpg.connect(database_url)
    text = await describe(connection, "demo")
    await connection.close()
    assert "column a.id integer not null" in text
    assert "column b.id" not in text


def test_gaps_are_refused(plan: Migrations) -> None:
    (plan.folder / "0003_three.sql").write_text("SELECT 1;")
    with pytest.raises(MigrationError, match="files must be 0001"):
        plan.files()


async def test_driver_exceptions_become_ours(database: Database) -> None:
    await database.execute("CREATE TABLE t (id int CONSTRAINT t_key PRIMARY KEY)")
    await database.execute("CREATE TABLE u (id int REFERENCES t (id))")
    await database.execute("INSERT INTO t VALUES (1)")
    for statement, kind in {
        "INSERT INTO t VALUES (1)": errors.AlreadyExists,
        "INSERT INTO u VALUES (2)": errors.FailedPrecondition,
        "SELECT 1/0": errors.InvalidArgument,
        "SELECT nonsense": errors.Internal,
    }.items():
        with pytest.raises(kind):
            await database.execute(statement)


async def test_a_named_constraint_is_the_services_own_error(settings: Settings) -> None:
    def taken(_: asyncpg.PostgresError) -> errors.TriglotError:
        return errors.AlreadyExists("that name is taken", name="x")

    database = await open_database(settings, {"t_key": taken})
    await database.execute("CREATE TABLE t (id int CONSTRAINT t_key PRIMARY KEY)")
    with pytest.raises(errors.AlreadyExists, match="that name is taken"):
        await database.execute("INSERT INTO t VALUES (1), (1)")
    await database.close()


async def test_a_transaction_that_raises_leaves_nothing(database: Database) -> None:
    await database.execute("CREATE TABLE t (id int)")
    with pytest.raises(errors.NotFound):
        async with database.transaction() as transaction:
            await transaction.execute("INSERT INTO t VALUES (1)")
            raise errors.NotFound("changed my mind")
    assert await database.fetchval("SELECT count(*) FROM t") == 0


async def test_a_slow_statement_is_given_up(settings: Settings) -> None:
    database = await open_database(settings.model_copy(update={"postgres_timeout_seconds": 1.0}))
    with pytest.raises(errors.Unavailable):
        await database.execute("SELECT pg_sleep(60)")
    await database.close()


async def test_a_connection_that_cannot_be_made_is_no_defect_of_ours(
    servers: Servers, settings: Settings, database: Database
) -> None:
    """Whatever PostgreSQL says to somebody who connects, it is away for the moment, and is used again afterwards."""
    name = settings.postgres_url.get_secret_value().rsplit("/", 1)[1]
    away = (f"ALTER DATABASE {name} RENAME TO {name}_away", f"ALTER DATABASE {name}_away RENAME TO {name}")
    admin = await asyncpg.connect(servers.postgres_url)
    try:
        for refuse, admit in (("SELECT 1", "SELECT 1"), away):
            # The pool connects anew at once when it loses a connection; only who is alone may rename.
            await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            await until(partial(_ended, admin, name))
            await until(partial(_run, admin, refuse))
            try:
                with pytest.raises(errors.Unavailable, match="cannot be reached"):
                    await database.fetchval("SELECT 1")
            finally:
                await admin.execute(admit)
                await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
            assert await database.fetchval("SELECT 1") == 1
    finally:
        await admin.close()


async def test_why_postgresql_does_nothing_is_logged_once(database: Database) -> None:
    telemetry._complained.clear()
    await database.close()
    with capture_logs() as captured:
        for _ in range(3):
            with pytest.raises(errors.Unavailable, match="cannot be reached"):
                await database.fetchval("SELECT 1")
    [logged] = captured
    assert (logged["event"], logged["kind"], logged["error"]) == (
        "PostgreSQL failed",
        "InterfaceError",
        "pool is closed",
    )


async def test_a_server_that_only_reads_is_away_for_writers(database: Database) -> None:
    """As a primary that became a standby."""
    with pytest.raises(errors.Unavailable):
        async with database.transaction() as transaction:
            await transaction.execute("SET TRANSACTION READ ONLY")
            await transaction.execute("CREATE TABLE t (id int)")


def test_queries_are_named(tmp_path: Path) -> None:
    path = tmp_path / "queries.sql"
    path.write_text("-- name: one\n-- primary key\nSELECT 1;\n\n-- name: two\nSELECT 2;\n")
    assert load_queries(path).two == "SELECT 2;"


async def test_a_connection_that_ends_between_two_statements(database: Database, servers: Servers) -> None:
    """Whatever of its end has arrived: that it ends, and then that it is closed."""
    for turns in range(6):
        pid = await database.fetchval("SELECT pg_backend_pid()")
        # Our event loop stands still meanwhile, and then hears of it bit by bit.
        killer = Thread(target=lambda pid=pid: asyncio.run(_end(servers.postgres_url, pid)))
        killer.start()
        killer.join()
        for _ in range(turns):
            await asyncio.sleep(0)
        with suppress(errors.Unavailable):
            await database.execute("SELECT 1")

        async def there() -> bool:
            with suppress(errors.Unavailable):
                return await database.fetchval("SELECT true")  # type: ignore[no-any-return]
            return False

        await until(there)


async def _run(admin: asyncpg.Connection, statement: str) -> bool:
    """Whether a statement was run that takes a database without connections."""
    try:
        await admin.execute(statement)
    except asyncpg.ObjectInUseError:
        return False
    return True


async def _ended(admin: asyncpg.Connection, name: str) -> bool:
    """Whether nobody is connected to a database any more. Who is just connecting takes a moment to show up."""
    await admin.execute("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = $1", name)
    return not await admin.fetchval("SELECT count(*) FROM pg_stat_activity WHERE datname = $1", name)


async def _end(postgres_url: str, pid: int) -> None:
    connection = await asyncpg.connect(postgres_url)
    assert await connection.fetchval("SELECT pg_terminate_backend($1, 5000)", pid)
    await connection.close()
