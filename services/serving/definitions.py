"""What a feature group and a feature view are, apart from how they are stored or sent. Immutable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property, lru_cache

from chassis import datatypes, errors
from chassis.datatypes import DataType

MAX_COLUMNS = 2_000
MAX_JOINS = 100
_MAX_NAME_LENGTH = 255
# Types whose values say which of two rows is newer.
_EVENT_TIME_KINDS = ("timestamp", "date", "tinyint", "smallint", "int", "bigint")
# Types whose values are equal only if their texts are, so that a row can be found by them.
_KEY_KINDS = frozenset(datatypes.SCALARS) - {"float", "double"}


@lru_cache(4096)
def store_name(text: str) -> str:
    """A feature store's name as it is kept: lower case, without Hopsworks' suffix. Raises InvalidArgument."""
    return checked_name(text.lower().removesuffix("_featurestore"), "feature_store")


def checked_name(text: str, field: str) -> str:
    """A name of 1 to 255 printable characters. Raises InvalidArgument."""
    if not (1 <= len(text) <= _MAX_NAME_LENGTH and text.isprintable()):
        raise errors.InvalidArgument(
            f"{field} must be a name of 1 to {_MAX_NAME_LENGTH} printable characters", field=field
        )
    return text


def checked_version(version: int, field: str = "version") -> int:
    """A version number of 1 or more. Raises InvalidArgument."""
    if version < 1:
        raise errors.InvalidArgument(f"{field} must be 1 or more", field=field)
    return version


@dataclass(frozen=True)
class Column:
    """One column of a group."""

    name: str
    type: DataType
    description: str = ""


@dataclass(frozen=True)
class Group:
    """A feature group. `id`, `generation`, `row_set` and `created_at` are known once it is stored."""

    store: str
    name: str
    version: int
    columns: tuple[Column, ...]
    primary_key: tuple[str, ...]
    event_time: str = ""
    time_to_live_ms: int = 0
    description: str = ""
    id: int = 0
    generation: int = 0
    # Where its rows are in Redis. None: deleted.
    row_set: int | None = None
    created_at: datetime | None = None

    @cached_property
    def positions(self) -> dict[str, int]:
        """Position of each column in a row."""
        return {column.name: position for position, column in enumerate(self.columns)}

    @cached_property
    def key_columns(self) -> tuple[Column, ...]:
        """The key's columns, in the order of the composite key."""
        return tuple(self.columns[self.positions[name]] for name in self.primary_key)

    def check(self) -> None:
        """Raises InvalidArgument, saying which field is wrong."""
        checked_name(self.name, "name")
        checked_version(self.version)
        if not 1 <= len(self.columns) <= MAX_COLUMNS:
            raise errors.InvalidArgument(f"a feature group has 1 to {MAX_COLUMNS} features", field="features")
        for column in self.columns:
            checked_name(column.name, "features.name")
        repeated = _repeated([column.name for column in self.columns]) or _repeated(self.primary_key)
        if repeated:
            raise errors.InvalidArgument(f"{repeated} is there twice", field="features", name=repeated)
        self._check_keys()
        if self.event_time and self.event_time not in self.positions:
            raise errors.InvalidArgument(f"event_time {self.event_time} is no feature of the group", field="event_time")
        if self.event_time and self.columns[self.positions[self.event_time]].type.kind not in _EVENT_TIME_KINDS:
            raise errors.InvalidArgument("event_time must be a timestamp, a date or an integer", field="event_time")
        if self.time_to_live_ms < 0:
            raise errors.InvalidArgument("time_to_live must not be negative", field="time_to_live")

    def _check_keys(self) -> None:
        if not self.primary_key:
            raise errors.InvalidArgument("a feature group has at least one key column", field="primary_key")
        for name in self.primary_key:
            if name not in self.positions:
                raise errors.InvalidArgument(f"key {name} is no feature of the group", field="primary_key", name=name)
        for column in self.key_columns:
            if column.type.kind not in _KEY_KINDS:
                raise errors.InvalidArgument(
                    f"{column.name} cannot be a key: its type is {column.type.hive}",
                    field="primary_key",
                    name=column.name,
                )

    def missing(self, columns: Sequence[Column]) -> tuple[Column, ...]:
        """Those of the columns that the group has not.

        Raises AlreadyExists, DEFINITION_CONFLICT, if it has one with another type, InvalidArgument if they are wrong in
        themselves or too many.
        """
        if not columns:
            raise errors.InvalidArgument("no feature is given", field="features")
        mine = {column.name: column.type.hive for column in self.columns}
        new = tuple(column for column in columns if column.name not in mine)
        replace(self, columns=self.columns + new).check()
        differences = "; ".join(
            f"{column.name} is {mine[column.name]}, not {column.type.hive}"
            for column in columns
            if mine.get(column.name, column.type.hive) != column.type.hive
        )
        if differences:
            raise errors.AlreadyExists(
                f"feature group {self.name} version {self.version} has other columns: {differences}",
                reason="DEFINITION_CONFLICT",
                differences=differences,
                feature_group=self.name,
            )
        return new

    def differences(self, other: Group) -> list[str]:
        """In what `other` defines another table, a text for each. Empty: the same."""
        mine, theirs = ({column.name: column.type.hive for column in each.columns} for each in (self, other))
        found = [f"{name} is missing" for name in mine if name not in theirs]
        found += [f"{name} is new" for name in theirs if name not in mine]
        found += [
            f"{name} is {mine[name]}, not {theirs[name]}" for name in mine if mine[name] != theirs.get(name, mine[name])
        ]
        if not found and list(mine) != list(theirs):
            found.append(f"the order is {', '.join(mine)}")
        if self.primary_key != other.primary_key:
            found.append(f"the key is {', '.join(self.primary_key)}, not {', '.join(other.primary_key)}")
        if self.event_time != other.event_time:
            found.append(f"event_time is {self.event_time or 'empty'}, not {other.event_time or 'empty'}")
        return found


