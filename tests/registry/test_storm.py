"""Two registry processes on one database, written to by many clients at once, stopped in the middle, killed.

A moment is never hoped for: a lock in PostgreSQL holds the writers where a test wants them.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty

from chassis import calls, errors
from chassis.postgres import Database
from chassis.settings import Settings
from protos.gen.feast.core.FeatureView_pb2 import FeatureView
from protos.gen.feast.core.OnDemandFeatureView_pb2 import OnDemandFeatureView
from protos.gen.feast.core.Registry_pb2 import Registry as Contents
from protos.gen.feast.registry import RegistryServer_pb2 as rpc
from protos.gen.feast.registry import RegistryServer_pb2_grpc
from protos.gen.triglot.registry.v1 import registry_service_pb2_grpc
from tests.conftest import Servers
from tests.patience import PATIENCE_SECONDS, until
from tests.ports import reserved_ports
from tests.registry.conftest import Registry
from tests.registry.test_objects import apply_entity, apply_view, entity, get_entity, get_view, service, source, view

ROOT = Path(__file__).resolve().parents[2]
# A client comes back as soon as the process that was started again listens.
PROMPT = [(f"grpc.{which}_reconnect_backoff_ms", 100) for which in ("initial", "min", "max")]
# Where a project's message holds objects: the field of the request that applies one, the request, the RPC.
APPLY = {
    "data_sources": ("data_source", rpc.ApplyDataSourceRequest, "ApplyDataSource"),
    "entities": ("entity", rpc.ApplyEntityRequest, "ApplyEntity"),
    "feature_views": ("feature_view", rpc.ApplyFeatureViewRequest, "ApplyFeatureView"),
    "on_demand_feature_views": ("on_demand_feature_view", rpc.ApplyFeatureViewRequest, "ApplyFeatureView"),
    "feature_services": ("feature_service", rpc.ApplyFeatureServiceRequest, "ApplyFeatureService"),
}
# All rows that follow from a project's definitions, without ids and times.
DERIVED = (
    "SELECT kind, family, parent, position, name, type, description, owner, tags FROM registry.object"
    " WHERE project = $1 AND kind <> 'project' ORDER BY family, parent, name",
    "SELECT o.kind, o.name, e.source_type, e.source_name, e.target_type, e.target_name"
    " FROM registry.edge e JOIN registry.object o ON o.id = e.object_id"
    " WHERE e.project = $1 ORDER BY o.family, o.name, e.position",
    "SELECT kind, objects FROM registry.tally WHERE project = $1 AND objects <> 0 ORDER BY kind",
    "SELECT entity, source, views FROM registry.entity_source WHERE project = $1 ORDER BY entity, source",
)
COUNTED = "SELECT kind, count(*) FROM registry.object WHERE project = $1 GROUP BY kind ORDER BY kind"
WAITING = (
    "SELECT count(*) FROM pg_stat_activity"
    " WHERE datname = current_database() AND wait_event_type = 'Lock' AND backend_type = 'client backend'"
)


class Client(Registry):
    """A client of one process that is as patient as a test."""

    async def __call__(self, method: Callable[..., Any], request: Any) -> Any:
        return await calls.invoke(method, request, metadata=self.metadata, timeout_seconds=PATIENCE_SECONDS)


@dataclass
class Process:
    """`python -m services.registry` on a port of its own."""

    environment: dict[str, str]
    port: int
    running: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self.running = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.registry",
            cwd=ROOT, env=self.environment | {"TRIGLOT_REGISTRY_PORT": str(self.port)},
        )  # fmt: skip

    async def kill(self) -> None:
        if self.running is not None:
            self.running.kill()
            await self.running.wait()
            self.running = None

    @asynccontextmanager
    async def client(self, key: str) -> AsyncIterator[Client]:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", options=PROMPT) as channel:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await channel.channel_ready()
            yield Client(
                RegistryServer_pb2_grpc.RegistryServerStub(channel),
                registry_service_pb2_grpc.RegistryServiceStub(channel),
                calls.bearer(key),
            )


@pytest.fixture
async def processes(settings: Settings, servers: Servers) -> AsyncIterator[list[Process]]:
    """Two that were started; they listen soon."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRIGLOT_")} | {
        "TRIGLOT_POSTGRES_URL": settings.postgres_url.get_secret_value(),
        "TRIGLOT_POSTGRES_TIMEOUT_SECONDS": str(PATIENCE_SECONDS),
        "TRIGLOT_HOST": "127.0.0.1",
        "TRIGLOT_METRICS_PORT": "0",
        "TRIGLOT_LOG_LEVEL": "error",
    }
    with reserved_ports(2) as ports:
        made = [Process(environment, port) for port in ports]
        try:
            for process in made:
                await process.start()
            yield made
        finally:
            for process in made:
                await process.kill()


