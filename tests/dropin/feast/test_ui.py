"""Feast's own web UI, from the SDK's wheel, and our pages of the API, each opened in a headless Chromium.

The UI is served beside our REST, as `feast ui` does it; the API key is added on the way. Skipped where there is no
Chromium: set CHROMIUM to one, or have it on the PATH.
"""

from __future__ import annotations

import asyncio
import json
import mimetypes
import os
import re
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from chassis.settings import Settings
from gateway.server import HttpServer
from gateway.settings import GatewaySettings
from tests.cases.world import World, open_world
from tests.conftest import Servers
from tests.dropin.feast.test_sdk import SDK
from tests.gateway.test_feast_openapi import FEAST, WRITTEN

CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.dropin,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here"),
]
# In the browser's own time, which stands still while it waits for an answer.
BUDGET_MS = 20_000
# What the UI asks for wherever it runs, and does without: the real server has them only if it is configured so.
OPTIONAL = re.compile(r"/api/mlflow|/lineage/openlineage|/monitoring/")
LOGO = "https://cdn.redoc.ly/redoc/logo-mini.svg"


@dataclass
class Site:
    """The UI's files, our REST below /api/v1 and at /docs, and what was asked for in vain."""

    world: World
    build: Path
    failed: list[tuple[str, int]] = field(default_factory=list)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        event = await receive()
        path, query = scope["path"], scope["query_string"].decode()
        status, media_type, headers, body = 200, "text/html; charset=utf-8", [], b""
        file = self.build / path.lstrip("/")
        if path.startswith("/api/"):
            shown = {"Authorization": f"Bearer {self.world.api_key}", "Content-Type": "application/json"}
            url = f"{path}?{query}" if query else path
            answer = await self.world.http.request(scope["method"], url, headers=shown, content=event.get("body", b""))
            status, media_type, body = answer.status_code, answer.headers["content-type"], answer.content
            policy = answer.headers.get("content-security-policy")
            headers = [(b"content-security-policy", policy.encode())] if policy else []
        elif path == "/projects-list.json":
            project = {"name": "Demo", "description": "d", "id": "demo", "registryPath": "/api/v1"}
            media_type, body = "application/json", json.dumps({"projects": [project]}).encode()
        elif file.is_file():
            media_type, body = mimetypes.guess_type(file.name)[0] or "text/plain", file.read_bytes()
        else:
            body = (self.build / "index.html").read_bytes()
        if status >= 400 and not OPTIONAL.search(path):
            self.failed.append((f"{path}?{query}", status))
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(b"content-type", media_type.encode()), *headers],
            }
        )
        await send({"type": "http.response.body", "body": body})


@dataclass
class Browser:
    """A Chromium that can reach this site only."""

    site: Site
    origin: str
    folder: Path

    async def open(self, path: str) -> tuple[str, str]:
        """The page at a path once it is drawn, as HTML, and what the browser said about it."""
        done = await asyncio.create_subprocess_exec(
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={self.folder}",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            "--enable-logging=stderr",
            f"--virtual-time-budget={BUDGET_MS}",
            "--dump-dom",
            self.origin + path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        page, said = await asyncio.wait_for(done.communicate(), 250)
        assert done.returncode == 0, said.decode()
        console = "\n".join(line for line in said.decode().splitlines() if "CONSOLE" in line)
        return page.decode(), console


@pytest.fixture
async def browser(settings: Settings, servers: Servers, tmp_path: Path) -> AsyncIterator[Browser]:
    [build] = SDK.parent.glob("lib/python3*/site-packages/feast/ui/build")
    async with open_world(settings, servers) as world:
        for method, message in WRITTEN:
            await world.rpc(f"{FEAST}/{method}", {"project": "demo", **message})
        site = Site(world, build)
        server = HttpServer(site, GatewaySettings(ports=(0,)), host="127.0.0.1", drain_seconds=1)
        [port] = await server.start()
        yield Browser(site, f"http://127.0.0.1:{port}", tmp_path)
        await server.stop()


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/p/demo", ["Demo"]),
        ("/p/demo/entity", ["driver"]),
        ("/p/demo/entity/driver", ["driver", "INT64"]),
        ("/p/demo/data-source/trips", ["trips", "BATCH_FILE"]),
        ("/p/demo/feature-view", ["stats", "scaled", "fresh"]),
        ("/p/demo/feature-view/stats", ["stats", "rate", "FLOAT"]),
        ("/p/demo/feature-view/stats/feature/rate", ["rate"]),
        ("/p/demo/feature-service/model", ["model", "stats"]),
        ("/p/demo/label-view", ["verdicts"]),
        ("/p/demo/data-set", ["training"]),
        ("/p/demo/permissions", ["readers"]),
        ("/p/demo/lineage", ["react-flow"]),
        ("/p/demo/compute-engine", ["LocalComputeEngine"]),
    ],
)
async def test_the_ui_shows(browser: Browser, path: str, shown: list[str]) -> None:
    page, console = await browser.open(path)
    assert [text for text in shown if text not in page] == [], page[-3000:]
    assert "We encountered an error while loading" not in page
    assert browser.site.failed == [], console


@pytest.mark.parametrize(("path", "shown"), [("/api/v1/", "/entities/{name}"), ("/api/v1/docs", "/entities/{name}")])
async def test_pages_of_the_api_are_drawn_within_their_policy(browser: Browser, path: str, shown: str) -> None:
    page, console = await browser.open(path)
    assert re.sub(r"<[^>]*>|\u200b", "", page).count(shown) >= 1, page[-3000:]
    # ReDoc's attribution has a logo elsewhere: the policy is why it is not fetched.
    violations = [line for line in console.splitlines() if "Content Security Policy" in line and LOGO not in line]
    assert violations == []
    assert browser.site.failed == []
