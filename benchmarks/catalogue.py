"""Registries of any size for benchmarks: the same definitions for every server, told apart by nothing but the count."""

from __future__ import annotations

from datetime import UTC, datetime

from protos.gen.feast.core.DataSource_pb2 import DataSource
from protos.gen.feast.core.Entity_pb2 import Entity
from protos.gen.feast.core.Feature_pb2 import FeatureSpecV2
from protos.gen.feast.core.FeatureService_pb2 import FeatureService
from protos.gen.feast.core.FeatureView_pb2 import FeatureView
from protos.gen.feast.core.Registry_pb2 import Registry
from protos.gen.feast.types.Value_pb2 import ValueType

PROJECT = "bench"
# A word in the names of as many objects at every size: 8 views, their 8 sources and their 80 features.
RARE = "churn"
RARE_VIEWS = 8
ENTITIES = ("driver", "customer", "restaurant", "courier", "merchant", "device", "account", "city", "order", "vehicle")
_TOPICS = (
    *("trips", "ratings", "payments", "orders", "refunds", "sessions", "clicks", "visits", "searches", "routes"),
    *("messages", "logins", "coupons", "deliveries", "returns", "invoices", "alerts", "prices", "stocks", "weather"),
)
_STATISTICS = ("sum_1d", "sum_7d", "sum_30d", "avg_1d", "avg_7d", "avg_30d", "max_7d", "min_7d", "count_7d", "last")
_VIEWS_OF_A_SERVICE = 10
_MADE = datetime(2026, 1, 1, tzinfo=UTC)


def registry(views: int) -> Registry:
    """So many views of ten features, each with a source of its own, over ten entities; a service for every ten views.

    At any size the same entities have all the views, and the same topics name all the features: what gets slower with
    size shows.
    """
    made = Registry()
    for name in ENTITIES:
        made.entities.append(entity(name))
    for number in range(views):
        view = feature_view(number, _topic(number, views))
        made.data_sources.append(view.spec.batch_source)
        made.feature_views.append(view)
    for first in range(0, views, _VIEWS_OF_A_SERVICE):
        made.feature_services.append(_service(first, made.feature_views[first : first + _VIEWS_OF_A_SERVICE]))
    return made


def entity(name: str) -> Entity:
    made = Entity()
    made.spec.name, made.spec.project, made.spec.join_key = name, PROJECT, f"{name}_id"
    made.spec.value_type = ValueType.INT64
    made.spec.description = f"Whatever has a {name}_id."
    made.meta.created_timestamp.FromDatetime(_MADE)
    made.meta.last_updated_timestamp.FromDatetime(_MADE)
    return made


def feature_view(number: int, topic: str, project: str = PROJECT, description: str = "") -> FeatureView:
    """A view of ten features. `number` and `topic` make its name."""
    made = FeatureView()
    spec, about = made.spec, ENTITIES[number % len(ENTITIES)]
    spec.name, spec.project, spec.owner, spec.online = f"{topic}_{number:05}", project, f"team{number % 20}", True
    spec.description = description or f"What was measured of a {about} lately, table {number}."
    spec.entities.append(about)
    spec.entity_columns.append(FeatureSpecV2(name=f"{about}_id", value_type=ValueType.INT64))
    spec.features.extend(
        FeatureSpecV2(name=f"{topic}_{statistic}", value_type=ValueType.DOUBLE) for statistic in _STATISTICS
    )
    spec.tags.update({"team": f"team{number % 20}", "tier": "gold" if number % 7 == 0 else "silver"})
    spec.ttl.FromSeconds(86_400)
    spec.batch_source.CopyFrom(_source(f"{spec.name}_source", project))
    made.meta.created_timestamp.FromDatetime(_MADE)
    made.meta.last_updated_timestamp.FromDatetime(_MADE)
    return made


def _topic(number: int, views: int) -> str:
    """The rare word for RARE_VIEWS views, spread over all."""
    every = max(1, views // RARE_VIEWS)
    rare = number % every == 0 and number // every < RARE_VIEWS
    return RARE if rare else _TOPICS[number % len(_TOPICS)]


def _source(name: str, project: str) -> DataSource:
    made = DataSource(name=name, project=project, type=DataSource.BATCH_FILE, timestamp_field="event_timestamp")
    made.file_options.uri = f"data/{name}.parquet"
    made.file_options.file_format.parquet_format.SetInParent()
    made.meta.created_timestamp.FromDatetime(_MADE)
    made.meta.last_updated_timestamp.FromDatetime(_MADE)
    return made


def _service(first: int, views: list[FeatureView]) -> FeatureService:
    made = FeatureService()
    made.spec.name, made.spec.project = f"model_{first // _VIEWS_OF_A_SERVICE:05}", PROJECT
    made.spec.description = "Everything that one model reads."
    for view in views:
        projection = made.spec.features.add()
        projection.feature_view_name = view.spec.name
        projection.feature_columns.extend(view.spec.features)
    made.meta.created_timestamp.FromDatetime(_MADE)
    made.meta.last_updated_timestamp.FromDatetime(_MADE)
    return made
