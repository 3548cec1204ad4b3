"""What the violation of each constraint of schema `management` means to a caller."""

from __future__ import annotations

from collections.abc import Callable

import asyncpg

from chassis import errors
from chassis.postgres import Constraints

_Made = Callable[[asyncpg.PostgresError], errors.TriglotError]


def _taken(resource: str) -> _Made:
    return lambda _: errors.AlreadyExists(f"a {resource} of this name exists already", resource=resource)


def _gone(resource: str) -> _Made:
    return lambda _: errors.NotFound(f"the {resource} was deleted meanwhile", resource=resource)


def _used(resource: str, dependents: str) -> _Made:
    """Parents are locked before children are made, so a foreign key is only ever violated by a deletion."""
    return lambda _: errors.FailedPrecondition(
        f"the {resource} is used by {dependents} and cannot be deleted before",
        reason="DEPENDENCY_EXISTS",
        resource=resource,
        dependents=dependents,
    )


CONSTRAINTS: Constraints = {
    "datasource_name_key": _taken("Datasource"),
    "project_name_key": _taken("Project"),
    "feature_entity_name_key": _taken("FeatureEntity"),
    "feature_view_name_key": _taken("FeatureView"),
    "label_table_name_key": _taken("LabelTable"),
    "model_feature_name_key": _taken("ModelFeature"),
    "project_offline_datasource_fkey": _used("Datasource", "a project"),
    "project_online_datasource_fkey": _used("Datasource", "a project"),
    "feature_view_register_datasource_fkey": _used("Datasource", "a feature view"),
    "label_table_datasource_fkey": _used("Datasource", "a label table"),
    "feature_entity_project_fkey": _used("Project", "a feature entity"),
    "feature_view_project_fkey": _used("Project", "a feature view"),
    "label_table_project_fkey": _used("Project", "a label table"),
    "model_feature_project_fkey": _used("Project", "a model feature"),
    "feature_entity_parent_fkey": _used("FeatureEntity", "a child entity"),
    "feature_view_entity_fkey": _used("FeatureEntity", "a feature view"),
    "model_feature_label_table_fkey": _used("LabelTable", "a model feature"),
    "selected_feature_view_fkey": _used("FeatureView", "a model feature"),
    "feature_view_referenced_fkey": _used("FeatureView", "a Sequence view"),
    # The one child whose parent is not locked before: it lets go of a view that is deleted.
    "task_feature_view_fkey": _gone("FeatureView"),
}
