"""Runs in .venv-pai: the official SDK, unmodified, against the endpoint it is given. Prints what it saw as JSON.

python scenario.py '{"config": {"endpoint": "127.0.0.1:8080", ...}, "asynchronous": false, "scenario": "publish", ...}'
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from alibabacloud_paifeaturestore20230621 import models
from alibabacloud_paifeaturestore20230621.client import Client
from alibabacloud_tea_openapi.exceptions import ClientException, ThrottlingException
from alibabacloud_tea_openapi.utils import Utils
from alibabacloud_tea_openapi.utils_models import Config

POLL_SECONDS = 0.1
WAIT_SECONDS = 120


def main() -> None:
    asked = json.loads(sys.argv[1])
    config, scenario = asked["config"], asked["scenario"]
    if scenario in REFUSALS:
        print(json.dumps(REFUSALS[scenario](config, asked)))
        return
    client = Caller(config, asynchronous=asked["asynchronous"])
    seen = SCENARIOS[scenario](client, asked)
    print(json.dumps({**seen, "called": sorted(client.called)}))


class Caller:
    """The SDK's client, its methods called as they are or as their asynchronous twins. Knows what has succeeded."""

    def __init__(self, config: dict[str, Any], *, asynchronous: bool) -> None:
        self._client = Client(Config(**config))
        self._runner = asyncio.Runner() if asynchronous else None
        self.called: set[str] = set()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if self._runner is None:
                answer = getattr(self._client, name)(*arguments)
            else:
                answer = self._runner.run(getattr(self._client, f"{name}_async")(*arguments))
            self.called.add(name)
            return answer

        return call


def instance_of(client: Caller) -> str:
    """What every data-plane client does first."""
    listed = client.list_instances(models.ListInstancesRequest(status="Running"))
    return listed.body.instances[0].instance_id


def catalogue(client: Caller, asked: dict[str, Any]) -> dict[str, Any]:
    """Make one of each kind, read each back, change and delete some; everything seen is in the answer."""
    instance = instance_of(client)
    ids = made(client, instance, asked["root"], asked["project"])
    seen: dict[str, Any] = {"instance": instance, "ids": ids}
    for name, identifier in ids.items():
        got = getattr(client, "get_datasource" if name == "online" else f"get_{name}")(instance, identifier)
        seen[name] = got.body.to_map()
    listings = {
        "list_datasources": models.ListDatasourcesRequest(page_size=100),
        "list_projects": models.ListProjectsRequest(name=asked["project"], project_ids=[ids["project"]]),
        "list_feature_entities": models.ListFeatureEntitiesRequest(project_id=ids["project"]),
        "list_feature_views": models.ListFeatureViewsRequest(
            project_id=ids["project"], sort_by="GmtCreateTime", order="ASC", feature_view_ids=[ids["feature_view"]]
        ),
        "list_label_tables": models.ListLabelTablesRequest(project_id=ids["project"]),
        "list_model_features": models.ListModelFeaturesRequest(project_id=ids["project"]),
        "list_tasks": models.ListTasksRequest(project_id=ids["project"]),
    }
    for name, request in listings.items():
        seen[name] = getattr(client, name)(instance, request).body.to_map()
    entity = client.get_project_feature_entity(instance, ids["project"], "user/of it")
    seen["by_name"] = entity.body.to_map()
    seen["tables"] = client.list_datasource_tables(
        instance, asked.get("offline", seen["project"]["OfflineDatasourceId"]), models.ListDatasourceTablesRequest()
    ).body.to_map()
    seen["table"] = client.get_datasource_table(instance, seen["project"]["OfflineDatasourceId"], "users").body.to_map()
    seen["across"] = {name: call().body.to_map() for name, call in lists_across(client, instance, ids).items()}
    seen["fg"] = {name: call().body.to_map() for name, call in generation(client, instance, ids).items()}
    client.update_project(instance, ids["project"], models.UpdateProjectRequest(description="naïve ☃"))
    seen["description"] = client.get_project(instance, ids["project"]).body.description
    client.update_label_table(
        instance,
        ids["label_table"],
        models.UpdateLabelTableRequest(
            name="renamed",
            fields=[models.UpdateLabelTableRequestFields(name="clicked", type="INT32", attributes=["EventTime"])],
        ),
    )
    seen["update_request_id"] = client.update_feature_view(
        instance,
        ids["feature_view"],
        models.UpdateFeatureViewRequest(
            fields=[
                models.UpdateFeatureViewRequestFields(name=name, type=kind, attributes=attributes)
                for name, kind, attributes in VIEW_FIELDS
            ]
        ),
    ).body.request_id
    seen["changed"] = changed(client, instance, ids)
    seen["refused"] = {name: refusal(call) for name, call in refusals(client, instance, ids).items()}
    seen["stopped"] = stopped(client, instance, ids["feature_view"])
    seen["deleted"] = deleted(client, instance, ids)
    return seen


