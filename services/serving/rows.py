"""Rows in Redis. Knows keys and bytes, not views.

Key: `<prefix>:<row set>:<canonical key>`. Value: what the row's event time sorts by (digits, or nothing), then one JSON
fragment a column, separated by line breaks. A row with fewer fragments than its group has columns was written before
those were appended. No command touches two keys but the one that reads many on a single server, so everything works
on a cluster.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import hiredis
import redis.asyncio
import redis.exceptions

from chassis import errors
from chassis.redis import Client, translated

SEPARATOR = b"\n"

_READS_IN_FLIGHT = 2
_WRITES_IN_FLIGHT = 8
# Connections that all callers together take at a time, however many they are: reads and writes as above, one to ping,
# one to remove, one to measure.
MOST_CONNECTIONS = _READS_IN_FLIGHT + _WRITES_IN_FLIGHT + 3
_WRITE_CHUNK = 1_000
_WRITE_ATTEMPTS = 5
_SCAN_COUNT = 1_000
_EXAMPLES = 100

# Writes a row unless the stored one is newer. Rows without an event time are the oldest. Numbers in Lua have 53 bits,
# so equal ones are compared as text once more.
_NEWER_WINS = """
local head = redis.call('GETRANGE', KEYS[1], 0, 31)
local stop = string.find(head, '\\n', 1, true)
if stop and stop > 1 then
  local old = string.sub(head, 1, stop - 1)
  local new = string.sub(ARGV[1], 1, string.find(ARGV[1], '\\n', 1, true) - 1)
  if new == '' then return 0 end
  local x, y = tonumber(old), tonumber(new)
  if x > y or (x == y and #old == #new and old > new) then return 0 end
end
if ARGV[2] == '0' then redis.call('SET', KEYS[1], ARGV[1]) else redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
return 1
"""


class Sample(NamedTuple):
    """What was found in Redis."""

    # For each row set, how many rows it has.
    rows: Mapping[int, int]
    # For each row set, keys of some of them.
    examples: Mapping[int, Sequence[bytes]]
    # Whether that is counted; otherwise it is estimated.
    whole: bool


class Rows:
    """The rows of all groups. Raises Unavailable, dependency redis, when Redis does not answer."""

    def __init__(self, client: Client, key_prefix: str, max_read_keys: int) -> None:
        self._client: Any = client
        self._single = isinstance(client, redis.asyncio.Redis)
        self._key_prefix = key_prefix
        self._reads = _Coalescer(self._get_many, max_read_keys)
        self._writes = asyncio.Semaphore(_WRITES_IN_FLIGHT)
        self._newer_wins = ""
        self._pinging = asyncio.Lock()
        self._last_good_ping = float("-inf")

    def prefix(self, row_set: int) -> bytes:
        """What the keys of a row set begin with."""
        return f"{self._key_prefix}:{row_set}:".encode()

    async def ping(self) -> None:
        """Raises Unavailable if Redis does not answer.

        Anybody may ask, so callers at the same time share one question: it never takes more than one connection.
        """
        arrived = time.monotonic()
        async with self._pinging:
            if self._last_good_ping < arrived:
                asked = time.monotonic()
                async with translated():
                    await self._client.ping()
                self._last_good_ping = asked

    # Reading

    async def read(self, keys: list[bytes]) -> Sequence[bytes | None]:
        """The values of whole keys, in their order. Concurrent reads share round trips."""
        return await self._reads.read(keys)

    async def _get_many(self, keys: list[bytes]) -> Sequence[bytes | None]:
        async with translated():
            if self._single:
                found: list[bytes | None] = await self._ask((b"MGET", *keys))
                return found
            pipeline = self._pipeline()
            for key in keys:
                pipeline.execute_command("GET", key)
            answers: list[bytes | None] = await pipeline.execute()
            return answers

    async def _ask(self, command: tuple[bytes, ...]) -> Any:
        """A single server's answer. The driver's own way packs a command word by word in Python; this takes C."""
        packed = hiredis.pack_command(command)  # type: ignore[arg-type]
        pool = self._client.connection_pool
        for last in (False, True):
            connection = await pool.get_connection()
            try:
                await connection.send_packed_command(packed)
                return await connection.read_response()
            except redis.exceptions.ConnectionError:
                # What a restarted server left behind; the connection is closed, the next one is new.
                if last:
                    raise
            finally:
                await pool.release(connection)
        raise AssertionError("unreachable")

    # Writing

    async def write(self, keys: Sequence[bytes], values: Sequence[bytes], time_to_live_ms: int) -> None:
        """Write rows, whatever is there."""
        await _together(
            self._persist(self._set_many, chunk_keys, chunk_values, time_to_live_ms)
            for chunk_keys, chunk_values in _chunks(keys, values)
        )

    async def write_newer(self, keys: Sequence[bytes], values: Sequence[bytes], time_to_live_ms: int) -> None:
        """Write rows, but for those that are there with a later event time."""
        await _together(
            self._persist(self._set_newer, chunk_keys, chunk_values, time_to_live_ms)
            for chunk_keys, chunk_values in _chunks(keys, values)
        )

    async def _persist(self, write: Any, keys: Sequence[bytes], values: Sequence[bytes], time_to_live_ms: int) -> None:
        """Write a chunk, and again if Redis is away for a moment: both ways of writing can be repeated."""
        for attempt in range(_WRITE_ATTEMPTS):
            try:
                async with self._writes, translated():
                    await write(keys, values, time_to_live_ms)
                return
            except errors.Unavailable:
                if attempt == _WRITE_ATTEMPTS - 1:
                    raise
                await asyncio.sleep(0.1 * 2**attempt)

    async def _set_many(self, keys: Sequence[bytes], values: Sequence[bytes], time_to_live_ms: int) -> None:
        if self._single and not time_to_live_ms:
            pairs: list[bytes] = [b""] * (2 * len(keys))
            pairs[::2], pairs[1::2] = keys, values
            await self._ask((b"MSET", *pairs))
            return
        pipeline = self._pipeline()
        options = ("PX", time_to_live_ms) if time_to_live_ms else ()
        for key, value in zip(keys, values, strict=True):
            pipeline.execute_command("SET", key, value, *options)
        await pipeline.execute()

    async def _set_newer(self, keys: Sequence[bytes], values: Sequence[bytes], time_to_live_ms: int) -> None:
        if not self._newer_wins:
            self._newer_wins = await self._client.script_load(_NEWER_WINS)
        try:
            pipeline = self._pipeline()
            for key, value in zip(keys, values, strict=True):
                pipeline.execute_command("EVALSHA", self._newer_wins, 1, key, value, time_to_live_ms)
            await pipeline.execute()
        except redis.exceptions.NoScriptError:
            # A server that was restarted, or a new primary, has forgotten it: the next attempt loads it again.
            self._newer_wins = ""
            raise

    async def delete(self, keys: Sequence[bytes]) -> int:
        """Delete rows; how many of them there were. Idempotent."""
        deleted = 0
        for start in range(0, len(keys), _WRITE_CHUNK):
            async with self._writes, translated():
                deleted += await self._unlink(keys[start : start + _WRITE_CHUNK])
        return deleted

    def _pipeline(self) -> Any:
        """For `execute_command` only: on a cluster some of the named commands are coroutines that queue nothing."""
        return self._client.pipeline(transaction=False) if self._single else self._client.pipeline()

    async def remove(self, row_set: int) -> int:
        """Remove all keys of a row set that nobody reads or writes any more; how many there were. Idempotent."""
        removed = 0
        match = self.prefix(row_set) + b"*"
        batch: list[bytes] = []
        async with translated():
            async for key in self._client.scan_iter(match=match, count=_SCAN_COUNT):
                batch.append(key)
                if len(batch) >= _SCAN_COUNT:
                    removed += await self._unlink(batch)
                    batch = []
            removed += await self._unlink(batch)
        return removed

    # Counting

    async def sample(self, max_scans: int) -> Sample:
        """What is found by looking through all of Redis or, if that takes more steps, through a part of it by chance.

        Redis keeps keys in the order of their hashes, so any part of them is a fair one.
        """
        rows: Counter[int] = Counter()
        examples: dict[int, list[bytes]] = {}
        whole = True
        async with translated():
            await self._client.initialize()
            nodes = [self._client] if self._single else self._client.get_primaries()
            for node in nodes:
                found, weight = await self._scan(node, max(1, max_scans // len(nodes)), examples)
                whole = whole and weight == 1.0
                for row_set, count in found.items():
                    rows[row_set] += round(count * weight)
        return Sample(rows, examples, whole)

    async def _scan(self, node: Any, scans: int, examples: dict[int, list[bytes]]) -> tuple[Counter[int], float]:
        """Keys of each row set that were found on a node, and how many there each of them stands for."""
        begins = re.compile(re.escape(self._key_prefix).encode() + rb":([0-9]{1,18}):")
        # While Redis grows or shrinks its table it may show a key twice.
        seen: set[bytes] = set()
        weight, cursor = 1.0, 0
        for _ in range(scans):
            cursor, keys = await node.execute_command("SCAN", cursor, "COUNT", _SCAN_COUNT)
            seen.update(keys)
            if not cursor:
                break
        else:
            weight = max(1.0, await node.execute_command("DBSIZE") / max(len(seen), 1))
        found: Counter[int] = Counter()
        for match in filter(None, map(begins.match, seen)):
            row_set = int(match[1])
            found[row_set] += 1
            of_set = examples.setdefault(row_set, [])
            if len(of_set) < _EXAMPLES:
                of_set.append(match.string)
        return found, weight

    async def average_bytes(self, keys: Sequence[bytes]) -> float:
        """Of keys and values of rows."""
        async with translated():
            pipeline = self._pipeline()
            for key in keys:
                pipeline.execute_command("STRLEN", key)
            sizes = await pipeline.execute() if keys else []
        return float(sum(sizes) + sum(map(len, keys))) / max(len(keys), 1)

    async def _unlink(self, keys: Sequence[bytes]) -> int:
        if not keys:
            return 0
        if self._single:
            return int(await self._client.unlink(*keys))
        pipeline = self._pipeline()
        for key in keys:
            pipeline.execute_command("UNLINK", key)
        return sum(await pipeline.execute())


async def _together(writes: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run writes at the same time. The first of our errors ends the others and is raised itself, not in a group."""
    failed: errors.TriglotError | None = None
    try:
        async with asyncio.TaskGroup() as group:
            for write in writes:
                group.create_task(write)
    except* errors.TriglotError as grouped:
        failed = next(error for error in grouped.exceptions if isinstance(error, errors.TriglotError))
    if failed is not None:
        raise failed


def _chunks(keys: Sequence[bytes], values: Sequence[bytes]) -> Iterable[tuple[Sequence[bytes], Sequence[bytes]]]:
    for start in range(0, len(keys), _WRITE_CHUNK):
        yield keys[start : start + _WRITE_CHUNK], values[start : start + _WRITE_CHUNK]


class _Coalescer:
    """Gathers the reads of one turn of the event loop into one command, and those that come while it is under way.

    An idle server waits for nothing: a read alone goes out in the same turn.
    """

    def __init__(self, get_many: Any, max_keys: int) -> None:
        self._get_many = get_many
        self._max_keys = max_keys
        self._waiting: list[tuple[list[bytes], asyncio.Future[Sequence[bytes | None]]]] = []
        self._in_flight: set[asyncio.Task[None]] = set()
        self._scheduled = False

    async def read(self, keys: list[bytes]) -> Sequence[bytes | None]:
        if not keys:
            return ()
        loop = asyncio.get_running_loop()
        if len(keys) > self._max_keys:
            parts = [keys[start : start + self._max_keys] for start in range(0, len(keys), self._max_keys)]
            return [row for part in parts for row in await self.read(part)]
        future: asyncio.Future[Sequence[bytes | None]] = loop.create_future()
        self._waiting.append((keys, future))
        if not self._scheduled and len(self._in_flight) < _READS_IN_FLIGHT:
            self._scheduled = True
            loop.call_soon(self._send)
        return await future

    def _send(self) -> None:
        self._scheduled = False
        taken: list[tuple[list[bytes], asyncio.Future[Sequence[bytes | None]]]] = []
        size = 0
        for keys, future in self._waiting:
            if taken and size + len(keys) > self._max_keys:
                break
            size += len(keys)
            taken.append((keys, future))
        del self._waiting[: len(taken)]
        task = asyncio.get_running_loop().create_task(self._fetch(taken))
        self._in_flight.add(task)
        task.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._in_flight.discard(task)
        if self._waiting and not self._scheduled:
            self._send()

    async def _fetch(self, taken: list[tuple[list[bytes], asyncio.Future[Sequence[bytes | None]]]]) -> None:
        wanted = [item for item in taken if not item[1].done()]
        if not wanted:
            return
        keys = wanted[0][0] if len(wanted) == 1 else [key for part, _ in wanted for key in part]
        try:
            found = iter(await self._get_many(keys))
        except BaseException as error:
            for _, future in wanted:
                if not future.done():
                    future.set_exception(_copy(error))
            if not isinstance(error, errors.TriglotError):
                raise
            return
        for part, future in wanted:
            rows = list(islice(found, len(part)))
            if not future.done():
                future.set_result(rows)


def _copy(error: BaseException) -> errors.TriglotError:
    """An error of its own for each reader: a traceback belongs to one."""
    if isinstance(error, errors.TriglotError):
        return errors.Unavailable(error.message, reason=error.reason, **error.metadata)
    return errors.Unavailable("the read was given up", dependency="redis")
