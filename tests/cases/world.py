"""Where compatibility cases run: the whole stack in this process, reached through the gateway and over gRPC.

With TRIGLOT_ENDPOINTS set to a file, a deployment that somebody else started is the world instead. The file is an
`endpoints.json` as `triglot up` writes it, in which `rest` may be several URLs, taken in turn. Each case begins with an
empty catalogue, so the file must also name the deployment's `postgres_url` and `redis_url` (and `redis_cluster`: true):
**all that they hold is deleted**, but for keys.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import httpx2
import pyarrow
import pyarrow.ipc
from google.protobuf import json_format
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster

from chassis import errors
from chassis.client import open_channel
from chassis.inprocess import InProcessChannel
from chassis.settings import Settings
from protos.gen.triglot.serving.v1 import serving_service_pb2 as serving
from services.serving.catalogue import CHANNEL
from tests.conftest import Servers
from triglot.stack import open_stack

# Full service name -> (module of its stub, which service of ours serves it).
STUBS = {
    "feast.registry.RegistryServer": ("protos.gen.feast.registry.RegistryServer_pb2", "registry"),
    "triglot.registry.v1.RegistryService": ("protos.gen.triglot.registry.v1.registry_service_pb2", "registry"),
    "triglot.serving.v1.ServingService": ("protos.gen.triglot.serving.v1.serving_service_pb2", "serving"),
    "triglot.management.v1.ManagementService": (
        "protos.gen.triglot.management.v1.management_service_pb2",
        "management",
    ),
    "triglot.management.v1.UsageService": ("protos.gen.triglot.management.v1.usage_service_pb2", "management"),
    "triglot.identity.v1.IdentityService": ("protos.gen.triglot.identity.v1.identity_service_pb2", "management"),
}


@dataclass(frozen=True)
class World:
    """A deployment under test."""

    http: httpx2.AsyncClient
    channels: Mapping[str, grpc.aio.Channel]
    api_key: str
    instance_id: str

    async def rpc(self, path: str, message: Mapping[str, Any], api_key: str | None = None) -> Any:
        """Call `package.Service/Method` with a message in protobuf JSON. Raises TriglotError."""
        service, _, method = path.partition("/")
        module_name, owner = STUBS[service]
        descriptor = import_module(module_name).DESCRIPTOR.services_by_name[service.rpartition(".")[2]]
        stub = getattr(import_module(module_name + "_grpc"), descriptor.name + "Stub")(self.channels[owner])
        request_type = descriptor.methods_by_name[method].input_type._concrete_class
        request = json_format.ParseDict(dict(message), request_type())
        return await self._answered(getattr(stub, method)(request, metadata=self._metadata(api_key), timeout=20))

    async def write_rows(
        self,
        *,
        feature_store: str,
        feature_group: str,
        version: int = 1,
        mode: str = "OVERWRITE",
        columns: Mapping[str, list[Any]],
        types: Mapping[str, str] | None = None,
    ) -> Any:
        """Write rows given column by column. `types` are names of Arrow types."""
        arrays = {
            name: pyarrow.array(values, pyarrow.type_for_alias(types[name]) if types and name in types else None)
            for name, values in columns.items()
        }
        table = pyarrow.table(arrays)
        sink = io.BytesIO()
        with pyarrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        header = serving.WriteRowsHeader(
            feature_store=feature_store,
            feature_group=feature_group,
            version=version,
            mode=serving.WriteMode.Value(f"WRITE_MODE_{mode}"),
        )

        async def messages() -> AsyncIterator[serving.WriteRowsRequest]:
            yield serving.WriteRowsRequest(header=header)
            yield serving.WriteRowsRequest(arrow_stream=sink.getvalue())
            yield serving.WriteRowsRequest(end=serving.WriteRowsEnd())

        stubs = import_module(STUBS["triglot.serving.v1.ServingService"][0] + "_grpc")
        stub = stubs.ServingServiceStub(self.channels["serving"])
        return await self._answered(stub.WriteRows(messages(), metadata=self._metadata(None), timeout=20))

    def _metadata(self, api_key: str | None) -> tuple[tuple[str, str], ...]:
        shown = self.api_key if api_key is None else api_key
        return (("authorization", f"Bearer {shown}"),) if shown else ()

    @staticmethod
    async def _answered(call: Any) -> Any:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise errors.from_rpc(error) from None


DEPLOYED = os.environ.get("TRIGLOT_ENDPOINTS", "")


class _InTurn(httpx2.AsyncBaseTransport):
    """Sends each request to the next of several servers, as what stands before them would."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = itertools.cycle(map(httpx2.URL, urls))
        self._transport = httpx2.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """One request."""
        url = next(self._urls)
        request.url = request.url.copy_with(scheme=url.scheme, host=url.host, port=url.port)
        return await self._transport.handle_async_request(request)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._transport.aclose()


