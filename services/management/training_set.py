# ruff: noqa: S608 - names are quoted, and so are the few texts; DuckDB takes no parameters where they stand
"""A training set in the making: DuckDB joins, in a database of its own on disk, with bounded memory.

Table `s` holds what is joined so far: the label's time `t`, its columns, and those of each view as its turn comes.
All of it blocks: use it in a thread.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from chassis import datatypes, errors
from chassis.datatypes import DataType
from services.management.offline import NewFile, Table
from services.management.training import Join, Plan, Reading, Time

_MICROSECONDS = 1_000_000
_ROW_GROUP = 100_000
# Of rows that are equal in all else, the one that was written last.
_LAST_FIRST = "part DESC, ordinal DESC, file_row_number DESC"
_DUCK = {
    "tinyint": "TINYINT", "smallint": "SMALLINT", "int": "INTEGER", "bigint": "BIGINT", "float": "FLOAT",
    "double": "DOUBLE", "boolean": "BOOLEAN", "string": "VARCHAR", "timestamp": "TIMESTAMPTZ",
}  # fmt: skip


class Interrupted(Exception):
    """The making of a training set was told to stop."""


@dataclass
class TrainingSet:
    """One attempt at making a training set: go through `steps`, then `target.finish()`.

    `tables` are what `plan.readings` name, with files; `scratch` is a folder for what is spilled.
    """

    plan: Plan
    tables: Sequence[Table]
    target: NewFile
    scratch: Path
    memory_mb: int
    threads: int
    task_id: int
    # Of the label table, once they are counted, and through how many parts of the work they have gone.
    rows: int = 0
    passed: int = 0
    _stopped: threading.Event = field(default_factory=threading.Event)
    _connection: Any = None

    def interrupt(self) -> None:
        """End `steps` with Interrupted, whatever it is at. From any thread."""
        self._stopped.set()
        connection = self._connection
        if connection is not None:
            connection.interrupt()

    def steps(self) -> Iterator[str]:
        """Make it: what was done, after each part. Raises InvalidArgument for values that do not fit."""
        with self._database() as database:
            tables = iter(self.tables)
            self._run(database, self._label(database, next(tables)))
            [(self.rows,)] = self._run(database, "SELECT count(*) FROM s").fetchall()
            yield f"{self.rows} rows of label table {self.plan.label.table}"
            for position, join in enumerate(self.plan.joins):
                self._view(database, position, join, [next(tables) for _ in join.readings])
                self.passed += 1
                yield f"view {join.name} joined"
            with self.target.writing() as path:
                columns = ", ".join(
                    f"{_state(*source)} AS {_quoted(name)}" for name, source in self.plan.output.items()
                )
                self._run(
                    database,
                    f"COPY (SELECT {columns} FROM s) TO ? (FORMAT parquet, COMPRESSION zstd, "
                    f"ROW_GROUP_SIZE {_ROW_GROUP}, KV_METADATA {{{_quoted(NewFile.MADE_BY)}: '{int(self.task_id)}'}})",
                    [str(path)],
                )
            self.passed += 1
            yield "written"

    def _label(self, database: Any, table: Table) -> str:
        source = self._source(database, 0, table)
        time = self.plan.time
        columns = [f"{_time(time, table) if time else 'NULL::BIGINT'} AS t"]
        columns += [
            f"{_cast(name, kind, table)} AS {_state(None, name)}" for name, kind in self.plan.label_kinds.items()
        ]
        return f"CREATE TABLE s AS SELECT {', '.join(columns)} FROM {source}{self._where(self.plan.label, table)}"

    def _view(self, database: Any, position: int, join: Join, tables: Sequence[Table]) -> None:
        """Join one view to what there is."""
        key, view_key = _comparable(_state(join.key.view, join.key.column), join.key.kind, join.key_kind)
        parts = []
        for number, (reading, table) in enumerate(zip(join.readings, tables, strict=True)):
            source = self._source(database, number, table)
            names = join.behaviours.columns if join.behaviours else [*join.columns]
            columns = [f"{_cast(join.key_column, join.key_kind, table)} AS k"]
            columns.append(f"{_time(join.time, table) if join.time else 'NULL::BIGINT'} AS t")
            if join.second:
                columns.append(f"{_cast(*join.second, table)} AS k2")
            columns += [f"{_cast(name, join.columns.get(name, ''), table)} AS {_quoted('f.' + name)}" for name in names]
            columns.append(f"{number} AS part, ordinal, file_row_number")
            parts.append(f"SELECT {', '.join(columns)} FROM {source}{self._where(reading, table)}")
        found = " UNION ALL ".join(parts)
        timed = f"k IS NOT NULL{' AND t IS NOT NULL' if join.time else ''}"
        wanted = f"{timed} AND {view_key} IN (SELECT {key} FROM s)"
        if join.behaviours:
            self._run(database, f"CREATE TABLE b AS SELECT * FROM ({found}) WHERE {wanted}")
            self._run(database, join.behaviours.sql(key, view_key, join.oldest_seconds))
            matched = f"LEFT JOIN v ON {key} = v.k AND s.t = v.t"
            fresh = ""
        else:
            same = "k, k2, t" if join.second else "k, t"
            self._run(
                database,
                f"CREATE TABLE v AS SELECT * EXCLUDE (part, ordinal, file_row_number) FROM ({found}) WHERE {wanted} "
                f"QUALIFY row_number() OVER (PARTITION BY {same} ORDER BY {_LAST_FIRST}) = 1",
            )
            equal = [f"{key} = {'v.k' if view_key == 'k' else 'CAST(v.k AS VARCHAR)'}"]
            if join.second:
                label, own = _comparable(
                    _state(None, join.second[0]), self.plan.label_kinds[join.second[0]], join.second[1]
                )
                equal.append(f"{label} = {'v.k2' if own == 'k' else 'CAST(v.k2 AS VARCHAR)'}")
            kind = ""
            if join.time:
                equal.append("s.t = v.t" if join.equal else "s.t >= v.t")
                kind = "" if join.equal else "ASOF "
            matched = f"{kind}LEFT JOIN v ON {' AND '.join(equal)}"
            oldest = join.oldest_seconds * _MICROSECONDS
            fresh = f"v.t >= s.t - {oldest}" if join.time and oldest else ""
        columns = [
            f"{f'CASE WHEN {fresh} THEN {value} END' if fresh else value} AS {_state(position, name)}"
            for name, value in ((name, f"v.{_quoted('f.' + name)}") for name in join.columns)
        ]
        self._run(database, f"CREATE TABLE n AS SELECT s.*{''.join(f', {each}' for each in columns)} FROM s {matched}")
        for statement in ("DROP TABLE s", "DROP TABLE v", "DROP TABLE IF EXISTS b", "ALTER TABLE n RENAME TO s"):
            self._run(database, statement)

    def _source(self, database: Any, number: int, table: Table) -> str:
        """The rows of a table with `ordinal`, which rises from file to file, and the columns that are folders."""
        name = f"files{number}"
        folders = "".join(f", {_quoted(column)} VARCHAR" for column in table.partition_columns)
        self._run(database, f"CREATE OR REPLACE TABLE {name} (triglot_file VARCHAR, ordinal BIGINT{folders})")
        marks = ", ".join("?" * (2 + len(table.partition_columns)))
        for ordinal, file in enumerate(table.files):
            values = [file.partition[column] for column in table.partition_columns]
            self._run(database, f"INSERT INTO {name} VALUES ({marks})", [str(file.path), ordinal, *values])
        paths = ", ".join(_text(str(file.path)) for file in table.files)
        excluded = [name for name in table.partition_columns if name in table.schema.names]
        hidden = f" EXCLUDE ({', '.join(map(_quoted, excluded))})" if excluded else ""
        return (
            f"(SELECT rows.*{hidden}, files.* EXCLUDE (triglot_file) FROM read_parquet([{paths}], "
            f"union_by_name = true, hive_partitioning = false, filename = 'triglot_file', file_row_number = true) "
            f"AS rows JOIN {name} AS files USING (triglot_file))"
        )

    def _where(self, reading: Reading, table: Table) -> str:
        """The condition on those partition columns that are no folders: of folders only the chosen ones are read."""
        conditions = []
        for column, chosen in reading.partitions.items():
            if column in table.partition_columns:
                continue
            value = f"CAST({_quoted(column)} AS VARCHAR)"
            if "value" in chosen or "values" in chosen:
                values = chosen["values"] if "values" in chosen else [chosen["value"]]
                conditions.append(f"{value} IN ({', '.join(map(_text, values))})")
                continue
            conditions.append(f"{value} >= {_text(chosen['start_value'])}")
            if chosen["end_value"]:
                conditions.append(f"{value} <= {_text(chosen['end_value'])}")
        return f" WHERE {' AND '.join(conditions)}" if conditions else ""

    def _run(self, database: Any, statement: str, parameters: Sequence[Any] = ()) -> Any:
        if self._stopped.is_set():
            raise Interrupted
        return database.execute(statement, list(parameters))

    @contextmanager
    def _database(self) -> Iterator[Any]:
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
                yield database
            finally:
                self._connection = None
                database.close()


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


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _state(view: int | None, column: str) -> str:
    """The name of a column in what is joined so far."""
    return _quoted(f"label.{column}" if view is None else f"{view}.{column}")


def _comparable(left: str, left_kind: str, right_kind: str) -> tuple[str, str]:
    """Two keys as they are compared; the second one is the column `k`. Those of unlike types are compared as texts."""
    numbers = ("INT32", "INT64")
    if left_kind == right_kind or (left_kind in numbers and right_kind in numbers):
        return left, "k"
    return f"CAST({left} AS VARCHAR)", "CAST(k AS VARCHAR)"


def _time(time: Time, table: Table) -> str:
    """A row's time as microseconds since 1970."""
    if time.at is not None:
        return f"{round(time.at.timestamp() * _MICROSECONDS)}::BIGINT"
    column = _quoted(time.column)
    kind = table.schema.field(time.column).type if time.column in table.schema.names else pa.string()
    if pa.types.is_integer(kind):
        return f"CAST({column} AS BIGINT) * {_MICROSECONDS if time.seconds else 1000}"
    return f"epoch_us(CAST({column} AS TIMESTAMPTZ))"


def _cast(name: str, kind: str, table: Table) -> str:
    """A column as its PAI type; without one as it is."""
    column = _quoted(name)
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
