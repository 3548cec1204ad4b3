"""What serving's audit log tells: definitions one by one, rows by the load."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from chassis import errors
from protos.gen.triglot.serving.v1 import feature_group_pb2
from protos.gen.triglot.serving.v1 import serving_service_pb2 as pb
from protos.gen.triglot.serving.v1.value_pb2 import Value
from tests.audit_reader import AuditReader, after, before, changing_rpcs, told
from tests.conftest import Servers
from tests.serving.conftest import MERGE, Client, Stack

COLUMNS = {"id": "bigint", "age": "int"}
GROUP = {"feature_store": "demo", "name": "users", "version": 1}
ROWS = {"feature_store": "demo", "feature_group": "users", "version": 1}


@pytest.fixture
def audit(stack: Stack, servers: Servers) -> AuditReader:
    return AuditReader(stack.services, servers.admin_key)


async def test_every_rpc_that_changes_something(serving: Client, audit: AuditReader) -> None:
    """The RPCs are those of the contract, so that one that is added has to be here. Merges are below."""
    await serving.group("users", COLUMNS, ["id"])
    await serving.group("users", COLUMNS, ["id"], description="who buys")
    city = feature_group_pb2.Feature(name="city", type="string")
    appending = pb.AppendFeaturesRequest(**GROUP, features=[city])
    group = (await serving.call("AppendFeatures", appending)).feature_group
    await serving.view("view", [{"group": "users"}], [(0, "age")])
    await serving.write(group, [{"id": 1, "age": 30, "city": "x"}, {"id": 2, "age": 40, "city": "y"}])
    keys = [pb.RowKey(values=[Value(int_value=number)]) for number in (1, 7)]
    await serving.call("DeleteRows", pb.DeleteRowsRequest(**ROWS, keys=keys))
    await serving.call("DeleteFeatureView", pb.DeleteFeatureViewRequest(feature_store="demo", name="view", version=1))
    await serving.call("DeleteFeatureGroup", pb.DeleteFeatureGroupRequest(**GROUP))
    entries = await audit.entries()
    assert told(entries) == [
        ("create", "featureGroup", "demo", "users"),
        ("update", "featureGroup", "demo", "users"),
        ("update", "featureGroup", "demo", "users"),
        ("create", "featureView", "demo", "view"),
        ("load", "featureGroup", "demo", "users"),
        ("deleteRows", "featureGroup", "demo", "users"),
        ("delete", "featureView", "demo", "view"),
        ("delete", "featureGroup", "demo", "users"),
    ]
    assert {(each.principal, each.issuer, each.service) for each in entries} == {("admin", "", "serving")}
    assert all(each.request_id for each in entries)
    made, described, appended, view, loaded, deleted, view_gone, gone = entries
    assert before(made) is None
    assert after(made) == before(described)
    assert after(made)["primary_key"] == ["id"]
    assert (before(described)["description"], after(described)["description"]) == ("", "who buys")
    assert [each["name"] for each in before(appended)["features"]] == ["id", "age"]
    assert [each["name"] for each in after(appended)["features"]] == ["id", "age", "city"]
    assert after(loaded) == {"version": 1, "rows_written": 2, "generation": 1}
    assert after(deleted) == {"version": 1, "keys": 2, "rows_deleted": 1}
    assert after(view) == before(view_gone)
    assert after(view)["joins"][0]["feature_group"] == "users"
    assert before(gone) == after(appended)
    assert after(gone) is None
    called = {"EnsureFeatureGroup", "AppendFeatures", "CreateFeatureView", "WriteRows", "DeleteRows"}
    called |= {"DeleteFeatureView", "DeleteFeatureGroup"}
    assert called == changing_rpcs(pb.DESCRIPTOR.services_by_name["ServingService"])


async def test_what_changes_nothing_leaves_no_entry(serving: Client, audit: AuditReader) -> None:
    """What is there already, what is refused, and a load that is cut off."""
    group = await serving.group("users", COLUMNS, ["id"])
    known = await audit.entries()
    await serving.group("users", COLUMNS, ["id"])
    same = feature_group_pb2.Feature(name="age", type="int")
    await serving.call("AppendFeatures", pb.AppendFeaturesRequest(**GROUP, features=[same]))
    refused: list[Any] = [
        serving.group("users", {"id": "string"}, ["id"]),
        serving.write(group, [{"id": 1, "age": 30}], end=False),
        serving.call("DeleteFeatureView", pb.DeleteFeatureViewRequest(feature_store="demo", name="no", version=1)),
    ]
    for call in refused:
        with pytest.raises(errors.TriglotError):
            await call
    assert await audit.entries() == known


async def test_merges_are_told_together(open_stack: Callable[..., Any], servers: Servers) -> None:
    """One entry for what one caller merged into one group, written at the latest when the process ends."""
    async with open_stack() as stack:
        for name in ("users", "shops"):
            group = await stack.client.group(name, COLUMNS, ["id"])
            for number in range(3):
                await stack.client.write(group, [{"id": number, "age": 1}, {"id": 7, "age": 2}], MERGE)
    async with open_stack() as stack:
        entries = await AuditReader(stack.services, servers.admin_key).entries(operation="write")
    assert sorted(told(entries)) == [
        ("write", "featureGroup", "demo", "shops"),
        ("write", "featureGroup", "demo", "users"),
    ]
    for each in entries:
        assert (each.principal, after(each)["requests"], after(each)["rows_written"]) == ("admin", 3, 6)
