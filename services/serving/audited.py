"""Serving's changes in the audit log: definitions one by one, rows by the load."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

from chassis import audit, calls
from chassis.postgres import Connection, Database
from services.serving.definitions import Group, View
from services.serving.gathering import Gathered

FEATURE_GROUP, FEATURE_VIEW = "featureGroup", "featureView"
LOAD, WRITE, DELETE_ROWS = "load", "write", "deleteRows"

_LOG = audit.AuditLog("serving")
_FLUSH_SECONDS = 60.0


async def group_changed(connection: Connection, before: Group | None, after: Group | None) -> None:
    """Tell what a transaction made of a group."""
    await _changed(connection, FEATURE_GROUP, before, after, _group)


async def view_changed(connection: Connection, before: View | None, after: View | None) -> None:
    """Tell that a transaction made or deleted a view."""
    await _changed(connection, FEATURE_VIEW, before, after, _view)


async def rows_changed(
    connection: Connection, operation: str, group: Group, *, by: audit.Caller | None = None, **what: Any
) -> None:
    """Tell what was done with a group's rows."""
    after = _dumped({"version": group.version, **what})
    await _LOG.record(connection, operation, FEATURE_GROUP, group.name, project=group.store, after=after, by=by)


async def _changed(connection: Connection, kind: str, before: Any, after: Any, shown: Callable[[Any], Any]) -> None:
    operation = "create" if before is None else "delete" if after is None else "update"
    documents = [_dumped(shown(each)) if each is not None else None for each in (before, after)]
    of = before or after
    await _LOG.record(connection, operation, kind, of.name, project=of.store, before=documents[0], after=documents[1])


def _group(group: Group) -> dict[str, Any]:
    return {
        "version": group.version,
        "description": group.description,
        "features": [
            {"name": each.name, "type": each.type.hive, "description": each.description} for each in group.columns
        ],
        "primary_key": group.primary_key,
        "event_time": group.event_time,
        "time_to_live_ms": group.time_to_live_ms,
    }


def _view(view: View) -> dict[str, Any]:
    return {
        "version": view.version,
        "description": view.description,
        "joins": [
            {
                "feature_store": join.group.store,
                "feature_group": join.group.name,
                "version": join.group.version,
                "prefix": join.prefix,
                "on": join.on,
            }
            for join in view.joins
        ],
        "features": view.features,
    }


def _dumped(document: Mapping[str, Any]) -> str:
    return orjson.dumps(document).decode()


@dataclass
class _Written:
    """What one caller merged into one group."""

    by: audit.Caller
    group: Group
    since: datetime
    requests: int = 0
    rows: int = 0


class Merges(Gathered):
    """Merges of rows, which may come by the thousand a second: an entry a minute for each caller and group.

    What a process that is killed merged in its last minute is not in the log.
    """

    def __init__(self, database: Database) -> None:
        super().__init__("merges for the audit log", _FLUSH_SECONDS)
        self._database = database
        self._written: dict[tuple[str, int], _Written] = {}

    def add(self, group: Group, rows: int) -> None:
        """The caller merged so many rows into a group."""
        key = calls.principal().identity, group.id
        written = self._written.get(key)
        if written is None:
            written = self._written[key] = _Written(audit.caller(), group, datetime.now(UTC))
        written.requests += 1
        written.rows += rows

    async def _write(self) -> None:
        told, self._written = self._written, {}
        try:
            if told:
                async with self._database.transaction() as connection:
                    for each in told.values():
                        await rows_changed(
                            connection,
                            WRITE,
                            each.group,
                            by=each.by,
                            requests=each.requests,
                            rows_written=each.rows,
                            since=each.since,
                        )
        except BaseException:
            for key, each in told.items():
                if key in self._written:
                    each.requests += self._written[key].requests
                    each.rows += self._written[key].rows
                self._written[key] = each
            raise
