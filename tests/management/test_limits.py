"""How many calls an account may make: counted by a clock that the test holds, and shown as PAI shows it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from chassis import errors
from chassis.principals import Principal
from services.management.limits import RateLimit
from services.management.settings import ManagementSettings
from tests.management.conftest import INSTANCE, Pai


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def admitted(limit: RateLimit, name: str = "alice") -> int:
    """How many calls are let in before one is refused."""
    count = 0
    while True:
        try:
            limit.admit(Principal(name))
        except errors.ResourceExhausted:
            return count
        count += 1


@pytest.mark.parametrize(("rate", "at_once"), [(10, 10), (100, 100), (1, 1), (0.5, 1), (2.5, 2)])
def test_a_second_s_worth_at_once(rate: float, at_once: int) -> None:
    assert admitted(RateLimit(rate, Clock())) == at_once


def test_calls_flow_back_one_by_one() -> None:
    clock = Clock()
    limit = RateLimit(10, clock)
    assert admitted(limit) == 10
    assert admitted(limit, "bob") == 10
    with pytest.raises(errors.ResourceExhausted) as refused:
        limit.admit(Principal("alice"))
    assert refused.value.metadata["retry_after_ms"] == "100"
    clock.now += 0.1
    assert admitted(limit) == 1
    clock.now += 3600
    assert admitted(limit) == 10


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
