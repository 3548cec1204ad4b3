"""Runs the containers of rendered manifests as processes here: their commands, environments, ports and probes.

What stands in for a cluster is all here. The image's entrypoint is the command of this environment. A pod has a
loopback address to itself, so that every pod has the manifest's own ports: it is given as TRIGLOT_HOST, and the name of
a Service resolves to it. The Secret is the caller's.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import httpx2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.deploy.kustomize import Manifest, containers, find
from tests.patience import PATIENCE_SECONDS, eventually

DOCKERFILE = Path(__file__).resolve().parents[2] / "deploy/Dockerfile"
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
_TARGET = re.compile(r"^dns:///([a-z]+):(\d+)$")


class Pods:
    """One pod of each Deployment. Stop what was started."""

    def __init__(self, objects: list[Manifest], secret: dict[str, str], folder: Path) -> None:
        self._objects = objects
        self.secret = secret
        self._folder = folder
        names = [each["metadata"]["name"] for each in objects if each["kind"] == "Deployment"]
        network = f"127.{random.randint(16, 250)}.{random.randint(0, 255)}"
        self.addresses = {name: f"{network}.{number + 10}" for number, name in enumerate(names)}
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, kind: str, name: str, container: str) -> subprocess.Popen[bytes]:
        """Start a container as the manifest says. Its output goes to a file of the container's name."""
        found = next(each for each in containers(find(self._objects, kind, name)) if each["name"] == container)
        with self._log(f"{name}-{container}").open("wb") as log:
            started = subprocess.Popen(
                [*_entrypoint(), *found["args"]],
                cwd=self._folder,
                env={"PATH": os.environ["PATH"], "TRIGLOT_HOST": self.addresses.get(name, "127.0.0.1")}
                | self._environment(found),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._running[f"{name}-{container}"] = started
        return started

    def create_key(self, *arguments: str) -> str:
        """Make an API key, with what the Job knows."""
        job = next(containers(find(self._objects, "Job", "migrate")))
        command = [*_entrypoint(), "keys", "create", *arguments]
        environment = {"PATH": os.environ["PATH"]} | self._environment(job)
        made = subprocess.run(command, cwd=self._folder, env=environment, check=True, capture_output=True, text=True)
        return made.stdout.strip()

    def _environment(self, container: Mapping[str, Any]) -> dict[str, str]:
        given: dict[str, str] = {}
        for source in container.get("envFrom", ()):
            given |= find(self._objects, "ConfigMap", source["configMapRef"]["name"])["data"]
        for variable in container.get("env", ()):
            if "value" in variable:
                given[variable["name"]] = variable["value"]
                continue
            reference = variable["valueFrom"]["secretKeyRef"]
            if reference["key"] in self.secret or not reference.get("optional"):
                given[variable["name"]] = self.secret[reference["key"]]
        return {name: _TARGET.sub(self._resolved, value) for name, value in given.items()}

    def _resolved(self, target: re.Match[str]) -> str:
        return f"dns:///{self.addresses[target[1]]}:{target[2]}"

    def well(self, name: str) -> bool:
        """Whether all probes of a Deployment's pod succeed, as the kubelet would ask. An AssertionError if it ended."""
        started = self._running[f"{name}-{name}"]
        assert started.poll() is None, f"{name}: {self.log(name)}"
        deployment = find(self._objects, "Deployment", name)
        [container] = [each for each in containers(deployment) if each["name"] == name]
        return all(self._succeeds(name, container, container[probe]) for probe in PROBES)

    def _succeeds(self, name: str, container: Mapping[str, Any], probe: Mapping[str, Any]) -> bool:
        timeout = probe.get("timeoutSeconds", 1) * 10  # a laptop under test is no node
        if "grpc" in probe:
            with grpc.insecure_channel(f"{self.addresses[name]}:{probe['grpc']['port']}") as channel:
                try:
                    asked = health_pb2.HealthCheckRequest(service=probe["grpc"]["service"])
                    status = health_pb2_grpc.HealthStub(channel).Check(asked, timeout=timeout).status
                except grpc.RpcError:
                    return False
                return bool(status == health_pb2.HealthCheckResponse.SERVING)
        ports = {each["name"]: each["containerPort"] for each in container["ports"]}
        url = f"http://{self.addresses[name]}:{ports[probe['httpGet']['port']]}{probe['httpGet']['path']}"
        try:
            return 200 <= httpx2.get(url, timeout=timeout).status_code < 400
        except httpx2.TransportError:
            return False

    def ready(self, name: str) -> None:
        """Wait until all probes succeed."""
        assert eventually(lambda: self.well(name)), f"{name} does not become ready: {self.log(name)}"

    def dependencies(self, name: str) -> dict[str, bool]:
        """What a Deployment's pod says of each that it needs."""
        found: dict[str, bool] = httpx2.get(f"http://{self.addresses[name]}:6574/readyz").json()["dependencies"]
        return found

    def terminate(self) -> dict[str, int]:
        """Send SIGTERM to all that run; how each ended."""
        running = {name: each for name, each in self._running.items() if each.poll() is None}
        for each in running.values():
            each.send_signal(signal.SIGTERM)
        return {name: each.wait(PATIENCE_SECONDS) for name, each in running.items()}

    def kill(self) -> None:
        for each in self._running.values():
            each.kill()
            each.wait()

    def log(self, name: str, container: str | None = None) -> str:
        return self._log(f"{name}-{container or name}").read_text()

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"


def _entrypoint() -> list[str]:
    """That of the image, in this environment."""
    [line] = re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE.read_text(), re.MULTILINE)
    program, *arguments = json.loads(line)
    return [str(Path(sys.executable).with_name(program)), *arguments]
