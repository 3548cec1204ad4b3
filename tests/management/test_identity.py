"""Principals and keys over triglot.identity.v1, as an administrator and as nobody in particular."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest

from chassis import calls
from chassis.inprocess import InProcessChannel
from chassis.principals import Principal
from protos.gen.triglot.identity.v1 import identity_pb2, identity_service_pb2_grpc
from protos.gen.triglot.identity.v1 import identity_service_pb2 as pb
from tests.conftest import Servers


@pytest.fixture
def stub(services: Any) -> Any:
    return identity_service_pb2_grpc.IdentityServiceStub(InProcessChannel(services))


async def test_a_key_from_its_making_to_its_end(stub: Any, servers: Servers) -> None:
    admin = calls.bearer(servers.admin_key)
    wanted = identity_pb2.Principal(name="bob", feature_stores=["shop"], actions=["featurestore:Get*"], roles=["r"])
    made = await stub.CreatePrincipal(pb.CreatePrincipalRequest(principal=wanted), metadata=admin)
    assert made.principal.create_time.seconds > 0
    key = await stub.CreateApiKey(pb.CreateApiKeyRequest(principal="bob"), metadata=admin)
    assert not key.key.HasField("expire_time")
    me = (await stub.WhoAmI(pb.WhoAmIRequest(), metadata=calls.bearer(key.api_key))).principal
    assert (me.name, me.administrator, list(me.feature_stores), list(me.roles)) == ("bob", False, ["shop"], ["r"])
    listed = await stub.ListApiKeys(pb.ListApiKeysRequest(), metadata=admin)
    assert [each.principal for each in listed.keys] == ["bob", "admin"]
    pair = await stub.CreateAccessKey(pb.CreateAccessKeyRequest(principal="bob"), metadata=admin)
    assert pair.access_key_secret
    access = await stub.ListAccessKeys(pb.ListAccessKeysRequest(), metadata=admin)
    assert access.keys[0].access_key_id == pair.access_key_id
    await stub.RevokeAccessKey(pb.RevokeAccessKeyRequest(access_key_id=pair.access_key_id), metadata=admin)
    await stub.RevokeApiKey(pb.RevokeApiKeyRequest(prefix=key.key.prefix), metadata=admin)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.RevokeApiKey(pb.RevokeApiKeyRequest(prefix=key.key.prefix), metadata=admin)
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
    await stub.DeletePrincipal(pb.DeletePrincipalRequest(name="bob"), metadata=admin)
    principals = await stub.ListPrincipals(pb.ListPrincipalsRequest(), metadata=admin)
    assert [each.name for each in principals.principals] == ["admin"]


@pytest.mark.parametrize("name", ["", "x" * 129, "https://provider\n7"])
async def test_names_that_no_principal_has(stub: Any, servers: Servers, name: str) -> None:
    """What stands on two lines is the identity of a caller of another issuer."""
    request = pb.CreatePrincipalRequest(principal=identity_pb2.Principal(name=name))
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.CreatePrincipal(request, metadata=calls.bearer(servers.admin_key))
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_expired_key(stub: Any, servers: Servers) -> None:
    request = pb.CreateApiKeyRequest(principal="admin")
    request.expire_time.FromDatetime(datetime(2020, 1, 1, tzinfo=UTC))
    key = await stub.CreateApiKey(request, metadata=calls.bearer(servers.admin_key))
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.WhoAmI(pb.WhoAmIRequest(), metadata=calls.bearer(key.api_key))
    assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_everything_but_who_am_i_is_for_administrators(
    stub: Any, make_key: Callable[[Principal], Awaitable[str]]
) -> None:
    key = calls.bearer(await make_key(Principal("eve", actions=("*",), feature_stores=frozenset({"*"}))))
    assert (await stub.WhoAmI(pb.WhoAmIRequest(), metadata=key)).principal.name == "eve"
    service = pb.DESCRIPTOR.services_by_name["IdentityService"]
    others = [method for method in service.methods if method.name != "WhoAmI"]
    assert len(others) == 11
    for method in others:
        request = getattr(pb, method.input_type.name)()
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await getattr(stub, method.name)(request, metadata=key)
        assert raised.value.code() is grpc.StatusCode.PERMISSION_DENIED, method.name
