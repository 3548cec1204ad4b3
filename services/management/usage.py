# ruff: noqa: N802 - methods are named after RPCs
"""Usage: how often each account calls each of PAI's operations in a month, what that costs, and where it has to end.

Calls are counted in memory and added to the database once a second, away from the calls. Whatever ends a process
without a word, such as kill -9, loses the counts of its last second; PostgreSQL that does not answer loses none.
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any, NamedTuple

import orjson
import prometheus_client

from chassis import calls, errors
from chassis.postgres import Database
from chassis.principals import Principal
from chassis.telemetry import log
from protos.gen.triglot.management.v1 import usage_pb2 as pb
from protos.gen.triglot.management.v1 import usage_service_pb2_grpc
from services.management.inputs import check_instance, invalid, page_of
from services.management.rows import QUERIES
from services.management.settings import EVERY_OPERATION, ManagementSettings

# With the time that adding takes, what was counted a second ago is in the database.
FLUSH_SECONDS = 0.8
# Above so many different accounts and operations between two flushes, or while the database does not answer, the calls
# of others are not counted.
MAX_COUNTED = 10_000
# Above so many accounts a process shows the calls of others as one in its metrics.
_MAX_SHOWN_ACCOUNTS = 1_000
_MAX_ACCOUNT_BYTES = 1_000
# What clients take for a number of milliseconds.
_MAX_RETRY_MS = 2**31 - 1

_counted = prometheus_client.Counter(
    "triglot_usage_calls", "Calls of PAI's operations, those that failed included.", ("account", "operation")
)
_lost = prometheus_client.Counter("triglot_usage_lost_calls", "Calls that were not counted, or whose count was lost.")


class Key(NamedTuple):
    """What is counted by."""

    month: date  # its first day
    account: str
    operation: str


def this_month() -> date:
    """The first day of the month, in UTC."""
    return datetime.now(UTC).date().replace(day=1)


@asynccontextmanager
async def open_usage(database: Database, own: ManagementSettings) -> AsyncIterator[Usage]:
    """Counts that are added to the database while the block runs; when it ends, those that are left."""
    usage = Usage(database, own)
    await usage.begin_month()
    flushing = asyncio.create_task(usage.keep_flushing())
    try:
        yield usage
    finally:
        flushing.cancel()
        await asyncio.wait((flushing,))
        await usage.end()


class Usage:
    """Counts, and rows of `usage`."""

    def __init__(self, database: Database, own: ManagementSettings, month: Callable[[], date] = this_month) -> None:
        self._database = database
        self._own = own
        self._month = month
        self._counts: dict[Key, int] = {}
        # What is being added. If it is not known whether it was, the same batch is sent again: a process's batch of a
        # number is added once.
        self._batch: dict[Key, int] = {}
        self._batch_number = 0
        self._process = uuid.uuid4()
        self._adding = asyncio.Lock()
        # Calls by all processes as of the last flush, where there is a quota.
        self._totals: dict[Key, int] = {}
        self._totals_of = month()
        self._shown_accounts: set[str] = set()

    def admit(self, principal: Principal, operation: str) -> None:
        """Count a call. Raises ResourceExhausted if it is one too many: that call counts too, as every one does."""
        key = Key(self._month(), account_of(principal.identity), operation)
        before = self._counts.get(key)
        if before is None and len(self._counts) >= MAX_COUNTED:
            _lost.inc()
            return
        now = self._counts[key] = (before or 0) + 1
        quota = _by_operation(self._own.quota_calls, operation)
        if quota and now + self._batch.get(key, 0) + self._totals.get(key, 0) > quota:
            raise errors.ResourceExhausted(
                f"more calls of {operation} than {quota} in a month",
                reason="QUOTA_EXCEEDED",
                retry_after_ms=_until_next_month_ms(key.month),
            )

    async def flush(self) -> None:
        """Add to the database what was counted. Raises Unavailable; what could not be added is added next time."""
        async with self._adding:
            if self._batch:
                await self._add()
            if self._counts:
                self._batch, self._counts = self._counts, {}
                self._batch_number += 1
                self._show(self._batch)
                await self._add()

    async def keep_flushing(self) -> None:
        """Flush, for ever."""
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            try:
                if self._totals_of != self._month():
                    await self.begin_month()
                await self.flush()
            except errors.TriglotError as error:
                log.warning("usage waits to be added", error=error.message)
            except Exception:
                log.exception("usage was not added")

    async def begin_month(self) -> None:
        """Learn what was called this month, forget what is no longer kept."""
        month = self._month()
        rows = await self._database.fetch(QUERIES.usage_of_month, month, MAX_COUNTED) if self._own.quota_calls else ()
        self._totals = {Key(month, row["account"], row["operation"]): row["calls"] for row in rows}
        self._totals_of = month
        await self._database.execute(QUERIES.prune_usage_batches)
        if self._own.usage_months:
            await self._database.execute(QUERIES.prune_usage, month, self._own.usage_months)

    async def end(self) -> None:
        """Flush for the last time."""
        try:
            await self.flush()
        except errors.TriglotError as error:
            lost = sum(self._batch.values()) + sum(self._counts.values())
            log.error("counts of calls are lost", calls=lost, error=error.message)

    async def page(self, request: pb.ListUsageRequest) -> pb.ListUsageResponse:
        """What was counted, by month, account and operation. Raises InvalidArgument, PermissionDenied."""
        page, account = page_of(request), _readable(request.account)
        month = _parsed(request.month) if request.month else None
        await self.flush()
        rows = await self._database.fetch(
            QUERIES.list_usage,
            month,
            account,
            request.operation,
            _by_name(self._own.free_calls),
            _by_name(self._own.prices),
            page.limit,
            page.offset,
        )
        return pb.ListUsageResponse(
            usage=[
                pb.Usage(
                    month=f"{row['month']:%Y-%m}",
                    account=row["account"],
                    operation=row["operation"],
                    calls=row["calls"],
                    free_calls=row["free_calls"],
                    price=_decimal(row["price"]),
                )
                for row in rows
                if row["month"] is not None
            ],
            total_count=rows[0]["total"],
            total_calls=rows[0]["total_calls"],
            total_price=_decimal(rows[0]["total_price"]),
        )

    async def _add(self) -> None:
        """Add the batch, unless that was done already. In the order of its keys: processes add to the same rows."""
        batch = sorted(self._batch.items())
        columns = zip(*((*key, count) for key, count in batch), strict=True)
        rows = await self._database.fetch(QUERIES.add_usage, self._process, self._batch_number, *columns)
        found = {Key(row["month"], row["account"], row["operation"]): row["calls"] for row in rows}
        for key, count in batch:
            known = key in self._totals or len(self._totals) < MAX_COUNTED
            if known and key.month == self._totals_of and _by_operation(self._own.quota_calls, key.operation):
                self._totals[key] = found.get(key, self._totals.get(key, 0) + count)
        self._batch = {}

    def _show(self, batch: Mapping[Key, int]) -> None:
        for key, count in batch.items():
            if len(self._shown_accounts) < _MAX_SHOWN_ACCOUNTS:
                self._shown_accounts.add(key.account)
            account = key.account if key.account in self._shown_accounts else "others"
            _counted.labels(account, key.operation).inc(count)


class UsageService(usage_service_pb2_grpc.UsageServiceServicer):
    """What was counted, for those who may know."""

    def __init__(self, usage: Usage, own: ManagementSettings) -> None:
        self._usage = usage
        self._own = own

    async def ListUsage(self, request: pb.ListUsageRequest, context: Any) -> pb.ListUsageResponse:
        check_instance(request, self._own.instance_id)
        return await self._usage.page(request)


@lru_cache(maxsize=1024)
def account_of(identity: str) -> str:
    """The account of a principal: its identity, or a hash of one that PostgreSQL could not keep or index."""
    content = identity.encode(errors="surrogatepass")
    if len(content) <= _MAX_ACCOUNT_BYTES and b"\0" not in content and content == identity.encode(errors="replace"):
        return identity
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _readable(account: str) -> str:
    """The account that is asked for; empty, for an administrator only, for all. Raises PermissionDenied."""
    principal = calls.principal()
    if principal.administrator:
        return account
    own = account_of(principal.identity)
    if account not in {"", own}:
        raise errors.PermissionDenied(f"{principal.name} may not read what another account uses", action="administer")
    return own


def _by_operation(table: Mapping[str, Any], operation: str) -> Any:
    """What a table of the settings says of an operation; None if it says nothing."""
    return table.get(operation, table.get(EVERY_OPERATION))


def _by_name(table: Mapping[str, Any]) -> str:
    return orjson.dumps({operation: str(value) for operation, value in table.items()}).decode()


def _parsed(text: str) -> date:
    try:
        return datetime.strptime(text, "%Y-%m").date()
    except ValueError:
        raise invalid("Month", "must look like 2026-11") from None


def _decimal(price: Decimal) -> str:
    """A decimal number without zeros at its end."""
    return f"{price.normalize():f}" if price else "0"


def _until_next_month_ms(month: date) -> int:
    next_month = (month + timedelta(days=31)).replace(day=1)
    left = datetime(next_month.year, next_month.month, 1, tzinfo=UTC) - datetime.now(UTC)
    return max(1, min(_MAX_RETRY_MS, int(left.total_seconds() * 1000)))
