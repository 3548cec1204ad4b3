"""The real `hopsworks` client on views with labels, helpers, prefixes, several stores and keys of dates.

Runs in .venv-hopsworks; prints what it saw as one JSON line. Values are shown as Python writes them, so that 1, 1.0 and
True are told apart. What is stubbed: see client.py.

    scenario.py '{"port": .., "key": .., "other_keys": {..}, "views": {name: {"features": [..], "serving_keys": [..]}}}'
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy
from client import FeatureGroup, connect, failed, vector_server
from hopsworks_common.client import online_store_rest_client as rest
from hopsworks_common.client.exceptions import RestAPIError
from hsfs.core.online_store_rest_client_api import OnlineStoreRestClientApi
from hsfs.core.online_store_rest_client_engine import OnlineStoreRestClientEngine
from hsfs.serving_key import ServingKey
from hsfs.training_dataset_feature import TrainingDatasetFeature

# As the platform names the store of project Shop; the client makes `shop` of it.
STORE = "Shop_featurestore"
DAY_MS, AT_MS = 1_642_982_400_000, 1_643_029_500_250


class View:
    """One view as the client's cluster would describe it."""

    def __init__(self, name: str, given: dict[str, Any]) -> None:
        groups = {each["group_id"]: FeatureGroup(each["group_id"]) for each in given["features"]}
        self.features = [
            TrainingDatasetFeature(
                each["name"],
                type=each["type"],
                index=index,
                featuregroup=groups[each["group_id"]],
                label="label" in each["marks"],
                inference_helper_column="inference_helper" in each["marks"],
                training_helper_column="training_helper" in each["marks"],
            )
            for index, each in enumerate(given["features"])
        ]
        keys = [
            ServingKey(key["feature_name"], key["join_index"], groups[key["group_id"]], key["required"], key["prefix"])
            for key in given["serving_keys"]
        ]
        self.engine = OnlineStoreRestClientEngine(STORE, name, 1, self.features)
        self.server = vector_server(self.features, self.engine, keys)

    def one(self, entry: dict[str, Any], **more: Any) -> str:
        return repr(self.engine._get_single_feature_vector(entry, **more))

    def many(self, *entries: dict[str, Any], **more: Any) -> list[str]:
        return [repr(row) for row in self.engine._get_batch_feature_vectors(list(entries), **more)]

    def vector(self, entry: dict[str, Any], kind: str = "list", **more: Any) -> str:
        return repr(self.server._get_feature_vector(entry, kind, **more))

    def vectors(self, *entries: dict[str, Any], **more: Any) -> list[str]:
        found = self.server._get_feature_vectors(list(entries), "list", [], [], **more)
        return [repr(row) for row in found]


def refusal(call: Callable[[], object]) -> list[Any]:
    """Status and body of the answer in the client's own exception."""
    try:
        return ["answered", call()]
    except RestAPIError as error:
        text = error.response.text
        return [error.response.status_code, json.loads(text) if text.startswith("{") else text]


def raw(name: str) -> dict[str, Any]:
    """What the API hands on, untouched: one vector and a batch of the view, with all that can be asked for."""
    payload = {
        "featureStoreName": STORE,
        "featureViewName": name,
        "featureViewVersion": 1,
        "options": {"validatePassedFeatures": True, "includeDetailedStatus": True},
        "metadataOptions": {"featureName": True, "featureType": True},
    }
    api, there, gone = OnlineStoreRestClientApi(), {"rider_id": 1, "city_id": 7}, {"rider_id": 99, "city_id": 7}
    ping = api._ping_rondb_rest_server()
    return {
        "ping": [ping.status_code, ping.text],
        "connected": rest._get_instance()._is_connected(),
        "single": api._get_single_raw_feature_vector(payload | {"entries": there}),
        "batch": api._get_batch_raw_feature_vectors(payload | {"entries": [there, gone]}),
    }


def of_engine(view: View) -> dict[str, Any]:
    there, edges = {"rider_id": 1, "city_id": 7}, {"rider_id": 2**53 + 1, "city_id": 8}
    no_city, no_rider, neither = ({"rider_id": 1, "city_id": 99}, {"rider_id": 99, "city_id": 7}, {"rider_id": 2**53})
    mine = {"name": "mine", "city_people": 5}
    return {
        "dict": view.one(there),
        "list": view.one(there, return_type="feature_value_list"),
        "of numpy": view.one({"rider_id": numpy.int64(1), "city_id": numpy.int32(7)}),
        "helpers": view.one(there, inference_helpers_only=True),
        "no city": view.one(no_city),
        "no city, dropped": view.one(no_city, drop_missing=True),
        "null city, dropped": view.one({"rider_id": 1, "city_id": None}, drop_missing=True),
        "passed": view.one(there, passed_features=mine),
        "batch": view.many(there, no_rider, edges, neither, there),
        "batch, dropped": view.many(there, no_rider, edges, neither, there, drop_missing=True),
        "batch, passed": view.many(no_city, there, passed_features=[mine, {}]),
    }


