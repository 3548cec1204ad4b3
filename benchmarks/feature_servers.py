"""Who is asked for feature vectors: a bare Redis client, Feast's feature server, Triglot in five ways.

All read one Redis, which holds the same rows in Triglot's layout and in Feast's.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import socket
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import grpc
import pyarrow as pa
import pyarrow.parquet as pq
import redis

from benchmarks import harness, processes
from benchmarks.empty import GRPC_METHOD
from benchmarks.harness import Http, NoAnswer, Refused, progress
from benchmarks.processes import ROOT, Family, Process
from benchmarks.vectors import GROUPS, KEY, STORE, VIEWS, Shape, View
from protos.gen.triglot.serving.v1 import feature_group_pb2, feature_view_pb2, vector_pb2
from protos.gen.triglot.serving.v1 import serving_service_pb2 as rpc
from protos.gen.triglot.serving.v1.serving_service_pb2_grpc import ServingServiceStub
from protos.gen.triglot.serving.v1.value_pb2 import Value

TRIGLOT = ROOT / ".venv" / "bin" / "triglot"
FEAST = ROOT / ".venv-feast-bench" / "bin"
PLAYER = Path(__file__).with_name("vectors.lua")
BARE, EMPTY, EMPTY_GRPC, FEAST_REST = "bare Redis", "empty handler", "empty gRPC", "Feast"
ONE_PROCESS, GRPC_HOP, GRPC = "one process", "gateway + gRPC", "gRPC"
# The same with two workers that share the ports.
TWO_PROCESSES, GRPC_TWO = "two processes", "gRPC, two processes"
_START_SECONDS = 300.0
_CALL_SECONDS = 300.0
_ROWS_OF_A_STREAM = 10_000
_SAMPLE_REQUESTS = 200

Vectors = list[list[object]]
Figures = dict[str, float]  # requests, seconds, failed, p50_ms, p99_ms, cpu_seconds

FEAST_SETTINGS = """\
project: {project}
provider: local
registry: registry.db
offline_store:
  type: file
online_store:
  type: redis
  connection_string: "{host}:{port},password={password}"
entity_key_serialization_version: 3
"""


class Server(Protocol):
    """What is measured."""

    name: str

    def read(self, view: View, keys: Sequence[int]) -> Vectors:
        """The vectors of those keys, by one request. Raises Refused and NoAnswer."""

    def prepare(self, shape: Shape, rows: int) -> None:
        """Get ready for `storm`."""

    def storm(self, connections: int, seconds: int) -> Figures:
        """Requests of the shape that it was prepared for, without a pause, each connection one at a time."""


# ---- the floor ----


class Bare:
    """redis-py with hiredis, in a process of its own."""

    name = BARE

    def __init__(self, url: str, folder: Path) -> None:
        self._url = url
        self._file = folder / "bare.txt"
        self._client = redis.Redis.from_url(url)

    def read(self, view: View, keys: Sequence[int]) -> Vectors:
        found: Any = self._client.mget(self._keys(view, keys))
        parts = [[json.loads(each) for each in row.split(b"\n")[2:]] for row in found]
        count = len(view.groups)
        return [list(chain(*parts[first : first + count])) for first in range(0, len(parts), count)]

    def prepare(self, shape: Shape, rows: int) -> None:
        self._file.write_text("".join(json.dumps(self._keys(shape.view, keys)) + "\n" for keys in shape.requests(rows)))

    def storm(self, connections: int, seconds: int) -> Figures:
        return _figures(
            sys.executable, "-m", "benchmarks.bare_redis", self._url, self._file, str(connections), str(seconds)
        )

    def _keys(self, view: View, keys: Sequence[int]) -> list[str]:
        return [f"{self._prefixes[GROUPS.index(group)]}{key}" for key in keys for group in view.groups]

    @cached_property
    def _prefixes(self) -> list[str]:
        """Of the groups: their row sets are numbered as they were made."""
        found = [re.fullmatch(r"(.*:)(\d+):0", key.decode("latin-1")) for key in self._client.scan_iter("*:0")]
        numbered = sorted((int(match[2]), match[1]) for match in found if match)
        return [f"{prefix}{row_set}:" for row_set, prefix in numbered[-len(GROUPS) :]]


# ---- servers over HTTP ----


class OverHttp(ABC):
    """A server that is asked by POST; how is said by those below."""

    def __init__(self, name: str, url: str, key: str, running: Sequence[Process], folder: Path) -> None:
        self.name = name
        self._url, self._key, self._running = url, key, running
        self._file = folder / f"{name}.txt".replace(" ", "_")
        self._path = ""

    def read(self, view: View, keys: Sequence[int]) -> Vectors:
        http = Http(urlsplit(self._url).port or 0, {"X-API-KEY": self._key}, _CALL_SECONDS)
        try:
            return self._vectors(view, json.loads(http.post(*self._request(view, keys))))
        finally:
            http.close()

    def prepare(self, shape: Shape, rows: int) -> None:
        requests = [self._request(shape.view, keys) for keys in shape.requests(rows)]
        self._path = requests[0][0]
        self._file.write_text("".join(json.dumps(body) + "\n" for _, body in requests))

    def storm(self, connections: int, seconds: int) -> Figures:
        used = _cpu_seconds(self._running)
        url = self._url + self._path
        if shutil.which("wrk"):
            options = ("-t1", f"-c{connections}", f"-d{seconds}s", "--timeout=10s", "-s", PLAYER)
            found = _figures("wrk", *options, url, "--", self._file, self._key)
        else:
            player = (sys.executable, "-m", "benchmarks.http_load")
            found = _figures(*player, url, self._file, self._key, str(connections), str(seconds))
        return found | {"cpu_seconds": _cpu_seconds(self._running) - used}

    @abstractmethod
    def _request(self, view: View, keys: Sequence[int]) -> tuple[str, dict[str, Any]]:
        """The path and the body by which such vectors are asked for."""

    @abstractmethod
    def _vectors(self, view: View, answer: Any) -> Vectors:
        """The values in an answer, in the view's order."""


