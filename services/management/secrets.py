"""A datasource's configuration: which of it is secret, how it is kept, how it is shown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from chassis.postgres import Database
from chassis.secretbox import SecretBox
from services.management.inputs import invalid, json_object
from services.management.rows import QUERIES, Row

MASK = "******"
PURPOSE = "datasource config"
_AT_ONCE = 100
_NAME = r"passw|pass_?phrase|(?:\b|_)(?:pass|sk)\b|pwd|secret|token|credential|(?:access|api|private|account)[\s_-]?key"
_NAMES_A_SECRET = re.compile(_NAME, re.IGNORECASE)
# Bounded or unable to meet its own beginning again, each of them, so that the time they take grows with the text only.
_HOLDS_A_SECRET = re.compile(
    rf"""
    ://[^/\s]*@                                              # who calls, in a URL
    | :(?!//)[^:\s@]*@                                       # user:password@host, in a URL or not
    | (?:{_NAME})[\w.-]{{0,40}}["']?\s{{0,9}}[=:]\s{{0,9}}[^\s&;]  # password=...
    """,
    re.IGNORECASE | re.VERBOSE,
)


def holds_secret(text: str) -> bool:
    """Whether a text, such as a URL or the parameters of a connection, seems to have a secret in it."""
    return _HOLDS_A_SECRET.search(text) is not None


@dataclass(frozen=True)
class KeptConfig:
    """A configuration as it is used, and what the catalogue keeps of it: the text that may be shown, and the whole,
    encrypted, if that is not the whole."""

    whole: dict[str, Any]
    shown: str
    sealed: bytes | None


class ConfigKeeper:
    """Seals and opens configurations."""

    def __init__(self, box: SecretBox) -> None:
        self._box = box

    def keep(self, text: str, old: Mapping[str, Any] | None = None) -> KeptConfig:
        """What is as `old` was shown stands for what it was. Raises InvalidArgument for a mask that stands for nothing,
        and for what is no JSON object."""
        given = json_object("Config", text)
        config = given if old is None else _unmasked(given, _masked(old), old)
        for place in _masks(config):
            raise invalid("Config", f"holds at {place} the mask that stands for a secret; give the secret itself")
        shown = _masked(config)
        if shown == config:
            # Kept as it was given, where nothing in it changed.
            return KeptConfig(config, text if old is None else orjson.dumps(config).decode(), None)
        sealed = self._box.encrypt(orjson.dumps(config).decode(), PURPOSE)
        return KeptConfig(config, orjson.dumps(shown).decode(), sealed)

    def open(self, row: Row) -> dict[str, Any]:
        """The whole configuration of a row of `datasource`. For use, never for show."""
        sealed = row["config_sealed"]
        return json_object("Config", row["config"] if sealed is None else self._box.decrypt(sealed, PURPOSE))


async def renew(database: Database, box: SecretBox) -> int:
    """Encrypt all configurations with the box's first key; how many were not. Raises FailedPrecondition for what no key
    reads, after all that come before it."""
    renewed, last = 0, 0
    while rows := await database.fetch(QUERIES.sealed_configs, last, _AT_ONCE):
        for row in rows:
            last, sealed = row["id"], row["config_sealed"]
            fresh = box.renewed(sealed, PURPOSE)
            if fresh is not None:
                await database.execute(QUERIES.reseal_config, last, sealed, fresh)
                renewed += 1
    return renewed


def _masked(value: Any, secret: bool = False) -> Any:
    """What may be shown of a value; `secret`: it stands, however deep, below a name of secrets."""
    if isinstance(value, Mapping):
        return {name: _masked(item, secret or _NAMES_A_SECRET.search(name) is not None) for name, item in value.items()}
    if isinstance(value, list):
        return [_masked(item, secret) for item in value]
    if value in ("", None) or isinstance(value, bool):
        return value
    return MASK if secret or (isinstance(value, str) and holds_secret(value)) else value


def _unmasked(value: Any, shown: Any, old: Any) -> Any:
    """The value that is meant. Objects are compared name by name, lists as a whole: which secret was whose in a list
    that changed, nobody can know."""
    if isinstance(value, dict) and isinstance(shown, dict):
        return {name: _unmasked(item, shown.get(name), old.get(name)) for name, item in value.items()}
    return old if value == shown and any(True for _ in _masks(value)) else value


def _masks(value: Any, place: str = "") -> Iterator[str]:
    """Where a value holds the mask."""
    if isinstance(value, dict | list):
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _masks(item, f"{place}.{name}" if place else str(name))
    elif isinstance(value, str) and MASK in value:
        yield place
