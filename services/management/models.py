"""Model features: which features of which views a model reads, and where they come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chassis import calls
from chassis.postgres import Connection, Database
from protos.gen.triglot.management.v1 import fg_feature_pb2 as fg_pb
from protos.gen.triglot.management.v1 import model_feature_pb2 as pb
from services.management import audited, fg, fields, scripts, sequence_config, sequences
from services.management.inputs import (
    distinct,
    fetch_page,
    invalid,
    name,
    not_found,
    number,
    number_or_none,
    numbers,
    page_of,
    visible_stores,
)
from services.management.projects import permitted, share_project
from services.management.rows import QUERIES, Row, locked, timestamp
from services.management.tasks import MODEL_FEATURE, at_work

_MAX_FEATURES = 5_000


class ModelFeatures:
    """Rows of `model_feature` and `selected_feature`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, request: pb.CreateModelFeatureRequest) -> int:
        """Id of what was made. Raises AlreadyExists, InvalidArgument, NotFound."""
        title = name("Name", request.name)
        level = _level(request.label_priority_level)
        async with self._database.transaction() as connection:
            project = await share_project(connection, request.project_id)
            label = await _share_label_table(connection, project["id"], request.label_table_id)
            selection = await _selection(connection, project["id"], request)
            _check_labels(level, label, selection)
            made: int = await connection.fetchval(
                QUERIES.insert_model_feature, project["id"], label["id"], title, level, calls.principal().name
            )
            await _insert(connection, project["id"], made, selection)
            await audited.created(connection, audited.MODEL_FEATURE, made)
        return made

    async def get(self, key: str) -> pb.ModelFeature:
        """Raises NotFound, PermissionDenied."""
        row = await self._row(key)
        return _shown(row, await self._database.fetch(QUERIES.selected_features, row["id"]))

    async def page(self, request: pb.ListModelFeaturesRequest) -> tuple[int, list[pb.ModelFeatureSummary]]:
        """The count of all pages, and the page asked for."""
        total, rows = await fetch_page(
            self._database,
            QUERIES.list_model_features,
            visible_stores(),
            numbers("ModelFeatureIds", request.model_feature_ids),
            request.name,
            request.owner,
            number_or_none("ProjectId", request.project_id),
            *page_of(request).arguments,
        )
        return total, [_summary(row) for row in rows]

    async def update(self, request: pb.UpdateModelFeatureRequest) -> None:
        """Replace what is given. Raises NotFound, InvalidArgument."""
        identifier = number("ModelFeatureId", request.model_feature_id)
        permitted("ModelFeature", identifier, await self._database.fetchrow(QUERIES.model_feature, identifier))
        async with (
            self._database.transaction() as connection,
            audited.changing(connection, audited.MODEL_FEATURE, identifier),
        ):
            row = await locked(connection, QUERIES.lock_model_feature, QUERIES.locked_model_feature, identifier)
            if row is None:
                raise not_found("ModelFeature", identifier)
            project_id = row["project_id"]
            level = row["label_priority_level"]
            if request.HasField("label_priority_level"):
                level = _level(request.label_priority_level)
            label_key = request.label_table_id if request.HasField("label_table_id") else str(row["label_table_id"])
            label = await _share_label_table(connection, project_id, label_key)
            if request.features:
                selection = await _selection(connection, project_id, request)
                await connection.execute(QUERIES.delete_selected_features, identifier)
                await _insert(connection, project_id, identifier, selection)
            else:
                selection = _Selection(await connection.fetch(QUERIES.selected_features, identifier))
            _check_labels(level, label, selection)
            await connection.execute(QUERIES.update_model_feature, identifier, label["id"], level)

    async def delete(self, key: str) -> None:
        """Raises NotFound, PermissionDenied; FailedPrecondition while a training set of it is made."""
        identifier = number("ModelFeatureId", key)
        permitted("ModelFeature", key, await self._database.fetchrow(QUERIES.model_feature, identifier))
        async with self._database.transaction() as connection:
            row = await locked(connection, QUERIES.lock_model_feature, QUERIES.locked_model_feature, identifier)
            if row is not None and row["active_task"] is not None:
                raise at_work(row["active_task"], MODEL_FEATURE)
            async with audited.changing(connection, audited.MODEL_FEATURE, identifier):
                await connection.execute(QUERIES.delete_model_feature, identifier)

    async def exportable(self, key: str) -> tuple[Row, list[Row], list[Row]]:
        """What a training set is made from: the model feature, its views, what it selects. Raises NotFound,
        PermissionDenied."""
        return await self._with_views(await self._row(key))

    async def found(self, identifier: int) -> tuple[Row, list[Row], list[Row]]:
        """The same, whoever asks. Raises NotFound."""
        row = await self._database.fetchrow(QUERIES.model_feature, identifier)
        if row is None:
            raise not_found("ModelFeature", identifier)
        return await self._with_views(row)

    async def _with_views(self, row: Row) -> tuple[Row, list[Row], list[Row]]:
        views = await self._database.fetch(QUERIES.views_of_model, row["id"])
        return row, [*views], [*await self._database.fetch(QUERIES.selected_features, row["id"])]

    async def fg(self, key: str) -> fg_pb.FGFeature:
        """How features are generated from it. Raises NotFound, PermissionDenied."""
        return fg.loaded((await self._row(key))["fg"])

    async def update_fg(self, request: fg_pb.UpdateModelFeatureFGFeatureRequest) -> None:
        """Replace that. Raises NotFound, PermissionDenied, InvalidArgument."""
        row = await self._row(request.model_feature_id)
        config = fg.dumped(fg.checked(request))
        async with (
            self._database.transaction() as connection,
            audited.changing(connection, audited.MODEL_FEATURE, row["id"]),
        ):
            if await connection.fetchval(QUERIES.update_model_feature_fg, row["id"], config) is None:
                raise not_found("ModelFeature", row["id"])

    async def check_fg(self, key: str) -> list[fg_pb.FGCheckResult]:
        """Whether it fits the model feature. Raises NotFound, PermissionDenied."""
        row = await self._row(key)
        selected = await self._database.fetch(QUERIES.selected_features, row["id"])
        whole = (fields.loaded(each["view_fields"]) for each in selected if each["name"] is None)
        parts = [field["name"] for columns in whole for field in columns]
        return list(fg.results(fg.loaded(row["fg"]), (each.name for each in _available(row, selected)), parts))

    async def available(self, key: str, part: str) -> list[fg_pb.AvailableFeature]:
        """The features, with `part` in their names, that can be used for it. Raises NotFound, PermissionDenied."""
        row = await self._row(key)
        selected = await self._database.fetch(QUERIES.selected_features, row["id"])
        return [
            fg_pb.AvailableFeature(
                name=each.name, source_type=each.source_type, source_name=each.source_name, type=each.value_type
            )
            for each in _available(row, selected)
            if part in each.name
        ]

    async def _row(self, key: str) -> Row:
        found = await self._database.fetchrow(QUERIES.model_feature, number("ModelFeatureId", key))
        return permitted("ModelFeature", key, found)


