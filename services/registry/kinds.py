"""The kinds of objects, a row each: their message, where it keeps name, tags and times, and how each is called."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from chassis import errors
from protos.gen.feast.core import (
    DataSource_pb2,
    Entity_pb2,
    FeatureService_pb2,
    FeatureView_pb2,
    LabelView_pb2,
    OnDemandFeatureView_pb2,
    Permission_pb2,
    Project_pb2,
    SavedDataset_pb2,
    StreamFeatureView_pb2,
    ValidationProfile_pb2,
)
from protos.gen.feast.registry import RegistryServer_pb2


@dataclass(frozen=True)
class Kind:
    """One kind of object."""

    name: str  # as stored, and as JSON spells it
    message: type[Message]
    label: str  # in sentences
    reason: str  # of the error when there is none
    family: str = ""  # names are unique within it; default: the kind itself
    lineage: str = ""  # its type in lineage; default: the kind's own name
    flat: bool = False  # name and tags stand in the message itself, not in its `spec`
    timed: bool = True  # `meta` holds when it was created and last updated. Views have theirs in columns: views.py
    materializes: bool = False  # `meta` holds the times that were materialized

    def __post_init__(self) -> None:
        object.__setattr__(self, "family", self.family or self.name)
        object.__setattr__(self, "lineage", self.lineage or self.name)

    def spec(self, message: Any) -> Any:
        """The part of a message that says what the object is."""
        return message if self.flat else message.spec

    @property
    def is_view(self) -> bool:
        """Whether it is one of the four kinds of feature views."""
        return self.family == VIEW_FAMILY

    def missing(self, name: str, project: str) -> errors.NotFound:
        """The error that there is no such object."""
        where = f" in project {project}" if project and self is not PROJECT else ""
        return errors.NotFound(
            f"{self.label} {name} does not exist{where}", reason=self.reason, name=name, project=project
        )


VIEW_FAMILY = "featureView"
_VIEW: dict[str, Any] = {
    "label": "Feature view",
    "reason": "FEATURE_VIEW_NOT_FOUND",
    "family": VIEW_FAMILY,
    "lineage": "featureView",
    "timed": False,
}

PROJECT = Kind("project", Project_pb2.Project, "Project", "PROJECT_NOT_FOUND")
ENTITY = Kind("entity", Entity_pb2.Entity, "Entity", "ENTITY_NOT_FOUND")
DATA_SOURCE = Kind("dataSource", DataSource_pb2.DataSource, "Data source", "DATA_SOURCE_NOT_FOUND", flat=True)
FEATURE_VIEW = Kind("featureView", FeatureView_pb2.FeatureView, **_VIEW, materializes=True)
STREAM_FEATURE_VIEW = Kind("streamFeatureView", StreamFeatureView_pb2.StreamFeatureView, **_VIEW, materializes=True)
ON_DEMAND_FEATURE_VIEW = Kind("onDemandFeatureView", OnDemandFeatureView_pb2.OnDemandFeatureView, **_VIEW)
LABEL_VIEW = Kind("labelView", LabelView_pb2.LabelView, **{**_VIEW, "lineage": "labelView"})
FEATURE_SERVICE = Kind(
    "featureService", FeatureService_pb2.FeatureService, "Feature service", "FEATURE_SERVICE_NOT_FOUND"
)
SAVED_DATASET = Kind("savedDataset", SavedDataset_pb2.SavedDataset, "Saved dataset", "SAVED_DATASET_NOT_FOUND")
VALIDATION_REFERENCE = Kind(
    "validationReference",
    ValidationProfile_pb2.ValidationReference,
    "Validation reference",
    "VALIDATION_REFERENCE_NOT_FOUND",
    flat=True,
    timed=False,
)
PERMISSION = Kind("permission", Permission_pb2.Permission, "Permission", "PERMISSION_NOT_FOUND")
# Parts of views: made when their view is written, never applied by themselves.
FEATURE = Kind("feature", RegistryServer_pb2.Feature, "Feature", "FEATURE_NOT_FOUND", flat=True, timed=False)
LABEL = Kind(
    "label",
    RegistryServer_pb2.Feature,
    "Label",
    "FEATURE_NOT_FOUND",
    family="feature",
    lineage="feature",
    flat=True,
    timed=False,
)

# In the order in which Feast looks a view up and lists it.
VIEWS = (FEATURE_VIEW, ON_DEMAND_FEATURE_VIEW, STREAM_FEATURE_VIEW, LABEL_VIEW)
BY_NAME = {
    kind.name: kind
    for kind in (
        PROJECT,
        ENTITY,
        DATA_SOURCE,
        *VIEWS,
        FEATURE_SERVICE,
        SAVED_DATASET,
        VALIDATION_REFERENCE,
        PERMISSION,
        FEATURE,
        LABEL,
    )
}

Edge = tuple[str, str, str, str]  # source type and name, target type and name


def edges(kind: Kind, message: Any) -> Iterator[Edge]:
    """What the object says about lineage: what it is made from, in the order of its definition."""
    spec = kind.spec(message)
    if kind.is_view:
        sources = _sources_of_view(kind, spec)
    elif kind is FEATURE_SERVICE:
        sources = ((_type_of_view(part), part.feature_view_name) for part in spec.features)
    elif kind is SAVED_DATASET:
        sources = _sources_of_dataset(spec)
    else:
        return
    for source_type, source_name in dict.fromkeys(sources):
        if source_name:
            yield source_type, source_name, kind.lineage, spec.name


def _type_of_view(projection: Any) -> str:
    return LABEL_VIEW.name if projection.view_type == LABEL_VIEW.name else FEATURE_VIEW.lineage


def _sources_of_view(kind: Kind, spec: Any) -> Iterator[tuple[str, str]]:
    for entity in spec.entities:
        yield ENTITY.name, entity
    if kind is not LABEL_VIEW:
        for feature in spec.features:
            yield FEATURE.name, feature.name
    for field in ("batch_source", "stream_source", "source"):
        if field in spec.DESCRIPTOR.fields_by_name and spec.HasField(field):
            source = getattr(spec, field)
            yield DATA_SOURCE.name, source.name
            if source.HasField("batch_source"):
                yield DATA_SOURCE.name, source.batch_source.name
    if kind is FEATURE_VIEW:
        for upstream in spec.source_views:
            yield FEATURE_VIEW.lineage, upstream.name
    if kind is ON_DEMAND_FEATURE_VIEW:
        # A protobuf map has no order of its own.
        for _, source in sorted(spec.sources.items()):
            yield _source_of_on_demand_view(source)


def _source_of_on_demand_view(source: Any) -> tuple[str, str]:
    chosen = source.WhichOneof("source")
    if chosen == "request_data_source":
        return DATA_SOURCE.name, source.request_data_source.name
    if chosen == "feature_view":
        return FEATURE_VIEW.lineage, source.feature_view.spec.name
    return FEATURE_VIEW.lineage, source.feature_view_projection.feature_view_name


def _sources_of_dataset(spec: Any) -> Iterator[tuple[str, str]]:
    yield FEATURE_SERVICE.name, spec.feature_service_name
    for reference in spec.features:
        view, colon, _ = reference.partition(":")
        if colon:
            # `view@v3:feature` names a version of the view.
            yield FEATURE_VIEW.lineage, view.partition("@")[0]
