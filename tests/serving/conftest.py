"""Serving on real PostgreSQL and Redis through its in-process channel, and the gateway's Hopsworks dialect."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import httpx2
import pyarrow as pa
import pytest

from chassis import datatypes, errors
from chassis.inprocess import InProcessChannel
from chassis.rpc import Service
from chassis.settings import Settings
from gateway.app import create_app
from gateway.dialects import hopsworks
from gateway.settings import GatewaySettings
from protos.gen.triglot.serving.v1 import feature_group_pb2, feature_view_pb2
from protos.gen.triglot.serving.v1 import serving_service_pb2 as pb
from protos.gen.triglot.serving.v1.serving_service_pb2_grpc import ServingServiceStub
from services.serving.process import open_service
from services.serving.settings import ServingSettings
from tests.conftest import Servers

OVERWRITE, MERGE = pb.WRITE_MODE_OVERWRITE, pb.WRITE_MODE_MERGE


def arrow_stream(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def table_of(group: feature_group_pb2.FeatureGroup, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows as an Arrow table of the group's own types."""
    schema = pa.schema([(feature.name, datatypes.arrow_type(feature.type)) for feature in group.features])
    return pa.Table.from_pylist([dict(row) for row in rows], schema=schema)


@dataclass
class Client:
    """Calls of serving's RPCs with less typing. Raises TriglotErrors."""

    stub: ServingServiceStub
    metadata: tuple[tuple[str, str], ...]

    async def call(self, method: str, request: Any, timeout: float = 30) -> Any:
        try:
            return await getattr(self.stub, method)(request, metadata=self.metadata, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise errors.from_rpc(error) from None

    def with_key(self, key: str) -> Client:
        return Client(self.stub, (("authorization", f"Bearer {key}"),))

    async def group(
        self, name: str, columns: Mapping[str, str], key: Sequence[str], *, store: str = "demo", **more: Any
    ) -> feature_group_pb2.FeatureGroup:
        features = [feature_group_pb2.Feature(name=column, type=hive) for column, hive in columns.items()]
        message = feature_group_pb2.FeatureGroup(
            feature_store=store, name=name, version=more.pop("version", 1), features=features, primary_key=key, **more
        )
        reply = await self.call("EnsureFeatureGroup", pb.EnsureFeatureGroupRequest(feature_group=message))
        return reply.feature_group

    async def write(
        self,
        group: feature_group_pb2.FeatureGroup,
        rows: Sequence[Mapping[str, Any]] | pa.Table | Iterable[bytes],
        mode: pb.WriteMode.ValueType = OVERWRITE,
        *,
        end: bool = True,
    ) -> Any:
        if isinstance(rows, pa.Table):
            streams: Iterable[bytes] = [arrow_stream(rows)]
        elif isinstance(rows, list) and (not rows or isinstance(rows[0], Mapping)):
            streams = [arrow_stream(table_of(group, rows))]
        else:
            streams = rows  # type: ignore[assignment]
        header = pb.WriteRowsHeader(
            feature_store=group.feature_store, feature_group=group.name, version=group.version, mode=mode
        )

        async def messages() -> AsyncIterator[pb.WriteRowsRequest]:
            yield pb.WriteRowsRequest(header=header)
            for stream in streams:
                yield pb.WriteRowsRequest(arrow_stream=stream)
            if end:
                yield pb.WriteRowsRequest(end=pb.WriteRowsEnd())

        return await self.call("WriteRows", messages())

    async def view(
        self,
        name: str,
        joins: Sequence[Mapping[str, Any]],
        features: Sequence[tuple[int, str] | tuple[int, str, str]],
        *,
        store: str = "demo",
        version: int = 1,
    ) -> feature_view_pb2.FeatureView:
        """Joins: group, prefix, on (pairs), store. Features: join index, name and maybe `label` or the like."""
        view = feature_view_pb2.FeatureView(feature_store=store, name=name, version=version)
        for join in joins:
            added = view.joins.add(
                feature_group=join["group"],
                version=join.get("version", 1),
                prefix=join.get("prefix", ""),
                feature_store=join.get("store", ""),
            )
            for left, right in join.get("on", ()):
                added.on.add(left=left, right=right)
        for index, feature, *marks in features:
            view.features.add(join_index=index, name=feature, **dict.fromkeys(marks, True))
        reply = await self.call("CreateFeatureView", pb.CreateFeatureViewRequest(feature_view=view))
        return reply.feature_view

    async def vectors(self, view: str, entries: Sequence[Mapping[str, Any]], **more: Any) -> Any:
        """GetFeatureVectors with entries of Values."""
        request = pb.GetFeatureVectorsRequest(feature_store="demo", feature_view=view, version=1, **more)
        for entry in entries:
            added = request.entries.add()
            for name, value in entry.items():
                added.keys[name].CopyFrom(value)
        return await self.call("GetFeatureVectors", request)


@dataclass
class Stack:
    """One serving process."""

    client: Client
    channel: InProcessChannel
    services: Sequence[Service]


@pytest.fixture
async def open_stack(settings: Settings, servers: Servers) -> Any:
    """Opens one more serving process on this test's databases."""

    @asynccontextmanager
    async def opened(**own: Any) -> AsyncIterator[Stack]:
        chosen = {"retired_rows_seconds": 0.0, **own}
        async with open_service(own.pop("settings", settings), ServingSettings(**chosen)) as services:
            channel = InProcessChannel(services)
            metadata = (("authorization", f"Bearer {servers.admin_key}"),)
            yield Stack(Client(ServingServiceStub(channel), metadata), channel, services)

    return opened


@pytest.fixture
async def stack(open_stack: Callable[..., Any]) -> AsyncIterator[Stack]:
    async with open_stack() as opened:
        yield opened


@pytest.fixture
def serving(stack: Stack) -> Client:
    return stack.client


@asynccontextmanager
async def hopsworks_client(
    channel: grpc.aio.Channel, api_key: str, settings: GatewaySettings | None = None
) -> AsyncIterator[httpx2.AsyncClient]:
    settings = settings or GatewaySettings()
    app = create_app([hopsworks.dialect(channel, settings)], settings)
    transport = httpx2.ASGITransport(app=app)
    headers = {"X-API-KEY": api_key} if api_key else {}
    async with httpx2.AsyncClient(transport=transport, base_url="http://triglot/0.1.0", headers=headers) as client:
        yield client


@pytest.fixture
async def http(stack: Stack, servers: Servers) -> AsyncIterator[httpx2.AsyncClient]:
    """The Hopsworks dialect before the serving process, with an administrator's key."""
    async with hopsworks_client(stack.channel, servers.admin_key) as client:
        yield client


@pytest.fixture
def refused() -> Callable[..., Any]:
    """Awaits a call that must be refused for a reason; the error."""

    async def check(reason: str, call: Any) -> errors.TriglotError:
        with pytest.raises(errors.TriglotError) as caught:
            await call
        assert caught.value.reason == reason, caught.value.message
        return caught.value

    return check