def changed(client: Caller, instance: str, ids: dict[str, str]) -> dict[str, Any]:
    """What datasource and model feature are after an update; and the instance, which nothing changes."""
    client.update_datasource(
        instance,
        ids["online"],
        models.UpdateDatasourceRequest(name="another name", uri="feature_db", config='{"token":"t"}'),
    )
    chosen = [("age", "INT32", ""), ("city", "STRING", "town")]
    features = [
        models.UpdateModelFeatureRequestFeatures(
            feature_view_id=ids["feature_view"], name=name, type=kind, alias_name=alias
        )
        for name, kind, alias in chosen
    ]
    client.update_model_feature(
        instance, ids["model_feature"], models.UpdateModelFeatureRequest(features=features, label_priority_level=2)
    )
    return {
        "instance made": client.create_instance(models.CreateInstanceRequest(type="Basic")).body.to_map(),
        "instance": client.get_instance(instance).body.to_map(),
        "online": client.get_datasource(instance, ids["online"]).body.to_map(),
        "model_feature": client.get_model_feature(instance, ids["model_feature"]).body.to_map(),
        "label_table": client.get_label_table(instance, ids["label_table"]).body.to_map(),
        "feature_view": client.get_feature_view(instance, ids["feature_view"]).body.to_map(),
    }


def stopped(client: Caller, instance: str, view: str) -> dict[str, Any]:
    """A task that no worker has taken up, stopped."""
    request = models.PublishFeatureViewTableRequest(
        mode="Overwrite", offline_to_online=True, partitions={"ds": "20230820"}
    )
    task = client.publish_feature_view_table(instance, view, request).body.task_id
    before = client.get_task(instance, task).body.status
    client.stop_task(instance, task)
    return {"before": before, "after": client.get_task(instance, task).body.status}


def deleted(client: Caller, instance: str, ids: dict[str, str]) -> dict[str, Any]:
    """Everything, one after the other; what asking for it again says."""
    kinds = {
        "model_feature": "model_feature",
        "feature_view": "feature_view",
        "label_table": "label_table",
        "feature_entity": "feature_entity",
        "project": "project",
        "datasource": "datasource",
        "online": "datasource",
    }
    seen = {}
    for name, kind in kinds.items():
        getattr(client, f"delete_{kind}")(instance, ids[name])
        seen[name] = refusal(lambda kind=kind, name=name: getattr(client, f"get_{kind}")(instance, ids[name]))
    return seen


def lists_across(client: Caller, instance: str, ids: dict[str, str]) -> dict[str, Callable[[], Any]]:
    """Lists of what belongs to something else."""
    project, view, datasource = ids["project"], ids["feature_view"], ids["datasource"]
    return {
        "features": lambda: client.list_project_features(
            instance, project, models.ListProjectFeaturesRequest(name="a", sort_by="ModelFeatureCount", page_size=1)
        ),
        "views": lambda: client.list_project_feature_views(instance, project),
        "models of a view": lambda: client.list_feature_view_relationships(instance, view),
        "models of a field": lambda: client.list_feature_view_field_relationships(instance, view, "age"),
        "views of a datasource": lambda: client.list_datasource_feature_views(
            instance, datasource, models.ListDatasourceFeatureViewsRequest(all=True, project_id=project)
        ),
        "a datasource that works": lambda: client.check_instance_datasource(
            instance, models.CheckInstanceDatasourceRequest(type="FeatureDB", uri="feature_db", config="{}")
        ),
    }


