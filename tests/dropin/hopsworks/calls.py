"""What every version of the real client is asked, whatever it calls its functions. Runs in the client's environment."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from typing import Any, Protocol

STORE, VERSION = "shop", 1
# 5.2.1 itself fails to encode a date key; older ones send it as milliseconds.
_DAY_MS = 1_642_982_400_000

Entry = dict[str, Any]


class Client(Protocol):
    """One version of the client, with a view of the server."""

    def connect(self, key: str, **config: Any) -> None:
        """Begin anew with this key and configuration, on 127.0.0.1."""

    def raw(self, payload: dict[str, Any]) -> dict[str, Any]:
        """The API's answer to one vector's request."""

    def single(self, entry: Entry, **options: Any) -> Any:
        """The engine's vector."""

    def batch(self, entries: Sequence[Entry]) -> Any:
        """The engine's vectors."""

    def of_view(self, name: str) -> Client:
        """The same with another view."""

    def vector(self, entry: Entry) -> Any:
        """The vector server's list of values, None where there is none."""

    def vectors(self, entries: Sequence[Entry]) -> Any:
        """The same for many."""


class FeatureGroup:
    """What the client wants to know of a feature group."""

    def __init__(self, group_id: int) -> None:
        self.id = group_id
        self._id = group_id
        self.features: list[Any] = []
        self.prefix = None
        self.online_enabled = True
        self.name, self.version, self.feature_store_name = f"g{group_id}", 1, STORE
        self.embedding_index = None

    def _get_feature_avro_schema(self, name: str) -> str:
        """Only asked for: over REST complex values are plain JSON."""
        return '["null","string"]'


def shown(value: Any) -> Any:
    """A value with its type, as JSON."""
    if isinstance(value, (list, tuple)):
        return [shown(each) for each in value]
    if isinstance(value, dict):
        return {name: shown(each) for name, each in value.items()}
    if isinstance(value, (datetime.date, datetime.datetime)):
        return {type(value).__name__: value.isoformat()}
    return {"bytes": value.hex()} if isinstance(value, bytes) else value


def failed(call: Callable[[], object]) -> dict[str, Any]:
    """The exception of a call that must fail; nothing if it does not."""
    try:
        call()
    except Exception as error:
        return {"type": type(error).__name__, "text": str(error)}
    return {}


def reading(client: Client, view: str) -> dict[str, Any]:
    """Single vectors and batches: rows that are there and that are not, errors."""
    payload = {"featureStoreName": STORE, "featureViewName": view, "featureViewVersion": VERSION}
    options = {"options": {"validatePassedFeatures": False, "includeDetailedStatus": True}}
    return {
        "raw": client.raw(payload | options | {"entries": {"id": 1}}),
        "single": shown(client.single({"id": 1})),
        "values": shown(client.single({"id": 1}, return_type="feature_value_list")),
        "missing": shown(client.single({"id": 99})),
        "batch": shown(client.batch([{"id": 1}, {"id": 99}, {"id": "2"}])),
        "batch_with_an_error": shown(client.batch([{"id": 1}, {"nothing": 1}])),
        "list": shown(client.vector({"id": 1})),
        "lists": shown(client.vectors([{"id": 1}, {"id": 2}])),
        "by_date": client.raw(payload | options | {"featureViewName": "by_day", "entries": {"day": _DAY_MS}}),
        "wrong_type": failed(lambda: client.single({"id": "x"})),
        "wrong_view": failed(lambda: client.of_view("other").single({"id": 1})),
    }


def with_tls(client: Client, given: dict[str, Any]) -> dict[str, Any]:
    """The same vectors from a port with TLS; and what is said when another authority is trusted."""
    config = {"port": given["tls_port"], "use_ssl": True, "verify_certs": True}
    strange = failed(lambda: client.connect(given["key"], ca_certs=given["other_authority"], **config))
    client.connect(given["key"], ca_certs=given["authority"], **config)
    return {
        "single": shown(client.single({"id": 1})),
        "batch": shown(client.batch([{"id": 1}, {"id": 99}, {"id": "2"}])),
        "strange": strange,
    }


def everything(client: Client, given: dict[str, Any]) -> dict[str, Any]:
    """All of it."""
    plain = {"port": given["port"], "use_ssl": False, "verify_certs": False}
    client.connect(given["key"], **plain)
    seen = reading(client, given["view"])
    seen["tls"] = with_tls(client, given)
    client.connect("0123456789abcdef.wrong", **plain)
    seen["wrong_key"] = failed(lambda: client.single({"id": 1}))
    client.connect(given["key"], **plain)
    return seen
