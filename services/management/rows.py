"""The SQL of this service by name, and what its rows look like from outside of it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from google.protobuf.timestamp_pb2 import Timestamp

from chassis.postgres import Connection, load_queries

QUERIES = load_queries(Path(__file__).parent / "queries.sql")


class Row(Protocol):
    """A row by the names of its columns."""

    def __getitem__(self, column: str, /) -> Any: ...
    def get(self, column: str, /) -> Any: ...
    def keys(self) -> Iterable[str]: ...


async def locked(connection: Connection, lock: str, state: str, identifier: int) -> Row | None:
    """What query `state` finds of a row, or None, once query `lock` holds it until the transaction ends.

    Two statements, because one that had to wait for the row would go on with what it saw before.
    """
    await connection.execute(lock, identifier)
    found: Row | None = await connection.fetchrow(state, identifier)
    return found


def timestamp(at: datetime | None) -> Timestamp | None:
    """A point in time as it stands in messages."""
    if at is None:
        return None
    made = Timestamp()
    made.FromDatetime(at)
    return made
