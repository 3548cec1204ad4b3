"""What all tests share: one PostgreSQL and one Redis per run, each test has a database like a migrated template."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest
import redis

from chassis.identity.store import IdentityStore
from chassis.migrations import migrate
from chassis.postgres import Database, open_database
from chassis.principals import Principal
from chassis.secretbox import SecretBox, new_key
from chassis.settings import Settings
from tests.cluster import RedisCluster, running_cluster
from tests.databases import Databases, url_of
from triglot.embedded import EmbeddedPostgres, EmbeddedRedis
from triglot.schemas import SCHEMAS

# A run that a script started in the background ignores SIGINT, and so would all that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

TEMPLATE = "triglot_template"
SECRET_KEY = new_key()
# Databases are lost with the run. Tests of what outlives a crash start servers of their own.
NOT_DURABLE = {"fsync": "off", "full_page_writes": "off", "autovacuum": "off"}


# What takes long for what it finds while one works: `make check` leaves it out.
LONG = {
    "cases": ["test_cases"],
    "deploy": ["test_manifests"],
    "embedded": ["test_embedded_postgres", "test_embedded_redis"],
    "feast": ["test_contract"],
    "gateway": ["test_feast_openapi", "test_who_calls"],
    "management": [
        *("test_commands", "test_hologres", "test_maxcompute", "test_model", "test_publish", "test_sequences"),
        *("test_training", "test_usage"),
    ],
    "registry": [
        *("test_bounds", "test_contents", "test_indexes", "test_lineage", "test_metrics", "test_search", "test_storm"),
        "test_visits",
    ],
    "serving": [
        *("test_cluster", "test_cluster_failures", "test_cut_off", "test_hopsworks", "test_listener"),
        *("test_load_command", "test_loads", "test_replicas", "test_round_trip", "test_rows", "test_valkey"),
        "test_vector_model",
    ],
    "stack": ["test_doctor"],
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first, so that no process has it left when the others are done."""
    for item in items:
        if item.path.stem in LONG.get(item.path.parent.name, ()):
            item.add_marker("long")
    items.sort(key=lambda item: -sum(item.get_closest_marker(name) is not None for name in ("dropin", "stack")))


@dataclass(frozen=True)
class Servers:
    """Where this run's servers are, and the keys that every database of this run knows."""

    postgres_url: str
    redis_url: str
    admin_key: str
    # Access key id and secret of the same administrator.
    access_key: tuple[str, str]

    def database_url(self, name: str) -> str:
        return url_of(self.postgres_url, name)


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    data_dir: Path = tmp_path_factory.mktemp("servers") / "data"
    embedded = [EmbeddedPostgres(data_dir, settings=NOT_DURABLE), EmbeddedRedis(data_dir)]
    try:
        postgres_url, redis_url = (server.start() for server in embedded)
        admin_key, access_key = asyncio.run(_make_template(postgres_url))
        yield Servers(postgres_url, redis_url, admin_key, access_key)
    finally:
        for server in embedded:
            server.destroy()


@pytest.fixture(scope="session")
def _cluster_of_the_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    with running_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def cluster(_cluster_of_the_run: RedisCluster) -> RedisCluster:
    """A Redis Cluster of three primaries and three replicas, whole and empty whatever the test before did to it."""
    _cluster_of_the_run.mend()
    return _cluster_of_the_run


async def _make_template(postgres_url: str) -> tuple[str, tuple[str, str]]:
    connection = await asyncpg.connect(postgres_url)
    await connection.execute(f"CREATE DATABASE {TEMPLATE}")
    await connection.close()
    url = url_of(postgres_url, TEMPLATE)
    await migrate(url, SCHEMAS)
    database = await open_database(Settings(postgres_url=url))
    identity = IdentityStore(database, SecretBox(Settings(secret_key=SECRET_KEY).secret_key))
    await identity.create_principal(Principal("admin", administrator=True))
    admin_key, _ = await identity.create_api_key("admin")
    access_key = await identity.create_access_key("admin")
    await database.close()
    return admin_key, access_key


@pytest.fixture(scope="session")
def _databases(servers: Servers) -> Databases:
    return Databases(servers.postgres_url, TEMPLATE)


@pytest.fixture
def database_url(servers: Servers, _databases: Databases) -> Iterator[str]:
    """A migrated database that holds the administrator `admin` and its keys, and nothing else."""
    name = asyncio.run(_databases.take())
    yield servers.database_url(name)
    _databases.give_back(name)


@pytest.fixture
def settings(servers: Servers, database_url: str) -> Settings:
    """Settings of a process on this test's database and on an empty Redis."""
    with redis.Redis.from_url(servers.redis_url) as client:
        client.flushdb()
    return Settings(
        postgres_url=database_url,
        redis_url=servers.redis_url,
        secret_key=SECRET_KEY,
        service_api_key=servers.admin_key,
        host="127.0.0.1",
        metrics_port=0,
        log_format="console",
        log_level="warning",
    )


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    """A pool on this test's database."""
    opened = await open_database(settings)
    yield opened
    await opened.close()


@pytest.fixture
def identity(database: Database, settings: Settings) -> IdentityStore:
    """Principals and keys of this test's database."""
    return IdentityStore(database, SecretBox(settings.secret_key))


@pytest.fixture
def make_key(identity: IdentityStore) -> Callable[[Principal], Awaitable[str]]:
    """Makes a principal and an API key for it."""

    async def make(principal: Principal) -> str:
        await identity.create_principal(principal)
        key, _ = await identity.create_api_key(principal.name)
        return key

    return make
