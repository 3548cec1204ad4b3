"""deploy/compose.yaml fits the settings and the commands of Triglot, and itself."""

from __future__ import annotations

import re

import pytest
import yaml

from chassis.settings import Settings
from gateway.settings import GatewaySettings
from tests.deploy.test_manifests import DEPLOY, KNOWN, ROLES, parse

SERVICES = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]


def test_every_role_is_there_and_its_command_is_one() -> None:
    ours = {name: each for name, each in SERVICES.items() if each["image"].startswith("triglot:")}
    assert ours.keys() == ROLES | {"migrate"}
    for name, each in ours.items():
        assert each["command"] == (["migrate"] if name == "migrate" else ["serve", name])
        parse(each["command"])
        assert each["read_only"] is True
        assert each["cap_drop"] == ["ALL"]


def test_every_variable_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ROLES:
        assert SERVICES[name]["environment"].keys() <= KNOWN
        for variable, value in SERVICES[name]["environment"].items():
            # What compose makes of `${NAME:-otherwise}` where NAME is not set.
            monkeypatch.setenv(variable, re.sub(r"\$\{\w+:-(.*)\}", r"\1", value))
    settings = Settings()
    for name, target in (("registry", settings.registry_target), ("serving", settings.serving_target)):
        assert target == f"dns:///{name}:{getattr(settings, f'{name}_port')}"


def test_what_is_waited_for_can_be() -> None:
    for each in SERVICES.values():
        for name, condition in each.get("depends_on", {}).items():
            if condition["condition"] == "service_completed_successfully":
                assert SERVICES[name]["restart"] == "no"
            else:
                assert "healthcheck" in SERVICES[name] or name in ROLES  # those of the image


def test_ports_are_those_of_the_roles_on_loopback() -> None:
    settings = Settings()
    for name in ("registry", "serving", "management"):
        port = getattr(settings, f"{name}_port")
        assert SERVICES[name]["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert SERVICES["gateway"]["ports"] == [f"127.0.0.1:{port}:{port}" for port in GatewaySettings().ports]
