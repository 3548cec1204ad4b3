"""Random creates, updates, deletes and publishes, each compared with what a model of a page would have made of it.

TRIGLOT_EXAMPLES=500 tries that many sequences, other ones each time; without it, the same few.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck
from hypothesis import settings as tries
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from chassis.inprocess import InProcessChannel
from chassis.settings import Settings
from services.management.process import open_service
from services.management.settings import ManagementSettings
from services.serving.process import open_service as open_serving
from services.serving.settings import ServingSettings
from tests.management.conftest import INSTANCE, Pai
from tests.management.test_publish import publish, until_task, worker

T = TypeVar("T")
Key = tuple[str, str]  # kind and id

KEYS = range(4)
NOBODY = "999999"
TAKES_PROJECT = {"FeatureEntity": "FeatureEntities", "FeatureView": "FeatureViews", "LabelTable": "LabelTables"}
PLURALS = {**TAKES_PROJECT, "ModelFeature": "ModelFeatures"}

names = st.sampled_from(["a", "b", "B"])
# Which one of a kind: of those that are there, or, the last ones, of all that ever were.
LIVE = 4
picks = st.integers(0, LIVE + 1)


@dataclass
class Thing:
    """Anything with a name, and what it refers to."""

    kind: str
    scope: str  # id of its project, if it has one
    name: str
    refers_to: set[Key]
    columns: list[str] = field(default_factory=list)
    rows: dict[int, dict[str, float | None]] | None = None  # None: never published


class Model:
    """What there should be. A thing can be made if all it refers to is there, and deleted if nothing refers to it."""

    def __init__(self) -> None:
        self.things: dict[Key, Thing] = {}

    def of(self, kind: str, scope: str = "") -> dict[str, Thing]:
        """By id, in the order of their making."""
        return {key[1]: thing for key, thing in self.things.items() if key[0] == kind and thing.scope == scope}

    def taken(self, thing: Thing, but: str = "") -> bool:
        others = {key: other for key, other in self.of(thing.kind, thing.scope).items() if key != but}
        return _unique(thing.kind, thing.name) in {_unique(other.kind, other.name) for other in others.values()}

    def found(self, thing: Thing) -> bool:
        """Whether all that it refers to is there, and in its own project."""
        return all(key in self.things and self.things[key].scope in {"", thing.scope} for key in thing.refers_to)

    def used(self, key: Key) -> bool:
        return any(key in thing.refers_to for thing in self.things.values())


def _unique(kind: str, name: str) -> str:
    return name.lower() if kind == "Project" else name


@dataclass(frozen=True)
class World:
    """The real thing, in the event loop that it lives in."""

    caller: Pai
    folder: Path
    loop: asyncio.AbstractEventLoop
    online: str
    examples: itertools.count[int]

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(120)

    def call(self, operation: str, refusal: str | None = None, **body: Any) -> Any:
        """The answer, which must be this refusal, if one is expected, and else none."""
        path = f"/api/PaiFeatureStore/2023-06-21/{operation}"
        response = self.run(self.caller.raw("POST", path, params={"InstanceId": INSTANCE}, json=body))
        answer = response.json()
        assert answer.get("Code") == refusal, (operation, body, answer)
        return answer


class Catalogue(RuleBasedStateMachine):
    """Steps taken in the world and in the model."""

    world: ClassVar[World]

    @initialize()
    def begin(self) -> None:
        self.model = Model()
        self.prefix = f"p{next(self.world.examples)}_"
        self.made: dict[str, list[str]] = {}
        self.datasource("a")
        self.project("a", 0)
        self.entity("a", 0, None)
        self.view("a", 0, 0)
        self.label_table("a", 0, 0)

    def pick(self, kind: str, number: int) -> str:
        ever = self.made.get(kind, [])
        live = [made for made in ever if (kind, made) in self.model.things]
        chosen = live if number < LIVE and live else ever
        return chosen[number % len(chosen)] if chosen else NOBODY

    def create(self, thing: Thing, **body: Any) -> None:
        if not self.model.found(thing):
            refusal = "ResourceNotFound"
        elif self.model.taken(thing):
            refusal = f"{thing.kind}AlreadyExists"
        else:
            refusal = None
        answer = self.world.call(f"Create{thing.kind}", refusal, Name=thing.name, **body)
        if refusal is None:
            made = answer[f"{thing.kind}Id"]
            self.made.setdefault(thing.kind, []).append(made)
            self.model.things[thing.kind, made] = thing

    @rule(name=names)
    def datasource(self, name: str) -> None:
        config = orjson.dumps({"root": str(self.world.folder)}).decode()
        thing = Thing("Datasource", "", self.prefix + name, set())
        self.create(thing, WorkspaceId="1", Type="MaxCompute", Uri="p", Config=config)

    @rule(name=names, datasource=picks)
    def project(self, name: str, datasource: int) -> None:
        offline = self.pick("Datasource", datasource)
        thing = Thing("Project", "", self.prefix + name, {("Datasource", offline)})
        stores = {"OfflineDatasourceId": offline, "OnlineDatasourceId": self.world.online}
        self.create(thing, WorkspaceId="1", **stores)

    @rule(name=names, project=picks, parent=st.none() | picks)
    def entity(self, name: str, project: int, parent: int | None) -> None:
        scope = self.pick("Project", project)
        above = "" if parent is None else self.pick("FeatureEntity", parent)
        refers_to = {("Project", scope), *([("FeatureEntity", above)] if above else [])}
        thing = Thing("FeatureEntity", scope, name, refers_to)
        self.create(thing, ProjectId=scope, JoinId="k", ParentFeatureEntityId=above)

    @rule(name=names, project=picks, entity=st.none() | picks)
    def view(self, name: str, project: int, entity: int | None) -> None:
        of = "" if entity is None else self.pick("FeatureEntity", entity)
        self.create_view(name, self.pick("Project", project), of)

    def create_view(self, name: str, scope: str, of: str) -> None:
        refers_to = {("Project", scope), *([("FeatureEntity", of)] if of else [])}
        thing = Thing("FeatureView", scope, name, refers_to, columns=["x"])
        self.create(
            thing,
            ProjectId=scope,
            FeatureEntityId=of,
            Type="Batch",
            WriteMethod="Custom",
            SyncOnlineTable=True,
            Fields=_fields(thing.columns),
        )

    @rule(name=names, project=picks, datasource=picks)
    def label_table(self, name: str, project: int, datasource: int) -> None:
        scope, at = self.pick("Project", project), self.pick("Datasource", datasource)
        thing = Thing("LabelTable", scope, name, {("Project", scope), ("Datasource", at)})
        self.create(thing, ProjectId=scope, DatasourceId=at, Fields=[_LABEL])

    @rule(name=names, project=picks, label=picks, views=st.sets(picks, min_size=1, max_size=2))
    def model_feature(self, name: str, project: int, label: int, views: set[int]) -> None:
        scope, labels = self.pick("Project", project), self.pick("LabelTable", label)
        chosen = {self.pick("FeatureView", view) for view in views}
        thing = Thing("ModelFeature", scope, name, {("Project", scope), *_uses(labels, chosen)})
        self.create(thing, ProjectId=scope, LabelTableId=labels, Features=_features(chosen))

    @rule(model=picks, label=picks, views=st.sets(picks, min_size=1, max_size=2))
    def change_model_feature(self, model: int, label: int, views: set[int]) -> None:
        key, labels = ("ModelFeature", self.pick("ModelFeature", model)), self.pick("LabelTable", label)
        chosen = {self.pick("FeatureView", view) for view in views}
        thing = self.model.things.get(key)
        wanted = thing and replace(thing, refers_to={("Project", thing.scope), *_uses(labels, chosen)})
        refusal = None if wanted and self.model.found(wanted) else "ResourceNotFound"
        body = {"LabelTableId": labels, "Features": _features(chosen)}
        self.world.call("UpdateModelFeature", refusal, ModelFeatureId=key[1], **body)
        if wanted and refusal is None:
            self.model.things[key] = wanted

    @rule(name=names, kind=st.sampled_from(["Project", "LabelTable"]), number=picks)
    def rename(self, name: str, kind: str, number: int) -> None:
        made = self.pick(kind, number)
        thing = self.model.things.get((kind, made))
        title = self.prefix + name if kind == "Project" else name
        if thing is None:
            refusal = "ResourceNotFound"
        elif kind == "Project" and title.lower() != thing.name.lower() and self.model.of("FeatureView", made):
            refusal = "DependencyExists"
        elif self.model.taken(Thing(kind, thing.scope, title, set()), but=made):
            refusal = f"{kind}AlreadyExists"
        else:
            refusal = None
            thing.name = title
        more = {} if kind == "Project" else {"Fields": [_LABEL]}
        self.world.call(f"Update{kind}", refusal, **{f"{kind}Id": made, "Name": title, **more})

    @rule(view=picks)
    def add_column(self, view: int) -> None:
        made = self.pick("FeatureView", view)
        thing = self.model.things.get(("FeatureView", made))
        columns = [*thing.columns, f"x{len(thing.columns)}"] if thing else ["x"]
        refusal = None if thing else "ResourceNotFound"
        self.world.call("UpdateFeatureView", refusal, FeatureViewId=made, Fields=_fields(columns))
        if thing:
            thing.columns = columns
            for row in (thing.rows or {}).values():
                row[columns[-1]] = None

    @rule(view=picks, keys=st.sets(st.sampled_from(KEYS), min_size=1), value=st.integers(0, 9), merge=st.booleans())
    def publish(self, view: int, keys: set[int], value: int, merge: bool) -> None:
        made = self.pick("FeatureView", view)
        thing = self.model.things.get(("FeatureView", made))
        has_entity = thing is not None and any(kind == "FeatureEntity" for kind, _ in thing.refers_to)
        mode = "Merge" if merge else "Overwrite"
        if thing is None or not has_entity:
            refusal = "InvalidParameter" if thing else "ResourceNotFound"
            self.world.call("PublishFeatureViewTable", refusal, FeatureViewId=made, Mode=mode, OfflineToOnline=True)
            return
        rows = {key: dict.fromkeys(thing.columns, value + key / 2) for key in sorted(keys)}
        project = self.model.things["Project", thing.scope].name
        table = f"{project}_{thing.name}_offline".lower()
        columns = {column: [row[column] for row in rows.values()] for column in thing.columns}
        pq.write_table(pa.table({"id": list(rows), **columns}), self.world.folder / f"{table}.parquet")
        self.world.run(self._published(made, mode))
        thing.rows = {**(thing.rows or {}), **rows} if merge else dict(rows)

    async def _published(self, view: str, mode: str) -> None:
        caller = self.world.caller
        await until_task(caller, await publish(caller, view, Mode=mode), "Success")

    @rule(kind=st.sampled_from(["Datasource", "Project", *PLURALS]), number=picks)
    def delete(self, kind: str, number: int) -> None:
        key = kind, self.pick(kind, number)
        if key not in self.model.things:
            refusal = "ResourceNotFound"
        else:
            refusal = "DependencyExists" if self.model.used(key) else None
        self.world.call(f"Delete{kind}", refusal, **{f"{kind}Id": key[1]})
        if refusal is None:
            del self.model.things[key]

    @rule(view=picks)
    def make_view_again(self, view: int) -> None:
        """Of the same name, where the rows of the other one were."""
        self.publish(view, {0, 1}, 1, merge=True)
        thing = self.model.things.get(("FeatureView", self.pick("FeatureView", view)))
        self.delete("FeatureView", view)
        if thing is not None:
            of = "".join(made for kind, made in thing.refers_to if kind == "FeatureEntity")
            self.create_view(thing.name, thing.scope, of)

    @invariant()
    def lists_agree(self) -> None:
        if not hasattr(self, "model"):
            return
        projects = self.model.of("Project")
        listed = self.world.call("ListProjects", Name=self.prefix, Order="ASC", PageSize=100)["Projects"]
        assert [(each["ProjectId"], each["Name"]) for each in listed] == _listed(projects)
        for project, shown in zip(projects, listed, strict=True):
            for kind, plural in PLURALS.items():
                there = self.world.call(f"List{plural}", ProjectId=project, Order="ASC", PageSize=100)
                expected = _listed(self.model.of(kind, project))
                assert [(each[f"{kind}Id"], each["Name"]) for each in there[plural]] == expected
                assert there["TotalCount"] == len(expected)
            counted = (shown["FeatureEntityCount"], shown["FeatureViewCount"], shown["ModelCount"])
            assert counted == tuple(
                len(self.model.of(kind, project)) for kind in ("FeatureEntity", "FeatureView", "ModelFeature")
            )

    @invariant()
    def references_and_rows_agree(self) -> None:
        if not hasattr(self, "model"):
            return
        for (kind, made), thing in self.model.things.items():
            if kind == "ModelFeature":
                shown = self.world.call("GetModelFeature", ModelFeatureId=made)
                views = {each["FeatureViewId"] for each in shown["Features"]}
                assert {("Project", thing.scope), *_uses(shown["LabelTableId"], views)} == thing.refers_to
            if kind == "FeatureView" and any(other == "FeatureEntity" for other, _ in thing.refers_to):
                read = self.world.call("ListFeatureViewOnlineFeatures", FeatureViewId=made, JoinIds=list(KEYS))
                rows = [{"k": key, **row} for key, row in sorted((thing.rows or {}).items())]
                assert [orjson.loads(text) for text in read["OnlineFeatures"]] == rows


_LABEL = {"Name": "label", "Type": "INT32", "Attributes": ["LabelField"]}


def _listed(things: dict[str, Thing]) -> list[tuple[str, str]]:
    return [(made, thing.name) for made, thing in things.items()]


def _fields(columns: list[str]) -> list[dict[str, Any]]:
    key = {"Name": "id", "Type": "INT64", "Attributes": ["PrimaryKey"]}
    return [key, *({"Name": column, "Type": "DOUBLE", "Attributes": []} for column in columns)]


def _features(views: set[str]) -> list[dict[str, Any]]:
    return [
        {"FeatureViewId": view, "Name": "x", "AliasName": f"x_of_{view}", "Type": "DOUBLE"} for view in sorted(views)
    ]


def _uses(label: str, views: set[str]) -> set[Key]:
    return {("LabelTable", label), *(("FeatureView", view) for view in views)}


@pytest.fixture
async def serving(settings: Settings) -> AsyncIterator[Any]:
    async with open_serving(settings, ServingSettings()) as opened:
        yield opened


@pytest.fixture
async def services(settings: Settings, own: ManagementSettings, serving: Any) -> AsyncIterator[Any]:
    """Management with serving: stands in for the fixture without it."""
    async with open_service(settings, own, InProcessChannel(serving)) as opened:
        yield opened


@pytest.mark.timeout(900)
# The world lives in a thread of its own, and what draws random numbers there is no strategy.
@pytest.mark.filterwarnings("ignore:Do not use the .random. module:hypothesis.errors.HypothesisDeprecationWarning")
async def test_any_sequence_of_calls(
    caller: Pai, settings: Settings, own: ManagementSettings, serving: Any, tmp_path: Path
) -> None:
    online = await caller.made("Datasource", Name="online", WorkspaceId="1", Type="FeatureDB", Uri="feature_db")
    asked = os.environ.get("TRIGLOT_EXAMPLES", "")
    trying = tries(
        max_examples=int(asked or 15),
        stateful_step_count=20,
        deadline=None,
        derandomize=not asked,
        suppress_health_check=list(HealthCheck),
    )

    class Here(Catalogue):
        world = World(caller, tmp_path, asyncio.get_running_loop(), online, itertools.count())

    run: Callable[..., None] = run_state_machine_as_test
    async with worker(settings, own, serving):
        await asyncio.to_thread(run, Here, settings=trying)