class Hopsworks(OverHttp):
    """Triglot, asked as Hopsworks' clients ask."""

    def _request(self, view: View, keys: Sequence[int]) -> tuple[str, dict[str, Any]]:
        entries = [{KEY: key} for key in keys]
        return f"/0.1.0/{'' if len(keys) == 1 else 'batch_'}feature_store", {
            "featureStoreName": STORE,
            "featureViewName": view.name,
            "featureViewVersion": 1,
            "entries": entries[0] if len(keys) == 1 else entries,
            "metadataOptions": {"featureName": False, "featureType": False},
        }

    def _vectors(self, view: View, answer: Any) -> Vectors:
        return [answer["features"]] if isinstance(answer["status"], str) else list(answer["features"])


class Empty(Hopsworks):
    """A server that answers nothing, in as many bytes as Triglot would."""

    def prepare(self, shape: Shape, rows: int) -> None:
        self._size = len(json.dumps([shape.view.vector(key) for key in next(shape.requests(rows))]))
        super().prepare(shape, rows)

    def _request(self, view: View, keys: Sequence[int]) -> tuple[str, dict[str, Any]]:
        return f"/?bytes={self._size}", super()._request(view, keys)[1]


class FeastServer(OverHttp):
    """`feast serve`."""

    def _request(self, view: View, keys: Sequence[int]) -> tuple[str, dict[str, Any]]:
        return "/get-online-features", {"feature_service": view.name, "entities": {KEY: list(keys)}}

    def _vectors(self, view: View, answer: Any) -> Vectors:
        """Feast answers column by column, in an order of its own."""
        columns = dict(zip(answer["metadata"]["feature_names"], answer["results"], strict=True))
        wanted = [columns[name]["values"] for group in view.groups for name in group.types]
        return [list(vector) for vector in zip(*wanted, strict=True)]


# ---- a server over gRPC ----


