"""The registry as a process opens it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from chassis import limits
from chassis.audit import open_audit
from chassis.auth import open_authenticator
from chassis.postgres import open_database
from chassis.rpc import Policy, Service, mount
from chassis.settings import Settings
from protos.gen.feast.registry import RegistryServer_pb2_grpc
from protos.gen.triglot.registry.v1 import registry_service_pb2_grpc
from services.registry import sdk_errors
from services.registry.access import Access
from services.registry.counts import CountStore
from services.registry.lineage import LineageStore
from services.registry.rendered import RenderedServicer
from services.registry.search import SearchStore
from services.registry.service import RegistryServicer
from services.registry.settings import RegistrySettings
from services.registry.store import RegistryStore
from services.registry.visits import open_visits


@asynccontextmanager
async def open_service(settings: Settings, own: RegistrySettings) -> AsyncIterator[list[Service]]:
    """Open the registry on a migrated database: Feast's own service and ours, side by side."""
    async with AsyncExitStack() as closing:
        database = await open_database(settings)
        closing.push_async_callback(database.close)
        access = Access(database, strict=own.strict_permissions)
        visits = await closing.enter_async_context(open_visits(database, access, own.recent_visits))
        store, lineage = RegistryStore(database, access, settings.max_message_bytes), LineageStore(access)
        # Any authenticated caller may call everything: what it then may do is Access's business.
        admit = limits.admitting(own.calls_per_second)
        policy = Policy(open_authenticator(settings, database), admit=admit, details=sdk_errors.details)
        audited = await closing.enter_async_context(open_audit(database, policy.authenticator, ["registry"]))
        yield [
            mount(
                RegistryServer_pb2_grpc.add_RegistryServerServicer_to_server,
                RegistryServicer(store, lineage, settings.max_message_bytes),
                policy,
                {"postgres": database.ping},
            ),
            mount(
                registry_service_pb2_grpc.add_RegistryServiceServicer_to_server,
                RenderedServicer(
                    store,
                    lineage,
                    SearchStore(database, access),
                    CountStore(access),
                    visits,
                    max_page=own.max_page,
                    max_message_bytes=settings.max_message_bytes,
                ),
                Policy(policy.authenticator, admit=admit),
                {"postgres": database.ping},
            ),
            audited,
        ]
