"""Training sets: DuckDB's join against a slow and obvious one on random tables, and the whole way over the API."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chassis import errors
from chassis.inprocess import InProcessChannel
from chassis.settings import Settings
from protos.gen.triglot.management.v1 import model_feature_pb2 as pb
from services.management import training
from services.management.offline import NewFile, OfflineStore
from services.management.process import open_service
from services.management.settings import ManagementSettings
from services.management.training_set import TrainingSet
from services.management.workspace import Interrupted, Workspace
from services.serving.process import open_service as open_serving
from services.serving.settings import ServingSettings
from tests.management.conftest import Pai, catalogue
from tests.management.test_publish import logs, until_task, worker

DAYS = ("20260101", "20260102", "20260103")
START = datetime(2026, 1, 1, tzinfo=UTC)
TTL_SECONDS = 5


def at(seconds: int | None) -> datetime | None:
    return None if seconds is None else START + timedelta(seconds=seconds)


def kept_fields(*fields: tuple[str, str, str]) -> str:
    return orjson.dumps(
        [
            {"name": name, "type": kind, "attributes": marks.split(), "aligned_entity_name": ""}
            for name, kind, marks in fields
        ]
    ).decode()


def view_row(identifier: int, name: str, entity: int, fields: str, **changes: Any) -> dict[str, Any]:
    """A row of `feature_view` as `views_of_model` gives it."""
    entities = {1: ("user", "user_id", None), 2: ("city", "city_id", 1), 3: ("item", "item_id", None)}
    title, join_id, parent = entities[entity]
    return {
        "id": identifier, "name": name, "type": "Batch", "fields": fields, "config": "{}", "ttl": 0,
        "feature_entity_id": entity, "entity_name": title, "join_id": join_id, "parent_id": parent,
        "register_table": name, "register_datasource_id": 1, "offline_datasource_id": 1, "project_name": "shop",
        "write_method": "ByReadyMadeTable", "write_to_featuredb": False, "referenced_view_id": None, **changes,
    }  # fmt: skip


def taken(view: dict[str, Any], *names: str | None, alias: str = "") -> list[dict[str, Any]]:
    """Rows of `selected_feature`."""
    return [
        {"feature_view_id": view["id"], "name": name, "alias_name": alias, "prefix_name": "", "type": ""}
        for name in names
    ]


SEQUENCES = {
    "item_id_field": "item", "event_field": "event", "timestamp_field": "when", "play_time_field": "played",
    "deduplication_method": ["user_id", "item_id", "event"],
    "seq_config": [
        {"offline_seq_name": "clicks", "online_seq_name": "clicks", "seq_event": "click|buy", "seq_len": 3},
        {"offline_seq_name": "all", "online_seq_name": "all", "seq_event": "", "seq_len": 2,
         "online_behavior_table_fields": ["price"]},
    ],
}  # fmt: skip


class World:
    """Random tables, of few keys and few times, so that everything meets everything: equal times, nulls, expiry."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.random = random.Random(seed)
        self.folder = folder
        # What is in each table, in the order in which it is read.
        self.tables: dict[str, list[dict[str, Any]]] = {}
        self.label_time = self.random.choice(["TIMESTAMP", "INT64", "unix"])

    def chance(self, odds: float) -> bool:
        return self.random.random() < odds

    def maybe(self, value: Any, odds: float = 0.1) -> Any:
        return None if self.chance(odds) else value

    def write(self, name: str, schema: pa.Schema, rows: Sequence[dict[str, Any]]) -> None:
        """Write a table in days and files; remember it as it will be read."""
        self.tables[name] = []
        parts: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for row in rows:
            parts.setdefault((self.random.choice(DAYS), self.random.randrange(2)), []).append(row)
        for (day, number), part in sorted(parts.items()):
            path = self.folder / name / f"ds={day}" / f"{number}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(part, schema), path)
            self.tables[name] += [{**row, "ds": day} for row in part]

    def fill(self) -> None:
        rows = self.random.randrange(60)
        pick = self.random.randrange
        stamp = pa.timestamp("us", tz="UTC")
        kind = stamp if self.label_time == "TIMESTAMP" else pa.int64()
        labels = []
        for _ in range(rows + 1):
            seconds = self.maybe(pick(20), 0.05)
            moment = at(seconds)
            shown: Any = moment
            if moment is not None and self.label_time != "TIMESTAMP":
                shown = int(moment.timestamp()) * (1 if self.label_time == "unix" else 1000)
            labels.append(
                {
                    "user_id": self.maybe(f"{pick(6)}"),
                    "item_id": pick(3),
                    "when": shown,
                    "clicked": pick(2),
                    "age": pick(9),
                }
            )
        self.write(
            "labels",
            pa.schema([("user_id", pa.string()), ("item_id", pa.int64()), ("when", kind), ("clicked", pa.int32()),
                       ("age", pa.int32())]),
            labels,
        )  # fmt: skip
        # The key of users is a number here and a text in the label table.
        users = [
            {"uid": pick(6), "since": self.maybe(at(pick(20))), "age": self.maybe(pick(90)),
             "city_id": self.maybe(pick(3)), "tags": self.maybe([f"t{pick(3)}"])}
            for _ in range(pick(80) + 1)
        ]  # fmt: skip
        user_schema = pa.schema([("uid", pa.int64()), ("since", stamp), ("age", pa.int32()), ("city_id", pa.int64()),
                                 ("tags", pa.list_(pa.string()))])  # fmt: skip
        self.write("users", user_schema, users)
        self.write("before", user_schema, [{**row, "age": 100} for row in users[: pick(9) + 1]])
        self.write(
            "cities",
            pa.schema([("city_id", pa.int64()), ("since", pa.int64()), ("people", pa.float64())]),
            [{"city_id": pick(3), "since": int(START.timestamp() * 1000) + pick(20) * 1000, "people": float(pick(9))}
             for _ in range(pick(20) + 1)],
        )  # fmt: skip
        self.write(
            "items",
            pa.schema([("item_id", pa.int64()), ("price", pa.float64()), ("user_id", pa.string())]),
            [{"item_id": pick(3), "price": float(pick(9)), "user_id": f"{pick(6)}"} for _ in range(pick(8) + 1)],
        )
        self.write(
            "behaviours",
            pa.schema([("user", pa.string()), ("item", pa.string()), ("event", pa.string()), ("when", pa.int64()),
                       ("played", pa.float64()), ("price", pa.int64())]),
            [{"user": f"{pick(6)}", "item": self.maybe(f"i{pick(4)}"),
              "event": self.random.choice(["click", "buy", "look"]), "when": int(START.timestamp()) + pick(20),
              "played": self.maybe(pick(300) / 100),
              "price": self.maybe(pick(9))} for _ in range(pick(120) + 1)],
        )  # fmt: skip
        self.write(
            "ready",
            pa.schema([("user", pa.string()), ("when", stamp), ("last", pa.string())]),
            [{"user": f"{pick(6)}", "when": at(pick(20)), "last": f"a;b{pick(9)}"} for _ in range(pick(30) + 1)],
        )

    def label_fields(self) -> str:
        marks = "EventTime EventTimeIsUnixTime" if self.label_time == "unix" else "EventTime"
        kind = "TIMESTAMP" if self.label_time == "TIMESTAMP" else "INT64"
        return kept_fields(
            ("user_id", "STRING", ""), ("item_id", "INT64", ""), ("when", kind, marks),
            ("clicked", "INT32", "LabelField"), ("age", "INT32", "FeatureField"), ("ds", "STRING", "Partition"),
        )  # fmt: skip

    def label_seconds(self, row: dict[str, Any]) -> int | None:
        shown = row["when"]
        if shown is None:
            return None
        moment = shown if isinstance(shown, datetime) else datetime.fromtimestamp(
            shown / (1 if self.label_time == "unix" else 1000), UTC
        )  # fmt: skip
        return round((moment - START).total_seconds())


