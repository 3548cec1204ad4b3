"""Triglot's and Feast's registry servers, started as a user starts them, and filled with the same definitions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import track

from benchmarks import catalogue, harness, processes
from benchmarks.harness import Contestant, Grpc, Http, Refused, progress
from benchmarks.processes import ROOT, Process
from protos.gen.feast.core.Registry_pb2 import Registry
from protos.gen.feast.registry import RegistryServer_pb2 as rpc

SERVICE = "/feast.registry.RegistryServer/"
FEAST = ROOT / ".venv-feast-bench" / "bin"
TRIGLOT = ROOT / ".venv" / "bin" / "triglot"
_START_SECONDS = 300.0
_AT_ONCE = 8

_FEAST_SETTINGS = """\
project: {project}
provider: local
registry:
  registry_type: sql
  path: {url}
offline_store:
  type: file
online_store:
  type: sqlite
  path: online.db
entity_key_serialization_version: 3
"""


@dataclass(frozen=True)
class Place:
    """Where a contestant is made: a folder and a database of its own, and how long it may take to answer."""

    folder: Path
    url: str
    patience_seconds: float


@contextmanager
def triglot(size: int, content: Registry, place: Place) -> Iterator[Contestant]:
    """`triglot serve registry --rest-api` as it comes, authentication included; filled through its API."""
    env = processes.clean_environment(
        TRIGLOT_POSTGRES_URL=place.url, TRIGLOT_HOST="127.0.0.1", TRIGLOT_METRICS_PORT="0"
    )
    processes.run([TRIGLOT, "migrate"], place.folder, env)
    key = processes.run([TRIGLOT, "keys", "create", "bench", "--administrator"], place.folder, env).split()[-1]
    argv: list[str | Path] = [TRIGLOT, "serve", "registry", "--rest-api", "--port=0", "--rest-port=0"]
    process = Process(argv, place.folder, env, place.folder / "log")

    try:
        said = process.wait_until(lambda: process.logged("serving"), _START_SECONDS)
        bearer = f"Bearer {key}"
        contestant = Contestant(
            "Triglot",
            size,
            process,
            Http(said["rest_port"], {"Authorization": bearer}, place.patience_seconds),
            Grpc(said["port"], [("authorization", bearer)], place.patience_seconds),
        )
        _apply_all(contestant, content)
        yield contestant
        contestant.stop("the run is over")
    finally:
        process.stop()


def _apply_all(contestant: Contestant, content: Registry) -> None:
    project = catalogue.PROJECT
    groups: list[tuple[str, Any, str, Sequence[Any]]] = [
        ("ApplyEntity", rpc.ApplyEntityRequest, "entity", content.entities),
        ("ApplyDataSource", rpc.ApplyDataSourceRequest, "data_source", content.data_sources),
        ("ApplyFeatureView", rpc.ApplyFeatureViewRequest, "feature_view", content.feature_views),
        ("ApplyFeatureService", rpc.ApplyFeatureServiceRequest, "feature_service", content.feature_services),
    ]
    for method, request, field, objects in groups:
        begin = time.monotonic()
        calls = [
            (SERVICE + method, request(**{field: each}, project=project, commit=True).SerializeToString())
            for each in objects
        ]
        batches = [calls[first : first + _AT_ONCE] for first in range(0, len(calls), _AT_ONCE)]
        console = harness.progress_console
        for batch in track(batches, method, console=console, transient=True, disable=not console.is_terminal):
            contestant.grpc.all(batch)
        seconds = time.monotonic() - begin
        progress(f"Triglot: {len(calls):,} x {method}, {_AT_ONCE} at once, in {seconds:.1f} s")


@contextmanager
def feast(size: int, content: Registry, place: Place) -> Iterator[Contestant]:
    """`feast serve_registry --rest-api` on its SQL registry as it comes, which is without authentication."""
    url = place.url.replace("postgresql://", "postgresql+psycopg://")
    settings = _FEAST_SETTINGS.format(project=catalogue.PROJECT, url=url)
    (place.folder / "feature_store.yaml").write_text(settings)
    file = place.folder / "registry.pb"
    file.write_bytes(content.SerializeToString())
    # Feast would otherwise tell its makers that it is used.
    env = processes.clean_environment(FEAST_USAGE="False")
    begin = time.monotonic()
    processes.run([FEAST / "python", ROOT / "benchmarks" / "feast" / "fill.py", file], place.folder, env)
    progress(f"Feast: filled in bulk in {time.monotonic() - begin:.1f} s")
    with processes.reserved_ports(2) as (grpc_port, rest_port):
        ports = [f"--port={grpc_port}", f"--rest-port={rest_port}"]
        process = Process(
            [FEAST / "feast", "serve_registry", "--rest-api", *ports], place.folder, env, place.folder / "log"
        )
        http = Http(rest_port, {}, place.patience_seconds)

        def answers() -> bytes | None:
            try:
                return http.get("/api/v1/version")
            except Refused:
                return None

        try:
            process.wait_until(answers, _START_SECONDS)
            contestant = Contestant("Feast", size, process, http, Grpc(grpc_port, (), place.patience_seconds))
            yield contestant
            contestant.stop("the run is over")
        finally:
            process.stop()


PRODUCTS: dict[str, Callable[[int, Registry, Place], AbstractContextManager[Contestant]]] = {
    "triglot": triglot,
    "feast": feast,
}
