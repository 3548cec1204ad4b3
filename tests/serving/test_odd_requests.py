"""Requests that nobody should send: each is answered 200 or a clean 4xx, and the server is as well as before."""

from __future__ import annotations

import gzip
import random
from typing import Any

import httpx2
import orjson
import pytest

from tests.serving.conftest import Client

GOOD: dict[str, Any] = {
    "featureStoreName": "demo",
    "featureViewName": "v",
    "featureViewVersion": 1,
    "entries": {"id": 36},
    "passedFeatures": {"x": 1.5},
    "metadataOptions": {"featureName": True, "featureType": False},
    "options": {"validatePassedFeatures": True, "includeDetailedStatus": True},
}
BATCH = GOOD | {"entries": [{"id": 36}, {"id": 37}], "passedFeatures": [{"x": 1.5}, {}]}
BODIES = (("/feature_store", orjson.dumps(GOOD)), ("/batch_feature_store", orjson.dumps(BATCH)))


@pytest.fixture(autouse=True)
async def view(serving: Client) -> None:
    group = await serving.group("g", {"id": "bigint", "x": "double", "tags": "array<string>"}, ["id"])
    await serving.write(group, [{"id": 36, "x": 0.5, "tags": ["a"]}])
    await serving.view("v", [{"group": "g"}], [(0, "id"), (0, "x"), (0, "tags")])


async def send(http: httpx2.AsyncClient, path: str, body: bytes, **headers: str) -> httpx2.Response:
    """Asserts that the answer is one that a client can live with."""
    answer = await http.post(path, content=body, headers={"Content-Type": "application/json", **headers})
    assert answer.status_code == 200 or 400 <= answer.status_code < 500, (body[:200], answer.status_code, answer.text)
    assert "Traceback" not in answer.text
    if answer.headers["content-type"] == "application/json":
        # A passed feature comes back as it was sent, and Python makes no number of 5,000 digits.
        answer.json(parse_int=str)
    return answer


async def still_well(http: httpx2.AsyncClient) -> None:
    answer = await send(http, *BODIES[0])
    assert answer.json()["features"] == [36, 1.5, ["a"]]


async def test_bodies_of_which_some_bytes_are_others(http: httpx2.AsyncClient) -> None:
    chance = random.Random(6)
    pieces = (
        b'"',
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b"null",
        b"\\u0000",
        b"\\ud800",
        b"\x00",
        b"\xff",
        b"1e999",
        b"-",
        b"9" * 40,
    )
    for number in range(400):
        path, good = BODIES[number % 2]
        body = bytearray(good)
        for _ in range(chance.randrange(1, 4)):
            start = chance.randrange(len(body))
            body[start : start + chance.randrange(4)] = chance.choice((*pieces, chance.randbytes(2)))
        await send(http, path, bytes(body))
    for size in (1, 10, 1000):
        await send(http, "/feature_store", chance.randbytes(size))
    await still_well(http)


VALUES = (
    b"1e999", b"-1e999", b"1" * 5000, b"-" + b"9" * 400, b"0." + b"1" * 5000, b"1E+4000", b"-0", b"36.0", b"3.6e1",
    b'"\\u0000"', b'"\\ud800"', b'"\\udc00\\ud800"', b'"' + b"x" * 100_000 + b'"', b'"36\\u0000"', b"true", b"{}",
    b"[" * 900 + b"]" * 900, b'{"a":' * 900 + b"1" + b"}" * 900,
)  # fmt: skip
PLACES = (
    b'"entries":{"id":%s}', b'"entries":{"id":36},"passedFeatures":{"x":%s}',
    b'"entries":{"id":36},"passedFeatures":{"tags":%s}', b'"entries":{"id":36},"requestId":%s',
    b'"entries":{"id":36},"options":{"validatePassedFeatures":%s}', b'"entries":%s',
)  # fmt: skip


async def test_odd_values(http: httpx2.AsyncClient) -> None:
    start = b'{"featureStoreName":"demo","featureViewName":"v","featureViewVersion":1,'
    for place in PLACES:
        for value in VALUES:
            for options in (b"", b',"options":{"validatePassedFeatures":true}'):
                await send(http, "/feature_store", start + place.replace(b"%s", value) + options + b"}")
    await still_well(http)


async def test_names(http: httpx2.AsyncClient) -> None:
    odd = [
        "\0",
        "demo\0",
        "\ud800",
        "x" * 100_000,
        "'; DROP TABLE serving.feature_view; --",
        "%s",
        "\N{OWL}",
        " ",
        "../v",
    ]
    for field in ("featureStoreName", "featureViewName"):
        for name in odd:
            text = orjson.dumps(GOOD).replace(orjson.dumps({field: GOOD[field]})[1:-1], b"%s")
            shown = b'"' + name.encode("utf-16-be", "surrogatepass").hex(" ", 2).encode() + b'"'
            escaped = b'"' + b"".join(b"\\u" + unit for unit in shown.strip(b'"').split()) + b'"'
            assert (
                await send(http, "/feature_store", text.replace(b"%s", f'"{field}":'.encode() + escaped))
            ).status_code == 400
    for name in odd:
        if name.isprintable():
            answer = await send(http, "/feature_store", orjson.dumps(GOOD | {"entries": {"id": 1, name: 1}}))
            assert answer.status_code == 400
            answer = await send(http, "/feature_store", orjson.dumps(GOOD | {"passedFeatures": {name: 1}}))
            assert answer.status_code == 400
    await still_well(http)


async def test_names_that_come_twice(http: httpx2.AsyncClient) -> None:
    """The last one counts, as with most readers of JSON."""
    start = b'{"featureStoreName":"demo","featureViewName":"v","featureViewVersion":1,"entries":'
    answer = await send(http, "/feature_store", start + b'{"id":1,"id":36}}')
    assert answer.json()["features"][0] == 36
    answer = await send(http, "/feature_store", start + b'{"id":1},"entries":{"id":36}}')
    assert answer.json()["features"][0] == 36


async def test_content_types(http: httpx2.AsyncClient) -> None:
    """What a body calls itself does not matter, as with the real server."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "\xff"):
        headers = {b"content-type": kind.encode("latin-1")}
        answer = await http.post("/feature_store", content=BODIES[0][1], headers=headers)  # type: ignore[arg-type]
        assert answer.status_code == 200
        answer = await http.post("/feature_store", content=b"a=1", headers=headers)  # type: ignore[arg-type]
        assert (answer.status_code, answer.text[:6]) == (400, "Error:")


async def test_compressed_bodies_are_not_taken(http: httpx2.AsyncClient) -> None:
    for path, body in BODIES:
        answer = await send(http, path, gzip.compress(body), **{"Content-Encoding": "gzip"})
        assert answer.status_code == 400
        assert answer.text == "Error: the body is compressed (gzip): only plain JSON is taken"
    await still_well(http)


async def test_odd_keys_of_callers(http: httpx2.AsyncClient) -> None:
    for key in ("", ".", "x" * 7000, "0" * 16 + ".", "'" * 16 + ".x", "\xff\xfe", "a b"):
        headers = {b"x-api-key": key.encode("latin-1")}
        answer = await http.post("/feature_store", content=BODIES[0][1], headers=headers)  # type: ignore[arg-type]
        assert answer.status_code == 401
        assert answer.text.startswith("Unauthorized")
