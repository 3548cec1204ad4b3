"""Usage: every call of an account counts, once, whatever became of it and of the process that took it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import grpc
import prometheus_client
import pytest
from pydantic import SecretStr

from chassis import calls, errors
from chassis.inprocess import InProcessChannel
from chassis.postgres import Database, open_database
from chassis.principals import Principal
from chassis.settings import Settings
from protos.gen.triglot.management.v1 import instance_pb2, management_service_pb2_grpc, usage_service_pb2_grpc
from protos.gen.triglot.management.v1 import usage_pb2 as pb
from services.management import usage as usage_module
from services.management.settings import ManagementSettings
from services.management.usage import Usage, account_of, this_month
from tests.conftest import Servers
from tests.management.conftest import INSTANCE, Pai
from tests.patience import PATIENCE_SECONDS, until
from tests.ports import reserved_ports
from tests.relay import open_relay

ROOT = Path(__file__).resolve().parents[2]
ALICE, BOB = Principal("alice"), Principal("bob")
_COUNTED = "SELECT account, operation, calls FROM management.usage ORDER BY account, operation"


@pytest.fixture
def own(tmp_path: Path) -> ManagementSettings:
    return ManagementSettings(
        offline_roots=(tmp_path,),
        prices={"*": Decimal("0.001"), "GetProject": Decimal("0.25")},
        free_calls={"*": 0, "ListProjects": 2},
        quota_calls={"GetTask": 2},
    )


@pytest.fixture
def stub(services: Any) -> Any:
    return usage_service_pb2_grpc.UsageServiceStub(InProcessChannel(services))


async def listed(stub: Any, key: str, **request: Any) -> pb.ListUsageResponse:
    asked = pb.ListUsageRequest(**{"instance_id": INSTANCE, "page_size": 100, **request})
    answer: pb.ListUsageResponse = await stub.ListUsage(asked, metadata=calls.bearer(key))
    return answer


def counts(answer: pb.ListUsageResponse) -> dict[tuple[str, str], int]:
    return {(each.account, each.operation): each.calls for each in answer.usage}


async def test_every_call_of_a_known_caller_counts(
    caller: Pai, stub: Any, servers: Servers, make_key: Callable[[Principal], Awaitable[str]]
) -> None:
    await caller.answer("ListProjects")
    await caller.refused("GetProject", 404, "ResourceNotFound", ProjectId="7")
    await caller.refused("GetProject", 400, "InvalidParameter", ProjectId="x")
    await caller.refused("ListProjects", 400, "InvalidParameter", PageSize="many")  # cannot be read
    await caller.answer("ListProjects", expect=404, instance="fs-other")
    await caller.refused("ListTasks", 400, "InvalidParameter", Type="x" * 5_000_000)  # the gateway reads no more of it
    bob = Pai(caller.client, await make_key(BOB))
    await bob.refused("ListProjects", 403, "UnauthorizedOperation")
    # These are nobody's calls, or calls of nothing.
    await Pai(caller.client, "0123456789abcdef.wrong").refused("ListProjects", 403, "UnauthorizedOperation")
    await caller.refused("MakeCoffee", 404, "InvalidApi.NotFound")
    answer = await listed(stub, servers.admin_key)
    assert counts(answer) == {
        ("admin", "GetProject"): 2, ("admin", "ListProjects"): 3, ("admin", "ListTasks"): 1, ("bob", "ListProjects"): 1,
    }  # fmt: skip
    assert {each.month for each in answer.usage} == {f"{this_month():%Y-%m}"}
    # Looking at it costs nothing.
    assert counts(await listed(stub, servers.admin_key)) == counts(answer)
    shown = {"account": "bob", "operation": "ListProjects"}
    assert (prometheus_client.REGISTRY.get_sample_value("triglot_usage_calls_total", shown) or 0) >= 1


async def test_what_calls_cost(caller: Pai, stub: Any, servers: Servers) -> None:
    for _ in range(5):
        await caller.answer("ListProjects")
        await caller.refused("GetProject", 404, "ResourceNotFound", ProjectId="7")
    await caller.answer("ListTasks")
    answer = await listed(stub, servers.admin_key)
    assert [(each.operation, each.calls, each.free_calls, each.price) for each in answer.usage] == [
        ("GetProject", 5, 0, "1.25"),
        ("ListProjects", 5, 2, "0.003"),
        ("ListTasks", 1, 0, "0.001"),
    ]
    assert (answer.total_count, answer.total_calls, answer.total_price) == (3, 11, "1.254")
    page = await listed(stub, servers.admin_key, page_number=2, page_size=2)
    assert ([each.operation for each in page.usage], page.total_count, page.total_price) == (["ListTasks"], 3, "1.254")
    only = await listed(stub, servers.admin_key, operation="ListTasks", month=f"{this_month():%Y-%m}", account="admin")
    assert (only.total_calls, only.total_price) == (1, "0.001")
    nothing = await listed(stub, servers.admin_key, month="2013-01")
    assert (list(nothing.usage), nothing.total_count, nothing.total_price) == ([], 0, "0")


async def test_who_may_read_whose(
    caller: Pai, stub: Any, servers: Servers, make_key: Callable[[Principal], Awaitable[str]]
) -> None:
    key = await make_key(Principal("bob", actions=("featurestore:List*",)))
    await Pai(caller.client, key).answer("ListProjects")
    await caller.answer("ListProjects")
    assert counts(await listed(stub, key)) == {("bob", "ListProjects"): 1}
    assert counts(await listed(stub, key, account="bob")) == {("bob", "ListProjects"): 1}
    assert set(counts(await listed(stub, servers.admin_key))) == {("bob", "ListProjects"), ("admin", "ListProjects")}
    carol = await make_key(Principal("carol"))
    for shown, request, code in (
        (key, {"account": "admin"}, grpc.StatusCode.PERMISSION_DENIED),
        (carol, {}, grpc.StatusCode.PERMISSION_DENIED),
        (key, {"month": "November"}, grpc.StatusCode.INVALID_ARGUMENT),
        (key, {"page_size": 101}, grpc.StatusCode.INVALID_ARGUMENT),
        (key, {"instance_id": "fs-other"}, grpc.StatusCode.NOT_FOUND),
        (key, {"instance_id": ""}, grpc.StatusCode.INVALID_ARGUMENT),
        ("", {}, grpc.StatusCode.UNAUTHENTICATED),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await listed(stub, shown, **request)
        assert refused.value.code() is code, request


async def test_over_the_quota(
    caller: Pai, stub: Any, servers: Servers, make_key: Callable[[Principal], Awaitable[str]]
) -> None:
    for _ in range(2):
        await caller.refused("GetTask", 404, "ResourceNotFound", TaskId="7")
    path = "/api/PaiFeatureStore/2023-06-21/GetTask"
    response = await caller.raw("GET", path, params={"InstanceId": INSTANCE, "TaskId": "7"})
    assert (response.status_code, response.json()["Code"]) == (429, "Throttling")
    assert 0 < int(response.headers["x-acs-retry-after"]) < 2**31
    # That one counted too. Other operations and other accounts have quotas of their own, or none.
    assert counts(await listed(stub, servers.admin_key)) == {("admin", "GetTask"): 3}
    await caller.answer("ListTasks")
    bob = Pai(caller.client, await make_key(Principal("bob", actions=("featurestore:*",))))
    await bob.refused("GetTask", 404, "ResourceNotFound", TaskId="7")


async def test_months(database: Database, own: ManagementSettings) -> None:
    now = [date(2026, 11, 1)]
    usage = Usage(database, own, month=lambda: now[0])
    await usage.begin_month()
    assert over_quota(usage, ALICE) == 3
    await usage.flush()
    # A process that starts later, or again, knows what there was.
    other = Usage(database, own, month=lambda: now[0])
    await other.begin_month()
    assert over_quota(other, ALICE) == 1
    now[0] = date(2026, 12, 1)
    assert over_quota(usage, ALICE) == 3
    await usage.begin_month()
    assert over_quota(usage, ALICE) == 1
    await usage.flush()
    await other.end()
    rows = await database.fetch("SELECT month, calls FROM management.usage ORDER BY month")
    assert [(row["month"], row["calls"]) for row in rows] == [(date(2026, 11, 1), 4), (date(2026, 12, 1), 4)]
    short = Usage(database, own.model_copy(update={"usage_months": 1}), month=lambda: now[0])
    await short.begin_month()
    assert [row["month"] for row in await database.fetch("SELECT month FROM management.usage")] == [date(2026, 12, 1)]


def over_quota(usage: Usage, principal: Principal, operation: str = "GetTask") -> int:
    """Which call is the first one too many."""
    for number in range(1, 100):
        try:
            usage.admit(principal, operation)
        except errors.ResourceExhausted as refused:
            assert refused.reason == "QUOTA_EXCEEDED"
            return number
    raise AssertionError("there is no quota")


async def test_processes_add_to_the_same_counters(
    settings: Settings, database: Database, own: ManagementSettings
) -> None:
    """Each with a pool of its own, and none with another's keys in another order."""
    operations = [f"Operation{number}" for number in range(40)]

    async def process(number: int) -> None:
        opened = await open_database(settings)
        usage = Usage(opened, own)
        for turn in range(10):
            for operation in operations[number:] + operations[:number] if turn % 2 else reversed(operations):
                usage.admit(ALICE, operation)
            await usage.flush()
        await opened.close()

    await asyncio.gather(*map(process, range(8)))
    rows = {(row["account"], row["operation"]): row["calls"] for row in await database.fetch(_COUNTED)}
    assert rows == {("alice", operation): 80 for operation in operations}
    # Whoever adds learns what others have added.
    first, second = Usage(database, own), Usage(database, own)
    for usage in (first, first, second):
        usage.admit(BOB, "GetTask")
    await first.flush()
    await second.flush()
    assert over_quota(second, BOB) == 1


