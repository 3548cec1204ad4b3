"""CheckInstanceDatasource really connects: to a folder, to a database, and to nothing else than what is allowed."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
import pytest

from chassis.settings import Settings
from services.management import hologres
from services.management.settings import ManagementSettings
from tests.management.conftest import Pai


@pytest.fixture
def own(tmp_path: Path, settings: Settings) -> ManagementSettings:
    url = urlsplit(settings.postgres_url.get_secret_value())
    hosts = (f"{url.hostname}:{url.port}", "127.0.0.1:1", "nowhere.invalid")
    return ManagementSettings(offline_roots=(tmp_path,), datasource_hosts=hosts, check_timeout_seconds=60)


async def tried(caller: Pai, **body: Any) -> tuple[str, str]:
    config = orjson.dumps(body.pop("Config")).decode()
    answer = await caller.answer("CheckInstanceDatasource", Config=config, **body)
    return answer["Status"], answer["Message"]


async def test_a_folder(caller: Pai, tmp_path: Path) -> None:
    offline = {"Type": "MaxCompute", "Uri": "p"}
    assert await tried(caller, **offline, Config={"root": str(tmp_path)}) == ("Success", "")
    status, message = await tried(caller, **offline, Config={"root": str(tmp_path / "absent")})
    assert (status, message.partition(":")[0]) == ("Failure", "folder")
    status, message = await tried(caller, **offline, Config={})
    assert (status, "root" in message) == ("Failure", True)


async def test_a_database(caller: Pai, settings: Settings) -> None:
    url = urlsplit(settings.postgres_url.get_secret_value())
    good = {"host": url.hostname, "port": url.port, "user": url.username, "password": url.password or ""}
    its_uri = f"instance{url.path}"

    async def step(uri: str = its_uri, **change: Any) -> tuple[str, str]:
        status, message = await tried(caller, Type="Hologres", Uri=uri, Config={**good, **change})
        assert "hunter2" not in message
        return status, message.partition(":")[0]

    assert await step() == ("Success", "")
    assert await step(port=str(url.port)) == ("Success", "")
    assert await step(uri="instance") == ("Failure", "Uri")
    assert await step(host="") == ("Failure", "Config")
    assert await step(port="x") == ("Failure", "Config")
    assert await step(host="localhost.localdomain") == ("Failure", "host")
    assert await step(host="nowhere.invalid") == ("Failure", "name")
    assert await step(port=1) == ("Failure", "port")
    assert await step(user="nobody here", password="hunter2") == ("Failure", "login")
    assert await step(uri="instance/nothing") == ("Failure", "database")
    # Everybody may look into it; tables may be made by its owner only.
    assert await step(uri="instance/postgres") == ("Failure", "permission")


async def test_a_port_that_says_nothing_is_not_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = {"host": "127.0.0.1", "port": listening.getsockname()[1]}
        with pytest.raises(hologres.Unusable, match="no answer within"):
            await hologres.check("instance/db", config, ["127.0.0.1"], 0.5)


async def test_what_could_not_be_made_is_refused(caller: Pai) -> None:
    for wrong in ({"Type": "Oracle"}, {"Uri": ""}, {"Config": "{"}, {"Config": '{"password":"******"}'}):
        body = {"Type": "Hologres", "Uri": "i/db", **wrong}
        await caller.refused("CheckInstanceDatasource", 400, "InvalidParameter", **body)
