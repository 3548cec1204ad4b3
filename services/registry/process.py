"""The registry as a process opens it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from chassis.auth import open_authenticator
from chassis.postgres import open_database
from chassis.rpc import Policy, Service, mount
from chassis.settings import Settings
from protos.gen.feast.registry import RegistryServer_pb2_grpc
from protos.gen.triglot.registry.v1 import registry_service_pb2_grpc
from services.registry import sdk_errors
from services.registry.counts import CountStore
from services.registry.lineage import LineageStore
from services.registry.rendered import RenderedServicer
from services.registry.search import SearchStore
from services.registry.service import RegistryServicer
from services.registry.settings import RegistrySettings
from services.registry.store import RegistryStore


@asynccontextmanager
async def open_service(settings: Settings, own: RegistrySettings) -> AsyncIterator[list[Service]]:
    """Open the registry on a migrated database: Feast's own service and ours, side by side."""
    database = await open_database(settings)
    try:
        store, lineage = RegistryStore(database), LineageStore(database)
        # Any authenticated caller may call everything: Feast's permissions are objects, not actions of a key.
        policy = Policy(open_authenticator(settings, database), details=sdk_errors.details)
        yield [
            mount(
                RegistryServer_pb2_grpc.add_RegistryServerServicer_to_server,
                RegistryServicer(store, lineage),  # type: ignore[abstract] # what is left out answers UNIMPLEMENTED
                policy,
            ),
            mount(
                registry_service_pb2_grpc.add_RegistryServiceServicer_to_server,
                RenderedServicer(store, lineage, SearchStore(database), CountStore(database), own.max_page),
                Policy(policy.authenticator),
            ),
        ]
    finally:
        await database.close()