async def test_an_answer_that_was_lost_adds_nothing_twice(
    settings: Settings, database: Database, own: ManagementSettings
) -> None:
    """A flush is broken off when its counts are in the database, and nobody has said so yet."""
    async with open_relay(settings.postgres_url.get_secret_value()) as relay:
        reached = await open_database(settings.model_copy(update={"postgres_url": SecretStr(relay.url)}))
        usage = Usage(reached, own)
        usage.admit(ALICE, "ListProjects")
        await usage.flush()
        relay.flowing.clear()
        usage.admit(ALICE, "ListProjects")
        flushing = asyncio.create_task(usage.flush())

        async def added() -> bool:
            return await database.fetchval("SELECT sum(calls) FROM management.usage") == 2

        await until(added)
        flushing.cancel()
        relay.flowing.set()
        with pytest.raises(asyncio.CancelledError):
            await flushing
        usage.admit(ALICE, "ListProjects")
        await usage.flush()
        await reached.close()
    assert await database.fetchval("SELECT sum(calls) FROM management.usage") == 3


async def test_counts_wait_for_a_database_that_is_away(
    settings: Settings, database: Database, own: ManagementSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage_module, "MAX_COUNTED", 3)
    async with open_relay(settings.postgres_url.get_secret_value()) as relay:
        reached = await open_database(settings.model_copy(update={"postgres_url": SecretStr(relay.url)}))
        usage = Usage(reached, own)
        for name in ("alice", "bob", "carol"):
            usage.admit(Principal(name), "ListProjects")
        relay.closed = True
        relay.close()
        for _ in range(2):
            with pytest.raises(errors.Unavailable):
                await usage.flush()
            usage.admit(ALICE, "ListProjects")
        # No more than so many accounts are remembered.
        for name in ("dan", "eve", "frank"):
            usage.admit(Principal(name), "ListProjects")
        relay.closed = False
        await usage.flush()
        await reached.close()
    rows = await database.fetch(_COUNTED)
    assert [(row["account"], row["calls"]) for row in rows] == [
        ("alice", 3), ("bob", 1), ("carol", 1), ("dan", 1), ("eve", 1),
    ]  # fmt: skip


