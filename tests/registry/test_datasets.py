"""Saved datasets that are registered over REST and over our own contract: once, unless they may be replaced."""

from __future__ import annotations

import asyncio
from collections import Counter

import httpx2
import pytest

from chassis import errors
from chassis.postgres import Database
from protos.gen.feast.core.SavedDataset_pb2 import SavedDataset
from protos.gen.feast.registry import RegistryServer_pb2 as feast
from protos.gen.triglot.registry.v1 import registry_service_pb2 as rpc
from tests.registry import test_permissions, test_rest
from tests.registry.conftest import Registry
from tests.registry.test_objects import apply_entity
from tests.registry.test_permissions import Caller, permission, put
from tests.registry.test_storm import held

http = test_rest.http
caller = test_permissions.caller

TAKEN = 'A dataset named "training" already exists in project "rides". Use edit to update it.'
AT_ONCE = 6


def request(description: str = "", *, allow_override: bool = False) -> rpc.RegisterSavedDatasetRequest:
    dataset = SavedDataset()
    dataset.spec.name, dataset.spec.description = "training", description
    return rpc.RegisterSavedDatasetRequest(project="rides", saved_dataset=dataset, allow_override=allow_override)


async def test_of_parallel_creates_one_succeeds(
    http: httpx2.AsyncClient, registry: Registry, database: Database
) -> None:
    """All have looked, if they look, before any of them writes."""
    await apply_entity(registry, "rides")
    bodies = [
        {"name": "training", "project": "rides", "storage_path": f"{number}.parquet"} for number in range(AT_ONCE)
    ]
    async with asyncio.TaskGroup() as group, held(database, "object") as waiting:
        tasks = [group.create_task(http.post("/saved_datasets", json=body)) for body in bodies]
        await waiting(AT_ONCE)
    answers = [task.result() for task in tasks]
    assert Counter(each.status_code for each in answers) == {200: 1, 409: AT_ONCE - 1}
    refused = {"status_code": 409, "detail": TAKEN, "error_type": "HTTPException"}
    assert [each.json() for each in answers if each.status_code == 409] == [refused] * (AT_ONCE - 1)
    [kept] = [number for number, each in enumerate(answers) if each.status_code == 200]
    found = (await http.get("/saved_datasets/training?project=rides")).json()
    assert found["spec"]["storage"]["fileStorage"]["uri"] == f"{kept}.parquet"


async def test_an_equal_one_is_there_too(registry: Registry) -> None:
    await registry(registry.rendered.RegisterSavedDataset, request())
    with pytest.raises(errors.AlreadyExists) as raised:
        await registry(registry.rendered.RegisterSavedDataset, request())
    assert (raised.value.message, raised.value.reason) == (TAKEN, "ALREADY_EXISTS")
    await registry(registry.rendered.RegisterSavedDataset, request("new", allow_override=True))
    found = await registry(
        registry.feast.GetSavedDataset, feast.GetSavedDatasetRequest(name="training", project="rides")
    )
    assert found.spec.description == "new"


async def test_what_is_wrong_is_refused(registry: Registry) -> None:
    for wrong, field in (
        (rpc.RegisterSavedDatasetRequest(project="rides"), "name"),
        (rpc.RegisterSavedDatasetRequest(saved_dataset=request().saved_dataset), "project"),
    ):
        for allowed in (False, True):
            wrong.allow_override = allowed
            with pytest.raises(errors.InvalidArgument) as raised:
                await registry(registry.rendered.RegisterSavedDataset, wrong)
            assert raised.value.metadata["field"] == field


async def test_creating_takes_a_permission_and_tells_of_nothing_hidden(registry: Registry, caller: Caller) -> None:
    await registry(registry.rendered.RegisterSavedDataset, request())
    await put(registry, permission("makers", roles=("maker",), actions=("CREATE",), patterns=("made.*",)))
    maker = await caller("maker")
    made = request()
    made.saved_dataset.spec.name = "made"
    await maker(maker.rendered.RegisterSavedDataset, made)
    for each in (request(), made):
        with pytest.raises(errors.PermissionDenied):
            await maker(maker.rendered.RegisterSavedDataset, each)