class OverGrpc:
    """Triglot's GetFeatureVectors, which answers typed values. h2load sends one request again and again."""

    _method = "/triglot.serving.v1.ServingService/GetFeatureVectors"

    def __init__(self, name: str, target: str, key: str, running: Sequence[Process], folder: Path) -> None:
        self.name = name
        self._target, self._key, self._running = target, key, running
        self._body, self._times = folder / f"{self.name}.body", folder / f"{self.name}.times"

    def read(self, view: View, keys: Sequence[int]) -> Vectors:
        answer = self._ask(self._request(view, keys))
        complete = vector_pb2.VECTOR_STATUS_COMPLETE
        return [[_plain(value) for value in each.values] for each in answer.vectors if each.status == complete]

    def prepare(self, shape: Shape, rows: int) -> None:
        """Also a sample run in which every answer is looked at, because to h2load a refusal is a success.

        h2load shows the headers of an answer, among which a refusal has its status, and counts the bytes of messages.
        """
        request = self._request(shape.view, next(shape.requests(rows)))
        message = request.SerializeToString()
        self._body.write_bytes(_framed(message))
        said = self._h2load("-v", "-c4", f"-n{_SAMPLE_REQUESTS}")
        wanted = _SAMPLE_REQUESTS * len(_framed(self._ask(request).SerializeToString()))
        [size] = _found(r"headers \(space savings .*\((\d+)\) data", said)
        if said.count(":status: 200\n") != _SAMPLE_REQUESTS or "grpc-status:" in said or int(size) != wanted:
            refused = sorted(set(re.findall("grpc-status: .*", said)))
            raise Refused(f"not all calls of a sample succeed: {refused}, {size} bytes instead of {wanted}")

    def storm(self, connections: int, seconds: int) -> Figures:
        self._times.unlink(missing_ok=True)
        used = _cpu_seconds(self._running)
        said = self._h2load(f"-c{connections}", f"-D{seconds}", f"--log-file={self._times}")
        used = _cpu_seconds(self._running) - used
        _, done, failed = (
            int(number) for number in _found(r"requests: (\d+) total.* (\d+) succeeded, (\d+) failed", said)
        )
        took = [int(line.split()[2]) / 1e6 for line in self._times.read_text().splitlines()]
        counted = {"requests": done, "seconds": seconds, "failed": failed, "cpu_seconds": used}
        return counted | harness.percentiles(took)

    def _ask(self, request: rpc.GetFeatureVectorsRequest) -> rpc.GetFeatureVectorsResponse:
        with grpc.insecure_channel(self._target) as channel:
            serving: Any = ServingServiceStub(channel)
            answer: rpc.GetFeatureVectorsResponse = serving.GetFeatureVectors(
                request, metadata=[("x-api-key", self._key)], timeout=_CALL_SECONDS
            )
        return answer

    def _h2load(self, *options: str) -> str:
        headers = ("content-type: application/grpc", "te: trailers", f"x-api-key: {self._key}")
        asked = [part for header in headers for part in ("-H", header)]
        argv: list[str | Path] = [
            "h2load",
            "-t1",
            "-m1",
            *options,
            "-d",
            self._body,
            *asked,
            f"http://{self._target}{self._method}",
        ]
        return processes.run(argv, ROOT, processes.clean_environment())

    def _request(self, view: View, keys: Sequence[int]) -> rpc.GetFeatureVectorsRequest:
        entries = [vector_pb2.Entry(keys={KEY: Value(int_value=key)}) for key in keys]
        return rpc.GetFeatureVectorsRequest(feature_store=STORE, feature_view=view.name, version=1, entries=entries)


class EmptyGrpc(OverGrpc):
    """grpc.aio with a method that does nothing, asked what Triglot is asked."""

    _method = GRPC_METHOD

    def prepare(self, shape: Shape, rows: int) -> None:
        self._body.write_bytes(_framed(self._request(shape.view, next(shape.requests(rows))).SerializeToString()))