async def test_no_name_spoils_what_others_called(database: Database, own: ManagementSettings) -> None:
    usage = Usage(database, own)
    names = ["a\0b", "\ud800", "x" * 10_000, "naïve ☃", "issuer\nsubject"]
    for name in names:
        usage.admit(Principal(name), "ListProjects")
    await usage.flush()
    kept = {row["account"] for row in await database.fetch(_COUNTED)}
    assert kept == {account_of(name) for name in names}
    assert {"naïve ☃", "issuer\nsubject"} < kept
    assert sum(account.startswith("sha256:") for account in kept) == 3


@pytest.mark.parametrize("wrong", [{"prices": {"Nothing": 1}}, {"prices": {"*": -1}}, {"quota_calls": {"*": 1.5}}])
def test_settings_that_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(errors.WrongSetting):
        ManagementSettings(**wrong)


def test_settings_are_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIGLOT_MANAGEMENT_PRICES", '{"*": 0.001, "GetTask": "0.1"}')
    assert ManagementSettings().prices == {"*": Decimal("0.001"), "GetTask": Decimal("0.1")}


@asynccontextmanager
async def process(settings: Settings, port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """Management as a process of its own, on a port, with no serving behind it."""
    environment = {
        **os.environ,
        "TRIGLOT_POSTGRES_URL": settings.postgres_url.get_secret_value(),
        "TRIGLOT_SECRET_KEY": settings.secret_key.get_secret_value(),
        "TRIGLOT_HOST": "127.0.0.1",
        "TRIGLOT_MANAGEMENT_PORT": str(port),
        "TRIGLOT_METRICS_PORT": "0",
    }
    command = (sys.executable, "-m", "services.management")
    running = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=environment)
    try:
        yield running
    finally:
        if running.returncode is None:
            running.kill()
        await running.wait()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=lambda how: how.name)
async def test_what_a_process_leaves_behind(
    settings: Settings, servers: Servers, database: Database, how: signal.Signals
) -> None:
    """kill -9 takes what was counted since the last flush, and nothing before. SIGTERM takes nothing."""
    metadata = calls.bearer(servers.admin_key)
    request = instance_pb2.GetInstanceRequest(instance_id=INSTANCE)

    async def counted() -> int:
        return int(await database.fetchval("SELECT coalesce(sum(calls), 0) FROM management.usage"))

    async def all_counted() -> bool:
        return await counted() == 10

    with reserved_ports(1) as [port]:
        async with (
            process(settings, port) as running,
            grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
        ):
            stub: Any = management_service_pb2_grpc.ManagementServiceStub(channel)
            for _ in range(10):
                await stub.GetInstance(request, metadata=metadata, wait_for_ready=True, timeout=PATIENCE_SECONDS)
            await until(all_counted)
            for _ in range(5):
                await stub.GetInstance(request, metadata=metadata)
            running.send_signal(how)
            await running.wait()
    assert await counted() == 15 if how is signal.SIGTERM else 10 <= await counted() <= 15
