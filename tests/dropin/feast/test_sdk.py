"""The real Feast SDK and its CLI on our registry, unmodified: `registry_type: remote`, an API key as the token."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from chassis.principals import Principal
from tests.conftest import Servers
from tests.dropin.feast.conftest import SDK, Sdk

pytestmark = pytest.mark.dropin


async def test_apply_twice_and_read_everything_back(sdk: Sdk, repository: Callable[..., Path]) -> None:
    seen = await sdk.client(repository(), "apply_and_read")
    assert seen == {
        "unchanged": True,
        "entity": True,
        "source": True,
        "view": True,
        "view of any kind": True,
        "service": True,
        "columns": ["conv_rate", "trips"],
        "times": True,
        "entities": ["driver"],
        "sources": ["driver_source"],
        "views": ["driver_stats"],
        "batch views": ["driver_stats"],
        "services": ["everything", "model"],
        "tagged": ["driver_stats"],
        "wrongly tagged": [],
        "stream views": [],
        "on-demand views": [],
        "label views": [],
        "project": "rides",
        "projects": ["rides"],
    }


async def test_change_materialize_and_delete(sdk: Sdk, repository: Callable[..., Path]) -> None:
    seen = await sdk.client(repository(), "change_and_delete")
    assert seen == {
        "created": True,
        "updated": True,
        "description": "changed",
        "intervals": [["2026-01-01 00:00:00+00:00", "2026-01-02 00:00:00+00:00"]],
        "state": "AVAILABLE_ONLINE",
        "on-demand": ["scaled"],
        "its code runs": [6.0],
        "services": ["everything"],
        "on-demand views": [],
    }


async def test_versions_of_a_view(sdk: Sdk, repository: Callable[..., Path]) -> None:
    """The SDK shows no number of a view that is at its first version and was never pinned."""
    seen = await sdk.client(repository(), "versions")
    first, second = ["conv_rate", "trips"], ["conv_rate", "rating", "trips"]
    assert seen["seen"] == [
        ["", "latest", None, first],
        ["", "latest", 1, second],
        ["", "v0", 0, first],
        ["", "v0", 0, first],
        ["", "version1", 1, second],
        ["FeatureViewPinConflict", "version1", 1, second],
        ["", "latest", 2, first],
    ]


async def test_features_are_materialized_read_and_saved(sdk: Sdk, repository: Callable[..., Path]) -> None:
    seen = await sdk.client(repository(), "work")
    assert seen == {
        "intervals": [
            ["2025-12-31 00:00:00+00:00", "2026-01-01 01:00:00+00:00"],
            ["2026-01-01 01:00:00+00:00", "2026-01-01 02:00:00+00:00"],
        ],
        "state": "AVAILABLE_ONLINE",
        "online": {"driver_id": [1], "conv_rate": [0.5], "trips": [3]},
        "one": [3],
        "dataset": [["driver_stats:conv_rate", "driver_stats:trips"], ["driver_id"], [3]],
        "datasets": [["training"], []],
    }


async def test_label_views(sdk: Sdk, repository: Callable[..., Path]) -> None:
    seen = await sdk.client(repository(), "label")
    assert seen == {"equal": True, "source": "pushed", "listed": ["verdicts"], "views": [], "left": []}


async def test_the_sdk_raises_its_own_exceptions(sdk: Sdk, repository: Callable[..., Path]) -> None:
    seen = await sdk.client(repository(), "fail")
    view = ("FeatureViewNotFoundException", "Feature view x does not exist in project rides")
    expected = {
        "entity": ("EntityNotFoundException", "Entity x does not exist in project rides"),
        "view": view,
        "any view": view,
        "on-demand view": view,
        "service": ("FeatureServiceNotFoundException", "Feature service x does not exist in project rides"),
        "source": ("DataSourceObjectNotFoundException", "Data source x does not exist in project rides"),
        "dataset": ("SavedDatasetNotFound", "Saved dataset x does not exist in project rides"),
        "validation reference": (
            "ValidationReferenceNotFound",
            "Validation reference x does not exist in project rides",
        ),
        "permission": ("PermissionObjectNotFoundException", "Permission x does not exist in project rides"),
        "project": ("ProjectObjectNotFoundException", "Project x does not exist"),
        "delete entity": ("EntityNotFoundException", "Entity x does not exist in project rides"),
        "delete view": view,
        "taken name": (
            "ConflictingFeatureViewNames",
            "Feature view name 'driver_stats' is already used by a featureView. "
            "Cannot register a onDemandFeatureView with the same name.",
        ),
        "service of no view": (
            "FeatureViewNotFoundException",
            "Feature view 'nowhere' not found in project 'rides'",
        ),
    }
    assert {what: (each["class"], each["message"]) for what, each in seen.items()} == expected


async def test_permissions_and_projects(sdk: Sdk, repository: Callable[..., Path]) -> None:
    seen = await sdk.client(repository(), "other_objects")
    assert seen == {
        "permission": ["readers", ["driver_.*"], ["AuthzedAction.DESCRIBE"]],
        "permissions": ["readers"],
        "project": ["rides", "ann"],
        "metadata": [36],
    }


async def test_permissions_are_enforced(
    sdk: Sdk, repository: Callable[..., Path], make_key: Callable[[Principal], Awaitable[str]]
) -> None:
    seen = await sdk.client(repository(), "guard")
    assert seen == {"permissions": ["entities", "sources", "views", "writers"]}
    keys = {role: await make_key(Principal(role, roles=frozenset([role]))) for role in ("reader", "writer", "stranger")}
    denied = "FeastPermissionError"
    reader = await sdk.client(repository(token=keys["reader"]), "guarded")
    assert reader.pop("get another") == {
        "class": denied,
        "message": "Permission error:\nPermission writers denied execution of ['DESCRIBE'] to Entity:customer: "
        "Requires roles ['writer']",
    }
    assert reader.pop("change")["class"] == denied
    assert reader == {
        "entities": ["driver"],
        "views": ["driver_stats"],
        "services": [],
        "permissions": [],
        "get": "",
        "create": denied,
        "delete": denied,
        "materialize": denied,
    }
    writer = await sdk.client(repository(token=keys["writer"]), "guarded")
    assert writer["entities"] == ["customer", "driver"]
    assert (writer["views"], writer["create"], writer["delete"]) == ([], "", "")
    stranger = await sdk.client(repository(token=keys["stranger"]), "guarded")
    assert (stranger["entities"], stranger["views"], stranger["get"]) == ([], [], denied)
    # An administrator is not bound by them.
    assert sorted((await sdk.client(repository(), "read"))["entities"]) == ["driver", "new"]


async def test_a_wrong_token_is_refused(sdk: Sdk, repository: Callable[..., Path]) -> None:
    seen = await sdk.client(repository(token="0123456789abcdef.wrong"), "refused")
    refusal = {"class": "FeastPermissionError", "message": "the API key is unknown, revoked or expired"}
    assert seen == {"list": refusal, "apply": refusal}


@pytest.mark.parametrize(
    ("configured", "variable"), [("token_env_var: MY_KEY", "MY_KEY"), ("# nothing", "FEAST_OIDC_TOKEN")]
)
async def test_the_key_can_stay_out_of_the_file(
    sdk: Sdk, repository: Callable[..., Path], servers: Servers, configured: str, variable: str
) -> None:
    folder = repository()
    file = folder / "feature_store.yaml"
    file.write_text(file.read_text().replace(f"token: {servers.admin_key}", configured))
    assert await sdk.client(folder, "read", **{variable: servers.admin_key}) == {"entities": []}
    refusal = {"class": "FeastPermissionError", "message": "the API key is unknown, revoked or expired"}
    assert (await sdk.client(folder, "refused", **{variable: "no key"}))["list"] == refusal


async def test_the_cli_applies_and_lists(sdk: Sdk, repository: Callable[..., Path]) -> None:
    folder = repository()
    (folder / "definitions.py").write_text(
        "from feast import Entity\n\nrider = Entity(name='rider', join_keys=['rider_id'], description='pays')\n"
    )
    await sdk.run(SDK / "feast", "apply", cwd=folder)
    assert "rider" in await sdk.run(SDK / "feast", "entities", "list", cwd=folder)
    assert "description: pays" in await sdk.run(SDK / "feast", "entities", "describe", "rider", cwd=folder)
    assert "rides" in await sdk.run(SDK / "feast", "projects", "list", cwd=folder)
