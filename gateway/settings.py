"""Settings of the gateway."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from chassis.settings import SettingsModel

# The six that Feast documents, and one for features, whose path holds the name of their view as well.
VISIT_PATTERNS = (
    r".*/entities/(?!all$)[^/]+$",
    r".*/data_sources/(?!all$)[^/]+$",
    r".*/feature_views/(?!all$)[^/]+$",
    r".*/features/(?!all$)[^/]+$",
    r".*/features/[^/]+/[^/]+$",
    r".*/feature_services/(?!all$)[^/]+$",
    r".*/saved_datasets/(?!all$)[^/]+$",
)


class GatewaySettings(SettingsModel):
    """Settings that only the gateway reads."""

    model_config = SettingsConfigDict(env_prefix="TRIGLOT_GATEWAY_", frozen=True, extra="ignore")
    from_feature_store: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "feast_visit_patterns": ("feature_server", "recent_visit_logging", "log_patterns")
    }

    ports: tuple[int, ...] = Field(
        (6572, 4406, 8080),
        description="HTTP ports, a JSON list; each serves all three dialects (Feast's, Hopsworks' and one more).",
    )
    client_authority: str = Field(
        "",
        description="PEM file of the authorities that must vouch for the certificate that a client shows on the HTTP"
        " ports; empty: none is asked for. Only with TLS.",
    )
    max_body_bytes: int = Field(4 * 1024 * 1024, ge=1024, description="Largest HTTP body that is taken.")
    body_timeout_seconds: float = Field(
        30.0, gt=0, description="How long a body may take to arrive; the head before it may take twice as long."
    )
    max_connections: int = Field(
        10_000, ge=1, description="Connections beyond which a new one is answered 503 and closed."
    )
    timeout_seconds: float = Field(10.0, gt=0, description="Deadline of the RPC behind an HTTP request.")
    pai_max_request_bytes: int = Field(
        0, ge=0, description="Largest request of PAI's API, query and body; its document says 8192. 0: any body."
    )
    feast_pages: bool = Field(
        True, description="Serve Swagger UI, ReDoc and /openapi.json; they are open to callers without a key."
    )
    feast_default_project: str = Field(
        "", description="Project of visits that name none, and of those that are listed without one; empty: all."
    )
    feast_visit_patterns: tuple[str, ...] = Field(
        VISIT_PATTERNS,
        description="Which paths are visits of objects: regular expressions, matched from the start of the path.",
    )
    hopsworks_api_version: str = Field("0.1.0", description="Version prefix of the Hopsworks routes.")
    hopsworks_validate_passed_features: bool = Field(
        False, description="What Hopsworks' option `validatePassedFeatures` means when a request does not give it."
    )

    @field_validator("client_authority")
    @classmethod
    def _vouches(cls, path: str) -> str:
        if path:
            try:
                ssl.create_default_context(cafile=path)
            except OSError as error:
                raise ValueError(error.strerror or str(error)) from None
        return path

    @field_validator("feast_visit_patterns")
    @classmethod
    def _compile(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return patterns
