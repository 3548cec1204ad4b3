"""Every list is served by an index: EXPLAIN of what listing.py makes, over 20,000 views and 40,000 features."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from chassis import calls
from chassis.postgres import Database
from chassis.principals import Principal
from services.registry import kinds, listing
from services.registry.access import Access
from services.registry.listing import Listing
from services.registry.queries import QUERIES

# Statistics of all rows and not of a sample, and only those: what a plan is made of does not depend on chance.
FILL = """
ALTER TABLE registry.object SET (autovacuum_enabled = false);
ALTER TABLE registry.edge SET (autovacuum_enabled = false);
INSERT INTO registry.project (name, uuid, updated)
SELECT 'p' || n, repeat('u', 36), now() FROM generate_series(1, 4) n;
INSERT INTO registry.object
    (project, kind, family, name, sort_name, type, description, owner, tags, created, updated, proto, rendered)
SELECT 'p' || n % 4 + 1, 'featureView', 'featureView', 'View' || n, 'view' || n, 'featureView', '', '',
    jsonb_build_object('team', 'team' || n % 1000), now(), now() - n * interval '1 minute', '', '{}'
FROM generate_series(1, 20000) n;
INSERT INTO registry.object (project, kind, family, parent_id, parent, position, name, sort_name, type, description,
    owner, tags, created, updated, proto, rendered)
SELECT o.project, 'feature', 'feature', o.id, o.name, n, 'f' || n, 'f' || n, 'Int64', '', '', '{}', now(),
    now() - interval '1 year', '', '{}'
FROM registry.object o, generate_series(1, 2) n;
INSERT INTO registry.edge
SELECT o.id, 1, o.project, 'entity', 'entity' || o.id % 500, 'featureView', o.name
FROM registry.object o WHERE o.kind = 'featureView';
INSERT INTO registry.edge
SELECT o.id, 2, o.project, 'feature', 'f1', 'featureView', o.name FROM registry.object o WHERE o.kind = 'featureView';
INSERT INTO registry.object
    (project, kind, family, name, sort_name, type, description, owner, tags, created, updated, proto, rendered)
SELECT 'p' || n % 4 + 1, 'featureService', 'featureService', 's' || n, 's' || n, 'featureService', '', '', '{}', now(),
    now() - interval '1 year', '', '{}'
FROM generate_series(1, 2000) n;
INSERT INTO registry.edge
SELECT o.id, 1, o.project, 'featureView', 'View' || o.id % 20000, 'featureService', o.name
FROM registry.object o WHERE o.kind = 'featureService';
SET LOCAL default_statistics_target = 1000;
ANALYZE registry.object;
ANALYZE registry.edge;
"""

MAX_BYTES = 1 << 26
PAGE = {"page": 1, "limit": 10}
LISTS = {
    "views of a project": (Listing(None, "p1", **PAGE), "view_by_name"),
    "views of a project, last first": (Listing(None, "p1", descending=True, **PAGE), "view_by_name"),
    "views by name anywhere": (Listing(None, sort_by="name", **PAGE), "view_by_name_anywhere"),
    "one kind of a project": (Listing(kinds.FEATURE_SERVICE, "p1", **PAGE), "object_by_name"),
    "one kind anywhere": (Listing(kinds.FEATURE_SERVICE, **PAGE), "object_by_name"),
    "one kind by name anywhere": (
        Listing(kinds.FEATURE_SERVICE, sort_by="name", **PAGE),
        "object_by_name_anywhere",
    ),
    "features of a project": (Listing(kinds.FEATURE, "p1", **PAGE), "object_in_parent"),
    "features anywhere": (Listing(kinds.FEATURE, **PAGE), "object_in_parent"),
    "features of a view": (
        Listing(kinds.FEATURE, "p1", filters={"feature_view": "View7"}, **PAGE),
        "object_in_parent",
    ),
    "by tag": (Listing(None, "p1", tags={"team": "team7"}, **PAGE), "object_tags"),
    "by entity": (Listing(None, "p1", filters={"entity": "entity7"}, **PAGE), "edge_source"),
    "by feature": (Listing(None, "p1", filters={"feature": "f7"}, **PAGE), "edge_source"),
    "by data source": (Listing(None, "p1", filters={"data_source": "source7"}, **PAGE), "edge_source"),
    "by name": (Listing(kinds.FEATURE_VIEW, "p1", filters={"name": "View7"}, **PAGE), "view_by_name_anywhere"),
    "a name that every other feature has": (Listing(kinds.FEATURE, filters={"name": "f1"}, **PAGE), "object_in_parent"),
    "of some projects": (Listing(kinds.FEATURE_SERVICE, projects=["p1", "p2"], **PAGE), "object_by_name"),
    "datasets of a namespace": (
        Listing(kinds.SAVED_DATASET, "p1", filters={"namespace": "n", "collection": "c"}, **PAGE),
        "object_by_name_anywhere",
    ),
    "projects but protected ones": (Listing(kinds.PROJECT, hide_protected=True, **PAGE), "object_by_name_anywhere"),
    "by service": (Listing(None, "p1", filters={"feature_service": "s7"}, **PAGE), "edge_target"),
    "services by view": (
        Listing(kinds.FEATURE_SERVICE, "p1", filters={"feature_view": "View7"}, **PAGE),
        "edge_source",
    ),
    "changed lately": (
        Listing(kinds.FEATURE_VIEW, "p1", filters={"updated_since": datetime.now(UTC) - timedelta(hours=3)}, **PAGE),
        "object_updated",
    ),
}


@pytest.fixture
async def filled(database: Database, database_url: str) -> Database:
    """Filled by a connection of its own: one of the service's would give up on a busy machine."""
    connection = await asyncpg.connect(database_url)
    await connection.execute(FILL)
    await connection.close()
    return database


