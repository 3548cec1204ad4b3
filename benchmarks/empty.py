"""Starlette on uvicorn with a handler that does nothing, the floor of the machine: python -m benchmarks.empty PORT.

It reads the request's body and answers as many bytes as the query's `bytes` asks for.
"""

from __future__ import annotations

import sys

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


async def _nothing(request: Request) -> Response:
    await request.body()
    return Response(b" " * int(request.query_params["bytes"]), media_type="application/json")


def main(port: str) -> None:
    app = Starlette(routes=[Route("/", _nothing, methods=["POST"])])
    uvicorn.run(app, port=int(port), http="httptools", loop="uvloop", ws="none", lifespan="off", log_config=None)


if __name__ == "__main__":
    main(sys.argv[1])
