"""How many rows a group has, and how many are read and written a day."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator, Callable
from typing import Any

import pyarrow as pa
import pytest

from chassis import errors
from chassis.postgres import Database
from chassis.redis import open_redis
from chassis.settings import Settings
from protos.gen.triglot.serving.v1 import serving_service_pb2 as pb
from protos.gen.triglot.serving.v1.value_pb2 import Value
from services.serving import statistics as census
from services.serving.rows import Batch, Rows
from tests.serving.conftest import MERGE, Client

Refused = Callable[..., Any]


@pytest.fixture
async def counting(open_stack: Callable[..., Any]) -> AsyncIterator[Client]:
    """A process that counts whenever it is asked."""
    async with open_stack(count_seconds=0) as stack:
        yield stack.client


async def statistics(serving: Client, name: str = "g", days: int = 0) -> pb.GetFeatureGroupStatisticsResponse:
    request = pb.GetFeatureGroupStatisticsRequest(feature_store="demo", name=name, version=1, days=days)
    answer: pb.GetFeatureGroupStatisticsResponse = await serving.call("GetFeatureGroupStatistics", request)
    return answer


async def read(serving: Client, *keys: int) -> None:
    row_keys = [pb.RowKey(values=[Value(int_value=key)]) for key in keys]
    request = pb.ReadRowsRequest(feature_store="demo", feature_group="g", version=1, keys=row_keys)
    await serving.call("ReadRows", request)


async def test_rows_and_bytes(counting: Client) -> None:
    group = await counting.group("g", {"id": "bigint", "x": "string"}, ["id"])
    other = await counting.group("other", {"id": "bigint"}, ["id"])
    empty = await statistics(counting)
    assert (empty.rows, empty.bytes, empty.estimated) == (0, 0, False)
    await counting.write(group, [{"id": 10 + number, "x": "a" * 7} for number in range(50)])
    await counting.write(group, [{"id": 10 + number, "x": "a" * 7} for number in range(40, 90)], MERGE)
    await counting.write(other, [{"id": 1}])
    full = await statistics(counting)
    # Key: `t:<row set>:10`. Value: no event time, the key, the text in quotes, with line breaks between.
    assert (full.rows, full.estimated) == (90, False)
    assert full.bytes / 90 == len("t:3:10") + len('\n10\n"aaaaaaa"')
    await counting.write(group, [{"id": 1, "x": "a"}])
    assert (await statistics(counting)).rows == 1
    assert (await statistics(counting, "other")).rows == 1
    assert full.count_time.ToDatetime(datetime.UTC) > empty.count_time.ToDatetime(datetime.UTC)


async def test_what_was_counted_is_kept_for_a_while(open_stack: Callable[..., Any]) -> None:
    async with open_stack(count_seconds=3600) as stack:
        group = await stack.client.group("g", {"id": "bigint"}, ["id"])
        await stack.client.write(group, [{"id": 1}])
        first = await statistics(stack.client)
        await stack.client.write(group, [{"id": 2}], MERGE)
        again = await statistics(stack.client)
        assert (again.rows, again.count_time) == (first.rows, first.count_time)


async def test_groups_without_rows_are_looked_for_once(
    open_stack: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(census, "_NEW_ROWS_SECONDS", 0.0)
    async with open_stack(count_seconds=3600) as stack:
        emptied = await stack.client.group("g", {"id": "bigint"}, ["id"])
        await stack.client.write(emptied, [])
        await stack.client.group("never", {"id": "bigint"}, ["id"])
        for name in ("g", "never"):
            await statistics(stack.client, name)
        last = await statistics(stack.client)
        assert (last.rows, last.count_time) == (0, (await statistics(stack.client, "never")).count_time)
        assert last == await statistics(stack.client)
        await stack.client.write(emptied, [{"id": 1}])
        assert (await statistics(stack.client)).rows == 1
        assert (await statistics(stack.client, "never")).count_time == (await statistics(stack.client)).count_time


async def test_of_many_rows_a_part_is_counted(settings: Settings) -> None:
    """By chance, so what it comes to is near."""
    async with open_redis(settings) as client:
        rows = Rows(client, "t", 1000)
        for row_set, count in ((1, 30_000), (2, 10_000), (3, 3)):
            prefix = rows.prefix(row_set).decode()
            keys, parts = ([f"{prefix}{number}" for number in range(count)], [[""] * count, ["1"] * count])
            await rows.write(Batch(pa.array(keys), [pa.array(part) for part in parts]), 0)
        whole = await rows.sample(1000)
        assert (whole.rows, whole.whole) == ({1: 30_000, 2: 10_000, 3: 3}, True)
        part = await rows.sample(5)
        assert not part.whole
        assert 27_000 < part.rows[1] < 33_000
        assert 8_000 < part.rows[2] < 12_000
        assert len(part.examples[1]) == 100


def total(answer: pb.GetFeatureGroupStatisticsResponse) -> tuple[int, int]:
    """Rows read and written on all days: midnight may come while a test runs."""
    return sum(day.rows_read for day in answer.days), sum(day.rows_written for day in answer.days)


async def test_reads_and_writes_a_day(counting: Client, database: Database) -> None:
    today = "SELECT (now() AT TIME ZONE 'UTC')::date"
    group = await counting.group("g", {"id": "bigint", "x": "int"}, ["id"])
    joined = [{"group": "g"}, {"group": "g", "on": [("id", "id")], "prefix": "r_"}]
    await counting.view("v", joined, [(0, "x"), (1, "x")])
    assert list((await statistics(counting)).days) == []
    first = await database.fetchval(today)
    await counting.write(group, [{"id": number, "x": 1} for number in range(5)])
    await counting.write(group, [{"id": 5, "x": 1}], MERGE)
    await read(counting, 1, 2, 99)
    await counting.vectors("v", [{"id": Value(int_value=number)} for number in range(4)])
    answer = await statistics(counting)
    assert total(answer) == (3 + 2 * 4, 6)
    last = await database.fetchval(today)
    assert {day.date for day in answer.days} <= {first.isoformat(), last.isoformat()}
    await read(counting, 1)
    assert total(await statistics(counting)) == (12, 6)


async def test_days_are_told_of_and_forgotten(counting: Client, database: Database) -> None:
    await counting.group("g", {"id": "bigint"}, ["id"])
    for days_ago in (200, 40, 450):
        await read(counting, 1)
        await statistics(counting)
        await database.execute(
            "UPDATE serving.usage SET day = (now() AT TIME ZONE 'UTC')::date - $1::int"
            " WHERE day >= (now() AT TIME ZONE 'UTC')::date - 1",
            days_ago,
        )
    for days, reads in ((0, 0), (20, 0), (60, 1), (250, 2), (400, 2)):
        assert total(await statistics(counting, days=days)) == (reads, 0)
    assert await database.fetchval("SELECT count(*) FROM serving.usage") == 3
    await read(counting, 1)
    assert total(await statistics(counting, days=400)) == (3, 0)
    assert await database.fetchval("SELECT count(*) FROM serving.usage") == 3


async def test_all_processes_add_and_none_forgets(open_stack: Callable[..., Any]) -> None:
    async with open_stack() as stack:
        await stack.client.group("g", {"id": "bigint"}, ["id"])
        async with open_stack() as other:
            await asyncio.gather(*(read(client, 1, 2) for client in (stack.client, other.client) for _ in range(10)))
        assert total(await statistics(stack.client)) == (40, 0)


async def test_what_cannot_be_added_is_added_later(open_stack: Callable[..., Any], database: Database) -> None:
    async with open_stack() as stack:
        await stack.client.group("g", {"id": "bigint"}, ["id"])
        await read(stack.client, 1)
        await database.execute("ALTER TABLE serving.usage RENAME TO away")
        with pytest.raises(errors.TriglotError):
            await statistics(stack.client)
        await read(stack.client, 1)
        await database.execute("ALTER TABLE serving.away RENAME TO usage")
        assert total(await statistics(stack.client)) == (2, 0)


async def test_what_was_done_with_a_group_that_is_gone_holds_up_nothing(counting: Client, database: Database) -> None:
    """Its rows were swept away before this process could reach PostgreSQL again."""
    for name in ("gone", "g"):
        await counting.write(await counting.group(name, {"id": "bigint"}, ["id"]), [{"id": 1}])
    await database.execute("DELETE FROM serving.feature_group WHERE name = 'gone'")
    assert total(await statistics(counting, days=1)) == (0, 1)


async def test_wrong_requests(serving: Client, refused: Refused) -> None:
    await serving.group("g", {"id": "bigint"}, ["id"])
    for days in (-1, 401):
        await refused("INVALID_FIELD", statistics(serving, days=days))
    await refused("FEATURE_GROUP_NOT_FOUND", statistics(serving, "h"))


async def test_many_groups_at_once(counting: Client, refused: Refused) -> None:
    """What each alone would be told, in the order that was asked for; groups that are not there are left out."""
    for name, rows in (("a", 2), ("b", 1), ("empty", 0)):
        group = await counting.group(name, {"id": "bigint"}, ["id"])
        if rows:
            await counting.write(group, [{"id": number} for number in range(rows)])

    def named(*names: str, store: str = "demo") -> list[pb.FeatureGroupName]:
        return [pb.FeatureGroupName(feature_store=store, name=name, version=1) for name in names]

    asked = [*named("b", "nothing"), *named("a", store="nowhere"), *named("empty", "a")]
    request = pb.ListFeatureGroupStatisticsRequest(feature_groups=asked)
    answer = await counting.call("ListFeatureGroupStatistics", request)
    assert [each.feature_group.name for each in answer.statistics] == ["b", "empty", "a"]
    assert [each.statistics.rows for each in answer.statistics] == [1, 0, 2]
    for each in answer.statistics:
        alone = await statistics(counting, each.feature_group.name)
        assert (each.statistics.bytes, list(each.statistics.days)) == (alone.bytes, list(alone.days))
    none = await counting.call("ListFeatureGroupStatistics", pb.ListFeatureGroupStatisticsRequest())
    assert list(none.statistics) == []
    for wrong in ({"feature_groups": named("a") * 1_001}, {"days": 401}, {"days": -1}):
        request = pb.ListFeatureGroupStatisticsRequest(**wrong)
        await refused("INVALID_FIELD", counting.call("ListFeatureGroupStatistics", request))
