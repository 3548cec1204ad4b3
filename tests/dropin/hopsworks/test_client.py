"""The `hopsworks` 5.2.1 and `hsfs` 3.7.9 clients, unmodified, each in its own environment, against real ports.

Needs .venv-hopsworks and .venv-hsfs, made from their requirements.lock. Without them the tests fail.
"""

from __future__ import annotations

import datetime
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any

import pytest

from tests import certificates
from tests.certificates import Certificate
from tests.conftest import Servers
from tests.dropin.hopsworks.conftest import Ports
from tests.serving.conftest import Client

RunClient = Callable[..., Awaitable[dict[str, Any]]]

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


# 3.7.9 takes no fraction of a second.
WITHOUT_FRACTIONS = [name for name in NAMES if name != "exact"]


@pytest.fixture
async def given(
    listening: tuple[Client, Ports],
    servers: Servers,
    certificate: Certificate,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """Views `everything` and, without fractions, `seconds` over two groups joined on their key; `by_day`, of a date."""
    client, ports = listening
    left = await client.group("everything", COLUMNS, ["id"], store="shop")
    right = await client.group("more", {"id": "bigint", "x": "int"}, ["id"], store="shop")
    days = await client.group("days", {"day": "date", "x": "int"}, ["day"], store="shop")
    await client.write(left, [ROW, {**dict.fromkeys(COLUMNS), "id": 2}])
    await client.write(right, [{"id": 1, "x": 5}, {"id": 2, "x": 6}])
    await client.write(days, [{"day": ROW["day"], "x": 7}])
    joins = [{"group": "everything"}, {"group": "more", "on": [("id", "id")]}]
    for name, columns in (("everything", NAMES), ("seconds", WITHOUT_FRACTIONS)):
        view = await client.view(name, joins, [*((0, column) for column in columns), (1, "x")], store="shop")
    await client.view("by_day", [{"group": "days"}], [(0, "day"), (0, "x")], store="shop")
    ids = [left.id, right.id]
    return {
        "port": ports.plain,
        "tls_port": ports.tls,
        "authority": str(certificate.certificate),
        "other_authority": str(certificates.make(tmp_path_factory.mktemp("other")).certificate),
        "key": servers.admin_key,
        "view": "everything",
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


# One process of the client, many calls: starting it takes seconds.


async def test_hopsworks_reads_vectors(given: dict[str, Any], run_client: RunClient) -> None:
    seen = await run_client("client.py", given)
    # The engine hands on timestamps as text; the vector server makes them what they are.
    plain = [*SEEN[:3], "2022-01-24 13:05:00", "2022-01-24 13:05:00.123456", *SEEN[5:]]
    check(seen, NAMES, plain, SEEN)
    nothing = dict.fromkeys([*NAMES, "x"])
    assert seen["dropped"] == {}
    assert seen["batch_dropped"] == [{}, nothing | {"id": 2, "x": 6}]
    assert seen["nothing"] is None
    check_refusals(seen, "wrong_type", "wrong_name", "wrong_view", "wrong_key")


async def test_hsfs_reads_vectors(given: dict[str, Any], run_client: RunClient) -> None:
    features = [each for each in given["features"] if each[0] != "exact"]
    older = given | {"view": "seconds", "features": features, "all": given["features"]}
    seen = await run_client("client.py", older, "hsfs")
    # It leaves dates and binary values as they come, and makes timestamps in the engine already.
    values = [1, "one", "2022-01-24", SEEN[3], 10.0, 1.5, 1, "AP8=", *SEEN[9:]]
    check(seen, WITHOUT_FRACTIONS, values, values)
    nothing = dict.fromkeys([*WITHOUT_FRACTIONS, "x"])
    assert seen["passed"] == nothing | {"id": 99, "name": "mine", "x": 7}
    assert seen["batch_passed"] == [seen["passed"], seen["single"]]
    assert seen["metadata"]["metadata"] == [{"featureName": name, "featureType": hive} for name, hive, _ in features]
    assert seen["wrong_name"] == nothing
    # The client's own: it was written for columns without fractions.
    assert (seen["fraction"]["type"], "unconverted data" in seen["fraction"]["text"]) == ("ValueError", True)
    check_refusals(seen, "wrong_type", "wrong_view", "wrong_key")


def check(seen: dict[str, Any], names: list[str], of_engine: list[Any], of_server: list[Any]) -> None:
    """What all versions agree on."""
    whole = dict(zip([*names, "x"], [*of_engine, 5], strict=True))
    nothing = dict.fromkeys([*names, "x"])
    second = nothing | {"id": 2, "x": 6}
    batch = [whole, nothing | {"id": 99}, second | {"id": "2"}]

    assert seen["raw"]["status"] == "COMPLETE"
    assert [each["httpStatus"] for each in seen["raw"]["detailedStatus"]] == [200, 200]
    assert seen["single"] == whole
    assert seen["values"] == list(whole.values())
    assert seen["list"] == [*of_server, 5]
    assert seen["lists"] == [[*of_server, 5], list(second.values())]
    assert seen["batch"] == batch
    # A date key arrives as milliseconds, and is echoed as it came.
    assert seen["by_date"]["features"] == [1_642_982_400_000, 7]
    assert seen["missing"] == nothing | {"id": 99}
    assert seen["batch_with_an_error"] == [whole, nothing]
    assert (seen["tls"]["single"], seen["tls"]["batch"]) == (whole, batch)
    assert "CERTIFICATE_VERIFY_FAILED" in seen["tls"]["strange"]["text"]


def check_refusals(seen: dict[str, Any], *cases: str) -> None:
    texts = {
        "wrong_type": ("HTTP code: 415", '"code":10', "Wrong data type."),
        "wrong_name": ("HTTP code: 400", '"code":12', "Incorrect primary key."),
        "wrong_view": ("HTTP code: 400", '"code":1,', "Feature view does not exist."),
        "wrong_key": ("HTTP code: 401", "apikey"),
    }
    for case in cases:
        assert seen[case]["type"] == "RestAPIError"
        for text in texts[case]:
            assert text in seen[case]["text"], case
