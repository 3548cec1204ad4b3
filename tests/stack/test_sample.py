"""The sample, loaded by `triglot up` and compared with its source: value by value and type by type."""

from __future__ import annotations

import json
import random
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import httpx2
import pytest

from tests.certificates import make
from tests.stack.conftest import FREE_PORTS, Up
from triglot.embedded import EmbeddedPostgres, EmbeddedRedis
from triglot.sample import definitions, tour
from triglot.sample.tables import source_folder

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]
DRAWN = 1_000

# The same vector, straight from the package's CSV files: none of the loader's own SQL.
SOURCE_SQL = """
WITH f AS (SELECT row_number() OVER () AS flight_id, * FROM read_csv('{flights}', nullstr=['NA', ''], parallel=false))
SELECT f.flight_id, f.carrier, f.origin, f.dest, (f.time_hour AT TIME ZONE 'UTC') + to_minutes(f.minute),
       f.distance, f.dep_delay, p.year, p.manufacturer, p.model, p.engines, p.seats,
       w.temp, w.humid, w.wind_speed, w.precip, w.visib, a.name, a.lat, a.lon, a.alt, a.dst = 'A',
       f.tailnum, f.origin || ' ' || strftime(f.time_hour AT TIME ZONE 'UTC', '%Y-%m-%dT%H'),
       p.tailnum IS NOT NULL AND w.origin IS NOT NULL AND a.faa IS NOT NULL
FROM f
LEFT JOIN read_csv('{planes}', nullstr=['NA', '']) p ON p.tailnum = f.tailnum
LEFT JOIN read_csv('{weather}', nullstr=['NA', '']) w ON w.origin = f.origin AND w.time_hour = f.time_hour
LEFT JOIN read_csv('{airports}', nullstr=['NA', '']) a ON a.faa = f.dest
"""


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Up, dict[str, Any]]]:
    data_dir = tmp_path_factory.mktemp("sample") / "data"
    up = Up(data_dir, *FREE_PORTS)
    try:
        yield up, up.ready(300)
    finally:
        up.stop()
        EmbeddedPostgres(data_dir).destroy()
        EmbeddedRedis(data_dir).destroy()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> duckdb.DuckDBPyConnection:
    folder = source_folder()
    scratch = tmp_path_factory.mktemp("source")
    subprocess.run([sys.executable, "-m", "zipfile", "-e", folder / "flights.csv.zip", scratch], check=True, timeout=60)
    files = {name: folder / f"{name}.csv" for name in ("planes", "weather", "airports")}
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    query = SOURCE_SQL.format(flights=scratch / "flights.csv", **files)
    connection.execute(f"CREATE TABLE expected AS {query}")
    return connection


def test_the_source_has_the_known_gaps(source: duckdb.DuckDBPyConnection) -> None:
    counted = source.execute(
        "SELECT count(*), count(*) FILTER (seats IS NULL), count(*) FILTER (lat IS NULL) FROM expected"
    ).fetchall()[0]
    assert counted == (336_776, 52_606, 7_602)


def test_a_thousand_vectors_equal_their_source(
    sample: tuple[Up, dict[str, Any]], source: duckdb.DuckDBPyConnection
) -> None:
    drawn = random.Random(20131231).sample(range(1, 336_777), DRAWN)
    rows = source.execute("SELECT * FROM expected WHERE flight_id IN (SELECT unnest(?))", [drawn]).fetchall()
    expected = {row[0]: row for row in rows}
    entries = [entry(expected[flight_id]) for flight_id in drawn]
    answer = ask_batch(sample[1], entries)
    statuses = []
    for flight_id, vector, status in zip(drawn, answer["features"], answer["status"], strict=True):
        wanted = [as_json(value) for value in expected[flight_id][:22]]
        assert [(type(value), value) for value in vector] == [(type(value), value) for value in wanted]
        statuses.append(status)
        assert status == ("COMPLETE" if expected[flight_id][24] else "MISSING"), flight_id
    assert {"COMPLETE", "MISSING"} == set(statuses)


def entry(row: tuple[Any, ...]) -> dict[str, Any]:
    """What a caller knows of a flight. A flight without a tail number names no plane."""
    known = {"flight_id": row[0], "tailnum": row[22], "weather_key": row[23], "dest_faa": row[3]}
    return {name: value for name, value in known.items() if value is not None}


def as_json(value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)  # Hopsworks stores booleans as TINYINT
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    return value


