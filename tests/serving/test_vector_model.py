"""Random views, rows and requests over REST, against the slow model in vector_model.

TRIGLOT_TEST_EXAMPLES says how many views to try; in the suite they are few, and the same every time.
"""

from __future__ import annotations

import asyncio
import datetime
import itertools
import json
import os
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from protos.gen.triglot.serving.v1 import serving_service_pb2 as pb
from tests.patience import PATIENCE_SECONDS
from tests.serving.conftest import Client
from tests.serving.vector_model import DATES, Feature, Group, Join, View

_EXAMPLES = int(os.environ.get("TRIGLOT_TEST_EXAMPLES", "0"))
_TRIES = settings(
    max_examples=_EXAMPLES or 60,
    derandomize=not _EXAMPLES,
    deadline=None,
    database=None,
    # Looking for the smallest fault takes minutes: ask for it.
    phases=list(Phase) if _EXAMPLES else [Phase.generate],
    suppress_health_check=list(HealthCheck),
)
pytestmark = pytest.mark.timeout(300 + 30 * _EXAMPLES)
_SPECIAL = 'é☃"\\\n|\x7f'

# Few values, so that keys meet.
STORED_KEYS: dict[str, list[Any]] = {
    "bigint": [1, 2, 2**53 + 1],
    "int": [1, 2, -3],
    "string": ["1", "2", "a|b\\", ""],
    "date": [datetime.date.fromisoformat(text) for text in DATES],
}
SENT_KEYS: dict[str, list[Any]] = {
    "bigint": [1, 2, 2**53 + 1, 2**53, "1", "2", 99],
    "int": [1, 2, -3, "-3", "1", 99],
    "string": ["1", 1, 2, "a|b\\", "", "a|b"],
    "date": [*DATES, DATES[0], 1642982400000],
}
WRONG_KEYS = ["x", 1.5, True, [1], ["1"], {"id": 1}, 2**63, "2022-13-01"]
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "bigint": st.integers(-(2**63), 2**63 - 1),
    "double": st.floats(allow_nan=False, allow_infinity=False),
    "string": st.text(st.sampled_from(f"ab {_SPECIAL}"), max_size=8),
    "boolean": st.booleans(),
    "date": st.dates(datetime.date(1, 1, 1), datetime.date(9999, 12, 31)),
    "array<bigint>": st.lists(st.none() | st.integers(0, 9), max_size=3),
}
PASSED = st.sampled_from(["text", 7, 1.5, True, False, [1], {"a": None}])
MARKS = ["", "", "", "label", "inference_helper", "training_helper"]
_numbers = itertools.count()
_rarely = st.integers(0, 9).map(lambda number: int(number == 0))


@st.composite
def groups(draw: st.DrawFn) -> Group:
    keys = draw(st.lists(st.sampled_from(["id", "k", "c"]), min_size=1, max_size=2, unique=True))
    columns = {name: draw(st.sampled_from(list(STORED_KEYS))) for name in keys}
    more = draw(st.lists(st.sampled_from(["a", "b", "r_a"]), max_size=3, unique=True))
    columns |= {name: draw(st.sampled_from(list(VALUES))) for name in more}
    names = draw(st.permutations(list(columns)))
    row = st.fixed_dictionaries(
        {
            name: st.sampled_from(STORED_KEYS[columns[name]]) if name in keys else st.none() | VALUES[columns[name]]
            for name in names
        }
    )
    rows = draw(st.lists(row, max_size=5, unique_by=lambda each: tuple(each[name] for name in keys)))
    return Group("", {name: columns[name] for name in names}, keys, rows)


@st.composite
def views(draw: st.DrawFn) -> tuple[list[Group], list[Join], list[Feature]]:
    tables = draw(st.lists(groups(), min_size=1, max_size=3))
    joins = [Join(draw(st.sampled_from(tables)), draw(st.sampled_from(["", "", "l_"])))]
    left = list(joins[0].group.columns)
    for _ in range(draw(st.integers(0, 3))):
        table = draw(st.sampled_from(tables))
        rights = draw(st.lists(st.sampled_from(list(table.columns)), min_size=1, max_size=2, unique=True))
        on = [(draw(st.sampled_from(left)), right) for right in rights]
        joins.append(Join(table, draw(st.sampled_from(["", "r_", "r_", "s_"])), on))
    places = [(index, name) for index, join in enumerate(joins) for name in join.group.columns]
    chosen = draw(st.lists(st.sampled_from(places), min_size=1, max_size=8, unique=True))
    if draw(st.booleans()):
        # As they are in their rows, from some column on: what most views take.
        firsts = [draw(st.integers(0, len(join.group.columns) - 1)) for join in joins]
        chosen = [(index, name) for index, join in enumerate(joins) for name in [*join.group.columns][firsts[index] :]]
    return tables, joins, [Feature(index, name, draw(st.sampled_from(MARKS))) for index, name in chosen]


