"""A real Redis Cluster of three primaries and three replicas, which a test can break and have made whole again."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.retry import Retry

from tests.patience import eventually
from tests.ports import reserved_ports
from triglot.embedded import binaries
from triglot.embedded.process import Child, Command, Log

PRIMARIES, REPLICAS = 3, 3
SLOTS = 16_384
PASSWORD = "cluster-secret"
# While no test breaks it on purpose, nobody is taken for dead on a busy machine; replicas never think themselves too
# old, and are in step at once. One primary gone leaves the others' slots served.
_OPTIONS = {
    "cluster-node-timeout": "15000",
    "cluster-replica-validity-factor": "0",
    "cluster-require-full-coverage": "no",
    "repl-diskless-sync": "yes",
    "repl-diskless-sync-delay": "0",
    "requirepass": PASSWORD,
    "masterauth": PASSWORD,
}


class RedisCluster:
    """Six nodes by port. No tool forms it but a few commands."""

    def __init__(
        self, folder: Path, ports: Sequence[int], host: str = "127.0.0.1", *, keeps_rows: bool = False
    ) -> None:
        self.ports = ports
        # On disk, as in production.
        self._options = _OPTIONS | {"appendonly": "yes" if keeps_rows else "no"}
        self._host = host
        self._folder = folder
        self._program = binaries.find_redis().path
        self._nodes: dict[int, Child] = {}
        self._frozen: set[int] = set()
        self._clients = {
            port: redis.Redis(
                host, port, password=PASSWORD, socket_timeout=5, retry=Retry(NoBackoff(), 0), decode_responses=True
            )
            for port in ports
        }

    @property
    def url(self) -> str:
        return f"redis://:{PASSWORD}@{self._host}:{self.ports[0]}"

    def __getitem__(self, port: int) -> redis.Redis:
        """A plain client of one node, which follows nobody to another."""
        return self._clients[port]

    # Nodes

    def start(self, port: int) -> None:
        """The node is what it was; it has its rows if it keeps them on disk."""
        folder = self._folder / str(port)
        folder.mkdir(exist_ok=True)
        options = [word for name, value in self._options.items() for word in (f"--{name}", value)]
        argv = [self._program, "--port", str(port), "--bind", self._host, "--save", "", "--cluster-enabled", "yes"]
        self._nodes[port] = Command([*argv, *options], folder).spawn(Log(folder / "log"))

    def kill(self, port: int) -> None:
        """As kill -9 does."""
        self._nodes.pop(port).stop(())
        self._frozen.discard(port)

    def freeze(self, port: int) -> None:
        """The node takes connections and answers nothing, until it is thawed or killed."""
        self._nodes[port].popen.send_signal(signal.SIGSTOP)
        self._frozen.add(port)

    def thaw(self, port: int) -> None:
        self._nodes[port].popen.send_signal(signal.SIGCONT)
        self._frozen.discard(port)

    def stop(self) -> None:
        for port in list(self._nodes):
            self.kill(port)
        for client in self._clients.values():
            client.close()

    def form(self) -> None:
        for port in self.ports:
            self.start(port)
        identities = {port: self._when_it_answers(port) for port in self.ports}
        for number, port in enumerate(self.ports):
            self[port].execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
            self[port].execute_command("CLUSTER MEET", self._host, self.ports[0])
            if number < PRIMARIES:
                slots = range(number * SLOTS // PRIMARIES, (number + 1) * SLOTS // PRIMARIES)
                self[port].execute_command("CLUSTER ADDSLOTS", *slots)
        for number, port in enumerate(self.ports[PRIMARIES:]):
            command = "CLUSTER REPLICATE", identities[self.ports[number]]
            # It must have heard of its primary first.
            assert eventually(lambda: _succeeds(lambda: self[port].execute_command(*command)))  # noqa: B023
        assert eventually(lambda: self.whole() and self.in_step())

    def _when_it_answers(self, port: int) -> str:
        assert eventually(lambda: _succeeds(self[port].ping))
        return str(self[port].execute_command("CLUSTER MYID"))

    def revive(self) -> None:
        """Start the nodes that do not run."""
        for port in self.ports:
            if port not in self._nodes:
                self.start(port)

    def mend(self, *, keep_rows: bool = False) -> None:
        """Make it whole and empty, with the options it began with, whatever was done to it."""
        self.revive()
        for port in list(self._frozen):
            self.thaw(port)
        for port in self.ports:
            self._when_it_answers(port)
            self.configure(port, **{name: _OPTIONS[name] for name in _OPTIONS if name.startswith("cluster-")})
        assert eventually(lambda: self.whole() and self.in_step())
        for port in () if keep_rows else self.primaries():
            self[port].flushall()

    def configure(self, port: int, **options: str) -> None:
        for name, value in options.items():
            self[port].config_set(name.replace("_", "-"), value)

    # What it is like

    def whole(self) -> bool:
        """Whether all nodes think that all slots are served and each primary has a replica that follows it."""
        try:
            return (
                all(map(self._content, self.ports))
                and len(self.primaries()) == PRIMARIES
                and all(map(self._followed, self.primaries()))
            )
        except redis.RedisError:
            return False

    def _content(self, port: int) -> bool:
        info = self[port].execute_command("CLUSTER INFO")
        found = self.ranges(port)
        return (
            info["cluster_state"] == "ok"
            and int(info["cluster_known_nodes"]) == len(self.ports)
            and sum(last - first + 1 for first, last, _ in found) == SLOTS
            and found == self.ranges(self.ports[0])
        )

    def agreed(self) -> bool:
        """Whether all nodes that run see all slots with nodes that run."""
        views = [self.ranges(port) for port in self._nodes]
        return views.count(views[0]) == len(views) and all(owner in self._nodes for _, _, owner in views[0])

    def in_step(self) -> bool:
        """Whether each primary has a replica that holds all that it holds. While callers write, that is chance."""
        return all(
            self._followed(port) and self._replica(port)["offset"] == self._offset(port) for port in self.primaries()
        )

    def _followed(self, port: int) -> bool:
        return self._replica(port).get("state") == "online"

    def _replica(self, port: int) -> dict[str, Any]:
        """What a primary says of its replica; empty if it has none."""
        return dict(self._replication(port).get("slave0", {}))

    def _offset(self, port: int) -> int:
        return int(self._replication(port)["master_repl_offset"])

    def _replication(self, port: int) -> dict[str, Any]:
        info: dict[str, Any] = self[port].info("replication")  # type: ignore[assignment]
        return info

    def ranges(self, port: int) -> list[tuple[int, int, int]]:
        """First slot, last slot and the owner's port, as a node sees it."""
        answer: Any = self[port].execute_command("CLUSTER SLOTS")
        return sorted((first, last, primary[1]) for first, last, primary, *_ in answer)

    def primaries(self) -> list[int]:
        """Ports of those that own slots, as any node that runs sees it."""
        return sorted({owner for _, _, owner in self.ranges(self._any())})

    def replica_of(self, port: int) -> int:
        """The port of a primary's replica."""
        return int(self._replica(port)["port"])

    def owner(self, key: bytes) -> int:
        """The port of the primary that owns a key's slot."""
        slot = key_slot(key)
        return next(owner for first, last, owner in self.ranges(self._any()) if first <= slot <= last)

    def keys(self, port: int) -> list[bytes]:
        return [key.encode() for key in self[port].scan_iter(count=10_000)]

    def _any(self) -> int:
        return next(port for port in self._nodes if port not in self._frozen)

    # Moving a slot

    def begin_migration(self, slot: int, source: int, target: int) -> None:
        self[target].execute_command("CLUSTER SETSLOT", slot, "IMPORTING", self._identity(source))
        self[source].execute_command("CLUSTER SETSLOT", slot, "MIGRATING", self._identity(target))

    def migrate(self, source: int, target: int, keys: Sequence[bytes]) -> None:
        self[source].execute_command("MIGRATE", self._host, target, "", 0, 5000, "AUTH", PASSWORD, "KEYS", *keys)

    def end_migration(self, slot: int, source: int, target: int) -> None:
        for port in (target, source, *self.ports):
            if port in self.primaries():
                self[port].execute_command("CLUSTER SETSLOT", slot, "NODE", self._identity(target))

    def _identity(self, port: int) -> str:
        return str(self[port].execute_command("CLUSTER MYID"))


@contextmanager
def running_cluster(folder: Path, host: str = "127.0.0.1", *, keeps_rows: bool = False) -> Iterator[RedisCluster]:
    with reserved_ports(PRIMARIES + REPLICAS, also=10_000, host=host) as ports:  # there the nodes talk to each other
        cluster = RedisCluster(folder, ports, host, keeps_rows=keeps_rows)
        try:
            cluster.form()
            yield cluster
        finally:
            cluster.stop()


def _succeeds(action: Callable[[], Any]) -> bool:
    try:
        action()
    except redis.RedisError:
        return False
    return True
