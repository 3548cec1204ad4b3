"""Who changed what: a table `audit` in each schema, of one shape, with one writer and one reader.

A service writes an entry in the transaction of the change that it tells of, so that an acknowledged change is always
in the log, and a refused one never. Entries are found by administrators through `triglot.audit.v1.AuditService`, which
every service serves for the schemas that it owns, and go after `TRIGLOT_AUDIT_DAYS`.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import pwd
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from chassis import calls, errors
from chassis.postgres import Connection, Database, load_queries
from chassis.rpc import Authenticator, Policy, Service, mount
from chassis.settings import SettingsModel
from chassis.telemetry import log
from protos.gen.triglot.audit.v1 import audit_pb2, audit_service_pb2_grpc
from protos.gen.triglot.audit.v1 import audit_service_pb2 as pb

OPERATING_SYSTEM = "operating system"
# Of an object, as JSON; what is larger is told by its size and its hash.
MAX_DOCUMENT_BYTES = 1024 * 1024
MAX_PAGE = 1_000
_PAGE = 100
# A page ends after the entry with which it reaches this.
_PAGE_BYTES = 4 * 1024 * 1024
_SWEEP_SECONDS = 3600.0
_SWEPT_AT_ONCE = 1_000
_QUERIES = load_queries(Path(__file__).with_suffix(".sql"))
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TOKEN = re.compile(r"(\d{1,17})\.([a-z]{1,20})\.(\d{1,18})", re.ASCII)


class AuditSettings(SettingsModel):
    """Settings of the audit log, which registry, serving and management read."""

    model_config = SettingsConfigDict(env_prefix="TRIGLOT_AUDIT_", frozen=True, extra="ignore")

    days: int = Field(400, ge=0, le=36_500, description="How long the entries of the audit log are kept. 0: for ever.")


class Caller(NamedTuple):
    """What an entry says of who made a change, in the order of its columns."""

    request_id: str
    principal: str
    issuer: str


def caller() -> Caller:
    """Who makes a change now: of the call under way its principal, outside of one the user of the process."""
    call = calls.current_or_none()
    if call is None or call.principal is None:
        return Caller(call.request_id if call else "", _user(), OPERATING_SYSTEM)
    return Caller(call.request_id, call.principal.name, call.principal.issuer)


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # as in a container that runs under a number
        return str(os.getuid())


class AuditLog:
    """The table of one schema."""

    def __init__(self, schema: str) -> None:
        self._insert = _QUERIES.record.format(schema=schema)

    async def record(
        self,
        connection: Connection,
        operation: str,
        kind: str,
        name: str,
        *,
        project: str = "",
        before: str | None = None,
        after: str | None = None,
        by: Caller | None = None,
    ) -> None:
        """Tell of a change, in its transaction. `before` and `after` are JSON without secrets."""
        documents = (_bounded(before), _bounded(after))
        await connection.execute(self._insert, *(by or caller()), operation, kind, name, project, *documents)


def _bounded(document: str | None) -> str | None:
    if document is None or len(content := document.encode()) <= MAX_DOCUMENT_BYTES:
        return document
    return f'{{"bytes":{len(content)},"sha256":"{hashlib.sha256(content).hexdigest()}"}}'


@asynccontextmanager
async def open_audit(
    database: Database, authenticator: Authenticator, schemas: Sequence[str]
) -> AsyncIterator[Service]:
    """The service that shows the logs of these schemas; while the block runs old entries are removed."""
    sweeping = asyncio.create_task(_keep_sweeping(database, schemas, AuditSettings().days))
    try:
        yield mount(
            audit_service_pb2_grpc.add_AuditServiceServicer_to_server,
            _AuditService(database, schemas),
            Policy(authenticator),
        )
    finally:
        sweeping.cancel()
        await asyncio.gather(sweeping, return_exceptions=True)


async def _keep_sweeping(database: Database, schemas: Sequence[str], days: int) -> None:
    while days:
        try:
            await sweep(database, schemas, days)
        except errors.TriglotError as error:
            log.warning("old entries of the audit log are removed later", error=error.message)
        except Exception:
            log.exception("the audit log cannot be swept")
        await asyncio.sleep(_SWEEP_SECONDS)


async def sweep(database: Database, schemas: Sequence[str], days: int) -> int:
    """Remove the entries that are older; how many. What another process is removing is left to it."""
    removed = 0
    for schema in schemas:
        statement = _QUERIES.sweep.format(schema=schema)
        while (found := await database.fetchval(statement, days, _SWEPT_AT_ONCE)) == _SWEPT_AT_ONCE:
            removed += found
        removed += found
    return removed


class _AuditService(audit_service_pb2_grpc.AuditServiceServicer):
    def __init__(self, database: Database, schemas: Sequence[str]) -> None:
        self._database = database
        self._schemas = schemas

    async def ListAuditEntries(  # noqa: N802 - named after the RPC
        self, request: pb.ListAuditEntriesRequest, context: Any
    ) -> pb.ListAuditEntriesResponse:
        principal = calls.principal()
        if not principal.administrator:
            raise errors.PermissionDenied(f"{principal.name} is no administrator", action="administer")
        if not 0 <= request.page_size <= MAX_PAGE:
            raise errors.InvalidArgument(f"page_size must be 1 to {MAX_PAGE}", field="page_size")
        size = request.page_size or _PAGE
        # One more than the page may hold, and what begins within its bytes.
        rows = await self._database.fetch(*self._page(request, size + 1))
        shown = rows[:size]
        whole = len(rows) <= size and sum(row["bytes"] for row in rows) < _PAGE_BYTES
        token = "" if whole else _token(shown[-1])
        return pb.ListAuditEntriesResponse(entries=map(_entry, shown), next_page_token=token)

    def _page(self, request: pb.ListAuditEntriesRequest, limit: int) -> tuple[Any, ...]:
        """The statement and its arguments. Its text is made of those below; what a caller sent is an argument."""
        arguments: list[Any] = [limit, _PAGE_BYTES]

        def bound(*values: Any) -> list[str]:
            arguments.extend(values)
            return [f"${number}" for number in range(len(arguments) - len(values) + 1, len(arguments) + 1)]

        conditions = ["true"]
        for field in ("project", "principal", "kind", "name", "operation"):
            if value := getattr(request, field):
                conditions += [f"{field} = {place}" for place in bound(value)]
        if request.HasField("since"):
            conditions += [f"changed_at >= {place}" for place in bound(_instant("since", request.since))]
        if request.HasField("until"):
            conditions += [f"changed_at < {place}" for place in bound(_instant("until", request.until))]
        if request.page_token:
            time, schema, number = bound(*_position(request.page_token))
            # The first for the index's sake.
            conditions += [f"changed_at <= {time}", f"(changed_at, service, id) < ({time}, {schema}, {number})"]
        where = " AND ".join(conditions)
        parts = [_QUERIES.part.format(schema=schema, conditions=where) for schema in self._schemas]
        return (_QUERIES.page.format(parts=" UNION ALL ".join(parts)), *arguments)


def _entry(row: Any) -> audit_pb2.AuditEntry:
    time = Timestamp()
    time.FromDatetime(row["changed_at"])
    texts = ("service", "request_id", "principal", "issuer", "project", "kind", "name", "operation")
    return audit_pb2.AuditEntry(
        time=time, **{name: row[name] for name in texts}, before=row["before"] or "", after=row["after"] or ""
    )


def _token(row: Any) -> str:
    """Where a page ended: microseconds since 1970, schema, id."""
    return f"{(row['changed_at'] - _EPOCH) // timedelta(microseconds=1)}.{row['service']}.{row['id']}"


def _position(token: str) -> tuple[datetime, str, int]:
    if not (found := _TOKEN.fullmatch(token)):
        raise errors.InvalidArgument("page_token is none that was given", field="page_token")
    return _EPOCH + timedelta(microseconds=int(found[1])), found[2], int(found[3])


def _instant(field: str, timestamp: Timestamp) -> datetime:
    try:
        return timestamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise errors.InvalidArgument(f"{field} is out of range", field=field) from None