@asynccontextmanager
async def open_deployment(path: Path) -> AsyncIterator[World]:
    """The deployment that a file of endpoints names, emptied."""
    endpoints = json.loads(path.read_text())
    await _empty(endpoints)
    rest = endpoints["rest"]
    transport = _InTurn([rest] if isinstance(rest, str) else rest)
    async with AsyncExitStack() as closing:
        channels = {
            name: await closing.enter_async_context(open_channel(endpoints[f"{name}_grpc"], Settings()))
            for name in ("registry", "serving", "management")
        }
        client = httpx2.AsyncClient(transport=transport, base_url="http://triglot", timeout=20)
        http = await closing.enter_async_context(client)
        yield World(http, channels, endpoints["api_key"], endpoints["instance_id"])


async def _empty(endpoints: Mapping[str, Any]) -> None:
    """Make the catalogue what it was after the migrations, and tell all processes of it. Rows go with their Redis."""
    connection = await asyncpg.connect(endpoints["postgres_url"])
    try:
        tables = await connection.fetch(
            "SELECT quote_ident(schemaname) || '.' || quote_ident(tablename) AS name FROM pg_tables"
            " WHERE schemaname IN ('registry', 'serving', 'management') AND tablename NOT IN ('migration', 'instance')"
        )
        changes = await connection.fetch(
            "SELECT 'g ' || id AS change FROM serving.feature_group UNION ALL"
            " SELECT concat('v ', s.name, '/', v.name, '/', v.version)"
            " FROM serving.feature_view AS v JOIN serving.feature_store AS s ON s.id = v.feature_store_id"
        )
        heard = asyncio.Event()
        await connection.add_listener(CHANNEL, lambda *_: heard.set())
        async with connection.transaction():
            await connection.execute(f"TRUNCATE {', '.join(each['name'] for each in tables)} RESTART IDENTITY CASCADE")
            for change in (*(each["change"] for each in changes), "v //0"):
                await connection.execute("SELECT pg_notify($1, $2)", CHANNEL, change)
        await asyncio.wait_for(heard.wait(), 20)
    finally:
        await connection.close()
    if endpoints.get("redis_cluster"):
        async with RedisCluster.from_url(endpoints["redis_url"]) as cluster:
            await cluster.flushall(target_nodes=RedisCluster.PRIMARIES)
    else:
        async with Redis.from_url(endpoints["redis_url"]) as client:
            await client.flushdb()


@asynccontextmanager
async def open_world(settings: Settings, servers: Servers) -> AsyncIterator[World]:
    """The stack of this process."""
    async with open_stack(settings) as stack:
        services = {"registry": stack.registry, "serving": stack.serving, "management": stack.management}
        inside = {name: InProcessChannel(each) for name, each in services.items()}
        transport = httpx2.ASGITransport(app=stack.app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://triglot") as http:
            yield World(http, inside, servers.admin_key, "fs-cn-triglot")
