"""What a request must be before anything is done with it. Everything here raises InvalidArgument or returns."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, MutableMapping, MutableSequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from chassis import errors
from protos.gen.feast.core.DataSource_pb2 import DataSource
from protos.gen.triglot.registry.v1 import object_pb2
from services.registry import kinds, visits
from services.registry.kinds import Kind

M = TypeVar("M", bound=Message)

# Index entries hold a project, a view and a feature; PostgreSQL takes 2,704 bytes for one entry.
MAX_NAME_BYTES = 1000
MAX_PROJECT_BYTES = 500
MAX_QUERY_LENGTH = 400
MAX_POPULAR_TAGS = 100
# Search reads the tags of a hundred objects at a time.
MAX_TAGS = 500
MAX_TAG_KEY_BYTES = 1000
MAX_TAG_VALUE_BYTES = 10_000
MAX_TAGS_BYTES = 100_000
# A view's features are rendered in one go, during which the process does nothing else.
MAX_FEATURES = 10_000
# A server of Feast reads no larger message, and lists are read some hundred objects at a time.
MAX_OBJECT_BYTES = 4 << 20
# Clients read messages of up to 100 levels, and lists put objects into other messages.
MAX_LEVELS = 32
MAX_VERSION = 1_000_000_000
# The ranges that protobuf gives Timestamp and Duration; JSON has no others.
_FIRST_SECOND, _LAST_SECOND = -62_135_596_800, 253_402_300_799
_MOST_SECONDS = 315_576_000_000
_SECOND_NANOS = 1_000_000_000
_PIN = re.compile(r"v(?:ersion)?([0-9]{1,10})", re.IGNORECASE)
_VISIT_BYTES = {"object": 100, "object_name": 2000, "path": 4000, "method": 20}
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


def texts_and_times(message: Message, path: str = "", level: int = 1) -> None:
    """No text in a message holds a NUL, no time or duration is beyond protobuf's, and all its levels can be read."""
    if level > MAX_LEVELS:
        outermost = path.partition(".")[0]
        raise errors.InvalidArgument(f"{outermost}: a message has at most {MAX_LEVELS} levels", field=outermost)
    for field, value in message.ListFields():
        where = path + field.name
        for part in _parts(value):
            if isinstance(part, str):
                if "\0" in part:
                    raise errors.InvalidArgument(f"{where}: text has no NUL character", field=where)
            elif isinstance(part, Timestamp):
                _timestamp(part, where)
            elif isinstance(part, Duration):
                _duration(part, where)
            elif isinstance(part, Message):
                texts_and_times(part, f"{where}.", level + 1)


def _parts(value: Any) -> Iterator[Any]:
    """The values of a field, whether it holds one, several, or a map."""
    if isinstance(value, MutableMapping):
        for key, item in value.items():
            yield key
            yield item
    elif isinstance(value, MutableSequence):
        yield from value
    else:
        yield value


def moment(request: Any, field: str) -> datetime | None:
    """A time that a request may hold."""
    if not request.HasField(field):
        return None
    time: Timestamp = getattr(request, field)
    _timestamp(time, field)
    return time.ToDatetime(UTC)


def _timestamp(time: Timestamp, where: str) -> None:
    if not (_FIRST_SECOND <= time.seconds <= _LAST_SECOND and 0 <= time.nanos < _SECOND_NANOS):
        raise errors.InvalidArgument(f"{where}: a time is between the years 1 and 9999", field=where)


def _duration(duration: Duration, where: str) -> None:
    same_sign = duration.seconds * duration.nanos >= 0
    if not (abs(duration.seconds) <= _MOST_SECONDS and abs(duration.nanos) < _SECOND_NANOS and same_sign):
        raise errors.InvalidArgument(f"{where}: a duration is at most 10,000 years", field=where)


def _name(name: str, field: str, label: str, limit: int) -> None:
    if not name:
        raise errors.InvalidArgument(f"{label} needs a name", field=field)
    if len(name.encode()) > limit:
        raise errors.InvalidArgument(f"{label}: a name has at most {limit} bytes", field=field)
    if "\0" in name:
        raise errors.InvalidArgument(f"{label}: a name has no NUL character", field=field)


