"""Rows deleted by key."""

from __future__ import annotations

import datetime
from collections.abc import Awaitable, Callable
from typing import Any

import redis

from chassis.principals import Principal
from protos.gen.triglot.serving.v1 import serving_service_pb2 as pb
from protos.gen.triglot.serving.v1.value_pb2 import Value
from tests.conftest import Servers
from tests.serving.conftest import MERGE, Client

Refused = Callable[..., Any]


def keys_of(*rows: tuple[Any, ...]) -> list[pb.RowKey]:
    return [pb.RowKey(values=[Value(string_value=str(value)) for value in row]) for row in rows]


async def delete(serving: Client, *rows: tuple[Any, ...], name: str = "g") -> int:
    request = pb.DeleteRowsRequest(feature_store="demo", feature_group=name, version=1, keys=keys_of(*rows))
    return int((await serving.call("DeleteRows", request)).rows_deleted)


async def found(serving: Client, *rows: tuple[Any, ...]) -> list[bool]:
    request = pb.ReadRowsRequest(feature_store="demo", feature_group="g", version=1, keys=keys_of(*rows))
    return [row.found for row in (await serving.call("ReadRows", request)).rows]


async def test_those_named_are_gone(serving: Client, servers: Servers) -> None:
    group = await serving.group("g", {"id": "bigint", "day": "date", "x": "int"}, ["id", "day"])
    day = datetime.date(2024, 1, 2)
    await serving.write(group, [{"id": number, "day": day, "x": 1} for number in range(2_500)])
    gone = [(number, day) for number in range(1, 2_400)]
    assert await delete(serving, *gone, (9_999, day), (1, "2024-01-02")) == len(gone)
    assert await found(serving, (0, day), (1, day), (2_399, day), (2_400, day)) == [True, False, False, True]
    assert await delete(serving, *gone) == 0
    assert await delete(serving) == 0
    with redis.Redis.from_url(servers.redis_url) as store:
        assert store.dbsize() == 101


async def test_what_is_written_later_is_there_again_however_old(serving: Client) -> None:
    group = await serving.group("g", {"id": "bigint", "at": "bigint"}, ["id"], event_time="at")
    await serving.write(group, [{"id": 1, "at": 5}])
    assert await delete(serving, (1,)) == 1
    await serving.write(group, [{"id": 1, "at": 4}], MERGE)
    assert await found(serving, (1,)) == [True]


async def test_wrong_requests(
    serving: Client, refused: Refused, make_key: Callable[[Principal], Awaitable[str]]
) -> None:
    group = await serving.group("g", {"id": "bigint", "x": "int"}, ["id"])
    await serving.write(group, [{"id": 1, "x": 1}])
    await refused("WRONG_KEY_TYPE", delete(serving, (1,), ("a",)))
    await refused("INCORRECT_PRIMARY_KEY", delete(serving, (1, 2)))
    await refused("FEATURE_GROUP_NOT_FOUND", delete(serving, (1,), name="h"))
    await refused("TOO_MANY_ENTRIES", delete(serving, *[(number,) for number in range(5_001)]))
    assert await found(serving, (1,)) == [True]
    stranger = serving.with_key(await make_key(Principal("stranger", actions=("featurestore:*",))))
    await refused("FEATURE_STORE_NOT_SHARED", delete(stranger, (1,)))
    reads = Principal("reads", feature_stores=frozenset({"demo"}), actions=("featurestore:Read*",))
    await refused("ACTION_NOT_ALLOWED", delete(serving.with_key(await make_key(reads)), (1,)))
