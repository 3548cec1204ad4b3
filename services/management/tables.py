"""The offline tables of datasources, whatever holds them: listed, opened, and brought to where DuckDB and Arrow read.

A table that is no folder of Parquet files is copied to one before its rows are used.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from services.management import hologres, maxcompute
from services.management.hologres import Hologres
from services.management.inputs import invalid
from services.management.offline import OfflineStore, Table
from services.management.settings import ManagementSettings

OFFLINE_TYPE = "MaxCompute"
# Types that have offline tables.
READ_TYPES = (OFFLINE_TYPE, hologres.TYPE)

Partitions = Mapping[str, Mapping[str, Any]]


class Tables(Protocol):
    """The tables of one datasource."""

    def check(self) -> None:
        """Raises InvalidArgument for a configuration that can lead nowhere. Connects to nothing."""

    async def tables(self, schema: str = "") -> list[str]:
        """Names, sorted."""
        ...

    async def open(self, name: str) -> Table:
        """A table with its columns. Raises NotFound, InvalidArgument."""
        ...

    async def copy(self, name: str, columns: Sequence[str], partitions: Partitions, folder: Path) -> Table:
        """The table with files that can be read: its own, or a copy of what is wanted in the folder."""
        ...


class _Folder:
    """Tables as Parquet files below a folder."""

    def __init__(self, offline: OfflineStore, config: Mapping[str, Any]) -> None:
        self._offline = offline
        self._config = config

    def check(self) -> None:
        self._offline.check(self._config)

    async def tables(self, schema: str = "") -> list[str]:
        return await asyncio.to_thread(self._offline.tables, self._config)

    async def open(self, name: str) -> Table:
        return await asyncio.to_thread(self._offline.open, self._config, name)

    async def copy(self, name: str, columns: Sequence[str], partitions: Partitions, folder: Path) -> Table:
        return await self.open(name)


def tables_of(kind: str, uri: str, config: Mapping[str, Any], offline: OfflineStore, own: ManagementSettings) -> Tables:
    """The tables of a datasource. Raises InvalidArgument for a type that has none."""
    if kind == hologres.TYPE:
        return Hologres(uri, config, own.datasource_hosts, own.check_timeout_seconds, own.publish_batch_rows)
    if kind != OFFLINE_TYPE:
        raise invalid("DatasourceId", f"is of type {kind}; only {' and '.join(READ_TYPES)} have offline tables")
    if config.get("driver") == maxcompute.DRIVER:
        return maxcompute.Project(uri, config, own.datasource_hosts, own.check_timeout_seconds, own.publish_batch_rows)
    return _Folder(offline, config)