def of_server(view: View) -> dict[str, Any]:
    there, no_city = {"rider_id": 1, "city_id": 7}, {"rider_id": 1, "city_id": 99}
    nulls, nobody = {"rider_id": 2, "city_id": 8}, {"rider_id": 99, "city_id": 99}
    frame = view.server._get_feature_vector(there, "pandas")
    return {
        "list": view.vector(there),
        "list, passed": view.vector(there, passed_features={"name": "mine"}),
        "no city": view.vector(no_city, allow_missing=True),
        "no city, refused": failed(lambda: view.vector(no_city)),
        "nobody": view.vector(nobody),
        "batch": view.vectors(there, nobody, nulls),
        "batch, nothing dropped": view.vectors(there, nobody, nulls, allow_missing=True),
        "pandas": [list(frame.columns), repr(frame.iloc[0].city_name)],
        "helpers": repr(view.server._get_inference_helper(there, "dict", False, False)),
    }


def of_positions(view: View) -> dict[str, Any]:
    """Without timestamps the client takes the vector from the row by position."""
    prepared = view.server._prepared_rest_projection(True, True, None, None, None)
    return {
        "positions": prepared,
        "list": view.vector({"rider_id": 1}),
        "batch": view.vectors({"rider_id": 1}, {"rider_id": 2}),
    }


def of_moments(hidden: View, shown: View) -> dict[str, Any]:
    """A key of a date and a timestamp, as milliseconds (what the client makes of them) and as text."""
    numbers, texts = {"day": DAY_MS, "at": AT_MS}, {"day": "2022-01-24", "at": "2022-01-24 13:05:00.250"}
    return {
        "found": hidden.many(numbers, texts, numbers | {"at": AT_MS + 1}, numbers | {"day": DAY_MS + 86_400_000}),
        "vector": hidden.vector(numbers),
        "keys in the vector": [shown.vector(texts), shown.vector(texts | {"at": AT_MS})],
    }


def of_refusals(view: View, port: int) -> dict[str, Any]:
    there = {"rider_id": 1}
    unknown = OnlineStoreRestClientEngine(STORE, "nothing", 1, view.features)
    version = OnlineStoreRestClientEngine(STORE, view.engine.feature_view_name, 2, view.features)
    store = OnlineStoreRestClientEngine("nowhere", view.engine.feature_view_name, 1, view.features)
    seen = {
        "unknown view": refusal(lambda: unknown._get_single_feature_vector(there)),
        "unknown view, batch": refusal(lambda: unknown._get_batch_feature_vectors([there])),
        "unknown version": refusal(lambda: version._get_single_feature_vector(there)),
        "unknown store": refusal(lambda: store._get_single_feature_vector(there)),
        "wrong key name": refusal(lambda: view.one({"rider": 1})),
        "null keys": refusal(lambda: view.one({"rider_id": None, "city_id": None})),
        "empty batch": refusal(view.many),
        "still answers": refusal(lambda: view.one(there))[0],
    }
    pool = rest._get_instance()._pool.connection_from_url(f"http://127.0.0.1:{port}")
    seen["connections"] = [pool.num_connections, pool.num_requests > 6]
    return seen


def of_keys(views: dict[str, View], port: int, keys: dict[str, str]) -> dict[str, Any]:
    """What each key is answered by a view of store shop, and by one that reads store atlas, too."""
    seen = {}
    for name, key in keys.items():
        connect(port, key)
        calls = [lambda each=each: views[each].one({"rider_id": 1}) for each in ("plain", "riding")]
        seen[name] = [refusal(call) for call in calls]
        seen[f"{name}, batch"] = refusal(lambda: views["riding"].many({"rider_id": 1}))
    return seen


def main(given: dict[str, Any]) -> dict[str, Any]:
    port = given["port"]
    connect(port, given["key"])
    views = {name: View(name, view) for name, view in given["views"].items()}
    return {
        "raw": raw("riding"),
        "engine": of_engine(views["riding"]),
        "server": of_server(views["riding"]),
        "positions": of_positions(views["plain"]),
        "moments": of_moments(views["by_moment"], views["moments"]),
        "refusals": of_refusals(views["riding"], port),
        "keys": of_keys(views, port, given["other_keys"]),
    }


if __name__ == "__main__":
    print("ANSWER " + json.dumps(main(json.loads(sys.argv[1]))))