def ask_batch(
    endpoints: dict[str, Any], entries: list[dict[str, Any]], trust: ssl.SSLContext | bool = True
) -> dict[str, Any]:
    body = {
        "featureStoreName": "flights",
        "featureViewName": definitions.VIEW,
        "featureViewVersion": 1,
        "entries": entries,
    }
    with httpx2.Client(base_url=endpoints["rest"], timeout=30, verify=trust) as client:
        response = client.post("/0.1.0/batch_feature_store", json=body, headers={"X-API-KEY": endpoints["api_key"]})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_the_label_is_not_served(sample: tuple[Up, dict[str, Any]]) -> None:
    endpoints = sample[1]
    body = {
        "featureStoreName": "flights",
        "featureViewName": definitions.VIEW,
        "featureViewVersion": 1,
        "entries": endpoints["sample"]["entry"],
        "metadataOptions": {"featureName": True, "featureType": True},
    }
    with httpx2.Client(base_url=endpoints["rest"]) as client:
        answer = client.post("/0.1.0/feature_store", json=body, headers={"X-API-KEY": endpoints["api_key"]}).json()
    names = [each["featureName"] for each in answer["metadata"]]
    assert answer["status"] == "COMPLETE"
    assert names[:2] == ["flight_id", "carrier"]
    assert "arr_delay" not in names
    assert len(answer["features"]) == len(names) == 22


def test_the_printed_calls_answer(sample: tuple[Up, dict[str, Any]]) -> None:
    """The three calls of the tour, pasted into a shell; where there is no curl, sent as they are printed."""
    expected = {"Hopsworks": b'"COMPLETE"', "Feast": b'"joinKey"', "PAI": b"BOEING"}
    called = tour.sample_calls(sample[1])
    assert [call.dialect.split()[0].rstrip(":") for call in called] == list(expected)
    for call, part in zip(called, expected.values(), strict=True):
        assert part in answered(call)


def answered(call: tour.Call) -> bytes:
    if shutil.which("curl"):
        return subprocess.run(["bash", "-c", call.curl()], capture_output=True, timeout=20, check=True).stdout
    content = json.dumps(call.body) if call.body else None
    with httpx2.Client() as client:
        return client.request(call.method, call.url, headers=dict(call.headers), content=content).content


def test_the_same_definitions_stand_in_feasts_registry(sample: tuple[Up, dict[str, Any]]) -> None:
    endpoints = sample[1]
    headers = {"Authorization": f"Bearer {endpoints['api_key']}"}
    with httpx2.Client(base_url=endpoints["rest"], headers=headers) as client:
        views = client.get("/api/v1/feature_views", params={"project": "flights"}).json()["featureViews"]
        service = client.get("/api/v1/feature_services/flight_delay", params={"project": "flights"}).json()
    names = {"flights", "planes", "weather", "airports", "carrier_stats", "route_stats"}
    assert {view["spec"]["name"] for view in views} == names
    assert [each["featureViewName"] for each in service["spec"]["features"]] == [use.table for use in definitions.USES]


def test_the_second_start_loads_nothing(sample: tuple[Up, dict[str, Any]]) -> None:
    """It stops the stack of the others and starts it again."""
    up, first = sample
    up.stop()
    again = Up(up.data_dir, *FREE_PORTS)
    endpoints = again.ready()
    answer = ask_batch(endpoints, [first["sample"]["entry"]])
    code, output = again.stop()
    assert code == 0
    assert answer["status"] == ["COMPLETE"]
    assert "writing Parquet" not in output


def test_what_was_wiped_is_loaded_again(sample: tuple[Up, dict[str, Any]], tmp_path: Path) -> None:
    """Last in this file, for it wipes Redis. With TLS at another address, where loader and worker have to work too."""
    up, first = sample
    up.stop()
    shutil.rmtree(up.data_dir / "redis")
    certificate = make(tmp_path)
    again = Up(up.data_dir, *FREE_PORTS, "--host=127.0.0.2", *certificate.options())
    endpoints = again.ready(300)
    trust = certificate.trust()
    trust.check_hostname = False  # it does not name 127.0.0.2
    answer = ask_batch(endpoints, [first["sample"]["entry"]], trust)
    code, output = again.stop()
    assert code == 0
    assert "writing Parquet" in output
    assert answer["status"] == ["COMPLETE"]
    assert f"--cacert {certificate.certificate}" in output
