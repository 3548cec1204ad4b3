"""Channels to a name with several addresses, as a headless Service has."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

from chassis.client import health_of, open_channel
from chassis.rpc import Policy, Service, mount
from chassis.server import GrpcServer
from chassis.settings import Settings
from tests.chassis.echo import ByName, Echo, Stub, Text, add_to_server, service
from tests.patience import PATIENCE_SECONDS, until


class Replica(Echo):
    """Answers with its own number."""

    def __init__(self, number: int) -> None:
        self._number = str(number)

    async def ping(self, request: Text, context: Any) -> Text:
        return Text(value=self._number)


def replica(number: int) -> Service:
    return mount(add_to_server, Replica(number), Policy(ByName(), open_rpcs=frozenset({"Ping"})))


async def test_all_addresses_are_used_in_turn() -> None:
    async with AsyncExitStack() as closing:
        addresses = []
        for number in range(2):
            server = GrpcServer([replica(number)], host="127.0.0.1", port=0, max_message_bytes=1 << 20)
            addresses.append(f"127.0.0.1:{await server.start()}")
            closing.push_async_callback(server.stop, 0)
        stub = Stub(await closing.enter_async_context(open_channel(f"ipv4:{','.join(addresses)}", Settings())))

        async def both() -> bool:
            answers = [(await stub.Ping(Text(), timeout=10)).value for _ in range(4)]
            return answers.count("0") == answers.count("1") == 2

        await until(both)
        # Not one after the other only: many at once are spread just so.
        at_once = await asyncio.gather(*(stub.Ping(Text(), timeout=10) for _ in range(20)))
        assert sorted(each.value for each in at_once) == ["0"] * 10 + ["1"] * 10


async def test_a_name_is_a_target() -> None:
    server = GrpcServer([service()], host="127.0.0.1", port=0, max_message_bytes=1 << 20)
    port = await server.start()
    async with open_channel(f"dns:///localhost:{port}", Settings()) as channel:
        await health_of(channel, "test.Echo")()
    await server.stop(0)


async def test_callers_turn_away_from_a_replica_that_stops() -> None:
    """No call fails, and none goes to it any more once it has said that it goes."""
    servers = [GrpcServer([replica(n)], host="127.0.0.1", port=0, max_message_bytes=1 << 20) for n in range(2)]
    target = f"ipv4:{','.join([f'127.0.0.1:{await server.start()}' for server in servers])}"
    answers: list[str] = []
    async with open_channel(target, Settings()) as channel:
        stub = Stub(channel)

        async def call() -> None:
            while not stopped:
                answers.append((await stub.Ping(Text(), timeout=10)).value)

        async def the_last_are_from(expected: set[str]) -> bool:
            return len(answers) >= 100 and set(answers[-100:]) == expected

        stopped = False
        async with asyncio.TaskGroup() as callers:
            for _ in range(30):
                callers.create_task(call())
            await until(lambda: the_last_are_from({"0", "1"}))
            await servers[0].stop(PATIENCE_SECONDS)
            assert await the_last_are_from({"1"})
            stopped = True
    await servers[1].stop(0)
