# ruff: noqa: S608 - names are quoted, and so are the few texts; DuckDB takes no parameters where they stand
"""A training set in the making: DuckDB joins what is read, view by view.

Table `s` holds what is joined so far: the label's time `t`, its columns, and those of each view as its turn comes.
All of it blocks: use it in a thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from services.management.offline import NewFile, Table
from services.management.training import Join, Plan
from services.management.workspace import MICROSECONDS, Workspace, cast, quoted, time_of

_ROW_GROUP = 100_000
# Of rows that are equal in all else, the one that was written last.
_LAST_FIRST = "part DESC, ordinal DESC, file_row_number DESC"


@dataclass
class TrainingSet:
    """One attempt at making a training set: go through `steps`, then `target.finish()`.

    `tables` are what `plan.readings` name, with files.
    """

    plan: Plan
    tables: Sequence[Table]
    target: NewFile
    workspace: Workspace
    task_id: int
    # Of the label table, once they are counted, and through how many parts of the work they have gone.
    rows: int = 0
    passed: int = 0

    def steps(self) -> Iterator[str]:
        """Make it: what was done, after each part. Raises InvalidArgument for values that do not fit."""
        with self.workspace.opened():
            tables = iter(self.tables)
            self.workspace.run(self._label(next(tables)))
            [(self.rows,)] = self.workspace.run("SELECT count(*) FROM s").fetchall()
            yield f"{self.rows} rows of label table {self.plan.label.table}"
            for position, join in enumerate(self.plan.joins):
                self._view(position, join, [next(tables) for _ in join.readings])
                self.passed += 1
                yield f"view {join.name} joined"
            with self.target.writing() as path:
                columns = ", ".join(f"{_state(*source)} AS {quoted(name)}" for name, source in self.plan.output.items())
                self.workspace.run(
                    f"COPY (SELECT {columns} FROM s) TO ? (FORMAT parquet, COMPRESSION zstd, "
                    f"ROW_GROUP_SIZE {_ROW_GROUP}, KV_METADATA {{{quoted(NewFile.MADE_BY)}: '{int(self.task_id)}'}})",
                    [str(path)],
                )
            self.passed += 1
            yield "written"

    def _label(self, table: Table) -> str:
        source = self.workspace.rows_of(0, table)
        time = self.plan.time
        columns = [f"{time_of(time, table) if time else 'NULL::BIGINT'} AS t"]
        columns += [
            f"{cast(name, kind, table)} AS {_state(None, name)}" for name, kind in self.plan.label_kinds.items()
        ]
        where = self.workspace.where(self.plan.label.partitions, table)
        return f"CREATE TABLE s AS SELECT {', '.join(columns)} FROM {source}{where}"

    def _view(self, position: int, join: Join, tables: Sequence[Table]) -> None:
        """Join one view to what there is."""
        key, view_key = _comparable(_state(join.key.view, join.key.column), join.key.kind, join.key_kind)
        parts = []
        for number, (reading, table) in enumerate(zip(join.readings, tables, strict=True)):
            source = self.workspace.rows_of(number, table)
            names = join.behaviours.columns if join.behaviours else [*join.columns]
            columns = [f"{cast(join.key_column, join.key_kind, table)} AS k"]
            columns.append(f"{time_of(join.time, table) if join.time else 'NULL::BIGINT'} AS t")
            if join.second:
                columns.append(f"{cast(*join.second, table)} AS k2")
            columns += [f"{cast(name, join.columns.get(name, ''), table)} AS {quoted('f.' + name)}" for name in names]
            columns.append(f"{number} AS part, ordinal, file_row_number")
            parts.append(f"SELECT {', '.join(columns)} FROM {source}{self.workspace.where(reading.partitions, table)}")
        found = " UNION ALL ".join(parts)
        timed = f"k IS NOT NULL{' AND t IS NOT NULL' if join.time else ''}"
        wanted = f"{timed} AND {view_key} IN (SELECT {key} FROM s)"
        if join.behaviours:
            self.workspace.run(f"CREATE TABLE b AS SELECT * FROM ({found}) WHERE {wanted}")
            self.workspace.run(join.behaviours.sql(key, view_key, join.oldest_seconds))
            matched = f"LEFT JOIN v ON {key} = v.k AND s.t = v.t"
            fresh = ""
        else:
            same = "k, k2, t" if join.second else "k, t"
            self.workspace.run(
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
            oldest = join.oldest_seconds * MICROSECONDS
            fresh = f"v.t >= s.t - {oldest}" if join.time and oldest else ""
        columns = [
            f"{f'CASE WHEN {fresh} THEN {value} END' if fresh else value} AS {_state(position, name)}"
            for name, value in ((name, f"v.{quoted('f.' + name)}") for name in join.columns)
        ]
        self.workspace.run(f"CREATE TABLE n AS SELECT s.*{''.join(f', {each}' for each in columns)} FROM s {matched}")
        for statement in ("DROP TABLE s", "DROP TABLE v", "DROP TABLE IF EXISTS b", "ALTER TABLE n RENAME TO s"):
            self.workspace.run(statement)


def _state(view: int | None, column: str) -> str:
    """The name of a column in what is joined so far."""
    return quoted(f"label.{column}" if view is None else f"{view}.{column}")


def _comparable(left: str, left_kind: str, right_kind: str) -> tuple[str, str]:
    """Two keys as they are compared; the second one is the column `k`. Those of unlike types are compared as texts."""
    numbers = ("INT32", "INT64")
    if left_kind == right_kind or (left_kind in numbers and right_kind in numbers):
        return left, "k"
    return f"CAST({left} AS VARCHAR)", "CAST(k AS VARCHAR)"
