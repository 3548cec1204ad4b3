"""The audit log by itself: its shape, who may read it, pages, filters, how long it lasts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, timedelta

import asyncpg
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from chassis import audit, calls, errors
from chassis.audit import MAX_DOCUMENT_BYTES, AuditLog, open_audit
from chassis.auth import open_authenticator
from chassis.migrations import describe
from chassis.postgres import Database, open_database
from chassis.principals import Principal
from chassis.settings import Settings
from tests.audit_reader import AuditReader
from tests.conftest import Servers
from tests.patience import until
from triglot.schemas import SCHEMAS

REGISTRY, SERVING = AuditLog("registry"), AuditLog("serving")


@pytest.fixture
async def reader(database: Database, settings: Settings, servers: Servers) -> AsyncIterator[AuditReader]:
    async with open_audit(database, open_authenticator(settings, database), ["registry", "serving"]) as service:
        yield AuditReader([service], servers.admin_key)


async def write(database: Database, log: AuditLog, *names: str, **fields: str) -> None:
    async with database.transaction() as connection:
        for name in names:
            await log.record(connection, fields.get("operation", "create"), "kind", name, after=fields.get("after"))


async def test_one_shape_in_every_schema(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    shapes = set()
    for plan in SCHEMAS:
        lines = (await describe(connection, plan.schema)).splitlines()
        shapes.add("\n".join(line.replace(f" {plan.schema}.", " ") for line in lines if "audit" in line))
    await connection.close()
    assert len(shapes) == 1
    assert len(shapes.pop().splitlines()) > 10


async def test_pages_of_several_schemas(database: Database, reader: AuditReader) -> None:
    """Newest first, each entry once, however small the pages and however many came at the same time."""
    for number in range(4):
        await write(database, REGISTRY, f"r{number}", f"r{number}+")
        await write(database, SERVING, f"s{number}")
    # All of them at one time, as far as the clock tells.
    await database.execute("UPDATE registry.audit SET changed_at = '2026-01-01'")
    await database.execute("UPDATE serving.audit SET changed_at = '2026-01-01'")
    expected = {
        *(f"s{number}" for number in range(4)),
        *(f"r{number}{end}" for number in range(4) for end in ("", "+")),
    }
    for size in (1, 2, 5, 12, 13, 1000):
        found = [each.name for each in await reader.entries(page_size=size)]
        assert len(found) == 12
        assert set(found) == expected


async def test_a_page_fits_into_a_message(database: Database, reader: AuditReader) -> None:
    await write(database, REGISTRY, *(f"large{number}" for number in range(9)), after="1" * MAX_DOCUMENT_BYTES)
    first = await reader.page()
    assert 1 <= len(first.entries) < 9
    assert first.ByteSize() < 8 * 1024 * 1024
    assert [each.name for each in await reader.entries()] == [f"large{number}" for number in range(9)]
    await write(database, REGISTRY, "larger", after="1" * (MAX_DOCUMENT_BYTES + 1))
    assert (await reader.page(page_size=1)).entries[0].after.startswith('{"bytes":1048577,"sha256":"')


async def test_filters(database: Database, reader: AuditReader) -> None:
    token = calls.enter(calls.Call("R1", principal=Principal("ann", issuer="https://provider")))
    async with database.transaction() as connection:
        await REGISTRY.record(connection, "update", "entity", "driver", project="p")
    calls.leave(token)
    await write(database, SERVING, "driver")
    [found] = await reader.entries(principal="ann")
    assert (found.request_id, found.issuer, found.service) == ("R1", "https://provider", "registry")
    for name, value in (("project", "p"), ("kind", "entity"), ("operation", "update")):
        assert await reader.entries(**{name: value}) == [found], name
    assert [each.service for each in await reader.entries(name="driver")] == ["registry", "serving"]
    assert await reader.entries(name="driver' OR true --") == []
    later = Timestamp()
    later.FromDatetime(found.time.ToDatetime(UTC) + timedelta(microseconds=1))
    assert await reader.entries(principal="ann", until=later) == [found]
    assert await reader.entries(principal="ann", until=found.time) == []
    assert await reader.entries(principal="ann", since=found.time) == [found]
    assert await reader.entries(principal="ann", since=later) == []


@pytest.mark.parametrize(
    "asked",
    [{"page_size": -1}, {"page_size": 1001}, {"page_token": "x"}, {"page_token": "9" * 17 + ".registry." + "9" * 19},
     {"name": "\0"}, {"since": Timestamp(seconds=2**60)}],
)  # fmt: skip
async def test_bad_questions(reader: AuditReader, asked: dict[str, object]) -> None:
    with pytest.raises(errors.InvalidArgument):
        await reader.page(**asked)


async def test_administrators_only(reader: AuditReader, make_key: Callable[[Principal], Awaitable[str]]) -> None:
    everything = Principal("bob", feature_stores=frozenset("*"), actions=("*",))
    with pytest.raises(errors.PermissionDenied):
        await AuditReader(reader.services, await make_key(everything)).page()
    with pytest.raises(errors.Unauthenticated):
        await AuditReader(reader.services, "").page()


async def test_what_is_rolled_back_leaves_no_entry(database: Database, reader: AuditReader) -> None:
    with pytest.raises(RuntimeError):
        async with database.transaction() as connection:
            await REGISTRY.record(connection, "create", "kind", "name")
            raise RuntimeError
    assert await reader.entries() == []


async def test_old_entries_go(database: Database, reader: AuditReader) -> None:
    """More of them than go at once, swept by two processes, and none that is young."""
    await write(database, SERVING, "young")
    await database.execute(
        "INSERT INTO registry.audit (changed_at, request_id, principal, issuer, project, kind, name, operation)"
        " SELECT now() - interval '11 days', '', '', '', '', '', 'old', '' FROM generate_series(1, 2500)"
    )
    removed = await asyncio.gather(*(audit.sweep(database, ["registry", "serving"], 10) for _ in range(2)))
    assert sum(removed) <= 2500
    await audit.sweep(database, ["registry", "serving"], 10)
    assert [each.name for each in await reader.entries()] == ["young"]


@pytest.mark.parametrize(("days", "kept"), [("0", 1), ("3", 1), ("1", 0)])
async def test_a_process_sweeps_when_it_starts(
    settings: Settings, servers: Servers, monkeypatch: pytest.MonkeyPatch, days: str, kept: int
) -> None:
    database = await open_database(settings)
    await write(database, REGISTRY, "old")
    await database.execute("UPDATE registry.audit SET changed_at = now() - interval '2 days'")
    monkeypatch.setenv("TRIGLOT_AUDIT_DAYS", days)
    async with open_audit(database, open_authenticator(settings, database), ["registry"]) as service:
        reader = AuditReader([service], servers.admin_key)

        async def swept() -> bool:
            return len(await reader.entries()) == kept

        await until(swept)
    await database.close()
