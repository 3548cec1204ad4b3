"""The real `hopsworks` client against one server. Runs in .venv-hopsworks; prints what it saw as one JSON line.

Stubbed is what asks a Hopsworks cluster for its address and token, nothing else: requests, parsing and the conversion
of values are the shipped code.

    client.py '{"port": .., "key": .., "features": [[name, type, group id], ..], "serving_keys": [..]}'
"""

from __future__ import annotations

import datetime
import json
import sys
from typing import Any

from hopsworks_common import client
from hopsworks_common.client import online_store_rest_client as rest
from hopsworks_common.core.variable_api import VariableApi
from hsfs.core.online_store_rest_client_api import OnlineStoreRestClientApi
from hsfs.core.online_store_rest_client_engine import OnlineStoreRestClientEngine
from hsfs.core.vector_server import VectorServer
from hsfs.serving_key import ServingKey
from hsfs.training_dataset_feature import TrainingDatasetFeature

STORE, VIEW, VERSION = "shop", "everything", 1


class Auth:
    _token = ""


class Cluster:
    """Stands for the connection to a Hopsworks cluster."""

    _connected = True
    _auth = Auth()

    def _is_external(self) -> bool:
        return True

    def _get_ca_chain_path(self) -> None:
        return None


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


def connect(port: int, key: str) -> None:
    Auth._token = key
    client._client = Cluster()
    VariableApi._get_loadbalancer_external_domain = lambda *_: "127.0.0.1"  # type: ignore[method-assign]
    VariableApi._get_service_discovery_domain = lambda *_: "127.0.0.1"  # type: ignore[method-assign]
    rest._online_store_rest_client = None
    config = {"host": "127.0.0.1", "port": port, "use_ssl": False, "verify_certs": False, "timeout": 10}
    rest._init_or_reset_online_store_rest_client(optional_config=config)


def vector_server(features: list[TrainingDatasetFeature], engine: Any, keys: list[ServingKey]) -> VectorServer:
    server = VectorServer(1, features, keys, feature_store_name=STORE, feature_view_name=VIEW, feature_view_version=1)
    server._rest_client_engine = engine
    server._init_rest_client, server._init_sql_client, server._default_client = True, False, "rest"
    server._on_demand_feature_names = []
    server._VectorServer__all_feature_groups_online = True  # type: ignore[attr-defined]
    server._serving_initialized = True
    server._set_return_feature_value_handlers(features)
    return server


def shown(value: Any) -> Any:
    """A value with its type, as JSON."""
    if isinstance(value, (list, tuple)):
        return [shown(each) for each in value]
    if isinstance(value, dict):
        return {name: shown(each) for name, each in value.items()}
    if isinstance(value, (datetime.date, datetime.datetime)):
        return {type(value).__name__: value.isoformat()}
    return {"bytes": value.hex()} if isinstance(value, bytes) else value


def failed(call: Any) -> dict[str, Any]:
    try:
        call()
    except Exception as error:
        return {"type": type(error).__name__, "text": str(error)}
    return {}


def failed_with_a_wrong_key(port: int, engine: OnlineStoreRestClientEngine) -> dict[str, Any]:
    connect(port, "0123456789abcdef.wrong")
    return failed(lambda: engine._get_single_feature_vector({"id": 1}))


def main(given: dict[str, Any]) -> dict[str, Any]:
    connect(given["port"], given["key"])
    groups = {group_id: FeatureGroup(group_id) for _, _, group_id in given["features"]}
    features = [
        TrainingDatasetFeature(name, type=hive, index=index, featuregroup=groups[group_id])
        for index, (name, hive, group_id) in enumerate(given["features"])
    ]
    keys = [
        ServingKey(each["feature_name"], each["join_index"], groups[each["group_id"]], each["required"], each["prefix"])
        for each in given["serving_keys"]
    ]
    engine = OnlineStoreRestClientEngine(STORE, VIEW, VERSION, features)
    server = vector_server(features, engine, keys)
    api = OnlineStoreRestClientApi()
    payload = {
        "featureStoreName": STORE,
        "featureViewName": VIEW,
        "featureViewVersion": VERSION,
        "options": {"validatePassedFeatures": False, "includeDetailedStatus": True},
    }
    # 5.2.1 itself fails to encode a date key; older ones send it as milliseconds.
    day_ms = 1_642_982_400_000
    return {
        "raw": api._get_single_raw_feature_vector(payload | {"entries": {"id": 1}}),
        "single": shown(engine._get_single_feature_vector({"id": 1})),
        "values": shown(engine._get_single_feature_vector({"id": 1}, return_type="feature_value_list")),
        "missing": shown(engine._get_single_feature_vector({"id": 99})),
        "dropped": shown(engine._get_single_feature_vector({"id": 99}, drop_missing=True)),
        "batch": shown(engine._get_batch_feature_vectors([{"id": 1}, {"id": 99}, {"id": "2"}])),
        "batch_dropped": shown(engine._get_batch_feature_vectors([{"id": 99}, {"id": 2}], drop_missing=True)),
        "batch_with_an_error": shown(engine._get_batch_feature_vectors([{"id": 1}, {"nothing": 1}])),
        "list": shown(server._get_feature_vector({"id": 1}, "list", allow_missing=True)),
        "lists": shown(
            server._get_feature_vectors(
                [{"id": 1}, {"id": 2}], "list", passed_features=[], vector_db_features=[], allow_missing=True
            )
        ),
        "nothing": shown(server._get_feature_vector({"id": 99}, "list", allow_missing=False)),
        "by_date": api._get_single_raw_feature_vector(
            payload | {"featureViewName": "by_day", "entries": {"day": day_ms}}
        ),
        "wrong_type": failed(lambda: engine._get_single_feature_vector({"id": "x"})),
        "wrong_name": failed(lambda: engine._get_single_feature_vector({"nothing": 1})),
        "wrong_view": failed(
            lambda: OnlineStoreRestClientEngine(STORE, "other", VERSION, features)._get_single_feature_vector({"id": 1})
        ),
        "wrong_key": failed_with_a_wrong_key(given["port"], engine),
    }


if __name__ == "__main__":
    print("ANSWER " + json.dumps(main(json.loads(sys.argv[1]))))
