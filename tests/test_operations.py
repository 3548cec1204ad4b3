"""docs/operations.md says what to do about every alert, and names every metric."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import prometheus_client
import yaml

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/operations.md").read_text()
MODULES = (
    "chassis.bundles",
    "chassis.postgres",
    "chassis.readiness",
    "chassis.telemetry",
    "services.management.usage",
    "services.management.worker",
    "services.serving.rows",
    "services.serving.vectors",
)


def test_every_alert_has_a_place_in_the_runbook() -> None:
    rules = yaml.safe_load((ROOT / "deploy/k8s/components/monitoring/alerts.yaml").read_text())
    alerts = [rule["alert"] for group in rules["spec"]["groups"] for rule in group["rules"]]
    assert len(alerts) > 5
    assert re.findall(r"^### (Triglot\w+)$", PAGE, re.MULTILINE) == alerts


def test_every_metric_is_named() -> None:
    for module in MODULES:
        import_module(module)
    exported = {metric.name for metric in prometheus_client.REGISTRY.collect() if metric.name.startswith("triglot_")}
    assert "triglot_rpc_seconds" in exported
    assert set(re.findall(r"^\| `(triglot_\w+)` \|", PAGE, re.MULTILINE)) == exported


def test_every_setting_on_the_page_is_one() -> None:
    known = set(re.findall(r"`(TRIGLOT_\w+)`", (ROOT / "docs/configuration.md").read_text()))
    named = {name.partition("=")[0] for name in re.findall(r"\bTRIGLOT_\w+", PAGE)} - {"TRIGLOT_ADDRESS_"}
    assert named
    assert named <= known
