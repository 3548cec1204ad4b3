"""The services of a deployment over gRPC: whether they answer, can do their work, and take the keys that are shown."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from chassis import calls, errors
from gateway.assembly import SERVICES
from protos.gen.triglot.identity.v1 import identity_service_pb2, identity_service_pb2_grpc
from protos.gen.triglot.serving.v1 import serving_service_pb2, serving_service_pb2_grpc
from triglot.checkup import certificates
from triglot.checkup.finding import PATIENCE_SECONDS, Finding, fine, warning, wrong
from triglot.deployment import Target

# No project has such a name; what is asked about it is whether it may be asked.
_NOWHERE = "triglot-doctor"


async def examine(target: Target, service_api_key: str) -> AsyncIterator[Finding]:
    """One service. `service_api_key` is what management shows to serving; empty: it is not ours to know."""
    check = f"{target.service} at {target.address}"
    tls = await certificates.examine_target(check, target.address, target.settings)
    for finding in tls:
        yield finding
    if any(finding.status == "error" for finding in tls):
        return
    async with target.open() as channel:
        health = await _health(check, target, channel)
        yield health
        if health.status == "error":
            return
        if target.service == "management" and target.api_key:
            yield await _own_key(channel, target.api_key)
        if target.service == "serving" and service_api_key:
            yield await _service_key(channel, service_api_key)


async def _health(check: str, target: Target, channel: Any) -> Finding:
    request = health_pb2.HealthCheckRequest(service=SERVICES[target.service])
    try:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        reply = await calls.invoke(stub.Check, request, timeout_seconds=PATIENCE_SECONDS)
    except errors.NotFound:
        advice = "let the target's variable lead to the gRPC port of the service of its name"
        return wrong(check, f"somebody answers who is not {target.service}", advice)
    except errors.TriglotError as error:
        advice = "start it, or correct its target; between machines look at firewalls and NetworkPolicies"
        return wrong(check, f"does not answer ({type(error).__name__})", advice)
    if reply.status == health_pb2.HealthCheckResponse.SERVING:
        return fine(check, "answers and can do its work")
    advice = "mend what it needs: its `/readyz`, beside its metrics, and its log say what that is"
    return wrong(check, "answers, and cannot do its work", advice)


async def _own_key(channel: Any, key: str) -> Finding:
    """The key of whoever asks."""
    stub: Any = identity_service_pb2_grpc.IdentityServiceStub(channel)
    request = identity_service_pb2.WhoAmIRequest()
    try:
        me = await calls.invoke(stub.WhoAmI, request, metadata=calls.bearer(key), timeout_seconds=PATIENCE_SECONDS)
    except errors.Unauthenticated:
        return wrong("TRIGLOT_API_KEY", "is refused", "make a new one with `triglot keys create`")
    except errors.TriglotError as error:
        return warning("TRIGLOT_API_KEY", f"cannot be tried ({type(error).__name__})", "mend what is named above")
    return fine("TRIGLOT_API_KEY", f"is that of {me.principal.name}")


async def _service_key(channel: Any, key: str) -> Finding:
    """What management and its worker show to serving: it must be good for every feature store."""
    check = "TRIGLOT_SERVICE_API_KEY"
    advice = "make one with `triglot keys create triglot-services --store '*' --action 'featurestore:*'`"
    stub: Any = serving_service_pb2_grpc.ServingServiceStub(channel)
    request = serving_service_pb2.ListFeatureGroupsRequest(feature_store=_NOWHERE)
    try:
        await calls.invoke(
            stub.ListFeatureGroups, request, metadata=calls.bearer(key), timeout_seconds=PATIENCE_SECONDS
        )
    except errors.NotFound:
        pass  # that may be asked
    except errors.Unauthenticated:
        return wrong(check, "is refused by serving", advice)
    except errors.PermissionDenied:
        return wrong(check, "is known to serving, and may not use every feature store", advice)
    except errors.TriglotError as error:
        return warning(check, f"cannot be tried ({type(error).__name__})", "mend what is named above")
    return fine(check, "is taken by serving")
