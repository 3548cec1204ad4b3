"""Alive and ready are two things: what needs something tells so, over gRPC health and over HTTP."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chassis import errors, metrics_port, readiness
from chassis.client import health_of
from chassis.postgres import open_database
from chassis.readiness import Board
from chassis.server import GrpcServer
from chassis.settings import Settings
from tests.chassis.echo import service
from tests.patience import until
from tests.ports import reserved_ports
from triglot.embedded import EmbeddedPostgres

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class Dependency:
    """Something that can go away, or hang."""

    there: bool | None = True

    async def ask(self) -> None:
        if self.there is None:
            await asyncio.Event().wait()
        if not self.there:
            raise errors.Unavailable("it is away")


async def test_a_service_without_what_it_needs_says_so_and_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "_EVERY_SECONDS", 0.01)
    dependency = Dependency()
    server = GrpcServer(
        [replace(service(), needs={"thing": dependency.ask})], host="127.0.0.1", port=0, max_message_bytes=1 << 20
    )
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub, ask = health_pb2_grpc.HealthStub(channel), health_of(channel, "test.Echo")

        async def status(name: str) -> int:
            return (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status

        async def refused() -> bool:
            try:
                await ask()
            except errors.Unavailable:
                return True
            return False

        assert await status("test.Echo") == SERVING
        await ask()
        dependency.there = False
        await until(refused)
        assert await status("") == SERVING
        dependency.there = True
        await until(lambda: _negated(refused))
    await server.stop(0)


async def test_a_defect_is_told_and_looked_past() -> None:
    async def broken() -> None:
        raise ZeroDivisionError

    async with (board := Board()).serving({"thing": broken}):
        assert not _found(board, "/readyz")[0]


async def test_what_hangs_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "_ANSWER_SECONDS", 0.01)
    dependency, board = Dependency(), Board()
    dependency.there = None
    async with board.serving({"thing": dependency.ask}):
        assert _found(board, "/readyz") == (False, {"ready": False, "serves": True, "dependencies": {"thing": False}})
        assert _found(board, "/livez") == (True, {"alive": True})


async def test_a_process_is_ready_while_it_serves_and_has_enough() -> None:
    here, away, board = Dependency(), Dependency(), Board()
    away.there = False
    needs = {"here": here.ask, "away": away.ask}
    assert not _found(board, "/readyz")[0]
    async with board.serving(needs):
        assert not _found(board, "/readyz")[0]
    async with board.serving(needs, any):
        assert _found(board, "/readyz")[0]
    assert not _found(board, "/readyz")[0]
    async with board.serving({}, any):
        assert _found(board, "/readyz")[0]


async def test_an_event_loop_that_stands_still_is_not_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "_HANG_SECONDS", 0.05)
    board = Board()
    time.sleep(0.1)  # noqa: ASYNC251 - on purpose
    assert not _found(board, "/livez")[0]
    async with board.beating():
        await asyncio.sleep(0)
        assert _found(board, "/livez")[0]


async def test_probes_and_metrics_share_a_port() -> None:
    board = Board()
    with reserved_ports(1) as [port]:
        metrics_port.serve(Settings(host="127.0.0.1", metrics_port=port), board.answer)

        def get(path: str) -> tuple[int, bytes]:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as response:
                    return response.status, response.read()
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, error.read()

        assert await asyncio.to_thread(get, "/readyz") == (503, b'{"ready":false,"serves":false,"dependencies":{}}')
        assert (await asyncio.to_thread(get, "/livez"))[0] == 200
        async with board.serving({"thing": Dependency().ask}):
            assert (await asyncio.to_thread(get, "/readyz"))[0] == 200
            assert b'triglot_dependency_up{dependency="thing"} 1.0' in (await asyncio.to_thread(get, "/metrics"))[1]


async def test_a_database_that_stops_and_one_that_is_busy(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "data")
    try:
        url = server.start()
        database = await open_database(Settings(postgres_url=url, postgres_pool_size=1, postgres_timeout_seconds=5))
        await database.ping()
        await database.execute("SELECT 1")
        async with database.connection():
            await database.ping()  # the only connection is in use, and just was good
        server.stop()
        database._answered = float("-inf")
        with pytest.raises(errors.Unavailable):
            await database.ping()
        await database.close()
    finally:
        server.destroy()


def _found(board: Board, path: str) -> tuple[bool, object]:
    answer = board.answer(path)
    assert answer is not None
    return answer[0], json.loads(answer[1])


async def _negated(check: Callable[[], Awaitable[bool]]) -> bool:
    return not await check()
