"""A slow model of Hopsworks' feature vectors, written from the text of its rules and from nothing of ours.

Groups, views and requests are plain JSON-like values; `answer` says the status and the JSON of the whole answer. Where
several things are wrong with a request, it says all codes that may be answered.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

NUMBERS = ("int", "bigint", "double")
RANGES = {"int": 2**31, "bigint": 2**63}
OTHER = ("array<bigint>",)
_EPOCH = datetime.date(1970, 1, 1)
_DAY_MILLISECONDS = 86_400_000


@dataclass
class Group:
    """A table: types by column, key columns, rows."""

    name: str
    columns: dict[str, str]
    key: list[str]
    rows: list[dict[str, Any]]
    id: int = 0


@dataclass
class Join:
    """One use of a group; `on` pairs columns of the first group with columns of this one."""

    group: Group
    prefix: str = ""
    on: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Feature:
    """A feature of the view. `mark` is empty, label, inference_helper or training_helper."""

    join: int
    name: str
    mark: str = ""


@dataclass
class Key:
    """A serving key: its column, and the names under which an entry may hold it, the most wanted first."""

    column: str
    names: list[str]
    accepted: list[str]


class Refused(Exception):
    """An entry that is wrong: HTTP status of a single request, and the code."""

    def __init__(self, status: int, code: int) -> None:
        self.status, self.code = status, code


class View:
    """What a view answers."""

    def __init__(self, joins: Sequence[Join], features: Sequence[Feature]) -> None:
        self.joins = joins
        self.served = [each for each in features if each.mark != "label"]
        self.keys = serving_keys(joins)
        self.accepted = {name for keys in self.keys for key in keys for name in key.accepted}
        # A group that has only labels is not read.
        self.reads = sorted({each.join for each in self.served})

    def name(self, feature: Feature) -> str:
        return self.joins[feature.join].prefix + feature.name

    def type(self, feature: Feature) -> str:
        return self.joins[feature.join].group.columns[feature.name]

    def answer(self, request: Mapping[str, Any], *, batch: bool) -> tuple[int, set[int], Any]:
        """HTTP status, the codes that may be in it, and otherwise the whole answer."""
        entries = request["entries"] if batch else [request["entries"]]
        given = request.get("passedFeatures")
        passed = ((given or []) if batch else [given]) or [None] * len(entries)
        faults = set()
        if any(None in entry.values() for entry in entries):
            faults.add(12)
        if any(None in (values or {}).values() for values in passed):
            faults.add(13)
        if not entries or len(passed) != len(entries):
            faults.add(0)  # a text without a code
        if faults:
            return 400, faults, None
        options = request.get("options") or {}
        validated = options.get("validatePassedFeatures") or False
        vectors = []
        for entry, values in zip(entries, passed, strict=True):
            try:
                vectors.append(self.vector(entry, values or {}, validated=validated))
            except Refused as refused:
                if not batch:
                    return refused.status, {refused.code}, None
                wrong = [(self.joins[index].group.id, 400) for index in self.reads]
                vectors.append((None, "ERROR", wrong))
        features, statuses, details = zip(*vectors, strict=True)
        shown = [
            [{"featureGroupId": group, "httpStatus": status} for group, status in each]
            for each in (details if options.get("includeDetailedStatus") else ())
        ]
        body = {
            "features": list(features) if batch else features[0],
            "metadata": self.metadata(request.get("metadataOptions") or {}),
            "status": list(statuses) if batch else statuses[0],
            "detailedStatus": (shown if batch else shown[0]) if shown else None,
        }
        return 200, set(), body

    def metadata(self, options: Mapping[str, bool | None]) -> list[dict[str, Any]] | None:
        names, types = options.get("featureName"), options.get("featureType")
        # A view of labels alone has nothing to tell of.
        if not (names or types) or not self.served:
            return None
        return [
            {"featureName": self.name(each) if names else None, "featureType": self.type(each) if types else None}
            for each in self.served
        ]

    def vector(
        self, entry: Mapping[str, Any], passed: Mapping[str, Any], *, validated: bool
    ) -> tuple[list[Any], str, list[tuple[int, int]]]:
        """Values, status, and of each group that is read its id and what became of its row."""
        if not entry or not set(entry) <= self.accepted:
            raise Refused(400, 12)
        if validated:
            self.check_passed(passed)
        rows: dict[int, Mapping[str, Any]] = {}
        statuses = []
        for index in self.reads:
            group = self.joins[index].group
            values = self.key_values(index, entry)
            if None in values:
                statuses.append((group.id, 400))
                continue
            wanted = [canonical(group.columns[name], value) for name, value in zip(group.key, values, strict=True)]
            found = [row for row in group.rows if [canonical(group.columns[k], row[k]) for k in group.key] == wanted]
            statuses.append((group.id, 200 if found else 404))
            rows[index] = found[0] if found else {}
        vector = []
        for feature in self.served:
            name, group = self.name(feature), self.joins[feature.join].group
            if name in passed:
                vector.append(passed[name])
            elif feature.name in group.key:
                vector.append(self.key_values(feature.join, entry)[group.key.index(feature.name)])
            else:
                vector.append(shown(rows.get(feature.join, {}).get(feature.name)))
        complete = all(status == 200 for _, status in statuses)
        return vector, "COMPLETE" if complete else "MISSING", statuses

    def key_values(self, index: int, entry: Mapping[str, Any]) -> list[Any]:
        """The entry's values of a group's key columns, None for those that it does not hold."""
        return [next((entry[name] for name in key.names if name in entry), None) for key in self.keys[index]]

    def check_passed(self, passed: Mapping[str, Any]) -> None:
        for name, value in passed.items():
            features = [each for each in self.served if self.name(each) == name]
            if not features:
                raise Refused(400, 11)
            if any(kind_of_value(value) != kind_of_type(self.type(each)) for each in features):
                raise Refused(400, 10)


def serving_keys(joins: Sequence[Join]) -> list[list[Key]]:
    """Those of each join, in the order of its group's key."""
    left = joins[0]
    taken = {left.prefix + name for name in left.group.key}
    found = [[key(name, left.prefix, left.prefix + name) for name in left.group.key]]
    for index, join in enumerate(joins[1:], start=1):
        of_join = []
        for name in join.group.key:
            joined = [column for column, other in join.on if other == name and column in left.group.key]
            if joined:
                of_join.append(key(name, join.prefix, left.prefix + joined[-1]))
                continue
            prefix = join.prefix
            if prefix + name in taken:
                prefix = f"fgId_{join.group.id}_{index}_"
            taken.add(prefix + name)
            of_join.append(key(name, prefix, prefix + name))
        found.append(of_join)
    return found


