"""A MaxCompute project, read with Alibaba's own `pyodps` (the extra `maxcompute`). Thin, because it was never run
against MaxCompute: what it does is what pyodps documents.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from chassis import datatypes, errors
from services.management.inputs import invalid, not_found
from services.management.offline import File, Table, new_file, partition_chosen, readable

DRIVER = "odps"
_TRIES = 2
_PASSING = (
    "InternalServerError",
    "ServiceUnavailable",
    "BadGatewayError",
    "FlowExceeded",
    "QPSExceeded",
    "SlotExceeded",
)


class Project:
    """The tables of one project: `uri` is its name; `config` holds endpoint, access_id, secret_access_key, and, where
    it cannot be found out, tunnel_endpoint. Both endpoints' hosts must be among `allowed`.
    """

    def __init__(
        self, uri: str, config: Mapping[str, Any], allowed: Sequence[str], timeout_seconds: float, batch_rows: int
    ) -> None:
        self._name = uri
        self._config = config
        self._allowed = allowed
        self._timeout_seconds = timeout_seconds
        self._batch_rows = batch_rows

    def check(self) -> None:
        """Raises InvalidArgument for a configuration that can lead nowhere. Connects to nothing."""
        for key in ("endpoint", "access_id", "secret_access_key"):
            if not isinstance(self._config.get(key), str) or not self._config[key]:
                raise invalid("Config", f'needs "{key}" for the driver `{DRIVER}`')
        for key in ("endpoint", "tunnel_endpoint"):
            if key in self._config:
                self._check_endpoint(key, str(self._config[key]))

    async def tables(self, schema: str = "") -> list[str]:
        """Names, sorted. Raises InvalidArgument, Unavailable."""
        entry = self._entry()

        def names() -> list[str]:
            with self._translated():
                return sorted(table.name for table in entry.list_tables(schema=schema or None))

        return await asyncio.to_thread(names)

    async def open(self, name: str) -> Table:
        """A table's columns; its rows are not here. Raises NotFound, InvalidArgument, Unavailable."""
        return await asyncio.to_thread(self._open, name)

    async def copy(
        self, name: str, columns: Sequence[str], partitions: Mapping[str, Mapping[str, Any]], folder: Path
    ) -> Table:
        """Rows of the given partitions, as Parquet files in the folder. One batch is in memory."""
        return await asyncio.to_thread(self._copy, name, columns, partitions, folder)

    def _open(self, name: str) -> Table:
        with self._translated():
            schema = self._found(name).table_schema
            kinds = pa.schema([(each.name, datatypes.arrow_type(_hive(each))) for each in schema.simple_columns])
            return Table(name, (), kinds, tuple(each.name for each in schema.partitions))

    def _copy(
        self, name: str, columns: Sequence[str], partitions: Mapping[str, Mapping[str, Any]], folder: Path
    ) -> Table:
        opened = self._open(name)
        wanted = pa.schema([column for column in opened.schema if column.name in columns])
        files = []
        with self._translated(), readable():
            table = self._found(name)
            for spec in self._partitions(table, opened, partitions):
                path = new_file(folder)
                text = ",".join(f"{column}='{value}'" for column, value in spec.items()) or None
                with (
                    table.open_reader(partition=text, columns=wanted.names, arrow=True) as reader,
                    pq.ParquetWriter(path, wanted) as writer,
                ):
                    for batch in reader:
                        rows = pa.Table.from_batches([batch]).select(wanted.names).cast(wanted)
                        writer.write_table(rows, row_group_size=self._batch_rows)
                files.append(File(path, spec, text or name))
        if not files:
            raise errors.NotFound(f"table {name} has no such partition", resource="Partition", id=name)
        return Table(name, files, wanted, opened.partition_columns)

    def _partitions(
        self, table: Any, opened: Table, chosen: Mapping[str, Mapping[str, Any]]
    ) -> Iterator[dict[str, str]]:
        if not opened.partition_columns:
            yield {}
            return
        for partition in table.partitions:
            spec = dict(partition.partition_spec.kv)
            if all(partition_chosen(spec[column], one) for column, one in chosen.items() if column in spec):
                yield spec

    def _found(self, name: str) -> Any:
        entry = self._entry()
        if not name or not entry.exist_table(name):
            raise not_found("Table", name)
        return entry.get_table(name)

    def _entry(self) -> Any:
        self.check()
        try:
            odps = importlib.import_module("odps")
        except ImportError:
            raise errors.FailedPrecondition(
                "this deployment reads no MaxCompute: install it with the extra, pip install triglot[maxcompute]"
            ) from None
        odps.options.connect_timeout = odps.options.read_timeout = max(1, round(self._timeout_seconds))
        odps.options.retry_times = _TRIES
        return odps.ODPS(
            self._config["access_id"],
            self._config["secret_access_key"],
            project=self._name,
            endpoint=self._config["endpoint"],
            tunnel_endpoint=self._config.get("tunnel_endpoint"),
        )

    def _check_endpoint(self, key: str, url: str) -> None:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:
            parts, host, port = urlsplit(""), None, 0
        if parts.scheme not in ("http", "https") or not host:
            raise invalid("Config", f'"{key}" must be an http: or https: URL')
        if host not in self._allowed and f"{host}:{port}" not in self._allowed:
            raise invalid("Config", f'"{key}" leads to {host}:{port}, not among TRIGLOT_MANAGEMENT_DATASOURCE_HOSTS')

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """pyodps' errors as ours. Their texts may show what was sent, so only their names are passed on."""
        try:
            yield
        except errors.TriglotError:
            raise
        except OSError as error:  # what requests raises too
            raise errors.Unavailable(
                f"MaxCompute cannot be reached ({type(error).__name__})", dependency="maxcompute"
            ) from None
        except Exception as error:
            if not type(error).__module__.startswith("odps."):
                raise
            if type(error).__name__ in _PASSING:
                raise errors.Unavailable(
                    f"MaxCompute does not answer now ({type(error).__name__})", dependency="maxcompute"
                ) from None
            raise errors.InvalidArgument(f"MaxCompute refuses: {type(error).__name__}") from None


def _hive(column: Any) -> str:
    """The Hive type of a column; what has none is read as text."""
    try:
        return datatypes.parse(str(column.type)).hive
    except errors.InvalidArgument:
        return "string"
