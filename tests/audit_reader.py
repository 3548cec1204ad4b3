"""The audit log of a service, as an administrator reads it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from chassis import calls
from chassis.inprocess import InProcessChannel
from chassis.rpc import Service
from protos.gen.triglot.audit.v1 import audit_service_pb2 as pb
from protos.gen.triglot.audit.v1 import audit_service_pb2_grpc
from protos.gen.triglot.audit.v1.audit_pb2 import AuditEntry

# What an RPC that changes nothing may begin with.
READING = ("Get", "List", "Search", "Count", "Stream", "Describe", "Read", "Render", "Check", "Ping", "WhoAmI", "Proto")


@dataclass(frozen=True)
class AuditReader:
    services: Sequence[Service]
    key: str

    async def page(self, **asked: Any) -> pb.ListAuditEntriesResponse:
        stub = audit_service_pb2_grpc.AuditServiceStub(InProcessChannel(self.services))
        request = pb.ListAuditEntriesRequest(**asked)
        answer: pb.ListAuditEntriesResponse = await calls.invoke(
            stub.ListAuditEntries, request, metadata=calls.bearer(self.key)
        )
        return answer

    async def entries(self, **asked: Any) -> list[AuditEntry]:
        """Oldest first."""
        found: list[AuditEntry] = []
        token = ""
        while True:
            page = await self.page(**asked, page_token=token)
            found += page.entries
            if not (token := page.next_page_token):
                return found[::-1]


def changing_rpcs(service: Any) -> set[str]:
    """The RPCs of a contract that may change something, by their names."""
    return {name for name in service.methods_by_name if not name.startswith(READING)}


def before(entry: AuditEntry) -> Any:
    return json.loads(entry.before) if entry.before else None


def after(entry: AuditEntry) -> Any:
    return json.loads(entry.after) if entry.after else None


def told(entries: Sequence[AuditEntry]) -> list[tuple[str, str, str, str]]:
    """Operation, kind, project and name of each."""
    return [(each.operation, each.kind, each.project, each.name) for each in entries]
