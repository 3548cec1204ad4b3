"""Settings of the gateway."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from chassis.settings import SettingsModel


class GatewaySettings(SettingsModel):
    """Settings that only the gateway reads."""

    model_config = SettingsConfigDict(env_prefix="TRIGLOT_GATEWAY_", frozen=True, extra="ignore")

    ports: tuple[int, ...] = Field(
        (6572, 4406, 8080),
        description="HTTP ports, a JSON list; each serves all three dialects (Feast's, Hopsworks' and one more).",
    )
    max_body_bytes: int = Field(4 * 1024 * 1024, ge=1024, description="Largest HTTP body that is taken.")
    body_timeout_seconds: float = Field(30.0, gt=0, description="How long a body may take to arrive.")
    max_connections: int = Field(
        10_000, ge=1, description="Connections, and requests under way, beyond which new requests are answered 503."
    )
    timeout_seconds: float = Field(10.0, gt=0, description="Deadline of the RPC behind an HTTP request.")
    feast_pages: bool = Field(
        True, description="Serve Swagger UI, ReDoc and /openapi.json; they are open to callers without a key."
    )
    hopsworks_api_version: str = Field("0.1.0", description="Version prefix of the Hopsworks routes.")
    hopsworks_validate_passed_features: bool = Field(
        False, description="What Hopsworks' option `validatePassedFeatures` means when a request does not give it."
    )
