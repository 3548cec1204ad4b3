"""One frozen configuration per process: read once from the environment, passed down, documented field by field.

Every setting is an environment variable: the model's prefix and the field's name in capitals. `docs/configuration.md`
is made from these models (`make fix-docs`), and a test fails when the two disagree.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, get_origin
from urllib.parse import urlsplit

import orjson
import yaml
from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from chassis import rdrs_config
from chassis.addresses import is_loopback
from chassis.errors import WrongSetting
from chassis.secretbox import SecretBox

FEATURE_STORE_YAML = "TRIGLOT_FEATURE_STORE_YAML"


class SettingsModel(BaseSettings):
    """What all settings models share: frozen, and blind to unknown variables."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", enable_decoding=False)
    # Fields whose default may stand in a feature_store.yaml, and where.
    from_feature_store: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def __init__(self, **values: Any) -> None:
        """Raises WrongSetting, which names the variables and never shows a value: it may be a secret."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            faults = error.errors(include_input=False, include_url=False)
            raise WrongSetting("a setting is wrong: " + "; ".join(map(self._fault, faults))) from None

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], *sources: PydanticBaseSettingsSource, **named: PydanticBaseSettingsSource
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment first, then the files of other systems that it names."""
        return (*sources, *named.values(), _RdrsConfig(settings_cls), _FeatureStoreYaml(settings_cls))

    @classmethod
    def variable(cls, field: str) -> str:
        """The environment variable of a field."""
        return f"{cls.model_config.get('env_prefix', '')}{field.upper()}"

    @classmethod
    def _fault(cls, fault: ErrorDetails) -> str:
        message = fault["msg"].removeprefix("Value error, ")
        return f"{cls.variable(str(fault['loc'][0]))}: {message}" if fault["loc"] else message

    @field_validator("*", mode="before")
    @classmethod
    def _collections_are_json(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[info.field_name or ""].annotation
        if not isinstance(value, str) or get_origin(annotation) not in {tuple, list, dict}:
            return value
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError:
            raise ValueError("it is not JSON") from None


class _RdrsConfig(PydanticBaseSettingsSource):
    """What a model takes from the rdrs_config.json that the environment names. Raises WrongSetting."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Unused: all fields are read at once."""
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        prefix = self.settings_cls.model_config.get("env_prefix", "")
        given = rdrs_config.settings()
        variables = {name: f"{prefix}{name.upper()}" for name in self.settings_cls.model_fields}
        return {name: given[variable] for name, variable in variables.items() if variable in given}


class _FeatureStoreYaml(PydanticBaseSettingsSource):
    """What a model takes from the feature_store.yaml that the environment names. Raises WrongSetting."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Unused: all fields are read at once."""
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        path = os.environ.get(FEATURE_STORE_YAML, "")
        places = getattr(self.settings_cls, "from_feature_store", {})
        if not path or not places:
            return {}
        try:
            whole = yaml.safe_load(Path(path).read_text())
        except (OSError, ValueError, yaml.YAMLError) as error:
            problem = error.strerror if isinstance(error, OSError) else "it is not YAML"
            raise WrongSetting(f"a setting is wrong: {FEATURE_STORE_YAML}: {problem}") from None
        found = {field: _at(whole, place) for field, place in places.items()}
        return {field: value for field, value in found.items() if value is not None}


def _at(content: Any, place: tuple[str, ...]) -> Any:
    for key in place:
        content = content.get(key) if isinstance(content, dict) else None
    return content


class Settings(SettingsModel):
    """Settings that every process reads."""

    model_config = SettingsConfigDict(env_prefix="TRIGLOT_", frozen=True, extra="ignore")

    postgres_url: SecretStr = Field(SecretStr(""), description="PostgreSQL 15 or newer, as a `postgresql://` URL.")
    postgres_direct_url: SecretStr = Field(
        SecretStr(""),
        description="The same database without the pooler that TRIGLOT_POSTGRES_URL leads through, for notifications,"
        " migrations and the worker's queue; empty: there is no pooler in transaction mode.",
    )
    postgres_statement_cache: int = Field(
        100,
        ge=0,
        description="Prepared statements that a connection keeps; 0 behind a pooler in transaction mode that does not"
        " keep track of them (PgBouncer before 1.21, or with `max_prepared_statements = 0`).",
    )
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
    auth_stale_seconds: float = Field(
        300.0,
        ge=0,
        description="How much longer an API key that was good is taken while PostgreSQL cannot be asked about it.",
    )
    secret_key: SecretStr = Field(
        SecretStr(""),
        description="32 bytes in base64 that encrypt secrets at rest (access keys, datasources).",
    )
    decryption_keys: tuple[SecretStr, ...] = Field(
        (),
        description="More such keys, a JSON list: secrets that are still, or already, encrypted with them are read"
        " too. Only while the key is changed; see docs/access-control.md.",
    )
    service_api_key: SecretStr = Field(
        SecretStr(""), description="API key that management and its worker show to serving."
    )
    host: str = Field("0.0.0.0", description="Address to listen on.")  # noqa: S104 - DESIGN: containers bind all
    registry_port: int = Field(6570, ge=0, le=65535, description="gRPC port of the registry.")
    serving_port: int = Field(6571, ge=0, le=65535, description="gRPC port of serving.")
    management_port: int = Field(6573, ge=0, le=65535, description="gRPC port of management.")
    metrics_port: int = Field(
        6574,
        ge=0,
        le=65535,
        description="Port of the Prometheus metrics, of `/livez` and `/readyz`; 0 switches them off.",
    )
    registry_target: str = Field("localhost:6570", description="Where the gateway finds the registry (a gRPC target).")
    serving_target: str = Field("localhost:6571", description="Where gateway, management and worker find serving.")
    management_target: str = Field("localhost:6573", description="Where the gateway finds management.")
    tls_certificate: str = Field(
        "", description="PEM file of the certificate chain that every port shows, gRPC and HTTP; empty: no TLS."
    )
    tls_key: str = Field("", description="PEM file of the certificate's private key.")
    tls_authority: str = Field(
        "",
        description="PEM file of the authorities that vouch for the targets above; empty: they are called without TLS.",
    )
    client_certificate: str = Field(
        "",
        description="PEM file of the certificate chain that is shown to the targets, which may ask for one; empty:"
        " TRIGLOT_TLS_CERTIFICATE.",
    )
    client_key: str = Field("", description="PEM file of that certificate's private key.")
    client_authority: str = Field(
        "",
        description="PEM file of the authorities that must vouch for the certificate that a caller shows on the gRPC"
        " ports; empty: none is asked for. Only with TLS.",
    )
    metrics_tls: bool = Field(
        False,
        description="Whether the port of the metrics speaks TLS too, with the same certificate. It asks nobody for one:"
        " probes have none.",
    )
    drain_seconds: float = Field(5.0, ge=0, description="How long requests under way may take to finish after SIGTERM.")
    max_message_bytes: int = Field(64 * 1024 * 1024, ge=1024, description="Largest gRPC message that a service takes.")
    max_connections: int = Field(10_000, ge=1, description="Connections that a gRPC port takes; more are closed.")
    max_streams: int = Field(
        10_000, ge=1, description="Calls under way that one gRPC connection may have; more wait at the caller's."
    )
    address_calls_per_second: float = Field(
        0,
        ge=0,
        description="How many calls a second each port takes from one network address, before it looks at who calls; an"
        " IPv6 address counts as its /64. 0: any number.",
    )
    address_failures_per_minute: float = Field(
        0,
        ge=0,
        description="After how many wrong credentials in a minute a port refuses every call from that address, until"
        " some have flowed back. 0: never.",
    )
    address_connections: int = Field(
        0, ge=0, description="How many connections an HTTP port keeps with one address; more are closed. 0: any number."
    )
    trusted_addresses: tuple[str, ...] = Field(
        (),
        description="Addresses and networks, a JSON list, of proxies and gateways of ours: the three above do not"
        " limit them, and they are believed about who called them (`X-Forwarded-For`).",
    )
    reflection: bool = Field(True, description="Serve gRPC reflection (open without a key).")
    feature_store_yaml: str = Field(
        "",
        description="A `feature_store.yaml` of Feast's, for `limit` and `log_patterns` of its section"
        " `feature_server.recent_visit_logging`; variables of the registry and the gateway win.",
    )
    rdrs_config: str = Field(
        "",
        description="An `rdrs_config.json` of RonDB's REST server, for address, port, TLS, size of requests, caching of"
        " keys and log level; other variables win. What else it holds is named in one warning.",
    )
    reuse_port: bool = Field(
        False,
        description="Share the ports with other processes of the same user that do so too (SO_REUSEPORT)."
        " `--workers` sets it.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Lowest level that is logged.")
    log_format: Literal["json", "console"] = Field(
        "json", description="`json`: one object a line. `console`: for people."
    )
    traces_url: str = Field(
        "",
        pattern="^(https?://.*)?$",
        description="Where a collector takes traces over OTLP, such as `http://collector:4318/v1/traces`; empty: none "
        "are made. OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES and OTEL_EXPORTER_OTLP_HEADERS count as well.",
    )
    traces_share: float = Field(
        1.0, ge=0, le=1, description="Part of the requests that are traced, unless whoever calls has decided already."
    )

    @property
    def secret_box(self) -> SecretBox:
        """Encrypts and decrypts secrets at rest."""
        return SecretBox(self.secret_key, self.decryption_keys)

    @property
    def shown_to_targets(self) -> tuple[str, str]:
        """The files of the certificate that is shown to targets, and of its key; empty: none is."""
        if self.client_certificate:
            return self.client_certificate, self.client_key
        return self.tls_certificate, self.tls_key

    @property
    def direct_postgres(self) -> tuple[str, str]:
        """The URL for what needs a session of its own, and the variable that it is from."""
        field = "postgres_direct_url" if self.postgres_direct_url.get_secret_value() else "postgres_url"
        url: SecretStr = getattr(self, field)
        return url.get_secret_value(), self.variable(field)

    @field_validator("postgres_direct_url")
    @classmethod
    def _is_a_url(cls, value: SecretStr) -> SecretStr:
        """Here, because what listens tries for ever, whatever it meets."""
        url = value.get_secret_value()
        try:
            good = not url or (urlsplit(url).scheme in {"postgresql", "postgres"} and urlsplit(url).port != 0)
        except ValueError:  # its text may show a part of the password
            good = False
        if not good:
            raise ValueError("it is no URL such as postgresql://user:password@host:5432/database")
        return value

    @field_validator("trusted_addresses")
    @classmethod
    def _are_networks(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        for network in networks:
            ipaddress.ip_network(network)
        return networks

    @field_validator("secret_key")
    @classmethod
    def _encrypts(cls, value: SecretStr) -> SecretStr:
        SecretBox(value)
        return value

    @field_validator("decryption_keys")
    @classmethod
    def _decrypt(cls, values: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for value in values:
            SecretBox(value)
        return values

    @model_validator(mode="after")
    def _open_on_loopback_only(self) -> Settings:
        if self.auth == "off":
            require_loopback(self.host)
        return self

    @model_validator(mode="after")
    def _direct_is_the_same_database(self) -> Settings:
        """Without a URL `triglot up` starts a PostgreSQL of its own, which the direct one would not lead to."""
        if self.postgres_direct_url.get_secret_value() and not self.postgres_url.get_secret_value():
            raise ValueError("set TRIGLOT_POSTGRES_URL too, or TRIGLOT_POSTGRES_DIRECT_URL not at all")
        return self

    @model_validator(mode="after")
    def _certificates_are_good(self) -> Settings:
        """Here, because gRPC would say nothing but that it cannot listen."""
        for of in ("tls", "client"):
            _require_pair(
                self.variable(f"{of}_certificate"),
                getattr(self, f"{of}_certificate"),
                self.variable(f"{of}_key"),
                getattr(self, f"{of}_key"),
            )
        for field in ("client_authority", "metrics_tls"):
            if getattr(self, field) and not self.tls_certificate:
                raise ValueError(f"{self.variable(field)} works with TLS only: set TRIGLOT_TLS_CERTIFICATE")
        for field in ("tls_authority", "client_authority"):
            if getattr(self, field):
                try:
                    ssl.create_default_context(cafile=getattr(self, field))
                except OSError as error:
                    raise ValueError(f"{self.variable(field)}: {error.strerror or error}") from None
        return self


def _require_pair(certificate_variable: str, certificate: str, key_variable: str, key: str) -> None:
    """Raises ValueError unless both files are given and belong together, or neither is given."""
    if not (certificate or key):
        return
    if not (certificate and key):
        raise ValueError(f"set both {certificate_variable} and {key_variable}, or neither")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key, password=str)
    except OSError as error:
        raise ValueError(f"{certificate_variable} and {key_variable}: {error.strerror or error}") from None


def require_loopback(host: str) -> None:
    """Raises WrongSetting if others than this machine could call: without authentication they must not."""
    if not is_loopback(host):
        raise WrongSetting("TRIGLOT_AUTH=off works on loopback only: set TRIGLOT_HOST=127.0.0.1")
