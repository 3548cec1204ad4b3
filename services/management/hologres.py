"""A Hologres database, which is any that speaks PostgreSQL's protocol: tried step by step, and its tables read.

Names of tables and columns stand in SQL through `quoted` only, values never do.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pyarrow as pa
import pyarrow.parquet as pq

from chassis import datatypes, errors
from services.management.inputs import invalid, not_found
from services.management.offline import File, Table, new_file, readable
from services.management.rows import Row

TYPE = "Hologres"
_PORT = 80
PUBLIC = "public"
_CREATE = "SELECT has_schema_privilege('public', 'CREATE')"
# More bytes than that PostgreSQL cuts off, and two names become one.
_MAX_IDENTIFIER = 63

# Tables, partitioned and foreign ones, views: whatever can be read.
_TABLES = """
SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relkind = ANY('{r,p,v,m,f}') AND NOT c.relispartition
  AND has_table_privilege(c.oid, 'SELECT') ORDER BY c.relname LIMIT $2
"""
COLUMNS = """
SELECT a.attname AS name, format_type(a.atttypid, a.atttypmod) AS type,
       coalesce(a.attnum = ANY(i.indkey), false) AS is_key, obj_description(c.oid, 'pg_class') AS comment
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary
WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind = ANY('{r,p,v,m,f}') ORDER BY a.attnum
"""
_MAX_TABLES = 100_000

_PASSING = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.QueryCanceledError,
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
)


class Unusable(Exception):
    """What keeps a database from being used: the step that failed, and why. Never holds a password."""


def quoted(name: str) -> str:
    """A name as an identifier. Raises InvalidArgument for one that PostgreSQL cannot have."""
    if not name or "\0" in name or len(name.encode("utf-8", "replace")) > _MAX_IDENTIFIER or not _encodes(name):
        raise errors.InvalidArgument(
            f"{name[:100]!r} cannot be a name in Hologres: it takes 1 to 63 bytes, without NUL"
        )
    return '"' + name.replace('"', '""') + '"'


def _encodes(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def keeps(view: Row) -> bool:
    """Whether a view's online rows are in Hologres. False for a row that was read without its online datasource."""
    return bool(view.get("online_type") == TYPE and not view["write_to_featuredb"])


@dataclass(frozen=True)
class Place:
    """Where a database is, and who is let in."""

    host: str
    port: int
    database: str
    user: str
    password: str

    @property
    def arguments(self) -> dict[str, Any]:
        """What asyncpg connects with."""
        return {
            "host": self.host,
            "port": self.port,
            "user": self.user,
            "password": self.password,
            "database": self.database,
            # A pool between us and the server, as Hologres may have one, knows no prepared statements of ours.
            "statement_cache_size": 0,
        }


def place_of(uri: str, config: Mapping[str, Any], allowed: Sequence[str]) -> Place:
    """Where `uri`, which is `instance/database`, leads to. `allowed` are the hosts, as `host` or `host:port`, that may
    be connected to. Raises Unusable."""
    _, slash, database = uri.partition("/")
    if not slash or not database:
        raise Unusable("Uri: must be instance/database")
    host, port = config.get("host"), str(config.get("port", _PORT))
    if not isinstance(host, str) or not host:
        raise Unusable('Config: needs "host"')
    if not port.isdecimal() or not 0 < int(port) < 65_536:
        raise Unusable('Config: "port" must be 1 to 65535')
    if host not in allowed and f"{host}:{port}" not in allowed:
        raise Unusable(f"host: {host}:{port} is not among TRIGLOT_MANAGEMENT_DATASOURCE_HOSTS")
    return Place(host, int(port), database, str(config.get("user", "")), str(config.get("password", "")))


async def check(uri: str, config: Mapping[str, Any], allowed: Sequence[str], timeout_seconds: float) -> None:
    """Resolve, connect, log in and ask for the right to create tables. Raises Unusable."""
    place = place_of(uri, config, allowed)
    step = "name"
    try:
        async with asyncio.timeout(timeout_seconds):
            await asyncio.get_running_loop().getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
            step = "port"
            _, writer = await asyncio.open_connection(place.host, place.port)
            writer.close()
            step = "login"
            connection = await asyncpg.connect(**place.arguments, timeout=timeout_seconds)
            try:
                step = "permission"
                if not await connection.fetchval(_CREATE):
                    raise Unusable(f"permission: this user may not create tables in database {place.database}")
            finally:
                connection.terminate()
    except TimeoutError:
        raise Unusable(f"{step}: no answer within {timeout_seconds:g} s") from None
    except asyncpg.InvalidCatalogNameError:
        raise Unusable(f"database: there is no database {place.database}") from None
    except asyncpg.InvalidAuthorizationSpecificationError:
        raise Unusable("login: user or password is refused") from None
    except asyncpg.InsufficientPrivilegeError:
        raise Unusable(f"permission: this user may not use database {place.database}") from None
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
        # The text of the error may show what was sent.
        raise Unusable(f"{step}: {getattr(error, 'strerror', None) or type(error).__name__}") from None


