"""A table appears whole or not at all; merges replace row by row; what nobody reads any more is removed."""

from __future__ import annotations

import asyncio
import datetime
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import redis

from chassis import errors
from chassis.postgres import Database
from chassis.server import GrpcServer
from protos.gen.triglot.serving.v1 import serving_service_pb2 as pb
from protos.gen.triglot.serving.v1.value_pb2 import Value
from tests.conftest import Servers
from tests.patience import PATIENCE_SECONDS, until
from tests.serving.conftest import MERGE, OVERWRITE, Client, arrow_stream, table_of

Refused = Callable[..., Any]
COLUMNS = {"id": "bigint", "x": "string"}


@pytest.fixture
def store(servers: Servers) -> Iterator[redis.Redis]:
    """A plain client of the Redis behind the service."""
    with redis.Redis.from_url(servers.redis_url) as client:
        yield client


@pytest.fixture
async def group(serving: Client) -> Any:
    return await serving.group("g", COLUMNS, ["id"])


async def read(serving: Client, ids: list[int]) -> list[str | None]:
    keys = [pb.RowKey(values=[Value(int_value=number)]) for number in ids]
    reply = await serving.call(
        "ReadRows", pb.ReadRowsRequest(feature_store="demo", feature_group="g", version=1, keys=keys)
    )
    return [row.values[1].string_value if row.found else None for row in reply.rows]


async def stored(store: redis.Redis, keys: int) -> None:
    """Wait until Redis holds this many keys."""

    async def found() -> bool:
        return bool(store.dbsize() == keys)

    await until(found)


async def no_loads(database: Database) -> None:
    """Wait until no overwrite is under way."""

    async def found() -> bool:
        return bool(await database.fetchval("SELECT count(*) FROM serving.row_set WHERE state = 'loading'") == 0)

    await until(found)


async def test_overwrite_replaces_everything(serving: Client, group: Any) -> None:
    first = await serving.write(group, [{"id": 1, "x": "a"}, {"id": 2, "x": "b"}])
    assert (first.rows_written, first.generation) == (2, 1)
    second = await serving.write(group, [{"id": 2, "x": "B"}, {"id": 3, "x": "C"}])
    assert (second.rows_written, second.generation) == (2, 2)
    assert await read(serving, [1, 2, 3]) == [None, "B", "C"]


async def test_merge_replaces_row_by_row(serving: Client, group: Any) -> None:
    await serving.write(group, [{"id": 1, "x": "a"}, {"id": 2, "x": "b"}])
    merged = await serving.write(group, [{"id": 2, "x": "B"}, {"id": 3, "x": "C"}], MERGE)
    assert (merged.rows_written, merged.generation) == (2, 1)
    assert await read(serving, [1, 2, 3]) == ["a", "B", "C"]


async def test_merge_into_a_new_group(serving: Client, group: Any) -> None:
    await serving.write(group, [{"id": 1, "x": "a"}], MERGE)
    assert await read(serving, [1]) == ["a"]


async def test_an_empty_overwrite_empties(serving: Client, group: Any) -> None:
    await serving.write(group, [{"id": 1, "x": "a"}])
    assert (await serving.write(group, [])).generation == 2
    assert await read(serving, [1]) == [None]


async def test_many_batches_and_streams(serving: Client, group: Any) -> None:
    tables = [
        table_of(group, [{"id": number, "x": f"{part}"} for number in range(part * 7000, (part + 1) * 7000)])
        for part in range(3)
    ]
    reply = await serving.write(group, (arrow_stream(table) for table in tables))
    assert reply.rows_written == 21_000
    assert await read(serving, [0, 6999, 7000, 20_999, 21_000]) == ["0", "0", "1", "2", None]


@pytest.mark.parametrize("mode", [OVERWRITE, MERGE])
async def test_without_the_mark_of_the_end_rows_may_be_missing(
    *, serving: Client, group: Any, refused: Refused, mode: pb.WriteMode.ValueType
) -> None:
    await serving.write(group, [{"id": 1, "x": "old"}, {"id": 2, "x": "old"}])
    error = await refused("INVALID_FIELD", serving.write(group, [{"id": 1, "x": "new"}], mode, end=False))
    assert error.metadata["field"] == "end"
    # A merge writes row by row.
    assert await read(serving, [1, 2]) == ["old" if mode == OVERWRITE else "new", "old"]


WRONG_TABLES = {
    "missing column": pa.table({"id": [1]}),
    "unknown column": pa.table({"id": [1], "x": ["a"], "y": [1]}),
    "column twice": pa.Table.from_arrays([pa.array([1]), pa.array(["a"]), pa.array(["a"])], ["id", "x", "x"]),
    "null key": pa.table({"id": pa.array([1, None]), "x": ["a", "b"]}),
    "wrong type": pa.table({"id": ["a"], "x": ["a"]}),
    "date out of range": pa.table({"id": [1], "x": pa.array([3_000_000], pa.date32())}),
}