def seconds_of(value: Any) -> int | None:
    if value is None or isinstance(value, datetime):
        return None if value is None else round((value - START).total_seconds())
    return round(value / (1000 if value > 10**11 else 1) - START.timestamp())


def newest(
    rows: Sequence[dict[str, Any]], moment: int | None, time: str | None, *, ttl: int = 0, equal: bool = False
) -> dict[str, Any]:
    """The row that held at a moment: the latest that is not from after it, of equal ones the one read last."""
    if time is None:
        return rows[-1] if rows else {}
    best: dict[str, Any] = {}
    best_at = None
    for row in rows:
        since = seconds_of(row[time])
        if moment is None or since is None or since > moment or (equal and since != moment):
            continue
        if best_at is None or since >= best_at:
            best, best_at = row, since
    return {} if best_at is None or (ttl and moment is not None and best_at < moment - ttl) else best


def sequence(rows: Sequence[dict[str, Any]], moment: int | None, events: Sequence[str], length: int) -> Any:
    """What of behaviours, newest first, was there at a moment; of the same item and event the newest."""
    found: list[dict[str, Any]] = []
    seen = set()
    order = sorted(enumerate(rows), key=lambda pair: (seconds_of(pair[1]["when"]), pair[0]), reverse=True)
    for _, row in order:
        since = seconds_of(row["when"])
        if moment is None or since is None or since > moment or row["item"] is None:
            continue
        if (events and row["event"] not in events) or (row["item"], row["event"]) in seen:
            continue
        seen.add((row["item"], row["event"]))
        found.append({**row, "ts": moment - since})
    return found[:length] or None