class _Selection(list[Row]):
    """What a model feature takes, in order: view, name (None: a whole Sequence view), alias, prefix, type."""

    def seen_names(self) -> list[str]:
        """The names under which the model sees them."""
        return [seen_name(each) for each in self if each["name"] is not None]


def seen_name(selected: Row) -> str:
    """The name under which the model sees a feature that it takes."""
    return str(selected["prefix_name"] + (selected["alias_name"] or selected["name"]))


def _available(row: Row, selected: Sequence[Row]) -> list[fg.Available]:
    """The model's features, of views and of the label table; of two of one name, the one that has priority."""
    labels = {
        field["name"]: fg.Available(field["name"], "LabelTable", row["label_table_name"], field["type"])
        for field in fields.loaded(row["label_fields"])
        if "FeatureField" in field["attributes"]
    }
    views = {
        seen_name(each): fg.Available(seen_name(each), "FeatureView", each["view_name"], each["type"])
        for each in selected
        if each["name"] is not None
    }
    return list(({**views, **labels} if row["label_priority_level"] == 1 else {**views, **labels, **views}).values())


async def _selection(connection: Connection, project_id: int, request: Any) -> _Selection:
    """What a request selects. Its views are kept from being deleted until the transaction ends."""
    if not request.features:
        raise invalid("Features", "is required")
    if len(request.features) > _MAX_FEATURES:
        raise invalid("Features", f"takes at most {_MAX_FEATURES} features")
    chosen = [(number("Features[].FeatureViewId", each.feature_view_id), each) for each in request.features]
    whole = [number("SequenceFeatureViewIds", key) for key in request.sequence_feature_view_ids]
    ids = sorted({*(view_id for view_id, _ in chosen), *whole})
    views = {row["id"]: row for row in await connection.fetch(QUERIES.share_feature_views, project_id, ids)}
    for view_id in ids:
        if view_id not in views:
            raise not_found("FeatureView", view_id)
    known = {view_id: _names(row) for view_id, row in views.items()}
    for view_id, each in chosen:
        if each.name not in known[view_id]:
            raise invalid("Features[].Name", f"{each.name!r} is no field of feature view {views[view_id]['name']}")
    for view_id in whole:
        if views[view_id]["type"] != sequences.TYPE:
            raise invalid("SequenceFeatureViewIds", f"names {view_id}, which is of type {views[view_id]['type']}")
    distinct("Features", ((view_id, each.name) for view_id, each in chosen))
    selection = _Selection(
        {
            "feature_view_id": view_id,
            "name": each.name,
            "alias_name": each.alias_name,
            "prefix_name": each.prefix_name,
            "type": fields.kind("Features[].Type", each.type),
        }
        for view_id, each in chosen
    )
    distinct("Features[].AliasName", selection.seen_names())
    selection += [
        {"feature_view_id": view_id, "name": None, "alias_name": "", "prefix_name": "", "type": ""}
        for view_id in dict.fromkeys(whole)
    ]
    return selection


