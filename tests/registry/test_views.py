"""What only feature views have: materialized intervals and versions, on the real database."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
import pytest
from google.protobuf.json_format import MessageToDict

from chassis import errors
from chassis.postgres import Database
from protos.gen.feast.core.FeatureView_pb2 import AVAILABLE_ONLINE, MATERIALIZING, FeatureView
from protos.gen.feast.core.StreamFeatureView_pb2 import StreamFeatureView
from protos.gen.feast.registry import RegistryServer_pb2 as rpc
from protos.gen.triglot.registry.v1 import object_pb2
from protos.gen.triglot.registry.v1 import registry_service_pb2 as own
from services.registry import checks, views
from tests.registry.conftest import Registry
from tests.registry.test_objects import apply_view, get_view, service, view
from tests.registry.test_rest import get, http  # noqa: F401 - a fixture


async def materialize(registry: Registry, start: int, end: int, name: str = "stats") -> None:
    request = rpc.ApplyMaterializationRequest(feature_view=view(name), project="demo")
    request.start_date.seconds, request.end_date.seconds = start, end
    await registry(registry.feast.ApplyMaterialization, request)


def intervals(found: Any) -> list[tuple[int, int]]:
    return [(each.start_time.seconds, each.end_time.seconds) for each in found.meta.materialization_intervals]


async def versions(registry: Registry, name: str = "stats", **fields: int) -> list[tuple[int, bool]]:
    request = own.ListFeatureViewVersionsRequest(project="demo", name=name, **fields)
    listed = await registry(registry.rendered.ListFeatureViewVersions, request)
    return [(each.number, each.active) for each in listed.versions]


# ---- materialization ----


async def test_intervals_come_back_in_the_order_in_which_they_came(registry: Registry) -> None:
    await apply_view(registry, view())
    for start in (5, 1, 9):
        await materialize(registry, start, start + 1)
    assert intervals(await get_view(registry)) == [(5, 6), (1, 2), (9, 10)]
    listed = await registry(registry.feast.ListFeatureViews, rpc.ListFeatureViewsRequest(project="demo"))
    assert list(listed.feature_views) == [await get_view(registry)]
    anything = await registry(
        registry.feast.GetAnyFeatureView, rpc.GetAnyFeatureViewRequest(name="stats", project="demo")
    )
    assert anything.any_feature_view.feature_view == await get_view(registry)


async def test_intervals_are_shown_over_rest(registry: Registry, http: httpx2.AsyncClient) -> None:  # noqa: F811
    await apply_view(registry, view())
    await materialize(registry, 0, 60)
    found = await get(http, "/feature_views/stats?project=demo")
    assert found["meta"]["materializationIntervals"] == [
        {"startTime": "1970-01-01T00:00:00Z", "endTime": "1970-01-01T00:01:00Z"}
    ]
    assert found["meta"]["state"] == "AVAILABLE_ONLINE"
    assert (await get(http, "/feature_views?project=demo"))["featureViews"][0]["meta"] == found["meta"]


@pytest.mark.parametrize("moment", ["2026-01-02 03:04:05", "2026-01-02 03:04:05.67", "1969-12-31 23:59:59.000001"])
async def test_a_view_is_the_same_in_protobuf_and_in_json(registry: Registry, database: Database, moment: str) -> None:
    await apply_view(registry, view("stats", "a"))
    await apply_view(registry, view("stats", "b"))
    await materialize(registry, 1, 2)
    await materialize(registry, 2, 3)
    await database.execute(
        "UPDATE registry.object SET created = $1::text::timestamptz, updated = $1::text::timestamptz", f"{moment}Z"
    )
    request = own.GetObjectRequest(kind=object_pb2.OBJECT_KIND_FEATURE_VIEW, project="demo", name="stats")
    shown = json.loads((await registry(registry.rendered.GetObject, request)).object)
    front = {"name": "stats", "project": "demo", "type": "featureView"}
    assert shown == front | MessageToDict(await get_view(registry))


async def test_materializing_writes_an_interval_and_not_the_view(registry: Registry, database: Database) -> None:
    await apply_view(registry, view())
    stored = "SELECT proto, rendered FROM registry.object WHERE name = 'stats'"
    before, definition = await get_view(registry), await database.fetchrow(stored)
    await materialize(registry, 1, 2)
    after = await get_view(registry)
    assert await database.fetchrow(stored) == definition
    assert (after.spec, after.meta.created_timestamp) == (before.spec, before.meta.created_timestamp)
    assert after.meta.last_updated_timestamp.ToNanoseconds() > before.meta.last_updated_timestamp.ToNanoseconds()
    since = rpc.ListAllFeatureViewsRequest(project="demo", updated_since=after.meta.last_updated_timestamp)
    assert len((await registry(registry.feast.ListAllFeatureViews, since)).feature_views) == 1


async def test_an_apply_that_read_before_an_append_does_not_lose_it(registry: Registry) -> None:
    """materialize_incremental writes back the view that it read, to say that it has begun."""
    await apply_view(registry, view())
    await materialize(registry, 1, 2)
    read = await get_view(registry)
    await materialize(registry, 2, 3)
    read.meta.state = MATERIALIZING
    read.meta.materialization_intervals.add().end_time.seconds = 9
    await apply_view(registry, read)
    found = await get_view(registry)
    assert (intervals(found), found.meta.state) == ([(1, 2), (2, 3), (0, 9)], MATERIALIZING)
    await materialize(registry, 3, 4)
    assert (await get_view(registry)).meta.state == AVAILABLE_ONLINE


async def test_a_view_that_is_written_back_as_it_was_read_is_not_written(registry: Registry) -> None:
    await apply_view(registry, view())
    await materialize(registry, 1, 2)
    read = await get_view(registry)
    await apply_view(registry, read)
    assert await get_view(registry) == read


async def test_stream_views_keep_intervals_and_no_order_of_features(
    registry: Registry,
) -> None:
    made = StreamFeatureView()
    made.spec.name = "live"
    made.spec.entities.append("driver")
    for feature in ("a", "b"):
        made.spec.features.add(name=feature)
    made.meta.materialization_intervals.add().end_time.seconds = 7
    request = rpc.ApplyFeatureViewRequest(stream_feature_view=made, project="demo")
    await registry(registry.feast.ApplyFeatureView, request)
    ask = rpc.GetStreamFeatureViewRequest(name="live", project="demo")
    found = await registry(registry.feast.GetStreamFeatureView, ask)
    assert intervals(found) == [(0, 7)]
    made.spec.features.reverse()
    await registry(registry.feast.ApplyFeatureView, request)
    assert await registry(registry.feast.GetStreamFeatureView, ask) == found


async def test_the_oldest_of_very_many_intervals_are_joined(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "KEPT_INTERVALS", 3)
    await apply_view(registry, view())
    for start in range(6):
        await materialize(registry, start, start + 1)
    assert intervals(await get_view(registry)) == [(0, 4), (4, 5), (5, 6)]
    stale = await get_view(registry)
    stale.meta.materialization_intervals.add(start_time={"seconds": 1}, end_time={"seconds": 2})
    stale.meta.state = MATERIALIZING
    await apply_view(registry, stale)
    assert intervals(await get_view(registry)) == [(0, 4), (4, 5), (5, 6)]


async def test_what_is_missing_is_not_materialized(registry: Registry) -> None:
    with pytest.raises(errors.NotFound) as raised:
        await materialize(registry, 1, 2, "nothing")
    assert raised.value.reason == "FEATURE_VIEW_NOT_FOUND"


# ---- versions ----


async def test_a_version_for_each_change_of_the_schema_and_none_for_other_changes(registry: Registry) -> None:
    await apply_view(registry, view("stats", "a"))
    assert (await get_view(registry)).meta.current_version_number == 0
    described = view("stats", "a")
    described.spec.description = "new"
    described.spec.tags["team"] = "ml"
    described.spec.batch_source.file_options.uri = "elsewhere"
    await apply_view(registry, described)
    assert await versions(registry) == [(0, True)]
    for changed in (view("stats", "a", "b"), view("stats", "a", "b", entities=("driver", "car"))):
        await apply_view(registry, changed)
        await apply_view(registry, changed)
    assert await versions(registry) == [(0, False), (1, False), (2, True)]
    assert await versions(registry, page=2, limit=2) == [(2, True)]
    assert await versions(registry, page=9, limit=2) == []
    assert (await get_view(registry)).meta.current_version_number == 2


@pytest.mark.parametrize("pin", ["v0", "version0", "V0"])
async def test_a_pin_restores_a_version_with_its_features_and_its_lineage(registry: Registry, pin: str) -> None:
    await apply_view(registry, view("stats", "a"))
    await materialize(registry, 1, 2)
    latest = view("stats", "b", entities=("car",))
    await apply_view(registry, latest)
    latest.spec.version = pin
    await apply_view(registry, latest)
    found = await get_view(registry)
    assert ([each.name for each in found.spec.features], list(found.spec.entities)) == (["a"], ["driver"])
    assert (found.spec.version, found.meta.current_version_number, intervals(found)) == (pin, 0, [(1, 2)])
    features = await registry(registry.feast.ListFeatures, rpc.ListFeaturesRequest(project="demo"))
    assert [each.name for each in features.features] == ["a"]
    by_entity = rpc.ListAllFeatureViewsRequest(project="demo", entity="driver")
    assert len((await registry(registry.feast.ListAllFeatureViews, by_entity)).feature_views) == 1
    # The repository still says the same, and says it again.
    await apply_view(registry, latest)
    assert await get_view(registry) == found
    assert await versions(registry) == [(0, True), (1, False)]
    # Back to the latest definition: a new version, because the schema changes.
    latest.spec.version = ""
    await apply_view(registry, latest)
    assert await versions(registry) == [(0, False), (1, False), (2, True)]


async def test_a_pin_and_an_edit_are_a_conflict(registry: Registry) -> None:
    await apply_view(registry, view("stats", "a"))
    await apply_view(registry, view("stats", "b"))
    edited = view("stats", "c")
    edited.spec.version = "v0"
    with pytest.raises(errors.FailedPrecondition) as raised:
        await apply_view(registry, edited)
    assert raised.value.reason == "FEATURE_VIEW_PIN_CONFLICT"
    assert [each.name for each in (await get_view(registry)).spec.features] == ["b"]


async def test_a_pin_to_a_version_that_is_not_there_makes_it(registry: Registry) -> None:
    made = view("stats", "a")
    made.spec.version = "v5"
    await apply_view(registry, made)
    await apply_view(registry, made)
    assert await versions(registry) == [(5, True)]
    await apply_view(registry, view("stats", "b"))
    assert await versions(registry) == [(5, False), (6, True)]


async def test_parallel_changes_get_a_version_each(registry: Registry) -> None:
    await apply_view(registry, view("stats", "first"))
    await asyncio.gather(*(apply_view(registry, view("stats", f"f{number}")) for number in range(20)))
    assert [number for number, _ in await versions(registry)] == list(range(21))
    found = await get_view(registry)
    assert found.meta.current_version_number == 20


async def test_a_version_is_shown_as_it_was(registry: Registry) -> None:
    await apply_view(registry, view("stats", "a"))
    await apply_view(registry, view("stats", "b"))
    request = own.GetFeatureViewVersionRequest(project="demo", name="stats", number=0)
    found = await registry(registry.rendered.GetFeatureViewVersion, request)
    assert b'"features":[{"name":"a","valueType":"FLOAT"}]' in found.object
    assert (found.version.type, len(found.version.id), found.version.active) == ("featureView", 36, False)
    assert found.version.created.seconds > 0
    for missing, reason in ({"number": 2}, "FEATURE_VIEW_VERSION_NOT_FOUND"), ({"name": "x"}, "FEATURE_VIEW_NOT_FOUND"):
        asked = own.GetFeatureViewVersionRequest(project="demo", name="stats")
        asked.MergeFrom(own.GetFeatureViewVersionRequest(**missing))
        with pytest.raises(errors.NotFound) as raised:
            await registry(registry.rendered.GetFeatureViewVersion, asked)
        assert raised.value.reason == reason
    with pytest.raises(errors.NotFound):
        await versions(registry, "x")


@pytest.mark.parametrize("what", ["view", "project"])
async def test_deletes_leave_neither_versions_nor_intervals(registry: Registry, database: Database, what: str) -> None:
    await apply_view(registry, view("stats", "a"))
    await apply_view(registry, view("stats", "b"))
    await materialize(registry, 1, 2)
    if what == "view":
        await registry(registry.feast.DeleteFeatureView, rpc.DeleteFeatureViewRequest(name="stats", project="demo"))
    else:
        await registry(registry.feast.DeleteProject, rpc.DeleteProjectRequest(name="demo"))
    for table in ("version", "materialization"):
        assert await database.fetchval(f"SELECT count(*) FROM registry.{table}") == 0
    await apply_view(registry, view("stats", "c"))
    assert (await versions(registry), intervals(await get_view(registry))) == ([(0, True)], [])


async def test_a_refused_apply_leaves_no_version(registry: Registry) -> None:
    await apply_view(registry, view("stats", "a"))
    with pytest.raises(errors.InvalidArgument):
        await apply_view(registry, view("stats", "b", "b"))
    assert await versions(registry) == [(0, True)]


async def test_a_service_may_select_from_a_version(registry: Registry) -> None:
    await apply_view(registry, view("stats", "a"))
    await apply_view(registry, view("stats", "b"))
    made = service("model", "stats")
    made.spec.features[0].version_tag = 0
    request = rpc.ApplyFeatureServiceRequest(feature_service=made, project="demo")
    await registry(registry.feast.ApplyFeatureService, request)
    ask = rpc.GetFeatureServiceRequest(name="model", project="demo")
    found = await registry(registry.feast.GetFeatureService, ask)
    assert [column.name for column in found.spec.features[0].feature_columns] == ["a"]
    request.feature_service.spec.features[0].version_tag = 7
    with pytest.raises(errors.NotFound) as raised:
        await registry(registry.feast.ApplyFeatureService, request)
    assert raised.value.reason == "FEATURE_VIEW_VERSION_NOT_FOUND"


# ---- times and texts that cannot be shown ----


def late(made: FeatureView) -> None:
    made.spec.ttl.seconds = 10**13


def later(made: FeatureView) -> None:
    made.spec.batch_source.meta.created_timestamp.seconds = 10**15


def nul(made: FeatureView) -> None:
    made.spec.features[0].tags["a"] = "\0"


def latest(made: FeatureView) -> None:
    made.meta.materialization_intervals.add().end_time.nanos = -1


def unheard_of(made: FeatureView) -> None:
    made.spec.version = "newest"


def too_new(made: FeatureView) -> None:
    made.spec.version = "v9999999999"


@pytest.mark.parametrize(
    ("spoil", "field"),
    [
        (late, "spec.ttl"),
        (later, "spec.batch_source.meta.created_timestamp"),
        (nul, "spec.features.tags"),
        (latest, "meta.materialization_intervals.end_time"),
        (unheard_of, "version"),
        (too_new, "version"),
    ],
)
async def test_what_json_cannot_show_is_refused_and_named(registry: Registry, spoil: Any, field: str) -> None:
    made = view()
    spoil(made)
    with pytest.raises(errors.InvalidArgument) as raised:
        await apply_view(registry, made)
    assert raised.value.metadata["field"] == field
    listed = await registry(registry.rendered.ListObjects, own.ListObjectsRequest(kind=8))
    assert listed.total == 0


async def test_times_out_of_range_are_refused_in_every_request(registry: Registry) -> None:
    await apply_view(registry, view())
    with pytest.raises(errors.InvalidArgument) as raised:
        await materialize(registry, 10**15, 10**15)
    assert raised.value.metadata["field"] == "start_date"
    every = rpc.ListAllFeatureViewsRequest(project="demo", updated_since={"seconds": 10**12})
    with pytest.raises(errors.InvalidArgument) as raised:
        await registry(registry.feast.ListAllFeatureViews, every)
    assert raised.value.metadata["field"] == "updated_since"
    with pytest.raises(errors.InvalidArgument):
        await registry(
            registry.rendered.ListObjects, own.ListObjectsRequest(kind=8, updated_since={"seconds": -(10**12)})
        )


async def test_the_ends_of_time_are_taken(registry: Registry, http: httpx2.AsyncClient) -> None:  # noqa: F811
    since = rpc.ListAllFeatureViewsRequest(project="demo", updated_since={"seconds": -62_135_596_800})
    await registry(registry.feast.ListAllFeatureViews, since)
    since.updated_since.seconds, since.updated_since.nanos = 253_402_300_799, 999_999_999
    await registry(registry.feast.ListAllFeatureViews, since)
    for text in ("0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"):
        await get(http, f"/feature_views?project=demo&updated_since={text}")


# ---- limits ----


async def test_a_view_has_so_many_features(registry: Registry) -> None:
    names = [f"f{number}" for number in range(checks.MAX_FEATURES + 1)]
    with pytest.raises(errors.InvalidArgument) as raised:
        await apply_view(registry, view("stats", *names))
    assert raised.value.metadata["field"] == "features"
    await apply_view(registry, view("stats", *names[1:]))
    assert len((await get_view(registry)).spec.features) == checks.MAX_FEATURES


async def test_views_are_nested_as_deep_as_any_client_reads(registry: Registry) -> None:
    def nested(levels: int) -> FeatureView:
        made = view()
        spec = made.spec
        for _ in range(levels):
            spec = spec.source_views.add(name="upstream")
        return made

    with pytest.raises(errors.InvalidArgument) as raised:
        await apply_view(registry, nested(checks.MAX_LEVELS))
    assert raised.value.metadata["field"] == "spec"
    deepest = nested(checks.MAX_LEVELS - 2)
    await apply_view(registry, deepest)
    answer = await registry(registry.feast.ListAllFeatureViews, rpc.ListAllFeatureViewsRequest(project="demo"))
    assert rpc.ListAllFeatureViewsResponse.FromString(answer.SerializeToString()) == answer
