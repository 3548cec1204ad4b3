"""Compatibility is data: every case of the YAML files beside this one, over gRPC and through the gateway."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format

from chassis import errors
from tests.cases.world import DEPLOYED, World, open_deployment, open_world

HERE = Path(__file__).parent
CASE_KEYS = {"name", "source", "given", "http", "grpc", "alone"}


@dataclass(frozen=True)
class Case:
    """One case of one file."""

    file: str
    content: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.file}: {self.content['name']}"


def cases(world_part: str) -> Iterator[Any]:
    for path in sorted(HERE.glob("*/*.yaml")):
        for content in yaml.safe_load(path.read_text()):
            assert set(content) <= CASE_KEYS, f"{path.name}: {content['name']} has unknown keys"
            assert content.get("source"), f"{path.name}: {content['name']} names no source"
            assert "http" in content or "grpc" in content, f"{path.name}: {content['name']} expects nothing"
            if world_part in content:
                case = Case(str(path.relative_to(HERE)), content)
                # `alone`: why it holds only of a deployment whose services are one process each.
                alone = pytest.mark.skipif(bool(DEPLOYED), reason=content.get("alone", ""))
                yield pytest.param(case, id=str(case), marks=[alone] if "alone" in content else [])


@pytest.fixture
def opening(request: pytest.FixtureRequest) -> AbstractAsyncContextManager[World]:
    """Servers of our own are started only where there is no deployment."""
    if DEPLOYED:
        return open_deployment(Path(DEPLOYED))
    return open_world(request.getfixturevalue("settings"), request.getfixturevalue("servers"))


@pytest.fixture
async def world(opening: AbstractAsyncContextManager[World]) -> AsyncIterator[World]:
    async with opening as opened:
        yield opened


@pytest.mark.parametrize("case", list(cases("http")))
async def test_through_the_gateway(world: World, case: Case) -> None:
    await prepare(world, case)
    steps = case.content["http"]
    for step in steps if isinstance(steps, list) else [steps]:
        request, expected = step["request"], step["expect"]
        response = await world.http.request(
            request["method"],
            request["path"].replace("$INSTANCE", world.instance_id),
            headers=headers(request, world, case.file.partition("/")[0]),
            content=content(request, world),
        )
        assert response.status_code == expected["status"], response.text
        check_body(expected, response.text)


@pytest.mark.parametrize("case", list(cases("grpc")))
async def test_over_grpc(world: World, case: Case) -> None:
    await prepare(world, case)
    steps = case.content["grpc"]
    for step in steps if isinstance(steps, list) else [steps]:
        request, expected = step["request"], step["expect"]
        api_key = {"none": "", "wrong": "0123456789abcdef.wrong"}.get(request.get("auth", "default"))
        try:
            answer = await world.rpc(request["rpc"], request.get("message", {}), api_key)
        except errors.TriglotError as error:
            assert (error.code.name, error.reason) == (expected.get("code", "OK"), expected["reason"]), error.message
        else:
            assert expected.get("code", "OK") == "OK"
            check(expected.get("json", {}), json_format.MessageToDict(answer), "answer")


async def prepare(world: World, case: Case) -> None:
    for step in case.content.get("given", []):
        if "rows" in step:
            await world.write_rows(**step["rows"])
        else:
            await world.rpc(step["rpc"], step["request"])


def headers(request: Mapping[str, Any], world: World, dialect: str) -> dict[str, str]:
    shown = dict(request.get("headers", {}))
    auth = request.get("auth", "default")
    if auth != "none":
        key = "0123456789abcdef.wrong" if auth == "wrong" else world.api_key
        shown |= {"X-API-KEY": key} if dialect == "hopsworks" else {"Authorization": f"Bearer {key}"}
    if "json" in request:
        shown.setdefault("Content-Type", "application/json")
    return shown


def content(request: Mapping[str, Any], world: World) -> bytes | None:
    if "text" in request:
        return str(request["text"]).encode()
    if "json" not in request:
        return None
    return json.dumps(request["json"]).replace("$INSTANCE", world.instance_id).encode()


def check_body(expected: Mapping[str, Any], text: str) -> None:
    if "text" in expected:
        assert expected["text"] in text
    if "json" in expected:
        found = json.loads(text)
        if expected.get("exact"):
            assert found == expected["json"]
        else:
            check(expected["json"], found, "body")


def check(expected: Any, found: Any, where: str) -> None:
    """Dicts: every expected key must be there. Lists and scalars: equal, item by item, in type too."""
    if isinstance(expected, dict):
        assert isinstance(found, dict), f"{where}: {found!r} is no object"
        for key, value in expected.items():
            assert key in found, f"{where}.{key} is missing in {found!r}"
            check(value, found[key], f"{where}.{key}")
    elif isinstance(expected, list):
        assert isinstance(found, list), f"{where}: {found!r} is no list"
        assert len(found) == len(expected), f"{where}: {found!r} has not {len(expected)} items"
        for position, (one, other) in enumerate(zip(expected, found, strict=True)):
            check(one, other, f"{where}[{position}]")
    else:
        assert (type(expected), expected) == (type(found), found), where
