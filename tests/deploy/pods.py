"""Runs the containers of rendered manifests as processes here: their commands, environments, ports and probes.

What stands in for a cluster is all here, and in network.py. The image's entrypoint is the command of this environment.
A kubelet asks each pod's own probes, tells names who is ready, and starts again what has ended. The Secret is the
caller's.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.certificates import Authority
from tests.deploy.kustomize import Manifest, containers, find, mounted, pod
from tests.deploy.network import Network, Place
from tests.patience import PATIENCE_SECONDS, eventually

DOCKERFILE = Path(__file__).resolve().parents[2] / "deploy/Dockerfile"
_TARGET = re.compile(r"^dns:///[a-z]+:\d+$")
# A laptop under test is no node.
_SLOWER = 2
# A pod that starts is asked more often than the manifest says: nobody wants to wait.
_STARTUP_SECONDS = 0.25
_KUBELET_SECONDS = 0.1
_BACKOFF_SECONDS = 1.0
_METRICS_PORT = 6574


class _Asking:
    """A probe of one container: when to ask again, and how often in a row it failed."""

    def __init__(self, spec: Mapping[str, Any], every_seconds: float) -> None:
        self.spec = spec
        self._every_seconds = every_seconds
        self._failures = 0
        self._due = 0.0

    def answer(self, succeeds: Callable[[Mapping[str, Any]], bool]) -> bool | None:
        """True if it succeeds, False if it failed too often; None if it is not time to ask, or not yet too often."""
        if time.monotonic() < self._due:
            return None
        good = succeeds(self.spec)
        self._due = time.monotonic() + self._every_seconds
        self._failures = 0 if good else self._failures + 1
        return good or (None if self._failures < self.spec.get("failureThreshold", 3) else False)


class Pod:
    """A pod of a Deployment, from its first start to its removal."""

    def __init__(self, name: str, deployment: str, container: Mapping[str, Any], place: Place, start: Any) -> None:
        self.name = name
        self.deployment = deployment
        self.container = container
        self.place = place
        self.restarts = -1
        # Not among the addresses of its Service any more, because it was told to go.
        self.leaving = False
        self._start: Callable[[], subprocess.Popen[bytes]] = start
        self._ended_at = 0.0
        self.begin()

    def begin(self) -> None:
        self.process = self._start()
        self.restarts += 1
        self.started = self.ready = False
        self._startup = _Asking(self.container["startupProbe"], _STARTUP_SECONDS)
        self._readiness, self._liveness = (
            _Asking(self.container[probe], self.container[probe]["periodSeconds"])
            for probe in ("readinessProbe", "livenessProbe")
        )

    def look(self) -> None:
        """What a kubelet does from time to time."""
        if self.leaving:
            return
        if self.process.poll() is not None:
            self.ready = False
            if time.monotonic() - self._ended_at > _BACKOFF_SECONDS:
                self._ended_at = time.monotonic()
                self.begin()
        elif not self.started:
            self.started = self._startup.answer(self._succeeds) is True
        else:
            ready = self._readiness.answer(self._succeeds)
            self.ready = self.ready if ready is None else ready
            if self._liveness.answer(self._succeeds) is False:
                self.process.kill()

    def _succeeds(self, probe: Mapping[str, Any]) -> bool:
        timeout = probe.get("timeoutSeconds", 1) * _SLOWER
        if "grpc" in probe:
            with grpc.insecure_channel(f"{self.place.address}:{probe['grpc']['port']}") as channel:
                try:
                    asked = health_pb2.HealthCheckRequest(service=probe["grpc"]["service"])
                    status = health_pb2_grpc.HealthStub(channel).Check(asked, timeout=timeout).status
                except grpc.RpcError:
                    return False
                return bool(status == health_pb2.HealthCheckResponse.SERVING)
        ports = {each["name"]: each["containerPort"] for each in self.container["ports"]}
        url = f"http://{self.place.address}:{ports[probe['httpGet']['port']]}{probe['httpGet']['path']}"
        try:
            return 200 <= httpx2.get(url, timeout=timeout).status_code < 400
        except httpx2.TransportError:
            return False

    def dependencies(self) -> dict[str, bool]:
        """What it says of each that it needs."""
        found: dict[str, bool] = httpx2.get(f"http://{self.place.address}:{_METRICS_PORT}/readyz").json()[
            "dependencies"
        ]
        return found


class Pods:
    """All that runs of some rendered objects. `kill` what was started.

    `source`: the top of another checkout, whose code runs in place of ours; what starts after it was changed is of the
    new one.
    """

    def __init__(
        self,
        objects: list[Manifest],
        secret: dict[str, str],
        folder: Path,
        network: Network,
        source: Path | None = None,
    ) -> None:
        self.objects = objects
        self.secret = secret
        self.network = network
        self.source = source
        # Of what starts from now on, beside what the manifest gives.
        self.environment: Mapping[str, str] = {}
        self._folder = folder
        # Files of Secrets, as cert-manager makes them.
        self.files = folder / "secrets"
        _issue(objects, self.files)
        self._pods: list[Pod] = []
        self._others: list[subprocess.Popen[bytes]] = []
        self._numbers: dict[str, int] = {}
        self._stopped = threading.Event()
        self._kubelet = threading.Thread(target=self._look, daemon=True)
        self._kubelet.start()

    # What runs once

    def start(self, kind: str, name: str, container: str) -> subprocess.Popen[bytes]:
        """Start a container that comes to an end. Its output goes to a file of the container's name."""
        whole = find(self.objects, kind, name)
        found = next(each for each in containers(whole) if each["name"] == container)
        started = self._spawn(found, self.network.place(_labels(whole)), f"{name}-{container}", _path(self.source))
        self._others.append(started)
        return started

    def create_key(self, *arguments: str) -> str:
        """Make an API key, with what the Job knows."""
        job = next(containers(find(self.objects, "Job", "migrate")))
        command = [*_entrypoint(), "keys", "create", *arguments]
        environment = {"PATH": os.environ["PATH"], **dict(_path(self.source))} | self._environment(job)
        made = subprocess.run(command, cwd=self._folder, env=environment, check=True, capture_output=True, text=True)
        return made.stdout.strip()

    # Deployments

    def deploy(self, name: str, replicas: int = 1) -> None:
        """Begin to run so many pods more of a Deployment."""
        for _ in range(replicas):
            self._add(name)

    def of(self, name: str) -> list[Pod]:
        """A Deployment's pods, the oldest first."""
        return [each for each in self._pods if each.deployment == name and not each.leaving]

    def ready(self, *names: str) -> None:
        """Wait until all pods of these Deployments are ready."""
        for name in names:
            for each in self.of(name):
                assert eventually(lambda: each.ready), f"{each.name} does not become ready: {self.log(each.name)}"  # noqa: B023
        self._tell()

    def roll(self, name: str) -> None:
        """A rolling update, as the manifests have it: one more, and when it is ready one of the old ones goes."""
        for old in self.of(name):
            self._add(name)
            self.ready(name)
            assert self.remove(old) == 0, self.log(old.name)

    def remove(self, pod: Pod) -> int:
        """Take its address away, wait as preStop says, then SIGTERM. How it ended."""
        pod.leaving = True
        self._tell()
        time.sleep(pod.container["lifecycle"]["preStop"]["sleep"]["seconds"])
        pod.process.terminate()
        status = pod.process.wait(self._grace_seconds(pod))
        self._pods.remove(pod)
        self.network.leave(pod.place)
        return status

    def _grace_seconds(self, pod_: Pod) -> float:
        spec = pod(find(self.objects, "Deployment", pod_.deployment))
        assert spec is not None
        return float(spec["terminationGracePeriodSeconds"])

    def _add(self, name: str) -> None:
        deployment = find(self.objects, "Deployment", name)
        container = next(each for each in containers(deployment) if each["name"] == name)
        self._numbers[name] = number = self._numbers.get(name, 0) + 1
        place = self.network.place(_labels(deployment))
        source = self.source
        self._pods.append(
            Pod(
                f"{name}-{number}",
                name,
                container,
                place,
                lambda: self._spawn(container, place, f"{name}-{number}", _path(source)),
            )
        )

    def _spawn(
        self, container: Mapping[str, Any], place: Place, name: str, path: Sequence[tuple[str, str]]
    ) -> subprocess.Popen[bytes]:
        with self._log(name).open("ab") as log:
            return subprocess.Popen(
                [*place.prefix, *_entrypoint(), *container["args"]],
                cwd=self._folder,
                env={"PATH": os.environ["PATH"], **place.environment, **dict(path), **self.environment}
                | self._environment(container),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _environment(self, container: Mapping[str, Any]) -> dict[str, str]:
        given: dict[str, str] = {}
        for source in container.get("envFrom", ()):
            given |= find(self.objects, "ConfigMap", source["configMapRef"]["name"])["data"]
        for variable in container.get("env", ()):
            if "value" in variable:
                given[variable["name"]] = variable["value"]
                continue
            reference = variable["valueFrom"]["secretKeyRef"]
            if reference["key"] in self.secret or not reference.get("optional"):
                given[variable["name"]] = self.secret[reference["key"]]
        [owner] = [each for each in self.objects if any(one is container for one in containers(each))]
        for path, name in mounted(owner, container).items():
            given = {variable: value.replace(path, str(self.files / name)) for variable, value in given.items()}
        return {name: self.network.inside(value) if _TARGET.match(value) else value for name, value in given.items()}

    # The kubelet

    def _look(self) -> None:
        with ThreadPoolExecutor(16) as asking:
            while not self._stopped.wait(_KUBELET_SECONDS):
                list(asking.map(Pod.look, list(self._pods)))
                self._tell()

    def _tell(self) -> None:
        ready = [each for each in list(self._pods) if each.ready and not each.leaving]
        self.network.names.tell(
            {
                each["metadata"]["name"]: [
                    one.place.address
                    for one in ready
                    if one.deployment == each["spec"]["selector"].get("app.kubernetes.io/component")
                ]
                for each in self.objects
                if each["kind"] == "Service"
            }
        )

    # The end

    def terminate(self) -> dict[str, int]:
        """Send SIGTERM to all pods; how each ended."""
        self._rest()
        for each in self._pods:
            each.process.terminate()
        return {each.name: each.process.wait(PATIENCE_SECONDS) for each in self._pods}

    def kill(self) -> None:
        self._rest()
        for process in (*self._others, *(each.process for each in self._pods)):
            process.kill()
            process.wait()

    def _rest(self) -> None:
        self._stopped.set()
        self._kubelet.join()

    def log(self, name: str) -> str:
        return self._log(name).read_text()

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"


@contextmanager
def hung(pod: Pod) -> Iterator[None]:
    """While the block runs the pod's process takes connections and answers nothing."""
    pod.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        pod.process.send_signal(signal.SIGCONT)


def _issue(objects: list[Manifest], folder: Path) -> None:
    """The certificates that are asked for, all of one authority."""
    authority = Authority()
    for spec in (each["spec"] for each in objects if each["kind"] == "Certificate"):
        if not spec.get("isCA"):
            server, client = ("server auth" in spec["usages"], "client auth" in spec["usages"])
            authority.issue(folder / spec["secretName"], spec["dnsNames"], server=server, client=client)


def _labels(whole: Manifest) -> Mapping[str, str]:
    found: Mapping[str, str] = whole["spec"]["template"]["metadata"]["labels"]
    return found


def _path(source: Path | None) -> Sequence[tuple[str, str]]:
    return (("PYTHONPATH", str(source)),) if source else ()


def _entrypoint() -> list[str]:
    """That of the image, in this environment."""
    [line] = re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE.read_text(), re.MULTILINE)
    program, *arguments = json.loads(line)
    return [str(Path(sys.executable).with_name(program)), *arguments]
