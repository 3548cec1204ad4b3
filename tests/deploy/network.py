"""Where pods have addresses: in network namespaces as in a cluster, or, for those who are not root, on the loopback.

Both give each pod an address of its own, so that every pod has the manifest's own ports, and names that lead to pods.
Only namespaces can keep pods apart: NetworkPolicies are in force there, where there is an nft.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from tests.deploy.kustomize import Manifest
from tests.deploy.names import Names

DOMAIN = "triglot.svc.cluster.local"
Labels = Mapping[str, str]
# Labels of the namespace that the pods of the manifests are in: no policy asks for any.
OURS: Labels = MappingProxyType({})


@dataclass(frozen=True)
class Place:
    """Where a pod is: its address, what comes before its command, and what it must be told."""

    address: str
    prefix: Sequence[str] = ()
    environment: Labels = field(default_factory=dict)


class Network(Protocol):
    """Places for pods, and their names. `close` it after all that runs in it has ended."""

    # Of this process: pods reach what listens on it, and it reaches all pods.
    host: str
    names: Names

    def place(self, labels: Labels, namespace: Labels = OURS) -> Place:
        """A new place, for a pod with these labels, in a namespace with those."""

    def leave(self, place: Place) -> None:
        """Nothing runs there any more."""

    def inside(self, target: str) -> str:
        """What the manifest calls a target, for a pod."""

    def close(self) -> None: ...


class Loopback:
    """Addresses of 127.0.0.0/8. Nothing keeps pods apart."""

    def __init__(self) -> None:
        self._prefix = f"127.{random.randint(16, 250)}.{random.randint(0, 255)}"
        self._last = 9
        self.host = "127.0.0.1"
        self.names = Names(f"{self._prefix}.1")

    def place(self, labels: Labels, namespace: Labels = OURS) -> Place:
        self._last += 1
        address = f"{self._prefix}.{self._last}"
        return Place(address, environment={"TRIGLOT_HOST": address})

    def leave(self, place: Place) -> None:
        """It is the pod's no more."""

    def inside(self, target: str) -> str:
        """There is one resolv.conf for all that run here, so our DNS server is named in the target."""
        name, _, port = target.removeprefix("dns:///").partition(":")
        return self.names.target(name, int(port))

    def close(self) -> None:
        self.names.close()


