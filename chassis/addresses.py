"""Addresses as texts: which to listen on, which to call."""

from __future__ import annotations

import ipaddress

_EVERY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what stands for every address, and a way to call it


def joined(host: str, port: int) -> str:
    """`host:port`, with the brackets that an IPv6 address needs."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def callable_host(host: str) -> str:
    """The host to call on this machine where a server listens on `host`, which may stand for every address."""
    return _EVERY.get(host, host)


def is_loopback(host: str) -> bool:
    """Whether only this machine can call it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
