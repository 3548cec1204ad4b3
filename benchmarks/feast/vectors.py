"""Fill Feast's Redis store. Runs in Feast's environment, beside a feature_store.yaml: `vectors.py FOLDER`.

The folder holds groups.json ([{name, types: {feature: Hive type}}]), views.json ({feature service: [group]}) and, for
each group, its rows as a Parquet file with a key `id`.
"""

import json
import sys
from pathlib import Path

import pandas as pd
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.types import Bool, Float64, Int64, String

TYPES = {"double": Float64, "bigint": Int64, "string": String, "boolean": Bool}
_ROWS_AT_ONCE = 2000


def main(folder: Path) -> None:
    """Apply the definitions, write the rows."""
    store = FeatureStore(repo_path=".")
    entity = Entity(name="id", join_keys=["id"], value_type=ValueType.INT64)
    views = {}
    for group in json.loads((folder / "groups.json").read_text()):
        file = folder / f"{group['name']}.parquet"
        views[group["name"]] = FeatureView(
            name=group["name"],
            entities=[entity],
            schema=[
                Field(name="id", dtype=Int64),
                *(Field(name=name, dtype=TYPES[kind]) for name, kind in group["types"].items()),
            ],
            source=FileSource(name=group["name"], path=str(file), timestamp_field="event_timestamp"),
        )
    services = [
        FeatureService(name=name, features=[views[group] for group in groups])
        for name, groups in json.loads((folder / "views.json").read_text()).items()
    ]
    store.apply([entity, *views.values(), *services])
    for name in views:
        rows = pd.read_parquet(folder / f"{name}.parquet")
        for first in range(0, len(rows), _ROWS_AT_ONCE):
            store.write_to_online_store(name, rows[first : first + _ROWS_AT_ONCE])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