class Namespaces:
    """A network namespace for each pod, joined by a bridge that this process is on as well, as a node is.

    The policies are those of the rendered objects.
    """

    def __init__(self, objects: Iterable[Manifest]) -> None:
        self._name = f"tg{random.randrange(16**4):04x}"
        self._network = f"10.{random.randint(64, 250)}.{random.randint(0, 255)}"
        self._policies = [each["spec"] for each in objects if each["kind"] == "NetworkPolicy"]
        self._pods: dict[str, tuple[Place, Labels, Labels]] = {}
        self._last = 9
        self.host = f"{self._network}.1"
        _ip("link", "add", self._name, "type", "bridge")
        try:
            _ip("address", "add", f"{self.host}/24", "dev", self._name)
            _ip("link", "set", self._name, "up")
            self.names = Names(self.host, 53)
        except BaseException:
            _ip("link", "delete", self._name)
            raise

    @staticmethod
    def missing() -> str:
        """Why there can be none here; empty if there can."""
        if os.geteuid() != 0:
            return "network namespaces are root's"
        if shutil.which("ip") is None:
            return "there is no ip (iproute2)"
        probe = f"tgprobe{random.randrange(16**4):04x}"
        made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
        if made.returncode:
            return made.stderr.strip()
        joined = ["ip", "link", "add", probe[2:], "type", "veth", "peer", "name", "eth0", "netns", probe]
        tried = subprocess.run(joined, capture_output=True, text=True, check=False)
        _ip("netns", "delete", probe)
        return tried.stderr.strip()

    @property
    def enforces(self) -> bool:
        """Whether policies are in force."""
        return shutil.which("nft") is not None

    def place(self, labels: Labels, namespace: Labels = OURS) -> Place:
        self._last += 1
        name, address = f"{self._name}-{self._last}", f"{self._network}.{self._last}"
        etc = Path("/etc/netns") / name
        etc.mkdir(parents=True)
        (etc / "resolv.conf").write_text(f"nameserver {self.host}\nsearch {DOMAIN}\noptions ndots:5\n")
        _ip("netns", "add", name)
        outer = f"{self._name}v{self._last}"
        _ip("link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("link", "set", outer, "master", self._name, "up")
        _ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", name, "link", "set", device, "up")
        place = Place(address, ("ip", "netns", "exec", name))
        self._pods[name] = place, labels, namespace
        self._enforce()
        return place

    def leave(self, place: Place) -> None:
        name = place.prefix[-1]
        del self._pods[name]
        self._remove(name)
        self._enforce()

    def _remove(self, name: str) -> None:
        # Its end of the pair goes with it, and so does ours.
        _ip("netns", "delete", name)
        shutil.rmtree(Path("/etc/netns") / name)

    def inside(self, target: str) -> str:
        return target

    def close(self) -> None:
        self.names.close()
        for name in self._pods:
            self._remove(name)
        with suppress(OSError):  # somebody else's are in it
            Path("/etc/netns").rmdir()
        _ip("link", "delete", self._name)

    # Policies

    def _enforce(self) -> None:
        """What a network plugin does whenever pods come and go: a filter for each pod, with the addresses of others."""
        if not self.enforces:
            return
        for name, (_, labels, namespace) in self._pods.items():
            if namespace:
                continue  # they are not ours to keep apart
            mine = [each for each in self._policies if _selects(each["podSelector"], labels)]
            rules = [line for way in (_OUT, _IN) for line in self._chain(mine, way)]
            subprocess.run(
                ["ip", "netns", "exec", name, "nft", "-f", "-"],
                input="\n".join(["add table ip pods", "flush table ip pods", *rules, ""]),
                text=True,
                check=True,
            )

    def _chain(self, policies: Sequence[Mapping[str, Any]], way: _Way) -> Iterator[str]:
        hook, device, direction, peers, end = way
        mine = [each for each in policies if direction in each["policyTypes"]]
        if not mine:
            return
        yield f"add chain ip pods {hook} {{ type filter hook {hook} priority 0; policy drop; }}"
        allowed = ["ct state established,related", f"{device} lo"]
        if hook == "input":
            allowed.append(f"ip saddr {self.host}")  # the kubelet is always let in
        for rule in (rule for each in mine for rule in each.get(direction.lower(), ())):
            who = self._who(rule.get(peers), end)
            if who is not None:
                allowed += [f"{who} {_ports(port)}" for port in rule["ports"]]
        for each in allowed:
            yield f"add rule ip pods {hook} {each} accept"

    def _who(self, peers: Sequence[Mapping[str, Any]] | None, end: str) -> str | None:
        """A match of the addresses that peers stand for; None if there is none."""
        if peers is None:
            return ""
        found = {address for peer in peers for address in self._addresses(peer)}
        return f"ip {end} {{ {', '.join(sorted(found))} }}" if found else None

    def _addresses(self, peer: Mapping[str, Any]) -> Iterable[str]:
        if peer.get("namespaceSelector", {}).get("matchLabels") == {"kubernetes.io/metadata.name": "kube-system"}:
            return [self.host]  # where names are
        return [
            place.address
            for place, labels, namespace in self._pods.values()
            # A selector of pods alone means those of the same namespace.
            if (
                _selects(peer["namespaceSelector"], namespace)
                if "namespaceSelector" in peer
                else not namespace and _selects(peer["podSelector"], labels)
            )
        ]


class _Way(NamedTuple):
    """A direction, in the words of nft and of Kubernetes."""

    hook: str
    device: str
    direction: str
    peers: str
    end: str


_OUT = _Way("output", "oif", "Egress", "to", "daddr")
_IN = _Way("input", "iif", "Ingress", "from", "saddr")


def _selects(selector: Mapping[str, Any], labels: Labels) -> bool:
    return all(labels.get(name) == value for name, value in selector.get("matchLabels", {}).items()) and all(
        labels.get(each["key"]) in each["values"] for each in selector.get("matchExpressions", ())
    )


def _ports(port: Mapping[str, Any]) -> str:
    last = f"-{port['endPort']}" if "endPort" in port else ""
    return f"{port['protocol'].lower()} dport {port['port']}{last}"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
