"""Bytes and texts that nobody should send, at random, to everything that reads them: each is refused or answered, none
is a defect. So many of each, from a seed that is printed (TRIGLOT_FUZZ_SEED is another one)."""

from __future__ import annotations

import os
import random
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Any

import grpc
import httpx2
import orjson
import pyarrow as pa
import pytest

from chassis import auth, calls, datatypes, errors
from chassis.postgres import Database
from chassis.server import listening
from chassis.settings import Settings
from gateway.assembly import all_dialects
from gateway.settings import GatewaySettings
from protos.gen.triglot.serving.v1.vector_pb2 import FeatureVector
from services.management.settings import ManagementSettings
from services.serving import fragments
from services.serving.arrow_streams import batches
from tests.chassis.test_auth import signed
from tests.conftest import Servers
from triglot.stack import Stack, open_stack

SEED = int(os.environ.get("TRIGLOT_FUZZ_SEED", "20261121"))
# What Feast's clients know as switched off, by its 503.
SWITCHED_OFF = {"monitoring.get", "monitoring.post"}


pytestmark = pytest.mark.slow


@pytest.fixture
def chance() -> random.Random:
    print(f"TRIGLOT_FUZZ_SEED={SEED}")
    return random.Random(SEED)


def mutated(good: bytes, chance: random.Random) -> bytes:
    """Some bytes changed, left out, doubled or moved, or the end cut off."""
    found = bytearray(good)
    for _ in range(chance.randrange(1, 5)):
        if not found:
            return bytes(found)
        place, length = chance.randrange(len(found)), chance.randrange(1, 9)
        match chance.randrange(5):
            case 0:
                found[place] = chance.randrange(256)
            case 1:
                del found[place : place + length]
            case 2:
                found[place:place] = found[place : place + length]
            case 3:
                found[place:place] = chance.randbytes(length)
            case 4 if chance.random() < 0.3:
                del found[place:]
    return bytes(found)


# JSON of the three dialects.

INSTANCE = ManagementSettings().instance_id
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 2**31, 2**63 - 1, 1e308, "", "\x00", "\ud7ff", "x" * 3000, "1e999", "../..", "%00", "*",
    "' OR 1=1 --", [], {}, [[]], [None], {"": ""}, INSTANCE, "STRING", "Batch", "1", "2026-11-21T05:44:58Z",
)  # fmt: skip
IN_PATHS = ("x", "1", "%00", "%ff", "\u00e9", "-", "9" * 30, INSTANCE)
NESTED = (b"[" * 900 + b"]" * 900, b'{"a":' * 500 + b"1" + b"}" * 500, b"[" * 5000, b'{"spec":' * 1000)
RAW = (b"", b"\xff\xfe", b"nul", b"1e", b'{"a":NaN}', b'{"a":"\\ud800"}', b'"', b"9" * 5000, b'{"a":1,"a":2}')
# Names that mean something to one row or another.
NAMES = (
    "featureStoreName", "featureViewName", "featureViewVersion", "entries", "passedFeatures", "metadataOptions",
    "options", "name", "project", "spec", "Name", "Type", "Uri", "Config", "WorkspaceId", "ProjectId", "JoinId",
    "Fields", "Tags", "Mode", "Features", "labels", "rows", "WriteRows", "PageSize", "PageNumber", "query", "limit",
    "value", "description", "tags", "entities", "features",
)  # fmt: skip


def odd_json(chance: random.Random, depth: int = 0) -> Any:
    kind = chance.randrange(6)
    if depth > 3 or kind < 3:
        return chance.choice(ODD)
    if kind == 3:
        return [odd_json(chance, depth + 1) for _ in range(chance.randrange(4))]
    return {chance.choice(NAMES): odd_json(chance, depth + 1) for _ in range(chance.randrange(6))}


def bodies(chance: random.Random) -> Iterator[bytes]:
    yield from chance.sample(RAW, 2)
    yield chance.choice(NESTED)
    for _ in range(12):
        content = odd_json(chance)
        whole = content if isinstance(content, dict) else {"spec": content}
        yield orjson.dumps({"InstanceId": INSTANCE, **whole})
    yield mutated(orjson.dumps({name: odd_json(chance) for name in chance.sample(NAMES, 8)}), chance)


@pytest.fixture
async def stack(settings: Settings) -> AsyncIterator[Stack]:
    async with open_stack(settings) as opened:
        yield opened


async def test_json_of_every_route(stack: Stack, servers: Servers, chance: random.Random) -> None:
    """As an administrator, so that all of it is read; on every path, in its place for parameters something odd."""
    shown = {"authorization": f"Bearer {servers.admin_key}", "content-type": "application/json"}
    nowhere: Any = grpc.aio.insecure_channel("127.0.0.1:1")
    dialects = all_dialects(registry=nowhere, serving=nowhere, management=nowhere, settings=GatewaySettings())
    await nowhere.close()
    transport = httpx2.ASGITransport(app=stack.app)  # type: ignore[arg-type]
    async with httpx2.AsyncClient(transport=transport, base_url="http://t", headers=shown) as http:
        for row in (row for dialect in dialects for row in dialect.rows if row.rpc is not None):
            for method in row.methods:
                for body in bodies(chance) if method in ("POST", "PUT", "PATCH") else (b"",):
                    path = re.sub(r"\{[^}]*\}", lambda _: chance.choice(IN_PATHS), row.path)
                    odd = {chance.choice(NAMES): str(chance.choice(ODD)) for _ in range(chance.randrange(4))}
                    query = {"InstanceId": INSTANCE, **odd}
                    answer = await http.request(method, path, params=query, content=body)
                    good = answer.status_code < 500 or (answer.status_code == 503 and row.operation in SWITCHED_OFF)
                    assert good, (method, path, query, body[:200], answer.text)