def generation(client: Caller, instance: str, ids: dict[str, str]) -> dict[str, Callable[[], Any]]:
    """How features are generated from those of a model feature: written, read, checked."""
    model = ids["model_feature"]
    raw = {
        "feature_domain": "User", "feature_name": "f_years", "feature_type": "RawFeature",
        "input_feature_name": "years", "value_type": "INTEGER", "default_value": "0",
    }  # fmt: skip
    request = models.UpdateModelFeatureFGFeatureRequest(
        raw_features=[models.UpdateModelFeatureFGFeatureRequestRawFeatures(**raw)],
        lookup_features=[
            models.UpdateModelFeatureFGFeatureRequestLookupFeatures(
                map_feature_domain="Item", map_feature_name="years", key_feature_domain="User",
                key_feature_name="years", feature_name="f_lookup", value_type="STRING", default_value="",
            )
        ],
        sequence_features=[
            models.UpdateModelFeatureFGFeatureRequestSequenceFeatures(
                feature_name="clicks", sequence_length=50, sequence_delim=";", attribute_delim="#",
                sub_features=[models.UpdateModelFeatureFGFeatureRequestSequenceFeaturesSubFeatures(**raw)],
            )
        ],
        reserves=["years"],
    )  # fmt: skip
    return {
        "update": lambda: client.update_model_feature_fgfeature(instance, model, request),
        "get": lambda: client.get_model_feature_fgfeature(instance, model),
        "info": lambda: client.get_model_feature_fginfo(instance, model),
        "check": lambda: client.check_model_feature_fgfeature(instance, model),
        "available": lambda: client.list_model_feature_available_features(
            instance, model, models.ListModelFeatureAvailableFeaturesRequest(feature_name="year")
        ),
    }


VIEW_FIELDS = (
    ("user_id", "INT64", ["PrimaryKey"]),
    ("age", "INT32", []),
    ("score", "FLOAT", []),
    ("city", "STRING", []),
    ("seen_at", "TIMESTAMP", []),
    ("tags", "ARRAY<STRING>", []),
)


def made(client: Caller, instance: str, root: str, project: str) -> dict[str, str]:
    """Ids by kind."""
    offline = client.create_datasource(
        instance,
        models.CreateDatasourceRequest(
            name=f"offline {project}",
            workspace_id="234",
            type="MaxCompute",
            uri="p",
            config=json.dumps({"driver": "parquet", "root": root}),
        ),
    ).body.datasource_id
    online = client.create_datasource(
        instance,
        models.CreateDatasourceRequest(
            name=f"online {project}", workspace_id="234", type="FeatureDB", uri="feature_db", config="{}"
        ),
    ).body.datasource_id
    project_id = client.create_project(
        instance,
        models.CreateProjectRequest(
            name=project,
            workspace_id="324",
            description="This is a test.",
            offline_datasource_id=offline,
            offline_life_cycle=90,
            online_datasource_id=online,
        ),
    ).body.project_id
    entity = client.create_feature_entity(
        instance, models.CreateFeatureEntityRequest(name="user/of it", join_id="uid", project_id=project_id)
    ).body.feature_entity_id
    view = client.create_feature_view(
        instance,
        models.CreateFeatureViewRequest(
            project_id=project_id,
            name="profile",
            type="Batch",
            feature_entity_id=entity,
            write_method="ByReadyMadeTable",
            register_table="users",
            register_datasource_id=offline,
            sync_online_table=True,
            ttl=90,
            tags=["label1"],
            fields=[
                models.CreateFeatureViewRequestFields(name=name, type=kind, attributes=attributes)
                for name, kind, attributes in VIEW_FIELDS
            ],
        ),
    ).body.feature_view_id
    label = client.create_label_table(
        instance,
        models.CreateLabelTableRequest(
            project_id=project_id,
            datasource_id=offline,
            name="clicks",
            fields=[models.CreateLabelTableRequestFields(name="clicked", type="INT32", attributes=["LabelField"])],
        ),
    ).body.label_table_id
    model = client.create_model_feature(
        instance,
        models.CreateModelFeatureRequest(
            project_id=project_id,
            name="model",
            label_table_id=label,
            label_priority_level=0,
            features=[
                models.CreateModelFeatureRequestFeatures(
                    feature_view_id=view, name="age", alias_name="years", type="INT32"
                )
            ],
        ),
    ).body.model_feature_id
    return {
        "datasource": offline,
        "online": online,
        "project": project_id,
        "feature_entity": entity,
        "feature_view": view,
        "label_table": label,
        "model_feature": model,
    }


