# ruff: noqa: N802 - methods are named after RPCs
"""The RPCs of triglot.identity.v1: principals and keys, for administrators. And who the caller is, for everybody."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from chassis import calls, errors
from chassis.identity.store import IdentityStore, StoredKey, StoredPrincipal
from chassis.principals import Principal
from protos.gen.triglot.identity.v1 import identity_pb2, identity_service_pb2_grpc
from protos.gen.triglot.identity.v1 import identity_service_pb2 as pb
from services.management.rows import timestamp

_MAX_GRACE = timedelta(days=365)


class IdentityService(identity_service_pb2_grpc.IdentityServiceServicer):
    """Every RPC but WhoAmI asks for an administrator, whatever the caller's actions are."""

    def __init__(self, store: IdentityStore) -> None:
        self._store = store

    async def WhoAmI(self, request: pb.WhoAmIRequest, context: Any) -> pb.WhoAmIResponse:
        return pb.WhoAmIResponse(principal=_principal(calls.principal()))

    async def CreatePrincipal(self, request: pb.CreatePrincipalRequest, context: Any) -> pb.CreatePrincipalResponse:
        _administer()
        wanted = request.principal
        made = await self._store.create_principal(
            Principal(
                name=wanted.name,
                administrator=wanted.administrator,
                roles=frozenset(wanted.roles),
                groups=frozenset(wanted.groups),
                feature_stores=frozenset(wanted.feature_stores),
                actions=tuple(wanted.actions),
            )
        )
        return pb.CreatePrincipalResponse(principal=_stored(made))

    async def ListPrincipals(self, request: pb.ListPrincipalsRequest, context: Any) -> pb.ListPrincipalsResponse:
        _administer()
        return pb.ListPrincipalsResponse(principals=map(_stored, await self._store.list_principals()))

    async def DeletePrincipal(self, request: pb.DeletePrincipalRequest, context: Any) -> pb.DeletePrincipalResponse:
        _administer()
        await self._store.delete_principal(request.name)
        return pb.DeletePrincipalResponse()

    async def CreateApiKey(self, request: pb.CreateApiKeyRequest, context: Any) -> pb.CreateApiKeyResponse:
        _administer()
        expires_at = _instant(request.expire_time) if request.HasField("expire_time") else None
        key, stored = await self._store.create_api_key(request.principal, expires_at)
        return pb.CreateApiKeyResponse(api_key=key, key=_api_key(stored))

    async def ListApiKeys(self, request: pb.ListApiKeysRequest, context: Any) -> pb.ListApiKeysResponse:
        _administer()
        return pb.ListApiKeysResponse(keys=map(_api_key, await self._store.list_api_keys()))

    async def RevokeApiKey(self, request: pb.RevokeApiKeyRequest, context: Any) -> pb.RevokeApiKeyResponse:
        _administer()
        await self._store.revoke_api_key(request.prefix)
        return pb.RevokeApiKeyResponse()

    async def RotateApiKey(self, request: pb.RotateApiKeyRequest, context: Any) -> pb.RotateApiKeyResponse:
        _administer()
        key, stored = await self._store.rotate_api_key(request.prefix, _grace(request.grace))
        return pb.RotateApiKeyResponse(api_key=key, key=_api_key(stored))

    async def CreateAccessKey(self, request: pb.CreateAccessKeyRequest, context: Any) -> pb.CreateAccessKeyResponse:
        _administer()
        key_id, secret = await self._store.create_access_key(request.principal)
        return pb.CreateAccessKeyResponse(access_key_id=key_id, access_key_secret=secret)

    async def ListAccessKeys(self, request: pb.ListAccessKeysRequest, context: Any) -> pb.ListAccessKeysResponse:
        _administer()
        keys = [
            identity_pb2.AccessKey(
                access_key_id=key.identifier,
                principal=key.principal,
                create_time=timestamp(key.created_at),
                expire_time=timestamp(key.expires_at),
            )
            for key in await self._store.list_access_keys()
        ]
        return pb.ListAccessKeysResponse(keys=keys)

    async def RotateAccessKey(self, request: pb.RotateAccessKeyRequest, context: Any) -> pb.RotateAccessKeyResponse:
        _administer()
        key_id, secret = await self._store.rotate_access_key(request.access_key_id, _grace(request.grace))
        return pb.RotateAccessKeyResponse(access_key_id=key_id, access_key_secret=secret)

    async def RevokeAccessKey(self, request: pb.RevokeAccessKeyRequest, context: Any) -> pb.RevokeAccessKeyResponse:
        _administer()
        await self._store.revoke_access_key(request.access_key_id)
        return pb.RevokeAccessKeyResponse()


def _administer() -> None:
    principal = calls.principal()
    if not principal.administrator:
        raise errors.PermissionDenied(f"{principal.name} is no administrator", action="administer")


def _instant(timestamp: Timestamp) -> datetime:
    try:
        return timestamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise errors.InvalidArgument("expire_time is out of range", field="expire_time") from None


def _grace(duration: Duration) -> timedelta:
    if not 0 <= duration.seconds + duration.nanos / 1e9 <= _MAX_GRACE.total_seconds():
        raise errors.InvalidArgument(f"grace is 0 to {_MAX_GRACE.days} days", field="grace")
    return duration.ToTimedelta()


def _principal(principal: Principal, created_at: datetime | None = None) -> identity_pb2.Principal:
    return identity_pb2.Principal(
        name=principal.name,
        administrator=principal.administrator,
        roles=sorted(principal.roles),
        groups=sorted(principal.groups),
        feature_stores=sorted(principal.feature_stores),
        actions=principal.actions,
        create_time=timestamp(created_at),
    )


def _stored(stored: StoredPrincipal) -> identity_pb2.Principal:
    return _principal(stored.principal, stored.created_at)


def _api_key(key: StoredKey) -> identity_pb2.ApiKey:
    return identity_pb2.ApiKey(
        prefix=key.identifier,
        principal=key.principal,
        expire_time=timestamp(key.expires_at),
        create_time=timestamp(key.created_at),
    )