@dataclass(frozen=True)
class Join:
    """One use of a group in a view. `on` pairs columns of the first group with columns of this one."""

    group: Group
    prefix: str = ""
    on: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class ViewFeature:
    """One feature of a view."""

    join_index: int
    name: str
    label: bool = False
    inference_helper: bool = False
    training_helper: bool = False


@dataclass(frozen=True)
class ServingKey:
    """One key column that an entry can name; see serving_keys."""

    join_index: int
    feature_name: str
    prefix: str
    required: bool
    join_on: str = ""

    @property
    def required_entry(self) -> str:
        """The name under which an entry should hold the value."""
        return self.prefix + self.feature_name if self.required else self.join_on


@dataclass(frozen=True)
class View:
    """A feature view. `id` and `created_at` are known once it is stored, `serving_keys` once they are derived."""

    store: str
    name: str
    version: int
    joins: tuple[Join, ...]
    features: tuple[ViewFeature, ...]
    serving_keys: tuple[ServingKey, ...] = ()
    description: str = ""
    id: int = 0
    created_at: datetime | None = None

    def check(self) -> None:
        """Raises InvalidArgument for what is wrong whatever the groups, NotFound for a feature that no group has."""
        checked_name(self.name, "name")
        checked_version(self.version)
        if not self.features or len(self.features) > MAX_COLUMNS:
            raise errors.InvalidArgument(f"a feature view has 1 to {MAX_COLUMNS} features", field="features")
        for index, join in enumerate(self.joins):
            self._check_join(index, join)
        for feature in self.features:
            if not 0 <= feature.join_index < len(self.joins):
                raise errors.InvalidArgument(
                    f"feature {feature.name} names join {feature.join_index}, which is not there", field="join_index"
                )
            _require_column(self.joins[feature.join_index].group, feature.name)

    def _check_join(self, index: int, join: Join) -> None:
        if index == 0 and join.on:
            raise errors.InvalidArgument("the first join has nothing to be joined on", field="joins.on")
        if index > 0 and not join.on:
            raise errors.InvalidArgument(f"join {index} says not what it is joined on", field="joins.on")
        if len(join.prefix) > _MAX_NAME_LENGTH or not join.prefix.isprintable():
            raise errors.InvalidArgument(f"the prefix of join {index} is too long or not printable", field="prefix")
        for left, right in join.on:
            _require_column(self.joins[0].group, left)
            _require_column(join.group, right)


def _require_column(group: Group, name: str) -> None:
    if name not in group.positions:
        raise errors.NotFound(
            f"feature group {group.name} version {group.version} has no feature {name}",
            reason="FEATURE_NOT_FOUND",
            name=name,
            feature_group=group.name,
        )


def _repeated(names: Sequence[str]) -> str | None:
    counted = Counter(names)
    return next((name for name in names if counted[name] > 1), None)