def applied(kind: Kind, message: Any) -> None:
    """An object to create or replace. What passes can be shown as JSON and stored as text."""
    texts_and_times(message)
    spec = kind.spec(message)
    if message.ByteSize() > MAX_OBJECT_BYTES:
        raise errors.InvalidArgument(f"{kind.label} has at most {MAX_OBJECT_BYTES} bytes", field=kind.name)
    _name(spec.name, "name", kind.label, MAX_PROJECT_BYTES if kind is kinds.PROJECT else MAX_NAME_BYTES)
    _tags(spec.tags, kind.label)
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
    if len(spec.features) > MAX_FEATURES:
        raise errors.InvalidArgument(
            f"Feature view {spec.name} has at most {MAX_FEATURES} features, not {len(spec.features)}", field="features"
        )
    for feature in spec.features:
        _name(feature.name, "features", "Feature", MAX_NAME_BYTES)
        _tags(feature.tags, "Feature")
    if kind is not kinds.LABEL_VIEW:
        pinned_version(spec.version)


def _tags(tags: Mapping[str, str], label: str) -> None:
    if not tags:
        return
    sizes = [(len(key.encode()), len(value.encode())) for key, value in tags.items()]
    for size, most, what in (
        (len(sizes), MAX_TAGS, "tags"),
        (max(key for key, _ in sizes), MAX_TAG_KEY_BYTES, "bytes in the key of a tag"),
        (max(value for _, value in sizes), MAX_TAG_VALUE_BYTES, "bytes in the value of a tag"),
        (sum(map(sum, sizes)), MAX_TAGS_BYTES, "bytes in all its tags"),
    ):
        if size > most:
            raise errors.InvalidArgument(f"{label} has at most {most} {what}, not {size}", field="tags")


def _data_source(spec: Any) -> None:
    unknown_class = spec.type == DataSource.CUSTOM_SOURCE and not spec.data_source_class_type
    if spec.type == DataSource.INVALID or unknown_class:
        raise errors.InvalidArgument(f"Data source {spec.name} does not say of which type it is", field="type")


def pinned_version(version: str) -> int | None:
    """The version that a view asks for by `spec.version`: "v3" or "version3"; None for the latest one."""
    if version.lower() in ("", "latest"):
        return None
    match = _PIN.fullmatch(version)
    if match is None or int(match[1]) > MAX_VERSION:
        raise errors.InvalidArgument(
            f"Invalid version {version!r}: it must be 'latest', 'vN' or 'versionN', N up to {MAX_VERSION}",
            field="version",
        )
    return int(match[1])


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


def retrieval() -> errors.FailedPrecondition:
    """What a request gets that would read an offline store."""
    return errors.FailedPrecondition("Triglot's registry runs no retrievals: use the Feast SDK to make a dataset")


def dataset_taken(name: str, project: str) -> errors.AlreadyExists:
    """What a request gets that would replace a saved dataset and may not. Feast's words."""
    return errors.AlreadyExists(
        f'A dataset named "{name}" already exists in project "{project}". Use edit to update it.',
        resource="saved dataset",
        name=name,
    )


def too_large(limit_bytes: int) -> errors.ResourceExhausted:
    """What a request gets whose answer would be larger than a message."""
    return errors.ResourceExhausted(
        f"The answer is larger than a message of {limit_bytes} bytes: ask for pages (page and limit), or for smaller"
        " ones, or let TRIGLOT_MAX_MESSAGE_BYTES be larger",
        reason="ANSWER_TOO_LARGE",
        limit_bytes=limit_bytes,
    )


def sized(answer: M, limit_bytes: int) -> M:
    """An answer, unless it is larger than a message: that is a ResourceExhausted."""
    if answer.ByteSize() > limit_bytes:
        raise too_large(limit_bytes)
    return answer


def visit(request: Any) -> None:
    """A visit of triglot.registry.v1."""
    project_name(request.project)
    if not request.path:
        raise errors.InvalidArgument("a visit needs a path", field="path")
    for field, limit in _VISIT_BYTES.items():
        value = getattr(request, field)
        if len(value.encode()) > limit or "\0" in value:
            raise errors.InvalidArgument(f"{field} has at most {limit} bytes and no NUL character", field=field)


def visit_sort(sort_by: str) -> None:
    """How visits are sorted."""
    if sort_by and sort_by not in visits.SORTS:
        raise errors.InvalidArgument(f"sort_by must be one of {', '.join(visits.SORTS)}", field="sort_by")


def tag_limit(limit: int) -> None:
    """How many popular tags are asked for."""
    if not 1 <= limit <= MAX_POPULAR_TAGS:
        raise errors.InvalidArgument(f"limit must be between 1 and {MAX_POPULAR_TAGS}", field="limit")


def page(number: int, limit: int, max_limit: int) -> None:
    """A page of triglot.registry.v1: both numbers, or neither."""
    if (number, limit) == (0, 0):
        return
    if number < 1:
        raise errors.InvalidArgument("page must be at least 1", field="page")
    if not 1 <= limit <= max_limit:
        raise errors.InvalidArgument(f"limit must be between 1 and {max_limit}", field="limit")
