"""Where compatibility cases run: the whole stack in this process, reached through the gateway and over gRPC.

With TRIGLOT_ENDPOINTS set to an `endpoints.json`, a deployment that somebody else started is the world instead.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import grpc
import httpx2
import pyarrow
import pyarrow.ipc
from google.protobuf import json_format

from chassis import errors
from chassis.inprocess import InProcessChannel
from chassis.settings import Settings
from protos.gen.triglot.serving.v1 import serving_service_pb2 as serving
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


@asynccontextmanager
async def open_world(settings: Settings, servers: Servers) -> AsyncIterator[World]:
    """The stack of this process, or the deployment that TRIGLOT_ENDPOINTS names."""
    deployed = os.environ.get("TRIGLOT_ENDPOINTS")
    if deployed:
        endpoints = json.loads(Path(deployed).read_text())
        names = ("registry", "serving", "management")
        channels = {name: grpc.aio.insecure_channel(endpoints[f"{name}_grpc"]) for name in names}
        async with httpx2.AsyncClient(base_url=endpoints["rest"]) as http:
            yield World(http, channels, endpoints["api_key"], endpoints["instance_id"])
        for channel in channels.values():
            await channel.close()
        return
    async with open_stack(settings) as stack:
        services = {"registry": stack.registry, "serving": stack.serving, "management": stack.management}
        inside = {name: InProcessChannel(each) for name, each in services.items()}
        transport = httpx2.ASGITransport(app=stack.app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://triglot") as http:
            yield World(http, inside, servers.admin_key, "fs-cn-triglot")
