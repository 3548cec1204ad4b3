"""Settings that stand in Feast's own configuration file, and who wins; the two ways to PostgreSQL."""

from __future__ import annotations

from pathlib import Path

import pytest

from chassis.errors import WrongSetting
from chassis.settings import Settings
from gateway.settings import VISIT_PATTERNS, GatewaySettings
from services.registry.settings import RegistrySettings

# As Feast's document prints it.
DOCUMENTED = r"""
feature_server:
  type: local
  recent_visit_logging:
    limit: 100  # Number of recent visits to store per user
    log_patterns:
      - ".*/entities/(?!all$)[^/]+$"
      - ".*/custom_api/.*"
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "feature_store.yaml"
    monkeypatch.setenv("TRIGLOT_FEATURE_STORE_YAML", str(path))
    return path


def test_visits_are_configured_as_feast_documents_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text(DOCUMENTED.replace("100", "7"))
    assert RegistrySettings().recent_visits == 7
    assert GatewaySettings().feast_visit_patterns == (r".*/entities/(?!all$)[^/]+$", r".*/custom_api/.*")
    monkeypatch.setenv("TRIGLOT_REGISTRY_RECENT_VISITS", "8")
    monkeypatch.setenv("TRIGLOT_GATEWAY_FEAST_VISIT_PATTERNS", '["x"]')
    assert RegistrySettings().recent_visits == 8
    assert GatewaySettings().feast_visit_patterns == ("x",)


@pytest.mark.parametrize(
    "content", ["", "feature_server:\n", "project: p\n", "- a\n", "feature_server: {type: local}\n"]
)
def test_a_file_without_the_section_changes_nothing(file: Path, content: str) -> None:
    file.write_text(content)
    assert RegistrySettings().recent_visits == 100
    assert GatewaySettings().feast_visit_patterns == VISIT_PATTERNS


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("a: [", "TRIGLOT_FEATURE_STORE_YAML"),
        ("\0", "TRIGLOT_FEATURE_STORE_YAML"),
        (DOCUMENTED.replace("custom_api/.*", "("), "TRIGLOT_GATEWAY_FEAST_VISIT_PATTERNS"),
        (DOCUMENTED.replace('".*/custom_api/.*"', "5"), "TRIGLOT_GATEWAY_FEAST_VISIT_PATTERNS"),
    ],
)
def test_a_wrong_file_is_named(file: Path, content: str, named: str) -> None:
    file.write_text(content)
    with pytest.raises(WrongSetting, match=named):
        GatewaySettings()


@pytest.mark.parametrize("url", ["mysql://u:secret@h/d", "postgresql://u:p@h:secret/d", "postgresql://u:secret@[h/d"])
def test_a_direct_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(WrongSetting, match="TRIGLOT_POSTGRES_DIRECT_URL") as refused:
        Settings(postgres_url="postgresql://u:p@h/d", postgres_direct_url=url)
    assert "secret" not in str(refused.value)


def test_a_direct_url_alone_is_refused() -> None:
    with pytest.raises(WrongSetting, match="TRIGLOT_POSTGRES_DIRECT_URL"):
        Settings(postgres_direct_url="postgresql://u:secret@h/d")


def test_what_needs_a_session_takes_the_direct_url() -> None:
    assert Settings(postgres_url="postgresql://a/d").direct_postgres == ("postgresql://a/d", "TRIGLOT_POSTGRES_URL")
    both = Settings(postgres_url="postgresql://a/d", postgres_direct_url="postgresql://b/d")
    assert both.direct_postgres == ("postgresql://b/d", "TRIGLOT_POSTGRES_DIRECT_URL")


def test_a_missing_file_is_named(file: Path) -> None:
    with pytest.raises(WrongSetting, match="TRIGLOT_FEATURE_STORE_YAML: No such file"):
        RegistrySettings()
