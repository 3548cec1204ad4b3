"""The configuration file of RonDB's REST server: what its keys become, who wins, and what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chassis import rdrs_config
from chassis.errors import WrongSetting
from chassis.settings import Settings
from gateway.settings import GatewaySettings
from services.serving.settings import ServingSettings
from tests.certificates import make


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "rdrs_config.json"
    monkeypatch.setenv("TRIGLOT_RDRS_CONFIG", str(path))
    return path


def write(file: Path, **sections: Any) -> None:
    file.write_text(json.dumps(sections))


def test_what_has_a_meaning_is_honoured(file: Path) -> None:
    write(
        file,
        REST={"ServerIP": "10.0.0.1", "ServerPort": 5406},
        Internal={"maxReqSize": 1_000_000},
        Security={"APIKey": {"CacheRefreshIntervalMS": 2500}, "TLS": {"EnableTLS": False, "CertificateFile": "none"}},
        Log={"Level": "WARN"},
    )
    settings = Settings()
    assert (settings.host, settings.auth_cache_seconds, settings.log_level) == ("10.0.0.1", 2.5, "warning")
    assert settings.tls_certificate == ""
    assert ServingSettings().rest_port == 5406
    assert GatewaySettings().ports == (6572, 5406, 8080)
    assert GatewaySettings().max_body_bytes == 1_000_000
    assert rdrs_config.without_meaning() == []


def test_variables_win(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(file, REST={"ServerIP": "10.0.0.1", "ServerPort": 8080}, Log={"Level": "debug"})
    monkeypatch.setenv("TRIGLOT_HOST", "::1")
    monkeypatch.setenv("TRIGLOT_SERVING_REST_PORT", "1")
    assert (Settings().host, Settings().log_level, ServingSettings().rest_port) == ("::1", "debug", 1)
    assert GatewaySettings().ports == (6572, 8080)
    monkeypatch.setenv("TRIGLOT_GATEWAY_PORTS", "[2]")
    assert GatewaySettings().ports == (2,)


def test_an_empty_file_changes_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(file)
    found = Settings(), GatewaySettings(), ServingSettings()
    monkeypatch.delenv("TRIGLOT_RDRS_CONFIG")
    assert found[1:] == (GatewaySettings(), ServingSettings())
    assert found[0].model_dump(exclude={"rdrs_config"}) == Settings().model_dump(exclude={"rdrs_config"})
    assert rdrs_config.without_meaning() == []


def test_tls(file: Path, tmp_path: Path) -> None:
    made = make(tmp_path)
    tls = {"EnableTLS": True, "CertificateFile": str(made.certificate), "PrivateKeyFile": str(made.key)}
    write(file, Security={"TLS": tls})
    assert (Settings().tls_certificate, Settings().tls_key) == (str(made.certificate), str(made.key))
    assert GatewaySettings().client_authority == ""
    for asks in ("RequireAndVerifyClientCert", "RequireClientCert"):
        write(file, Security={"TLS": tls | {asks: True, "RootCACertFile": str(made.certificate)}})
        assert GatewaySettings().client_authority == str(made.certificate)
        write(file, Security={"TLS": tls | {asks: True}})
        with pytest.raises(WrongSetting, match="RootCACertFile must say who vouches"):
            GatewaySettings()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "it is not JSON"),
        ("{", "it is not JSON"),
        ("[]", "it is no JSON object"),
        ('{"REST": {"ServerPort": "4406"}}', "REST.ServerPort: it is no positive whole number"),
        ('{"REST": {"ServerPort": true}}', "REST.ServerPort: it is no positive whole number"),
        ('{"REST": {"ServerPort": 70000}}', "REST.ServerPort: it is no port"),
        ('{"REST": {"ServerIP": 5}}', "REST.ServerIP: it is no text"),
        ('{"Log": {"Level": "loud"}}', "Log.Level: it is none of trace, debug"),
        ('{"Security": {"TLS": {"EnableTLS": true}}}', "Security.TLS.EnableTLS asks for CertificateFile and"),
        ('{"Security": {"TLS": {"EnableTLS": "yes"}}}', "Security.TLS.EnableTLS: it is neither true nor false"),
    ],
)
def test_what_is_wrong_is_named(file: Path, content: str, says: str) -> None:
    file.write_text(content)
    with pytest.raises(WrongSetting, match=f"TRIGLOT_RDRS_CONFIG: {says}"):
        Settings()


def test_a_missing_file(file: Path) -> None:
    with pytest.raises(WrongSetting, match="TRIGLOT_RDRS_CONFIG: No such file"):
        Settings()


@pytest.mark.parametrize(
    ("section", "named"),
    [
        ({"Internal": {"maxReqSize": 5}}, "TRIGLOT_GATEWAY_MAX_BODY_BYTES"),
        (
            {
                "Security": {
                    "TLS": {
                        "EnableTLS": True, "RequireClientCert": True,
                        "CertificateFile": "a", "PrivateKeyFile": "b", "RootCACertFile": "none",
                    }
                }
            },
            "TRIGLOT_GATEWAY_CLIENT_AUTHORITY: No such file",
        ),
    ],
)  # fmt: skip
def test_what_its_setting_refuses_is_named(file: Path, section: dict[str, Any], named: str) -> None:
    write(file, **section)
    with pytest.raises(WrongSetting, match=named):
        GatewaySettings()
