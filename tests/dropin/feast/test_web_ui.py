"""Feast's own web UI and our pages of the API in a browser: what they show, and every request that the UI makes.

The UI is served beside our REST, which is behind a port, as `feast ui` does it. Its requests are kept here as data, so
that they are made even where there is no Chromium. Where there is one, the list is held against what the UI really asks
for.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from chassis.inprocess import InProcessChannel
from chassis.settings import Settings
from gateway.server import HttpServer
from gateway.settings import GatewaySettings
from tests.cases.world import World
from tests.conftest import Servers
from tests.dropin.feast.conftest import SDK
from tests.dropin.feast.web_ui import CHROMIUM, REST, Page, browser, site
from tests.gateway.test_feast_openapi import FEAST, WRITTEN
from triglot.stack import open_stack

# Of many pages each is given its time, on a busy machine too.
pytestmark = [pytest.mark.dropin, pytest.mark.timeout(900)]

# Where a list has its objects, and an object its name.
LISTS = {
    "entities": ("entities", "spec.name"),
    "feature_views": ("featureViews", "spec.name"),
    "label_views": ("featureViews", "spec.name"),
    "feature_services": ("featureServices", "spec.name"),
    "data_sources": ("dataSources", "name"),
    "saved_datasets": ("savedDatasets", "spec.name"),
}
# Two projects, so that the UI offers to see all. The UI cannot draw a request source that has no columns.
ON_DEMAND: Mapping[str, Any] = {
    "name": "scaled",
    "features": [{"name": "twice", "valueType": "DOUBLE"}],
    "sources": {
        "stats": {"featureViewProjection": {"featureViewName": "stats"}},
        "now": {
            "requestDataSource": {
                "name": "now",
                "type": "REQUEST_SOURCE",
                "requestDataOptions": {"schema": [{"name": "factor", "valueType": "DOUBLE"}]},
            }
        },
    },
    "featureTransformation": {"userDefinedFunction": {"name": "f", "body": "AAE=", "bodyText": "def f(): ..."}},
}
PROJECTS = ("demo", "night_rides")


def whole(query: str) -> dict[str, tuple[str, ...]]:
    """What the UI puts a registry together from; `query` is `/all?` or one project's."""
    lists = {
        f"/{kind}{query}include_relationships=true": (f"{objects}.0.project", f"{objects}.0.{name}")
        for kind, (objects, name) in LISTS.items()
    }
    views = [f"/{kind}{query}include_relationships=true" for kind in ("feature_views", "label_views")]
    typed = {path: (*lists[path], "featureViews.0.type", "featureViews.0.spec.features.0.name") for path in views}
    return lists | typed | {"/projects": ("projects.0.spec.name",)}


