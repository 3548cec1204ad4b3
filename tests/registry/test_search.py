"""Search over REST, on the real database: scores, filters, pages, warnings, refusals."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from chassis import calls, errors
from chassis.postgres import Database
from chassis.principals import Principal
from protos.gen.feast.registry import RegistryServer_pb2 as feast
from protos.gen.triglot.registry.v1 import registry_service_pb2 as rpc
from services.registry.access import Access
from services.registry.queries import QUERIES
from services.registry.search import (
    KINDS,
    MAX_COMPARED_LENGTH,
    MAX_COMPARED_LETTERS,
    WORD_SIMILARITY,
    Likeness,
    Search,
    SearchStore,
    distance,
)
from tests.registry.conftest import Registry
from tests.registry.test_indexes import explain, filled  # noqa: F401 - a fixture
from tests.registry.test_objects import apply_entity, apply_view, service, view
from tests.registry.test_rest import get, http  # noqa: F401 - a fixture


@pytest.fixture
async def shop(registry: Registry) -> None:
    """Project `shop`: something for each score. Project `other`: an entity."""
    await apply_entity(registry, "shop", "user_id")
    await apply_entity(registry, "shop", "rider", description="A User of bikes", tags={"team": "ml"})
    await apply_entity(registry, "shop", "tagged", tags={"made_for": "User", "team": "x"})
    await apply_view(registry, view("stats", "user_age", "trips"), "shop")
    for name, columns in (("model", ("user_age", "trips")), ("narrow", ("trips",))):
        made = service(name, "stats")
        for column in columns:
            made.spec.features[0].feature_columns.add(name=column)
        request = feast.ApplyFeatureServiceRequest(feature_service=made, project="shop")
        await registry(registry.feast.ApplyFeatureService, request)
    await apply_entity(registry, "shop", "usr")
    await apply_entity(registry, "other", "user_id")


def scores(found: dict[str, Any]) -> dict[str, int]:
    return {f"{each['type']}:{each['name']}": each["match_score"] for each in found["results"]}


@pytest.mark.usefixtures("shop")
class TestShop:
    async def test_each_score(self, http: httpx2.AsyncClient) -> None:  # noqa: F811 - a fixture
        found = await get(http, "/search?query=USER&projects=shop")
        assert scores(found) == {
            "entity:user_id": 100,
            "feature:user_age": 100,
            "entity:rider": 80,
            "entity:tagged": 60,
            "featureView:stats": 50,
            "featureService:model": 50,
            "entity:usr": 40,
        }
        ordered = [each["match_score"] for each in found["results"]]
        assert ordered == sorted(ordered, reverse=True)
        by_name = {each["name"]: each for each in found["results"]}
        assert by_name["tagged"]["matched_tags"] == {"made_for": "User"}
        assert by_name["user_age"]["featureView"] == "stats"
        assert [name for name, each in by_name.items() if "matched_tags" in each] == ["tagged"]
        assert (found["query"], found["projects_searched"], found["errors"]) == ("USER", ["shop"], [])

    async def test_a_similar_tag_counts(self, http: httpx2.AsyncClient) -> None:  # noqa: F811 - a fixture
        found = await get(http, "/search?query=made_fro")
        assert scores(found) == {"entity:tagged": 40}
        assert found["results"][0]["matched_tags"] == {"made_for": "User"}

    async def test_signs_of_patterns_are_letters(self, http: httpx2.AsyncClient) -> None:  # noqa: F811 - a fixture
        assert "entity:user_id" in scores(await get(http, "/search?query=r_id&projects=shop"))
        assert scores(await get(http, "/search?query=r%25id&projects=shop")) == {}
        assert scores(await get(http, "/search?query=_s_r&projects=shop")) == {}
        assert scores(await get(http, "/search?query=%5C&projects=shop")) == {}

    async def test_projects_and_their_warnings(self, http: httpx2.AsyncClient) -> None:  # noqa: F811 - a fixture
        found = await get(http, "/search?query=user_id")
        assert [each["project"] for each in found["results"] if each["match_score"] == 100] == ["other", "shop"]
        assert found["projects_searched"] == ["other", "shop"]
        assert (await get(http, "/search?query=user_id&projects="))["projects_searched"] == ["other", "shop"]
        some = await get(http, "/search?query=user_id&projects=other&projects=x&projects=y")
        assert (some["projects_searched"], len(some["results"])) == (["other"], 1)
        assert some["errors"] == ["Following projects do not exist: x, y"]
        none = await get(http, "/search?query=user_id&projects=x")
        assert (none["results"], none["projects_searched"], none["pagination"]["totalCount"]) == ([], [], 0)

    async def test_an_empty_query_lists_everything_without_scores(self, http: httpx2.AsyncClient) -> None:  # noqa: F811
        found = await get(http, "/search?query=&projects=shop&limit=3&sort_by=name&sort_order=asc")
        assert [each["name"] for each in found["results"]] == ["model", "narrow", "rider"]
        assert not any("match_score" in each for each in found["results"])
        assert found["pagination"] | {"total": 9} == found["pagination"]
        tagged = await get(http, "/search?query=&tags=team:ml")
        assert [each["name"] for each in tagged["results"]] == ["rider"]

    async def test_pages(self, http: httpx2.AsyncClient) -> None:  # noqa: F811 - a fixture
        seen = []
        for page in (1, 2, 3, 4):
            found = await get(http, f"/search?query=user&projects=shop&page={page}&limit=3")
            seen += [each["name"] for each in found["results"]]
            assert (found["pagination"]["totalCount"], found["pagination"]["hasNext"]) == (7, page < 3)
        assert (len(seen), len(set(seen))) == (7, 7)

    @pytest.mark.parametrize(
        ("query", "detail"),
        [
            ("sort_by=x", "Invalid sort_by parameter: 'x'. Valid options are: ['match_score', 'name', 'type']"),
            ("sort_order=x", "Invalid sort_order parameter: 'x'. Valid options are: ['asc', 'desc']"),
            ("limit=150", "Invalid limit parameter: '150'. Must be less than or equal to 100"),
            ("page=0", "Invalid page parameter: '0'. Must be a whole number from 1"),
        ],
    )
    async def test_the_documented_refusals(self, http: httpx2.AsyncClient, query: str, detail: str) -> None:  # noqa: F811
        answer = await get(http, f"/search?query=user&{query}", 400)
        assert answer == {"status_code": 400, "detail": detail, "error_type": "HTTPException"}

    async def test_a_missing_query_is_named(self, http: httpx2.AsyncClient) -> None:  # noqa: F811 - a fixture
        answer = await get(http, "/search", 422)
        assert answer["detail"] == [{"type": "missing", "loc": ["query_params", "query"], "msg": "Field required"}]


async def test_a_query_has_a_limit(registry: Registry) -> None:
    with pytest.raises(errors.InvalidArgument):
        await registry(registry.rendered.SearchObjects, rpc.SearchObjectsRequest(query="x" * 401, limit=1))


def like(query: str, text: str) -> bool:
    return Likeness(query).to(text)


def test_likeness_is_half_of_the_letters() -> None:
    assert like("drivre", "Driver")
    assert like("ab", "ax")
    assert not like("abc", "axy")
    assert not like("driver", "driver_hourly_stats")
    assert not like("driver", "")


def test_only_so_much_is_compared() -> None:
    """It holds up everything else that the process does."""
    text = "x" * MAX_COMPARED_LENGTH
    assert like(text, text)
    assert not like(text, text + "x")
    assert not like(text + "x", text)
    likeness = Likeness("driver")
    assert all(likeness.to("drivre") for _ in range(MAX_COMPARED_LETTERS // len("drivre")))
    assert not likeness.to("a text that is too long costs nothing")
    assert not likeness.to("drivre")


def test_distances_are_levenshteins() -> None:
    chance = random.Random(1)
    for _ in range(500):
        left, right = ("".join(chance.choices("abc", k=chance.randint(1, 9))) for _ in range(2))
        row = list(range(len(right) + 1))
        for number, letter in enumerate(left, 1):
            before, row = row, [number]
            for place, other in enumerate(right):
                row.append(min(before[place + 1] + 1, row[-1] + 1, before[place] + (letter != other)))
        assert distance(left, right) == row[-1], (left, right)


@pytest.mark.parametrize(
    "tags",
    [
        {f"tag{number}": "" for number in range(501)},
        {"k" * 1001: "v"},
        {"k": "v" * 10_001},
        {f"tag{number}": "v" * 9000 for number in range(12)},
    ],
)
async def test_tags_have_limits(registry: Registry, tags: dict[str, str]) -> None:
    with pytest.raises(errors.InvalidArgument) as raised:
        await apply_entity(registry, tags=tags)
    assert raised.value.metadata["field"] == "tags"
    tagged = view("stats", "age")
    tagged.spec.features[0].tags.update(tags)
    with pytest.raises(errors.InvalidArgument):
        await apply_view(registry, tagged)


async def test_search_uses_its_index(filled: Database) -> None:  # noqa: F811 - a fixture
    plan = await explain(filled, QUERIES.search_matching, ["p1", "p2"], KINDS, "{}", "%view1999%", [])
    assert "object_search" in plan
    assert "Seq Scan" not in plan
    # Without a query all objects are found, and counted; of those with a tag an index tells.
    plan = await explain(filled, QUERIES.search_everything, ["p1", "p2"], KINDS, '{"team": "team7"}')
    assert "object_tags" in plan
    assert "Seq Scan" not in plan
    similar = QUERIES.search_similar.rstrip(";")
    plan = await explain(filled, similar, ["p1", "p2"], KINDS, "{}", "veiw1999", "%veiw1999%")
    assert "object_search" in plan
    assert "Seq Scan" not in plan


MANY = """
    INSERT INTO registry.project (name, uuid, updated) VALUES ('p1', repeat('u', 36), now());
    INSERT INTO registry.object
        (project, kind, family, name, sort_name, type, description, owner, tags, created, updated, proto, rendered)
    SELECT 'p1', 'entity', 'entity', 'churn' || n, 'churn' || n, 'entity', '', '', '{}', now(), now(), '', '{}'
    FROM generate_series(1, 1000) n