def _names(view: Row) -> set[str]:
    """What can be selected of a view: its fields, and sequences by their names offline, as in PAI, or online."""
    names = {field["name"] for field in fields.loaded(view["fields"])}
    return names | sequence_config.names_of(view["config"]) if view["type"] == sequences.TYPE else names


async def _insert(connection: Connection, project_id: int, identifier: int, selection: _Selection) -> None:
    columns = ("feature_view_id", "name", "alias_name", "prefix_name", "type")
    values = [[each[column] for each in selection] for column in columns]
    await connection.execute(QUERIES.insert_selected_features, project_id, identifier, *values)


async def _share_label_table(connection: Connection, project_id: int, key: str) -> Row:
    row: Row | None = await connection.fetchrow(QUERIES.share_label_table, project_id, number("LabelTableId", key))
    if row is None:
        raise not_found("LabelTable", key)
    return row


def _check_labels(level: int, label: Row, selection: _Selection) -> None:
    """Level 0 allows no name that both the label table, as a feature, and a feature view give the model."""
    if level == 0:
        both = set(fields.having(fields.loaded(label["fields"]), "FeatureField")) & set(selection.seen_names())
        if both:
            raise invalid(
                "LabelPriorityLevel",
                f"0 allows no feature that label table {label['name']} has too: {', '.join(sorted(both))}",
            )


def _level(level: int) -> int:
    if not 0 <= level <= 2:
        raise invalid("LabelPriorityLevel", "must be 0, 1 or 2")
    return level


def _shown(row: Row, selected: Sequence[Row]) -> pb.ModelFeature:
    named = [each for each in selected if each["name"] is not None]
    return pb.ModelFeature(
        model_feature_id=str(row["id"]),
        name=row["name"],
        project_id=str(row["project_id"]),
        project_name=row["project_name"],
        label_table_id=str(row["label_table_id"]),
        label_table_name=row["label_table_name"],
        label_priority_level=row["label_priority_level"],
        features=[
            pb.SelectedFeature(
                feature_view_id=str(each["feature_view_id"]),
                feature_view_name=each["view_name"],
                name=each["name"],
                alias_name=each["alias_name"],
                prefix_name=each["prefix_name"],
                type=each["type"],
            )
            for each in named
        ],
        sequence_feature_view_ids=[str(each["feature_view_id"]) for each in selected if each["name"] is None],
        relations=_relations(row, selected),
        training_set_table=training_set_table_of(row),
        training_set_fg_table=f"{training_set_table_of(row)}_fg",
        export_training_set_table_script=scripts.export_training_set(row, [each["view_name"] for each in selected]),
        owner=row["owner"],
        gmt_create_time=timestamp(row["created_at"]),
        gmt_modified_time=timestamp(row["modified_at"]),
    )


def training_set_table_of(model: Row) -> str:
    """Name of the table that a model feature's training sets are written to."""
    return f"{model['project_name']}_{model['name']}_training_set".lower()


def _relations(row: Row, selected: Sequence[Row]) -> pb.Relations:
    """Entities lead to the views that they are the key of, views to the model feature."""
    model = f"model_feature_{row['id']}"
    domains = {model: pb.Domain(id=model, name=row["name"], domain_type="ModelFeature")}
    links: dict[tuple[str, str], pb.Link] = {}
    for each in selected:
        view = f"feature_view_{each['feature_view_id']}"
        domains[view] = pb.Domain(id=view, name=each["view_name"], domain_type="FeatureView")
        join_id = each["join_id"] or ""
        links[view, model] = pb.Link(**{"from": view, "to": model, "link": join_id})
        if each["feature_entity_id"] is not None:
            entity = f"feature_entity_{each['feature_entity_id']}"
            domains[entity] = pb.Domain(id=entity, name=each["entity_name"], domain_type="FeatureEntity")
            links[entity, view] = pb.Link(**{"from": entity, "to": view, "link": join_id})
    return pb.Relations(domains=domains.values(), links=links.values())


def _summary(row: Row) -> pb.ModelFeatureSummary:
    return pb.ModelFeatureSummary(
        model_feature_id=str(row["id"]),
        name=row["name"],
        project_id=str(row["project_id"]),
        project_name=row["project_name"],
        label_table_name=row["label_table_name"],
        owner=row["owner"],
        gmt_create_time=timestamp(row["created_at"]),
        gmt_modified_time=timestamp(row["modified_at"]),
    )
