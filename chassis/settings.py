"""One frozen configuration per process: read once from the environment, passed down, documented field by field.

Every setting is an environment variable: the model's prefix and the field's name in capitals. `docs/configuration.md`
is made from these models (`make fix-docs`), and a test fails when the two disagree.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

LOOPBACK = ("127.0.0.1", "::1", "localhost")


class SettingsModel(BaseSettings):
    """What all settings models share: frozen, and blind to unknown variables."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")


class Settings(SettingsModel):
    """Settings that every process reads."""

    model_config = SettingsConfigDict(env_prefix="TRIGLOT_", frozen=True, extra="ignore")

    postgres_url: SecretStr = Field(SecretStr(""), description="PostgreSQL 15 or newer, as a `postgresql://` URL.")
    postgres_pool_size: int = Field(
        10, ge=1, le=500, description="Connections that one service of one process may open."
    )
    postgres_timeout_seconds: float = Field(
        10.0, gt=0, description="How long one statement, or the wait for a connection, may take."
    )
    redis_url: SecretStr = Field(
        SecretStr(""), description="Redis 6.2 or newer: `redis://`, `rediss://` or `unix://` URL."
    )
    redis_cluster: bool = Field(False, description="Whether the Redis URL leads to a Redis Cluster.")
    redis_timeout_seconds: float = Field(1.0, gt=0, description="How long a Redis round trip may take.")
    auth: Literal["required", "off"] = Field(
        "required", description="`off` lets every caller do everything, and binds loopback only."
    )
    auth_cache_seconds: float = Field(
        10.0, ge=0, le=300, description="How long a process trusts a credential it has checked."
    )
    secret_key: SecretStr = Field(
        SecretStr(""),
        description="32 bytes in base64 that encrypt secrets at rest (access keys, datasources).",
    )
    service_api_key: SecretStr = Field(
        SecretStr(""), description="API key that management and its worker show to serving."
    )
    host: str = Field("0.0.0.0", description="Address to listen on.")  # noqa: S104 - DESIGN: containers bind all
    registry_port: int = Field(6570, ge=0, le=65535, description="gRPC port of the registry.")
    serving_port: int = Field(6571, ge=0, le=65535, description="gRPC port of serving.")
    management_port: int = Field(6573, ge=0, le=65535, description="gRPC port of management.")
    metrics_port: int = Field(6574, ge=0, le=65535, description="Port of the Prometheus metrics; 0 switches them off.")
    registry_target: str = Field("localhost:6570", description="Where the gateway finds the registry (a gRPC target).")
    serving_target: str = Field("localhost:6571", description="Where gateway, management and worker find serving.")
    management_target: str = Field("localhost:6573", description="Where the gateway finds management.")
    drain_seconds: float = Field(5.0, ge=0, description="How long requests under way may take to finish after SIGTERM.")
    max_message_bytes: int = Field(64 * 1024 * 1024, ge=1024, description="Largest gRPC message that a service takes.")
    reflection: bool = Field(True, description="Serve gRPC reflection (open without a key).")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Lowest level that is logged.")
    log_format: Literal["json", "console"] = Field(
        "json", description="`json`: one object a line. `console`: for people."
    )

    @model_validator(mode="after")
    def _open_on_loopback_only(self) -> Settings:
        if self.auth == "off" and self.host not in LOOPBACK:
            raise ValueError("TRIGLOT_AUTH=off works on loopback only: set TRIGLOT_HOST=127.0.0.1")
        return self
