"""Labels and label views over REST, and refreshing what needs none."""

from __future__ import annotations

import httpx2
import pytest

from protos.gen.feast.core.LabelView_pb2 import LabelView
from protos.gen.feast.registry import RegistryServer_pb2 as rpc
from protos.gen.feast.types.Value_pb2 import ValueType
from tests.registry.conftest import Registry
from tests.registry.test_objects import apply_view, view
from tests.registry.test_rest import PAGING, get, http  # noqa: F401 - a fixture


@pytest.fixture
async def labelled(registry: Registry) -> None:
    """Project `demo`: a label view of two labels, and a feature view."""
    made = LabelView()
    made.spec.name = "verdicts"
    made.spec.entities.append("driver")
    made.spec.tags["team"] = "ml"
    for name in ("fraud", "churn"):
        made.spec.features.add(name=name, value_type=ValueType.BOOL)
    await registry(registry.feast.ApplyFeatureView, rpc.ApplyFeatureViewRequest(label_view=made, project="demo"))
    await apply_view(registry, view("stats"), "demo")


@pytest.mark.usefixtures("labelled")
@pytest.mark.parametrize("path", ["/labels?project=demo", "/labels/all"])
async def test_labels_are_listed_apart_from_features(http: httpx2.AsyncClient, path: str) -> None:  # noqa: F811
    found = await get(http, path)
    assert found["labels"] == [
        {"name": name, "project": "demo", "featureView": "verdicts", "type": "Bool", "kind": "label"}
        for name in ("fraud", "churn")
    ]
    assert found["pagination"].keys() == PAGING
    assert "fraud" not in str(await get(http, "/features?project=demo"))


@pytest.mark.usefixtures("labelled")
async def test_labels_are_narrowed(http: httpx2.AsyncClient) -> None:  # noqa: F811 - a fixture
    assert len((await get(http, "/labels?project=demo&name=churn"))["labels"]) == 1
    assert (await get(http, "/labels?project=demo&feature_view=stats"))["labels"] == []
    assert (await get(http, "/labels/verdicts/churn?project=demo"))["label"]["name"] == "churn"
    await get(http, "/labels/stats/trips?project=demo", 404)


@pytest.mark.usefixtures("labelled")
async def test_label_views_stand_under_the_keys_of_feature_views(http: httpx2.AsyncClient) -> None:  # noqa: F811
    for path in ("/label_views?project=demo", "/label_views/all", "/label_views?project=demo&tags=team:ml"):
        found = await get(http, path)
        assert [(each["name"], each["type"]) for each in found["featureViews"]] == [("verdicts", "labelView")]
    assert (await get(http, "/label_views?project=demo&tags=team:x"))["featureViews"] == []
    one = await get(http, "/label_views/verdicts?project=demo&include_relationships=true")
    assert one["featureView"]["type"] == one["type"] == "labelView"
    assert {"source": {"type": "entity", "name": "driver"}, "target": {"type": "labelView", "name": "verdicts"}} in one[
        "relationships"
    ]
    await get(http, "/label_views/stats?project=demo", 404)


async def test_refresh_answers_nothing_to_those_who_may_call(http: httpx2.AsyncClient) -> None:  # noqa: F811
    answer = await http.post("/registry/refresh")
    assert (answer.status_code, answer.content) == (200, b"")
    refused = await http.post("/registry/refresh", headers={"Authorization": "Bearer wrong"})
    assert (refused.status_code, refused.json()["detail"]) == (401, "Invalid or expired access token")