def key(column: str, prefix: str, required_entry: str) -> Key:
    accepted = [prefix + column, column]
    return Key(column, [required_entry, *accepted], accepted)


def canonical(type_: str, value: Any) -> Any:
    """What a key's value is found by. Raises Refused for one of a wrong type."""
    if isinstance(value, datetime.date):
        return value.isoformat()
    if type_ == "string":
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            return str(value)
    elif type_ == "date":
        if isinstance(value, str) and value in DATES:
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            try:
                return (_EPOCH + datetime.timedelta(days=value // _DAY_MILLISECONDS)).isoformat()
            except OverflowError:
                raise Refused(415, 10) from None
    elif isinstance(value, str | int) and not isinstance(value, bool):
        try:
            number = int(value)
        except ValueError:
            raise Refused(415, 10) from None
        if -RANGES[type_] <= number < RANGES[type_]:
            return number
    raise Refused(415, 10)


DATES = ("2022-01-24", "1969-12-31")


def shown(value: Any) -> Any:
    """A stored value as JSON."""
    if isinstance(value, bool):
        return int(value)
    return value.isoformat() if isinstance(value, datetime.date) else value


def kind_of_value(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    return "string" if isinstance(value, str) else "other"


def kind_of_type(type_: str) -> str:
    if type_ == "boolean":
        return "boolean"
    return "number" if type_ in NUMBERS else "other" if type_ in OTHER else "string"