def shown(found: Any, of: Any) -> str | None:
    return None if found is None else ";".join(of(row) for row in found)


@pytest.mark.parametrize("seed", range(25))
def test_it_is_what_the_obvious_join_makes(seed: int, tmp_path: Path) -> None:  # noqa: PLR0915 - one world, told once
    world = World(seed, tmp_path)
    world.fill()
    chance = world.chance
    user_fields = kept_fields(
        ("uid", "INT64", "PrimaryKey"), ("since", "TIMESTAMP", "EventTime"), ("age", "INT32", ""),
        ("city_id", "INT64", ""), ("tags", "ARRAY<STRING>", ""),
    )  # fmt: skip
    users = view_row(1, "users", 1, user_fields, ttl=TTL_SECONDS if chance(0.5) else 0)
    cities = view_row(
        2, "cities", 2,
        kept_fields(("city_id", "INT64", "PrimaryKey"), ("since", "INT64", "EventTime"), ("people", "DOUBLE", "")),
    )  # fmt: skip
    items = view_row(
        3, "items", 3,
        kept_fields(("item_id", "INT64", "PrimaryKey"), ("price", "DOUBLE", ""), ("user_id", "STRING", "")),
    )  # fmt: skip
    shortest = {"look": 1.5} if seed % 2 else {}
    play_times = {"play_time_filter": ";".join(f"{event}:{bound}" for event, bound in shortest.items())}
    behaviours = view_row(
        4, "behaviours", 1,
        kept_fields(("user", "STRING", "PrimaryKey"), ("item", "STRING", ""), ("event", "STRING", ""),
                    ("when", "INT64", "EventTime")),
        type="Sequence", config=orjson.dumps({**SEQUENCES, **play_times}).decode(),
    )  # fmt: skip
    ready = view_row(
        5, "ready", 1, kept_fields(("user", "STRING", "PrimaryKey")), type="Sequence",
        config=orjson.dumps({
            "offline_seq_table_name": "ready", "offline_seq_table_pk_field": "user",
            "offline_seq_table_event_time_field": "when",
            "seq_config": [{"offline_seq_name": "last", "online_seq_name": "last_seen", "seq_len": 2}],
        }).decode(),
    )  # fmt: skip
    # The child's view comes first: it has to wait for its parent's.
    views = [cities, users, items, behaviours, ready]
    selected = [
        *taken(cities, "people"), *taken(users, "age", "tags"), *taken(items, "price", alias="cost"),
        *taken(behaviours, None), *taken(ready, None),
    ]  # fmt: skip
    priority = 1 + seed % 2
    equal, second, snapshot = chance(0.3), chance(0.3), chance(0.4)
    first_day = world.random.choice(DAYS)
    request = pb.ExportModelFeatureTrainingSetTableRequest()
    request.label_input_config.partitions["ds"].values.extend(DAYS[1:] if chance(0.5) else DAYS)
    label_days = list(request.label_input_config.partitions["ds"].values)
    if chance(0.5):
        request.feature_view_config["users"].partitions["ds"].start_value = first_day
    else:
        first_day = ""
    request.feature_view_config["users"].equal = equal
    if snapshot:
        request.feature_view_config["users"].snapshot.table = "before"
    if second:
        request.feature_view_config["items"].second_join_key = "user_id"
    constant = world.random.randrange(20) if chance(0.3) else None
    if constant is not None:
        request.feature_view_config["items"].event_time = at(constant).isoformat()  # type: ignore[union-attr]
    model = {
        "id": 9, "label_fields": world.label_fields(), "label_table_name": "labels", "label_datasource_id": 1,
        "label_priority_level": priority, "offline_datasource_id": 1,
    }  # fmt: skip

    try:
        made = make(tmp_path, model, views, selected, request)
    except errors.NotFound as error:
        # Chance has put nothing into the days that were chosen.
        assert "no such partition" in error.message
        return

    expected = []
    for label in world.tables["labels"]:
        if label["ds"] not in label_days:
            continue
        moment = world.label_seconds(label)

        def of(table: str, key: str, value: Any) -> list[dict[str, Any]]:
            rows = world.tables[table]
            return [row for row in rows if value is not None and row[key] is not None and str(row[key]) == str(value)]

        user_rows = [row for row in of("users", "uid", label["user_id"]) if row["ds"] >= first_day]
        user_rows = (of("before", "uid", label["user_id"]) if snapshot else []) + user_rows
        user = newest(user_rows, moment, "since", ttl=users["ttl"], equal=equal)
        city = newest(of("cities", "city_id", user.get("city_id")), moment, "since")
        item_rows = [
            {**row, "since": None if constant is None else at(constant)}
            for row in of("items", "item_id", label["item_id"])
            if not second or (label["user_id"] is not None and row["user_id"] == label["user_id"])
        ]
        item = newest(item_rows, moment, None if constant is None else "since")
        seen = of("behaviours", "user", label["user_id"])
        clicks, everything = (
            [row for row in found or [] if (row["played"] or 0) > shortest.get(row["event"], -1)] or None
            for found in (sequence(seen, moment, ("click", "buy"), 3), sequence(seen, moment, (), 2))
        )
        row = {
            **{name: label[name] for name in ("user_id", "item_id", "when", "clicked")},
            "age": label["age"] if priority == 1 else user.get("age"),
            "people": city.get("people"), "tags": user.get("tags"), "cost": item.get("price"),
            "last_seen": newest(of("ready", "user", label["user_id"]), moment, "when").get("last"),
        }  # fmt: skip
        for name, found in (("clicks", clicks), ("all", everything)):
            row |= {
                name: shown(found, lambda each: each["item"]),
                f"{name}__item": shown(found, lambda each: each["item"]),
                f"{name}__event": shown(found, lambda each: each["event"]),
                f"{name}__when": shown(found, lambda each: str(each["when"])),
                f"{name}__played": shown(found, lambda each: f"{each['played'] or 0:.2f}"),
                f"{name}__ts": shown(found, lambda each: str(each["ts"])),
            }
        row["all__price"] = shown(everything, lambda each: "" if each["price"] is None else str(each["price"]))
        expected.append(row)
    assert sorted(made, key=repr_of) == sorted(expected, key=repr_of)


