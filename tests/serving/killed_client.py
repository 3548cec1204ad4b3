"""Begins an overwrite of group `g` and never ends it: is killed, runs out of time, or raises when it is told to."""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import AsyncIterator

import grpc
import pyarrow as pa

from protos.gen.triglot.serving.v1 import serving_service_pb2 as pb
from protos.gen.triglot.serving.v1.serving_service_pb2_grpc import ServingServiceStub

# Long enough for the first rows to arrive on a busy machine.
DEADLINE_SECONDS = 5


async def messages(how: str) -> AsyncIterator[pb.WriteRowsRequest]:
    header = pb.WriteRowsHeader(feature_store="demo", feature_group="g", version=1, mode=pb.WRITE_MODE_OVERWRITE)
    yield pb.WriteRowsRequest(header=header)
    table = pa.table({"id": [1, 2], "x": ["new", "new"]})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    yield pb.WriteRowsRequest(arrow_stream=sink.getvalue())
    if how == "raise":
        await asyncio.to_thread(sys.stdin.readline)
        raise RuntimeError("the source of the rows failed")
    await asyncio.Event().wait()


async def main(port: str, key: str, how: str) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await channel.channel_ready()
        call = ServingServiceStub(channel).WriteRows(
            messages(how),
            metadata=(("authorization", f"Bearer {key}"),),
            timeout=DEADLINE_SECONDS if how == "deadline" else None,
        )
        await call


if __name__ == "__main__":
    try:
        asyncio.run(main(*sys.argv[1:]))
    except (grpc.aio.AioRpcError, asyncio.CancelledError):
        sys.exit(1)
