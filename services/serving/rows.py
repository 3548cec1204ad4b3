"""Rows in Redis. Knows keys and bytes, not views.

Key: `<prefix>:<row set>:<canonical key>`. Value: what the row's event time sorts by (digits, or nothing), then one JSON
fragment a column, separated by line breaks. A row with fewer fragments than its group has columns was written before
those were appended. On a cluster every command touches one key; what one of its nodes does not answer is lost alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections import Counter, defaultdict
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from contextvars import Context
from itertools import chain, islice
from operator import itemgetter
from typing import Any, NamedTuple

import hiredis
import numpy as np
import prometheus_client
import pyarrow as pa
import pyarrow.compute as pc
import redis.asyncio
import redis.exceptions

from chassis import errors
from chassis.redis import Client, report, translated
from chassis.redis_line import exchange
from chassis.redis_nodes import Address, Cluster
from chassis.telemetry import SIZE_BUCKETS, Count, Histogram

SEPARATOR = b"\n"
# Stands in the place of a row that was not answered. A row is never as short as that.
LOST = b""

_READS_IN_FLIGHT = 2
_WRITES_IN_FLIGHT = 8
# Connections to one server that all callers together take at a time, however many they are: reads and writes as above,
# one to ping, one to remove, one to measure.
MOST_CONNECTIONS = _READS_IN_FLIGHT + _WRITES_IN_FLIGHT + 3
_WRITE_CHUNK = 1_000
_WRITE_ATTEMPTS = 5
_SCAN_COUNT = 1_000
# Shorter than any round trip may take.
_WAIT_MILLISECONDS = 100
_REPLICAS_AGAIN_SECONDS = 0.05
_EXAMPLES = 100

# Reads that share a command, the keys of a command, and reads that wait for their turn.
_sharing = Histogram(
    "triglot_redis_read_sharing", "Reads of rows that one command to Redis answers.", bounds=SIZE_BUCKETS
).series()
_keys_read = Histogram("triglot_redis_read_keys", "Keys of one command that reads rows.", bounds=SIZE_BUCKETS).series()
_waiting = Count()
prometheus_client.Gauge("triglot_redis_reads_waiting", "Reads of rows that wait to be sent to Redis.").set_function(
    lambda: _waiting.value
)

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


# By which Redis knows it.
_NEWER_WINS_NAME = hashlib.sha1(_NEWER_WINS.encode(), usedforsecurity=False).hexdigest()
_NULL = "null"
# In Redis' protocol, what comes between a word and the next one, by the length of that; few keys are longer.
_LENGTHS = [b"\r\n$%d\r\n" % length for length in range(1024)]


class Batch(NamedTuple):
    """Rows to write. All arrays are of one length."""

    # Whole keys, no nulls.
    keys: pa.StringArray
    # What the values are joined from by SEPARATOR; a null is `null`. At least one.
    parts: Sequence[pa.StringArray]


class Sample(NamedTuple):
    """What was found in Redis."""

    # For each row set, how many rows it has.
    rows: Mapping[int, int]
    # For each row set, keys of some of them.
    examples: Mapping[int, Sequence[bytes]]
    # Whether that is counted; otherwise it is estimated.
    whole: bool


class PartlyUnavailable(errors.Unavailable):
    """Some rows were read. `found` has LOST for the others."""

    def __init__(self, found: Sequence[bytes | None]) -> None:
        super().__init__(_NO_ANSWER, dependency="redis")
        self.found = found


_NO_ANSWER = "Redis did not answer"


class Rows:
    """The rows of all groups. Raises Unavailable, dependency redis, when Redis does not answer."""

    def __init__(self, client: Client, key_prefix: str, max_read_keys: int) -> None:
        self._client: Any = client
        self._single = isinstance(client, redis.asyncio.Redis)
        self._key_prefix = key_prefix
        self._reads: _Coalescer | _ByNode = (
            _ByNode(client, max_read_keys) if isinstance(client, Cluster) else _Coalescer(self._get_many, max_read_keys)
        )
        self._writes = asyncio.Semaphore(_WRITES_IN_FLIGHT)
        self._newer_wins_known = False
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
                with translated():
                    await self._client.ping()
                self._last_good_ping = asked

    # Reading

    async def read(self, keys: list[bytes]) -> Sequence[bytes | None]:
        """The values of whole keys, in their order. Concurrent reads share round trips.

        Raises PartlyUnavailable if nodes of a cluster did not answer, but others did.
        """
        return await self._reads.read(keys)

    async def _get_many(self, keys: list[bytes]) -> Sequence[bytes | None]:
        with translated():
            answers = await exchange(self._client, _packed_read(keys), 1)
            _raise_first(answers)
            found: list[bytes | None] = answers[0]
            return found

    # Writing

    async def write(self, batch: Batch, time_to_live_ms: int) -> None:
        """Write rows, whatever is there."""
        if self._single and not time_to_live_ms:
            await self._write(batch, (), (), self._set_at_once)
        else:
            await self._write(batch, ("SET",), ("PX", str(time_to_live_ms)) if time_to_live_ms else (), self._set_each)

    async def write_newer(self, batch: Batch, time_to_live_ms: int) -> None:
        """Write rows, but for those that are there with a later event time."""
        await self._write(batch, ("EVALSHA", _NEWER_WINS_NAME, "1"), (str(time_to_live_ms),), self._set_newer)

    async def _write(self, batch: Batch, before: Sequence[str], after: Sequence[str], send: Any) -> None:
        packed = await asyncio.to_thread(_packed, batch, before, after)
        await _together(
            self._persist(send, batch.keys.slice(start, _WRITE_CHUNK), packed.slice(start, _WRITE_CHUNK))
            for start in range(0, len(packed), _WRITE_CHUNK)
        )

    async def _persist(self, send: Any, keys: pa.StringArray, packed: pa.StringArray) -> None:
        """Write a chunk, and again if Redis is away for a moment: all ways of writing can be repeated."""
        for attempt in range(_WRITE_ATTEMPTS):
            try:
                async with self._writes:
                    with translated():
                        await send(keys, packed)
                return
            except errors.Unavailable:
                if attempt == _WRITE_ATTEMPTS - 1:
                    raise
                await asyncio.sleep(0.1 * 2**attempt)

    async def _set_at_once(self, keys: pa.StringArray, packed: pa.StringArray) -> None:
        words = b"*%d\r\n$4\r\nMSET\r\n" % (1 + 2 * len(packed))
        _raise_first(await exchange(self._client, b"".join((words, _text(packed))), 1))

    async def _set_each(self, keys: pa.StringArray, packed: pa.StringArray) -> None:
        if self._single:
            _raise_first(await exchange(self._client, bytes(_text(packed)), len(packed)))
        else:
            _raise_first(await self._client.each(_list(keys), _list(packed)))

    async def _set_newer(self, keys: pa.StringArray, packed: pa.StringArray) -> None:
        if not self._newer_wins_known:
            for server in await self._servers():
                await server.script_load(_NEWER_WINS)
            # Not before all know it.
            self._newer_wins_known = True
        try:
            await self._set_each(keys, packed)
        except redis.exceptions.NoScriptError:
            # A server that was restarted, or a new primary, has forgotten it: the next attempt loads it again.
            self._newer_wins_known = False
            raise

    async def delete(self, keys: Sequence[bytes]) -> int:
        """Delete rows; how many of them there were. Idempotent."""
        deleted = 0
        for start in range(0, len(keys), _WRITE_CHUNK):
            async with self._writes:
                with translated():
                    deleted += await self._unlink(keys[start : start + _WRITE_CHUNK])
        return deleted

    async def _each(self, keys: Sequence[bytes], commands: Iterable[tuple[bytes, ...]]) -> list[Any]:
        """The answer to a command for each key. Raises the first that is an error."""
        packed = [hiredis.pack_command(command) for command in commands]  # type: ignore[arg-type]
        if self._single:
            answers = await exchange(self._client, b"".join(packed), len(packed))
        else:
            answers = await self._client.each(keys, packed)
        _raise_first(answers)
        return answers

    async def servers(self) -> frozenset[str]:
        """What those that hold the rows call themselves: a server that was started again, or one that took the place of
        another, has another name."""
        with translated():
            return frozenset([(await server.info("server"))["run_id"] for server in await self._servers()])

    async def require_same(self, servers: frozenset[str]) -> None:
        """Raises Unavailable if one of those servers is gone, and with it, maybe, rows that it had acknowledged."""
        if not servers <= await self.servers():
            raise errors.Unavailable(
                "Redis was restarted or failed over during the write, and may have lost rows; start again",
                dependency="redis",
            )

    async def require_replicas(self, count: int, seconds: float) -> None:
        """Wait until so many replicas of each primary have all that was written so far.

        Raises Unavailable if they do not within so many seconds. WAIT tells of what its own connection wrote, so
        something small is written there first: replicas take everything in one order.
        """
        deadline = time.monotonic() + seconds
        found = 0
        while count:
            with suppress(errors.Unavailable), translated():
                found = await self._replicas(count)
            if found >= count:
                return
            if time.monotonic() > deadline:
                raise errors.Unavailable(
                    f"{found} of {count} replicas have the rows after {seconds:g} s", dependency="redis"
                )
            await asyncio.sleep(_REPLICAS_AGAIN_SECONDS)

    async def _replicas(self, count: int) -> int:
        """How many replicas of each primary have what was written, of so many; those of the primary that has fewest."""

        def commands(key: bytes) -> bytes:
            mark = (b"SET", key, b"", b"PX", b"1000")
            wait = (b"WAIT", b"%d" % count, b"%d" % _WAIT_MILLISECONDS)
            return b"".join(map(hiredis.pack_command, (mark, wait)))  # type: ignore[arg-type]

        mark = self.prefix(0) + b"replicated:"
        if self._single:
            answers = [await exchange(self._client, commands(mark), 2)]
        else:
            answers = await self._client.on_each(mark, commands, 2)
        for each in answers:
            _raise_first(each)
        return min(int(each[1]) for each in answers)

    async def _servers(self) -> Sequence[redis.asyncio.Redis]:
        """Those that together hold all rows."""
        servers: Sequence[redis.asyncio.Redis] = [self._client] if self._single else await self._client.primaries()
        return servers

    async def remove(self, row_set: int) -> int:
        """Remove all keys of a row set that nobody reads or writes any more; how many there were. Idempotent."""
        removed = 0
        match = self.prefix(row_set) + b"*"
        batch: list[bytes] = []
        with translated():
            for server in await self._servers():
                async for key in server.scan_iter(match=match, count=_SCAN_COUNT):
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
        with translated():
            servers = await self._servers()
            for server in servers:
                found, weight = await self._scan(server, max(1, max_scans // len(servers)), examples)
                whole = whole and weight == 1.0
                for row_set, count in found.items():
                    rows[row_set] += round(count * weight)
        return Sample(rows, examples, whole)

    async def _scan(self, server: Any, scans: int, examples: dict[int, list[bytes]]) -> tuple[Counter[int], float]:
        """Keys of each row set that were found on a server, and how many there each of them stands for."""
        begins = re.compile(re.escape(self._key_prefix).encode() + rb":([0-9]{1,18}):")
        # While Redis grows or shrinks its table it may show a key twice.
        seen: set[bytes] = set()
        weight, cursor = 1.0, 0
        for _ in range(scans):
            cursor, keys = await server.execute_command("SCAN", cursor, "COUNT", _SCAN_COUNT)
            seen.update(keys)
            if not cursor:
                break
        else:
            weight = max(1.0, await server.execute_command("DBSIZE") / max(len(seen), 1))
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
        with translated():
            sizes = await self._each(keys, ((b"STRLEN", key) for key in keys)) if keys else []
        return float(sum(sizes) + sum(map(len, keys))) / max(len(keys), 1)

    async def _unlink(self, keys: Sequence[bytes]) -> int:
        if not keys:
            return 0
        if self._single:
            return int(await self._client.unlink(*keys))
        return sum(await self._each(keys, ((b"UNLINK", key) for key in keys)))


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


def _raise_first(answers: Iterable[Any]) -> None:
    """Raises the first answer that is an error."""
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer


def _packed(batch: Batch, before: Sequence[str], after: Sequence[str]) -> pa.StringArray:
    """A command for each row in the protocol of Redis: words, key, value, words. Without words, key and value alone.

    The protocol ends lines with CR LF, and LF is what the parts of a value are joined by: one join makes all of it.
    """
    parts = batch.parts
    value_bytes = sum(pc.fill_null(pc.binary_length(part), len(_NULL)).to_numpy() for part in parts) + len(parts) - 1
    key_sizes, value_sizes = (
        sizes.cast(pa.string()) for sizes in (pc.binary_length(batch.keys), pa.array(value_bytes))
    )
    lines = [
        *([f"*{len(before) + 2 + len(after)}\r"] if before or after else []),
        *_lines(before),
        _joined("$", key_sizes, "\r\n", batch.keys, "\r\n$", value_sizes, "\r"),
        *parts[:-1],
        _joined(parts[-1], "\r"),
        *_lines(after),
        "",
    ]
    return _joined(*lines, by="\n")


def _lines(words: Iterable[str]) -> Iterable[str]:
    return chain.from_iterable((f"${len(word)}\r", f"{word}\r") for word in words)


def _joined(*parts: Any, by: str = "") -> pa.StringArray:
    return pc.binary_join_element_wise(*parts, by, null_handling="replace", null_replacement=_NULL)


def _text(texts: pa.StringArray) -> memoryview:
    """All texts of an array without nulls, one behind the other."""
    _, offsets, data = texts.buffers()
    first, last = np.frombuffer(offsets, np.int32)[[texts.offset, texts.offset + len(texts)]]
    return memoryview(data)[first:last]


def _list(texts: pa.StringArray) -> list[bytes]:
    found: list[bytes] = texts.cast(pa.binary()).to_pylist()
    return found


def _packed_read(keys: Sequence[bytes]) -> bytes:
    """The command that reads them. hiredis, which copies each key, takes a third longer for a hundred."""
    try:
        parts = chain.from_iterable(zip(map(_LENGTHS.__getitem__, map(len, keys)), keys, strict=True))
        return b"*%d\r\n$4\r\nMGET%b\r\n" % (1 + len(keys), b"".join(parts))
    except IndexError:
        return bytes(hiredis.pack_command((b"MGET", *keys)))  # type: ignore[arg-type]


_Waiting = tuple[list[bytes], asyncio.Future[Sequence[bytes | None]]]
_keys_of = itemgetter(0)


class _Coalescer:
    """Gathers the reads of one turn of the event loop into one command, and those that come while it is under way.

    An idle server waits for nothing: a read alone goes out in the next turn.
    """

    def __init__(self, get_many: Any, max_keys: int) -> None:
        self._get_many = get_many
        self._max_keys = max_keys
        self._waiting: list[_Waiting] = []
        self._running: set[asyncio.Task[None]] = set()
        # One of them has not begun.
        self._beginning = False

    @property
    def busy(self) -> bool:
        """Whether anybody waits for rows."""
        return bool(self._waiting or self._running)

    async def read(self, keys: list[bytes]) -> Sequence[bytes | None]:
        if not keys:
            return ()
        if len(keys) > self._max_keys:
            parts = [keys[start : start + self._max_keys] for start in range(0, len(keys), self._max_keys)]
            return [row for part in parts for row in await self.read(part)]
        future: asyncio.Future[Sequence[bytes | None]] = asyncio.get_running_loop().create_future()
        self._waiting.append((keys, future))
        _waiting.add()
        if not self._beginning and len(self._running) < _READS_IN_FLIGHT:
            self._begin()
        return await future

    def _begin(self) -> None:
        self._beginning = True
        # What it does is done for nobody in particular.
        task = asyncio.get_running_loop().create_task(self._run(), context=Context())
        self._running.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if task.cancelled():
            self._beginning = False
        if self._waiting and not self._beginning:
            self._begin()

    async def _run(self) -> None:
        self._beginning = False
        while self._waiting:
            await self._fetch(self._taken())

    def _taken(self) -> list[_Waiting]:
        """Those whose turn it is."""
        taken: list[_Waiting] = []
        size = 0
        for keys, future in self._waiting:
            if taken and size + len(keys) > self._max_keys:
                break
            size += len(keys)
            taken.append((keys, future))
        del self._waiting[: len(taken)]
        _waiting.add(-len(taken))
        return taken

    async def _fetch(self, taken: list[_Waiting]) -> None:
        wanted = [item for item in taken if not item[1].done()]
        if not wanted:
            return
        keys = wanted[0][0] if len(wanted) == 1 else [*chain.from_iterable(map(_keys_of, wanted))]
        _sharing.observe(len(wanted))
        _keys_read.observe(len(keys))
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


class _ByNode:
    """Reads of a cluster: gathered for each node on its own, so that one that is slow or gone holds up its own keys."""

    def __init__(self, cluster: Cluster, max_keys: int) -> None:
        self._cluster = cluster
        self._max_keys = max_keys
        self._nodes: dict[Address | None, _Coalescer] = {}

    async def read(self, keys: list[bytes]) -> Sequence[bytes | None]:
        of_node: defaultdict[Address | None, list[int]] = defaultdict(list)
        for position, key in enumerate(keys):
            of_node[self._cluster.owner(key)].append(position)
        found: list[bytes | None] = [LOST] * len(keys)
        parts = [(positions, [keys[each] for each in positions]) for positions in of_node.values()]
        reads = [self._node(node).read(part) for node, (_, part) in zip(of_node, parts, strict=True)]
        for (positions, _), answers in zip(parts, await asyncio.gather(*reads), strict=True):
            for position, answer in zip(positions, answers, strict=True):
                found[position] = answer
        if LOST in found:
            if all(row == LOST for row in found):
                raise errors.Unavailable(_NO_ANSWER, dependency="redis")
            raise PartlyUnavailable(found)
        return found

    def _node(self, address: Address | None) -> _Coalescer:
        coalescer = self._nodes.get(address)
        if coalescer is None:
            # Nodes come and go.
            nodes = self._cluster.addresses
            self._nodes = {known: each for known, each in self._nodes.items() if known in nodes or each.busy}
            coalescer = self._nodes[address] = _Coalescer(self._get_each, self._max_keys)
        return coalescer

    async def _get_each(self, keys: list[bytes]) -> Sequence[bytes | None]:
        packed = [b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(key), key) for key in keys]
        answers = await self._cluster.each(keys, packed)
        failed = [position for position, answer in enumerate(answers) if isinstance(answer, Exception)]
        for position in failed:
            report(answers[position])
            answers[position] = LOST
        return answers


def _copy(error: BaseException) -> errors.TriglotError:
    """An error of its own for each reader: a traceback belongs to one."""
    if isinstance(error, errors.TriglotError):
        return errors.Unavailable(error.message, reason=error.reason, **error.metadata)
    return errors.Unavailable("the read was given up", dependency="redis")
