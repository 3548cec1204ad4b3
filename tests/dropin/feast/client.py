"""Works a registry with the real Feast SDK, as its users do, and prints what it saw as one JSON object.

Runs inside the SDK's own environment:  .venv-feast/bin/python client.py REPOSITORY SCENARIO
REPOSITORY is a folder with a feature_store.yaml. Scenarios are the functions named in SCENARIOS.
"""

import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, PushSource, RequestSource
from feast.data_source import DataSource
from feast.errors import FeastError
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.labeling.label_view import LabelView
from feast.on_demand_feature_view import on_demand_feature_view
from feast.permissions.action import ALL_ACTIONS, AuthzedAction
from feast.permissions.permission import Permission
from feast.permissions.policy import RoleBasedPolicy
from feast.project import Project
from feast.types import Float32, Float64, Int64

DRIVER = Entity(name="driver", join_keys=["driver_id"], description="a driver", tags={"team": "rides"})
SOURCE = FileSource(
    name="driver_source", path="drivers.parquet", timestamp_field="event_timestamp", owner="ann", tags={"raw": "yes"}
)
STATS = FeatureView(
    name="driver_stats",
    entities=[DRIVER],
    ttl=timedelta(days=1),
    schema=[Field(name="conv_rate", dtype=Float32, description="share"), Field(name="trips", dtype=Int64)],
    source=SOURCE,
    tags={"team": "rides"},
)
MODEL = FeatureService(name="model", features=[STATS[["conv_rate"]]], owner="ann", tags={"team": "rides"})
EVERYTHING = FeatureService(name="everything", features=[STATS])


@on_demand_feature_view(
    sources=[STATS, RequestSource(name="now", schema=[Field(name="factor", dtype=Float64)])],
    schema=[Field(name="scaled", dtype=Float64)],
)
def scaled(inputs: pandas.DataFrame) -> pandas.DataFrame:
    return pandas.DataFrame({"scaled": inputs["conv_rate"] * inputs["factor"]})


NOW = datetime(2026, 1, 1, tzinfo=UTC)
OBJECTS = [DRIVER, SOURCE, STATS, MODEL, EVERYTHING]


def raised(call: Any, *arguments: Any, **keywords: Any) -> dict[str, str]:
    """The exception of a call, as the SDK's user meets it."""
    try:
        call(*arguments, **keywords)
    except FeastError as error:
        return {"class": type(error).__name__, "message": str(error)}
    except Exception as error:
        return {"class": type(error).__name__, "message": "not an error of Feast"}
    return {"class": "", "message": "nothing was raised"}


def times(store: FeatureStore) -> list[str]:
    found = [store.get_entity("driver"), store.get_feature_view("driver_stats"), store.get_feature_service("model")]
    return [str((each.created_timestamp, each.last_updated_timestamp)) for each in found]


def apply_and_read(store: FeatureStore) -> dict[str, Any]:
    store.apply(OBJECTS)
    first = times(store)
    store.apply(OBJECTS)
    entity, view = store.get_entity("driver"), store.get_feature_view("driver_stats")
    selected = store.get_feature_service("everything").feature_view_projections[0]
    return {
        "unchanged": times(store) == first,
        "entity": entity == DRIVER,
        "source": store.get_data_source("driver_source") == SOURCE,
        "view": view == STATS,
        "view of any kind": store.registry.get_any_feature_view("driver_stats", store.project) == STATS,
        "service": store.get_feature_service("model") == MODEL,
        "columns": [field.name for field in selected.features],
        "times": None not in (entity.created_timestamp, view.created_timestamp, view.last_updated_timestamp),
        "entities": sorted(each.name for each in store.list_entities()),
        "sources": sorted(each.name for each in store.list_data_sources()),
        "views": sorted(each.name for each in store.list_feature_views()),
        "batch views": sorted(each.name for each in store.list_batch_feature_views()),
        "services": sorted(each.name for each in store.list_feature_services()),
        "tagged": [each.name for each in store.list_feature_views(tags={"team": "rides"})],
        "wrongly tagged": [each.name for each in store.list_feature_views(tags={"team": "other"})],
        "stream views": store.list_stream_feature_views(),
        "on-demand views": store.list_on_demand_feature_views(),
        "label views": store.registry.list_label_views(store.project),
        "project": store.get_project(None).name,
        "projects": [each.name for each in store.list_projects()],
    }


