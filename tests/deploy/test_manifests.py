"""What is in deploy/k8s fits Kubernetes, fits together, and fits the settings and commands of Triglot."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import Any

import grpc
import kubernetes_validate
import prometheus_client
import pytest
import typer
import yaml

from chassis import server, telemetry
from chassis.settings import Settings
from gateway.settings import GatewaySettings
from tests.cases.world import STUBS
from tests.certificates import Authority
from tests.deploy.kustomize import Manifest, containers, find, mounted, pod, render
from triglot.cli import app
from triglot.reference import MODELS

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
OVERLAYS = ("dev", "prod", "prod-colocated", "prod-gateway-api", "prod-mtls")
ROLES = {"registry", "serving", "management", "worker", "gateway"}
# The oldest that knows all of it, and the newest that there are schemas of.
KUBERNETES = ("1.30", "1.37")
COMPONENT, PART = "app.kubernetes.io/component", "app.kubernetes.io/part-of"
# What Kubernetes itself has no schema for: the fields that ours may have.
CUSTOM: dict[str, dict[str, set[str]]] = {
    "ServiceMonitor": {"spec": {"selector", "endpoints"}},
    "PrometheusRule": {"spec": {"groups"}},
    "Gateway": {"spec": {"gatewayClassName", "listeners"}},
    "HTTPRoute": {"spec": {"parentRefs", "hostnames", "rules"}},
    "GRPCRoute": {"spec": {"parentRefs", "hostnames", "rules"}},
    "Issuer": {"spec": {"selfSigned", "ca"}},
    "Certificate": {
        "spec": {"secretName", "dnsNames", "usages", "duration", "privateKey", "issuerRef", "isCA", "commonName"}
    },
}
KNOWN = {model.variable(field) for _, model in MODELS for field in model.model_fields}
CLOSING_SECONDS = 5  # of the pool of PostgreSQL's connections


@pytest.fixture(params=OVERLAYS, scope="module")
def overlay(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def objects(overlay: str) -> list[Manifest]:
    return render(DEPLOY / "k8s/overlays" / overlay)


def of_kind(objects: list[Manifest], kind: str) -> Iterator[Manifest]:
    return (each for each in objects if each["kind"] == kind)


def ours(objects: list[Manifest]) -> Iterator[tuple[str, Manifest, dict[str, Any]]]:
    """Component, object and container of everything that runs our image."""
    for each in objects:
        for container in containers(each):
            if container["image"].startswith("triglot:"):
                yield each["metadata"]["labels"][COMPONENT], each, container


def variables(objects: list[Manifest], container: dict[str, Any]) -> dict[str, str | None]:
    """The environment of a container; None: from a Secret."""
    found: dict[str, str | None] = {}
    for source in container.get("envFrom", ()):
        found |= find(objects, "ConfigMap", source["configMapRef"]["name"])["data"]
    for variable in container.get("env", ()):
        found[variable["name"]] = variable.get("value")
    return found


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="there is no kubectl")
def test_kubectl_renders_the_same(overlay: str, objects: list[Manifest]) -> None:
    command = ["kubectl", "kustomize", str(DEPLOY / "k8s/overlays" / overlay)]
    rendered = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    theirs = {(each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(rendered)}
    assert {(each["kind"], each["metadata"]["name"]): each for each in objects} == theirs


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_knows_every_field(version: str) -> None:
    rendered = [each for overlay in OVERLAYS for each in render(DEPLOY / "k8s/overlays" / overlay)]
    for each in {json.dumps(each, sort_keys=True): each for each in rendered}.values():
        if each["kind"] in CUSTOM:
            for part, fields in CUSTOM[each["kind"]].items():
                known = each[part].keys()
                assert known <= fields if each["kind"] in {"Certificate", "Issuer"} else known == fields, each
        else:
            kubernetes_validate.validate(each, version, strict=True)


def test_every_variable_is_a_setting_with_a_good_value(
    objects: list[Manifest], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Authority().issue(tmp_path / "tls", ["any"], server=True, client=True)
    for component, each, container in ours(objects):
        given = variables(objects, container)
        assert given.keys() <= KNOWN, component
        for name, value in given.items():
            if value is not None:
                file = next((path for path in mounted(each, container) if value.startswith(path)), "")
                monkeypatch.setenv(name, str(tmp_path / "tls") + value.removeprefix(file) if file else value)
    for _, model in MODELS:
        model()


def test_everything_is_in_one_namespace(objects: list[Manifest]) -> None:
    for each in objects:
        if each["kind"] != "Namespace":
            assert each["metadata"]["namespace"] == "triglot", each["metadata"]["name"]


def test_every_command_is_one(objects: list[Manifest]) -> None:
    commands = set()
    for component, each, container in ours(objects):
        parse(container["args"])
        if each["kind"] == "Deployment" and container["name"] == component:
            assert container["args"][:2] == ["serve", component]
            commands.add(component)
    assert commands == ROLES


def parse(arguments: list[str]) -> None:
    """What the command line makes of a command. An error if it knows it not."""
    context: Any = None
    command: Any = typer.main.get_command(app)
    name = "triglot"
    while hasattr(command, "resolve_command"):
        context = command.make_context(name, list(arguments), parent=context)
        name, command, arguments = command.resolve_command(context, [*context._protected_args, *context.args])
    command.make_context(name, arguments, parent=context)


def opened(objects: list[Manifest], component: str, container: dict[str, Any]) -> set[int]:
    """The ports that a role opens, by its settings."""
    settings, gateway = Settings(), GatewaySettings()
    ports = {settings.metrics_port}
    if component == "gateway":
        ports |= set(gateway.ports)
    elif component != "worker":
        ports.add(getattr(settings, f"{component}_port"))
    if "--rest-api" in container["args"]:
        ports.add(4406)
    return ports


def test_ports_and_probes_are_those_of_the_command(objects: list[Manifest]) -> None:
    for component, each, container in ours(objects):
        if each["kind"] != "Deployment" or container["name"] != component:
            continue
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert set(ports.values()) == opened(objects, component, container)
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            probe = container[kind]
            if "grpc" in probe:
                assert "TRIGLOT_TLS_CERTIFICATE" not in variables(objects, container), "the kubelet speaks no TLS"
                assert probe["grpc"]["port"] == ports["grpc"]
                service = probe["grpc"]["service"]
                # Only readiness looks at what else is there.
                assert (STUBS[service][1] == component) if kind == "readinessProbe" else (service == "")
            else:
                path, port = probe["httpGet"]["path"], probe["httpGet"]["port"]
                assert port in ports
                assert (path == "/readyz") is (kind == "readinessProbe")
                assert path in {"/livez", "/readyz", "/0.1.0/ping"}


def test_services_lead_to_pods(objects: list[Manifest]) -> None:
    for service in of_kind(objects, "Service"):
        found = list(selected(objects, service["spec"]["selector"]))
        assert found, service["metadata"]["name"]
        for port in service["spec"]["ports"]:
            for target in found:
                names = {each["name"] for container in containers(target) for each in container.get("ports", ())}
                assert port["targetPort"] in names or target["kind"] == "Job"
    for component in ("registry", "serving", "management"):
        service = find(objects, "Service", component)
        assert service["spec"]["clusterIP"] == "None", "a gRPC client must see each pod"
        target = next(
            variables(objects, container)[f"TRIGLOT_{component.upper()}_TARGET"]
            for role, _, container in ours(objects)
            if role == "gateway"
        )
        assert target == f"dns:///{component}:{service['spec']['ports'][0]['port']}"


def selected(objects: list[Manifest], labels: dict[str, str]) -> Iterator[Manifest]:
    for each in objects:
        if pod(each) is not None and labels.items() <= each["spec"]["template"]["metadata"]["labels"].items():
            yield each


def test_routes_lead_to_services(overlay: str, objects: list[Manifest]) -> None:
    backends: set[str] = set()
    for ingress in of_kind(objects, "Ingress"):
        for rule in ingress["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                service = path["backend"]["service"]
                ports = find(objects, "Service", service["name"])["spec"]["ports"]
                assert service["port"]["name"] in {port["name"] for port in ports}
                backends.add(service["name"])
    for route in (*of_kind(objects, "HTTPRoute"), *of_kind(objects, "GRPCRoute")):
        gateway = find(objects, "Gateway", route["spec"]["parentRefs"][0]["name"])
        listeners = {each["name"]: each["hostname"] for each in gateway["spec"]["listeners"]}
        assert [listeners[route["spec"]["parentRefs"][0]["sectionName"]]] == route["spec"]["hostnames"]
        for rule in route["spec"]["rules"]:
            for backend in rule["backendRefs"]:
                ports = find(objects, "Service", backend["name"])["spec"]["ports"]
                assert backend["port"] in {port["port"] for port in ports}
                backends.add(backend["name"])
            for match in rule.get("matches", ()):
                if "method" in match and match["method"]["service"] in STUBS:
                    assert STUBS[match["method"]["service"]][1] == rule["backendRefs"][0]["name"]
    expected: dict[str, set[str]] = {"dev": set(), "prod-mtls": {"gateway"}}
    assert backends == expected.get(overlay, {"gateway", "registry", "serving", "management"})


def test_secrets_and_configuration_exist(overlay: str, objects: list[Manifest]) -> None:
    secrets = list(of_kind(objects, "Secret"))
    assert bool(secrets) is (overlay == "dev"), "only a cluster of one's own has its secrets in the repository"
    example = yaml.safe_load((DEPLOY / "k8s/overlays/prod/secret.example.yaml").read_text())
    known = {each["metadata"]["name"]: each["stringData"].keys() for each in secrets or [example]}
    issued = {each["spec"]["secretName"] for each in of_kind(objects, "Certificate")}
    for each in objects:
        for container in containers(each):
            assert set(mounted(each, container).values()) <= issued
            for variable in container.get("env", ()):
                if "valueFrom" in variable:
                    reference = variable["valueFrom"]["secretKeyRef"]
                    assert reference.get("optional") or reference["key"] in known[reference["name"]]
    for config in of_kind(objects, "ConfigMap"):
        assert not re.search(r"_URL|SECRET|API_KEY|PASSWORD", " ".join(config["data"])), "secrets belong in Secrets"
    for secret in secrets:
        assert len(base64.b64decode(secret["stringData"]["secret-key"])) == 32


def test_who_knows_which_secret(objects: list[Manifest]) -> None:
    found: dict[str, set[str]] = {}
    for component, _, container in ours(objects):
        secrets = {name for name, value in variables(objects, container).items() if value is None}
        found[component] = found.get(component, set()) | {name.removeprefix("TRIGLOT_") for name in secrets}
    postgres = {"POSTGRES_URL", "POSTGRES_DIRECT_URL"}
    assert found == {
        "gateway": set(),
        "migrate": postgres,
        "registry": postgres | {"SECRET_KEY"},
        "serving": postgres | {"SECRET_KEY", "REDIS_URL"},
        "management": postgres | {"SECRET_KEY", "SERVICE_API_KEY"},
        "worker": postgres | {"SECRET_KEY", "SERVICE_API_KEY"},
    }


def test_pods_may_do_little(objects: list[Manifest]) -> None:
    for _, each, container in ours(objects):
        spec = pod(each)
        assert spec is not None
        assert spec["automountServiceAccountToken"] is False
        account = find(objects, "ServiceAccount", spec["serviceAccountName"])
        assert account["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_what_is_asked_for_is_within_the_limits(objects: list[Manifest]) -> None:
    for each in objects:
        for container in containers(each):
            requests, limits = container["resources"]["requests"], container["resources"]["limits"]
            assert {"cpu", "memory"} <= requests.keys()
            assert "memory" in limits
            for name, limit in limits.items():
                assert _quantity(requests[name]) <= _quantity(limit)


def _quantity(text: str) -> Decimal:
    units = {"m": Decimal("0.001"), "Mi": Decimal(2**20), "Gi": Decimal(2**30), "": Decimal(1)}
    number, unit = re.fullmatch(r"([0-9.]+)(\w*)", text).groups()  # type: ignore[union-attr]
    return Decimal(number) * units[unit]


def test_there_is_time_to_finish(objects: list[Manifest]) -> None:
    for component, each, container in ours(objects):
        if each["kind"] == "Deployment" and container["name"] == component:
            spec = pod(each)
            assert spec is not None
            needed = (
                container["lifecycle"]["preStop"]["sleep"]["seconds"]
                + float(variables(objects, container)["TRIGLOT_DRAIN_SECONDS"] or 0)
                + server.STOP_SECONDS
                + CLOSING_SECONDS
            )
            assert spec["terminationGracePeriodSeconds"] > needed


def test_scaling_and_disruption_have_targets(objects: list[Manifest]) -> None:
    for kind in ("HorizontalPodAutoscaler", "PodDisruptionBudget"):
        assert {each["metadata"]["name"] for each in of_kind(objects, kind)} == ROLES
    for scaler in of_kind(objects, "HorizontalPodAutoscaler"):
        target = find(objects, "Deployment", scaler["spec"]["scaleTargetRef"]["name"])
        assert "replicas" not in target["spec"], "two would decide how many there are"
        [metric] = scaler["spec"]["metrics"]
        assert metric["containerResource"]["container"] in {each["name"] for each in containers(target)}
    for budget in of_kind(objects, "PodDisruptionBudget"):
        [deployment] = selected(objects, budget["spec"]["selector"]["matchLabels"])
        assert deployment["metadata"]["name"] == budget["metadata"]["name"]
    for deployment in of_kind(objects, "Deployment"):
        labels = deployment["spec"]["selector"]["matchLabels"]
        assert list(selected(objects, labels)) == [deployment]
        assert [each["labelSelector"]["matchLabels"] for each in pod(deployment)["topologySpreadConstraints"]] == [  # type: ignore[index]
            labels,
            labels,
        ]


def test_new_pods_wait_for_the_migrations(objects: list[Manifest]) -> None:
    assert [each["args"] for each in containers(find(objects, "Job", "migrate"))] == [["migrate"]]
    for role in ROLES - {"gateway"}:
        first = next(containers(find(objects, "Deployment", role)))
        assert first["args"] == ["migrate", "--wait"]


def test_only_the_arrows_of_the_design_are_allowed(overlay: str, objects: list[Manifest]) -> None:
    everything = find(objects, "NetworkPolicy", "deny-by-default")["spec"]
    assert everything == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    out, into = set(_egress(objects)), set(_ingress(objects))
    services = {("gateway", "registry", 6570), ("gateway", "serving", 6571), ("gateway", "management", 6573)}
    services |= {("management", "serving", 6571), ("worker", "serving", 6571)}
    stores = {(role, "*", 5432) for role in (*(ROLES - {"gateway"}), "migrate")} | {("serving", "*", 6379)}
    names = {(role, "kube-system", 53) for role in (*ROLES, "migrate")}
    assert out == services | stores | names
    clients = {("clients", "gateway", port) for port in (8080, 6572, 4406)}
    clients |= {("clients", "registry", 6570), ("clients", "serving", 6571), ("clients", "management", 6573)}
    clients |= {("clients", "serving", 4406)} if overlay == "prod-colocated" else set()
    monitoring = {("monitoring", role, 6574) for role in (*ROLES, "migrate")}
    assert {edge for edge in into if edge[1] not in {"postgres", "redis"}} == services | clients | monitoring


def _egress(objects: list[Manifest]) -> Iterator[tuple[str, str, int]]:
    for policy in of_kind(objects, "NetworkPolicy"):
        for source in _components(objects, policy["spec"]["podSelector"]):
            for rule in policy["spec"].get("egress", ()):
                for port in rule["ports"]:
                    for peer in rule.get("to", [{}]):
                        for other in _peers(objects, peer):
                            yield source, other, port["port"]


def _ingress(objects: list[Manifest]) -> Iterator[tuple[str, str, int]]:
    for policy in of_kind(objects, "NetworkPolicy"):
        for target in _components(objects, policy["spec"]["podSelector"]):
            for rule in policy["spec"].get("ingress", ()):
                for port in rule["ports"]:
                    for peer in rule["from"]:
                        for other in _peers(objects, peer):
                            yield other, target, port["port"]


def _peers(objects: list[Manifest], peer: dict[str, Any]) -> set[str]:
    if not peer:
        return {"*"}
    if "podSelector" in peer:
        return _components(objects, peer["podSelector"])
    [(label, value)] = peer["namespaceSelector"]["matchLabels"].items()
    return {value if label == "kubernetes.io/metadata.name" else label.removeprefix("access.triglot/")}


def _components(objects: list[Manifest], selector: dict[str, Any]) -> set[str]:
    """Components of the pods that a selector matches. An AssertionError if it names one that is not there."""
    labels = [each["spec"]["template"]["metadata"]["labels"] for each in objects if pod(each) is not None]
    for name, value in selector.get("matchLabels", {}).items():
        labels = [each for each in labels if each.get(name) == value]
    for expression in selector.get("matchExpressions", ()):
        assert expression["operator"] == "In"
        assert set(expression["values"]) <= {each.get(expression["key"]) for each in labels}
        labels = [each for each in labels if each.get(expression["key"]) in expression["values"]]
    assert labels, selector
    return {each[COMPONENT] for each in labels}


def test_production_shows_nothing_without_a_key(overlay: str, objects: list[Manifest]) -> None:
    settings = next(variables(objects, container) for role, _, container in ours(objects) if role == "gateway")
    assert settings["TRIGLOT_LOG_FORMAT"] == "json"
    if overlay != "dev":
        assert settings["TRIGLOT_REFLECTION"] == settings["TRIGLOT_GATEWAY_FEAST_PAGES"] == "false"
        assert settings["TRIGLOT_REDIS_CLUSTER"] == "true"


def _rpcs() -> Iterator[str]:
    for name, (module, _) in STUBS.items():
        for method in import_module(module).DESCRIPTOR.services_by_name[name.rpartition(".")[2]].methods:
            yield f"/{name}/{method.name}"


def test_alerts_and_dashboard_ask_for_metrics_that_exist() -> None:
    import_module("services.management.usage")
    telemetry.rpc_seconds.series("x", "OK")
    telemetry.http_seconds.series("x", "y", "200")
    exported: dict[str, set[str]] = {"up": {"job", "instance"}}
    for metric in prometheus_client.REGISTRY.collect():
        for sample in metric.samples:
            exported.setdefault(sample.name, set()).update(sample.labels)
        exported.setdefault(metric.name + ("_total" if metric.type == "counter" else ""), set())
    folder = DEPLOY / "k8s/components/monitoring"
    rules = yaml.safe_load((folder / "alerts.yaml").read_text())
    expressions = [rule["expr"] for group in rules["spec"]["groups"] for rule in group["rules"]]
    dashboard = json.loads((folder / "dashboard.json").read_text())
    expressions += [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    named = {name for each in expressions for name in re.findall(r"\b(?:triglot|process)_\w+|\bup\b", each)}
    assert len(expressions) > 15
    assert {"triglot_rpc_seconds_bucket", "triglot_dependency_up", "triglot_usage_lost_calls_total"} <= named
    assert named <= exported.keys()
    values = {"rpc": set(_rpcs()), "code": {code.name for code in grpc.StatusCode}, "job": ROLES}
    for label, pattern in re.findall(r'(rpc|code|job)=~?"(.+?)"', " ".join(expressions)):
        for part in [pattern] if "(" in pattern else pattern.split("|"):
            assert any(re.fullmatch(part, value) for value in values[label]), part
    for rule in (rule for group in rules["spec"]["groups"] for rule in group["rules"]):
        assert {"summary", "action"} <= rule["annotations"].keys()


def test_certificates_have_the_names_by_which_services_are_called() -> None:
    objects = render(DEPLOY / "k8s/overlays/prod-mtls")
    for service in ("registry", "serving", "management"):
        names = set(find(objects, "Certificate", service)["spec"]["dnsNames"])
        assert {service, *(f"{service}.triglot{domain}" for domain in ("", ".svc", ".svc.cluster.local"))} <= names
        [port] = find(objects, "Service", service)["spec"]["ports"]
        assert port["appProtocol"] == "https"
