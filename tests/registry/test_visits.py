"""What callers looked at last, on the real database. Tests flush by listing, not by waiting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx2
import pytest

from chassis import calls, errors
from chassis.inprocess import InProcessChannel
from chassis.postgres import Database, open_database
from chassis.principals import Principal
from chassis.settings import Settings
from protos.gen.feast.registry import RegistryServer_pb2 as feast
from protos.gen.triglot.registry.v1 import registry_service_pb2 as rpc
from protos.gen.triglot.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from services.registry import visits
from services.registry.access import Access
from services.registry.process import open_service
from services.registry.queries import QUERIES
from services.registry.settings import RegistrySettings
from tests.chassis import test_oidc
from tests.chassis.test_oidc import Provider
from tests.registry import test_rest
from tests.registry.conftest import Registry
from tests.registry.test_indexes import explain
from tests.registry.test_objects import apply_entity
from tests.registry.test_rest import get
from tests.registry.test_storm import held

provider = test_oidc.provider
http = test_rest.http


@pytest.fixture
async def small(settings: Settings, registry: Registry) -> AsyncIterator[Registry]:
    """A second process of the registry, which keeps three visits. Projects `a` and `b` exist."""
    for project in ("a", "b"):
        await apply_entity(registry, project)
    async with open_service(settings, RegistrySettings(recent_visits=3)) as services:
        yield Registry(None, RegistryServiceStub(InProcessChannel(services)), registry.metadata)


async def visit(registry: Registry, name: str, project: str = "a", kind: str = "entities") -> None:
    request = rpc.RecordVisitRequest(
        project=project, object=kind, object_name=name, path=f"/api/v1/{kind}/{name}", method="GET"
    )
    await registry(registry.rendered.RecordVisit, request)


async def names(registry: Registry, **fields: Any) -> list[str]:
    listed = await registry(registry.rendered.ListVisits, rpc.ListVisitsRequest(**fields))
    return [each.object_name for each in listed.visits]


async def test_a_visit_is_listed_as_it_was(small: Registry) -> None:
    await visit(small, "driver")
    listed = await small(small.rendered.ListVisits, rpc.ListVisitsRequest(project="a"))
    (found,) = listed.visits
    assert (found.path, found.project, found.user, found.object, found.object_name, found.method) == (
        *("/api/v1/entities/driver", "a", "admin", "entities", "driver", "GET"),
    )
    assert found.timestamp.seconds > 0
    assert listed.total == 1


async def test_the_last_ones_of_each_project_are_kept(small: Registry, database: Database) -> None:
    for name in "vwxyz":
        await visit(small, name)
        await visit(small, name.upper(), "b")
    assert await names(small, project="a") == ["x", "y", "z"]
    assert await names(small, project="b", descending=True) == ["Z", "Y", "X"]
    await visit(small, "last")
    assert await names(small, project="a") == ["y", "z", "last"]
    assert await database.fetchval("SELECT count(*) FROM registry.visit") == 6


async def test_filters_pages_and_orders(small: Registry) -> None:
    await visit(small, "b", kind="features")
    await visit(small, "a")
    await visit(small, "c", "b")
    assert await names(small) == ["b", "a", "c"]
    assert await names(small, object="entities") == ["a", "c"]
    assert await names(small, sort_by="object_name") == ["a", "b", "c"]
    assert await names(small, sort_by="timestamp", descending=True, page=1, limit=2) == ["c", "a"]
    assert await names(small, page=2, limit=2) == ["c"]
    listed = await small(small.rendered.ListVisits, rpc.ListVisitsRequest(page=9, limit=2))
    assert (list(listed.visits), listed.total) == ([], 3)


async def test_each_caller_sees_its_own(small: Registry, make_key: Callable[[Principal], Awaitable[str]]) -> None:
    await visit(small, "mine")
    other = Registry(None, small.rendered, calls.bearer(await make_key(Principal("ann"))))
    await visit(other, "hers")
    assert (await names(small), await names(other)) == (["mine"], ["hers"])


@pytest.mark.usefixtures("small")
async def test_callers_of_one_name_do_not_share_their_visits(
    settings: Settings,
    provider: Provider,
    make_key: Callable[[Principal], Awaitable[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a key, of a person at a provider, and of an application that calls itself like her."""
    monkeypatch.setenv("TRIGLOT_OIDC_DISCOVERY_URL", f"{provider.url}/.well-known/openid-configuration")
    shown = (
        await make_key(Principal("ann")),
        provider.token(sub="7"),
        provider.token(sub="8", preferred_username=None, azp="ann"),
    )
    async with open_service(settings, RegistrySettings()) as services:
        stub = RegistryServiceStub(InProcessChannel(services))
        callers = [Registry(None, stub, calls.bearer(each)) for each in shown]
        for number, caller in enumerate(callers):
            await visit(caller, f"v{number}")
        for number, caller in enumerate(callers):
            listed = await caller(stub.ListVisits, rpc.ListVisitsRequest())
            assert [(each.user, each.object_name) for each in listed.visits] == [("ann", f"v{number}")]


async def test_many_at_once_in_two_processes_lose_none_that_is_kept(
    registry: Registry, small: Registry, database: Database
) -> None:
    await asyncio.gather(*(visit(registry, f"v{number}") for number in range(40)))
    for number in range(40):
        await visit(small, f"w{number}", "b")
    both = (registry, small) * 5
    await asyncio.gather(*(names(each, project=project) for each in both for project in ("a", "b")))
    assert sorted(await names(registry, project="a")) == sorted(f"v{number}" for number in range(40))
    assert await names(small, project="b") == ["w37", "w38", "w39"]
    assert await database.fetchval("SELECT count(*) FROM registry.visit WHERE project = 'b'") == 3


