"""Offline tables: folders of Parquet files below allowed roots. Knows files, partitions and columns; no catalogue.

A table is `<root>/<table>.parquet`, or the folder `<root>/<table>` with files in it or in `ds=20230820/hour=05`.
"""

from __future__ import annotations

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


@dataclass(frozen=True)
class File:
    """One file of a table, and the partition it is in."""

    path: Path
    partition: Mapping[str, str]


@dataclass(frozen=True)
class Table:
    """A table that was found. Its schema is that of its first file."""

    name: str
    files: Sequence[File]
    schema: pa.Schema

    @property
    def partition_columns(self) -> list[str]:
        """The partition columns that are folders, outermost first."""
        return list(self.files[0].partition)

    def columns(self) -> Iterator[tuple[str, str, list[str]]]:
        """Name, PAI type and attributes of each column, partition columns last. Raises InvalidArgument for a type that
        cannot be served."""
        for field in self.schema:
            if field.name not in self.files[0].partition:
                yield field.name, datatypes.pai_of_hive(datatypes.hive_of_arrow(field.type)), []
        for name in self.partition_columns:
            yield name, "STRING", ["Partition"]


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
            raise invalid("UrlDatasource.Path", "must be a file; this deployment fetches nothing from elsewhere")
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

    def folder(self, config: Mapping[str, Any], name: str, partition: Mapping[str, str]) -> Path:
        """Where the files of a table's partition are, or will be. Raises InvalidArgument."""
        _check_table_name(name)
        steps = [f"{column}={quote(value, safe='')}" for column, value in partition.items()]
        if any("/" in step or step[0] in "._" for step in steps):
            raise invalid("Partitions", "name a column that cannot be the name of a folder")
        with readable():
            return self._allowed(self._folder(config).joinpath(name, *steps).resolve())

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
        return Table(name, found, schema)

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
            raise invalid("Config", f"names the driver {driver!r}; this deployment has only `parquet`")
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


def _check_table_name(name: str) -> None:
    if not name or name.startswith(".") or "/" in name or "\\" in name or not name.isprintable():
        raise invalid("TableName", "is not the name of a table")


def _is_table(entry: Path) -> bool:
    if entry.name[0] in "._":
        return False
    return entry.is_dir() or (entry.is_file() and entry.suffix == _SUFFIX)


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
        raise errors.Unavailable(f"{_name(error)} cannot be read: {_line(error)}", dependency="offline table") from None


def _name(error: OSError) -> str:
    return Path(str(error.filename)).name if error.filename else "a file"


def _line(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0]
