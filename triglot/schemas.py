"""Every schema of the deployment, in the order in which they are migrated."""

from __future__ import annotations

from pathlib import Path

from chassis.identity.store import MIGRATIONS as IDENTITY
from chassis.migrations import Migrations

_SERVICES = Path(__file__).resolve().parent.parent / "services"

SCHEMAS = [
    IDENTITY,
    *(Migrations(name, _SERVICES / name / "migrations") for name in ("registry", "serving", "management")),
]
