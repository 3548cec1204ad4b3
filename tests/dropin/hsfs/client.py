"""The real `hsfs` 3.7.9 against one server. Runs in .venv-hsfs; prints what it saw as one JSON line.

Stubbed is what asks a Hopsworks cluster for its address and token, nothing else, as in ../hopsworks/client.py.

    client.py '{"port": .., "key": .., "view": .., "features": [[name, type, group id], ..], "serving_keys": [..], ..}'
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "hopsworks"))

import calls
from hsfs import client
from hsfs.client import online_store_rest_client as rest
from hsfs.core.online_store_rest_client_api import OnlineStoreRestClientApi
from hsfs.core.online_store_rest_client_engine import OnlineStoreRestClientEngine
from hsfs.core.variable_api import VariableApi
from hsfs.core.vector_server import VectorServer
from hsfs.serving_key import ServingKey
from hsfs.training_dataset_feature import TrainingDatasetFeature


class Auth:
    _token = ""


class Cluster:
    """Stands for the connection to a Hopsworks cluster."""

    _connected = True
    _project_id = 1
    _auth = Auth()

    def _is_external(self) -> bool:
        return True

    def _get_ca_chain_path(self) -> None:
        return None


class Hsfs:
    """See calls.Client."""

    def __init__(self, given: dict[str, Any], view: str) -> None:
        self._given = given
        client._client = Cluster()
        groups = {group_id: calls.FeatureGroup(group_id) for _, _, group_id in given["features"]}
        self._features = [
            TrainingDatasetFeature(name, type=hive, index=index, featuregroup=groups[group_id])
            for index, (name, hive, group_id) in enumerate(given["features"])
        ]
        self._keys = [
            ServingKey(
                each["feature_name"], each["join_index"], groups[each["group_id"]], each["required"], each["prefix"]
            )
            for each in given["serving_keys"]
        ]
        # A complex value that came as JSON is not decoded, but a schema must be there.
        schemas = {name: None for name, hive, _ in given["features"] if "<" in hive}
        self._engine = OnlineStoreRestClientEngine(
            calls.STORE, view, calls.VERSION, self._features, set(), complex_features=schemas, serving_keys=self._keys
        )
        self._server = VectorServer(
            1,
            self._features,
            serving_keys=self._keys,
            feature_store_name=calls.STORE,
            feature_view_name=view,
            feature_view_version=calls.VERSION,
        )
        self._server._online_store_rest_client_engine = self._engine
        self._server._init_online_store_rest_client, self._server._init_online_store_sql_client = True, False
        self._server.default_online_store_client = self._server.DEFAULT_ONLINE_STORE_REST_CLIENT

    def connect(self, key: str, **config: Any) -> None:
        Auth._token = key
        VariableApi.get_loadbalancer_external_domain = lambda *_: "127.0.0.1"  # type: ignore[method-assign]
        VariableApi.get_service_discovery_domain = lambda *_: "127.0.0.1"  # type: ignore[method-assign]
        rest._online_store_rest_client = None
        rest.init_or_reset_online_store_rest_client(optional_config={"host": "127.0.0.1", "timeout": 60_000, **config})

    def raw(self, payload: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = OnlineStoreRestClientApi().get_single_raw_feature_vector(payload)
        return found

    def single(self, entry: calls.Entry, **options: Any) -> Any:
        return self._engine.get_single_feature_vector(entry, **options)

    def batch(self, entries: Sequence[calls.Entry], **options: Any) -> Any:
        return self._engine.get_batch_feature_vectors(list(entries), **options)

    def of_view(self, name: str) -> Hsfs:
        return Hsfs(self._given, name)

    def vector(self, entry: calls.Entry) -> Any:
        return self._server.get_feature_vector(entry, "list", passed_features={})

    def vectors(self, entries: Sequence[calls.Entry]) -> Any:
        return self._server.get_feature_vectors(list(entries), "list")


def main(given: dict[str, Any]) -> dict[str, Any]:
    hsfs = Hsfs(given, given["view"])
    seen = calls.everything(hsfs, given)
    mine = {"name": "mine", "x": 7}
    options = {"metadata_options": {"featureName": True, "featureType": True}, "return_type": "response_json"}
    return seen | {
        # It sends no options at all, and passed features with every request.
        "passed": calls.shown(hsfs.single({"id": 99}, passed_features=mine)),
        "batch_passed": calls.shown(hsfs.batch([{"id": 99}, {"id": 1}], passed_features=[mine, {}])),
        "metadata": hsfs.single({"id": 1}, **options),
        # Without a serving key it takes the batch endpoint for one vector.
        "wrong_name": calls.shown(hsfs.single({"nothing": 1})),
        "fraction": calls.failed(lambda: Hsfs(given | {"features": given["all"]}, "everything").single({"id": 1})),
    }


if __name__ == "__main__":
    print("ANSWER " + json.dumps(main(json.loads(sys.argv[1]))))