@pytest.mark.parametrize("mode", [OVERWRITE, MERGE])
@pytest.mark.parametrize("what", WRONG_TABLES)
async def test_wrong_rows_change_nothing(
    *, serving: Client, group: Any, refused: Refused, what: str, mode: pb.WriteMode.ValueType
) -> None:
    """Not even if good ones went before, when it is an overwrite."""
    await serving.write(group, [{"id": 1, "x": "old"}])
    good = arrow_stream(table_of(group, [{"id": 1, "x": "new"}, {"id": 2, "x": "new"}]))
    error = await refused("INVALID_FIELD", serving.write(group, [good, arrow_stream(WRONG_TABLES[what])], mode))
    assert ("id" if what in ("null key", "wrong type") else "y" if what == "unknown column" else "x") in error.message
    if mode == OVERWRITE:
        assert await read(serving, [1, 2]) == ["old", None]
        await serving.write(group, [{"id": 1, "x": "newer"}])
        assert await read(serving, [1, 2]) == ["newer", None]


@pytest.mark.parametrize("stream", [b"", b"garbage", b"\xff\xff\xff\xff\x10\x00\x00\x00" + bytes(16)])
async def test_what_is_no_arrow_is_refused(serving: Client, group: Any, refused: Refused, stream: bytes) -> None:
    await refused("INVALID_FIELD", serving.write(group, [stream]))


async def test_a_torn_arrow_stream_is_refused(serving: Client, group: Any, refused: Refused) -> None:
    whole = arrow_stream(table_of(group, [{"id": number, "x": "a" * 50} for number in range(200)]))
    await serving.write(group, [{"id": 1, "x": "old"}])
    for cut in range(8, len(whole) - 16, 97):
        with pytest.raises(Exception, match="Arrow"):
            await serving.write(group, [whole[:cut]])
    assert await read(serving, [1]) == ["old"]


async def test_headers_come_first_and_once(serving: Client, group: Any, refused: Refused) -> None:
    header = pb.WriteRowsHeader(feature_store="demo", feature_group="g", version=1, mode=OVERWRITE)

    async def send(*parts: pb.WriteRowsRequest) -> AsyncIterator[pb.WriteRowsRequest]:
        for part in parts:
            yield part

    first, end = pb.WriteRowsRequest(header=header), pb.WriteRowsRequest(end=pb.WriteRowsEnd())
    await refused("INVALID_FIELD", serving.call("WriteRows", send()))
    await refused("INVALID_FIELD", serving.call("WriteRows", send(end)))
    await refused("INVALID_FIELD", serving.call("WriteRows", send(first, first)))
    await refused("INVALID_FIELD", serving.call("WriteRows", send(first, end, end)))
    header.mode = pb.WRITE_MODE_UNSPECIFIED
    await refused("INVALID_FIELD", serving.call("WriteRows", send(pb.WriteRowsRequest(header=header))))


async def test_two_overwrites_at_once_do_not_mix(serving: Client, group: Any) -> None:
    """What is read is one of them, whole: the last one to be shown. One that began earlier is told to start again."""

    async def slowly(letter: str) -> Any:
        header = pb.WriteRowsHeader(feature_store="demo", feature_group="g", version=1, mode=OVERWRITE)

        async def messages() -> AsyncIterator[pb.WriteRowsRequest]:
            yield pb.WriteRowsRequest(header=header)
            for number in range(20):
                table = table_of(group, [{"id": number, "x": letter}])
                yield pb.WriteRowsRequest(arrow_stream=arrow_stream(table))
                await asyncio.sleep(0.005)
            yield pb.WriteRowsRequest(end=pb.WriteRowsEnd())

        return await serving.call("WriteRows", messages())

    replies = await asyncio.gather(*map(slowly, "abc"), return_exceptions=True)
    shown = {
        reply.generation: letter for reply, letter in zip(replies, "abc", strict=True) if hasattr(reply, "generation")
    }
    assert sorted(shown) == list(range(1, len(shown) + 1))
    assert all(isinstance(reply, errors.Aborted) for reply in replies if not hasattr(reply, "generation")), replies
    assert set(await read(serving, list(range(20)))) == {shown[max(shown)]}


async def test_a_load_that_began_earlier_does_not_replace_newer_rows(
    serving: Client, group: Any, refused: Refused
) -> None:
    """A writer that was frozen in the middle wakes up when another one has long done its work."""
    header = pb.WriteRowsHeader(feature_store="demo", feature_group="g", version=1, mode=OVERWRITE)

    async def messages() -> AsyncIterator[pb.WriteRowsRequest]:
        yield pb.WriteRowsRequest(header=header)
        yield pb.WriteRowsRequest(arrow_stream=arrow_stream(table_of(group, [{"id": 1, "x": "early"}])))
        await serving.write(group, [{"id": 1, "x": "late"}])
        yield pb.WriteRowsRequest(end=pb.WriteRowsEnd())

    await refused("CONFLICTING_WRITE", serving.call("WriteRows", messages()))
    assert await read(serving, [1]) == ["late"]


