"""Settings of the registry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from chassis.settings import SettingsModel


class RegistrySettings(SettingsModel):
    """Settings that only the registry reads."""

    model_config = SettingsConfigDict(env_prefix="TRIGLOT_REGISTRY_", frozen=True, extra="ignore")
    from_feature_store: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "recent_visits": ("feature_server", "recent_visit_logging", "limit")
    }

    strict_permissions: bool = Field(
        False,
        description="Close projects without permissions, and tell nobody whether what was refused exists.",
    )
    max_page: int = Field(1000, ge=1, le=10_000, description="Largest page that triglot.registry.v1 answers with.")
    recent_visits: int = Field(
        100, ge=1, le=10_000, description="How many visits of each caller to each project are remembered."
    )
    calls_per_second: float = Field(
        0, ge=0, description="How many calls a second each process takes from one account. 0: any number."
    )
