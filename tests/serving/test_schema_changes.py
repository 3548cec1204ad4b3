"""Definitions change while they are read: reads under way answer as they began, later ones as things are, everywhere.

Reads are held where it hurts most: after they were planned and before their rows are read, and after a definition was
loaded and before it is used.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx2
import pytest

from protos.gen.triglot.serving.v1 import feature_group_pb2
from protos.gen.triglot.serving.v1 import serving_service_pb2 as pb
from protos.gen.triglot.serving.v1.value_pb2 import Value
from services.serving.catalogue import Catalogue
from services.serving.definition_cache import DefinitionCache
from services.serving.rows import Rows
from tests.conftest import Servers
from tests.patience import until
from tests.serving.conftest import MERGE, Client, Stack, hopsworks_client

BODY = {"featureStoreName": "demo", "featureViewName": "v", "featureViewVersion": 1}
VIEW = {"feature_store": "demo", "name": "v", "version": 1}
COLUMNS = {"id": "bigint", "x": "string", "w": "int"}
Change = Callable[[Client, Any], Awaitable[None]]


class Brake:
    """Holds calls of a method until it is released. They are the real ones; only their moment is chosen."""

    def __init__(self) -> None:
        self.arrived = 0
        self._go = asyncio.Event()

    async def hold(self) -> None:
        self.arrived += 1
        await self._go.wait()

    def release(self) -> None:
        self._go.set()

    async def holds(self, calls: int) -> None:
        """Wait until so many are held."""

        async def held() -> bool:
            return self.arrived >= calls

        await until(held)


class Process:
    """A serving process as its callers see it."""

    def __init__(self, client: Client, http: httpx2.AsyncClient) -> None:
        self.client = client
        self.http = http

    async def vectors(self) -> list[Any]:
        """What the view shows of rows 1 and 2: one by one, as a batch, and typed. Raises what is refused."""
        answers = [await self._rest("/feature_store", {"id": number}) for number in (1, 2)]
        batch = await self._rest("/batch_feature_store", [{"id": 1}, {"id": 2}])
        entries = [{"id": Value(int_value=number)} for number in (1, 2)]
        typed = [list(map(_plain, each.values)) for each in (await self.client.vectors("v", entries)).vectors]
        assert answers == batch == typed
        return batch

    async def _rest(self, path: str, entries: Any) -> list[Any]:
        response = await self.http.post(path, json=BODY | {"entries": entries})
        if response.status_code != 200:
            raise LookupError(response.json()["code"])
        assert "MISSING" not in response.json()["status"]
        return list(response.json()["features"])

    def reads(self) -> list[asyncio.Task[list[Any]]]:
        """All that `vectors` asks and the rows themselves, each as a call of its own."""
        keys = [pb.RowKey(values=[Value(int_value=number)]) for number in (1, 2)]
        read_rows = pb.ReadRowsRequest(feature_store="demo", feature_group="g", version=1, keys=keys)
        entries = [{"id": Value(int_value=number)} for number in (1, 2)]

        async def singles() -> list[Any]:
            return [await first, await second]

        async def typed() -> list[Any]:
            return [list(map(_plain, each.values)) for each in (await self.client.vectors("v", entries)).vectors]

        async def rows() -> list[Any]:
            found = (await self.client.call("ReadRows", read_rows)).rows
            assert all(row.found for row in found)
            return [list(map(_plain, row.values))[1:3] for row in found]

        first, second = (
            asyncio.ensure_future(self._rest("/feature_store", {"id": number})) for number in (1, 2)
        )  # each is held on its own
        calls = (singles(), self._rest("/batch_feature_store", [{"id": 1}, {"id": 2}]), typed(), rows())
        return [asyncio.ensure_future(call) for call in calls]


READS = 5


def _plain(value: Value) -> Any:
    kind = value.WhichOneof("kind")
    return None if kind in (None, "null_value") else getattr(value, kind)


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[tuple[DefinitionCache, str]]:
    """Each change that a process has taken in, and by which of the caches."""
    found: list[tuple[DefinitionCache, str]] = []
    changed = DefinitionCache.changed

    def hears(cache: DefinitionCache, payload: str) -> None:
        changed(cache, payload)
        found.append((cache, payload))

    monkeypatch.setattr(DefinitionCache, "changed", hears)
    return found


@pytest.fixture
async def processes(open_stack: Callable[..., Any], servers: Servers, heard: object) -> AsyncIterator[list[Process]]:
    """Two, of which the first is told of the changes. Replaced rows stay for reads under way, as they do by default."""
    options = {"retired_rows_seconds": 60.0, "sweep_seconds": 0.05}
    async with open_stack(**options) as one, open_stack(**options) as two:
        stacks: list[Stack] = [one, two]
        async with (
            hopsworks_client(one.channel, servers.admin_key) as http,
            hopsworks_client(two.channel, servers.admin_key) as other_http,
        ):
            pairs = zip(stacks, (http, other_http), strict=True)
            yield [Process(stack.client, client) for stack, client in pairs]


@pytest.fixture
async def group(processes: list[Process]) -> Any:
    serving = processes[0].client
    group = await serving.group("g", COLUMNS, ["id"])
    await serving.write(group, [{"id": 1, "x": "a", "w": 10}, {"id": 2, "x": "b", "w": 20}])
    await serving.view("v", [{"group": "g"}], [(0, "x"), (0, "w")])
    return group


async def append(serving: Client, group: Any) -> None:
    """And a row is written that is wider than those reads under way know of."""
    features = [feature_group_pb2.Feature(name="y", type="int")]
    request = pb.AppendFeaturesRequest(feature_store="demo", name="g", version=1, features=features)
    grown = (await serving.call("AppendFeatures", request)).feature_group
    await serving.write(grown, [{"id": 1, "x": "A", "w": 11, "y": 111}], MERGE)


async def recreate(serving: Client, group: Any) -> None:
    """With other features, of another group too."""
    more = await serving.group("h", {"id": "bigint", "z": "string"}, ["id"])
    await serving.write(more, [{"id": 1, "z": "y"}, {"id": 2, "z": "z"}])
    await serving.call("DeleteFeatureView", pb.DeleteFeatureViewRequest(**VIEW))
    await serving.view("v", [{"group": "g"}, {"group": "h", "on": [("id", "id")]}], [(1, "z"), (0, "x")])


async def replace(serving: Client, group: Any) -> None:
    await serving.write(group, [{"id": 1, "x": "A", "w": 11}, {"id": 2, "x": "B", "w": 21}])


async def delete(serving: Client, group: Any) -> None:
    await serving.call("DeleteFeatureGroup", pb.DeleteFeatureGroupRequest(feature_store="demo", name="g", version=1))


@pytest.mark.parametrize(
    ("change", "meanwhile", "afterwards"),
    [
        # A merge is seen row by row, so by reads under way too.
        (append, [["A", 11], ["b", 20]], [["A", 11], ["b", 20]]),
        (recreate, [["a", 10], ["b", 20]], [["y", "a"], ["z", "b"]]),
        (replace, [["a", 10], ["b", 20]], [["A", 11], ["B", 21]]),
        (delete, [["a", 10], ["b", 20]], LookupError("3")),
    ],
)
async def test_reads_under_way_end_as_they_began(
    *, processes: list[Process], group: Any, monkeypatch: pytest.MonkeyPatch, change: Change, meanwhile: Any,
    afterwards: Any,
) -> None:  # fmt: skip
    before = [["a", 10], ["b", 20]]
    for process in processes:
        assert await process.vectors() == before
    brake, read = Brake(), Rows.read

    async def held(rows: Rows, keys: list[bytes]) -> Any:
        await brake.hold()
        return await read(rows, keys)

    with monkeypatch.context() as patched:
        patched.setattr(Rows, "read", held)
        reads = [task for process in processes for task in process.reads()]
        await brake.holds(READS * len(processes))
    await change(processes[0].client, group)
    for process in processes:

        async def seen(process: Process = process) -> bool:
            try:
                return await process.vectors() == afterwards
            except LookupError as refusal:
                return str(refusal) == str(afterwards)

        if process is processes[0]:
            assert await seen()  # the one that was told need not hear of it
        await until(seen)
    assert not any(task.done() for task in reads)
    brake.release()
    assert await asyncio.gather(*reads) == [meanwhile] * len(reads)


async def test_a_column_that_was_appended_is_read_everywhere(processes: list[Process], group: Any) -> None:
    """Rows from before have null there, in all processes."""
    await append(processes[0].client, group)
    await processes[0].client.call("DeleteFeatureView", pb.DeleteFeatureViewRequest(**VIEW))
    await processes[0].client.view("v", [{"group": "g"}], [(0, "y"), (0, "x")])
    for process in processes:

        async def seen(process: Process = process) -> bool:
            return await process.vectors() == [[111, "A"], [None, "b"]]

        await until(seen)


async def test_a_definition_that_changes_while_it_is_loaded_is_not_kept(
    *, processes: list[Process], group: Any, heard: list[tuple[DefinitionCache, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waited for it gets what was true when they asked; whoever asks after the change does not."""
    _, other = processes
    brake, view = Brake(), Catalogue.view
    loading: list[Catalogue] = []

    async def held(catalogue: Catalogue, store: str, name: str, version: int) -> Any:
        found = await view(catalogue, store, name, version)
        loading.append(catalogue)
        await brake.hold()
        return found

    with monkeypatch.context() as patched:
        patched.setattr(Catalogue, "view", held)
        waiting = asyncio.ensure_future(other._rest("/feature_store", {"id": 1}))
        await brake.holds(1)
    heard.clear()
    await recreate(processes[0].client, group)

    async def told() -> bool:
        """Of the old view's end and the new one's beginning."""
        return [payload for cache, payload in heard if cache._catalogue is loading[0]].count("v demo/v/1") == 2

    await until(told)
    brake.release()
    assert await waiting == ["a", 10]
    assert await other.vectors() == [["y", "a"], ["z", "b"]]
