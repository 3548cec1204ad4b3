"""Metrics and logs: what is counted is what Prometheus reads, and lines say whose they are."""

from __future__ import annotations

import asyncio
from typing import Any

import prometheus_client
import pytest

from chassis import calls, telemetry
from chassis.postgres import open_database
from chassis.principals import Principal
from chassis.settings import Settings
from protos.gen.feast.core.Project_pb2 import Project, ProjectSpec
from protos.gen.feast.registry import RegistryServer_pb2 as feast
from protos.gen.triglot.management.v1 import feature_view_pb2 as management
from protos.gen.triglot.serving.v1 import serving_service_pb2 as serving
from tests.patience import until


def sample(name: str, **labels: str) -> float:
    """What Prometheus would read; 0 if there is none yet."""
    return prometheus_client.REGISTRY.get_sample_value(name, labels) or 0.0


def test_a_histogram_counts_what_is_at_most_its_bounds() -> None:
    histogram = telemetry.Histogram("test_sizes", "x", ("of",), bounds=(1, 10, 100))
    for value in (1, 2, 10, 11, 1000):
        histogram.series("keys").observe(value)
    found = {bound: sample("test_sizes_bucket", of="keys", le=bound) for bound in ("1", "10", "100", "+Inf")}
    assert found == {"1": 1, "10": 3, "100": 4, "+Inf": 5}
    assert (sample("test_sizes_count", of="keys"), sample("test_sizes_sum", of="keys")) == (5, 1024)


def test_a_counter_grows() -> None:
    counter = telemetry.Counter("test_seen", "x", ("what",))
    counter.count("a").add()
    counter.count("a").add(2)
    counter.count("b").add()
    assert (sample("test_seen_total", what="a"), sample("test_seen_total", what="b")) == (3, 1)


@pytest.mark.usefixtures("database")
async def test_connections_to_postgres(settings: Settings) -> None:
    def found() -> dict[str, float]:
        return {state: sample("triglot_postgres_connections", state=state) for state in ("busy", "idle", "wanted")}

    before = found()
    database = await open_database(settings.model_copy(update={"postgres_pool_size": 1}))

    def more() -> dict[str, float]:
        return {state: number - before[state] for state, number in found().items()}

    try:
        assert more() == {"busy": 0, "idle": 1, "wanted": 0}
        async with database.connection():
            assert more() == {"busy": 1, "idle": 0, "wanted": 0}
            waiting = asyncio.ensure_future(database.fetchval("SELECT 1"))
            given_up = asyncio.ensure_future(database.fetchval("SELECT 1"))

            async def both_wait() -> bool:
                return more() == {"busy": 1, "idle": 0, "wanted": 2}

            await until(both_wait)
            given_up.cancel()
            await asyncio.wait((given_up,))
            assert more()["wanted"] == 1
        assert await waiting == 1
        assert more() == {"busy": 0, "idle": 1, "wanted": 0}
    finally:
        await database.close()
    assert more() == {"busy": 0, "idle": 0, "wanted": 0}


@pytest.mark.parametrize(
    ("request_", "project"),
    [
        (feast.GetEntityRequest(name="driver", project="shop"), "shop"),
        (feast.ApplyEntityRequest(project="shop"), "shop"),
        (feast.ApplyProjectRequest(project=Project(spec=ProjectSpec(name="shop"))), None),
        (serving.RenderFeatureVectorsRequest(feature_store="demo"), "demo"),
        (management.ListFeatureViewsRequest(project_id="3"), "3"),
        (serving.PingRequest(), None),
        (None, None),
    ],
)
def test_lines_of_a_request_name_who_what_and_where(request_: Any, project: str | None) -> None:
    token = calls.enter(calls.Call("R-1", principal=Principal("alice"), request=request_))
    try:
        event = telemetry._add_call(None, "info", {"event": "x"})
    finally:
        calls.leave(token)
    named = {"request_id": "R-1", "principal": "alice"} | ({"project": project} if project else {})
    assert event == {"event": "x", **named}
    assert telemetry._add_call(None, "info", {"event": "x"}) == {"event": "x"}
