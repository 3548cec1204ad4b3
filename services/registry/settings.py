"""Settings of the registry."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from chassis.settings import SettingsModel


class RegistrySettings(SettingsModel):
    """Settings that only the registry reads."""

    model_config = SettingsConfigDict(env_prefix="TRIGLOT_REGISTRY_", frozen=True, extra="ignore")

    strict_permissions: bool = Field(
        False,
        description="Close projects without permissions, and tell nobody whether what was refused exists.",
    )
    max_page: int = Field(1000, ge=1, le=10_000, description="Largest page that triglot.registry.v1 answers with.")
    recent_visits: int = Field(
        100, ge=1, le=10_000, description="How many visits of each caller to each project are remembered."
    )
