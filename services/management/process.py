"""Management's processes: the service, opened and closed in one place."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import grpc

from chassis.audit import open_audit
from chassis.auth import open_authenticator
from chassis.identity.store import IdentityStore
from chassis.limits import admitting
from chassis.postgres import open_database
from chassis.principals import Principal
from chassis.rpc import Policy, Service, mount
from chassis.settings import Settings
from protos.gen.triglot.identity.v1 import identity_service_pb2_grpc
from protos.gen.triglot.management.v1 import management_service_pb2_grpc, usage_service_pb2_grpc
from services.management.constraints import CONSTRAINTS
from services.management.identity import IdentityService
from services.management.online import ServingRows
from services.management.secrets import ConfigKeeper
from services.management.service import ManagementService
from services.management.settings import ManagementSettings
from services.management.usage import UsageService, open_usage


@asynccontextmanager
async def open_service(
    settings: Settings, own: ManagementSettings, serving_channel: grpc.aio.Channel
) -> AsyncIterator[list[Service]]:
    """Management's three services on a migrated database. The channel stays the caller's to close."""
    async with AsyncExitStack() as closing:
        database = await open_database(settings, CONSTRAINTS)
        closing.push_async_callback(database.close)
        usage = await closing.enter_async_context(open_usage(database, own))
        box = settings.secret_box
        authenticator = open_authenticator(settings, database)
        management = ManagementService(database, ConfigKeeper(box), ServingRows(serving_channel, settings), own)
        audited = await closing.enter_async_context(open_audit(database, authenticator, ["management", "identity"]))
        limit = admitting(own.calls_per_second)

        def admit(principal: Principal, rpc: str) -> None:
            usage.admit(principal, rpc)
            if limit is not None:
                limit(principal, rpc)

        needs = {"postgres": database.ping}
        identity = IdentityService(IdentityStore(database, box))
        yield [
            mount(
                management_service_pb2_grpc.add_ManagementServiceServicer_to_server,
                management,
                Policy(authenticator, action_prefix="featurestore:", admit=admit),
                needs,
            ),
            mount(
                usage_service_pb2_grpc.add_UsageServiceServicer_to_server,
                UsageService(usage, own),
                Policy(authenticator, action_prefix="featurestore:"),
                needs,
            ),
            mount(
                identity_service_pb2_grpc.add_IdentityServiceServicer_to_server, identity, Policy(authenticator), needs
            ),
            audited,
        ]
