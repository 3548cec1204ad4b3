# ruff: noqa: S608 - names are quoted, and so are the few texts; DuckDB takes no parameters where they stand
"""DuckDB in a folder of a task: bounded memory, what is more goes to disk, and it can be told to stop.

Reads files of tables as rows with their place, so that of equal rows the one written last can be told.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from chassis import datatypes, errors
from chassis.datatypes import DataType
from services.management.offline import Table

MICROSECONDS = 1_000_000
_DUCK = {
    "tinyint": "TINYINT", "smallint": "SMALLINT", "int": "INTEGER", "bigint": "BIGINT", "float": "FLOAT",
    "double": "DOUBLE", "boolean": "BOOLEAN", "string": "VARCHAR", "timestamp": "TIMESTAMPTZ",
}  # fmt: skip


@dataclass(frozen=True)
class Time:
    """Since when a row holds, or when a label was: a column, or one time for all rows."""

    column: str = ""
    # The column counts seconds, not PAI's milliseconds.
    seconds: bool = False
    at: datetime | None = None


class Interrupted(Exception):
    """The work was told to stop."""


@dataclass
class Workspace:
    """One database. Opened once, by `opened`, for the time of its work; all of it blocks: use it in a thread."""

    scratch: Path
    memory_mb: int
    threads: int
    _stopped: threading.Event = field(default_factory=threading.Event)
    _connection: Any = None

    def interrupt(self) -> None:
        """End what is run, and all that is run from now on, with Interrupted. From any thread."""
        self._stopped.set()
        connection = self._connection
        if connection is not None:
            connection.interrupt()

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Raises InvalidArgument for values that do not fit, FailedPrecondition where memory does not suffice."""
        with _translated():
            database = duckdb.connect(
                self.scratch / "work.duckdb",
                config={
                    "memory_limit": f"{self.memory_mb}MB",
                    "threads": self.threads,
                    "temp_directory": str(self.scratch / "spilled"),
                    "preserve_insertion_order": False,
                    "autoinstall_known_extensions": False,
                    "autoload_known_extensions": False,
                },
            )
            self._connection = database
            try:
                database.execute("SET TimeZone = 'UTC'")
                yield
            finally:
                self._connection = None
                database.close()

    def run(self, statement: str, parameters: Sequence[Any] = ()) -> Any:
        """Run one statement; its cursor."""
        if self._stopped.is_set():
            raise Interrupted
        return self._connection.execute(statement, list(parameters))

    def rows_of(self, number: int, table: Table) -> str:
        """The rows of a table with `ordinal`, which rises from file to file, and the columns that are folders."""
        name = f"files{number}"
        folders = "".join(f", {quoted(column)} VARCHAR" for column in table.partition_columns)
        self.run(f"CREATE OR REPLACE TABLE {name} (triglot_file VARCHAR, ordinal BIGINT{folders})")
        marks = ", ".join("?" * (2 + len(table.partition_columns)))
        for ordinal, file in enumerate(table.files):
            values = [file.partition[column] for column in table.partition_columns]
            self.run(f"INSERT INTO {name} VALUES ({marks})", [str(file.path), ordinal, *values])
        paths = ", ".join(text(str(file.path)) for file in table.files)
        excluded = [name for name in table.partition_columns if name in table.schema.names]
        hidden = f" EXCLUDE ({', '.join(map(quoted, excluded))})" if excluded else ""
        return (
            f"(SELECT rows.*{hidden}, files.* EXCLUDE (triglot_file) FROM read_parquet([{paths}], "
            f"union_by_name = true, hive_partitioning = false, filename = 'triglot_file', file_row_number = true) "
            f"AS rows JOIN {name} AS files USING (triglot_file))"
        )

    def where(self, partitions: Mapping[str, Mapping[str, Any]], table: Table) -> str:
        """The condition on those partition columns that are no folders: of folders only the chosen ones are read."""
        conditions = []
        for column, chosen in partitions.items():
            if column in table.partition_columns:
                continue
            value = f"CAST({quoted(column)} AS VARCHAR)"
            if "value" in chosen or "values" in chosen:
                values = chosen["values"] if "values" in chosen else [chosen["value"]]
                conditions.append(f"{value} IN ({', '.join(map(text, values))})")
                continue
            conditions.append(f"{value} >= {text(chosen['start_value'])}")
            if chosen["end_value"]:
                conditions.append(f"{value} <= {text(chosen['end_value'])}")
        return f" WHERE {' AND '.join(conditions)}" if conditions else ""


@contextmanager
def _translated() -> Iterator[None]:
    """DuckDB's errors as ours."""
    try:
        yield
    except duckdb.InterruptException:
        raise Interrupted from None
    except duckdb.OutOfMemoryException:
        raise errors.FailedPrecondition(
            "the join needs more memory than TRIGLOT_MANAGEMENT_TRAINING_MEMORY_MB allows"
        ) from None
    except duckdb.IOException as error:
        raise errors.Unavailable(
            f"a table cannot be read or written: {_line(error)}", dependency="offline table"
        ) from None
    except (duckdb.DataError, duckdb.ProgrammingError, duckdb.NotSupportedError) as error:
        raise errors.InvalidArgument(f"the tables cannot be joined: {_line(error)}") from None


def _line(error: Exception) -> str:
    return str(error).splitlines()[0]


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def time_of(time: Time, table: Table) -> str:
    """A row's time as microseconds since 1970."""
    if time.at is not None:
        return f"{round(time.at.timestamp() * MICROSECONDS)}::BIGINT"
    column = quoted(time.column)
    kind = table.schema.field(time.column).type if time.column in table.schema.names else pa.string()
    if pa.types.is_integer(kind):
        return f"CAST({column} AS BIGINT) * {MICROSECONDS if time.seconds else 1000}"
    return f"epoch_us(CAST({column} AS TIMESTAMPTZ))"


def cast(name: str, kind: str, table: Table) -> str:
    """A column as its PAI type; without one as it is."""
    column = quoted(name)
    if not kind:
        return column
    held = table.schema.field(name).type if name in table.schema.names else pa.string()
    wanted = datatypes.parse(datatypes.hive_of_pai(kind))
    if wanted.kind == "timestamp" and pa.types.is_integer(held):
        return f"make_timestamptz(CAST({column} AS BIGINT) * 1000)"  # PAI's timestamps are milliseconds
    if wanted.kind == "bigint" and pa.types.is_timestamp(held):
        return f"epoch_ms(CAST({column} AS TIMESTAMPTZ))"
    return f"CAST({column} AS {_duck(wanted)})"


def _duck(kind: DataType) -> str:
    if kind.kind == "array":
        return f"{_duck(kind.children[0])}[]"
    if kind.kind == "map":
        return f"MAP({_duck(kind.children[0])}, {_duck(kind.children[1])})"
    return _DUCK[kind.kind]
