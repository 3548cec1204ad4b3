"""The catalogue's changes in the audit log: what it shows of each kind of object, before and after."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from chassis.audit import AuditLog
from chassis.postgres import Connection
from services.management.rows import QUERIES, Row

DATASOURCE, PROJECT, FEATURE_ENTITY = "Datasource", "Project", "FeatureEntity"
FEATURE_VIEW, LABEL_TABLE, MODEL_FEATURE, TASK = "FeatureView", "LabelTable", "ModelFeature", "Task"

LOG = AuditLog("management")
_DOCUMENTS = {
    DATASOURCE: QUERIES.audited_datasource,
    PROJECT: QUERIES.audited_project,
    FEATURE_ENTITY: QUERIES.audited_feature_entity,
    FEATURE_VIEW: QUERIES.audited_feature_view,
    LABEL_TABLE: QUERIES.audited_label_table,
    MODEL_FEATURE: QUERIES.audited_model_feature,
}


async def created(connection: Connection, kind: str, identifier: int) -> None:
    """Tell of an object that this transaction made."""
    after = await _found(connection, kind, identifier)
    if after is not None:
        await _record(connection, "create", kind, after, after=after["document"])


@asynccontextmanager
async def changing(connection: Connection, kind: str, identifier: int) -> AsyncIterator[None]:
    """Tell of what the block makes of an object, if it changes it. From here on the object is the transaction's own."""
    before = await _found(connection, kind, identifier)
    yield
    after = await _found(connection, kind, identifier)
    if before is None or (after is not None and after["document"] == before["document"]):
        return
    if after is None:
        await _record(connection, "delete", kind, before, before=before["document"])
    else:
        await _record(connection, "update", kind, after, before=before["document"], after=after["document"])


async def _found(connection: Connection, kind: str, identifier: int) -> Row | None:
    found: Row | None = await connection.fetchrow(_DOCUMENTS[kind], identifier)
    return found


async def _record(
    connection: Connection, operation: str, kind: str, of: Row, *, before: str | None = None, after: str | None = None
) -> None:
    await LOG.record(connection, operation, kind, of["name"], project=of["project"], before=before, after=after)
