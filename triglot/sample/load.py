"""Load the sample as any client would: PAI's REST to define and publish, the stubs for the rest; with progress bars.

Every step looks first whether its object is there, so a load that was cut off is simply run again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import httpx2
import orjson
import pyarrow.parquet
from rich.console import Console
from rich.progress import TaskID

from chassis import calls, datatypes
from chassis.errors import CannotStart
from chassis.inprocess import InProcessChannel
from triglot.sample import definitions, tour
from triglot.sample.tables import PROJECT, TABLES, Table, write_tables
from triglot.stack import Stack
from triglot.terminal import bars

__all__ = ["PROJECT", "ensure"]

_DONE = "sample.json"
_PUBLISH_SECONDS = 600
_POLL_SECONDS = 0.2
_PAI = "/api/PaiFeatureStore/2023-06-21"


class SampleFailed(CannotStart):
    """The sample could not be loaded. Its text says which step failed and why."""


async def ensure(
    endpoints: Mapping[str, Any], stack: Stack, root: Path, data_dir: Path, console: Console
) -> dict[str, Any]:
    """Load the sample unless it is there; what `endpoints.json` says of it. Raises SampleFailed.

    What this data folder remembers is believed only if its calls are answered: the databases may be others now.
    """
    done = data_dir / _DONE
    try:
        async with tour.open_client(endpoints, timeout_seconds=30) as client:
            loaded: dict[str, Any] = orjson.loads(done.read_bytes()) if done.exists() else {}
            if loaded and await _answers(client, endpoints, loaded):
                return loaded
            views = await _Loader(client, endpoints, stack, root, console).run()
    except (httpx2.HTTPError, grpc.aio.AioRpcError) as error:
        raise SampleFailed(f"the sample could not be loaded: {error}") from error
    loaded = {**await asyncio.to_thread(definitions.example, root), "pai_feature_view_id": views["planes"]}
    done.write_bytes(orjson.dumps(loaded))
    return loaded


async def _answers(client: httpx2.AsyncClient, endpoints: Mapping[str, Any], loaded: dict[str, Any]) -> bool:
    """Whether every call of the tour is answered with what it should show."""
    for call in tour.sample_calls({**endpoints, "sample": loaded}):
        if not call.shown_by(await call.send(client)):
            return False
    return True


class _Loader:
    def __init__(
        self, client: httpx2.AsyncClient, endpoints: Mapping[str, Any], stack: Stack, root: Path, console: Console
    ) -> None:
        self._client = client
        self._endpoints = endpoints
        self._stack = stack
        self._root = root
        self._metadata = calls.bearer(endpoints["api_key"])
        self._headers = {"Authorization": f"Bearer {endpoints['api_key']}"} if endpoints["api_key"] else {}
        self._progress = bars(console)

    async def run(self) -> dict[str, str]:
        """Load everything; the ids of PAI's feature views by name."""
        with self._progress:
            writing = self._progress.add_task("writing Parquet", total=len(TABLES), unit="tables")
            rows = await asyncio.to_thread(write_tables, self._root)
            self._progress.update(writing, completed=len(TABLES))
            views = await self._define()
            for table in TABLES:
                bar = self._progress.add_task(f"{table.name}", total=rows[table.name], unit="rows")
                await self._publish(table, views[table.name], bar)
            await self._define_elsewhere()
        return views

    async def _define(self) -> dict[str, str]:
        """Datasources, project, entities, views, a label table and a model feature; the views' ids by name."""
        bar = self._progress.add_task("PAI definitions", total=4 + 2 * len(TABLES) + 1, unit="objects")
        offline = await self._ensure(bar, "Datasource", definitions.offline_datasource(self._root))
        online = await self._ensure(bar, "Datasource", definitions.ONLINE_DATASOURCE)
        project = await self._ensure(bar, "Project", definitions.project(offline, online))
        views = {}
        for table in TABLES:
            entity = {"ProjectId": project, "Name": table.entity, "JoinId": table.key}
            entity_id = await self._ensure(bar, "FeatureEntity", entity, plural="FeatureEntities")
            fields = await asyncio.to_thread(self._fields, table)
            view = definitions.feature_view(table, project, entity_id, offline, fields)
            views[table.name] = await self._ensure(bar, "FeatureView", view)
        labels = await self._ensure(bar, "LabelTable", definitions.label_table(project, offline))
        model = definitions.model_feature(project, labels, views, await asyncio.to_thread(self._all_fields))
        await self._ensure(bar, "ModelFeature", model)
        return views

    def _fields(self, table: Table) -> list[dict[str, Any]]:
        """A table's columns with their PAI types, from the Parquet file. The label is not one: it is never served."""
        schema = pyarrow.parquet.read_schema(self._root / f"{table.name}.parquet")
        return [
            {
                "Name": column.name,
                "Type": datatypes.pai_of_hive(datatypes.hive_of_arrow(column.type)),
                "Attributes": ["PrimaryKey"] if column.name == table.key else [],
            }
            for column in schema
        ]

    def _all_fields(self) -> dict[str, list[dict[str, Any]]]:
        return {table.name: self._fields(table) for table in TABLES}

    async def _ensure(self, bar: TaskID, kind: str, body: dict[str, Any], plural: str = "") -> str:
        """Find an object by its name, or make it; its id."""
        plural = plural or f"{kind}s"
        query = {"Name": body["Name"], "PageSize": "100"}
        if "ProjectId" in body:
            query["ProjectId"] = body["ProjectId"]
        listed = await self._call("GET", f"List{plural}", query=query)
        found = [each[f"{kind}Id"] for each in listed[plural] if each["Name"] == body["Name"]]
        made = found[0] if found else (await self._call("POST", f"Create{kind}", body=body))[f"{kind}Id"]
        self._progress.advance(bar)
        return str(made)

    async def _publish(self, table: Table, view_id: str, bar: TaskID) -> None:
        """Publish a view's table and follow its task to the end."""
        body = {"FeatureViewId": view_id, "Mode": "Overwrite", "OfflineToOnline": True}
        task_id = (await self._call("POST", "PublishFeatureViewTable", body=body))["TaskId"]
        async with asyncio.timeout(_PUBLISH_SECONDS):
            while True:
                task = await self._call("GET", "GetTask", query={"TaskId": task_id})
                self._progress.update(bar, completed=task.get("RowsDone") or 0)
                if task["Status"] == "Success":
                    return
                if task["Status"] == "Failure":
                    logs = await self._call("GET", "ListTaskLogs", query={"TaskId": task_id})
                    raise SampleFailed(f"publishing {table.name} failed: {'; '.join(logs['Logs'][-3:])}")
                await asyncio.sleep(_POLL_SECONDS)

    async def _define_elsewhere(self) -> None:
        """The model's view over four tables in serving, and the same definitions in Feast's registry."""
        steps = [
            *definitions.serving_calls(),
            *definitions.feast_calls(self._root),
        ]
        bar = self._progress.add_task("views, Feast", total=len(steps), unit="objects")
        serving, registry = InProcessChannel(self._stack.serving), InProcessChannel(self._stack.registry)
        for step in steps:
            await step.perform(serving, registry, self._metadata)
            self._progress.advance(bar)

    async def _call(
        self,
        method: str,
        operation: str,
        *,
        query: dict[str, str] | None = None,
        body: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        parameters = {"InstanceId": self._endpoints["instance_id"], **(query or {})}
        response = await self._client.request(
            method, f"{_PAI}/{operation}", params=parameters, json=body, headers=self._headers
        )
        answer: dict[str, Any] = response.json()
        if response.status_code != 200:
            raise SampleFailed(f"{operation} answered {response.status_code}: {answer.get('Message')}")
        return answer
