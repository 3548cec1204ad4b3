"""However many views a datasource has, serving is asked about their rows in one call."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from chassis.inprocess import InProcessChannel
from chassis.rpc import Endpoint, Service
from chassis.settings import Settings
from services.management.process import open_service
from services.management.settings import ManagementSettings
from services.serving.process import open_service as open_serving
from services.serving.settings import ServingSettings
from tests.management.conftest import Pai, catalogue

VIEWS = 30


class Counted:
    """An endpoint whose calls are counted."""

    def __init__(self, endpoint: Endpoint, calls: Counter[str]) -> None:
        self._endpoint = endpoint
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        return getattr(self._endpoint, name)

    async def serve_unary(self, *arguments: Any) -> Any:
        self._calls[self._endpoint.path.rpartition("/")[2]] += 1
        return await self._endpoint.serve_unary(*arguments)


@pytest.fixture
def calls() -> Counter[str]:
    return Counter()


@pytest.fixture
async def services(settings: Settings, own: ManagementSettings, calls: Counter[str]) -> AsyncIterator[Any]:
    """Management with a serving whose calls are counted: stands in for the fixture without it."""
    async with open_serving(settings, ServingSettings()) as opened:
        counted: Any = [
            Service(each.name, {path: Counted(endpoint, calls) for path, endpoint in each.endpoints.items()})  # type: ignore[misc]
            for each in opened
        ]
        async with open_service(settings, own, InProcessChannel(counted)) as services:
            yield services


async def test_serving_is_asked_once(caller: Pai, calls: Counter[str], tmp_path: Path) -> None:
    ids = await catalogue(caller)
    for number in range(VIEWS):
        await caller.made(
            "FeatureView", Name=f"v{number}", ProjectId=ids["project"], Type="Stream", WriteMethod="Custom",
            SyncOnlineTable=True, FeatureEntityId=ids["entity"],
            Fields=[{"Name": "id", "Type": "INT64", "Attributes": ["PrimaryKey"]}],
        )  # fmt: skip
    for view, rows in (("1", 2), ("2", 1)):
        texts = [f'{{"id": {number}}}' for number in range(rows)]
        await caller.answer("WriteFeatureViewTable", FeatureViewId=view, Mode="Merge", Rows=texts)
    calls.clear()
    answer = await caller.answer("ListDatasourceFeatureViews", DatasourceId=ids["online"], All=True, Order="ASC")
    counts = [each["UsageStatistics"]["RowCount"] for each in answer["FeatureViews"]]
    assert (answer["TotalCount"], counts) == (VIEWS, [2, 1] + [0] * (VIEWS - 2))
    assert calls == {"ListFeatureGroupStatistics": 1}