def change_and_delete(store: FeatureStore) -> dict[str, Any]:
    store.apply([*OBJECTS, scaled])
    created = store.get_entity("driver").created_timestamp
    store.apply(Entity(name="driver", join_keys=["driver_id"], description="changed"))
    changed = store.get_entity("driver")
    start = datetime(2026, 1, 1, tzinfo=UTC)
    store.registry.apply_materialization(STATS, store.project, start, start + timedelta(days=1))
    store.apply(STATS)
    view = store.get_feature_view("driver_stats")
    on_demand = store.get_on_demand_feature_view("scaled")
    store.delete_feature_service("model")
    store.delete_feature_view("scaled")
    return {
        "created": changed.created_timestamp == created,
        "updated": changed.last_updated_timestamp > created,
        "description": changed.description,
        "intervals": [[str(moment) for moment in each] for each in view.materialization_intervals],
        "state": view.state.name,
        "on-demand": [field.name for field in on_demand.features],
        "its code runs": on_demand.feature_transformation.udf(pandas.DataFrame({"conv_rate": [2.0], "factor": [3.0]}))[
            "scaled"
        ].tolist(),
        "services": [each.name for each in store.list_feature_services()],
        "on-demand views": [each.name for each in store.list_on_demand_feature_views()],
    }


def fail(store: FeatureStore) -> dict[str, Any]:
    store.apply([DRIVER, SOURCE, STATS])
    registry, project = store.registry, store.project
    clash = STATS.__copy__()
    label = scaled.__copy__()
    label.name = clash.name
    return {
        "entity": raised(store.get_entity, "x"),
        "view": raised(store.get_feature_view, "x"),
        "any view": raised(registry.get_any_feature_view, "x", project),
        "on-demand view": raised(store.get_on_demand_feature_view, "x"),
        "service": raised(store.get_feature_service, "x"),
        "source": raised(store.get_data_source, "x"),
        "dataset": raised(store.get_saved_dataset, "x"),
        "validation reference": raised(store.get_validation_reference, "x"),
        "permission": raised(store.get_permission, "x"),
        "project": raised(store.get_project, "x"),
        "delete entity": raised(registry.delete_entity, "x", project),
        "delete view": raised(store.delete_feature_view, "x"),
        "taken name": raised(registry.apply_feature_view, label, project),
        "service of no view": raised(
            registry.apply_feature_service, FeatureService(name="s", features=[unknown_view()]), project
        ),
    }


def unknown_view() -> FeatureView:
    made = STATS.__copy__()
    made.name = made.projection.name = "nowhere"
    return made


def other_objects(store: FeatureStore) -> dict[str, Any]:
    store.apply(OBJECTS)
    permission = Permission(
        name="readers",
        types=[FeatureView],
        name_patterns=["driver_.*"],
        policy=RoleBasedPolicy(roles=["reader"]),
        actions=[AuthzedAction.DESCRIBE],
    )
    store.apply(permission)
    store.registry.apply_project(Project(name=store.project, description="rides", owner="ann"))
    found = store.get_permission("readers")
    return {
        "permission": (found.name, found.name_patterns, [str(action) for action in found.actions]),
        "permissions": [each.name for each in store.list_permissions()],
        "project": (store.get_project(None).description, store.get_project(None).owner),
        "metadata": [len(each.project_uuid) for each in store.registry.list_project_metadata(store.project)],
    }


def guard(store: FeatureStore) -> dict[str, Any]:
    """Readers may read feature views of drivers and what they are made from; writers may do all with entities."""
    store.apply([*OBJECTS, Entity(name="customer", join_keys=["customer_id"])])
    kinds = {"views": [FeatureView], "entities": [Entity], "sources": [DataSource]}
    for name, types in kinds.items():
        store.apply(
            Permission(
                name=name,
                types=types,
                name_patterns=["driver.*"],
                policy=RoleBasedPolicy(roles=["reader"]),
                actions=[AuthzedAction.DESCRIBE],
            )
        )
    store.apply(
        Permission(name="writers", types=[Entity], policy=RoleBasedPolicy(roles=["writer"]), actions=ALL_ACTIONS)
    )
    return {"permissions": sorted(each.name for each in store.list_permissions())}


def guarded(store: FeatureStore) -> dict[str, Any]:
    registry, project = store.registry, store.project
    return {
        "entities": [each.name for each in store.list_entities()],
        "views": [each.name for each in store.list_feature_views()],
        "services": [each.name for each in store.list_feature_services()],
        "permissions": [each.name for each in store.list_permissions()],
        "get": raised(store.get_entity, "driver")["class"],
        "get another": raised(store.get_entity, "customer"),
        "change": raised(registry.apply_entity, Entity(name="driver", join_keys=["x"]), project),
        "create": raised(registry.apply_entity, Entity(name="new", join_keys=["x"]), project)["class"],
        "delete": raised(registry.delete_entity, "customer", project)["class"],
        "materialize": raised(registry.apply_materialization, STATS, project, NOW, NOW)["class"],
    }


