"""Callers who do not stop while something breaks: each dialect over REST, each service over gRPC, reads and writes.

They count what they send, what is answered, what fails and what is wrong. A few calls a second of each kind find a
failure as well as thousands would, and leave a laptop to the servers.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any, Self

import httpx2

from chassis import errors
from chassis.client import open_channel
from chassis.settings import Settings
from tests.cases.world import World
from tests.deploy.deployment import INSTANCE_ID, Deployment
from tests.patience import PATIENCE_SECONDS, until

STORE, GROUP, TABLE, VIEW, TABLE_VIEW = "faults", "riders", "table", "riding", "tables"
ROWS = 200
_PAUSE_SECONDS = 0.15
_SERVING = "triglot.serving.v1.ServingService"
_REGISTRY = "feast.registry.RegistryServer"
_MANAGEMENT = "triglot.management.v1.ManagementService"
_CALL_SECONDS = 15
# Nobody answered: the server, or who stands before it, may be gone.
GONE = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"})


class Wrong(Exception):
    """An answer that no fault excuses."""


class Refused(Exception):
    """An HTTP status that is no success, with what the dialect calls it; or no answer at all."""


class Visitor:
    """A caller of REST, who keeps its connection to a gateway for as long as that does, and then takes the next one."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._turns = itertools.count()
        self._client: httpx2.AsyncClient | None = None

    async def request(self, method: str, path: str, **more: Any) -> Any:
        """The answer's JSON. Raises Refused."""
        if self._client is None:
            gateways = self._deployment.gateways()
            if not gateways:
                raise Refused("no gateway is ready")
            url = gateways[next(self._turns) % len(gateways)]
            self._client = httpx2.AsyncClient(base_url=url, timeout=_CALL_SECONDS)
        stays = False
        try:
            response = await self._client.request(method, path, **more)
            stays = response.headers.get("connection") != "close"
        except httpx2.TransportError as error:
            raise Refused(type(error).__name__) from None
        finally:
            if not stays:
                await self.leave()
        if response.status_code >= 400:
            raise Refused(f"{response.status_code} {_code(response)}")
        return response.json()

    async def leave(self) -> None:
        """Close the connection."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None


class Load:
    """Calls from `with` to its end, in a thread of its own: tests start and stop servers in theirs."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._ready, self._stop = threading.Event(), asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._world: World | None = None
        self._closing: AsyncExitStack | None = None
        self._error: BaseException | None = None
        self.sent: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        # By kind and by what it was refused with.
        self.failed: Counter[tuple[str, str]] = Counter()
        self.wrong: list[str] = []
        # Names of what PostgreSQL acknowledged.
        self.acknowledged: set[str] = set()
        self._last_failure = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(PATIENCE_SECONDS)
        self._raise()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    # What a test asks

    def calm(self) -> None:
        """Wait until calls of every kind are answered, several times in a row."""
        before = dict(self.answered)
        failures = self.failed.total()

        async def round_() -> bool:
            nonlocal before, failures
            if self.failed.total() != failures:
                before, failures = dict(self.answered), self.failed.total()
            return all(self.answered[kind] >= number + 5 for kind, number in before.items())

        asyncio.run(until(round_, 2 * PATIENCE_SECONDS))

    def goes_on(self, calls: int = 10) -> None:
        """Wait until so many more calls of every kind have been sent and have ended, however they did."""
        sent = dict(self.sent)

        async def more() -> bool:
            # A kind of call ends before the next one of it is sent.
            return all(self.sent[kind] > before + calls for kind, before in sent.items())

        asyncio.run(until(more, 2 * PATIENCE_SECONDS))

    def lost(self) -> set[str]:
        """What was acknowledged and is not there."""
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(self._lost(), self._loop).result(PATIENCE_SECONDS)

    def codes(self) -> set[str]:
        """In what ways calls failed."""
        return {code for _, code in self.failed}

    def report(self, what: str, since: float) -> str:
        """A line: what was counted, and how long after `since` (time.monotonic) the last call failed."""
        failed = "; ".join(f"{kind}: {code} x {number}" for (kind, code), number in sorted(self.failed.items()))
        recovery = f", the last after {max(0.0, self._last_failure - since):.1f} s: {failed}" if failed else ""
        return (
            f"{what}: sent {self.sent.total()}, answered {self.answered.total()}, wrong {len(self.wrong)},"
            f" failed {self.failed.total()}{recovery}"
        )

    # The thread

    async def _run(self) -> None:
        try:
            self._loop = asyncio.get_running_loop()
            async with AsyncExitStack() as self._closing:
                closing = self._closing
                channels = {
                    name: await closing.enter_async_context(open_channel(target, Settings()))
                    for name, target in self._deployment.targets().items()
                }
                http = await closing.enter_async_context(httpx2.AsyncClient(base_url="http://nowhere"))
                self._world = World(http, channels, self._deployment.api_key, INSTANCE_ID)
                await self._prepare(self._world)
                kinds = self._kinds()
                self.sent, self.answered = (Counter({kind: 0 for kind, _ in kinds}) for _ in range(2))
                callers = [asyncio.create_task(self._call(kind, ask)) for kind, ask in kinds]
                self._ready.set()
                await asyncio.wait([asyncio.create_task(self._stop.wait()), *callers], return_when="FIRST_COMPLETED")
                self._stop.set()
                await asyncio.gather(*callers)
        except BaseException as error:
            self._error = error
        finally:
            self._ready.set()

    async def _prepare(self, world: World) -> None:
        for name in (GROUP, TABLE):
            features = [{"name": "id", "type": "bigint"}, {"name": "x", "type": "bigint"}]
            group = {"feature_store": STORE, "name": name, "version": 1, "primary_key": ["id"], "features": features}
            await world.rpc(f"{_SERVING}/EnsureFeatureGroup", {"feature_group": group})
            await world.write_rows(
                feature_store=STORE, feature_group=name, columns={"id": list(range(ROWS)), "x": [0] * ROWS}
            )
        for view, group_name in ((VIEW, GROUP), (TABLE_VIEW, TABLE)):
            joins = [{"feature_group": group_name, "version": 1}]
            message = {"feature_store": STORE, "name": view, "version": 1, "joins": joins, "features": [{"name": "x"}]}
            with suppress(errors.AlreadyExists):
                await world.rpc(f"{_SERVING}/CreateFeatureView", {"feature_view": message})
        await world.rpc(f"{_REGISTRY}/ApplyProject", {"project": {"spec": {"name": STORE}}})

    def _kinds(self) -> Sequence[tuple[str, Callable[[], Awaitable[None]]]]:
        return (
            ("vector REST", self._visitor(self._vector_rest)),
            ("batch REST", self._visitor(self._batch_rest)),
            ("Feast REST", self._visitor(self._feast_rest)),
            ("PAI REST", self._visitor(self._pai_rest)),
            ("vector gRPC", self._vector_grpc),
            ("Feast gRPC write", self._feast_write),
            ("management gRPC", self._management_grpc),
            ("overwrite gRPC", self._overwrite),
        )

    async def _call(self, kind: str, ask: Callable[[], Awaitable[None]]) -> None:
        while not self._stop.is_set():
            self.sent[kind] += 1
            try:
                await ask()
            except Wrong as wrong:
                self.wrong.append(f"{kind}: {wrong}")
            except (Refused, errors.TriglotError) as error:
                self.failed[kind, _said(error)] += 1
                self._last_failure = time.monotonic()
            else:
                self.answered[kind] += 1
            # No two of them in step, or each would meet the same replica every time.
            await asyncio.sleep(random.uniform(0.5, 1.5) * _PAUSE_SECONDS)

    # REST

    def _visitor(self, ask: Callable[[Visitor], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
        visitor = Visitor(self._deployment)
        assert self._closing is not None
        self._closing.push_async_callback(visitor.leave)
        return lambda: ask(visitor)

    async def _vector_rest(self, visitor: Visitor) -> None:
        body = {"featureStoreName": STORE, "featureViewName": VIEW, "featureViewVersion": 1, "entries": {"id": 7}}
        answer = await visitor.request(
            "POST", "/0.1.0/feature_store", json=body, headers={"X-API-KEY": self._deployment.api_key}
        )
        if answer["features"] != [0]:
            raise Wrong(answer)

    async def _batch_rest(self, visitor: Visitor) -> None:
        """All rows of a table that is overwritten all the time: of one generation, or refused."""
        entries = [{"id": number} for number in range(0, ROWS, 10)]
        body = {"featureStoreName": STORE, "featureViewName": TABLE_VIEW, "featureViewVersion": 1, "entries": entries}
        headers = {"X-API-KEY": self._deployment.api_key}
        answer = await visitor.request("POST", "/0.1.0/batch_feature_store", json=body, headers=headers)
        found = {tuple(each) if each is not None else None for each in answer["features"]}
        if None in found and "ERROR" in answer["status"]:
            raise Refused("200 ERROR")
        if len(found) != 1 or found & {None, (None,)}:
            raise Wrong(f"half a table: {answer}")

    async def _feast_rest(self, visitor: Visitor) -> None:
        headers = {"Authorization": f"Bearer {self._deployment.api_key}"}
        answer = await visitor.request("GET", f"/api/v1/projects/{STORE}", headers=headers)
        if answer["spec"]["name"] != STORE:
            raise Wrong(answer)

    async def _pai_rest(self, visitor: Visitor) -> None:
        headers = {"Authorization": f"Bearer {self._deployment.api_key}"}
        answer = await visitor.request("GET", "/api/PaiFeatureStore/2023-06-21/ListInstances", headers=headers)
        if answer["TotalCount"] != 1:
            raise Wrong(answer)

    # gRPC

    async def _vector_grpc(self) -> None:
        assert self._world is not None
        entry = {"keys": {"id": {"int_value": "7"}}}
        request = {"feature_store": STORE, "feature_view": VIEW, "version": 1, "entries": [entry]}
        answer = await self._world.rpc(f"{_SERVING}/GetFeatureVectors", request)
        if [value.int_value for value in answer.vectors[0].values] != [0]:
            raise Wrong(answer)

    async def _feast_write(self) -> None:
        assert self._world is not None
        name = f"entity{self.sent.total()}x{id(self)}"
        await self._world.rpc(f"{_REGISTRY}/ApplyEntity", {"project": STORE, "entity": {"spec": {"name": name}}})
        self.acknowledged.add(name)

    async def _lost(self) -> set[str]:
        assert self._world is not None
        acknowledged = set(self.acknowledged)
        answer = await self._world.rpc(f"{_REGISTRY}/ListEntities", {"project": STORE})
        return acknowledged - {each.spec.name for each in answer.entities}

    async def _management_grpc(self) -> None:
        assert self._world is not None
        await self._world.rpc(f"{_MANAGEMENT}/ListProjects", {"instance_id": INSTANCE_ID})

    async def _overwrite(self) -> None:
        assert self._world is not None
        generation = self.sent["overwrite gRPC"]
        await self._world.write_rows(
            feature_store=STORE, feature_group=TABLE, columns={"id": list(range(ROWS)), "x": [generation] * ROWS}
        )


def _said(error: Refused | errors.TriglotError) -> str:
    if isinstance(error, Refused):
        return str(error)
    return error.code.name if error.code.name in GONE else f"{error.code.name}: {error.message}"


def _code(response: httpx2.Response) -> str:
    """What the dialect calls it. Whatever is no JSON is nobody's answer."""
    try:
        body = response.json()
    except ValueError:
        return f"{response.text[:40]!r}"
    return str(body.get("code") or body.get("Code") or body.get("error_type") or body)