"""


async def test_a_registry_without_statistics_is_not_read_for_each_match(database: Database) -> None:
    """PostgreSQL then expects one match at most; it makes statistics a minute after much was written."""
    await database.execute(MANY)
    plan = json.loads(await explain(database, QUERIES.search_matching, ["p1"], KINDS, "{}", "%churn%", []))
    assert plan[0]["Plan"]["Actual Rows"] == 1000
    assert max(each["Actual Loops"] for each in _nodes(plan[0]["Plan"]) if each["Node Type"] == "Aggregate") == 1


async def test_a_small_registry_is_not_read_as_a_whole(database: Database) -> None:
    """PostgreSQL expects that it takes no longer than to look into the index: it takes five times as long."""
    await database.execute(f"{MANY}; ANALYZE registry.object")
    async with database.transaction() as connection:
        await connection.execute(QUERIES.search_settings, WORD_SIMILARITY)
        similar = f"EXPLAIN {QUERIES.search_similar.rstrip(';')}"
        plan = [row[0] for row in await connection.fetch(similar, ["p1"], KINDS, "{}", "nothing", "%nothing%")]
    assert any("object_search" in line for line in plan), "\n".join(plan)


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for each in node.get("Plans", ()):
        yield from _nodes(each)


async def test_search_is_planned_for_what_it_looks_for(filled: Database) -> None:  # noqa: F811 - a fixture
    """PostgreSQL would keep a plan for any pattern once a statement has run five times, without the index."""
    store = SearchStore(filled, Access(filled, strict=False))
    wanted = Search("view1999", ["p1", "p2"], {}, page=1, limit=10)
    token = calls.enter(calls.Call("id", principal=Principal("everything", administrator=True)))
    try:
        for _ in range(8):
            assert (await store.search(wanted))[1]
    finally:
        calls.leave(token)
    # The pool gives the connection again that it was given last.
    ran = "SELECT custom_plans, generic_plans FROM pg_prepared_statements WHERE statement LIKE $1"
    assert [tuple(row) for row in await filled.fetch(ran, "%o.search_text%")] == [(8, 0), (8, 0)]
