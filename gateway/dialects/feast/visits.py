"""Notes of who looked at which object, sent to the registry once the answer is on its way."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from chassis import calls, errors
from gateway.dialects.feast.faults import credential
from gateway.dialects.feast.routes import PREFIXES
from gateway.exchange import Answer, Exchange
from protos.gen.triglot.registry.v1 import registry_service_pb2 as rpc

log = structlog.get_logger("gateway")

# Notes on their way; more are dropped, because a note is worth less than a request.
MAX_PENDING = 1000
_PLACE = re.compile(rf"(?:{PREFIXES[0]})?/([^/]+)")
_METRICS = tuple(f"{prefix}/metrics/" for prefix in PREFIXES)


class Visits:
    """Visits of objects whose path matches one of `patterns`; those without a project are to `default_project`."""

    def __init__(self, registry: Any, patterns: Sequence[str], default_project: str, timeout_seconds: float) -> None:
        self._record = registry.RecordVisit
        self._list = registry.ListVisits
        self._patterns = [re.compile(pattern) for pattern in patterns]
        self._default_project = default_project
        self._timeout_seconds = timeout_seconds
        self._pending: set[asyncio.Task[None]] = set()

    def noted(self, answer: Callable[[Exchange, Any], Answer]) -> Callable[[Exchange, Any], Answer]:
        """The answer of a row, after which the visit is noted if it is one."""

        def noting(exchange: Exchange, reply: Any) -> Answer:
            given = answer(exchange, reply)
            self._note(exchange)
            return given

        return noting

    async def list(self, message: Any, *, timeout: float, metadata: Any) -> Any:
        """ListVisits, once everything that was noted here has arrived there."""
        if self._pending:
            await asyncio.wait(self._pending, timeout=timeout / 2)
        return await self._list(message, timeout=timeout, metadata=metadata)

    def _note(self, exchange: Exchange) -> None:
        path = exchange.raw_path.decode("latin-1")
        project = exchange.parameter("project") or self._default_project
        if not project or path.startswith(_METRICS) or not any(each.match(path) for each in self._patterns):
            return
        if len(self._pending) >= MAX_PENDING:
            return
        place = _PLACE.match(path)
        visit = rpc.RecordVisitRequest(
            project=project,
            object=place.group(1) if place else "",
            object_name=exchange.path_params.get("name", ""),
            path=path,
            method=exchange.method,
        )
        metadata = (*credential(exchange), (calls.REQUEST_ID, exchange.request_id))
        task = asyncio.create_task(self._send(visit, metadata))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    async def _send(self, visit: rpc.RecordVisitRequest, metadata: Sequence[tuple[str, str | bytes]]) -> None:
        try:
            await calls.invoke(self._record, visit, metadata=metadata, timeout_seconds=self._timeout_seconds)
        except errors.TriglotError as error:
            log.warning("visit not noted", reason=error.reason, path=visit.path)
