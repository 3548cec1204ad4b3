"""Small streams that stand for a lot are refused before they are opened."""

from __future__ import annotations

import io
import resource
import struct
from collections.abc import Callable
from typing import Any

import grpc
import pyarrow as pa
import pytest

from chassis import errors
from chassis.server import GrpcServer
from protos.gen.triglot.serving.v1 import serving_service_pb2 as pb
from protos.gen.triglot.serving.v1.serving_service_pb2_grpc import ServingServiceStub
from protos.gen.triglot.serving.v1.value_pb2 import Value
from services.serving import arrow_streams
from tests.conftest import Servers
from tests.serving.conftest import MERGE, Client, Stack, arrow_stream

Refused = Callable[..., Any]
LIMIT = 100_000


def compressed(table: pa.Table, codec: str) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=codec)) as writer:
        writer.write_table(table)
    return sink.getvalue()


def of(column: pa.Array) -> pa.Table:
    return pa.table({"id": pa.array(range(len(column))), "x": column})


def shared_views(rows: int, *lengths: int) -> pa.Array:
    """A text of 1,000 bytes that all rows show, and none has. Then views that claim these lengths."""
    text = b"a" * 1000
    views = b"".join(
        length.to_bytes(4, "little", signed=True) + text[:4] + bytes(8) for length in (*[1000] * rows, *lengths)
    )
    buffers = [None, pa.py_buffer(views), pa.py_buffer(text)]
    return pa.Array.from_buffers(pa.string_view(), rows + len(lengths), buffers)


def words(rows: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int8()), ["a" * 1000])


NULLS = pa.ListArray.from_arrays(pa.array([0, 10**7], pa.int32()), pa.nulls(10**7))
EMPTY_ROWS = pa.Table.from_arrays([pa.nulls(10**7)], ["x"])

BOMBS = {
    "zstd": compressed(of(pa.array(["a" * 100] * 100)), "zstd"),
    "lz4": compressed(of(pa.array(["a" * 100] * 100)), "lz4"),
    "compressed dictionary": compressed(of(pa.array(["a" * 100] * 100).dictionary_encode()), "zstd"),
    "dictionary": arrow_stream(of(words(101))),
    "dictionary of fixed width": arrow_stream(of(words(101).cast(pa.dictionary(pa.int8(), pa.binary(1000))))),
    "dictionary inside": arrow_stream(of(pa.ListArray.from_arrays(pa.array([0, 1]), words(1)))),
    "views": arrow_stream(of(shared_views(101))),
    "views inside": arrow_stream(of(pa.ListArray.from_arrays(pa.array([0, 1]), shared_views(1)))),
    "list views": arrow_stream(of(pa.array([[1]], pa.list_view(pa.int64())))),
    "runs": arrow_stream(of(pa.RunEndEncodedArray.from_arrays(pa.array([100], pa.int32()), pa.array(["a"])))),
    "nulls in a list": arrow_stream(of(NULLS)),
    "rows of nothing": arrow_stream(EMPTY_ROWS),
    "an extension": arrow_stream(of(pa.array([b"a" * 16], pa.uuid()))),
    "views of less than nothing": arrow_stream(of(shared_views(101, -1))),
    "two batches": arrow_stream(pa.concat_tables([of(words(60)), of(words(60))])),
}


@pytest.mark.parametrize("what", BOMBS)
def test_what_stands_for_more_is_refused(what: str) -> None:
    assert len(BOMBS[what]) < LIMIT
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(errors.InvalidArgument) as caught:
        list(arrow_streams.batches(BOMBS[what], LIMIT))
    assert caught.value.metadata["field"] == "arrow_stream"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB


def test_what_fits_is_opened() -> None:
    for column in (words(99), shared_views(99), pa.array(["a" * 900] * 99), pa.array([[1], None])):
        table = of(column)
        assert pa.Table.from_batches(arrow_streams.batches(arrow_stream(table), LIMIT)) == table


def test_overlapping_buffers_are_refused() -> None:
    """Many columns could show one buffer. No writer does that, so the place of the second one is changed by hand."""
    stream = arrow_stream(pa.table({"a": ["x" * 64], "b": ["y" * 16]}))
    first, second = (
        struct.pack("<qq", offset, size)
        for size in (64, 16)
        for offset in range(0, 128, 8)
        if struct.pack("<qq", offset, size) in stream
    )
    overlapping = stream.replace(second, first)
    assert pa.ipc.open_stream(overlapping).read_all()["b"].to_pylist() == ["x" * 16]
    with pytest.raises(errors.InvalidArgument, match="overlap"):
        list(arrow_streams.batches(overlapping, LIMIT))


async def test_written_by_an_rpc(serving: Client, refused: Refused) -> None:
    """As it came from the network: a few kilobytes of zeros, and columns that name each text once."""
    group = await serving.group("g", {"id": "bigint", "x": "string"}, ["id"])
    await serving.write(group, [{"id": 1, "x": "old"}])
    zeros = compressed(of(pa.array(["0" * 1000] * 20_000)), "zstd")
    error = await refused("INVALID_FIELD", serving.write(group, [zeros]))
    assert "compressed" in error.message
    large = pa.DictionaryArray.from_arrays(pa.array([0] * 200, pa.int8()), ["a" * 1_000_000])
    error = await refused("INVALID_FIELD", serving.write(group, [arrow_stream(of(large))], MERGE))
    assert "several" in error.message
    keys = [pb.RowKey(values=[Value(int_value=1)])]
    read = pb.ReadRowsRequest(feature_store="demo", feature_group="g", version=1, keys=keys)
    assert (await serving.call("ReadRows", read)).rows[0].values[1].string_value == "old"


async def test_what_grpc_compresses_is_bounded_too(stack: Stack, servers: Servers, refused: Refused) -> None:
    """The way that compressed streams are sent to."""
    group = await stack.client.group("g", {"id": "bigint", "x": "string"}, ["id"])
    server = GrpcServer(list(stack.services), host="127.0.0.1", port=0, max_message_bytes=2**20)
    port = await server.start()
    try:
        options = (("grpc.max_send_message_length", -1),)
        async with grpc.aio.insecure_channel(
            f"127.0.0.1:{port}", options=options, compression=grpc.Compression.Gzip
        ) as channel:
            client = Client(ServingServiceStub(channel), stack.client.metadata)
            small = arrow_stream(of(pa.array(["0" * 1000] * 500)))
            assert (await client.write(group, [small])).rows_written == 500
            large = arrow_stream(of(pa.array(["0" * 1000] * 5000)))
            with pytest.raises(errors.ResourceExhausted):
                await client.write(group, [large])
    finally:
        await server.stop(0)