def repr_of(row: dict[str, Any]) -> str:
    return repr(sorted(row.items()))


def make(
    folder: Path,
    model: dict[str, Any],
    views: Sequence[dict[str, Any]],
    selected: Sequence[dict[str, Any]],
    request: pb.ExportModelFeatureTrainingSetTableRequest,
) -> list[dict[str, Any]]:
    """The rows of the training set."""
    attempt = attempt_at(folder, model, views, selected, request)
    for _ in attempt.steps():
        pass
    attempt.target.finish()
    assert pq.read_schema(attempt.target.path).metadata[b"triglot.task"] == b"7"
    return pq.read_table(attempt.target.path, partitioning=None).to_pylist()  # type: ignore[no-any-return]


def attempt_at(
    folder: Path,
    model: dict[str, Any],
    views: Sequence[dict[str, Any]],
    selected: Sequence[dict[str, Any]],
    request: pb.ExportModelFeatureTrainingSetTableRequest,
) -> TrainingSet:
    plan = training.plan_of(model, views, selected, training.asked_for(request), "seconds")
    offline = OfflineStore([folder])
    tables = [training.chosen(reading, offline.open({"root": str(folder)}, reading.table)) for reading in plan.readings]
    scratch = folder / "scratch"
    scratch.mkdir()
    target = NewFile(folder / "made", 7, 1)
    return TrainingSet(plan, tables, target, Workspace(scratch, memory_mb=128, threads=1), task_id=7)


