"""Fill Feast's SQL registry in bulk, with Feast's own tables. Runs in Feast's environment, beside a feature_store.yaml.

Through its API 20,000 views would take hours, because every write builds the whole registry anew.
"""

import sys
from pathlib import Path

from feast import FeatureStore
from feast.infra.registry import sql
from feast.project import Project
from feast.protos.feast.core.Registry_pb2 import Registry
from sqlalchemy import insert

_ROWS_AT_ONCE = 1000


def main() -> None:
    """`fill.py FILE`: a serialized feast.core.Registry, all of it of the project that feature_store.yaml names."""
    content = Registry.FromString(Path(sys.argv[1]).read_bytes())
    store = FeatureStore(repo_path=".")
    registry = store.registry
    registry.apply_project(Project(name=store.project))
    tables = [
        (sql.entities, "entity", content.entities),
        (sql.data_sources, "data_source", content.data_sources),
        (sql.feature_views, "feature_view", content.feature_views),
        (sql.feature_services, "feature_service", content.feature_services),
    ]
    with registry.write_engine.begin() as connection:
        for table, kind, objects in tables:
            rows = [
                {
                    f"{kind}_name": each.name if kind == "data_source" else each.spec.name,
                    "project_id": store.project,
                    "last_updated_timestamp": each.meta.last_updated_timestamp.seconds,
                    f"{kind}_proto": each.SerializeToString(),
                }
                for each in objects
            ]
            for first in range(0, len(rows), _ROWS_AT_ONCE):
                connection.execute(insert(table), rows[first : first + _ROWS_AT_ONCE])


if __name__ == "__main__":
    main()
