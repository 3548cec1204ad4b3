"""The `hopsworks` 5.2.1 client, unmodified, in its own environment and process, against real ports.

Needs .venv-hopsworks, made from requirements.lock next to this file. Without it the tests fail.
"""

from __future__ import annotations

import datetime
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any

import pytest

from tests.conftest import Servers
from tests.serving.conftest import Client

RunClient = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]

pytestmark = pytest.mark.dropin

COLUMNS = {
    "id": "bigint", "name": "string", "day": "date", "at": "timestamp", "exact": "timestamp", "price": "double",
    "amount": "decimal(10,2)", "flag": "boolean", "blob": "binary", "tags": "array<bigint>",
    "place": "struct<city:string,code:int>", "big": "bigint",
}  # fmt: skip
ROW = {
    "id": 1, "name": "one", "day": datetime.date(2022, 1, 24),
    "at": datetime.datetime(2022, 1, 24, 13, 5, tzinfo=datetime.UTC),
    "exact": datetime.datetime(2022, 1, 24, 13, 5, 0, 123456, tzinfo=datetime.UTC),
    "price": 10.0, "amount": Decimal("1.50"), "flag": True, "blob": b"\x00\xff", "tags": [91, 65],
    "place": {"city": "Oslo", "code": 17}, "big": 2**63 - 1,
}  # fmt: skip
SEEN = [
    1, "one", {"date": "2022-01-24"}, {"datetime": "2022-01-24T13:05:00"}, {"datetime": "2022-01-24T13:05:00.123456"},
    10.0, 1.5, 1, {"bytes": "00ff"}, [91, 65], {"city": "Oslo", "code": 17}, 2**63 - 1,
]  # fmt: skip
NAMES = list(COLUMNS)


@pytest.fixture
async def seen(serving: tuple[Client, int], servers: Servers, run_client: RunClient) -> dict[str, Any]:
    """What the client saw of two views: `everything` over two groups joined on their key, `by_day` keyed by a date."""
    client, port = serving
    left = await client.group("everything", COLUMNS, ["id"], store="shop")
    right = await client.group("more", {"id": "bigint", "x": "int"}, ["id"], store="shop")
    days = await client.group("days", {"day": "date", "x": "int"}, ["day"], store="shop")
    await client.write(left, [ROW, {**dict.fromkeys(COLUMNS), "id": 2}])
    await client.write(right, [{"id": 1, "x": 5}, {"id": 2, "x": 6}])
    await client.write(days, [{"day": ROW["day"], "x": 7}])
    view = await client.view(
        "everything",
        [{"group": "everything"}, {"group": "more", "on": [("id", "id")]}],
        [*((0, name) for name in COLUMNS), (1, "x")],
        store="shop",
    )
    await client.view("by_day", [{"group": "days"}], [(0, "day"), (0, "x")], store="shop")
    ids = [left.id, right.id]
    given = {
        "port": port,
        "key": servers.admin_key,
        "features": [*([name, hive, left.id] for name, hive in COLUMNS.items()), ["x", "int", right.id]],
        "serving_keys": [
            {
                "feature_name": key.feature_name,
                "join_index": key.join_index,
                "group_id": ids[key.join_index],
                "required": key.required,
                "prefix": key.prefix,
            }
            for key in view.serving_keys
        ],
    }
    return await run_client("client.py", given)


async def test_the_client_reads_vectors(seen: dict[str, Any]) -> None:
    """One process of the client, many calls: starting it takes seconds."""
    # The engine hands on timestamps as text; the vector server makes them what they are.
    plain = [*SEEN[:3], "2022-01-24 13:05:00", "2022-01-24 13:05:00.123456", *SEEN[5:]]
    whole = dict(zip([*NAMES, "x"], [*plain, 5], strict=True))
    second = dict.fromkeys(NAMES) | {"id": 2, "x": 6}
    nothing = dict.fromkeys([*NAMES, "x"])

    assert seen["raw"]["status"] == "COMPLETE"
    assert [each["httpStatus"] for each in seen["raw"]["detailedStatus"]] == [200, 200]
    assert seen["single"] == whole
    assert seen["values"] == list(whole.values())
    assert seen["list"] == [*SEEN, 5]
    assert seen["lists"] == [[*SEEN, 5], list(second.values())]
    assert seen["batch"] == [whole, nothing | {"id": 99}, second | {"id": "2"}]
    # A date key arrives as milliseconds, and is echoed as it came.
    assert seen["by_date"]["features"] == [1_642_982_400_000, 7]

    assert seen["missing"] == nothing | {"id": 99}
    assert seen["dropped"] == {}
    assert seen["batch_dropped"] == [{}, second]
    assert seen["batch_with_an_error"] == [whole, nothing]
    assert seen["nothing"] is None

    for case, texts in {
        "wrong_type": ("HTTP code: 415", '"code":10', "Wrong data type."),
        "wrong_name": ("HTTP code: 400", '"code":12', "Incorrect primary key."),
        "wrong_view": ("HTTP code: 400", '"code":1,', "Feature view does not exist."),
        "wrong_key": ("HTTP code: 401", "apikey"),
    }.items():
        assert seen[case]["type"] == "RestAPIError"
        for text in texts:
            assert text in seen[case]["text"], case