def publish(client: Caller, asked: dict[str, Any]) -> dict[str, Any]:
    """Publish a partition, follow the task, read rows; then publish another one with Merge and read again."""
    instance = instance_of(client)
    ids = made(client, instance, asked["root"], asked["project"])
    view = ids["feature_view"]
    seen: dict[str, Any] = {"before": online(client, instance, view, ["1"])}
    seen["overwrite"] = published(client, instance, view, "Overwrite", {"ds": {"value": "20230820"}})
    seen["after"] = online(client, instance, view, ["3", "99", "1"])
    seen["merge"] = published(client, instance, view, "Merge", {"ds": "20230821"})
    seen["merged"] = online(client, instance, view, ["1", "3", "4"])
    seen["view"] = client.get_feature_view(instance, view).body.to_map()
    seen["imported"] = imported(client, instance, ids, asked["csv"])
    seen["exported"] = exported(client, instance, ids)
    task = seen["overwrite"]["task_id"]
    seen["logs"] = client.list_task_logs(instance, task, models.ListTaskLogsRequest(page_size=100)).body.logs
    seen["tasks"] = client.list_tasks(
        instance, models.ListTasksRequest(task_ids=[task], status="Success")
    ).body.to_map()
    seen["stop"] = refusal(lambda: client.stop_task(instance, task))
    seen["model_in_use"] = refusal(lambda: client.delete_feature_view(instance, view))
    return seen


def published(client: Caller, instance: str, view: str, mode: str, partitions: dict[str, Any]) -> dict[str, Any]:
    task_id = client.publish_feature_view_table(
        instance,
        view,
        models.PublishFeatureViewTableRequest(
            mode=mode, partitions=partitions, offline_to_online=True, event_time="", config="{}"
        ),
    ).body.task_id
    return ended(client, instance, task_id)


def imported(client: Caller, instance: str, ids: dict[str, str], path: str) -> dict[str, Any]:
    """Write a file to the offline table of a view without a table of its own, publish that, read rows."""
    fields = (("user_id", "INT64", ["PrimaryKey"]), ("age", "INT32", []), ("ds", "STRING", ["Partition"]))
    view = client.create_feature_view(
        instance,
        models.CreateFeatureViewRequest(
            project_id=ids["project"], name="custom", type="Batch", feature_entity_id=ids["feature_entity"],
            write_method="Custom", sync_online_table=True,
            fields=[
                models.CreateFeatureViewRequestFields(name=name, type=kind, attributes=attributes)
                for name, kind, attributes in fields
            ],
        ),
    ).body.feature_view_id  # fmt: skip
    source = models.WriteFeatureViewTableRequestUrlDatasource(path=path, delimiter=",", omit_header=True)
    day = {"ds": {"value": "20230820"}}
    request = models.WriteFeatureViewTableRequest(mode="Overwrite", partitions=day, url_datasource=source)
    task = ended(client, instance, client.write_feature_view_table(instance, view, request).body.task_id)
    published(client, instance, view, "Overwrite", day)
    return {"task": task, "online": online(client, instance, view, ["1", "2"])}


def exported(client: Caller, instance: str, ids: dict[str, str]) -> dict[str, Any]:
    """Make a training set of a day's labels and another day's users; the task, and the model feature."""
    fields = (("uid", "INT64", []), ("clicked", "INT32", ["LabelField"]), ("ds", "STRING", ["Partition"]))
    label = client.create_label_table(
        instance,
        models.CreateLabelTableRequest(
            project_id=ids["project"], datasource_id=ids["datasource"], name="labels",
            fields=[
                models.CreateLabelTableRequestFields(name=name, type=kind, attributes=attributes)
                for name, kind, attributes in fields
            ],
        ),
    ).body.label_table_id  # fmt: skip
    feature = models.CreateModelFeatureRequestFeatures(feature_view_id=ids["feature_view"], name="age", type="INT32")
    model = client.create_model_feature(
        instance,
        models.CreateModelFeatureRequest(
            project_id=ids["project"], name="ranking", label_table_id=label, features=[feature]
        ),
    ).body.model_feature_id
    of_users = models.FeatureViewConfigValue(
        partitions={"ds": models.FeatureViewConfigValuePartitionsValue(value="20230820")}, equal=False
    )
    request = models.ExportModelFeatureTrainingSetTableRequest(
        label_input_config=models.ExportModelFeatureTrainingSetTableRequestLabelInputConfig(
            partitions={"ds": {"Value": "20230821"}}
        ),
        feature_view_config={"profile": of_users},
        training_set_config=models.ExportModelFeatureTrainingSetTableRequestTrainingSetConfig(
            partitions={"ds": {"Value": "20230821"}}
        ),
    )
    task = client.export_model_feature_training_set_table(instance, model, request).body.task_id
    return {"task": ended(client, instance, task), "model": client.get_model_feature(instance, model).body.to_map()}