def small(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """A model feature of one view, and its tables."""
    pq.write_table(pa.table({"user_id": ["a"], "when": [5]}), folder / "labels.parquet")
    pq.write_table(pa.table({"user_id": ["a"], "since": [1], "age": [30]}), folder / "users.parquet")
    model = {
        "label_fields": kept_fields(("user_id", "STRING", ""), ("when", "INT64", "EventTime")),
        "label_table_name": "labels", "label_datasource_id": 1, "label_priority_level": 0,
    }  # fmt: skip
    fields = kept_fields(("user_id", "STRING", "PrimaryKey"), ("since", "INT64", "EventTime"), ("age", "INT32", ""))
    view = view_row(1, "users", 1, fields)
    return model, [view], taken(view, "age")


def test_a_training_set_that_is_stopped_leaves_nothing(tmp_path: Path) -> None:
    attempt = attempt_at(tmp_path, *small(tmp_path), pb.ExportModelFeatureTrainingSetTableRequest())
    steps = attempt.steps()
    assert next(steps) == "1 rows of label table labels"
    attempt.workspace.interrupt()
    with pytest.raises(Interrupted):
        next(steps)
    assert not attempt.target.path.exists()
    assert not attempt.target.unfinished.exists()


def test_names_are_names(tmp_path: Path) -> None:
    """Whatever a column, an alias or a value is called, it is not SQL."""
    hostile = "\"; DROP TABLE s; -- '?$1"
    pq.write_table(pa.table({"user_id": ["a"], hostile: [1], "when": [5]}), tmp_path / "labels.parquet")
    folder = tmp_path / "users" / f"{hostile}=it's"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"user_id": ["a"], hostile + "x": [2]}), folder / "it's.parquet")
    model = {
        "label_fields": kept_fields(("user_id", "STRING", ""), (hostile, "INT64", ""), ("when", "INT64", "EventTime")),
        "label_table_name": "labels", "label_datasource_id": 1, "label_priority_level": 0,
    }  # fmt: skip
    view = view_row(
        1, "users", 1,
        kept_fields(
            ("user_id", "STRING", "PrimaryKey"), (hostile + "x", "INT64", ""), (hostile, "STRING", "Partition")
        ),
    )  # fmt: skip
    request = pb.ExportModelFeatureTrainingSetTableRequest()
    request.feature_view_config["users"].partitions[hostile].values.append("it's")
    selected = taken(view, hostile + "x", alias="'" + hostile)
    assert make(tmp_path, model, [view], selected, request) == [
        {"user_id": "a", hostile: 1, "when": 5, "'" + hostile: 2}
    ]


def test_what_cannot_be_joined_is_said(tmp_path: Path) -> None:
    model, views, selected = small(tmp_path)
    empty = pb.ExportModelFeatureTrainingSetTableRequest

    def refused(match: str, model: dict[str, Any] = model, **changes: Any) -> None:
        request = empty(**changes)
        with pytest.raises(errors.InvalidArgument, match=match):
            attempt_at(tmp_path, model, views, selected, request)

    def of_users(**changes: Any) -> dict[str, Any]:
        return {"users": pb.TrainingSetFeatureViewConfig(**changes)}

    refused("names nobody", feature_view_config={"nobody": pb.TrainingSetFeatureViewConfig()})
    refused("must be a field of", feature_view_config=of_users(second_join_key="age"))
    refused("has no mock table", feature_view_config=of_users(use_mock=True))
    refused("must be a column, or a time", feature_view_config=of_users(event_time="yesterday"))
    refused("must be a column, or a time", label_input_config=pb.LabelInputConfig(event_time="yesterday"))
    refused("must not be negative", real_time_iterate_interval=-1)
    no_time = {**model, "label_fields": kept_fields(("user_id", "STRING", ""), ("when", "INT64", ""))}
    refused("EventTime", no_time)
    no_key = {**model, "label_fields": kept_fields(("other", "STRING", ""), ("when", "INT64", "EventTime"))}
    refused("has no column user_id", no_key)


