"""Write docs/configuration.md from the settings models.

python -m triglot.reference           write it
python -m triglot.reference --check   exit 1 if it is not up to date
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import get_args

import orjson
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from chassis.audit import AuditSettings
from chassis.kubernetes import KubernetesSettings
from chassis.oidc import OidcSettings
from chassis.settings import Settings, SettingsModel
from gateway.settings import GatewaySettings
from services.management.settings import ManagementSettings
from services.registry.settings import RegistrySettings
from services.serving.settings import ServingSettings
from triglot.deployment import CallerSettings

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
MODELS: tuple[tuple[str, type[SettingsModel]], ...] = (
    ("Every process", Settings),
    ("Audit log, of registry, serving and management", AuditSettings),
    ("Tokens of an OpenID Connect provider", OidcSettings),
    ("Service-account tokens of Kubernetes", KubernetesSettings),
    ("Gateway", GatewaySettings),
    ("Registry", RegistrySettings),
    ("Serving", ServingSettings),
    ("Management and its worker", ManagementSettings),
    ("Commands that call a deployment", CallerSettings),
)
_INTRODUCTION = """# Configuration

Every setting is an environment variable, read once when a process starts. `triglot up` sets what it must (addresses of
the servers it starts, keys) and leaves the rest to the environment. Lists are JSON. Wrong values stop the start with
one line that names the variable.

This page is made from the code (`make fix-docs`); a check fails when it is not up to date.
"""


def page() -> str:
    """The whole page."""
    parts = [_INTRODUCTION]
    for title, model in MODELS:
        prefix = model.model_config.get("env_prefix", "")
        parts.append(f"\n## {title}\n\n| variable | default | meaning |\n|---|---|---|\n")
        parts += [_row(f"{prefix}{name.upper()}", field) for name, field in model.model_fields.items()]
    return "".join(parts)


def _row(variable: str, field: FieldInfo) -> str:
    default = field.default.get_secret_value() if isinstance(field.default, SecretStr) else field.default
    choices = ", ".join(f"`{choice}`" for choice in get_args(field.annotation) if isinstance(choice, str))
    meaning = (field.description or "") + (f" One of {choices}." if choices else "")
    if isinstance(default, tuple | dict):
        default = orjson.dumps(default, default=float).decode() if default else ""
    shown = "" if default == "" else f"`{default}`"
    return f"| `{variable}` | {shown} | {meaning} |\n"


def main(arguments: list[str]) -> int:
    """Write or check the page."""
    text = page()
    if "--check" in arguments:
        fresh = PAGE.exists() and PAGE.read_text() == text
        sys.stdout.write(f"{PAGE.name} is {'up to date' if fresh else 'stale: run `make fix-docs`'}\n")
        return 0 if fresh else 1
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