async def test_readers_see_the_old_rows_until_all_are_there(serving: Client, group: Any) -> None:
    ids = list(range(50))
    await serving.write(group, [{"id": number, "x": "old"} for number in ids])
    header = pb.WriteRowsHeader(feature_store="demo", feature_group="g", version=1, mode=OVERWRITE)
    shown = []

    async def messages() -> AsyncIterator[pb.WriteRowsRequest]:
        yield pb.WriteRowsRequest(header=header)
        for number in ids:
            yield pb.WriteRowsRequest(arrow_stream=arrow_stream(table_of(group, [{"id": number, "x": "new"}])))
            # Asked for more, the load has taken what came before.
            shown.append(await read(serving, ids))
        yield pb.WriteRowsRequest(end=pb.WriteRowsEnd())

    await serving.call("WriteRows", messages())
    assert shown == [["old"] * 50] * 50
    assert await read(serving, ids) == ["new"] * 50


async def test_a_merge_that_is_overtaken_by_an_overwrite_is_aborted(
    serving: Client, group: Any, refused: Refused
) -> None:
    header = pb.WriteRowsHeader(feature_store="demo", feature_group="g", version=1, mode=MERGE)

    async def messages() -> AsyncIterator[pb.WriteRowsRequest]:
        yield pb.WriteRowsRequest(header=header)
        yield pb.WriteRowsRequest(arrow_stream=arrow_stream(table_of(group, [{"id": 1, "x": "merged"}])))
        await serving.write(group, [{"id": 1, "x": "overwritten"}])
        yield pb.WriteRowsRequest(end=pb.WriteRowsEnd())

    await refused("CONFLICTING_WRITE", serving.call("WriteRows", messages()))
    assert await read(serving, [1]) == ["overwritten"]


async def test_old_rows_and_half_loads_are_removed(
    open_stack: Callable[..., Any], refused: Refused, store: redis.Redis
) -> None:
    async with open_stack(sweep_seconds=0.05) as stack:
        serving: Client = stack.client
        group = await serving.group("g", COLUMNS, ["id"])
        await serving.write(group, [{"id": number, "x": "a"} for number in range(3000)])
        await serving.write(group, [{"id": 1, "x": "b"}])
        await stored(store, 1)
        good = arrow_stream(table_of(group, [{"id": number, "x": "c"} for number in range(2500)]))
        await refused("INVALID_FIELD", serving.write(group, [good, b"broken"]))
        await stored(store, 1)
        assert await read(serving, [1]) == ["b"]
        delete = pb.DeleteFeatureGroupRequest(feature_store="demo", name="g", version=1)
        await serving.call("DeleteFeatureGroup", delete)
        await stored(store, 0)


async def test_a_load_whose_writer_died_is_given_up(
    open_stack: Callable[..., Any], database: Database, store: redis.Redis, refused: Refused
) -> None:
    """Another process removes its rows, and the writer, should it live after all, is told."""
    async with (
        open_stack(sweep_seconds=3600.0) as stack,
        open_stack(sweep_seconds=0.05, abandoned_load_seconds=0.2) as other,
    ):
        serving: Client = stack.client
        group = await serving.group("g", COLUMNS, ["id"])
        header = pb.WriteRowsHeader(feature_store="demo", feature_group="g", version=1, mode=OVERWRITE)
        stream = pb.WriteRowsRequest(arrow_stream=arrow_stream(table_of(group, [{"id": 1, "x": "a"}])))

        async def messages() -> AsyncIterator[pb.WriteRowsRequest]:
            yield pb.WriteRowsRequest(header=header)
            yield stream
            # Until the other process has given it up: this one reads ahead of what it writes.
            await no_loads(database)
            yield stream

        await refused("CONFLICTING_WRITE", serving.call("WriteRows", messages()))
        await stored(store, 0)
        assert await read(other.client, [1]) == [None]
        assert await database.fetchval("SELECT count(*) FROM serving.row_set WHERE state = 'loading'") == 0


KILLED_CLIENT = Path(__file__).parent / "killed_client.py"