# ACS3.


async def test_signatures(settings: Settings, database: Database, servers: Servers, chance: random.Random) -> None:
    """Nothing but the very text that was signed is taken, and whatever is not is refused as such."""
    keys = auth.Keys(database, settings.secret_box, cache_seconds=0)
    with pytest.raises(errors.Unauthenticated):  # this was the first that was found
        await keys.principal(signed(("LTAI\0", "secret")))
    for number in range(400):
        good = signed(servers.access_key, nonce=f"n{number}")
        authorization, canonical = good["authorization"], good[auth.CANONICAL_REQUEST]
        assert isinstance(authorization, str)
        assert isinstance(canonical, bytes)
        if chance.random() < 0.5:
            changed = mutated(canonical, chance)
            shown = {**good, auth.CANONICAL_REQUEST: changed}
            same = changed == canonical
        else:
            begin = len("ACS3-HMAC-SHA256 ")
            text = authorization[:begin].encode() + mutated(authorization[begin:].encode(), chance)
            shown = {**good, "authorization": text.decode("latin-1")}
            # What is signed is said again in the header, and is not what is believed.
            same = parts(shown["authorization"]) == parts(authorization)
        try:
            assert (await keys.principal(shown)).name == "admin"
            assert same, shown
        except errors.Unauthenticated:
            pass


def parts(authorization: Any) -> tuple[str, ...]:
    found = dict(part.strip().partition("=")[::2] for part in authorization.partition(" ")[2].split(","))
    return found.get("Credential", ""), found.get("Signature", "")


# Rows.


def tables() -> Iterator[pa.Table]:
    yield pa.table({"id": pa.array(range(50)), "x": [0.5] * 50, "s": ["text", None] * 25})
    yield pa.table({"id": pa.array([1, 2]), "l": [[1, 2], None], "m": pa.array([{"a": 1}, None])})
    yield pa.table({"d": pa.array(["a", "b", "a"]).dictionary_encode(), "t": pa.array([1, 2, 3], pa.timestamp("us"))})


def test_arrow_streams(chance: random.Random) -> None:
    for table in tables():
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        good = sink.getvalue().to_pybytes()
        assert sum(batch.num_rows for batch in batches(good, 1 << 20)) == table.num_rows
        for _ in range(500):
            try:
                for batch in batches(mutated(good, chance), 1 << 20):
                    batch.validate(full=True)
            except errors.InvalidArgument:
                pass


FRAGMENTS = (
    b"36", b"-0.5e300", b'"text \\u00e9 \\n"', b"true", b'"2022-01-24"', b'"2022-01-24 13:05:00.123+05:30"', b'"AP8="',
    b"null", b"[1,[2,null]]", b"9" * 5000, b'"9999-12-31 23:59:59.999999-23:59"', b'"0001-01-01 00:00:00+23:59"',
    b'"1_0"', b"NaN",
)  # fmt: skip
KINDS = {
    "bigint": "int_value", "float": "float_value", "double": "double_value", "decimal(10,2)": "decimal_value",
    "boolean": "bool_value", "string": "string_value", "date": "date_value", "timestamp": "timestamp_value",
    "binary": "bytes_value", "array<int>": "json_value",
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_values_of_rows(kind: str, chance: random.Random) -> None:
    """A fragment of a row, as it is kept or as a caller sends it, is one value: of its type, or its JSON text."""
    write, field = fragments.writer(datatypes.parse(kind)), KINDS[kind]
    for fragment in FRAGMENTS:
        for tried in (fragment, *(mutated(fragment, chance) for _ in range(150)), chance.randbytes(12)):
            vector = FeatureVector()
            with suppress(UnicodeDecodeError):
                write(vector.values.add, tried)
                [value] = vector.values
                assert value.WhichOneof("kind") in (field, "json_value", "null_value"), (tried, value)
                vector.SerializeToString()


# Messages.


async def test_messages_of_every_rpc(stack: Stack, settings: Settings, servers: Servers, chance: random.Random) -> None:
    """Bytes at random, and messages of other kinds, to every RPC on a port."""
    defects = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}
    metadata = calls.bearer(servers.admin_key)
    services = (*stack.registry, *stack.serving, *stack.management)
    async with listening(services, settings, 0) as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        for service in services:
            for path, endpoint in service.endpoints.items():
                for content in contents(chance):
                    code, said = await answer(channel, path, endpoint.handler, content, metadata)
                    assert code not in defects, (path, content, said)


def contents(chance: random.Random) -> Iterator[bytes]:
    yield b""
    yield chance.randbytes(chance.randrange(1, 60))
    # A text, a number, a message in a message: what most fields are.
    texts = b"".join(bytes([number << 3 | 2, 3]) + b"abc" for number in range(1, 12))
    numbers = b"".join(bytes([number << 3]) + b"\xff" * 9 + b"\x01" for number in range(1, 12))
    deep = b"\x0a\x02\x0a\x00" * 40
    for good in (texts, numbers, deep):
        yield good
        yield mutated(good, chance)


async def answer(
    channel: grpc.aio.Channel, path: str, handler: Any, content: bytes, metadata: Any
) -> tuple[grpc.StatusCode, str]:
    async def several() -> AsyncIterator[bytes]:
        yield content

    plain: dict[str, Callable[[bytes], bytes]] = {"request_serializer": bytes, "response_deserializer": bytes}
    try:
        if handler.stream_unary:
            await channel.stream_unary(path, **plain)(several(), metadata=metadata, timeout=20)
        elif handler.unary_stream:
            async for _ in channel.unary_stream(path, **plain)(content, metadata=metadata, timeout=20):
                pass
        else:
            await channel.unary_unary(path, **plain)(content, metadata=metadata, timeout=20)
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""