@pytest.fixture
async def clients(processes: list[Process], servers: Servers) -> AsyncIterator[list[Client]]:
    """One of each process."""
    first, second = processes
    async with first.client(servers.admin_key) as one, second.client(servers.admin_key) as other:
        yield [one, other]


@asynccontextmanager
async def held(database: Database, table: str) -> AsyncIterator[Callable[[int], Awaitable[None]]]:
    """Nobody writes to a table of the registry while the block runs. Yields what waits until so many want to.

    What triggers write, such as `tally`, is held in the middle of a write, in its turn; other tables before it.
    """

    async def waiting(number: int) -> None:
        async def there() -> bool:
            return bool(await database.fetchval(WAITING) >= number)

        await until(there)

    async with database.transaction() as connection:
        await connection.execute(f"LOCK TABLE registry.{table} IN EXCLUSIVE MODE")
        yield waiting


async def contents(client: Client) -> Contents:
    """The whole registry."""
    found: Contents = await client(client.feast.Proto, Empty())
    return found


def named(everything: Contents, where: str, project: str) -> set[str]:
    specs = [getattr(each, "spec", each) for each in getattr(everything, where)]
    return {spec.name for spec in specs if spec.project == project}


async def assert_whole(client: Client, database: Database, *projects: str) -> None:
    """Every row of these projects is what a calm client's writes of the same objects make, and the counts are true."""
    everything = await contents(client)
    for project in projects:
        for where, (name, request, method) in APPLY.items():
            for each in getattr(everything, where):
                if getattr(each, "spec", each).project == project:
                    await client(getattr(client.feast, method), request(**{name: each}, project=f"calm_{project}"))
        for query in DERIVED:
            assert await database.fetch(query, project) == await database.fetch(query, f"calm_{project}"), query
        assert await database.fetch(COUNTED, project) == await database.fetch(DERIVED[2], project)


@dataclass
class Storm:
    """Clients that write until their process is gone, and what they were promised."""

    killed: bool = False
    # Project, kind and name of an object -> the last round that was sent, and the last one that was acknowledged.
    sent: dict[tuple[str, str, str], int] = field(default_factory=dict)
    kept: dict[tuple[str, str, str], int] = field(default_factory=dict)
    acknowledged: int = 0

    async def write(self, client: Client, number: int, project: str) -> None:
        for turn in count():
            view_name, entity_name = f"view_{number}_{turn % 3}", f"entity_{number}_{turn}"
            made = view(view_name, *(f"f{turn}_{each}" for each in range(5)), entities=(entity_name,))
            made.spec.description = str(turn)
            try:
                await self._keep((project, "entities", entity_name), turn, apply_entity(
                    client, project, entity_name, description=str(turn)
                ))  # fmt: skip
                await self._keep((project, "feature_views", view_name), turn, apply_view(client, made, project))
            except errors.TriglotError:
                if not self.killed:
                    raise
                return

    async def _keep(self, what: tuple[str, str, str], turn: int, write: Awaitable[None]) -> None:
        self.sent[what] = turn
        await write
        self.kept[what] = turn
        self.acknowledged += 1