@contextmanager
def translated() -> Iterator[None]:
    """Faults of the database as our errors: what may pass is Unavailable, what will not InvalidArgument. Their texts
    quote no rows and no passwords."""
    try:
        yield
    except Unusable as error:
        raise invalid("Config", f"of the {TYPE} datasource cannot be used: {error}") from None
    except _PASSING as error:
        raise errors.Unavailable(f"{TYPE} cannot be reached ({type(error).__name__})", dependency="hologres") from None
    except asyncpg.UndefinedTableError:
        raise errors.NotFound("the table is not there any more", resource="Table") from None
    except asyncpg.PostgresError as error:
        raise errors.InvalidArgument(f"{TYPE} refuses: {type(error).__name__.removesuffix('Error')}") from None


class Hologres:
    """One database. Connects for each call, within `timeout_seconds`; raises what `translated` says."""

    def __init__(
        self, uri: str, config: Mapping[str, Any], allowed: Sequence[str], timeout_seconds: float, batch_rows: int
    ) -> None:
        self._reach = (uri, config, allowed)
        self.timeout_seconds = timeout_seconds
        self._batch_rows = batch_rows

    def check(self) -> None:
        """Raises InvalidArgument unless the configuration leads somewhere that may be connected to."""
        with translated():
            place_of(*self._reach)

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[asyncpg.Connection]:
        with translated():
            place = place_of(*self._reach)
            connection = await asyncpg.connect(**place.arguments, timeout=self.timeout_seconds)
            try:
                yield connection
            finally:
                # Not closed politely: a statement under way must not be waited for when its task is stopped.
                connection.terminate()

    async def tables(self, schema: str = "") -> list[str]:
        """Names of what can be read in a schema, sorted; in another one than `public` as `schema.table`."""
        async with self.connected() as connection:
            rows = await connection.fetch(_TABLES, schema or PUBLIC, _MAX_TABLES, timeout=self.timeout_seconds)
        prefix = f"{schema}." if schema not in ("", PUBLIC) else ""
        return [prefix + row["relname"] for row in rows]

    async def open(self, name: str) -> Table:
        """A table's columns; its rows are not here. Raises NotFound."""
        async with self.connected() as connection:
            _, _, columns = await self._found(connection, name)
        return Table(name, (), _schema(columns), (), tuple(row["name"] for row in columns if row["is_key"]))

    async def copy(
        self, name: str, columns: Sequence[str], partitions: Mapping[str, Mapping[str, Any]], folder: Path
    ) -> Table:
        """Rows of a table, those of the given partitions, as a Parquet file in the folder. One batch is in memory."""
        async with self.connected() as connection:
            schema_name, table_name, found = await self._found(connection, name)
            held = [row for row in found if row["name"] in columns]
            schema = _schema(held)
            where, values = _where(partitions)
            statement = (
                f"SELECT {', '.join(_selected(row) for row in held)} "  # noqa: S608 - quoted names, no values
                f"FROM {quoted(schema_name)}.{quoted(table_name)}{where}"
            )
            path = new_file(folder)
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                cursor = connection.cursor(statement, *values, prefetch=self._batch_rows)
                with pq.ParquetWriter(path, schema) as writer:
                    rows: list[Any] = []
                    async for row in cursor:
                        rows.append(row)
                        if len(rows) == self._batch_rows:
                            await asyncio.to_thread(_write, writer, rows, schema)
                            rows = []
                    await asyncio.to_thread(_write, writer, rows, schema)
        return Table(name, (File(path, {}, name),), schema, ())

    async def _found(self, connection: asyncpg.Connection, name: str) -> tuple[str, str, list[Any]]:
        """Schema, name and columns of a table."""
        prefix, dot, rest = name.partition(".")
        for schema_name, table_name in ((PUBLIC, name), (prefix, rest)) if dot else ((PUBLIC, name),):
            if "\0" in name:
                break
            rows = await connection.fetch(COLUMNS, schema_name, table_name, timeout=self.timeout_seconds)
            if rows:
                return schema_name, table_name, rows
        raise not_found("Table", name)


def _hive(row: Any) -> str:
    """The Hive type of a column; what has none is read as text."""
    try:
        return datatypes.hive_of_postgres(row["type"])
    except errors.InvalidArgument:
        return "string"


def _schema(columns: Sequence[Any]) -> pa.Schema:
    return pa.schema([(row["name"], datatypes.arrow_type(_hive(row))) for row in columns])


def _selected(row: Any) -> str:
    return f"{quoted(row['name'])}{'::text' if _hive(row) == 'string' else ''}"


def _where(partitions: Mapping[str, Mapping[str, Any]]) -> tuple[str, list[Any]]:
    """The condition that partitions make, and its arguments. They are compared as texts, byte by byte."""
    conditions: list[str] = []
    values: list[Any] = []

    def add(column: str, operator: str, value: Any) -> None:
        values.append(value)
        conditions.append(f'{quoted(column)}::text COLLATE "C" {operator.format(f"${len(values)}")}')

    for column, chosen in partitions.items():
        if "value" in chosen or "values" in chosen:
            add(column, "= ANY({}::text[])", chosen["values"] if "values" in chosen else [chosen["value"]])
            continue
        add(column, ">= {}::text", chosen["start_value"])
        if chosen["end_value"]:
            add(column, "<= {}::text", chosen["end_value"])
    return f" WHERE {' AND '.join(conditions)}" if conditions else "", values


def _write(writer: pq.ParquetWriter, rows: Sequence[Any], schema: pa.Schema) -> None:
    with readable():
        arrays = [pa.array([row[position] for row in rows], column.type) for position, column in enumerate(schema)]
        writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
