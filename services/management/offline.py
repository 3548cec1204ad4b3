"""Offline tables: folders of Parquet files below allowed roots. Knows files, partitions and columns; no catalogue.

A table is `<root>/<table>.parquet`, or the folder `<root>/<table>` with files in it or in `ds=20230820/hour=05`.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.parquet as pq

from chassis import datatypes, errors
from services.management.inputs import invalid, not_found

_SUFFIX = ".parquet"
_MAX_FILES = 100_000
_MAX_DEPTH = 16
_UNFINISHED = ".unfinished-"
_LEFT_BEHIND_SECONDS = 86_400.0


@dataclass(frozen=True)
class File:
    """One file of a table, and the partition it is in."""

    path: Path
    partition: Mapping[str, str]
    # What it is called in messages to people, where that is not the name of the file.
    title: str = ""

    @property
    def shown(self) -> str:
        """What people are told that it is."""
        return self.title or self.path.name


@dataclass(frozen=True)
class Table:
    """A table that was found. Its schema is that of its first file, or what the database says that holds it."""

    name: str
    # Empty where the rows are elsewhere, until they are copied.
    files: Sequence[File]
    schema: pa.Schema
    # Those partition columns that are not among the columns of its rows: folders, outermost first.
    partition_columns: Sequence[str]
    key_columns: Sequence[str] = ()

    def columns(self) -> Iterator[tuple[str, str, list[str]]]:
        """Name, PAI type and attributes of each column, partition columns last. Raises InvalidArgument for a type that
        cannot be served."""
        for field in self.schema:
            if field.name not in self.partition_columns:
                marks = ["PrimaryKey"] if field.name in self.key_columns else []
                yield field.name, datatypes.pai_of_hive(datatypes.hive_of_arrow(field.type)), marks
        for name in self.partition_columns:
            yield name, "STRING", ["Partition"]


class NewFile:
    """The one file that the store writes in a partition: made aside, shown by `finish` in the place of an older one."""

    # In the metadata of the file: the task that made it.
    MADE_BY = "triglot.task"

    def __init__(self, folder: Path, task_id: int, attempt: int) -> None:
        self.path = folder / "data.parquet"
        self.task_id = task_id
        self._folder = folder
        self._task = f"{_UNFINISHED}{task_id}-"
        self.unfinished = folder / f"{self._task}{attempt}{_SUFFIX}"

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """Where to write. It goes if the block raises; so do those of earlier attempts, and old ones of the killed."""
        with readable():
            self._folder.mkdir(parents=True, exist_ok=True)
            for other in self._folder.glob(f"{_UNFINISHED}*"):
                if other.name.startswith(self._task) or time.time() - other.stat().st_mtime > _LEFT_BEHIND_SECONDS:
                    other.unlink(missing_ok=True)
            try:
                yield self.unfinished
            except BaseException:
                self.unfinished.unlink(missing_ok=True)
                raise

    def finish(self) -> None:
        """Show it."""
        with readable():
            self.unfinished.replace(self.path)


class OfflineStore:
    """Reads below the given folders and nowhere else. All of it blocks: call it in a thread."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self._roots = [root.resolve() for root in roots]

    def check(self, config: Mapping[str, Any]) -> None:
        """Raises InvalidArgument for a configuration that names a folder outside, or a driver that is not there."""
        if "root" in config or "driver" in config:
            self._folder(config)

    def tables(self, config: Mapping[str, Any]) -> list[str]:
        """Names of the tables of a datasource, sorted. Raises InvalidArgument, or NotFound without its folder."""
        with readable():
            folder = self._folder(config)
            if not folder.is_dir():
                raise not_found("Folder", folder)
            names = {entry.name.removesuffix(_SUFFIX) for entry in folder.iterdir() if _is_table(entry)}
            return sorted(names)

    def open(self, config: Mapping[str, Any], name: str) -> Table:
        """A table of a datasource. Raises InvalidArgument for a bad name, NotFound without any file of it."""
        with readable():
            return self._open(config, name)

    def file(self, path: str) -> Path:
        """A file by its absolute path or `file:` URL. Raises InvalidArgument, or NotFound without it."""
        if path.startswith("file://"):
            path = unquote(path.removeprefix("file://").removeprefix("localhost"))
        if "://" in path:
            raise invalid("UrlDatasource.Path", "must be a file, or a URL that begins with http:, https: or oss:")
        if "\0" in path or not Path(path).is_absolute():
            raise invalid("UrlDatasource.Path", "must be an absolute path or a file: URL")
        with readable():
            found = Path(path).resolve()
            if not any(root in found.parents for root in self._roots):
                raise invalid(
                    "UrlDatasource.Path", "leads to no place below a folder of TRIGLOT_MANAGEMENT_OFFLINE_ROOTS"
                )
            if not found.is_file():
                raise not_found("File", found.name)
            return found

    def folder(self, config: Mapping[str, Any], name: str, partition: Mapping[str, str]) -> tuple[Path, Path]:
        """Where a table, and the files of one of its partitions, are or will be. Raises InvalidArgument, also where the
        table is there and has other partition columns."""
        _check_table_name(name)
        steps = [f"{column}={quote(value, safe='')}" for column, value in partition.items()]
        if any("/" in step or step[0] in "._" for step in steps):
            raise invalid("Partitions", "name a column that cannot be the name of a folder")
        with readable():
            table = self._allowed(self._folder(config).joinpath(name).resolve())
            found = next(self._files(table, {}, 0), None)
            if found is not None and [*found.partition] != [*partition]:
                raise invalid("Partitions", f"of table {name} are {', '.join(found.partition) or 'none'}")
            return table, self._allowed(table.joinpath(*steps).resolve())

    def remove_made(self, path: Path, table: Path, task_id: int) -> bool:
        """Remove a file that a task of the store wrote, and those folders of its table that it leaves empty. False if
        it is not there, or is not that task's any more. Raises InvalidArgument for one outside."""
        with readable():
            self._allowed(path.resolve())
            if not path.is_file():
                return False
            if (pq.read_schema(path).metadata or {}).get(NewFile.MADE_BY.encode()) != str(task_id).encode():
                return False
            path.unlink()
            folder = path.parent
            while table in (folder, *folder.parents) and not any(folder.iterdir()):
                folder.rmdir()
                folder = folder.parent
            return True

    def _open(self, config: Mapping[str, Any], name: str) -> Table:
        folder = self._folder(config)
        _check_table_name(name)
        single = folder / f"{name}{_SUFFIX}"
        found = [File(single, {})] if single.is_file() else list(self._files(folder / name, {}, 0))
        if not found:
            raise not_found("Table", name)
        for file in found:
            self._allowed(file.path.resolve())
        if any(list(file.partition) != list(found[0].partition) for file in found):
            raise errors.InvalidArgument(f"table {name}: its files are not all partitioned by the same columns")
        schema = pq.read_schema(found[0].path)
        if len(set(schema.names)) < len(schema.names):
            raise errors.InvalidArgument(f"table {name} has two columns of one name")
        return Table(name, found, schema, tuple(found[0].partition))

    def _files(self, folder: Path, partition: Mapping[str, str], depth: int) -> Iterator[File]:
        """Files below a folder, in the order of their partitions and names."""
        if not folder.is_dir() or depth > _MAX_DEPTH:
            return
        for count, entry in enumerate(sorted(folder.iterdir())):
            if count > _MAX_FILES:
                raise errors.InvalidArgument(f"more than {_MAX_FILES} files in one folder")
            if entry.name[0] in "._":
                continue
            if entry.is_file() and entry.suffix == _SUFFIX:
                yield File(entry, partition)
            elif entry.is_dir() and "=" in entry.name:
                column, _, value = entry.name.partition("=")
                yield from self._files(entry, {**partition, column: unquote(value)}, depth + 1)

    def _folder(self, config: Mapping[str, Any]) -> Path:
        driver = config.get("driver", "parquet")
        if driver != "parquet":
            raise invalid(
                "Config", f"names the driver {driver!r}; folders are read and written by the driver `parquet`"
            )
        root = config.get("root")
        if not isinstance(root, str) or not root:
            raise invalid("Config", 'needs "root", the folder of the tables, to read from this datasource')
        if "\0" in root or not Path(root).is_absolute():
            raise invalid("Config", '"root" must be an absolute path')
        return self._allowed(Path(root).resolve())

    def _allowed(self, path: Path) -> Path:
        if not any(path == root or root in path.parents for root in self._roots):
            raise invalid("Config", f"leads to {path}, which is not below a folder of TRIGLOT_MANAGEMENT_OFFLINE_ROOTS")
        return path


