"""What production does to a deployment, while callers go on calling.

Whatever breaks: no answer is wrong, no half of a table is seen, nothing that PostgreSQL acknowledged is lost, what
fails does so in the dialect's own words or the transport's, and nobody has to restart anything.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.deploy.deployment import ROLES, Deployment
from tests.deploy.pods import hung
from tests.faults.load import GONE, Load
from tests.patience import eventually
from triglot.embedded.errors import EmbeddedServerError

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

AWAY_SECONDS = 10
# What each dialect calls a service, or a store, that cannot be asked or does not answer in time. Hopsworks has codes
# for rows and for metadata that cannot be read, under status 500, and a status in a batch.
UNAVAILABLE = {
    *GONE,
    "500 14",
    "500 9",
    "200 ERROR",
    "503 'The server did not answer in time'",
    "503 ServiceUnavailable",
    "503 HTTPException",
    "504 HTTPException",
}
# A gateway that is killed answers nothing more.
CUT_OFF = {"ReadError", "RemoteProtocolError", "ConnectError", "ConnectTimeout", "ReadTimeout", "WriteError"}
# Calls that no fault of PostgreSQL may touch: serving knows its views, and the keys, for a while. (Where the rows of a
# table are that was just overwritten it does not know.)
WITHOUT_POSTGRES = {"vector REST", "vector gRPC"}


class Faults:
    """A fault from its begin to the calm after it."""

    def __init__(self, deployment: Deployment, tell: Callable[[str], None]) -> None:
        self.deployment = deployment
        self._tell = tell

    @contextmanager
    def of(self, what: str, allowed: set[str]) -> Iterator[Load]:
        """The block does it, under load, and undoes what would not go away by itself."""
        with Load(self.deployment) as load:
            load.goes_on()
            since = time.monotonic()
            yield load
            self.deployment.pods.ready(*ROLES)
            load.calm()
            lost = load.lost()
            self._tell(load.report(what, since))
        assert not load.wrong
        assert not lost
        assert load.codes() <= allowed


@pytest.fixture
def faults(deployment: Deployment, tell: Callable[[str], None]) -> Faults:
    return Faults(deployment, tell)


@pytest.mark.parametrize("role", ROLES)
def test_kill_9(role: str, faults: Faults) -> None:
    with faults.of(
        f"kill -9 of one {role} of two", UNAVAILABLE | CUT_OFF if role == "gateway" else UNAVAILABLE
    ) as load:
        [pod, _] = faults.deployment.pods.of(role)
        restarts = pod.restarts
        pod.process.kill()
        assert eventually(lambda: pod.restarts > restarts)
        load.goes_on()


def _untouched(load: Load) -> None:
    assert not {kind for kind, _ in load.failed} & WITHOUT_POSTGRES


def test_postgres_refuses_connections_for_a_while(faults: Faults) -> None:
    postgres = faults.deployment.postgres
    with faults.of(f"PostgreSQL stopped for {AWAY_SECONDS} s, and started again", UNAVAILABLE) as load:
        postgres.stop()
        time.sleep(AWAY_SECONDS)
        postgres.start()
    _untouched(load)


def test_postgres_is_killed(faults: Faults) -> None:
    with faults.of("kill -9 of PostgreSQL, started again", UNAVAILABLE) as load:
        _kill_postgres(faults.deployment)
        assert eventually(lambda: _started(faults.deployment))
    _untouched(load)


def _kill_postgres(deployment: Deployment) -> None:
    assert deployment.postgres.pid is not None
    os.kill(deployment.postgres.pid, signal.SIGKILL)
    assert eventually(lambda: not deployment.postgres.running)


def _started(deployment: Deployment) -> bool:
    """Its own processes may outlive it by a moment, and hold its folder."""
    try:
        deployment.postgres.start()
    except EmbeddedServerError:
        return False
    return True


def _family(pid: int) -> list[int]:
    """A process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def _resident_bytes(deployment: Deployment) -> dict[str, int]:
    pages = {
        pod.name: int(Path(f"/proc/{pod.process.pid}/statm").read_text().split()[1])
        for role in ROLES
        for pod in deployment.pods.of(role)
    }
    return {name: number * os.sysconf("SC_PAGE_SIZE") for name, number in pages.items()}


def test_postgres_takes_connections_and_answers_nothing(faults: Faults) -> None:
    """Deadlines end what waits for it, and what waits does not pile up."""
    before = _resident_bytes(faults.deployment)
    with faults.of(f"PostgreSQL hangs for {2 * AWAY_SECONDS} s", UNAVAILABLE | {"ReadTimeout"}) as load:
        assert faults.deployment.postgres.pid is not None
        frozen = _family(faults.deployment.postgres.pid)
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(2 * AWAY_SECONDS)
        after = _resident_bytes(faults.deployment)
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
    _untouched(load)
    assert max(after[name] - before.get(name, after[name]) for name in after) < 64 * 2**20


def test_a_node_of_redis_takes_connections_and_answers_nothing(faults: Faults) -> None:
    redis = faults.deployment.redis
    with faults.of(f"a primary of the Redis Cluster hangs for {AWAY_SECONDS} s", UNAVAILABLE):
        hanging = redis.primaries()[0]
        redis.freeze(hanging)
        time.sleep(AWAY_SECONDS)
        redis.thaw(hanging)


