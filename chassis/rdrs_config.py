"""`rdrs_config.json`, the configuration of RonDB's REST server: what of it means something here, as settings.

It is read where TRIGLOT_RDRS_CONFIG says. What a variable says wins.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from chassis.errors import WrongSetting

VARIABLE = "TRIGLOT_RDRS_CONFIG"
_LEVELS = {
    "trace": "debug", "debug": "debug", "info": "info", "warn": "warning", "warning": "warning",
    "error": "error", "fatal": "error", "panic": "error",
}  # fmt: skip


def settings() -> Mapping[str, object]:
    """Values by the variable whose place they take; none without a file. Raises WrongSetting."""
    return _translated()[0]


def without_meaning() -> list[str]:
    """The keys of the file that change nothing here, as `Section.Key`."""
    return _translated()[1]


def _translated() -> tuple[Mapping[str, object], list[str]]:
    path = os.environ.get(VARIABLE, "")
    if not path:
        return {}, []
    file = _File(path)
    port = file.get("REST.ServerPort", _port)
    refresh_ms = file.get("Security.APIKey.CacheRefreshIntervalMS", _number)
    values = {
        "TRIGLOT_HOST": file.get("REST.ServerIP", _text),
        "TRIGLOT_SERVING_REST_PORT": port,
        # Among the gateway's ports it is Hopsworks' that is another one.
        "TRIGLOT_GATEWAY_PORTS": tuple(dict.fromkeys((6572, port, 8080))) if port else None,
        "TRIGLOT_GATEWAY_MAX_BODY_BYTES": file.get("Internal.maxReqSize", _number),
        "TRIGLOT_AUTH_CACHE_SECONDS": refresh_ms / 1000 if refresh_ms else None,
        "TRIGLOT_LOG_LEVEL": file.get("Log.Level", _level),
        **_tls(file),
    }
    return {variable: value for variable, value in values.items() if value is not None}, sorted(file.unused)


def _tls(file: _File) -> Mapping[str, object]:
    certificate = file.get("Security.TLS.CertificateFile", _text)
    key = file.get("Security.TLS.PrivateKeyFile", _text)
    authority = file.get("Security.TLS.RootCACertFile", _text)
    # The older name and the newer one.
    asked = (file.get("Security.TLS.RequireAndVerifyClientCert", _switch),
             file.get("Security.TLS.RequireClientCert", _switch))  # fmt: skip
    if not file.get("Security.TLS.EnableTLS", _switch):
        return {}
    if not (certificate and key):
        raise _wrong("Security.TLS.EnableTLS asks for CertificateFile and PrivateKeyFile")
    if any(asked) and not authority:
        raise _wrong("Security.TLS.RootCACertFile must say who vouches for the certificates of clients")
    return {
        "TRIGLOT_TLS_CERTIFICATE": certificate,
        "TRIGLOT_TLS_KEY": key,
        "TRIGLOT_GATEWAY_CLIENT_AUTHORITY": authority if any(asked) else None,
    }


class _File:
    """The values of a file by their `Section.Key`."""

    def __init__(self, path: str) -> None:
        try:
            whole = orjson.loads(Path(path).read_bytes())
        except (OSError, ValueError) as error:
            raise _wrong((error.strerror if isinstance(error, OSError) else None) or "it is not JSON") from None
        if not isinstance(whole, dict):
            raise _wrong("it is no JSON object")
        self._values = dict(_leaves(whole))
        self.unused = set(self._values)

    def get(self, key: str, check: Callable[[Any], Any]) -> Any:
        """What stands there; None: nothing. Raises WrongSetting."""
        self.unused.discard(key)
        value = self._values.get(key)
        if value in (None, ""):
            return None
        try:
            return check(value)
        except ValueError as error:
            raise _wrong(f"{key}: {error}") from None


def _leaves(section: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _wrong(problem: str) -> WrongSetting:
    return WrongSetting(f"a setting is wrong: {VARIABLE}: {problem}")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("it is no text")
    return value


def _number(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError("it is no positive whole number")
    return value


def _port(value: Any) -> int:
    if _number(value) > 65_535:
        raise ValueError("it is no port")
    return int(value)


def _level(value: Any) -> str:
    if _text(value).lower() not in _LEVELS:
        raise ValueError(f"it is none of {', '.join(_LEVELS)}")
    return _LEVELS[value.lower()]


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("it is neither true nor false")
    return value
