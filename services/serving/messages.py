"""Definitions as messages, and messages as definitions."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date

from google.protobuf.timestamp_pb2 import Timestamp

from chassis import datatypes
from protos.gen.triglot.serving.v1 import feature_group_pb2, feature_view_pb2
from protos.gen.triglot.serving.v1 import serving_service_pb2 as pb
from services.serving.definitions import Column, Group, Join, View, ViewFeature, store_name
from services.serving.statistics import Count


def group_of(message: feature_group_pb2.FeatureGroup) -> Group:
    """A checked group. Raises InvalidArgument."""
    lives = message.time_to_live
    group = Group(
        store=store_name(message.feature_store),
        name=message.name,
        version=message.version,
        columns=columns_of(message.features),
        primary_key=tuple(message.primary_key),
        event_time=message.event_time,
        time_to_live_ms=lives.seconds * 1000 + lives.nanos // 1_000_000,
        description=message.description,
    )
    group.check()
    return group


def columns_of(features: Iterable[feature_group_pb2.Feature]) -> tuple[Column, ...]:
    """The columns of a group as they are sent. Raises InvalidArgument for a type that there is not."""
    return tuple(Column(each.name, datatypes.parse(each.type), each.description) for each in features)


def group_message(group: Group) -> feature_group_pb2.FeatureGroup:
    """A stored group."""
    message = feature_group_pb2.FeatureGroup(
        id=group.id,
        feature_store=group.store,
        name=group.name,
        version=group.version,
        features=[feature_message(column) for column in group.columns],
        primary_key=group.primary_key,
        event_time=group.event_time,
        description=group.description,
        generation=group.generation,
        create_time=_timestamp(group),
    )
    if group.time_to_live_ms:
        message.time_to_live.FromMilliseconds(group.time_to_live_ms)
    return message


def feature_message(column: Column) -> feature_group_pb2.Feature:
    """One column."""
    return feature_group_pb2.Feature(name=column.name, type=column.type.hive, description=column.description)


def statistics_message(count: Count, days: Iterable[tuple[date, int, int]]) -> pb.GetFeatureGroupStatisticsResponse:
    """What a group holds and what was done with it."""
    message = pb.GetFeatureGroupStatisticsResponse(
        rows=count.rows,
        bytes=count.bytes,
        estimated=count.estimated,
        days=[pb.DailyUse(date=day.isoformat(), rows_read=read, rows_written=wrote) for day, read, wrote in days],
    )
    message.count_time.FromDatetime(count.counted_at)
    return message


def view_features_of(message: feature_view_pb2.FeatureView) -> tuple[ViewFeature, ...]:
    """The features of a view as it is sent."""
    return tuple(
        ViewFeature(each.join_index, each.name, each.label, each.inference_helper, each.training_helper)
        for each in message.features
    )


def join_of(message: feature_view_pb2.Join, group: Group) -> Join:
    """One join of a view as it is sent, with the group that it names."""
    return Join(group, message.prefix, tuple((pair.left, pair.right) for pair in message.on))


def view_message(view: View) -> feature_view_pb2.FeatureView:
    """A stored view."""
    message = feature_view_pb2.FeatureView(
        id=view.id,
        feature_store=view.store,
        name=view.name,
        version=view.version,
        description=view.description,
        create_time=_timestamp(view),
    )
    for join in view.joins:
        group = join.group
        added = message.joins.add(
            feature_store=group.store, feature_group=group.name, version=group.version, prefix=join.prefix
        )
        for left, right in join.on:
            added.on.add(left=left, right=right)
    for feature in view.features:
        group = view.joins[feature.join_index].group
        message.features.add(
            join_index=feature.join_index,
            name=feature.name,
            label=feature.label,
            inference_helper=feature.inference_helper,
            training_helper=feature.training_helper,
            type=group.columns[group.positions[feature.name]].type.hive,
        )
    for key in view.serving_keys:
        message.serving_keys.add(
            join_index=key.join_index,
            feature_name=key.feature_name,
            prefix=key.prefix,
            required=key.required,
            join_on=key.join_on,
        )
    return message


def _timestamp(stored: Group | View) -> Timestamp:
    moment = Timestamp()
    if stored.created_at is not None:
        moment.FromDatetime(stored.created_at)
    return moment
