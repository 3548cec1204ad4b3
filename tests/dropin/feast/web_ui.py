"""Feast's own web UI served from its bundle beside a REST API, and a browser that opens it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from tests.patience import PATIENCE_SECONDS, until

CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome"))), None
)
# With these it asks nobody for anything but the page, and the page cannot reach another host.
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--window-size=1600,1200",
)
REST = "/api/v1"
# A page that is being drawn answers when it is done; one of the API's pages is that of a hundred operations.
DRAWN_SECONDS = 4 * PATIENCE_SECONDS
# What `feast ui` itself answers, outside the REST API, where MLflow is not configured.
WITHOUT_MLFLOW = {
    "/api/mlflow-runs": {"runs": [], "mlflow_uri": None},
    "/api/mlflow-feature-usage": {"feature_usage": {}, "mlflow_enabled": False},
    "/api/mlflow-feature-models": {"feature_models": {}},
}


async def projects_list(rest: httpx2.AsyncClient) -> Any:
    """projects-list.json, as `feast ui` makes it from the projects of a registry."""
    projects = [each["spec"] for each in (await rest.get(f"{REST}/projects")).json()["projects"]]
    listed = [
        {
            "name": spec["name"].replace("_", " ").title(),
            "description": spec.get("description") or f"Project: {spec['name']}",
            "id": spec["name"],
            "registryPath": REST,
        }
        for spec in projects
    ]
    if len(listed) > 1:
        everything = {"name": "All Projects", "description": "View data across all projects", "id": "all"}
        listed.insert(0, everything | {"registryPath": REST})
    return {"projects": listed}


def site(build: Path, rest: httpx2.AsyncClient) -> Starlette:
    """The bundle's files at `/`, its page at every address of its own, and `rest`, which shows a key, below /api/v1."""

    async def page(_: Request) -> Response:
        return FileResponse(build / "index.html")

    async def projects(_: Request) -> Response:
        return JSONResponse(await projects_list(rest))

    async def without_mlflow(request: Request) -> Response:
        return JSONResponse(WITHOUT_MLFLOW[request.url.path])

    async def passed_on(request: Request) -> Response:
        asked = str(request.url).removeprefix(str(request.base_url).rstrip("/"))
        kept = {name: value for name, value in request.headers.items() if name in ("accept", "content-type")}
        answer = await rest.request(request.method, asked, headers=kept, content=await request.body())
        return Response(answer.content, answer.status_code, media_type=answer.headers.get("content-type"))

    return Starlette(
        routes=[
            Route("/", page),
            Route("/p/{path:path}", page),
            Route("/projects-list.json", projects),
            *(Route(path, without_mlflow) for path in WITHOUT_MLFLOW),
            Route(f"{REST}/{{path:path}}", passed_on, methods=["GET", "POST", "DELETE"]),
            Mount("/", StaticFiles(directory=build)),
        ]
    )


@dataclass
class Asked:
    """A request of a page. It has a status once it was answered, a failure if it never was."""

    method: str
    url: str
    status: int | None = None
    failure: str = ""
    # Which loading of a page asked.
    loader: str = ""

    @property
    def path(self) -> str:
        """With its query."""
        parts = urlsplit(self.url)
        return f"{parts.path}?{parts.query}" if parts.query else parts.path


