"""The catalogue through PAI's REST API on the real database: what is kept, what is refused, and in which words."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chassis.postgres import Database
from chassis.principals import Principal
from chassis.settings import Settings
from gateway.dialects.pai.operations import OPERATIONS
from services.management.settings import ManagementSettings
from tests.management.conftest import Pai, catalogue
from tests.patience import until

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00")
KEY = {"Name": "user_id", "Type": "INT64", "Attributes": ["PrimaryKey"]}
AGE = {"Name": "age", "Type": "INT32", "Attributes": []}
VIEW: dict[str, Any] = {"Type": "Batch", "WriteMethod": "Custom", "SyncOnlineTable": True, "Fields": [KEY, AGE]}
LABELS = [
    {"Name": "user_id", "Type": "INT64", "Attributes": ["FeatureField"]},
    {"Name": "clicked", "Type": "INT32", "Attributes": ["LabelField"]},
]


async def test_instance(caller: Pai) -> None:
    listed = await caller.answer("ListInstances", Status="Running")
    assert listed["TotalCount"] == 1
    [instance] = listed["Instances"]
    assert (instance["InstanceId"], instance["Status"]) == ("fs-cn-triglot", "Running")
    assert (await caller.answer("ListInstances", Status="Failure"))["Instances"] == []
    got = await caller.answer("GetInstance")
    assert got["Progress"] == 1
    assert TIME.fullmatch(got["GmtCreateTime"])
    assert (await caller.answer("CreateInstance", Type="Basic"))["Code"] == "InstanceAlreadyExistsErrorProblem"
    for operation in ("GetInstance", "ListProjects", "GetTask"):
        answer = await caller.answer(operation, instance="fs-cn-other", expect=404)
        assert answer["Code"] == "ResourceNotFound"


async def test_project_shape(caller: Pai) -> None:
    ids = await catalogue(caller)
    got = await caller.answer("GetProject", ProjectId=ids["project"])
    assert TIME.fullmatch(got.pop("GmtCreateTime"))
    assert TIME.fullmatch(got.pop("GmtModifiedTime"))
    del got["RequestId"]
    assert got == {
        "ProjectId": ids["project"],
        "Name": "shop",
        "WorkspaceId": "1",
        "Description": "",
        "OfflineDatasourceId": ids["offline"],
        "OfflineDatasourceName": "offline",
        "OfflineDatasourceType": "MaxCompute",
        "OfflineLifecycle": 0,
        "OnlineDatasourceId": ids["online"],
        "OnlineDatasourceName": "online",
        "OnlineDatasourceType": "FeatureDB",
        "FeatureEntityCount": 1,
        "FeatureViewCount": 0,
        "ModelCount": 0,
        "Owner": "admin",
    }


@pytest.mark.parametrize("title", ["a", "1ab", "a-b", "x" * 19, "", "ab c"])
async def test_project_names(caller: Pai, title: str) -> None:
    await caller.refused("CreateProject", 400, "InvalidParameter", Name=title, WorkspaceId="1")


async def test_project_rules(caller: Pai) -> None:
    ids = await catalogue(caller)
    stores = {"WorkspaceId": "1", "OfflineDatasourceId": ids["offline"], "OnlineDatasourceId": ids["online"]}
    await caller.refused("CreateProject", 400, "ProjectAlreadyExists", Name="SHOP", **stores)
    await caller.refused("CreateProject", 400, "ProjectAlreadyExists", Name="shop_featurestore", **stores)
    swapped = {**stores, "OfflineDatasourceId": ids["online"], "OnlineDatasourceId": ids["offline"]}
    await caller.refused("CreateProject", 400, "InvalidParameter", Name="other", **swapped)
    await caller.refused(
        "CreateProject", 404, "ResourceNotFound", Name="other", **{**stores, "OnlineDatasourceId": "99"}
    )
    message = await caller.refused(
        "CreateProject", 400, "InvalidParameter", Name="other", OfflineLifeCycle="soon", **stores
    )
    assert "OfflineLifeCycle" in message
    await caller.answer("UpdateProject", ProjectId=ids["project"], Description="all of it")
    assert (await caller.answer("GetProject", ProjectId=ids["project"]))["Description"] == "all of it"
    await caller.made("FeatureView", Name="v", ProjectId=ids["project"], **VIEW)
    await caller.refused("UpdateProject", 400, "DependencyExists", ProjectId=ids["project"], Name="renamed")


async def test_ids(caller: Pai) -> None:
    await caller.refused("GetProject", 404, "ResourceNotFound", ProjectId="7")
    for bad in ("", "x", "-1", "9" * 19, "1.0"):
        await caller.refused("GetProject", 400, "InvalidParameter", ProjectId=bad)
    await caller.refused("GetDatasource", 404, "ResourceNotFound", DatasourceId="nobody")


async def test_datasource_secrets_never_come_back(caller: Pai, database: Database) -> None:
    config = {"host": "db", "password": "hunter2", "nested": {"access_key_secret": "s3cr3t"}, "url": "pg://u:pw@h/d"}
    made = await caller.made(
        "Datasource", Name="h", WorkspaceId="1", Type="Hologres", Uri="i/db", Config=orjson.dumps(config).decode()
    )
    masked = {"host": "db", "password": "******", "nested": {"access_key_secret": "******"}, "url": "******"}
    for answer in (
        await caller.answer("GetDatasource", DatasourceId=made),
        (await caller.answer("ListDatasources"))["Datasources"][0],
    ):
        assert orjson.loads(answer["Config"]) == masked
    row = await database.fetchrow("SELECT config, config_sealed FROM management.datasource")
    assert row is not None
    assert not any(secret in row["config"] or secret.encode() in row["config_sealed"] for secret in ("hunter2", "s3cr"))
    # What was read can be written back, and the secrets stay what they were.
    changed = {**masked, "host": "db2"}
    update = {"DatasourceId": made, "Name": "h2", "Uri": "i/db", "Config": orjson.dumps(changed).decode()}
    await caller.answer("UpdateDatasource", **update)
    again = await database.fetchrow("SELECT name, config, config_sealed FROM management.datasource")
    assert again is not None
    assert again["name"] == "h2"
    assert orjson.loads(again["config"])["host"] == "db2"


async def test_datasource_rules(caller: Pai) -> None:
    good = {"Name": "d", "WorkspaceId": "1", "Type": "Redis", "Uri": "localhost:6379/0"}
    await caller.made("Datasource", **good)
    await caller.refused("CreateDatasource", 400, "DatasourceAlreadyExists", **good)
    wrong: list[dict[str, Any]] = [
        {"Type": "Oracle"},
        {"Name": ""},
        {"Name": "12"},
        {"Uri": ""},
        {"Uri": "not a uri"},
        {"Uri": "redis://:password@localhost:6379"},
        {"WorkspaceId": ""},
        {"Config": "{"},
        {"Config": "[]"},
        {"Config": '{"a":' * 500 + "1" + "}" * 500},
        {"Config": '{"a": "' + "x" * 70_000 + '"}'},
        {"Config": {"a": 1}},
        {"Type": "FeatureDB", "Config": '{"port": 1}'},
        {"Type": "MaxCompute", "Config": '{"driver": "odps"}'},
        {"Type": "MaxCompute", "Config": '{"driver": "parquet"}'},
        {"Type": "MaxCompute", "Config": '{"root": "relative"}'},
        {"Type": "MaxCompute", "Config": '{"root": "/etc"}'},
    ]
    for change in wrong:
        await caller.refused("CreateDatasource", 400, "InvalidParameter", **{**good, "Name": "e", **change})


async def test_lists(caller: Pai) -> None:
    names = [f"d{number}" for number in range(12)]
    for title in names:
        await caller.made("Datasource", Name=title, WorkspaceId="1", Type="Hologres", Uri="i/db")
    listed = await caller.answer("ListDatasources")
    assert (listed["TotalCount"], [each["Name"] for each in listed["Datasources"]]) == (12, names[:1:-1])
    page = await caller.answer("ListDatasources", PageNumber=2, PageSize="5", SortBy="GmtCreateTime", Order="asc")
    assert [each["Name"] for each in page["Datasources"]] == names[5:10]
    beyond = await caller.answer("ListDatasources", PageNumber=9)
    assert (beyond["TotalCount"], beyond["Datasources"]) == (12, [])
    assert (await caller.answer("ListDatasources", Name="d1"))["TotalCount"] == 3
    assert (await caller.answer("ListDatasources", Type="FeatureDB"))["TotalCount"] == 0
    for wrong in ({"PageSize": 0}, {"PageSize": 101}, {"PageNumber": 0}, {"SortBy": "Name"}, {"Order": "up"}):
        await caller.refused("ListDatasources", 400, "InvalidParameter", **wrong)


async def test_entities(caller: Pai) -> None:
    ids = await catalogue(caller)
    child = await caller.made(
        "FeatureEntity",
        Name="item",
        JoinId="item_id",
        ProjectId=ids["project"],
        ParentFeatureEntityId=ids["entity"],
    )
    got = await caller.answer("GetFeatureEntity", FeatureEntityId=child)
    assert (got["ParentFeatureEntityName"], got["ParentJoinId"]) == ("user", "user_id")
    assert (got["ProjectName"], got["Owner"]) == ("shop", "admin")

    async def names(**filters: Any) -> list[str]:
        return [each["Name"] for each in (await caller.answer("ListFeatureEntities", **filters))["FeatureEntities"]]

    assert await names() == ["item", "user"]
    assert await names(ParentFeatureEntityId="0") == ["user"]
    assert await names(ParentFeatureEntityId=ids["entity"]) == ["item"]
    assert await names(FeatureEntityIds=f"{child},99") == ["item"]
    assert await names(FeatureEntityIds=[child]) == ["item"]
    assert await names(ProjectId="99") == []
    by_name = await caller.answer("GetProjectFeatureEntity", ProjectId=ids["project"], FeatureEntityName="item")
    assert (by_name["FeatureEntityId"], by_name["JoinId"], by_name["WorkspaceId"]) == (child, "item_id", "1")
    await caller.refused("DeleteFeatureEntity", 400, "DependencyExists", FeatureEntityId=ids["entity"])
    await caller.answer("DeleteFeatureEntity", FeatureEntityId=child)
    await caller.answer("DeleteFeatureEntity", FeatureEntityId=ids["entity"])
    await caller.refused("GetFeatureEntity", 404, "ResourceNotFound", FeatureEntityId=child)


async def test_a_parent_is_of_the_same_project(caller: Pai) -> None:
    ids = await catalogue(caller)
    stores = {"WorkspaceId": "1", "OfflineDatasourceId": ids["offline"], "OnlineDatasourceId": ids["online"]}
    other = await caller.made("Project", Name="other", **stores)
    entity = {"Name": "e", "JoinId": "k", "ProjectId": other, "ParentFeatureEntityId": ids["entity"]}
    await caller.refused("CreateFeatureEntity", 404, "ResourceNotFound", **entity)


async def test_views(caller: Pai) -> None:
    ids = await catalogue(caller)
    view = {
        **VIEW,
        "Name": "profile",
        "ProjectId": ids["project"],
        "FeatureEntityId": ids["entity"],
        "TTL": 90,
        "Tags": ["a"],
        "Config": '{"save_original_field":true}',
        "WriteToFeatureDB": True,
    }
    made = await caller.made("FeatureView", **view)
    got = await caller.answer("GetFeatureView", FeatureViewId=made)
    expected = {
        "ProjectName": "shop",
        "FeatureEntityName": "user",
        "JoinId": "user_id",
        "TTL": 90,
        "Tags": ["a"],
        "SyncOnlineTable": True,
        "WriteToFeatureDB": True,
        "Config": '{"save_original_field":true}',
        "RegisterTable": "",
        "LastSyncConfig": "",
        "Fields": [
            {"Name": "user_id", "Type": "INT64", "Attributes": ["PrimaryKey"], "Dimension": 0, "Transform": []},
            {"Name": "age", "Type": "INT32", "Attributes": [], "Dimension": 0, "Transform": []},
        ],
    }
    assert {key: got[key] for key in expected} == expected
    await caller.refused("CreateFeatureView", 400, "FeatureViewAlreadyExists", **view)
    for filters, count in (
        ({"FeatureName": "age"}, 1),
        ({"FeatureName": "ag"}, 0),
        ({"Tag": "a"}, 1),
        ({"Tag": "b"}, 0),
    ):
        assert (await caller.answer("ListFeatureViews", **filters))["TotalCount"] == count
    [summary] = (await caller.answer("ListFeatureViews", Name="prof"))["FeatureViews"]
    assert "Fields" not in summary
    assert (summary["FeatureEntityName"], summary["TTL"]) == ("user", 90)
    updated = await caller.answer("UpdateFeatureView", FeatureViewId=made, Fields=[KEY, AGE, {**AGE, "Name": "size"}])
    assert updated["requestId"] == updated["RequestId"]
    for wrong in ([KEY], [KEY, {**AGE, "Type": "INT64"}], [{**KEY, "Attributes": []}, AGE], [KEY, KEY, AGE]):
        await caller.refused("UpdateFeatureView", 400, "InvalidParameter", FeatureViewId=made, Fields=wrong)


async def test_view_rules(caller: Pai) -> None:
    ids = await catalogue(caller)
    good = {**VIEW, "Name": "v", "ProjectId": ids["project"]}
    wrong: list[dict[str, Any]] = [
        {"Type": "Weekly"},
        {"WriteMethod": "Magic"},
        {"WriteMethod": "ByReadyMadeTable"},
        {"SyncOnlineTable": "maybe"},
        {"SyncOnlineTable": None},
        {"TTL": -1},
        {"TTL": 2**31},
        {"Fields": [{"Name": "x", "Type": "BLOB", "Attributes": []}]},
        {"Fields": [{"Name": "x", "Type": "INT32", "Attributes": ["Colour"]}]},
        {"Fields": [AGE, AGE]},
        {"Fields": {"Name": "x"}},
        {"Fields": [KEY, {**KEY, "Name": "second"}]},
        {"Tags": [1.5]},
        {"Name": "x" * 129},
        {"RegisterDatasourceId": ids["online"]},
    ]
    for change in wrong:
        await caller.refused("CreateFeatureView", 400, "InvalidParameter", **{**good, **change})
    for change in ({"ProjectId": "99"}, {"FeatureEntityId": "99"}, {"RegisterDatasourceId": "99"}):
        await caller.refused("CreateFeatureView", 404, "ResourceNotFound", **{**good, **change})
    for kind in ("ARRAY<FLOAT>", "array<array<float>>", "MAP<STRING, DOUBLE>", "timestamp"):
        fields = [{"Name": "x", "Type": kind, "Attributes": []}]
        await caller.made("FeatureView", **{**good, "Name": kind.replace(" ", ""), "Fields": fields})


async def test_columns_come_from_the_table(caller: Pai, tmp_path: Path) -> None:
    folder = tmp_path / "users" / "ds=20230820"
    folder.mkdir(parents=True)
    table = pa.table(
        {
            "user_id": pa.array([1], pa.int64()),
            "score": pa.array([1.5], pa.float32()),
            "at": pa.array([0], pa.timestamp("ms")),
        }
    )
    pq.write_table(table, folder / "a.parquet")
    pq.write_table(table, tmp_path / "single.parquet")
    config = orjson.dumps({"driver": "parquet", "root": str(tmp_path)}).decode()
    ids = await catalogue(caller, config=config)
    assert (await caller.answer("ListDatasourceTables", DatasourceId=ids["offline"]))["Tables"] == ["single", "users"]
    got = await caller.answer("GetDatasourceTable", DatasourceId=ids["offline"], TableName="users")
    columns = [(field["Name"], field["Type"], field["Attributes"]) for field in got["Fields"]]
    assert columns == [
        ("user_id", "INT64", []),
        ("score", "FLOAT", []),
        ("at", "TIMESTAMP", []),
        ("ds", "STRING", ["Partition"]),
    ]
    ready_made = {**VIEW, "WriteMethod": "ByReadyMadeTable", "Fields": [], "RegisterDatasourceId": ids["offline"]}
    made = await caller.made(
        "FeatureView", **{**ready_made, "Name": "v", "ProjectId": ids["project"], "RegisterTable": "users"}
    )
    fields = (await caller.answer("GetFeatureView", FeatureViewId=made))["Fields"]
    assert [(field["Name"], field["Type"], field["Attributes"]) for field in fields] == columns
    await caller.refused("DeleteDatasource", 400, "DependencyExists", DatasourceId=ids["offline"])


@pytest.mark.parametrize("table", ["../secret", "..", ".hidden", "a/b", "", "absent", "outside", "link", "x" * 300])
async def test_no_way_out_of_the_roots(
    caller: Pai, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, own: ManagementSettings, table: str
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    pq.write_table(pa.table({"x": [1]}), outside / "secret.parquet")
    (tmp_path / "outside").symlink_to(outside)
    (tmp_path / "link.parquet").symlink_to(outside / "secret.parquet")
    config = orjson.dumps({"driver": "parquet", "root": str(tmp_path)}).decode()
    made = await caller.made("Datasource", Name="o", WorkspaceId="1", Type="MaxCompute", Uri="p", Config=config)
    status, code = (404, "ResourceNotFound") if table == "absent" else (400, "InvalidParameter")
    message = await caller.refused("GetDatasourceTable", status, code, DatasourceId=made, TableName=table)
    assert str(own.offline_roots[0]) not in message or table in ("outside", "link")
    other = orjson.dumps({"root": str(tmp_path / ".." / "elsewhere")}).decode()
    await caller.refused(
        "CreateDatasource", 400, "InvalidParameter", Name="e", WorkspaceId="1", Type="MaxCompute", Uri="p", Config=other
    )


async def test_label_tables(caller: Pai) -> None:
    ids = await catalogue(caller)
    label = {"Name": "clicks", "ProjectId": ids["project"], "DatasourceId": ids["offline"], "Fields": LABELS}
    made = await caller.made("LabelTable", **label)
    got = await caller.answer("GetLabelTable", LabelTableId=made)
    assert (got["DatasourceName"], got["RelatedModelFeatures"]) == ("offline", [])
    assert got["Fields"][1] == {**LABELS[1], "AlignedEntityName": ""}
    swapped = [{**field, "Attributes": ["EventTime"]} for field in reversed(LABELS)]
    await caller.answer("UpdateLabelTable", LabelTableId=made, Name="views", Fields=swapped)
    assert (await caller.answer("GetLabelTable", LabelTableId=made))["Name"] == "views"
    for wrong in (LABELS[:1], [LABELS[0], {**LABELS[1], "Type": "INT64"}], []):
        await caller.refused("UpdateLabelTable", 400, "InvalidParameter", LabelTableId=made, Fields=wrong)
    await caller.refused("CreateLabelTable", 400, "LabelTableAlreadyExists", **{**label, "Name": "views"})
    await caller.refused("CreateLabelTable", 400, "InvalidParameter", **{**label, "DatasourceId": ids["online"]})
    [summary] = (await caller.answer("ListLabelTables", LabelTableIds=[made]))["LabelTables"]
    assert (summary["Name"], summary["ProjectName"]) == ("views", "shop")
    await caller.answer("DeleteLabelTable", LabelTableId=made)


async def test_model_features(caller: Pai) -> None:
    ids = await catalogue(caller)
    view = await caller.made(
        "FeatureView", Name="profile", ProjectId=ids["project"], FeatureEntityId=ids["entity"], **VIEW
    )
    label = await caller.made(
        "LabelTable", Name="clicks", ProjectId=ids["project"], DatasourceId=ids["offline"], Fields=LABELS
    )
    age = {"FeatureViewId": view, "Name": "age", "Type": "INT32", "AliasName": "years"}
    model = {"Name": "m", "ProjectId": ids["project"], "LabelTableId": label, "Features": [age]}
    made = await caller.made("ModelFeature", **model)
    got = await caller.answer("GetModelFeature", ModelFeatureId=made)
    assert got["Features"] == [{**age, "FeatureViewName": "profile", "PrefixName": ""}]
    assert (got["LabelTableName"], got["LabelPriorityLevel"], got["ProjectName"]) == ("clicks", 0, "shop")
    names = {domain["Id"]: domain["DomainType"] for domain in got["Relations"]["Domains"]}
    nodes = (f"feature_entity_{ids['entity']}", f"feature_view_{view}", f"model_feature_{made}")
    assert names == dict(zip(nodes, ("FeatureEntity", "FeatureView", "ModelFeature"), strict=True))
    edges = {(link["From"], link["To"], link["Link"]) for link in got["Relations"]["Links"]}
    assert edges == {(nodes[0], nodes[1], "user_id"), (nodes[1], nodes[2], "user_id")}
    assert (await caller.answer("GetLabelTable", LabelTableId=label))["RelatedModelFeatures"] == ["m"]
    assert (await caller.answer("GetProject", ProjectId=ids["project"]))["ModelCount"] == 1

    key = {"FeatureViewId": view, "Name": "user_id", "Type": "INT64"}
    wrong: list[dict[str, Any]] = [
        {"Features": []},
        {"Features": [{**age, "Name": "height"}]},
        {"Features": [age, age]},
        {"Features": [age, {**key, "AliasName": "years"}]},
        {"Features": [key]},  # the label table has a feature user_id too, and level 0 allows no such thing
        {"LabelPriorityLevel": 3},
        {"SequenceFeatureViewIds": [view]},
    ]
    for change in wrong:
        await caller.refused("CreateModelFeature", 400, "InvalidParameter", **{**model, "Name": "n", **change})
    for change in ({"LabelTableId": "99"}, {"Features": [{**age, "FeatureViewId": "99"}]}):
        await caller.refused("CreateModelFeature", 404, "ResourceNotFound", **{**model, "Name": "n", **change})
    await caller.answer("UpdateModelFeature", ModelFeatureId=made, LabelPriorityLevel=1, Features=[key])
    replaced = await caller.answer("GetModelFeature", ModelFeatureId=made)
    assert ([f["Name"] for f in replaced["Features"]], replaced["LabelPriorityLevel"]) == (["user_id"], 1)
    await caller.refused("UpdateModelFeature", 400, "InvalidParameter", ModelFeatureId=made, LabelPriorityLevel=0)

    await caller.refused("DeleteFeatureView", 400, "DependencyExists", FeatureViewId=view)
    await caller.refused("DeleteLabelTable", 400, "DependencyExists", LabelTableId=label)
    await caller.refused("DeleteProject", 400, "DependencyExists", ProjectId=ids["project"])
    await caller.refused("DeleteFeatureEntity", 400, "DependencyExists", FeatureEntityId=ids["entity"])
    for kind, identifier in (
        ("ModelFeature", made), ("FeatureView", view), ("LabelTable", label), ("FeatureEntity", ids["entity"]),
        ("Project", ids["project"]), ("Datasource", ids["offline"]), ("Datasource", ids["online"]),
    ):  # fmt: skip
        await caller.answer(f"Delete{kind}", **{f"{kind}Id": identifier})
        await caller.refused(f"Get{kind}", 404, "ResourceNotFound", **{f"{kind}Id": identifier})


async def test_no_race_leaves_a_dangling_reference(caller: Pai) -> None:
    """A view is deleted while model features that use it are made: either way nothing refers to nothing."""
    ids = await catalogue(caller)
    label = await caller.made(
        "LabelTable", Name="clicks", ProjectId=ids["project"], DatasourceId=ids["offline"], Fields=LABELS
    )
    for number in range(8):
        view = await caller.made("FeatureView", Name=f"v{number}", ProjectId=ids["project"], **VIEW)
        age = {"FeatureViewId": view, "Name": "age", "Type": "INT32"}
        model = {"Name": f"m{number}", "ProjectId": ids["project"], "LabelTableId": label, "Features": [age]}
        path = "/api/PaiFeatureStore/2023-06-21"
        query = {"InstanceId": "fs-cn-triglot"}
        deleted, made = await asyncio.gather(
            caller.raw("DELETE", f"{path}/DeleteFeatureView", params={**query, "FeatureViewId": view}),
            caller.raw("POST", f"{path}/CreateModelFeature", params=query, json=model),
        )
        codes = (deleted.json().get("Code"), made.json().get("Code"))
        assert codes in ((None, "ResourceNotFound"), ("DependencyExists", None)), codes


async def test_stores_and_actions(caller: Pai, make_key: Callable[[Principal], Awaitable[str]]) -> None:
    ids = await catalogue(caller)
    stores = {"WorkspaceId": "1", "OfflineDatasourceId": ids["offline"], "OnlineDatasourceId": ids["online"]}
    mine = await caller.made("Project", Name="Mine", **stores)
    key = await make_key(
        Principal("bob", feature_stores=frozenset({"mine"}), actions=("featurestore:Get*", "featurestore:List*"))
    )
    bob = Pai(caller.client, key)
    assert [each["Name"] for each in (await bob.answer("ListProjects"))["Projects"]] == ["Mine"]
    assert (await bob.answer("ListFeatureEntities"))["TotalCount"] == 0
    assert (await bob.answer("GetProject", ProjectId=mine))["Name"] == "Mine"
    await bob.refused("GetProject", 403, "UnauthorizedOperation", ProjectId=ids["project"])
    await bob.refused("GetFeatureEntity", 403, "UnauthorizedOperation", FeatureEntityId=ids["entity"])
    message = await bob.refused("DeleteProject", 403, "UnauthorizedOperation", ProjectId=mine)
    assert "featurestore:DeleteProject" in message
    nobody = Pai(caller.client, "0123456789abcdef.wrong")
    await nobody.refused("ListProjects", 403, "UnauthorizedOperation")
    response = await caller.client.get("/api/PaiFeatureStore/2023-06-21/ListInstances")
    assert (response.status_code, response.json()["Code"]) == (403, "UnauthorizedOperation")


async def test_every_operation_asks_for_its_own_action(
    caller: Pai, make_key: Callable[[Principal], Awaitable[str]]
) -> None:
    key = await make_key(Principal("bob", feature_stores=frozenset({"*"}), actions=("featurestore:Nothing",)))
    bob = Pai(caller.client, key)
    for operation in OPERATIONS:
        message = await bob.refused(operation.name, 403, "UnauthorizedOperation")
        assert f"featurestore:{operation.name}" in message


# Connections that wait for a row.
_WAITING = """
SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
"""


async def test_who_waited_sees_what_came_meanwhile(caller: Pai, settings: Settings, database: Database) -> None:
    """What is deleted, or renamed, is looked at once it is held, and not before."""
    ids = await catalogue(caller)
    view = await caller.made("FeatureView", **{**VIEW, "Name": "v", "ProjectId": ids["project"],
                                               "FeatureEntityId": ids["entity"]})  # fmt: skip
    elsewhere = await caller.made(
        "Project", Name="other", WorkspaceId="1", OfflineDatasourceId=ids["offline"], OnlineDatasourceId=ids["online"]
    )
    other = await asyncpg.connect(settings.postgres_url.get_secret_value())

    async def somebody_waits() -> bool:
        return bool(await database.fetchval(_WAITING))

    async def after(held: str, key: str, waiting: Awaitable[Any], meanwhile: Callable[[], Awaitable[Any]]) -> None:
        """Let one call wait for somebody who refers to a row, and have another one done meanwhile."""
        async with other.transaction():
            await other.execute(f"SELECT FROM management.{held} WHERE id = {int(key)} FOR KEY SHARE")
            late = asyncio.ensure_future(waiting)
            await until(somebody_waits)
            await meanwhile()
        await late

    try:
        asked = {"FeatureViewId": view, "Mode": "Merge", "OfflineToOnline": False}
        await after(
            "feature_view", view, caller.refused("DeleteFeatureView", 400, "DependencyExists", FeatureViewId=view),
            lambda: caller.answer("PublishFeatureViewTable", **asked),
        )  # fmt: skip
        renaming = {"ProjectId": elsewhere, "Name": "renamed"}
        await after(
            "project", elsewhere, caller.refused("UpdateProject", 400, "DependencyExists", **renaming),
            lambda: caller.made("FeatureView", **{**VIEW, "Name": "w", "ProjectId": elsewhere}),
        )  # fmt: skip
    finally:
        await other.close()
