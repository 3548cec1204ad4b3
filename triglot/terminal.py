"""What commands have in common: options, and how they show things to a person or to a script."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

DataDir = Annotated[Path, typer.Option("--data-dir", help="Where the embedded servers keep their data.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DEFAULT_DATA_DIR = Path(".triglot")

console = Console(highlight=False)


class _RowsPerSecond(ProgressColumn):
    """Of rows only."""

    def render(self, task: Task) -> Text:
        if task.fields["unit"] != "rows" or not task.elapsed:
            return Text()
        return Text(f"{task.completed / task.elapsed:,.0f} rows/s", style="progress.data.speed")


def bars(on: Console) -> Progress:
    """Progress bars, one for each `add_task(description, total=..., unit=...)`, drawn while the block runs."""
    return Progress(
        TextColumn("  {task.description:<16}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeElapsedColumn(),
        _RowsPerSecond(),
        console=on,
    )


def print_json(content: Any) -> None:
    """One line of JSON on standard output."""
    sys.stdout.write(orjson.dumps(content).decode() + "\n")
    sys.stdout.flush()


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns under their names, as wide as they have to be. Numbers stand to the right."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *texts, strict=True)]
    right = [bool(rows) and isinstance(cell, int | float) for cell in (rows[0] if rows else header)]
    for number, line in enumerate([header, *texts]):
        cells = zip(line, widths, right, strict=True)
        text = "  ".join(cell.rjust(width) if at_right else cell.ljust(width) for cell, width, at_right in cells)
        console.print(text.rstrip(), style="bold" if number == 0 else None, markup=False, soft_wrap=True)