@pytest.mark.parametrize("how", ["kill", "raise", "deadline"])
async def test_a_client_that_breaks_off_changes_nothing(
    *, open_stack: Callable[..., Any], servers: Servers, database: Database, store: redis.Redis, how: str
) -> None:
    """A stream that was cut off looks like one that ended, for a moment."""
    # Nothing is swept away, so that its rows in Redis show that the load had begun, even when it is over.
    async with open_stack(sweep_seconds=3600.0) as stack:
        serving: Client = stack.client
        await serving.write(await serving.group("g", COLUMNS, ["id"]), [{"id": 1, "x": "old"}])
        server = GrpcServer(list(stack.services), host="127.0.0.1", port=0, max_message_bytes=2**24)
        port = await server.start()
        client = await asyncio.create_subprocess_exec(
            sys.executable, str(KILLED_CLIENT), str(port), servers.admin_key, how, cwd=Path(__file__).parents[2],
            stdin=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            await stored(store, 3)
            if how == "kill":
                client.kill()
            await asyncio.wait_for(client.communicate(b"raise\n" if how == "raise" else None), PATIENCE_SECONDS)
            await no_loads(database)
            assert await read(serving, [1, 2]) == ["old", None]
            assert await database.fetchval("SELECT generation FROM serving.feature_group") == 1
        finally:
            if client.returncode is None:
                client.kill()
            await server.stop(0)


def least_left(started: float) -> float:
    """Milliseconds that a row of 100 s, written since then, has left at least: all but those that have passed."""
    return 100_000 - (time.monotonic() - started) * 1000 - 10


async def test_rows_live_as_long_as_their_group_says(serving: Client, store: redis.Redis) -> None:
    from google.protobuf.duration_pb2 import Duration

    group = await serving.group("g", COLUMNS, ["id"], time_to_live=Duration(seconds=100))
    started = time.monotonic()
    await serving.write(group, [{"id": 1, "x": "a"}])
    await serving.write(group, [{"id": 2, "x": "a"}], MERGE)
    lives = [store.pttl(key) for key in store.scan_iter()]
    assert len(lives) == 2
    assert all(least_left(started) <= left <= 100_000 for left in lives)
    [store.pexpire(key, 1) for key in store.scan_iter()]
    await asyncio.sleep(0.05)
    assert await read(serving, [1, 2]) == [None, None]


class TestNewerWins:
    """A group with an event time: no write replaces a row by an older one."""

    DAY = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)

    @pytest.fixture
    async def timed(self, serving: Client) -> Any:
        return await serving.group("g", {"id": "bigint", "x": "string", "at": "timestamp"}, ["id"], event_time="at")

    def row(self, x: str, days: float | None, key: int = 1) -> dict[str, Any]:
        return {"id": key, "x": x, "at": None if days is None else self.DAY + datetime.timedelta(days=days)}

    async def test_merge(self, serving: Client, timed: Any) -> None:
        await serving.write(timed, [self.row("first", 1)])
        for x, days, expected in (
            ("older", 0.5, "first"),
            ("same", 1, "same"),
            ("newer", 1.00001, "newer"),
            ("none", None, "newer"),
            ("before 1970", -30_000, "newer"),
        ):
            await serving.write(timed, [self.row(x, days)], MERGE)
            assert await read(serving, [1]) == [expected], x

    async def test_rows_without_a_time_give_way_to_all(self, serving: Client, timed: Any) -> None:
        await serving.write(timed, [self.row("none", None)], MERGE)
        await serving.write(timed, [self.row("none again", None)], MERGE)
        assert await read(serving, [1]) == ["none again"]
        await serving.write(timed, [self.row("before 1970", -30_000)], MERGE)
        assert await read(serving, [1]) == ["before 1970"]

    async def test_within_an_overwrite(self, serving: Client, timed: Any) -> None:
        await serving.write(timed, [self.row("future", 100)])
        await serving.write(timed, [self.row("late", 2), self.row("early", 1), self.row("other", 0, key=2)])
        assert await read(serving, [1, 2]) == ["late", "other"]

    async def test_after_redis_forgot_the_script(self, serving: Client, timed: Any, store: redis.Redis) -> None:
        await serving.write(timed, [self.row("one", 1)])
        store.script_flush()
        await serving.write(timed, [self.row("two", 2)], MERGE)
        assert await read(serving, [1]) == ["two"]

    async def test_with_a_time_to_live(self, serving: Client, store: redis.Redis) -> None:
        from google.protobuf.duration_pb2 import Duration

        columns = {"id": "bigint", "x": "string", "at": "bigint"}
        group = await serving.group("g", columns, ["id"], event_time="at", time_to_live=Duration(seconds=100))
        big = 2**62
        started = time.monotonic()
        await serving.write(group, [{"id": 1, "x": "a", "at": big}])
        await serving.write(group, [{"id": 1, "x": "b", "at": big - 1}], MERGE)
        assert await read(serving, [1]) == ["a"]
        await serving.write(group, [{"id": 1, "x": "c", "at": big + 1}], MERGE)
        assert await read(serving, [1]) == ["c"]
        assert least_left(started) <= store.pttl(next(iter(store.scan_iter()))) <= 100_000