def new_file(folder: Path) -> Path:
    """A name for another file in a folder of copies."""
    return folder / f"{len(list(folder.iterdir()))}{_SUFFIX}"


def partition_chosen(value: str | None, chosen: Mapping[str, Any]) -> bool:
    """Whether a partition's value is among those that are chosen, in the form that a task's configuration keeps."""
    if value is None:
        return False
    if "value" in chosen:
        return bool(value == chosen["value"])
    if "values" in chosen:
        return value in chosen["values"]
    start, end = chosen["start_value"], chosen["end_value"]
    return value >= start and (not end or value <= end)


def _check_table_name(name: str) -> None:
    if not name or name.startswith(".") or "/" in name or "\\" in name or not name.isprintable():
        raise invalid("TableName", "is not the name of a table")


def _is_table(entry: Path) -> bool:
    if entry.name[0] in "._":
        return False
    return entry.is_dir() or (entry.is_file() and entry.suffix == _SUFFIX)


# What no file ever has.
_LASTING = (errno.ENAMETOOLONG, errno.ELOOP)


@contextmanager
def readable() -> Iterator[None]:
    """Faults of files and their contents as our errors: what may pass is Unavailable, what will not InvalidArgument."""
    try:
        yield
    except PermissionError as error:
        raise errors.InvalidArgument(f"{_name(error)} may not be read by this process") from None
    except pa.ArrowException as error:
        raise errors.InvalidArgument(f"a file is not the Parquet that it should be: {_line(error)}") from None
    except OSError as error:
        if error.errno in _LASTING:
            raise errors.InvalidArgument(f"{_name(error)[:100]} can be no file: {_line(error)}") from None
        raise errors.Unavailable(f"{_name(error)} cannot be read: {_line(error)}", dependency="offline table") from None


def _name(error: OSError) -> str:
    return Path(str(error.filename)).name if error.filename else "a file"


def _line(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0]
