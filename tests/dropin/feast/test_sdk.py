"""The real Feast SDK and its CLI on our registry, unmodified: `registry_type: remote`, an API key as the token."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from chassis.principals import Principal
from chassis.server import GrpcServer
from chassis.settings import Settings
from services.registry.process import open_service
from services.registry.settings import RegistrySettings
from tests.conftest import Servers

pytestmark = pytest.mark.dropin

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
SDK = ROOT / ".venv-feast" / "bin"

CONFIGURATION = """\
project: {project}
provider: local
registry:
  registry_type: remote
  path: 127.0.0.1:{port}
auth:
  type: oidc
  token: {token}
online_store:
  type: sqlite
  path: online.db
entity_key_serialization_version: 3
"""


@pytest.fixture
async def port(settings: Settings) -> AsyncIterator[int]:
    """The registry on a port of its own."""
    async with open_service(settings, RegistrySettings()) as services:
        server = GrpcServer(services, host="127.0.0.1", port=0, max_message_bytes=settings.max_message_bytes)
        yield await server.start()
        await server.stop(1)


@pytest.fixture
def repository(tmp_path: Path, port: int, servers: Servers) -> Callable[..., Path]:
    """Makes a folder with a feature_store.yaml."""

    def make(token: str = servers.admin_key, project: str = "rides") -> Path:
        text = CONFIGURATION.format(project=project, port=port, token=token)
        (tmp_path / "feature_store.yaml").write_text(text)
        return tmp_path

    return make


async def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    assert (SDK / "python").exists(), "no .venv-feast: see test_contract.py"
    # The SDK would otherwise look for a token of its own, and report its use to Feast.
    clean = {"PATH": os.environ["PATH"], "HOME": str(cwd), "FEAST_USAGE": "False", "PYTHONWARNINGS": "ignore"}
    done = await asyncio.to_thread(
        subprocess.run,
        [str(part) for part in command],
        cwd=cwd,
        env=clean | variables,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


async def client(repository: Path, scenario: str, **variables: str) -> Any:
    printed = await run(SDK / "python", HERE / "client.py", repository, scenario, cwd=repository, **variables)
    return json.loads(printed.splitlines()[-1])


async def test_apply_twice_and_read_everything_back(repository: Callable[..., Path]) -> None:
    seen = await client(repository(), "apply_and_read")
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


async def test_change_materialize_and_delete(repository: Callable[..., Path]) -> None:
    seen = await client(repository(), "change_and_delete")
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


async def test_versions_of_a_view(repository: Callable[..., Path]) -> None:
    """The SDK shows no number of a view that is at its first version and was never pinned."""
    seen = await client(repository(), "versions")
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


async def test_features_are_materialized_read_and_saved(repository: Callable[..., Path]) -> None:
    seen = await client(repository(), "work")
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


async def test_label_views(repository: Callable[..., Path]) -> None:
    seen = await client(repository(), "label")
    assert seen == {"equal": True, "source": "pushed", "listed": ["verdicts"], "views": [], "left": []}


async def test_the_sdk_raises_its_own_exceptions(repository: Callable[..., Path]) -> None:
    seen = await client(repository(), "fail")
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


async def test_permissions_and_projects(repository: Callable[..., Path]) -> None:
    seen = await client(repository(), "other_objects")
    assert seen == {
        "permission": ["readers", ["driver_.*"], ["AuthzedAction.DESCRIBE"]],
        "permissions": ["readers"],
        "project": ["rides", "ann"],
        "metadata": [36],
    }


async def test_permissions_are_enforced(
    repository: Callable[..., Path], make_key: Callable[[Principal], Awaitable[str]]
) -> None:
    seen = await client(repository(), "guard")
    assert seen == {"permissions": ["entities", "sources", "views", "writers"]}
    keys = {role: await make_key(Principal(role, roles=frozenset([role]))) for role in ("reader", "writer", "stranger")}
    denied = "FeastPermissionError"
    reader = await client(repository(token=keys["reader"]), "guarded")
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
    writer = await client(repository(token=keys["writer"]), "guarded")
    assert writer["entities"] == ["customer", "driver"]
    assert (writer["views"], writer["create"], writer["delete"]) == ([], "", "")
    stranger = await client(repository(token=keys["stranger"]), "guarded")
    assert (stranger["entities"], stranger["views"], stranger["get"]) == ([], [], denied)
    # An administrator is not bound by them.
    assert sorted((await client(repository(), "read"))["entities"]) == ["driver", "new"]


async def test_a_wrong_token_is_refused(repository: Callable[..., Path]) -> None:
    seen = await client(repository(token="0123456789abcdef.wrong"), "refused")
    refusal = {"class": "FeastPermissionError", "message": "the API key is unknown, revoked or expired"}
    assert seen == {"list": refusal, "apply": refusal}


@pytest.mark.parametrize(
    ("configured", "variable"), [("token_env_var: MY_KEY", "MY_KEY"), ("# nothing", "FEAST_OIDC_TOKEN")]
)
async def test_the_key_can_stay_out_of_the_file(
    repository: Callable[..., Path], servers: Servers, configured: str, variable: str
) -> None:
    folder = repository()
    file = folder / "feature_store.yaml"
    file.write_text(file.read_text().replace(f"token: {servers.admin_key}", configured))
    assert await client(folder, "read", **{variable: servers.admin_key}) == {"entities": []}
    refusal = {"class": "FeastPermissionError", "message": "the API key is unknown, revoked or expired"}
    assert (await client(folder, "refused", **{variable: "no key"}))["list"] == refusal


async def test_the_cli_applies_and_lists(repository: Callable[..., Path]) -> None:
    folder = repository()
    (folder / "definitions.py").write_text(
        "from feast import Entity\n\nrider = Entity(name='rider', join_keys=['rider_id'], description='pays')\n"
    )
    await run(SDK / "feast", "apply", cwd=folder)
    assert "rider" in await run(SDK / "feast", "entities", "list", cwd=folder)
    assert "description: pays" in await run(SDK / "feast", "entities", "describe", "rider", cwd=folder)
    assert "rides" in await run(SDK / "feast", "projects", "list", cwd=folder)