async def test_a_value_that_does_not_fit_is_named(tmp_path: Path) -> None:
    model, views, selected = small(tmp_path)
    pq.write_table(pa.table({"user_id": ["a"], "since": [1], "age": ["old"]}), tmp_path / "users.parquet")
    with pytest.raises(errors.InvalidArgument, match="old"):
        make(tmp_path, model, views, selected, pb.ExportModelFeatureTrainingSetTableRequest())


# --- over the API ------------------------------------------------------------------------------------------------


@pytest.fixture
async def serving(settings: Settings) -> AsyncIterator[Any]:
    async with open_serving(settings, ServingSettings()) as opened:
        yield opened


@pytest.fixture
async def services(settings: Settings, own: ManagementSettings, serving: Any) -> AsyncIterator[Any]:
    """Management with serving: stands in for the fixture without it."""
    async with open_service(settings, own, InProcessChannel(serving)) as opened:
        yield opened


def days_of_clicks() -> Iterator[tuple[str, pa.Table]]:
    for number, day in enumerate(DAYS):
        yield day, pa.table({"user_id": [1, 2], "when": pa.array([at(number * 10)] * 2), "clicked": [1, 0]})


async def model_of_clicks(caller: Pai, folder: Path, life_cycle: int = 0) -> tuple[str, dict[str, str]]:
    """A model feature of one view over tables of three days; its id and those of what it stands on."""
    for day, table in days_of_clicks():
        (folder / "clicks" / f"ds={day}").mkdir(parents=True)
        pq.write_table(table, folder / "clicks" / f"ds={day}" / "a.parquet")
    users = pa.table({"user_id": [1, 1, 2], "since": pa.array([at(0), at(15), at(11)]), "age": [30, 31, 40]})
    pq.write_table(users, folder / "users.parquet")
    ids = await catalogue(caller, config=orjson.dumps({"root": str(folder)}).decode())
    if life_cycle:
        ids["project"] = await caller.made(
            "Project", Name="brief", WorkspaceId="1", OfflineDatasourceId=ids["offline"],
            OnlineDatasourceId=ids["online"], OfflineLifeCycle=life_cycle,
        )  # fmt: skip
        ids["entity"] = await caller.made("FeatureEntity", Name="user", JoinId="user_id", ProjectId=ids["project"])
    ids["view"] = await caller.made(
        "FeatureView", ProjectId=ids["project"], Name="profile", Type="Batch", FeatureEntityId=ids["entity"],
        WriteMethod="ByReadyMadeTable", RegisterTable="users", RegisterDatasourceId=ids["offline"],
        SyncOnlineTable=True,
        Fields=[
            {"Name": "user_id", "Type": "INT64", "Attributes": ["PrimaryKey"]},
            {"Name": "since", "Type": "TIMESTAMP", "Attributes": ["EventTime"]},
            {"Name": "age", "Type": "INT32", "Attributes": []},
        ],
    )  # fmt: skip
    ids["label"] = await caller.made(
        "LabelTable", ProjectId=ids["project"], DatasourceId=ids["offline"], Name="clicks",
        Fields=[
            {"Name": "user_id", "Type": "INT64", "Attributes": []},
            {"Name": "when", "Type": "TIMESTAMP", "Attributes": ["EventTime"]},
            {"Name": "clicked", "Type": "INT32", "Attributes": ["LabelField"]},
            {"Name": "ds", "Type": "STRING", "Attributes": ["Partition"]},
        ],
    )  # fmt: skip
    model = await caller.made(
        "ModelFeature", ProjectId=ids["project"], Name="ranking", LabelTableId=ids["label"],
        Features=[{"FeatureViewId": ids["view"], "Name": "age", "AliasName": "years", "Type": "INT32"}],
    )  # fmt: skip
    return model, ids


def day_of(day: str) -> dict[str, Any]:
    """The label table's day into the same day of the training set."""
    return {
        "LabelInputConfig": {"Partitions": {"ds": {"Value": day}}},
        "TrainingSetConfig": {"Partitions": {"ds": {"Value": day}}},
    }


async def export(caller: Pai, model: str, **body: Any) -> str:
    answer = await caller.answer("ExportModelFeatureTrainingSetTable", ModelFeatureId=model, **body)
    return str(answer["TaskId"])