EVERYTHING = whole("/all?")
PROJECT = whole("?project=demo&")
SIDEBAR = {
    "/features?project=demo": ("features.0.name", "features.0.featureView", "features.0.type"),
    "/saved_datasets?project=demo": ("savedDatasets.0.spec.name",),
    "/version": ("version",),
}
VIEW = ("type", "spec.name", "spec.features.0.name", "spec.features.0.valueType", "meta.createdTimestamp")
# Each page, what is on it, and what it asks for: path below /api/v1, and the keys of the answer that it reads.
PAGES: Mapping[str, tuple[list[str], dict[str, tuple[str, ...]]]] = {
    "/": (["Welcome to Feast", "All Projects", "Night Rides", "Project: demo"], EVERYTHING),
    "/p/demo": (["Project: Demo", "Feature Views (3)", "Data Sources (1)"], EVERYTHING | PROJECT | SIDEBAR),
    "/p/demo/entity/driver": (
        ["Entity: driver", "INT64", "Consuming Views", "verdicts", "team"],
        EVERYTHING
        | PROJECT
        | SIDEBAR
        | {
            "/entities/driver?project=demo&include_relationships=true": (
                "spec.name",
                "spec.valueType",
                "spec.tags.team",
            )
        },
    ),
    "/p/demo/feature-view/stats": (
        ["rate", "FLOAT", "driver", "model", "Materialization Intervals", "2026-01-01 to 2026-01-02"],
        EVERYTHING
        | PROJECT
        | SIDEBAR
        | {
            "/feature_views/stats?project=demo&include_relationships=true": (
                *VIEW,
                "spec.entities.0",
                "spec.batchSource.name",
                "meta.materializationIntervals.0.startTime",
            )
        },
    ),
    "/p/demo/feature-view/scaled": (
        ["def f(): ...", "twice", "Inputs (2)", "stats"],
        EVERYTHING
        | PROJECT
        | SIDEBAR
        | {
            "/feature_views/scaled?project=demo&include_relationships=true": (
                *VIEW,
                "spec.sources.stats.featureViewProjection.featureViewName",
                "spec.sources.now.requestDataSource.requestDataOptions.schema.0.name",
            )
        },
    ),
    "/p/demo/entity": (["Entities (1)", "driver"], EVERYTHING | PROJECT | SIDEBAR),
    "/p/demo/data-source/trips": (
        ["trips", "BATCH_FILE"],
        EVERYTHING
        | PROJECT
        | SIDEBAR
        | {"/data_sources/trips?project=demo&include_relationships=true": ("name", "type", "fileOptions.uri")},
    ),
    "/p/demo/feature-view": (["stats", "scaled", "fresh"], EVERYTHING | PROJECT | SIDEBAR),
    "/p/demo/feature-view/stats/feature/rate": (
        ["Feature: rate", "Float32"],
        EVERYTHING | PROJECT | SIDEBAR | {"/features/stats/rate?project=demo": ("name", "type", "description")},
    ),
    "/p/demo/feature-service/model": (
        ["model", "stats"],
        EVERYTHING
        | PROJECT
        | SIDEBAR
        | {
            "/feature_services/model?project=demo&include_relationships=true": (
                "spec.name",
                "spec.features.0.featureColumns.0.name",
            )
        },
    ),
    "/p/demo/label-view": (["verdicts"], EVERYTHING | PROJECT | SIDEBAR),
    "/p/demo/label-view/verdicts/label/rate": (
        ["Feature: rate"],
        EVERYTHING | PROJECT | SIDEBAR | {"/features/verdicts/rate?project=demo": ("name", "type", "kind")},
    ),
    "/p/demo/data-set/training": (
        ["training"],
        EVERYTHING | PROJECT | SIDEBAR | {"/saved_datasets/training?project=demo": ("spec.name", "spec.features.0")},
    ),
    "/p/demo/compute-engine": (
        ["LocalComputeEngine", "stats"],
        EVERYTHING
        | PROJECT
        | SIDEBAR
        | {"/compute_engines?project=demo": ("engine.engineClass", "featureViews.0.name")},
    ),
    "/p/demo/permissions": (
        ["readers", "Roles: reader"],
        EVERYTHING
        | PROJECT
        | SIDEBAR
        | {
            "/permissions?project=demo": (
                "permissions.0.spec.name",
                "permissions.0.spec.policy.roleBasedPolicy.roles.0",
            )
        },
    ),
    # The last one: what is drawn on it is looked at more closely.
    "/p/demo/lineage": (
        ["demo Lineage", "Legend"],
        EVERYTHING | PROJECT | SIDEBAR | {"/lineage/openlineage/graph": (), "/lineage/openlineage/namespaces": ()},
    ),
}
# Tabs of a label view, what each asks for, and a text that is on it.
LABEL_VIEW = "/p/demo/label-view/verdicts"
TABS = {
    "Labels": ("POST", "/list-labels", "No labels submitted yet"),
    "Quality": ("POST", "/label-quality", "Total Records Labeled"),
    "Label Data": ("GET", "/annotation-config/verdicts", "Label Data"),
}
# ReDoc's attribution has a logo elsewhere: our policy is why it is not fetched.
LOGO = "https://cdn.redoc.ly/redoc/logo-mini.svg"
NODES = "[...document.querySelectorAll('.react-flow__node')].map(each => each.innerText)"
CONTROL = 2


needs_a_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on the PATH or in CHROMIUM: the UI's requests were made, its pages not drawn"
)


@dataclass
class Served:
    """The UI's address, that of our REST, and a client of it with a key."""

    origin: str
    api: str
    rest: httpx2.AsyncClient


@pytest.fixture
async def served(settings: Settings, servers: Servers) -> AsyncIterator[Served]:
    [build] = SDK.parent.glob("lib/python3*/site-packages/feast/ui/build")
    on_any_port = GatewaySettings(ports=(0,))
    async with open_stack(settings) as stack:
        gateway = HttpServer(stack.app, on_any_port, host="127.0.0.1", drain_seconds=1)
        [port] = await gateway.start()
        headers = {"Authorization": f"Bearer {servers.admin_key}"}
        api = f"http://127.0.0.1:{port}"
        async with httpx2.AsyncClient(base_url=api, headers=headers) as rest:
            world = World(rest, {"registry": InProcessChannel(stack.registry)}, servers.admin_key, "")
            for project in PROJECTS:
                for method, message in (*WRITTEN, ("ApplyFeatureView", {"onDemandFeatureView": {"spec": ON_DEMAND}})):
                    await world.rpc(f"{FEAST}/{method}", {"project": project, **message})
            ui = HttpServer(site(build, rest), on_any_port, host="127.0.0.1", drain_seconds=1)
            [port] = await ui.start()
            yield Served(f"http://127.0.0.1:{port}", api, rest)
            await ui.stop()
        await gateway.stop()