@dataclass
class Page:
    """A page of a browser, driven through its DevTools protocol: a JSON message after the other, with a NUL between."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    session: str = ""
    # All that was asked for since the browser was started, by the browser's id of it.
    asked: dict[str, Asked] = field(default_factory=dict)
    # Exceptions that no script caught.
    thrown: list[str] = field(default_factory=list)
    # What the browser itself had to say, such as what a policy kept it from.
    said: list[str] = field(default_factory=list)
    _replies: dict[int, asyncio.Future[Any]] = field(default_factory=dict)
    # The loading of the page that was opened last. The browser says nothing of the end of requests of the one before.
    _loader: str = ""

    async def command(self, method: str, **parameters: Any) -> Any:
        """Send a command of the protocol; its result."""
        number = len(self._replies)
        reply = self._replies[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        self.writer.write(json.dumps(message).encode() + b"\0")
        async with asyncio.timeout(DRAWN_SECONDS):
            return await reply

    async def open(self, url: str) -> None:
        """Leave what is shown, and begin to load a page."""
        self._loader = (await self.command("Page.navigate", url=url))["loaderId"]

    async def evaluate(self, expression: str) -> Any:
        """The value of an expression of JavaScript in the page."""
        answer = await self.command("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def shows(self, expression: str) -> None:
        """Wait until an expression is true in the page. An AssertionError with the page's text if it never is."""

        async def true() -> bool:
            return bool(await self.evaluate(expression))

        try:
            await until(true, DRAWN_SECONDS)
        except TimeoutError:
            text = await self.evaluate("document.body?.innerText")
            raise AssertionError(f"{expression}\n{self.thrown}\n{text}") from None

    async def answered(self, paths: set[str]) -> None:
        """Wait until the page that was opened last has asked for all these, and has an answer to all it asked for."""

        def asked_here() -> list[Asked]:
            return [each for each in self.asked.values() if each.loader == self._loader]

        async def all_there() -> bool:
            asked = asked_here()
            return paths <= {each.path for each in asked} and all(each.status or each.failure for each in asked)

        try:
            await until(all_there, DRAWN_SECONDS)
        except TimeoutError:
            missing = paths - {each.path for each in asked_here()}
            raise AssertionError(f"not asked for: {missing}; asked for: {asked_here()}") from None

    async def listen(self) -> None:
        """Take what the browser says until it ends."""
        while message := (await self.reader.readuntil(b"\0"))[:-1]:
            said = json.loads(message)
            if "id" in said:
                reply = self._replies[said["id"]]
                if "error" in said:
                    reply.set_exception(RuntimeError(said["error"]["message"]))
                else:
                    reply.set_result(said["result"])
            else:
                self._note(said["method"], said["params"])

    def _note(self, event: str, what: Any) -> None:
        if event == "Network.requestWillBeSent" and not what["request"]["url"].startswith(("data:", "blob:")):
            request = what["request"]
            self.asked[what["requestId"]] = Asked(request["method"], request["url"], loader=what["loaderId"])
        elif event == "Network.responseReceived" and what["requestId"] in self.asked:
            self.asked[what["requestId"]].status = what["response"]["status"]
        elif event == "Network.loadingFailed" and what["requestId"] in self.asked:
            self.asked[what["requestId"]].failure = what["errorText"]
        elif event == "Log.entryAdded":
            self.said.append(what["entry"]["text"])
        elif event == "Runtime.exceptionThrown":
            self.thrown.append(json.dumps(what["exceptionDetails"])[:2000])


@asynccontextmanager
async def browser(folder: Path) -> AsyncIterator[Page]:
    """A Chromium with a profile of its own and one empty page. It ends with the block, or with this process."""
    assert CHROMIUM is not None
    process = await asyncio.create_subprocess_exec(
        # Chromium reads commands from descriptor 3 and writes to 4.
        "sh", "-c", 'exec "$@" 3<&0 4>&1 0</dev/null 1>/dev/null 2>"$0"', str(folder / "chromium.log"),
        CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", "--remote-debugging-pipe", "about:blank",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=64 << 20,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    page = Page(process.stdout, process.stdin)
    listening = asyncio.create_task(page.listen())
    try:
        targets = (await page.command("Target.getTargets"))["targetInfos"]
        [target] = [each["targetId"] for each in targets if each["type"] == "page"]
        page.session = (await page.command("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        for domain in ("Log", "Network", "Page", "Runtime"):
            await page.command(f"{domain}.enable")
        yield page
    finally:
        listening.cancel()
        process.kill()
        await process.wait()
