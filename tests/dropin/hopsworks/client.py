"""The real `hopsworks` client against one server. Runs in .venv-hopsworks; prints what it saw as one JSON line.

Stubbed is what asks a Hopsworks cluster for its address and token, nothing else: requests, parsing and the conversion
of values are the shipped code.

    client.py '{"port": .., "key": .., "view": .., "features": [[name, type, group id], ..], "serving_keys": [..], ..}'
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import calls
from calls import FeatureGroup, failed
from hopsworks_common import client
from hopsworks_common.client import online_store_rest_client as rest
from hopsworks_common.core.variable_api import VariableApi
from hsfs.core.online_store_rest_client_api import OnlineStoreRestClientApi
from hsfs.core.online_store_rest_client_engine import OnlineStoreRestClientEngine
from hsfs.core.vector_server import VectorServer
from hsfs.serving_key import ServingKey
from hsfs.training_dataset_feature import TrainingDatasetFeature

STORE, VIEW, VERSION = calls.STORE, "everything", calls.VERSION


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


def connect(port: int, key: str, **config: Any) -> None:
    Auth._token = key
    client._client = Cluster()
    VariableApi._get_loadbalancer_external_domain = lambda *_: "127.0.0.1"  # type: ignore[method-assign]
    VariableApi._get_service_discovery_domain = lambda *_: "127.0.0.1"  # type: ignore[method-assign]
    rest._online_store_rest_client = None
    config = {"host": "127.0.0.1", "port": port, "use_ssl": False, "verify_certs": False, "timeout": 60, **config}
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


class Hopsworks:
    """See calls.Client."""

    def __init__(self, given: dict[str, Any], view: str) -> None:
        self._given = given
        groups = {group_id: FeatureGroup(group_id) for _, _, group_id in given["features"]}
        self._features = [
            TrainingDatasetFeature(name, type=hive, index=index, featuregroup=groups[group_id])
            for index, (name, hive, group_id) in enumerate(given["features"])
        ]
        keys = [
            ServingKey(
                each["feature_name"], each["join_index"], groups[each["group_id"]], each["required"], each["prefix"]
            )
            for each in given["serving_keys"]
        ]
        self._engine = OnlineStoreRestClientEngine(STORE, view, VERSION, self._features)
        self._server = vector_server(self._features, self._engine, keys)

    def connect(self, key: str, **config: Any) -> None:
        connect(config.pop("port"), key, **config)

    def raw(self, payload: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = OnlineStoreRestClientApi()._get_single_raw_feature_vector(payload)
        return found

    def single(self, entry: calls.Entry, **options: Any) -> Any:
        return self._engine._get_single_feature_vector(entry, **options)

    def batch(self, entries: Sequence[calls.Entry], **options: Any) -> Any:
        return self._engine._get_batch_feature_vectors(list(entries), **options)

    def of_view(self, name: str) -> Hopsworks:
        return Hopsworks(self._given, name)

    def vector(self, entry: calls.Entry, *, allow_missing: bool = True) -> Any:
        return self._server._get_feature_vector(entry, "list", allow_missing=allow_missing)

    def vectors(self, entries: Sequence[calls.Entry]) -> Any:
        return self._server._get_feature_vectors(
            list(entries), "list", passed_features=[], vector_db_features=[], allow_missing=True
        )


def main(given: dict[str, Any]) -> dict[str, Any]:
    hopsworks = Hopsworks(given, given["view"])
    return calls.everything(hopsworks, given) | {
        "dropped": calls.shown(hopsworks.single({"id": 99}, drop_missing=True)),
        "batch_dropped": calls.shown(hopsworks.batch([{"id": 99}, {"id": 2}], drop_missing=True)),
        "nothing": calls.shown(hopsworks.vector({"id": 99}, allow_missing=False)),
        "wrong_name": failed(lambda: hopsworks.single({"nothing": 1})),
    }


if __name__ == "__main__":
    print("ANSWER " + json.dumps(main(json.loads(sys.argv[1]))))