async def test_what_was_acknowledged_outlives_a_kill_and_nothing_is_half_written(
    processes: list[Process], clients: list[Client], servers: Servers, database: Database
) -> None:
    projects = ("rides", "fares", "shops")
    storm = Storm()
    async with asyncio.TaskGroup() as group:
        for number in range(6):
            group.create_task(storm.write(clients[number % 2], number, projects[number % 3]))

        async def many() -> bool:
            return storm.acknowledged >= 60

        await until(many)
        # In each project one write is in the middle of its statement, where triggers count; the other is behind it.
        async with held(database, "tally") as waiting:
            await waiting(6)
            storm.killed = True
            for process in processes:
                await process.kill()
    for process in processes:
        await process.start()
    async with processes[0].client(servers.admin_key) as client:
        everything = await contents(client)
        stored = {
            (each.spec.project, where, each.spec.name): int(each.spec.description)
            for where in ("entities", "feature_views")
            for each in getattr(everything, where)
        }
        lost = {what: turn for what, turn in storm.kept.items() if stored.get(what) not in (turn, storm.sent[what])}
        assert (lost, stored.keys() - storm.sent.keys()) == ({}, set())
        await assert_whole(client, database, *projects)


def creating(kind: str, description: str) -> tuple[str, Any]:
    """An object `x` whose description, or feature, says which one it is."""
    if kind == "on_demand_feature_views":
        on_demand = OnDemandFeatureView()
        on_demand.spec.name, on_demand.spec.description = "x", description
        on_demand.spec.features.add(name="f")
        return kind, on_demand
    if kind == "feature_views":
        made = view("x", f"f{description}")
        made.spec.description = description
        return kind, made
    return kind, entity("x", description=description)


