"""How a command reaches a deployment: the one that runs on a data folder, or the one that the environment names."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import orjson
from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from chassis import calls
from chassis.client import open_channel
from chassis.errors import CannotStart, Unauthenticated, Unavailable
from chassis.settings import Settings, SettingsModel
from protos.gen.triglot.management.v1 import instance_pb2, management_service_pb2_grpc, usage_service_pb2_grpc
from protos.gen.triglot.serving.v1 import serving_service_pb2_grpc


class CallerSettings(SettingsModel):
    """Settings of commands that call a deployment."""

    model_config = SettingsConfigDict(env_prefix="TRIGLOT_", frozen=True, extra="ignore")

    api_key: SecretStr = Field(
        SecretStr(""),
        description="API key that commands show where `TRIGLOT_MANAGEMENT_TARGET` or `TRIGLOT_SERVING_TARGET` says"
        " which deployment they call.",
    )


@dataclass(frozen=True)
class Management:
    """The management service of a deployment, as the owner of a key may call it."""

    tasks: Any  # stubs
    usage: Any
    metadata: tuple[tuple[str, str], ...]
    instance_id: str

    async def call(self, method: Callable[..., Any], request: Any) -> Any:
        """The answer of a stub's method. Raises TriglotError."""
        request.instance_id = self.instance_id
        return await calls.invoke(method, request, metadata=self.metadata)


@asynccontextmanager
async def open_management(data_dir: Path) -> AsyncIterator[Management]:
    """Management of the deployment that the environment names, or else of the one that runs on a data folder.

    Raises CannotStart if there is none, TriglotError if it does not answer.
    """
    settings = Settings()
    key = CallerSettings().api_key.get_secret_value()
    if "management_target" in settings.model_fields_set:
        channel = open_channel(settings.management_target, settings)
    else:
        endpoints = read_endpoints(data_dir)
        key = endpoints["api_key"]
        own = settings.model_copy(update={"tls_authority": endpoints["certificate"]})
        channel = open_channel(endpoints["management_grpc"], own)
    async with channel:
        stub = management_service_pb2_grpc.ManagementServiceStub(channel)
        metadata = calls.bearer(key)
        listed = await calls.invoke(stub.ListInstances, instance_pb2.ListInstancesRequest(), metadata=metadata)
        usage = usage_service_pb2_grpc.UsageServiceStub(channel)
        yield Management(stub, usage, metadata, listed.instances[0].instance_id)


@dataclass(frozen=True)
class Serving:
    """The serving service of a deployment, as the owner of a key may call it."""

    stub: Any
    metadata: tuple[tuple[str, str], ...]

    async def call(self, method: Callable[..., Any], request: Any) -> Any:
        """The answer of a stub's method. Raises TriglotError."""
        return await calls.invoke(method, request, metadata=self.metadata)


@asynccontextmanager
async def open_serving(data_dir: Path, target: str | None = None, api_key: str | None = None) -> AsyncIterator[Serving]:
    """Serving at `target`, or where the environment says, or else of the deployment that runs on a data folder, whose
    key is shown to nobody else.

    Raises CannotStart if there is none, TriglotError if it does not answer.
    """
    settings = Settings()
    key = api_key or CallerSettings().api_key.get_secret_value()
    if not target and "serving_target" in settings.model_fields_set:
        target = settings.serving_target
    if not target:
        endpoints = read_endpoints(data_dir)
        target, key = endpoints["serving_grpc"], key or endpoints["api_key"]
        settings = settings.model_copy(update={"tls_authority": endpoints["certificate"]})
    async with open_channel(target, settings) as channel:
        try:
            yield Serving(serving_service_pb2_grpc.ServingServiceStub(channel), calls.bearer(key))
        except Unavailable as error:
            if error.metadata:  # it was serving itself that said so
                raise
            raise Unavailable(f"serving does not answer at {target}: {error.message}") from None
        except Unauthenticated as error:
            raise Unauthenticated(f"{error.message}: say who calls with --api-key or TRIGLOT_API_KEY") from None


SERVICES = ("registry", "serving", "management")


@dataclass(frozen=True)
class Target:
    """Where a service of a deployment is, how it is called, and the key that is shown."""

    service: str
    address: str
    settings: Settings
    api_key: str

    def open(self) -> grpc.aio.Channel:
        """A channel to it, made inside the running loop."""
        return open_channel(self.address, self.settings)


def targets(data_dir: Path) -> list[Target]:
    """The services of the deployment that the environment names, or else of the one that runs on a data folder.

    Raises CannotStart if there is none.
    """
    settings, key = Settings(), CallerSettings().api_key.get_secret_value()
    addresses = {service: str(getattr(settings, f"{service}_target")) for service in SERVICES}
    if not settings.model_fields_set & {f"{service}_target" for service in SERVICES}:
        endpoints = read_endpoints(data_dir)
        addresses = {service: endpoints[f"{service}_grpc"] for service in SERVICES}
        key = endpoints["api_key"]
        settings = settings.model_copy(update={"tls_authority": endpoints["certificate"]})
    return [Target(service, address, settings, key) for service, address in addresses.items()]


def read_endpoints(data_dir: Path) -> dict[str, Any]:
    """What `endpoints.json` holds. Raises CannotStart if nothing runs there."""
    path = data_dir / "endpoints.json"
    if not path.exists():
        raise CannotStart(f"nothing runs on {data_dir}: start it with `triglot up`")
    endpoints: dict[str, Any] = orjson.loads(path.read_bytes())
    return endpoints
