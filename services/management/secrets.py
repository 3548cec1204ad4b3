"""A datasource's configuration: which of it is secret, how it is kept, how it is shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from chassis.secretbox import SecretBox
from services.management.inputs import json_object
from services.management.rows import Row

MASK = "******"
_PURPOSE = "datasource config"
_SECRET_NAME = re.compile(r"passw|pwd|secret|token|access_?key|credential|private_?key", re.IGNORECASE)
# A URL that holds a user's password.
SECRET_URL = re.compile(r"://[^/@\s]*:[^/@\s]*@")


@dataclass(frozen=True)
class KeptConfig:
    """What the catalogue keeps: the text that may be shown, and the whole, encrypted, if that is not the whole."""

    shown: str
    sealed: bytes | None


class ConfigKeeper:
    """Seals and opens configurations."""

    def __init__(self, box: SecretBox) -> None:
        self._box = box

    def keep(self, text: str, old: Mapping[str, Any] | None = None) -> KeptConfig:
        """Raises InvalidArgument if it is no JSON object. A masked value stands for the one in `old`."""
        config = json_object("Config", text)
        if old is not None:
            config = _unmasked(config, old)
        shown = _masked(config)
        if shown == config:
            # Kept as it was given, where nothing in it changed.
            return KeptConfig(text if old is None else orjson.dumps(config).decode(), None)
        sealed = self._box.encrypt(orjson.dumps(config).decode(), _PURPOSE)
        return KeptConfig(orjson.dumps(shown).decode(), sealed)

    def open(self, row: Row) -> dict[str, Any]:
        """The whole configuration of a row of `datasource`. For use, never for show."""
        sealed = row["config_sealed"]
        return json_object("Config", row["config"] if sealed is None else self._box.decrypt(sealed, _PURPOSE))


def _masked(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        return {key: _masked(item, key) for key, item in value.items()}
    if isinstance(value, list):
        return [_masked(item, name) for item in value]
    if value in ("", None) or isinstance(value, bool):
        return value
    secret = _SECRET_NAME.search(name) or (isinstance(value, str) and SECRET_URL.search(value))
    return MASK if secret else value


def _unmasked(value: Any, old: Any) -> Any:
    if isinstance(value, dict):
        known = old if isinstance(old, Mapping) else {}
        return {key: _unmasked(item, known.get(key)) for key, item in value.items()}
    return old if value == MASK and old is not None else value