@pytest.mark.parametrize(
    "kinds",
    [("entities",), ("feature_views",), ("feature_views", "on_demand_feature_views")],
    ids=["entities", "views", "views of two kinds"],
)
async def test_parallel_creates_of_one_object(
    clients: list[Client], database: Database, kinds: tuple[str, ...]
) -> None:
    """One creates. The others update what is there, or learn that their name is taken."""
    sent = [creating(kinds[number % len(kinds)], str(number)) for number in range(8)]
    seen: dict[str, set[int]] = defaultdict(set)
    refused: set[str] = set()

    async def create(client: Client, kind: str, made: Any) -> None:
        field_name, request, method = APPLY[kind]
        try:
            await client(getattr(client.feast, method), request(**{field_name: made}, project="new"))
        except errors.AlreadyExists:
            refused.add(kind)
            return
        [found] = getattr(await contents(client), kind)
        seen[kind].add(found.meta.created_timestamp.ToNanoseconds())

    async with asyncio.TaskGroup() as group, held(database, "project") as waiting:
        for number, (kind, made) in enumerate(sent):
            group.create_task(create(clients[number // len(kinds) % 2], kind, made))
        await waiting(len(sent))
    everything = await contents(clients[0])
    [(kind, stored)] = [(kind, each) for kind in kinds for each in getattr(everything, kind)]
    assert refused == set(kinds) - {kind}
    assert seen == {kind: {stored.meta.created_timestamp.ToNanoseconds()}}
    [sent_one] = [made for of, made in sent if of == kind and made.spec.description == stored.spec.description]
    assert [each.name for each in getattr(stored.spec, "features", ())] == [
        each.name for each in getattr(sent_one.spec, "features", ())
    ]
    await assert_whole(clients[0], database, "new")


async def test_repositories_applied_at_the_same_time_lose_nothing(clients: list[Client], database: Database) -> None:
    """Two in one project, one in another, object by object as the SDK does it, while both processes are read."""
    repositories = (("rides", "a"), ("rides", "b"), ("fares", "c"))
    kept: dict[tuple[str, str], set[str]] = {(where, project): set() for where in APPLY for project, _ in repositories}

    async def read(client: Client) -> None:
        expected = {key: set(names) for key, names in kept.items()}
        everything = await contents(client)
        missing = {key: names - named(everything, *key) for key, names in expected.items()}
        assert not any(missing.values()), missing

    async def apply(client: Client, where: str, project: str, made: Any) -> None:
        field_name, request, method = APPLY[where]
        await client(getattr(client.feast, method), request(**{field_name: made}, project=project))
        kept[where, project].add(getattr(made, "spec", made).name)

    for turn in range(4):
        for where in ("data_sources", "entities", "feature_views", "feature_services"):
            writes = []
            for number, (project, repository) in enumerate(repositories):
                name = f"{repository}{turn}"
                made = {
                    "data_sources": source(name),
                    "entities": entity(name),
                    "feature_views": view(name, "one", "two", entities=(name,), origin=name),
                    "feature_services": service(name, name),
                }[where]
                writes.append(apply(clients[(turn + number) % 2], where, project, made))
            await asyncio.gather(*writes, *map(read, clients))
            await asyncio.gather(*map(read, clients))
    await assert_whole(clients[0], database, "rides", "fares")


async def delete_project(client: Client, name: str = "demo") -> None:
    await client(client.feast.DeleteProject, rpc.DeleteProjectRequest(name=name))


async def identifier(client: Client) -> str:
    listed = await client(client.feast.ListProjectMetadata, rpc.ListProjectMetadataRequest(project="demo"))
    [found] = listed.project_metadata
    return str(found.project_uuid)


async def test_a_project_is_made_anew_as_soon_as_it_is_deleted(clients: list[Client], database: Database) -> None:
    one, other = clients
    await apply_view(one, view())
    await apply_entity(one)
    for turn in range(5):
        before, old = await identifier(one), await get_view(one)
        await delete_project(one)
        await apply_view(other, view("stats", f"f{turn}"))
        await apply_entity(one)
        after, new = await identifier(one), await get_view(one)
        assert before != after
        assert new.meta.created_timestamp.ToNanoseconds() > old.meta.created_timestamp.ToNanoseconds()
        assert [each.name for each in new.spec.features] == [f"f{turn}"]
    await assert_whole(one, database, "demo")


async def test_a_project_is_deleted_between_two_writes_of_other_clients(
    clients: list[Client], database: Database
) -> None:
    """A write is in its middle, the deletion waits for it, and the next write waits for the deletion."""
    one, other = clients
    await apply_view(one, view())
    before = await identifier(one)
    async with asyncio.TaskGroup() as group, held(database, "tally") as waiting:
        group.create_task(apply_view(one, view("earlier")))
        await waiting(1)
        group.create_task(delete_project(other))
        await waiting(2)
        group.create_task(apply_view(one, view("later")))
        await waiting(3)
    assert named(await contents(other), "feature_views", "demo") == {"later"}
    assert await identifier(other) != before
    await assert_whole(one, database, "demo")


async def test_a_project_is_deleted_again_and_again_while_others_apply_into_it(
    clients: list[Client], database: Database
) -> None:
    await apply_entity(clients[0])
    deleted = asyncio.Event()

    async def write(client: Client, name: str) -> None:
        for turn in count():
            last = deleted.is_set()
            made: FeatureView = view(name, f"f{turn}")
            await apply_view(client, made)
            await apply_entity(client, name=name)
            if last:
                return

    async with asyncio.TaskGroup() as group:
        for number in range(4):
            group.create_task(write(clients[number % 2], f"x{number}"))
        for _ in range(10):
            await delete_project(clients[1])
            await apply_entity(clients[0])
        deleted.set()
    everything = await contents(clients[0])
    names = {f"x{number}" for number in range(4)}
    assert named(everything, "feature_views", "demo") == names
    assert names | {"driver"} == named(everything, "entities", "demo")
    assert (await get_entity(clients[1])).spec.name == "driver"
    await assert_whole(clients[0], database, "demo")