async def explain(database: Database, statement: str, *arguments: object) -> str:
    rows = await database.fetchval(f"EXPLAIN (FORMAT JSON, ANALYZE) {statement}", *arguments)
    return json.dumps(json.loads(rows), indent=1)


def test_every_filter_is_in_a_list() -> None:
    conditions = " ".join(listing.conditions(wanted)[0] for wanted, _ in LISTS.values())
    missing = [name for name, text in listing._FILTERS.items() if text.format("$").partition("$")[0] not in conditions]
    # Protected projects are only left out where everything is read.
    assert missing == ["project_not_tagged"]


async def test_every_list_uses_its_index(filled: Database) -> None:
    for what, (wanted, index) in LISTS.items():
        statement, arguments = listing.page(wanted, QUERIES.page_rendered, MAX_BYTES)
        plan = await explain(filled, statement, *arguments)
        used = set(re.findall('"Index Name": "(.*)"', plan))
        assert index in used, f"{what}: {used}"
        assert "Seq Scan" not in plan, f"{what}: {plan}"


async def test_a_list_that_permissions_narrow_reads_no_more_than_its_page(filled: Database) -> None:
    """Rows are judged one by one in the order of the index: those behind the page are never looked at."""
    rule = {"spec": {"actions": ["DESCRIBE"], "policy": {"roleBasedPolicy": {"roles": ["r"]}}, "namePatterns": ["V.*"]}}
    await filled.execute(
        "INSERT INTO registry.object"
        " (project, kind, family, name, sort_name, type, description, owner, tags, created, updated, proto, rendered)"
        " VALUES ('p1', 'permission', 'permission', 'r', 'r', 'permission', '', '', '{}', now(), now(), '', $1)",
        json.dumps(rule).encode(),
    )
    token = calls.enter(calls.Call("id", principal=Principal("reader", roles=frozenset(["r"]))))
    try:
        for what in ("views of a project", "features of a project", "one kind of a project"):
            wanted, index = LISTS[what]
            page, arguments = listing.page(wanted, QUERIES.page_rendered, MAX_BYTES)
            statement, narrowed = Access(filled, strict=False).narrowed(page, tuple(arguments))
            plan = await explain(filled, statement, *narrowed)
            assert index in set(re.findall('"Index Name": "(.*)"', plan)), what
            [scan] = re.findall(r'"Alias": "o",(?:(?!"Alias").)*?"Actual Rows": (\d+)', plan, re.DOTALL)
            assert int(scan) <= 10, f"{what}: {plan}"
            assert "Seq Scan" not in plan, f"{what}: {plan}"
    finally:
        calls.leave(token)


async def test_one_object_is_one_look_into_its_index_and_one_into_that_of_its_intervals(filled: Database) -> None:
    plan = await explain(filled, QUERIES.get_rendered.rstrip(";"), "p1", "featureView", "", "View4")
    assert sorted(re.findall('"Index Name": "(.*)"', plan)) == ["materialization_pkey", "object_key"]
    assert "Seq Scan" not in plan


async def test_relationships_of_a_page_use_the_edges_indexes(filled: Database) -> None:
    names = [f"View{number}" for number in range(1, 11)]
    plan = await explain(filled, QUERIES.relationships, "featureView", ["p1"] * 10, names)
    assert "Seq Scan" not in plan