def at(answer: Any, dotted: str) -> Any:
    """What is at `entities.0.spec.name`. Raises KeyError or IndexError."""
    for part in dotted.split("."):
        answer = answer[int(part) if isinstance(answer, list) else part]
    return answer


@pytest.mark.parametrize("page", PAGES)
async def test_what_a_page_asks_for_has_the_keys_that_it_reads(served: Served, page: str) -> None:
    for path, keys in PAGES[page][1].items():
        answer = await served.rest.get(REST + path)
        assert answer.status_code == 200, (path, answer.text)
        for key in keys:
            assert at(answer.json(), key), (path, key)


@needs_a_browser
async def test_pages_are_drawn_and_no_request_fails(served: Served, tmp_path: Path) -> None:
    async with browser(tmp_path) as page:
        for path, (shown, asked) in PAGES.items():
            await page.open(served.origin + path)
            for text in shown:
                await page.shows(f"document.body?.innerText.includes({json.dumps(text)})")
            await page.answered({REST + each for each in asked})
        for name in ("driver", "trips", "stats", "scaled", "model", "verdicts", "training"):
            await page.shows(f"{NODES}.some(each => each.includes({json.dumps(name)}))")
        await page.shows("document.querySelectorAll('.react-flow__edge').length >= 6")
        assert page.thrown == []
    rest = {each.path: each for each in page.asked.values() if each.path.startswith(REST)}
    assert set(rest) == {REST + path for _, asked in PAGES.values() for path in asked}
    assert_all_answered(page, served.origin)


@needs_a_browser
async def test_a_label_view_is_drawn_with_all_its_tabs(served: Served, tmp_path: Path) -> None:
    async with browser(tmp_path) as page:
        await page.open(served.origin + LABEL_VIEW)
        await page.answered({f"{REST}/label_views/verdicts?project=demo&include_relationships=true"})
        for tab, (_, path, shown) in TABS.items():
            button = f"[...document.querySelectorAll('[role=tab]')].find(each => each.innerText === {json.dumps(tab)})"
            await page.shows(f"{button} !== undefined")
            await page.evaluate(f"{button}.click()")
            await page.answered({REST + path})
            await page.shows(f"document.body?.innerText.includes({json.dumps(shown)})")
            await page.shows("!document.body?.innerText.includes('Failed to')")
        assert page.thrown == []
    asked = {(each.method, each.path.removeprefix(REST)) for each in page.asked.values()}
    assert {(method, path) for method, path, _ in TABS.values()} <= asked
    assert_all_answered(page, served.origin)


@needs_a_browser
async def test_search_finds_in_all_projects_and_leads_there(served: Served, tmp_path: Path) -> None:
    async with browser(tmp_path) as page:
        await page.open(f"{served.origin}/p/demo")
        await page.shows("document.body?.innerText.includes('\u2318K')")
        await page.answered({REST + path for path in EVERYTHING})
        for kind in ("rawKeyDown", "keyUp"):
            await page.command("Input.dispatchKeyEvent", type=kind, modifiers=CONTROL, key="k", code="KeyK")
        await page.shows("document.activeElement?.getAttribute('aria-label') === 'Search registry'")
        await page.command("Input.insertText", text="DRIV")
        link = "document.querySelector('a[href=\"/p/night_rides/entity/driver\"]')"
        await page.shows(f"document.body?.innerText.includes('Entities (2)') && {link} !== null")
        await page.evaluate(f"{link}.click()")
        await page.shows("document.body?.innerText.includes('Entity: driver')")
        assert await page.evaluate("location.pathname") == "/p/night_rides/entity/driver"
        await page.answered({f"{REST}/entities/driver?project=night_rides&include_relationships=true"})
        assert page.thrown == []
    assert_all_answered(page, served.origin)


@needs_a_browser
async def test_pages_of_the_api_are_drawn_within_their_policy(served: Served, tmp_path: Path) -> None:
    async with browser(tmp_path) as page:
        for path in ("/api/v1/", "/api/v1/docs"):
            await page.open(served.api + path)
            # Not innerText: that would have all of the page laid out each time.
            await page.shows("document.body?.textContent.replaceAll('\\u200b', '').includes('/entities/{name}')")
        assert page.thrown == []
    page.asked = {number: each for number, each in page.asked.items() if each.url != LOGO}
    assert [each for each in page.said if "Content Security Policy" in each and LOGO not in each] == []
    assert_all_answered(page, served.api)


def assert_all_answered(page: Page, origin: str) -> None:
    """No request failed, and none went elsewhere. What a page that was left still asked for was called off by it."""
    failed = [
        each
        for each in page.asked.values()
        if (each.status or 0) >= 400 or each.failure not in ("", "net::ERR_ABORTED")
    ]
    assert failed == []
    assert [each.url for each in page.asked.values() if not each.url.startswith(origin + "/")] == []
