"""What a request must be before anything is done with it. Everything here raises InvalidArgument or returns."""

from __future__ import annotations

from typing import Any

from chassis import errors
from protos.gen.feast.core.DataSource_pb2 import DataSource
from protos.gen.triglot.registry.v1 import object_pb2
from services.registry import kinds
from services.registry.kinds import Kind

# Index entries hold a project, a view and a feature; PostgreSQL takes 2,704 bytes for one entry.
MAX_NAME_BYTES = 1000
MAX_PROJECT_BYTES = 500
MAX_QUERY_LENGTH = 400
MAX_TAGS = 100
_SEARCH_SORTS = ("", "match_score", "name", "type")

# The fields of the oneofs in ApplyFeatureViewRequest and AnyFeatureView.
VIEW_FIELDS = {
    kinds.FEATURE_VIEW: "feature_view",
    kinds.ON_DEMAND_FEATURE_VIEW: "on_demand_feature_view",
    kinds.STREAM_FEATURE_VIEW: "stream_feature_view",
    kinds.LABEL_VIEW: "label_view",
}
_VIEW_KINDS = {field: kind for kind, field in VIEW_FIELDS.items()}

_ANY_VIEW = object_pb2.OBJECT_KIND_ANY_FEATURE_VIEW
_OBJECT_KINDS: dict[int, Kind] = {
    object_pb2.OBJECT_KIND_PROJECT: kinds.PROJECT,
    object_pb2.OBJECT_KIND_ENTITY: kinds.ENTITY,
    object_pb2.OBJECT_KIND_DATA_SOURCE: kinds.DATA_SOURCE,
    object_pb2.OBJECT_KIND_FEATURE_VIEW: kinds.FEATURE_VIEW,
    object_pb2.OBJECT_KIND_STREAM_FEATURE_VIEW: kinds.STREAM_FEATURE_VIEW,
    object_pb2.OBJECT_KIND_ON_DEMAND_FEATURE_VIEW: kinds.ON_DEMAND_FEATURE_VIEW,
    object_pb2.OBJECT_KIND_LABEL_VIEW: kinds.LABEL_VIEW,
    object_pb2.OBJECT_KIND_FEATURE: kinds.FEATURE,
    object_pb2.OBJECT_KIND_LABEL: kinds.LABEL,
    object_pb2.OBJECT_KIND_FEATURE_SERVICE: kinds.FEATURE_SERVICE,
    object_pb2.OBJECT_KIND_SAVED_DATASET: kinds.SAVED_DATASET,
    object_pb2.OBJECT_KIND_VALIDATION_REFERENCE: kinds.VALIDATION_REFERENCE,
    object_pb2.OBJECT_KIND_PERMISSION: kinds.PERMISSION,
}

_LINEAGE_TYPES = ("dataSource", "entity", "featureView", "labelView", "featureService", "feature", "savedDataset")


def project_name(project: str) -> None:
    """A project to write to."""
    _name(project, "project", "Project", MAX_PROJECT_BYTES)


def _name(name: str, field: str, label: str, limit: int) -> None:
    if not name:
        raise errors.InvalidArgument(f"{label} needs a name", field=field)
    if len(name.encode()) > limit:
        raise errors.InvalidArgument(f"{label}: a name has at most {limit} bytes", field=field)
    if "\0" in name:
        raise errors.InvalidArgument(f"{label}: a name has no NUL character", field=field)


def applied(kind: Kind, message: Any) -> None:
    """An object to create or replace."""
    spec = kind.spec(message)
    _name(spec.name, "name", kind.label, MAX_PROJECT_BYTES if kind is kinds.PROJECT else MAX_NAME_BYTES)
    if kind.is_view:
        _view(kind, spec)
    elif kind is kinds.DATA_SOURCE:
        _data_source(spec)
    elif kind is kinds.PERMISSION and not spec.actions:
        raise errors.InvalidArgument(f"Permission {spec.name} needs at least one action", field="actions")


def _view(kind: Kind, spec: Any) -> None:
    if "@" in spec.name or ":" in spec.name:
        raise errors.InvalidArgument(f"Feature view name {spec.name!r} may hold neither '@' nor ':'", field="name")
    if kind in (kinds.FEATURE_VIEW, kinds.STREAM_FEATURE_VIEW) and not spec.entities:
        raise errors.InvalidArgument(f"Feature view {spec.name} has no entities", field="entities")
    for feature in spec.features:
        _name(feature.name, "features", "Feature", MAX_NAME_BYTES)
    if kind is not kinds.LABEL_VIEW and spec.version not in ("", "latest"):
        raise errors.Unimplemented(f"Feature view {spec.name} asks for version {spec.version}: only 'latest' is taken")


def _data_source(spec: Any) -> None:
    unknown_class = spec.type == DataSource.CUSTOM_SOURCE and not spec.data_source_class_type
    if spec.type == DataSource.INVALID or unknown_class:
        raise errors.InvalidArgument(f"Data source {spec.name} does not say of which type it is", field="type")


def view_kind(chosen: str | None) -> Kind:
    """The kind that an ApplyFeatureViewRequest carries."""
    if chosen is None:
        raise errors.InvalidArgument("the request carries no feature view", field="base_feature_view")
    return _VIEW_KINDS[chosen]


def feature_kind(shown: str) -> Kind:
    """What ListFeatures lists: `feature`, which is also the default, or `label`."""
    if shown in ("", "feature"):
        return kinds.FEATURE
    if shown == "label":
        return kinds.LABEL
    raise errors.InvalidArgument("kind must be feature or label", field="kind")


def object_kind(number: int) -> Kind | None:
    """The kind of triglot.registry.v1's requests; None is any feature view but a label view."""
    if number == _ANY_VIEW:
        return None
    if number not in _OBJECT_KINDS:
        raise errors.InvalidArgument("the kind of object is missing or unknown", field="kind")
    return _OBJECT_KINDS[number]


def lineage_type(shown: str) -> None:
    """A type of object that lineage knows."""
    if shown not in _LINEAGE_TYPES:
        raise errors.InvalidArgument(
            f"Invalid object_type: {shown!r}. Valid types are: {', '.join(_LINEAGE_TYPES)}", field="object_type"
        )


def search(query: str, sort_by: str) -> None:
    """A search of triglot.registry.v1."""
    if len(query) > MAX_QUERY_LENGTH:
        raise errors.InvalidArgument(f"a query has at most {MAX_QUERY_LENGTH} characters", field="query")
    if sort_by not in _SEARCH_SORTS:
        raise errors.InvalidArgument("sort_by must be match_score, name or type", field="sort_by")


def tag_limit(limit: int) -> None:
    """How many popular tags are asked for."""
    if not 1 <= limit <= MAX_TAGS:
        raise errors.InvalidArgument(f"limit must be between 1 and {MAX_TAGS}", field="limit")


def page(number: int, limit: int, max_limit: int) -> None:
    """A page of triglot.registry.v1: both numbers, or neither."""
    if (number, limit) == (0, 0):
        return
    if number < 1:
        raise errors.InvalidArgument("page must be at least 1", field="page")
    if not 1 <= limit <= max_limit:
        raise errors.InvalidArgument(f"limit must be between 1 and {max_limit}", field="limit")