def _framed(message: bytes) -> bytes:
    """A message as gRPC sends it."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def _plain(value: Value) -> object:
    kind = value.WhichOneof("kind")
    return None if kind is None else getattr(value, kind)


def _found(pattern: str, text: str) -> Sequence[str]:
    match = re.search(pattern, text)
    if match is None:
        raise Refused(f"h2load: {text[-500:]}")
    return match.groups()


def _figures(*argv: str | Path) -> Figures:
    """What a load generator prints last."""
    said = processes.run(argv, ROOT, processes.clean_environment())
    found: Figures = json.loads(said.splitlines()[-1])
    return found


def _cpu_seconds(running: Sequence[Process]) -> float:
    return sum(process.cpu_seconds() for process in running)


# ---- how they are started ----


@dataclass(frozen=True)
class Triglot:
    """`triglot up` and what is needed to call it, or to run more processes beside it."""

    process: Process
    endpoints: dict[str, Any]
    environment: dict[str, str]

    @property
    def key(self) -> str:
        return str(self.endpoints["api_key"])


@contextmanager
def triglot(folder: Path, **variables: str) -> Iterator[Triglot]:
    """`triglot up` as it comes, authentication included: gateway and services in one process.

    `variables` are of its environment: without URLs it has a PostgreSQL and a Redis of its own.
    """
    data = folder / "data"
    ports = ["--registry-port=0", "--serving-port=0", "--management-port=0", "--metrics-port=0", "--http-port=0"]
    argv: list[str | Path] = [TRIGLOT, "up", "--no-sample", f"--data-dir={data}", *ports]
    process = Process(argv, folder, processes.clean_environment(**variables), folder / "up.log")

    def endpoints() -> dict[str, Any] | None:
        file = data / "endpoints.json"
        return json.loads(file.read_text()) if file.exists() else None

    try:
        yield Triglot(process, process.wait_until(endpoints, _START_SECONDS), variables)
    finally:
        process.stop()


@contextmanager
def two_workers(folder: Path, before: Triglot) -> Iterator[dict[str, Hopsworks | OverGrpc]]:
    """`triglot serve serving --rest-api --workers 2` on the same tables: over REST and over gRPC.

    The other has its PostgreSQL, its Redis and its secret key by its environment.
    """
    argv: list[str | Path] = [TRIGLOT, "serve", "serving", "--rest-api", "--workers=2", "--port=0", "--rest-port=0"]
    env = processes.clean_environment(**before.environment, TRIGLOT_HOST="127.0.0.1", TRIGLOT_METRICS_PORT="0")
    process = Family(argv, folder, env, folder / "workers.log")
    try:
        # Said once both serve.
        ports = process.wait_until(lambda: process.logged("serving", role="parent"), _START_SECONDS)["ports"]
        address = f"http://127.0.0.1:{ports['TRIGLOT_SERVING_REST_PORT']}"
        target = f"127.0.0.1:{ports['TRIGLOT_SERVING_PORT']}"
        yield {
            TWO_PROCESSES: Hopsworks(TWO_PROCESSES, address, before.key, [process], folder),
            GRPC_TWO: OverGrpc(GRPC_TWO, target, before.key, [process], folder),
        }
    finally:
        process.stop()


@contextmanager
def gateway(folder: Path, before: Triglot) -> Iterator[Hopsworks]:
    """`triglot serve gateway` before the serving of the other: a hop over gRPC for each request."""
    env = processes.clean_environment(
        TRIGLOT_HOST="127.0.0.1",
        TRIGLOT_METRICS_PORT="0",
        TRIGLOT_GATEWAY_PORTS="[0]",
        **{f"TRIGLOT_{role.upper()}_TARGET": before.endpoints[f"{role}_grpc"] for role in _ROLES},
    )
    process = Process([TRIGLOT, "serve", "gateway"], folder, env, folder / "gateway.log")
    try:
        [port] = process.wait_until(lambda: process.logged("serving"), _START_SECONDS)["ports"]
        yield Hopsworks(GRPC_HOP, f"http://127.0.0.1:{port}", before.key, [process, before.process], folder)
    finally:
        process.stop()


_ROLES = ("registry", "serving", "management")


@contextmanager
def empty(folder: Path, name: str) -> Iterator[Empty | EmptyGrpc]:
    """One of the two that do nothing."""
    kind = "rest" if name == EMPTY else "grpc"
    with processes.reserved_ports(1) as [port]:
        argv = [sys.executable, "-m", "benchmarks.empty", kind, str(port)]
        process = Process(argv, ROOT, processes.clean_environment(), folder / f"empty-{kind}.log")
        try:
            process.wait_until(lambda: listens(port), _START_SECONDS)
            address = f"127.0.0.1:{port}"
            if name == EMPTY:
                yield Empty(name, f"http://{address}", "", [process], folder)
            else:
                yield EmptyGrpc(name, address, "any", [process], folder)
        finally:
            process.stop()


def listens(port: int) -> bool | None:
    """True once somebody listens on a port of this machine, None until then."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return None


