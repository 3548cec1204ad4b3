"""`triglot audit`: who changed what in a deployment, newest first, whichever service holds it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import orjson
import typer
from google.protobuf.timestamp_pb2 import Timestamp

from chassis import calls, errors
from protos.gen.triglot.audit.v1 import audit_service_pb2 as pb
from protos.gen.triglot.audit.v1 import audit_service_pb2_grpc
from protos.gen.triglot.audit.v1.audit_pb2 import AuditEntry
from triglot.deployment import SERVICES, Target, targets
from triglot.terminal import DEFAULT_DATA_DIR, AsJson, DataDir, print_json, print_table

_PAGE = 200
_AGO = re.compile(r"(\d{1,6})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
# What management tells of, too.
_IDENTITY = "identity"
_TIME_HELP = "`2026-11-21`, `2026-11-21T18:00` (UTC, unless it says otherwise), or so long ago: `30m`, `12h`, `7d`."


def audit(
    *,
    project: Annotated[str, typer.Option(help="Only of this project or feature store.")] = "",
    who: Annotated[str, typer.Option(help="Only by the principal of this name.")] = "",
    kind: Annotated[str, typer.Option(help="Only of such objects, as the column KIND shows them.")] = "",
    name: Annotated[str, typer.Option(help="Only of objects of this name.")] = "",
    operation: Annotated[str, typer.Option(help="Only this: `create`, `update`, `delete`, `load` ...")] = "",
    since: Annotated[str, typer.Option(help=f"Not older. {_TIME_HELP}")] = "",
    until: Annotated[str, typer.Option(help="Older than this.")] = "",
    service: Annotated[str, typer.Option(help="Only of registry, serving, management or identity.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many at most, newest first.")] = 50,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Show who changed what, newest first; with `--json` each change with the object before and after it.

    Asks what `triglot up` runs on the data folder, or the deployment at `TRIGLOT_REGISTRY_TARGET`,
    `TRIGLOT_SERVING_TARGET` and `TRIGLOT_MANAGEMENT_TARGET` with the administrator's key `TRIGLOT_API_KEY`.

    Examples: `triglot audit` - `triglot audit --project flights --since 7d --operation delete` -
    `triglot audit --who alice --service identity --json`
    """
    if service and service not in (*SERVICES, _IDENTITY):
        raise errors.InvalidArgument(f"there is no service {service}: {', '.join((*SERVICES, _IDENTITY))}")
    asked = pb.ListAuditEntriesRequest(
        project=project,
        principal=who,
        kind=kind,
        name=name,
        operation=operation,
        since=_moment(since),
        until=_moment(until),
        page_size=min(limit, _PAGE),
    )
    owner = "management" if service == _IDENTITY else service
    chosen = [each for each in targets(data_dir) if owner in ("", each.service)]
    found = asyncio.run(_newest(chosen, asked, service, limit))
    if as_json:
        for entry in found:
            print_json(_described(entry))
        return
    print_table(
        ("TIME", "WHO", "OPERATION", "KIND", "PROJECT", "NAME", "SERVICE"),
        [
            (
                f"{_time(each):%Y-%m-%d %H:%M:%S}",
                _who(each),
                each.operation,
                each.kind,
                each.project,
                each.name,
                each.service,
            )
            for each in found
        ],
    )


async def _newest(
    chosen: Sequence[Target], asked: pb.ListAuditEntriesRequest, service: str, limit: int
) -> list[AuditEntry]:
    """The newest entries of all services together. Raises TriglotError, which says whose."""
    async with AsyncExitStack() as closing:
        sources = []
        for target in chosen:
            channel = await closing.enter_async_context(target.open())
            sources.append(_entries(target, audit_service_pb2_grpc.AuditServiceStub(channel), asked, service))
        heads = [await anext(source, None) for source in sources]
        found: list[AuditEntry] = []
        while len(found) < limit and any(heads):
            newest, entry = max(((n, head) for n, head in enumerate(heads) if head), key=lambda each: _order(each[1]))
            found.append(entry)
            heads[newest] = await anext(sources[newest], None)
        for source in sources:
            await source.aclose()
        return found


async def _entries(
    target: Target, stub: Any, asked: pb.ListAuditEntriesRequest, service: str
) -> AsyncGenerator[AuditEntry]:
    """One service's, page by page."""
    request = pb.ListAuditEntriesRequest()
    request.CopyFrom(asked)
    while True:
        try:
            page = await calls.invoke(stub.ListAuditEntries, request, metadata=calls.bearer(target.api_key))
        except errors.TriglotError as error:
            raise type(error)(f"{target.service} at {target.address}: {error.message}", reason=error.reason) from None
        for entry in page.entries:
            if service in ("", entry.service):
                yield entry
        request.page_token = page.next_page_token
        if not request.page_token:
            return


def _order(entry: AuditEntry) -> tuple[int, int]:
    return entry.time.seconds, entry.time.nanos


def _time(entry: AuditEntry) -> datetime:
    return entry.time.ToDatetime(UTC)


def _who(entry: AuditEntry) -> str:
    return f"{entry.principal} ({entry.issuer})" if entry.issuer else entry.principal


def _described(entry: AuditEntry) -> dict[str, Any]:
    texts = ("service", "request_id", "principal", "issuer", "project", "kind", "name", "operation")
    return {
        "time": _time(entry).isoformat(),
        **{name: getattr(entry, name) for name in texts},
        **{name: orjson.loads(text) if (text := getattr(entry, name)) else None for name in ("before", "after")},
    }


def _moment(text: str) -> Timestamp | None:
    """A point in time as a person writes it. Raises InvalidArgument."""
    if not text:
        return None
    made = Timestamp()
    try:
        if ago := _AGO.fullmatch(text):
            moment = datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        else:
            moment = datetime.fromisoformat(text)
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        made.FromDatetime(moment)
    except (ValueError, OverflowError):
        raise errors.InvalidArgument(f"{text} is no time: {_TIME_HELP}") from None
    return made
