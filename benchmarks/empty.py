"""Servers that do nothing, the floors of the machine: python -m benchmarks.empty rest|grpc PORT.

`rest`: Starlette on uvicorn, which reads the request's body and answers as many bytes as the query's `bytes` asks for.
`grpc`: grpc.aio, which answers each request with its own bytes.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc
import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

GRPC_METHOD = "/empty.Empty/Ask"


async def _nothing(request: Request) -> Response:
    await request.body()
    return Response(b" " * int(request.query_params["bytes"]), media_type="application/json")


def rest(port: int) -> None:
    app = Starlette(routes=[Route("/", _nothing, methods=["POST"])])
    uvicorn.run(app, port=port, http="httptools", loop="uvloop", ws="none", lifespan="off", log_config=None)


async def _same(request: bytes, context: Any) -> bytes:
    return request


async def over_grpc(port: int) -> None:
    server = grpc.aio.server()
    _, service, method = GRPC_METHOD.split("/")
    server.add_registered_method_handlers(service, {method: grpc.unary_unary_rpc_method_handler(_same)})
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


def main(kind: str, port: str) -> None:
    if kind == "rest":
        rest(int(port))
    else:
        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
        asyncio.run(over_grpc(int(port)))


if __name__ == "__main__":
    main(*sys.argv[1:])
