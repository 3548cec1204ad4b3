"""Every change of the catalogue, of tasks and of principals is in the audit log, with who made it and no secret."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chassis import calls
from chassis.identity.store import IdentityStore
from chassis.inprocess import InProcessChannel
from chassis.principals import Principal
from protos.gen.triglot.identity.v1 import identity_pb2, identity_service_pb2_grpc
from protos.gen.triglot.identity.v1 import identity_service_pb2 as identity_rpc
from protos.gen.triglot.management.v1 import management_service_pb2
from services.management.settings import ManagementSettings
from tests.audit_reader import AuditReader, after, before, changing_rpcs, told
from tests.conftest import Servers
from tests.management.conftest import INSTANCE, Pai, catalogue
from tests.management.test_catalogue import LABELS, VIEW
from tests.management.test_fg import RAW
from tests.signer import Signer

# RPCs that change nothing of ours: an instance is always there.
NO_CHANGE = {"CreateInstance"}


@pytest.fixture
def own(own: ManagementSettings) -> ManagementSettings:
    return own.model_copy(update={"url_hosts": ("host",)})


@pytest.fixture
def audit(services: Any, servers: Servers) -> AuditReader:
    return AuditReader(services, servers.admin_key)


HERE = {"WorkspaceId": "1"}
PARQUET = '{"driver": "parquet", "root": "<root>"}'
STORES = {"OfflineDatasourceId": "<off>", "OnlineDatasourceId": "<on>"}
CITY = {"Name": "city", "Type": "STRING", "Attributes": []}
OF_AGE = {"FeatureViewId": "<users>", "Name": "age", "Type": "INT32"}
OF_CITY = {"FeatureViewId": "<users>", "Name": "city", "Type": "STRING"}
SIGNED = {"Path": "https://host/rows.csv?Signature=GEHEIM", "Delimiter": ","}
# A call, what it does to an object of which kind and name, and what the body holds. `<name>` is the id of what was made
# under this name last.
STEPS: list[tuple[str, str, str, str, dict[str, Any]]] = [
    ("CreateDatasource", "create", "Datasource", "off", {"Type": "MaxCompute", "Uri": "m", "Config": PARQUET, **HERE}),
    ("CreateDatasource", "create", "Datasource", "on", {"Type": "FeatureDB", "Uri": "f", **HERE}),
    ("UpdateDatasource", "update", "Datasource", "on", {"DatasourceId": "<on>", "Uri": "g"}),
    ("CreateProject", "create", "Project", "shop", {**STORES, **HERE}),
    ("UpdateProject", "update", "Project", "shop", {"ProjectId": "<shop>", "Description": "of shoes"}),
    ("CreateFeatureEntity", "create", "FeatureEntity", "user", {"ProjectId": "<shop>", "JoinId": "user_id"}),
    (
        "CreateFeatureView",
        "create",
        "FeatureView",
        "users",
        {"ProjectId": "<shop>", "FeatureEntityId": "<user>", **VIEW},
    ),
    (
        "UpdateFeatureView",
        "update",
        "FeatureView",
        "users",
        {"FeatureViewId": "<users>", "Fields": [*VIEW["Fields"], CITY]},
    ),
    (
        "CreateLabelTable",
        "create",
        "LabelTable",
        "clicks",
        {"ProjectId": "<shop>", "DatasourceId": "<off>", "Fields": LABELS},
    ),
    (
        "UpdateLabelTable",
        "update",
        "LabelTable",
        "clicks",
        {"LabelTableId": "<clicks>", "Fields": [{**LABELS[0], "Attributes": []}, LABELS[1]]},
    ),
    (
        "CreateModelFeature",
        "create",
        "ModelFeature",
        "m",
        {"ProjectId": "<shop>", "LabelTableId": "<clicks>", "LabelPriorityLevel": 1, "Features": [OF_AGE]},
    ),
    ("UpdateModelFeature", "update", "ModelFeature", "m", {"ModelFeatureId": "<m>", "Features": [OF_CITY, OF_AGE]}),
    ("UpdateModelFeatureFGFeature", "update", "ModelFeature", "m", {"ModelFeatureId": "<m>", "RawFeatures": [RAW]}),
    ("ExportModelFeatureTrainingSetTable", "create", "Task", "", {"ModelFeatureId": "<m>"}),
    ("StopTask", "stop", "Task", "", {"TaskId": "<task>"}),
    (
        "PublishFeatureViewTable",
        "create",
        "Task",
        "",
        {"FeatureViewId": "<users>", "Mode": "Overwrite", "OfflineToOnline": True},
    ),
    ("StopTask", "stop", "Task", "", {"TaskId": "<task>"}),
    (
        "WriteFeatureViewTable",
        "create",
        "Task",
        "",
        {"FeatureViewId": "<users>", "Mode": "Overwrite", "UrlDatasource": SIGNED},
    ),
    ("StopTask", "stop", "Task", "", {"TaskId": "<task>"}),
    ("DeleteModelFeature", "delete", "ModelFeature", "m", {"ModelFeatureId": "<m>"}),
    ("DeleteLabelTable", "delete", "LabelTable", "clicks", {"LabelTableId": "<clicks>"}),
    ("DeleteFeatureView", "delete", "FeatureView", "users", {"FeatureViewId": "<users>"}),
    ("DeleteFeatureEntity", "delete", "FeatureEntity", "user", {"FeatureEntityId": "<user>"}),
    ("DeleteProject", "delete", "Project", "shop", {"ProjectId": "<shop>"}),
    ("DeleteDatasource", "delete", "Datasource", "on", {"DatasourceId": "<on>"}),
]


async def test_every_rpc_that_changes_something(caller: Pai, audit: AuditReader, tmp_path: Path) -> None:
    """The RPCs are those of the contract, so that one that is added has to be above."""
    for name, column in (("clicks", "clicked"), ("shop_users_offline", "age")):
        table = pa.table({"user_id": pa.array([1], pa.int64()), column: pa.array([1], pa.int32()), "city": ["x"]})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    ids = {"root": str(tmp_path)}
    known = await audit.entries()
    for rpc, operation, kind, name, body in STEPS:
        filled = re.sub(r"<(\w+)>", lambda found: ids[found[1]], json.dumps({"Name": name} | body if name else body))
        answer = await caller.answer(rpc, **json.loads(filled))
        if f"{kind}Id" in answer:
            ids[name or "task"] = str(answer[f"{kind}Id"])
        entries = await audit.entries()
        new, known = entries[len(known) :], entries
        project = "" if kind == "Datasource" else "shop"
        assert told(new) == [(operation, kind, project, name or ids["task"])], rpc
        assert (new[0].principal, new[0].issuer, new[0].service) == ("admin", "", "management")
        assert new[0].request_id == answer["RequestId"]
        assert bool(new[0].before) == (operation in ("update", "delete")), rpc
        assert bool(new[0].after) == (operation in ("update", "create")), rpc
    service = management_service_pb2.DESCRIPTOR.services_by_name["ManagementService"]
    assert {rpc for rpc, *_ in STEPS} == changing_rpcs(service) - NO_CHANGE
    assert "GEHEIM" not in "".join(each.after for each in known)
    published = [after(each) for each in known if each.kind == "Task" and each.operation == "create"][1]
    assert (published["type"], published["object"]) == ("OfflineToOnline", "users")
    [changed] = [each for each in known if each.kind == "ModelFeature" and each.operation == "update"][:1]
    taken = [[each["name"] for each in shown(changed)["features"]] for shown in (before, after)]
    assert taken == [["age"], ["city", "age"]]


async def test_secrets_of_datasources(caller: Pai, audit: AuditReader) -> None:
    """No entry holds one; that one changed is seen."""
    config = {"user": "u", "password": "GEHEIM-1"}
    named = {"Name": "on", "Uri": "db"}
    made = await caller.made("Datasource", WorkspaceId="1", Type="FeatureDB", Config=json.dumps(config), **named)
    config["password"] = "GEHEIM-2"
    await caller.answer("UpdateDatasource", DatasourceId=made, Config=json.dumps(config), **named)
    await caller.answer("DeleteDatasource", DatasourceId=made)
    entries = await audit.entries(kind="Datasource")
    assert [each.operation for each in entries] == ["create", "update", "delete"]
    assert not any("GEHEIM" in each.before + each.after for each in entries)
    assert json.loads(after(entries[0])["config"]) == {"user": "u", "password": "******"}
    shown = [{key: value for key, value in each(entries[1]).items() if "sha256" not in key} for each in (before, after)]
    assert shown[0] == shown[1]
    assert before(entries[1]) != after(entries[1])


async def test_what_changes_nothing_leaves_no_entry(caller: Pai, audit: AuditReader) -> None:
    """An update to what is there, and what is refused, at once or after some of it was written."""
    ids = await catalogue(caller)
    view = await caller.made("FeatureView", Name="users", ProjectId=ids["project"], **VIEW)
    known = await audit.entries()
    await caller.answer("UpdateProject", ProjectId=ids["project"], Name="shop")
    await caller.answer("UpdateFeatureView", FeatureViewId=view, Fields=VIEW["Fields"])
    await caller.refused("UpdateProject", 400, "DependencyExists", ProjectId=ids["project"], Name="other")
    await caller.answer("DeleteProject", expect=400, ProjectId=ids["project"])
    await caller.answer("DeleteDatasource", expect=400, DatasourceId=ids["online"])
    await caller.answer("DeleteFeatureEntity", expect=404, FeatureEntityId="999")
    await caller.answer("CreateFeatureEntity", expect=400, Name="user", JoinId="u", ProjectId=ids["project"])
    assert await audit.entries() == known


async def test_a_signature_names_its_principal(app: Any, audit: AuditReader, identity: IdentityStore) -> None:
    await identity.create_principal(Principal("signer", administrator=True))
    signer = Signer(*await identity.create_access_key("signer"))
    path, query = "/api/PaiFeatureStore/2023-06-21/CreateDatasource", {"InstanceId": INSTANCE}
    body = json.dumps({"Name": "d", "WorkspaceId": "1", "Type": "FeatureDB", "Uri": "f"}).encode()
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://test") as client:
        headers = {**signer.headers("POST", path, query, body), "content-type": "application/json"}
        response = await client.post(path, params=query, content=body, headers=headers)
    assert response.status_code == 200, response.text
    [made] = await audit.entries(kind="Datasource")
    assert (made.principal, made.issuer) == ("signer", "")


async def test_every_rpc_of_identity(services: Any, servers: Servers, audit: AuditReader) -> None:
    """Keys and principals, with the name of the key and never with its secret."""
    stub: Any = identity_service_pb2_grpc.IdentityServiceStub(InProcessChannel(services))
    called = set()

    async def call(rpc: str, **fields: Any) -> Any:
        called.add(rpc)
        request = getattr(identity_rpc, f"{rpc}Request")(**fields)
        return await calls.invoke(getattr(stub, rpc), request, metadata=calls.bearer(servers.admin_key))

    known = len(await audit.entries())
    wanted = identity_pb2.Principal(name="bob", feature_stores=["shop"], actions=["featurestore:Get*"])
    await call("CreatePrincipal", principal=wanted)
    revoked = await call("CreateApiKey", principal="bob")
    await call("RevokeApiKey", prefix=revoked.key.prefix)
    pair = await call("CreateAccessKey", principal="bob")
    await call("RevokeAccessKey", access_key_id=pair.access_key_id)
    kept = await call("CreateApiKey", principal="bob")
    fresh = await call("RotateApiKey", prefix=kept.key.prefix)
    old_pair = await call("CreateAccessKey", principal="bob")
    new_pair = await call("RotateAccessKey", access_key_id=old_pair.access_key_id)
    await call("DeletePrincipal", name="bob")
    entries = (await audit.entries())[known:]
    assert told(entries) == [
        ("create", "principal", "", "bob"),
        ("create", "API key", "", revoked.key.prefix),
        ("delete", "API key", "", revoked.key.prefix),
        ("create", "access key", "", pair.access_key_id),
        ("delete", "access key", "", pair.access_key_id),
        ("create", "API key", "", kept.key.prefix),
        ("update", "API key", "", kept.key.prefix),
        ("create", "API key", "", fresh.key.prefix),
        ("create", "access key", "", old_pair.access_key_id),
        ("update", "access key", "", old_pair.access_key_id),
        ("create", "access key", "", new_pair.access_key_id),
        ("delete", "principal", "", "bob"),
    ]
    assert {(each.principal, each.service) for each in entries} == {("admin", "identity")}
    assert after(entries[0])["feature_stores"] == ["shop"]
    assert before(entries[2])["principal"] == "bob"
    assert before(entries[-1])["api_keys"] == sorted([kept.key.prefix, fresh.key.prefix])
    whole = " ".join(each.before + each.after for each in entries)
    pairs = (pair, old_pair, new_pair)
    secrets = [each.api_key.partition(".")[2] for each in (revoked, kept, fresh)]
    assert not any(secret in whole for secret in (*secrets, *(each.access_key_secret for each in pairs)))
    assert called == changing_rpcs(identity_rpc.DESCRIPTOR.services_by_name["IdentityService"])


async def test_what_a_command_does_on_the_database(audit: AuditReader, identity: IdentityStore) -> None:
    """As `triglot keys` does: there is no caller but the user of the machine."""
    await identity.create_principal(Principal("ann"))
    made = (await audit.entries())[-1]
    assert (made.issuer, made.request_id, made.name) == ("operating system", "", "ann")
    assert made.principal