async def test_from_tables_to_a_training_set(
    caller: Pai, settings: Settings, own: ManagementSettings, serving: Any, tmp_path: Path
) -> None:
    model, ids = await model_of_clicks(caller, tmp_path)
    asked = await caller.answer("GetModelFeature", ModelFeatureId=model)
    assert (asked["TrainingSetTable"], asked["TrainingSetFGTable"]) == (
        "shop_ranking_training_set",
        "shop_ranking_training_set_fg",
    )
    assert f'instance, "{model}"' in asked["ExportTrainingSetTableScript"]
    task = await export(caller, model, **day_of(DAYS[1]))
    waiting = await caller.answer("GetTask", TaskId=task)
    assert [waiting[key] for key in ("Type", "ObjectType", "ObjectId", "Status")] == [
        "ExportTrainingSet",
        "ModelFeature",
        model,
        "Initializing",
    ]
    assert f"task {task}" in await caller.refused("DeleteModelFeature", 400, "DependencyExists", ModelFeatureId=model)
    async with worker(settings, own, serving):
        done = await until_task(caller, task, "Success")
        assert (done["RowsDone"], done["RowsTotal"]) == (2, 2)
        assert orjson.loads(done["RunningConfig"])["table"] == "shop_ranking_training_set"
        assert "done: 2 rows" in (await logs(caller, task))[-1]
        # At its time user 1 was 30, and user 2 was not there yet.
        table = tmp_path / "shop_ranking_training_set"
        [path] = table.glob("*/*")
        assert path == table / f"ds={DAYS[1]}" / "data.parquet"
        assert sorted(pq.read_table(path, partitioning=None).to_pylist(), key=repr) == [
            {"user_id": 1, "when": at(10), "clicked": 1, "years": 30},
            {"user_id": 2, "when": at(10), "clicked": 0, "years": None},
        ]
        await until_task(caller, await export(caller, model, **day_of(DAYS[2])), "Success")
        listed = await caller.answer("ListDatasourceTables", DatasourceId=ids["offline"])
        assert "shop_ranking_training_set" in listed["Tables"]
        fields = (await caller.answer("GetDatasourceTable", DatasourceId=ids["offline"], TableName=table.name))[
            "Fields"
        ]
        assert [(each["Name"], each["Type"]) for each in fields] == [
            ("user_id", "INT64"), ("when", "TIMESTAMP"), ("clicked", "INT32"), ("years", "INT32"), ("ds", "STRING"),
        ]  # fmt: skip
        assert {row["years"] for row in pq.read_table(table).to_pylist()} == {30, None, 31, 40}
    await caller.answer("DeleteModelFeature", ModelFeatureId=model)


async def test_exports_that_are_refused(caller: Pai, tmp_path: Path) -> None:
    model, _ = await model_of_clicks(caller, tmp_path)
    for wrong in (
        {"LabelInputConfig": {"Partitions": {"dt": "1"}}},
        {"LabelInputConfig": {"Partitions": {"ds": {}}}},
        {"LabelInputConfig": {"EventTime": "soon"}},
        {"LabelInputConfig": "{"},
        {"FeatureViewConfig": {"nobody": {}}},
        {"FeatureViewConfig": {"profile": {"Partitions": {"ds": "1"}}}},
        {"FeatureViewConfig": {"profile": {"UseMock": True}}},
        {"FeatureViewConfig": {"profile": {"Equal": "perhaps"}}},
        {"TrainingSetConfig": {"Partitions": {"ds": {"Values": ["1", "2"]}}}},
        {"TrainingSetConfig": {"Partitions": {"../x": "1"}}},
        {"RealTimeIterateInterval": -1},
        {"RealTimePartitionCountValue": "many"},
    ):
        await caller.refused(
            "ExportModelFeatureTrainingSetTable", 400, "InvalidParameter", **{"ModelFeatureId": model, **wrong}
        )
    absent = {"ModelFeatureId": model, "LabelInputConfig": {"Partitions": {"ds": "20200101"}}}
    await caller.refused("ExportModelFeatureTrainingSetTable", 404, "ResourceNotFound", **absent)
    await caller.refused("ExportModelFeatureTrainingSetTable", 404, "ResourceNotFound", ModelFeatureId="99")
    await caller.refused("ExportModelFeatureTrainingSetTable", 400, "InvalidParameter", ModelFeatureId="x")
    (tmp_path / "users.parquet").unlink()
    await caller.refused("ExportModelFeatureTrainingSetTable", 404, "ResourceNotFound", ModelFeatureId=model)
