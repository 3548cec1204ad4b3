"""Serving, put together: what is opened for it, and closed after it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from chassis import limits
from chassis.audit import open_audit
from chassis.auth import open_authenticator
from chassis.postgres import open_database
from chassis.redis import open_redis
from chassis.rpc import Policy, Service, mount
from chassis.settings import Settings
from protos.gen.triglot.serving.v1 import serving_service_pb2_grpc
from services.serving.audited import Merges
from services.serving.catalogue import CONSTRAINTS, Catalogue
from services.serving.definition_cache import DefinitionCache
from services.serving.loads import Loads
from services.serving.rows import Rows
from services.serving.service import ServingService
from services.serving.settings import ServingSettings
from services.serving.statistics import Census, Usage
from services.serving.sweeper import Sweeper


@asynccontextmanager
async def open_service(settings: Settings, own: ServingSettings) -> AsyncIterator[list[Service]]:
    """Open the service on a migrated database. It serves while the block runs."""
    database = await open_database(settings, CONSTRAINTS)
    async with open_redis(settings) as client:
        catalogue = Catalogue(database, own.retired_rows_seconds)
        rows = Rows(client, own.key_prefix, own.max_read_keys)
        definitions = DefinitionCache(catalogue, rows, database, settings)
        sweeper = Sweeper(
            catalogue, rows, every_seconds=own.sweep_seconds, abandoned_seconds=own.abandoned_load_seconds
        )
        loads = Loads(
            catalogue,
            rows,
            batch_rows=own.write_batch_rows,
            max_stream_bytes=settings.max_message_bytes,
            replicas=own.replicas,
            replicas_seconds=own.replicas_seconds,
        )
        usage, merges = Usage(catalogue), Merges(database)
        servicer = ServingService(
            catalogue=catalogue,
            definitions=definitions,
            rows=rows,
            loads=loads,
            usage=usage,
            merges=merges,
            census=Census(rows, own.count_seconds),
            max_entries=own.max_entries,
        )
        authenticator = open_authenticator(settings, database)
        policy = Policy(
            authenticator=authenticator,
            action_prefix="featurestore:",
            open_rpcs=frozenset({"Ping"}),
            admit=limits.admitting(own.calls_per_second, limits.of_key),
            overload=limits.Overload(own.shed_milliseconds / 1000) if own.shed_milliseconds else None,
        )
        # Without PostgreSQL it serves on what it knows.
        needs = {"redis": rows.ping}
        await definitions.start()
        sweeper.start()
        usage.start()
        merges.start()
        try:
            async with open_audit(database, authenticator, ["serving"]) as audited:
                yield [
                    mount(serving_service_pb2_grpc.add_ServingServiceServicer_to_server, servicer, policy, needs),
                    audited,
                ]
        finally:
            await usage.stop()
            await merges.stop()
            await sweeper.stop()
            await definitions.stop()
            await database.close()
