"""Redis: whether it lets us in, is new enough, keeps what it is given, and whether a cluster is whole."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import redis.asyncio
import redis.exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from chassis.settings import Settings
from triglot.checkup.finding import PATIENCE_SECONDS, Finding, clock, fine, warning, wrong

_OLDEST = (6, 2)
_SLOTS = 16_384
_FULL = 0.85
_VARIABLE = "TRIGLOT_REDIS_URL"
_DRIVER_ERRORS = (redis.exceptions.RedisError, OSError, TimeoutError)
Info = dict[str, Any]


async def examine(settings: Settings) -> AsyncIterator[Finding]:
    """The server of TRIGLOT_REDIS_URL, or all primaries of its cluster."""
    url = settings.redis_url.get_secret_value()
    if not url:
        return
    try:
        client = _client(url)
    except ValueError:
        yield wrong("Redis", f"{_VARIABLE} is no URL", "write it as redis://:password@host:6379/0")
        return
    try:
        asked = datetime.now(UTC)
        seconds, microseconds = await client.time()
        yield fine("Redis", f"answers at {_VARIABLE}")
        yield clock("Redis clock", datetime.fromtimestamp(seconds + microseconds / 1e6, UTC), asked)
        info: Info = await client.info("everything")
        async for finding in _examine_server(client, info, "Redis"):
            yield finding
        async for finding in _examine_mode(client, info, settings):
            yield finding
    except redis.exceptions.AuthenticationError:
        yield wrong("Redis", f"refuses the user or password of {_VARIABLE}", "set the right ones in the URL")
    except redis.exceptions.NoPermissionError:
        advice = "give it +@all on the keys of serving, or at least +info +time +cluster for this check"
        yield wrong("Redis", f"the user of {_VARIABLE} may not do what is needed", advice)
    except _DRIVER_ERRORS as error:
        yield wrong(
            "Redis",
            f"does not answer at {_VARIABLE} ({type(error).__name__})",
            "start it, or correct host and port in the URL; between machines look at firewalls and NetworkPolicies",
        )
    finally:
        await client.aclose()


def _client(url: str) -> redis.asyncio.Redis:
    return redis.asyncio.Redis.from_url(
        url,
        socket_timeout=PATIENCE_SECONDS,
        socket_connect_timeout=PATIENCE_SECONDS,
        retry=Retry(NoBackoff(), 0),
        decode_responses=True,
    )


async def _examine_server(client: redis.asyncio.Redis, info: Info, name: str) -> AsyncIterator[Finding]:
    yield _version(info, name)
    yield _policy(info, name)
    for finding in _persistence(info, name):
        yield finding
    if info.get("role") != "master":
        yield wrong(f"{name} role", "is a replica: nothing can be written", "let the URL lead to the primary")
    limit = int(info.get("maxmemory", 0))
    if limit and int(info["used_memory"]) > limit * _FULL:
        text = f"{int(info['used_memory']) / limit:.0%} of maxmemory is used: writes fail when it is full"
        yield warning(f"{name} memory", text, "raise maxmemory, add nodes, or delete what is not read any more")


def _version(info: Info, name: str) -> Finding:
    # Valkey answers with the version of Redis that it is compatible with, and its own beside it.
    text = str(info.get("redis_version", "0"))
    shown = f"Valkey {info['valkey_version']}" if "valkey_version" in info else text
    numbers = tuple(int(part) for part in text.split(".")[:2] if part.isdecimal())
    if numbers >= _OLDEST:
        return fine(f"{name} version", shown)
    return wrong(f"{name} version", f"{shown} is older than 6.2", "upgrade it to 6.2 or newer")


def _policy(info: Info, name: str) -> Finding:
    policy = info.get("maxmemory_policy", "")
    check = f"{name} eviction"
    if policy == "noeviction":
        return fine(check, "noeviction")
    if not int(info.get("maxmemory", 0)):
        text = f"{policy}, which would take rows away as soon as maxmemory is set"
        return warning(check, text, "set maxmemory-policy to noeviction")
    return wrong(check, f"{policy}: rows go when memory is full", "set maxmemory-policy to noeviction")


def _persistence(info: Info, name: str) -> list[Finding]:
    check = f"{name} persistence"
    found = []
    if str(info.get("aof_enabled")) == "1":
        found.append(fine(check, "append-only file"))
    else:
        found.append(warning(check, "no append-only file: rows are lost at a restart", "set appendonly to yes"))
    failed = [key for key in ("rdb_last_bgsave_status", "aof_last_write_status") if info.get(key, "ok") != "ok"]
    if failed:
        found.append(wrong(check, f"cannot write ({', '.join(failed)})", "look for a full disk and into Redis' log"))
    return found


async def _examine_mode(client: redis.asyncio.Redis, info: Info, settings: Settings) -> AsyncIterator[Finding]:
    clustered = str(info.get("cluster_enabled", 0)) == "1"
    check = "Redis Cluster"
    if clustered != settings.redis_cluster:
        text, value = ("is one", "true") if clustered else ("is none", "false")
        yield wrong(check, f"{_VARIABLE} {text}", f"set TRIGLOT_REDIS_CLUSTER={value}")
        return
    if not clustered:
        return
    ask: Any = client.execute_command  # has no types
    state = await ask("CLUSTER INFO")
    state = (
        state if isinstance(state, dict) else dict(line.split(":", 1) for line in state.split("\r\n") if ":" in line)
    )
    nodes: dict[str, Any] = await ask("CLUSTER NODES")
    assigned, up = int(state["cluster_slots_assigned"]), int(state["cluster_slots_ok"])
    if assigned < _SLOTS:
        advice = "assign all 16384 slots: redis-cli --cluster fix"
        yield wrong(check, f"{_SLOTS - assigned} slots belong to no node", advice)
    elif state["cluster_state"] != "ok" or up < _SLOTS:
        yield wrong(
            check, f"{_SLOTS - up} slots are not served", "start the nodes that are away: CLUSTER NODES shows them"
        )
    else:
        yield fine(check, f"all slots are served, by {state['cluster_size']} primaries")
    failing = [address for address, node in nodes.items() if "fail" in node["flags"]]
    if failing:
        yield wrong(check, f"nodes are away: {', '.join(map(_address, failing))}", "start them, or have them forgotten")
    alone = [
        address
        for address, node in nodes.items()
        if "master" in node["flags"]
        and node["slots"]
        and not any(other["master_id"] == node["node_id"] and "fail" not in other["flags"] for other in nodes.values())
    ]
    if alone:
        text = f"primaries without a replica: {', '.join(map(_address, alone))}"
        yield warning(check, text, "give each primary a replica: without one its rows are gone with its machine")
    for address, node in nodes.items():
        if "master" in node["flags"] and "fail" not in node["flags"] and "myself" not in node["flags"]:
            async for finding in _examine_node(_address(address), settings):
                yield finding


def _address(node: str) -> str:
    """`host:port` of what CLUSTER NODES calls `host:port@bus`."""
    return node.partition("@")[0]


async def _examine_node(address: str, settings: Settings) -> AsyncIterator[Finding]:
    parts = urlsplit(settings.redis_url.get_secret_value())
    credentials = parts.netloc.rpartition("@")[0]
    client = _client(parts._replace(netloc=f"{credentials}@{address}" if credentials else address).geturl())
    name = f"Redis {address}"
    try:
        info: Info = await client.info("everything")
        async for finding in _examine_server(client, info, name):
            if finding.status != "ok":
                yield finding
    except _DRIVER_ERRORS as error:
        advice = "serving needs every node: look at firewalls, and at what the node announces (cluster-announce-ip)"
        yield wrong(name, f"does not answer ({type(error).__name__})", advice)
    finally:
        await client.aclose()