def versions(store: FeatureStore) -> dict[str, Any]:
    """A view's schema changes; the view goes back to what it was, and forth again."""

    def stats(version: str = "latest", *added: Field) -> FeatureView:
        return FeatureView(
            name="driver_stats", entities=[DRIVER], schema=[*STATS.schema, *added], source=SOURCE, version=version
        )

    def seen() -> list[Any]:
        found = store.get_feature_view("driver_stats")
        return [found.version, found.current_version_number, sorted(field.name for field in found.features)]

    rating, odd = Field(name="rating", dtype=Int64), Field(name="odd", dtype=Int64)
    back, again, forth, edited = stats("v0", rating), stats("v0"), stats("version1"), stats("v0", odd)
    shown = []
    for each in (stats(), stats("latest", rating), back, again, forth, edited, stats()):
        refused = raised(store.apply, [DRIVER, SOURCE, each])
        shown.append([refused["class"], *seen()])
    return {"seen": shown}


def work(store: FeatureStore) -> dict[str, Any]:
    """From definitions to features: online, for training, and saved."""
    store.apply(OBJECTS)
    store.materialize(NOW - timedelta(days=1), NOW + timedelta(hours=1))
    store.materialize_incremental(NOW + timedelta(hours=2))
    view = store.get_feature_view("driver_stats")
    online = store.get_online_features(store.get_feature_service("everything"), [{"driver_id": 1}]).to_dict()
    one = store.get_online_features(["driver_stats:trips"], [{"driver_id": 1}]).to_dict()
    rows = pandas.DataFrame({"driver_id": [1], "event_timestamp": [pandas.Timestamp("2026-01-01T01:00Z")]})
    store.create_saved_dataset(
        store.get_historical_features(rows, store.get_feature_service("everything")),
        "training",
        SavedDatasetFileStorage("training.parquet"),
        tags={"team": "rides"},
    )
    dataset = store.get_saved_dataset("training")
    listed = [each.name for each in store.list_saved_datasets(tags={"team": "rides"})]
    store.registry.delete_saved_dataset("training", store.project)
    return {
        "intervals": [[str(moment) for moment in each] for each in view.materialization_intervals],
        "state": view.state.name,
        "online": online,
        "one": one["trips"],
        "dataset": [sorted(dataset.features), dataset.join_keys, dataset.to_df()["trips"].tolist()],
        "datasets": [listed, [each.name for each in store.list_saved_datasets()]],
    }


def label(store: FeatureStore) -> dict[str, Any]:
    pushed = PushSource(name="pushed", batch_source=SOURCE)
    made = LabelView(
        name="verdicts", entities=[DRIVER], source=pushed, schema=[Field(name="fraud", dtype=Int64)], tags={"a": "b"}
    )
    store.apply([DRIVER, SOURCE, pushed, made])
    registry, project = store.registry, store.project
    found = registry.get_label_view("verdicts", project)
    shown = {
        "equal": found == made,
        "source": found.source.name,
        "listed": [each.name for each in registry.list_label_views(project, tags={"a": "b"})],
        "views": [each.name for each in store.list_feature_views()],
    }
    store.delete_feature_view("verdicts")
    return shown | {"left": registry.list_label_views(project)}


def read(store: FeatureStore) -> dict[str, Any]:
    return {"entities": [each.name for each in store.list_entities()]}


def refused(store: FeatureStore) -> dict[str, Any]:
    return {"list": raised(store.list_entities), "apply": raised(store.registry.apply_entity, DRIVER, store.project)}


SCENARIOS = {
    each.__name__: each
    for each in (
        apply_and_read,
        change_and_delete,
        fail,
        other_objects,
        guard,
        guarded,
        versions,
        work,
        label,
        read,
        refused,
    )
}


def main(repository: str, scenario: str) -> None:
    # The SDK reads a source's columns while it applies a view.
    moment = pandas.Timestamp("2026-01-01", tz="UTC")
    columns = {"driver_id": [1], "conv_rate": [0.5], "trips": [3], "event_timestamp": [moment]}
    pandas.DataFrame(columns).to_parquet(Path(repository) / "drivers.parquet")
    print(json.dumps(SCENARIOS[scenario](FeatureStore(repo_path=repository))))


if __name__ == "__main__":
    main(*sys.argv[1:])
