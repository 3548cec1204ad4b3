"""How many calls an account may make, shown as PAI shows it. The counting itself: tests/chassis/test_limits.py."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from chassis.principals import Principal
from services.management.settings import ManagementSettings
from tests.management.conftest import INSTANCE, Pai


@pytest.fixture
def own(tmp_path: Path) -> ManagementSettings:
    """One call, and then none for a long time."""
    return ManagementSettings(offline_roots=(tmp_path,), calls_per_second=0.000_1)


async def test_throttling(caller: Pai, make_key: Callable[[Principal], Awaitable[str]]) -> None:
    # A call that fails counts too.
    await caller.refused("GetProject", 404, "ResourceNotFound", ProjectId="7")
    path = "/api/PaiFeatureStore/2023-06-21/ListProjects"
    response = await caller.raw("GET", path, params={"InstanceId": INSTANCE})
    assert (response.status_code, response.json()["Code"]) == (429, "Throttling")
    assert 0 < int(response.headers["x-acs-retry-after"]) <= 10_000_000
    bob = Pai(caller.client, await make_key(Principal("bob", actions=("featurestore:*",))))
    assert (await bob.answer("ListProjects"))["TotalCount"] == 0
    # So does one that may not be made, and one that cannot be read.
    carol = Pai(caller.client, await make_key(Principal("carol")))
    await carol.refused("ListProjects", 403, "UnauthorizedOperation")
    await carol.refused("ListProjects", 429, "Throttling")
    dan = Pai(caller.client, await make_key(Principal("dan", actions=("featurestore:*",))))
    await dan.refused("ListProjects", 400, "InvalidParameter", PageSize="many")
    await dan.refused("ListProjects", 429, "Throttling")
    await Pai(caller.client, "0123456789abcdef.wrong").refused("ListProjects", 403, "UnauthorizedOperation")
