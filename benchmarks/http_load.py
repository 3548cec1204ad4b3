"""A load generator for machines without wrk: python -m benchmarks.http_load URL FILE KEY CONNECTIONS SECONDS.

Plays the request bodies of a file, one a line, in turn. The last line that it prints is a JSON object with the figures.
It is Python itself, so it takes more of the machine than wrk.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httptools
import uvloop

from benchmarks.harness import percentiles


class _Client(asyncio.Protocol):
    """One connection that asks again as soon as it is answered."""

    def __init__(self, requests: Iterator[bytes], deadline: float, times: list[float]) -> None:
        self._requests, self._deadline, self._times = requests, deadline, times
        self._parser = httptools.HttpResponseParser(self)
        self.over: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._ask()

    def _ask(self) -> None:
        self._began = time.perf_counter()
        if self._began > self._deadline:
            self.over.set_result(True)
        else:
            self._transport.write(next(self._requests))

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        self._times.append(time.perf_counter() - self._began)
        if self._parser.get_status_code() != 200:
            self.over.set_result(False)
        else:
            self._parser = httptools.HttpResponseParser(self)
            self._ask()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.over.done():
            self.over.set_result(False)


async def _storm(host: str, port: int, requests: list[bytes], connections: int, seconds: float) -> dict[str, float]:
    times: list[float] = []
    played = cycle(requests)
    loop = asyncio.get_running_loop()
    begin = time.perf_counter()
    clients = []
    for _ in range(connections):
        _, client = await loop.create_connection(lambda: _Client(played, begin + seconds, times), host, port)
        clients.append(client)
    good = await asyncio.gather(*(client.over for client in clients))
    elapsed = time.perf_counter() - begin
    return {"requests": len(times), "seconds": elapsed, "failed": good.count(False), **percentiles(times)}


def main(url: str, file: str, key: str, connections: str, seconds: str) -> None:
    address = urlsplit(url)
    target = address._replace(scheme="", netloc="").geturl()
    head = f"POST {target} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\nX-API-KEY: {key}"
    requests = [
        b"%s\r\nContent-Length: %d\r\n\r\n%s" % (head.encode(), len(body), body)
        for body in Path(file).read_bytes().splitlines()
    ]
    host, port = address.hostname or "", address.port or 80
    print(json.dumps(uvloop.run(_storm(host, port, requests, int(connections), float(seconds)))))


if __name__ == "__main__":
    main(*sys.argv[1:])