async def test_an_unknown_project_is_not_remembered_and_spoils_nothing(small: Registry) -> None:
    await visit(small, "x", "nowhere")
    await visit(small, "driver")
    assert await names(small) == ["driver"]


async def test_a_deleted_project_takes_its_visits_along(registry: Registry, small: Registry) -> None:
    await visit(small, "driver")
    assert await names(small) == ["driver"]
    await registry(registry.feast.DeleteProject, feast.DeleteProjectRequest(name="a"))
    assert await names(small) == []


async def test_what_waits_is_written_when_the_process_ends(settings: Settings, registry: Registry) -> None:
    await apply_entity(registry, "a")
    async with open_service(settings, RegistrySettings()) as services:
        ending = Registry(None, RegistryServiceStub(InProcessChannel(services)), registry.metadata)
        await visit(ending, "driver")
    assert await names(registry) == ["driver"]


async def test_what_waits_is_written_in_the_background(
    small: Registry, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(visits, "FLUSH_SECONDS", 0)
    await visit(small, "driver")
    async with asyncio.timeout(60):
        while not await database.fetchval("SELECT count(*) FROM registry.visit"):  # noqa: ASYNC110 - a database
            await asyncio.sleep(0.01)


@pytest.mark.usefixtures("small")
async def test_what_cannot_be_written_waits_on(settings: Settings, database: Database) -> None:
    """A table that somebody has locked stands for a PostgreSQL that does not answer."""
    hasty = await open_database(settings.model_copy(update={"postgres_timeout_seconds": 0.5}))
    store = visits.VisitStore(hasty, Access(hasty, strict=False), 3)
    now = await database.fetchval("SELECT now()")
    store.note(visits.Visit("ann", "a", "entities", "driver", "/entities/driver", "GET", now))
    async with database.transaction() as connection:
        await connection.execute("LOCK TABLE registry.visit")
        with pytest.raises(errors.Unavailable):
            await store.flush()
    await store.flush()
    assert await database.fetchval("SELECT object_name FROM registry.visit") == "driver"
    await hasty.close()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["x" * 3000, "a\0b", "\ud800"])
async def test_a_principal_that_cannot_be_stored_takes_no_visits_of_others_along(name: str, database: Database) -> None:
    store = visits.VisitStore(database, Access(database, strict=False), 3)
    now = await database.fetchval("SELECT now()")
    for principal in (name, "ann"):
        store.note(visits.Visit(principal, "a", "entities", "driver", "/entities/driver", "GET", now))
    await store.flush()
    assert await database.fetchval("SELECT string_agg(principal, ',') FROM registry.visit") == "ann"


@pytest.mark.usefixtures("small")
async def test_under_strict_nobody_learns_by_a_visit_that_a_project_is_there(
    settings: Settings, database: Database, make_key: Callable[[Principal], Awaitable[str]]
) -> None:
    key = await make_key(Principal("ann"))
    async with open_service(settings, RegistrySettings(strict_permissions=True)) as services:
        ann = Registry(None, RegistryServiceStub(InProcessChannel(services)), calls.bearer(key))
        for project in ("a", "nowhere"):
            await visit(ann, "driver", project)
            listed = await ann(ann.rendered.ListVisits, rpc.ListVisitsRequest(project=project))
            assert listed == rpc.ListVisitsResponse()
        assert await names(ann) == []
    # It was remembered, for the day on which ann may read the project.
    assert await database.fetchval("SELECT string_agg(project, ',') FROM registry.visit") == "a"


async def test_a_request_does_not_wait_for_its_visit(
    http: httpx2.AsyncClient, registry: Registry, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While nothing can be written about visits everything is answered; afterwards all of it is known."""
    monkeypatch.setattr(visits, "FLUSH_SECONDS", 0)
    await apply_entity(registry, "a")
    async with held(database, "visit") as waiting:
        await get(http, "/entities/driver?project=a")
        await waiting(1)
        await get(http, "/entities/driver?project=a")
        await get(http, "/metrics/resource_counts?project=a")
    found = await get(http, "/metrics/recently_visited?project=a")
    assert [each["path"] for each in found["visits"]] == ["/api/v1/entities/driver"] * 2


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"path": "/x"}, "project"),
        ({"project": "a"}, "path"),
        ({"project": "a", "path": "/" + "x" * 4000}, "path"),
        ({"project": "a", "path": "/\0"}, "path"),
        ({"project": "a", "path": "/x", "object_name": "x" * 2001}, "object_name"),
    ],
)
async def test_bad_visits_are_refused(small: Registry, fields: dict[str, str], field: str) -> None:
    with pytest.raises(errors.InvalidArgument) as raised:
        await small(small.rendered.RecordVisit, rpc.RecordVisitRequest(**fields))
    assert raised.value.metadata["field"] == field


async def test_bad_ways_to_list_are_refused(small: Registry) -> None:
    for fields in ({"sort_by": "user"}, {"page": 1}, {"page": -1, "limit": 1}):
        with pytest.raises(errors.InvalidArgument):
            await names(small, **fields)


async def test_visits_are_read_from_their_index(small: Registry, database: Database) -> None:
    await database.execute(
        "INSERT INTO registry.visit (principal, project, object, object_name, path, method, visited)"
        " SELECT 'user' || n % 200, 'a', '', '', '', '', now() FROM generate_series(1, 20000) n"
    )
    await database.execute("ANALYZE registry.visit")
    plan = await explain(database, f"{QUERIES.visits} ORDER BY v.visited LIMIT 10", "user7", "a", "")
    assert '"visit_newest"' in plan
    assert "Seq Scan" not in plan