@contextmanager
def feast(folder: Path, redis_url: str, rows: int) -> Iterator[FeastServer]:
    """`feast serve` with one worker, filled by its own code. Without its access log, and never started anew."""
    folder.mkdir()
    address = urlsplit(redis_url)
    settings = FEAST_SETTINGS.format(
        project=STORE, host=address.hostname, port=address.port, password=address.password or ""
    )
    (folder / "feature_store.yaml").write_text(settings)
    (folder / "groups.json").write_text(json.dumps([{"name": each.name, "types": each.types} for each in GROUPS]))
    (folder / "views.json").write_text(json.dumps({view.name: [each.name for each in view.groups] for view in VIEWS}))
    moment = pa.scalar(datetime.now(UTC), pa.timestamp("us", tz="UTC"))
    for group in GROUPS:
        table = group.table(0, rows).append_column("event_timestamp", pa.array([moment.as_py()] * rows, moment.type))
        pq.write_table(table, folder / f"{group.name}.parquet")
    # Feast would otherwise tell its makers that it is used.
    env = processes.clean_environment(FEAST_USAGE="False")
    begin = time.monotonic()
    processes.run([FEAST / "python", ROOT / "benchmarks" / "feast" / "vectors.py", folder], folder, env)
    progress(f"{rows * len(GROUPS):,} rows through Feast's writer in {time.monotonic() - begin:.1f} s")
    with processes.reserved_ports(1) as [port]:
        argv: list[str | Path] = [FEAST / "feast", "serve", f"--port={port}", "--no-access-log", "--max-requests=0"]
        process = Process(argv, folder, env, folder / "log")
        server = FeastServer(FEAST_REST, f"http://127.0.0.1:{port}", "", [process], folder)

        def answers() -> bool | None:
            try:
                return bool(server.read(VIEWS[0], [0]))
            except (Refused, NoAnswer):
                return None

        try:
            process.wait_until(answers, _START_SECONDS)
            yield server
        finally:
            process.stop()


def fill(served: Triglot, rows: int) -> None:
    """The groups, their rows and the views, through serving's gRPC API."""
    metadata = [("authorization", f"Bearer {served.key}")]
    with grpc.insecure_channel(served.endpoints["serving_grpc"]) as channel:
        serving: Any = ServingServiceStub(channel)
        begin = time.monotonic()
        for group in GROUPS:
            message = feature_group_pb2.FeatureGroup(feature_store=STORE, name=group.name, version=1, primary_key=[KEY])
            for name, kind in {KEY: "bigint", **group.types}.items():
                message.features.add(name=name, type=kind)
            serving.EnsureFeatureGroup(
                rpc.EnsureFeatureGroupRequest(feature_group=message), metadata=metadata, timeout=_CALL_SECONDS
            )
            streams = (group.table(first, min(rows, first + _ROWS_OF_A_STREAM)) for first in _starts(rows))
            serving.WriteRows(_messages(group.name, streams), metadata=metadata, timeout=_CALL_SECONDS)
        progress(f"{rows * len(GROUPS):,} rows through WriteRows in {time.monotonic() - begin:.1f} s")
        for view in VIEWS:
            asked = rpc.CreateFeatureViewRequest(feature_view=_view_message(view))
            serving.CreateFeatureView(asked, metadata=metadata, timeout=_CALL_SECONDS)


def _starts(rows: int) -> range:
    return range(0, rows, _ROWS_OF_A_STREAM)


def _view_message(view: View) -> feature_view_pb2.FeatureView:
    message = feature_view_pb2.FeatureView(feature_store=STORE, name=view.name, version=1)
    for index, group in enumerate(view.groups):
        join = message.joins.add(feature_group=group.name, version=1)
        if index:
            join.on.add(left=KEY, right=KEY)
        for name in group.types:
            message.features.add(join_index=index, name=name)
    return message


def _messages(group: str, tables: Iterator[pa.Table]) -> Iterator[rpc.WriteRowsRequest]:
    header = rpc.WriteRowsHeader(feature_store=STORE, feature_group=group, version=1, mode=rpc.WRITE_MODE_OVERWRITE)
    yield rpc.WriteRowsRequest(header=header)
    for table in tables:
        stream = io.BytesIO()
        with pa.ipc.new_stream(stream, table.schema) as writer:
            writer.write_table(table)
        yield rpc.WriteRowsRequest(arrow_stream=stream.getvalue())
    yield rpc.WriteRowsRequest(end=rpc.WriteRowsEnd())
