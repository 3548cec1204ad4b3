"""Lists as SQL: what to list becomes one statement and its arguments, joined from the constant parts in this file.

Nothing that a caller sent becomes part of a statement: a filter or a way to sort that is not in these tables does not
exist. The comment of a part names the index that serves it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import orjson

from chassis import errors
from services.registry.kinds import FEATURE, FEATURE_SERVICE, LABEL, PROJECT, SAVED_DATASET, Kind
from services.registry.queries import QUERIES

PROTECTED = "feast.dev/protected-project"

# view_by_name, view_by_name_anywhere: the words of their predicates.
_ANY_VIEW = "o.kind IN ('featureView', 'onDemandFeatureView', 'streamFeatureView')"
_FILTERS = {
    # object_by_name, object_by_name_anywhere
    "kind": "o.kind = {}",
    # object_by_name, view_by_name, object_in_parent
    "project": "o.project = {}",
    "projects": "o.project = ANY({}::text[])",
    # object_tags
    "tags": "o.tags @> {}::jsonb",
    # object_updated
    "updated_since": "o.updated >= {}",
    # edge_source, then object_pkey. EXISTS, because PostgreSQL before 17 joins no IN that looks outside.
    "entity": "EXISTS (SELECT FROM registry.edge e"
    " WHERE e.object_id = o.id AND e.project = o.project AND e.source_type = 'entity' AND e.source_name = {})",
    "feature": "EXISTS (SELECT FROM registry.edge e"
    " WHERE e.object_id = o.id AND e.project = o.project AND e.source_type = 'feature' AND e.source_name = {})",
    "data_source": "EXISTS (SELECT FROM registry.edge e"
    " WHERE e.object_id = o.id AND e.project = o.project AND e.source_type = 'dataSource' AND e.source_name = {})",
    "selects_from": "EXISTS (SELECT FROM registry.edge e WHERE e.object_id = o.id AND e.project = o.project"
    " AND e.source_type IN ('featureView', 'labelView') AND e.source_name = {})",
    # edge_target, then object_key
    "feature_service": "o.family = 'featureView' AND o.parent = '' AND EXISTS (SELECT FROM registry.edge e"
    " WHERE e.source_name = o.name AND e.project = o.project AND e.source_type IN ('featureView', 'labelView')"
    " AND e.target_type = 'featureService' AND e.target_name = {})",
    # object_in_parent
    "feature_view": "o.parent = {}",
    # object_by_name, by way of sort_name
    "name": "o.name = {}",
    "sort_name": "o.sort_name = {}",
    # No index beyond that of the kind: saved datasets are few.
    "namespace": "convert_from(o.rendered, 'UTF8')::jsonb #>> '{{spec,namespace}}' = {}",
    "collection": "convert_from(o.rendered, 'UTF8')::jsonb #>> '{{spec,collection}}' = {}",
    # No index: there are few projects.
    "not_tagged": "NOT o.tags @> {}::jsonb",
    # object_key
    "project_not_tagged": "NOT EXISTS (SELECT FROM registry.object /* whole */ p WHERE p.project = o.project"
    " AND p.family = 'project' AND p.parent = '' AND p.name = o.project AND p.tags @> {}::jsonb)",
}
# Which filters each kind has besides project, tags and name.
_VIEW_FILTERS = frozenset({"entity", "feature", "feature_service", "data_source", "updated_since"})
_FEATURE_FILTERS = frozenset({"feature_view"})
_OTHER_FILTERS = {
    FEATURE_SERVICE: frozenset({"feature_view"}),
    SAVED_DATASET: frozenset({"namespace", "collection"}),
}

_SORTS = {
    "name": "o.sort_name",
    "project": "o.project",
    "created_timestamp": "o.created",
    "last_updated_timestamp": "o.updated",
    "description": "lower(o.description)",
    "owner": "lower(o.owner)",
    "type": "lower(o.type)",
    "feature_view": "o.parent",
}


@dataclass(frozen=True)
class Listing:
    """What to list. `kind` None: any feature view but a label view. No page: everything."""

    kind: Kind | None
    project: str = ""  # empty: all projects
    projects: Sequence[str] = ()  # not empty: only these
    tags: Mapping[str, str] = field(default_factory=dict)
    # Filters by their names in _FILTERS; empty values do not filter.
    filters: Mapping[str, Any] = field(default_factory=dict)
    page: int = 0
    limit: int = 0
    sort_by: str = ""
    descending: bool = False
    hide_protected: bool = False  # leave out protected projects and what is in them

    @property
    def paged(self) -> bool:
        """Whether a page was asked for. As in Feast, that takes both numbers."""
        return self.page > 0 and self.limit > 0


def page(listing: Listing, head: str, max_bytes: int) -> tuple[str, list[Any]]:
    """The statement that lists, and its arguments; `head` is what it reads of each object.

    It answers with as many rows as have `max_bytes` together and with the next one, so that more is noticed, and with
    no others.
    """
    where, arguments = conditions(listing)
    statement = f"{head} {where} ORDER BY {order(listing)}"
    if listing.paged:
        statement += f" LIMIT ${len(arguments) + 1} OFFSET ${len(arguments) + 2}"
        arguments += [listing.limit, (listing.page - 1) * listing.limit]
    arguments.append(max_bytes)
    measured = f"{QUERIES.with_bytes_before} ({statement}) p"
    return f"SELECT b.* FROM ({measured}) b WHERE b.bytes_before <= ${len(arguments)}", arguments  # noqa: S608


def conditions(listing: Listing) -> tuple[str, list[Any]]:
    """What follows WHERE, and its arguments. InvalidArgument for a filter that the kind does not have."""
    wanted: dict[str, Any] = {}
    if listing.kind is not None:
        wanted["kind"] = listing.kind.name
    if listing.project:
        wanted["project"] = listing.project
    if listing.projects:
        wanted["projects"] = list(listing.projects)
    if listing.tags:
        wanted["tags"] = orjson.dumps(dict(listing.tags)).decode()
    if listing.hide_protected:
        own = listing.kind is PROJECT
        wanted["not_tagged" if own else "project_not_tagged"] = orjson.dumps({PROTECTED: "true"}).decode()
    wanted |= _filters(listing)
    parts = [_FILTERS[name].format(f"${number}") for number, name in enumerate(wanted, 1)]
    if listing.kind is None:
        parts.insert(0, _ANY_VIEW)
    return " AND ".join(parts), list(wanted.values())


def _filters(listing: Listing) -> dict[str, Any]:
    given = {name: value for name, value in listing.filters.items() if value}
    unknown = given.keys() - _filters_of(listing.kind) - {"name"}
    if unknown:
        raise errors.InvalidArgument(f"{listing.kind and listing.kind.label} lists have no filter {min(unknown)}")
    if listing.kind is FEATURE_SERVICE and "feature_view" in given:
        given["selects_from"] = given.pop("feature_view")
    if "name" in given:
        given["sort_name"] = given["name"].lower()
    return given


def _filters_of(kind: Kind | None) -> frozenset[str]:
    if kind is None or kind.is_view:
        return _VIEW_FILTERS
    if kind in (FEATURE, LABEL):
        return _FEATURE_FILTERS
    return _OTHER_FILTERS.get(kind, frozenset())


def order(listing: Listing) -> str:
    """What follows ORDER BY. It leaves no two rows in doubt, so that pages neither repeat nor skip any."""
    column = _SORTS.get(_sort_name(listing.sort_by))
    columns: Sequence[str] = (column, "o.sort_name", "o.id") if column else _usual(listing)
    direction = " DESC" if listing.descending else ""
    return ", ".join(f"{each}{direction}" for each in dict.fromkeys(columns))


def _usual(listing: Listing) -> Sequence[str]:
    if listing.kind in (FEATURE, LABEL):
        return ("o.project", "o.parent", "o.position", "o.id")
    # A project is its own only object.
    across = not listing.project and listing.kind is not PROJECT
    return ("o.project", "o.sort_name", "o.id") if across else ("o.sort_name", "o.id")


def _sort_name(sort_by: str) -> str:
    """`spec.createdTimestamp` and `created_timestamp` are the same column."""
    bare = sort_by.removeprefix("spec.").removeprefix("meta.")
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in bare)


def at_or_after(moment: datetime | None) -> Mapping[str, Any]:
    """The filter that `updated_since` is."""
    return {"updated_since": moment} if moment else {}
