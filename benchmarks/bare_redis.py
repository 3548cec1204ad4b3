"""The floor: redis-py with hiredis reads the keys that a request needs, and does nothing with them.

python -m benchmarks.bare_redis URL FILE CONNECTIONS SECONDS. A line of the file is a JSON array of keys. The last line
that it prints is a JSON object with the figures, the processor time of this process among them.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from itertools import cycle
from pathlib import Path

import redis.asyncio
import uvloop

from benchmarks.harness import percentiles


async def _storm(url: str, requests: list[list[str]], connections: int, seconds: float) -> dict[str, float]:
    times: list[float] = []
    played = cycle(requests)
    begin = time.perf_counter()
    used = time.process_time()

    async def client() -> None:
        async with redis.asyncio.Redis.from_url(url, single_connection_client=True) as connection:
            while (asked := time.perf_counter()) < begin + seconds:
                await connection.mget(next(played))
                times.append(time.perf_counter() - asked)

    await asyncio.gather(*(client() for _ in range(connections)))
    elapsed = time.perf_counter() - begin
    used = time.process_time() - used
    return {"requests": len(times), "seconds": elapsed, "failed": 0, "cpu_seconds": used, **percentiles(times)}


def main(url: str, file: str, connections: str, seconds: str) -> None:
    requests = [json.loads(line) for line in Path(file).read_text().splitlines()]
    print(json.dumps(uvloop.run(_storm(url, requests, int(connections), float(seconds)))))


if __name__ == "__main__":
    main(*sys.argv[1:])