@st.composite
def entries(draw: st.DrawFn, view: View) -> dict[str, Any]:
    """Most of them good."""
    entry: dict[str, Any] = {}
    for join, keys in zip(view.joins, view.keys, strict=True):
        for key in keys:
            if draw(st.integers(0, 5)) > 0:
                name = draw(st.sampled_from([key.names[0], key.names[0], *key.names]))
                good = st.sampled_from(SENT_KEYS[join.group.columns[key.column]])
                odd = draw(st.integers(0, 29))
                entry[name] = None if odd == 0 else draw(st.sampled_from(WRONG_KEYS) if odd < 5 else good)
    if draw(_rarely):
        entry["nothing"] = 1
    return entry


@st.composite
def requests(draw: st.DrawFn, view: View) -> tuple[bool, dict[str, Any]]:
    """Whether it is a batch, and the request without the view's name."""
    batch = draw(st.booleans())
    sent = draw(st.lists(entries(view), max_size=4)) if batch else draw(entries(view))
    names = [*map(view.name, view.served), "nothing"]
    passed = st.none() | st.dictionaries(st.sampled_from(names), PASSED | st.none() if draw(_rarely) else PASSED)
    count = len(sent) + draw(_rarely) if batch else 1
    request: dict[str, Any] = {"entries": sent}
    if draw(st.booleans()):
        lists = st.just([]) | st.lists(passed, min_size=count, max_size=count)
        request["passedFeatures"] = draw(lists if batch else passed)
    choices = st.dictionaries(st.sampled_from(["featureName", "featureType"]), st.sampled_from([True, False, None]))
    request["metadataOptions"] = draw(st.none() | choices)
    options = ["validatePassedFeatures", "includeDetailedStatus"]
    request["options"] = draw(
        st.none() | st.dictionaries(st.sampled_from(options), st.sampled_from([True, False, None]))
    )
    return batch, {name: value for name, value in request.items() if value is not None or draw(st.booleans())}


async def test_every_answer_is_the_models(serving: Client, http: httpx2.AsyncClient) -> None:
    loop = asyncio.get_running_loop()

    @_TRIES
    @given(data=st.data())
    def run(data: st.DataObject) -> None:
        tables, joins, features = data.draw(views())
        asyncio.run_coroutine_threadsafe(make(serving, tables, joins, features), loop).result(PATIENCE_SECONDS)
        view = View(joins, features)
        sent = data.draw(st.lists(requests(view), min_size=3, max_size=6))
        asyncio.run_coroutine_threadsafe(compare(http, view, sent), loop).result(PATIENCE_SECONDS)

    await asyncio.to_thread(run)


async def test_several_faults_in_one_request(serving: Client, http: httpx2.AsyncClient) -> None:
    """What chance seldom makes: the order in which faults count."""
    table = Group("", {"id": "bigint", "k": "bigint", "a": "string"}, ["id", "k"], [{"id": 1, "k": 2, "a": "x"}])
    joins, features = [Join(table)], [Feature(0, "id"), Feature(0, "a")]
    await make(serving, [table], joins, features)
    validated = {"options": {"validatePassedFeatures": True, "includeDetailedStatus": True}}
    entries: list[dict[str, Any]] = [{"id": "x"}, {"nothing": 1}, {}, {"id": "x", "k": 2}, {"id": 1, "k": 2}]
    passed: list[dict[str, Any]] = [{}, {"a": 1}, {"nothing": 1}]
    sent = [(False, {"entries": entry, "passedFeatures": each} | validated) for entry in entries for each in passed]
    sent += [(True, {"entries": entries, "passedFeatures": [each] * 5} | validated) for each in passed]
    await compare(http, View(joins, features), sent)


async def make(serving: Client, tables: list[Group], joins: list[Join], features: list[Feature]) -> None:
    """The tables and the view, in place of what the try before made."""
    for position, table in enumerate(tables):
        table.name = f"g{next(_numbers)}_{position}"
        made = await serving.group(table.name, table.columns, table.key)
        await serving.write(made, table.rows)
        table.id = made.id
    if any(each.name == "v" for each in await listed(serving)):
        request = pb.DeleteFeatureViewRequest(feature_store="demo", name="v", version=1)
        await serving.call("DeleteFeatureView", request)
    await serving.view(
        "v",
        [{"group": join.group.name, "prefix": join.prefix, "on": join.on} for join in joins],
        [(each.join, each.name, *([each.mark] if each.mark else [])) for each in features],
    )


async def listed(serving: Client) -> Any:
    return (await serving.call("ListFeatureViews", pb.ListFeatureViewsRequest(feature_store="demo"))).feature_views


async def compare(http: httpx2.AsyncClient, view: View, sent: list[tuple[bool, dict[str, Any]]]) -> None:
    name = {"featureStoreName": "demo", "featureViewName": "v", "featureViewVersion": 1}
    for batch, request in sent:
        status, codes, body = view.answer(request, batch=batch)
        response = await http.post("/batch_feature_store" if batch else "/feature_store", json=name | request)
        seen = f"{json.dumps(request)} of {view.joins} {view.served}: {response.status_code} {response.text}"
        assert response.status_code == status, f"{seen}; expected {status} {codes} {body}"
        if body is not None:
            assert {"detailedStatus": None} | response.json() == body, seen
            # 1, 1.0 and True are equal to Python.
            assert repr(response.json()["features"]) == repr(body["features"]), seen
        elif response.headers["content-type"] == "application/json":
            assert response.json()["code"] in codes, f"{seen}; expected {codes}"
        else:
            assert 0 in codes, seen
