"""Packed commands to Redis: to one server, or to those nodes of a cluster that own their keys.

The driver has a client for clusters too. When one node fails, it closes the connections to all, waits, and tries again;
it serves nothing while one slot has no owner; it sends ASKING over another connection than the command that it is for;
and it takes 38 us of Python for a key. Here each node is asked on its own: what one of them does not answer is not
answered, and nothing else.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any
from urllib.parse import urlsplit

import redis.asyncio
from redis import exceptions
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from chassis.addresses import joined
from chassis.redis_line import exchange

Address = tuple[str, int]

_ASKING = b"*1\r\n$6\r\nASKING\r\n"
# How often one command may be sent on from node to node. A slot that moves takes two.
_MOST_TURNS = 5
# Who owns what is asked for so often at most, and of so many nodes at a time.
_LOOK_SECONDS = 0.1
_ASKED_AT_ONCE = 5
_FAILURES = (exceptions.RedisError, OSError, TimeoutError)


class Cluster:
    """The nodes of a Redis Cluster. `aclose` at the end."""

    def __init__(self, url: str, timeout_seconds: float, connect: Callable[[str], redis.asyncio.Redis]) -> None:
        """`url` leads to any node, `connect` makes a client of one. Raises ValueError if it is no URL of a host."""
        self._url = urlsplit(url)
        if not self._url.hostname:
            raise ValueError("the URL of a cluster leads to a host")
        self._timeout_seconds = timeout_seconds
        self._connect = connect
        self._clients: dict[Address, redis.asyncio.Redis] = {}
        self._seed: Address = (self._url.hostname, self._url.port or 6379)
        self._client(self._seed)
        # All nodes, as last heard of.
        self.addresses: Sequence[Address] = ()
        # By slot.
        self._owners: list[Address | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._blind: Exception = exceptions.ClusterDownError("nobody owns the slot")
        self._looking: asyncio.Task[None] | None = None
        self._last_look = float("-inf")
        self._background: set[asyncio.Task[Any]] = set()

    async def aclose(self) -> None:
        """Close all connections."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        for client in self._clients.values():
            await client.aclose()

    # Commands

    async def each(self, keys: Sequence[bytes], commands: Sequence[bytes]) -> list[Any]:
        """The answer to a packed command for each key, wherever it is. What failed is an exception in its place.

        Takes as long as a round trip may, whoever has to be asked after whom.
        """
        answers: list[Any] = [None] * len(keys)
        waiting = set(range(len(keys)))
        try:
            async with asyncio.timeout(self._timeout_seconds):
                if not self.addresses:
                    await self._look()
                for _ in range(_MOST_TURNS):
                    if not waiting:
                        break
                    await self._turn(keys, commands, answers, waiting)
        except TimeoutError:
            self._look_soon()
            for position in waiting:
                answers[position] = TimeoutError("no answer in time")
        return answers

    async def _turn(
        self, keys: Sequence[bytes], commands: Sequence[bytes], answers: list[Any], waiting: set[int]
    ) -> None:
        """Ask the owner of each key that waits. Who then still waits has another owner by now."""
        asked: defaultdict[Address | None, list[int]] = defaultdict(list)
        # In their order: a key may be written twice.
        for position in sorted(waiting):
            asked[self.owner(keys[position])].append(position)
        moved: list[int] = []
        failed: list[tuple[int, Address | None]] = []

        async def ask(address: Address | None, positions: list[int]) -> None:
            found = await self._ask(address, [commands[position] for position in positions])
            for position, answer in zip(positions, found, strict=True):
                answers[position] = answer
                if isinstance(answer, exceptions.MovedError):
                    moved.append(position)
                elif isinstance(answer, Exception):
                    failed.append((position, address))
            waiting.difference_update(positions)

        await _together(ask(address, positions) for address, positions in asked.items())
        if failed:
            await self._look()
            waiting.update(position for position, address in failed if self.owner(keys[position]) != address)
        if moved:
            self._look_soon()
            waiting.update(moved)

    async def _ask(self, address: Address | None, commands: Sequence[bytes]) -> list[Any]:
        """A node's answers, and for keys that are on their way to another node that one's."""
        if address is None:
            return [self._blind] * len(commands)
        try:
            answers = await exchange(self._client(address), b"".join(commands), len(commands))
        except _FAILURES as error:
            return [error] * len(commands)
        leaving: defaultdict[Address, list[int]] = defaultdict(list)
        for position, answer in enumerate(answers):
            if isinstance(answer, exceptions.AskError):
                target = (answer.host or address[0], answer.port)
                if isinstance(answer, exceptions.MovedError):
                    self._owners[answer.slot_id] = target
                else:
                    leaving[target].append(position)
        for target, positions in leaving.items():
            packed = b"".join(_ASKING + commands[position] for position in positions)
            try:
                found = (await exchange(self._client(target), packed, 2 * len(positions)))[1::2]
            except _FAILURES as error:
                found = [error] * len(positions)
            for position, answer in zip(positions, found, strict=True):
                answers[position] = answer
        return answers

    # Who owns what

    def owner(self, key: bytes) -> Address | None:
        """The node that had the key's slot when that was last heard of."""
        return self._owners[key_slot(key)]

    async def primaries(self) -> Sequence[redis.asyncio.Redis]:
        """A client of each node that owns slots. Raises what the driver raises if none can be asked."""
        await self._look()
        owners = sorted({owner for owner in self._owners if owner is not None})
        if not owners:
            raise self._blind
        return [self._client(owner) for owner in owners]

    async def on_each(self, prefix: bytes, commands: Callable[[bytes], bytes], answers: int) -> list[list[Any]]:
        """The answers of each primary to packed commands, over one connection, on a key of its own with that prefix.

        Raises what the driver raises if a primary cannot be asked.
        """
        await self.primaries()
        own: dict[Address, bytes] = {}
        wanted = {owner for owner in self._owners if owner is not None}
        for number in itertools.count():
            if own.keys() >= wanted:
                break
            key = b"%b%d" % (prefix, number)
            if (owner := self.owner(key)) is not None:
                own.setdefault(owner, key)
        asked = (exchange(self._client(owner), commands(key), answers) for owner, key in own.items())
        return list(await asyncio.gather(*asked))

    async def ping(self) -> None:
        """Raises what the driver raises if no primary answers."""
        pings = [asyncio.ensure_future(client.ping()) for client in await self.primaries()]
        self._keep(pings)
        failed: BaseException | None = None
        for ping in asyncio.as_completed(pings):
            try:
                await ping
            except _FAILURES as error:
                failed = error
            else:
                return
        raise failed or self._blind

    def _client(self, address: Address) -> redis.asyncio.Redis:
        client = self._clients.get(address)
        if client is None:
            userinfo, at, _ = self._url.netloc.rpartition("@")
            client = self._connect(self._url._replace(netloc=f"{userinfo}{at}{joined(*address)}").geturl())
            self._clients[address] = client
        return client

    def _look_soon(self) -> None:
        self._keep([asyncio.ensure_future(self._look())])

    async def _look(self) -> None:
        """Hear again who owns what, unless that was just tried. If nobody says, what was known stays."""
        if self._looking is None or self._looking.done():
            if time.monotonic() - self._last_look < _LOOK_SECONDS:
                return
            self._looking = asyncio.create_task(self._hear())
            self._keep([self._looking])
        await asyncio.shield(self._looking)

    async def _hear(self) -> None:
        """Ask several nodes, and believe the one that answers first."""
        others = [address for address in self.addresses if address != self._seed]
        asked = [self._seed, *random.sample(others, min(_ASKED_AT_ONCE - 1, len(others)))]
        packed = b"*2\r\n$7\r\nCLUSTER\r\n$5\r\nSLOTS\r\n"
        questions = [asyncio.ensure_future(self._slots(address, packed)) for address in asked]
        self._keep(questions)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                for question in asyncio.as_completed(questions):
                    try:
                        self._believe(await question)
                    except _FAILURES as error:
                        self._blind = error
                    else:
                        break
        except TimeoutError as error:
            self._blind = error
        self._last_look = time.monotonic()

    async def _slots(self, address: Address, packed: bytes) -> list[tuple[int, int, list[Address]]]:
        """First slot, last slot and the nodes that have them, the primary first."""
        (answer,) = await exchange(self._client(address), packed, 1)
        if isinstance(answer, Exception):
            raise answer
        return [
            (first, last, [((host or b"").decode() or address[0], port) for host, port, *_ in nodes])
            for first, last, *nodes in answer
        ]

    def _believe(self, ranges: Iterable[tuple[int, int, list[Address]]]) -> None:
        owners: list[Address | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        addresses: dict[Address, None] = {}
        for first, last, nodes in ranges:
            owners[first : last + 1] = [nodes[0]] * (last + 1 - first)
            addresses |= dict.fromkeys(nodes)
        self._owners, self.addresses = owners, list(addresses)
        gone = [address for address in self._clients if address not in addresses and address != self._seed]
        self._keep([asyncio.ensure_future(self._leave(self._clients.pop(address))) for address in gone])

    async def _leave(self, client: redis.asyncio.Redis) -> None:
        """Close a client once nobody can be using it any more."""
        try:
            await asyncio.sleep(3 * self._timeout_seconds)
        finally:
            await client.aclose()

    def _keep(self, tasks: Iterable[asyncio.Task[Any]]) -> None:
        """Let tasks end, whether or not anybody waits for them."""
        for task in tasks:
            self._background.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        if not task.cancelled():
            task.exception()


async def _together(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    first, *others = work
    if others:
        await asyncio.gather(first, *others)
    else:
        await first
