"""A small service for the chassis' own tests: it answers, fails and waits as its request asks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf import wrappers_pb2

from chassis import calls, errors
from chassis.limits import Overload
from chassis.principals import Principal
from chassis.rpc import Metadata, Policy, Service, mount

Text = wrappers_pb2.StringValue


class ByName:
    """Authentication for tests: the `authorization` metadata is the principal's name, unless it is a stranger's."""

    async def principal(self, metadata: Metadata) -> Principal:
        name = metadata.get("authorization")
        if not isinstance(name, str):
            raise errors.Unauthenticated("no credential was shown", reason="CREDENTIAL_MISSING")
        if name == "stranger":
            raise errors.Unauthenticated("nobody knows a stranger")
        return Principal(name, administrator=name == "admin", actions=("test:Say",))


class Echo:
    def __init__(self) -> None:
        self.written = 0
        self.given_up = asyncio.Event()

    async def say(self, request: Text, context: Any) -> Text:
        match request.value.partition(" "):
            case "missing", _, name:
                raise errors.NotFound(f"no {name}", reason="FEATURE_VIEW_NOT_FOUND", name=name)
            case "break", _, _:
                raise ZeroDivisionError("secret detail")
            case "wait", _, seconds:
                await asyncio.sleep(float(seconds))
            case "who", _, _:
                return Text(value=f"{calls.principal().name} {calls.current().request_id}")
        return Text(value=request.value)

    async def ping(self, request: Text, context: Any) -> Text:
        return Text(value="pong")

    async def spell(self, request: Text, context: Any) -> None:
        """Each letter by itself. A question mark is an error, a full stop waits until the caller gives up."""
        for letter in request.value:
            if letter == "?":
                raise errors.NotFound("no letter", reason="FEATURE_VIEW_NOT_FOUND")
            if letter == ".":
                try:
                    await asyncio.Event().wait()
                finally:
                    self.given_up.set()
            await context.write(Text(value=letter))
            self.written += 1

    async def join(self, requests: AsyncIterator[Text], context: Any) -> Text:
        return Text(value=",".join([request.value async for request in requests]))


def add_to_server(servicer: Echo, server: Any) -> None:
    shape = {"request_deserializer": Text.FromString, "response_serializer": Text.SerializeToString}
    server.add_registered_method_handlers(
        "test.Echo",
        {
            "Say": grpc.unary_unary_rpc_method_handler(servicer.say, **shape),
            "Ping": grpc.unary_unary_rpc_method_handler(servicer.ping, **shape),
            "Spell": grpc.unary_stream_rpc_method_handler(servicer.spell, **shape),
            "Join": grpc.stream_unary_rpc_method_handler(servicer.join, **shape),
        },
    )


def service(overload: Overload | None = None, echo: Echo | None = None) -> Service:
    policy = Policy(
        ByName(),
        action_prefix="test:",
        open_rpcs=frozenset({"Ping"}),
        overload=overload,
        details=lambda error: f"details: {error.message}",
    )
    return mount(add_to_server, echo or Echo(), policy)


class Stub:
    """What generated code would make."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        shape = {"request_serializer": Text.SerializeToString, "response_deserializer": Text.FromString}
        self.Say = channel.unary_unary("/test.Echo/Say", **shape)
        self.Ping = channel.unary_unary("/test.Echo/Ping", **shape)
        self.Spell = channel.unary_stream("/test.Echo/Spell", **shape)
        self.Join = channel.stream_unary("/test.Echo/Join", **shape)
        self.Nothing = channel.unary_unary("/test.Echo/Nothing", **shape)