def ended(client: Caller, instance: str, task_id: str) -> dict[str, Any]:
    """The task, once it has ended."""
    give_up = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < give_up:
        task = client.get_task(instance, task_id).body
        if task.status in ("Success", "Failure"):
            return {"task_id": task_id, **task.to_map()}
        time.sleep(POLL_SECONDS)
    raise TimeoutError(f"task {task_id} is {task.status}")


def online(client: Caller, instance: str, view: str, join_ids: list[str]) -> list[Any]:
    request = models.ListFeatureViewOnlineFeaturesRequest(join_ids=join_ids)
    answer = client.list_feature_view_online_features(instance, view, request)
    return [json.loads(text) for text in answer.body.online_features]


def refusals(client: Caller, instance: str, ids: dict[str, str]) -> dict[str, Callable[[], Any]]:
    return {
        "missing": lambda: client.get_project(instance, "999"),
        "other instance": lambda: client.get_project("fs-other", ids["project"]),
        "invalid": lambda: client.create_project(
            instance,
            models.CreateProjectRequest(
                name="1bad", workspace_id="1", offline_datasource_id="1", online_datasource_id="2"
            ),
        ),
        "taken": lambda: client.create_datasource(
            instance,
            models.CreateDatasourceRequest(name="offline shop", workspace_id="1", type="Hologres", uri="i/d"),
        ),
        "in use": lambda: client.delete_feature_view(instance, ids["feature_view"]),
        "no join ids": lambda: client.list_feature_view_online_features(
            instance, ids["feature_view"], models.ListFeatureViewOnlineFeaturesRequest()
        ),
        "not ours": lambda: client.get_service_identity_role("x"),
    }


def refusal(call: Callable[[], Any]) -> list[Any]:
    """Kind of exception, status, code and whether a request id came along; or that nothing was raised."""
    try:
        call()
    except ThrottlingException as error:
        return ["ThrottlingException", error.status_code, error.code, error.retry_after]
    except ClientException as error:
        return ["ClientException", error.status_code, error.code, "request id" in error.message]
    except Exception as error:
        return [type(error).__name__, str(error)]
    return ["nothing was raised"]


def refused(config: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """What clients see whose credentials are not good, whose clock is wrong, or that sign twice with one nonce."""
    seen = {}
    for way in (False, True):
        others = {name: Caller({**config, **other}, asynchronous=way) for name, other in asked["others"].items()}
        seen[str(way)] = {name: listing(other) for name, other in others.items()}
        client = Caller(config, asynchronous=way)
        for minutes in (-16, -14, 14, 16):
            off = datetime.now(UTC) + timedelta(minutes=minutes)
            with replaced("get_timestamp", off.strftime("%Y-%m-%dT%H:%M:%SZ")):
                seen[str(way)][str(minutes)] = listing(client)
        with replaced("get_nonce", f"the same twice {way}"):
            seen[str(way)] |= {"first": listing(client), "again": listing(client)}
    return seen


def throttled(config: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """What a client sees that makes one call too many."""
    listing(Caller(config, asynchronous=False))
    return {str(way): listing(Caller(config, asynchronous=way)) for way in (False, True)}


def listing(client: Caller) -> list[Any]:
    return refusal(lambda: client.list_instances(models.ListInstancesRequest()))


@contextmanager
def replaced(name: str, value: str) -> Iterator[None]:
    """What the SDK takes for the time, or for something random."""
    own = getattr(Utils, name)
    setattr(Utils, name, staticmethod(lambda: value))
    yield
    setattr(Utils, name, staticmethod(own))


SCENARIOS: dict[str, Callable[[Caller, dict[str, Any]], Any]] = {"catalogue": catalogue, "publish": publish}
# They make clients of their own.
REFUSALS = {"refused": refused, "throttled": throttled}

if __name__ == "__main__":
    main()