def test_a_primary_of_redis_is_killed(faults: Faults) -> None:
    redis = faults.deployment.redis
    for port in redis.ports:
        redis.configure(port, cluster_node_timeout="1000")
    with faults.of("kill -9 of a primary of the Redis Cluster", UNAVAILABLE) as load:
        redis.kill(redis.primaries()[0])
        assert eventually(redis.agreed)
        # The one that took over has no replica until then, and loads wait for one.
        redis.revive()
        load.goes_on()


def test_all_of_redis_is_restarted(faults: Faults) -> None:
    """Its nodes read again what they kept on disk. Nobody has to publish anything once more."""
    redis = faults.deployment.redis
    with faults.of("kill -9 of all of Redis, started again", UNAVAILABLE):
        for port in redis.ports:
            redis.kill(port)
        redis.revive()
        assert eventually(redis.whole)
    # Once nobody writes, replicas have everything.
    assert eventually(redis.in_step)


def test_a_service_takes_connections_and_answers_nothing(faults: Faults) -> None:
    [pod, _] = faults.deployment.pods.of("serving")
    with faults.of("one serving of two hangs until it is killed by its liveness probe", UNAVAILABLE | {"ReadTimeout"}):
        restarts = pod.restarts
        with hung(pod):
            # Three times it may take its time, and there is time between them.
            assert any(eventually(lambda: pod.restarts > restarts) for _ in range(2))


def test_the_clock_steps(faults: Faults, tmp_path: Path) -> None:
    """Of the nodes of all pods, but not of PostgreSQL's: an hour ahead, and then two hours back."""
    [library, *_] = [*Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None]
    if library is None:
        pytest.skip("there is no libfaketime (Debian's package faketime)")
    offset = tmp_path / "offset"
    offset.write_text("+0")
    pods = faults.deployment.pods
    pods.environment = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    try:
        _all_again(faults.deployment)
        with faults.of("the clock steps by +1 h, -2 h and +1 h", set()) as load:
            for step in ("+3600", "-3600", "+0"):
                offset.write_text(step)
                load.goes_on()
    finally:
        pods.environment = {}
        _all_again(faults.deployment)


def _all_again(deployment: Deployment) -> None:
    """Start every pod's process again, with what the environment is now."""
    for role in ROLES:
        for pod in deployment.pods.of(role):
            restarts = pod.restarts
            pod.process.kill()
            assert eventually(lambda: pod.restarts > restarts)  # noqa: B023
        deployment.pods.ready(role)


def test_slow_clients_slow_nobody_else(faults: Faults) -> None:
    """Some send a byte a second, some ask and read nothing."""
    asked = b"GET /api/v1/projects HTTP/1.1\r\nhost: t\r\nauthorization: Bearer " + faults.deployment.api_key.encode()
    with faults.of("a hundred slow clients", set()), ExitStack() as closing:
        slow = []
        for url in faults.deployment.gateways():
            address = urlsplit(url).hostname, urlsplit(url).port
            for _ in range(50):
                slow.append(closing.enter_context(socket.create_connection(address, timeout=5)))
        for each in slow[::2]:
            each.sendall((asked + b"\r\n\r\n") * 20)
        for sent in asked[:AWAY_SECONDS]:
            for each in slow[1::2]:
                each.sendall(bytes([sent]))
            time.sleep(1)


def test_the_disk_of_postgres_is_full(faults: Faults, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("a small file system is made by root")
    postgres = faults.deployment.postgres
    cluster = (postgres.data_dir / "pg18").resolve()
    postgres.stop()
    _copy(cluster, tmp_path / "kept")
    size = sum(each.stat().st_size for each in cluster.rglob("*") if each.is_file()) + 64 * 2**20
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", cluster], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        postgres.start()
        pytest.skip(f"no small file system can be made: {mounted.stderr.strip()}")
    try:
        _copy(tmp_path / "kept", cluster)
        postgres.start()
        faults.deployment.pods.ready(*ROLES)
        with faults.of(f"the disk of PostgreSQL is full for {AWAY_SECONDS} s", UNAVAILABLE) as load:
            filler = cluster / "filler"
            with filler.open("wb", buffering=0) as file, _full():
                while True:
                    file.write(bytes(2**16))
            load.goes_on()
            time.sleep(AWAY_SECONDS)
            filler.unlink()
            # It may have ended itself when it could not write its log; whoever keeps it starts it again.
            assert eventually(lambda: _started(faults.deployment))
        _untouched(load)
    finally:
        postgres.stop()
        shutil.rmtree(tmp_path / "kept")
        _copy(cluster, tmp_path / "kept")
        subprocess.run(["umount", cluster], check=True)
        shutil.rmtree(cluster)
        _copy(tmp_path / "kept", cluster)
        postgres.start()


@contextmanager
def _full() -> Iterator[None]:
    with pytest.raises(OSError, match="No space left"):
        yield


def _copy(source: Path, target: Path) -> None:
    """With owners and rights."""
    target.mkdir(exist_ok=True)
    subprocess.run(["cp", "-a", f"{source}/.", target], check=True)
