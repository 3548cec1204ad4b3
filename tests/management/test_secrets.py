"""Secrets of datasources: whatever they are called, wherever they are, no answer shows and no update loses them."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from chassis.postgres import Database
from chassis.secretbox import SecretBox
from chassis.settings import Settings
from services.management.secrets import MASK, ConfigKeeper
from tests.management.conftest import Pai

SECRET = "hunter2"
# What is given, and what of it is shown.
CONFIGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "by name": ({"host": "h", "password": SECRET}, {"host": "h", "password": MASK}),
    "a number": ({"pwd": 123456, "port": 6379}, {"pwd": MASK, "port": 6379}),
    "below a secret name": (
        {"credentials": {"user": {"name": SECRET}, "on": True, "none": None, "empty": ""}, "db": {"name": "d"}},
        {"credentials": {"user": {"name": MASK}, "on": True, "none": None, "empty": ""}, "db": {"name": "d"}},
    ),
    "lists": (
        {"tokens": [SECRET, "x"], "nodes": [{"host": "a", "sk": SECRET}, {"host": "b", "sk": "y"}], "hosts": ["a"]},
        {"tokens": [MASK] * 2, "nodes": [{"host": "a", "sk": MASK}, {"host": "b", "sk": MASK}], "hosts": ["a"]},
    ),
    "list of lists below a secret name": (
        {"Secrets": [[SECRET], [{"a": SECRET}]]},
        {"Secrets": [[MASK], [{"a": MASK}]]},
    ),
}
NAMES = (
    "password",
    "Passwd",
    "db_pass",
    "passphrase",
    "clientSecret",
    "AccessKeyId",
    "access-key-secret",
    "api_key",
    "SK",
)
TEXTS = (
    f"postgresql://reader:{SECRET}@db:5432/shop",
    f"redis://:{SECRET}@db",
    f"https://{SECRET}@db/1",
    f"reader:{SECRET}@tcp(db:3306)/shop",
    f"pg://reader:a/{SECRET}@db",
    f"host=db user=reader password={SECRET}",
    f"host=db password = '{SECRET}'",
    f"Server=db;Pwd={SECRET};",
    f"jdbc:postgresql://db/shop?user=reader&password={SECRET}",
    f"endpoint=db;AccessKeySecret={SECRET}",
    f'{{"password":"{SECRET}"}}',
    f"password: {SECRET}",
)
PLAIN = ("postgresql://db:5432/shop", "jdbc:hologres://db:80/shop?user=reader", "a@b", "oss://bucket/path", "12:30")


@pytest.fixture
def make(caller: Pai) -> Any:
    """Makes a datasource with a Config; its id."""

    async def made(config: dict[str, Any]) -> str:
        text = orjson.dumps(config).decode()
        return await caller.made("Datasource", Name="d", WorkspaceId="1", Type="Hologres", Uri="i/db", Config=text)

    return made


@pytest.fixture
def kept(settings: Settings, database: Database) -> Any:
    """What is stored: the whole configuration, and that nothing but the sealed part of it holds the secret."""
    keeper = ConfigKeeper(SecretBox(settings.secret_key))

    async def read() -> dict[str, Any]:
        row = await database.fetchrow("SELECT * FROM management.datasource")
        assert row is not None
        assert SECRET not in row["config"] + row["uri"]
        return keeper.open(row)

    return read


async def shown(caller: Pai) -> list[dict[str, Any]]:
    """Its configuration in every answer that holds one."""
    answers = [
        await caller.answer("GetDatasource", DatasourceId="1"),
        *(await caller.answer("ListDatasources"))["Datasources"],
    ]
    return [orjson.loads(answer["Config"]) for answer in answers]


async def update(caller: Pai, config: dict[str, Any]) -> None:
    text = orjson.dumps(config).decode()
    await caller.answer("UpdateDatasource", DatasourceId="1", Name="d", Uri="i/db", Config=text)


@pytest.mark.parametrize("what", CONFIGS)
async def test_secrets_are_masked_and_come_back_whole(caller: Pai, make: Any, kept: Any, what: str) -> None:
    given, masked = CONFIGS[what]
    await make(given)
    assert await shown(caller) == [masked, masked]
    assert await kept() == given
    # What was read can be written back, beside something new.
    await update(caller, {**masked, "new": 1})
    assert await kept() == {**given, "new": 1}
    assert await shown(caller) == [{**masked, "new": 1}] * 2


async def test_names_of_secrets(caller: Pai, make: Any, kept: Any) -> None:
    given = dict.fromkeys(NAMES, SECRET)
    await make({**given, "passenger": "p", "task": "t", "keyspace": "k"})
    assert await shown(caller) == [{**dict.fromkeys(NAMES, MASK), "passenger": "p", "task": "t", "keyspace": "k"}] * 2
    await kept()


async def test_secrets_inside_texts(caller: Pai, make: Any, kept: Any) -> None:
    given = {f"t{number}": text for number, text in enumerate(TEXTS)} | {f"p{n}": text for n, text in enumerate(PLAIN)}
    await make({"list": [*TEXTS, "plain"], **given})
    masked = {f"t{number}": MASK for number in range(len(TEXTS))} | {f"p{n}": text for n, text in enumerate(PLAIN)}
    assert await shown(caller) == [{"list": [MASK] * len(TEXTS) + ["plain"], **masked}] * 2
    assert await kept() == {"list": [*TEXTS, "plain"], **given}


@pytest.mark.parametrize("text", TEXTS)
async def test_a_uri_holds_no_secret(caller: Pai, make: Any, text: str) -> None:
    new = {"Name": "e", "WorkspaceId": "1", "Type": "Hologres"}
    message = await caller.refused("CreateDatasource", 400, "InvalidParameter", Uri=text, **new)
    assert "Config" in message
    assert SECRET not in message
    await make({})
    await caller.refused("UpdateDatasource", 400, "InvalidParameter", DatasourceId="1", Name="d", Uri=text)


async def test_ordinary_uris(caller: Pai) -> None:
    for number, text in enumerate(PLAIN):
        await caller.made("Datasource", Name=f"d{number}", WorkspaceId="1", Type="Hologres", Uri=text)


@pytest.mark.parametrize(
    ("config", "place"),
    [
        ({"password": MASK}, "password"),
        ({"a": {"b": [{"token": MASK}]}}, "a.b.0.token"),
        ({"url": f"pg://reader:{MASK}@db"}, "url"),
    ],
)
async def test_the_mask_is_no_value(caller: Pai, make: Any, kept: Any, config: dict[str, Any], place: str) -> None:
    text = orjson.dumps(config).decode()
    new = {"Name": "e", "WorkspaceId": "1", "Type": "Hologres", "Uri": "i/db"}
    assert f" {place} " in await caller.refused("CreateDatasource", 400, "InvalidParameter", Config=text, **new)
    await make({"secret": SECRET})
    change = {"DatasourceId": "1", "Name": "d", "Uri": "i/db"}
    assert f" {place} " in await caller.refused("UpdateDatasource", 400, "InvalidParameter", Config=text, **change)
    assert await kept() == {"secret": SECRET}


async def test_a_mask_stands_for_what_was_shown_there_and_nothing_else(caller: Pai, make: Any, kept: Any) -> None:
    given = {"host": "h", "nodes": [{"host": "a", "sk": SECRET}, {"host": "b", "sk": "y"}], "on": True}
    await make(given)
    for wrong in (
        {"host": MASK},
        {"nodes": MASK},
        # Whose secret would which be? A list is as it was shown, or given anew.
        {"nodes": [{"host": "b", "sk": MASK}, {"host": "a", "sk": MASK}]},
        {"nodes": [{"host": "a", "sk": MASK}]},
    ):
        text = orjson.dumps(wrong).decode()
        change = {"DatasourceId": "1", "Name": "d", "Uri": "i/db"}
        await caller.refused("UpdateDatasource", 400, "InvalidParameter", Config=text, **change)
        assert await kept() == given
    await update(caller, {"host": "h2", "nodes": [{"host": "b", "sk": "z"}], "on": 1})
    assert await kept() == {"host": "h2", "nodes": [{"host": "b", "sk": "z"}], "on": 1}
    assert (await kept())["on"] is not True


async def test_an_update_without_a_config_keeps_it(caller: Pai, make: Any, kept: Any) -> None:
    await make({"password": SECRET})
    await caller.answer("UpdateDatasource", DatasourceId="1", Name="e", Uri="i/db2")
    assert await kept() == {"password": SECRET}


@pytest.mark.parametrize("piece", [":", "://", "passw", "password ", "password=", "a:b", "sk "])
def test_a_text_made_to_be_slow_is_looked_through_at_once(settings: Settings, piece: str) -> None:
    """With a pattern that begins anew at each of 60,000 places and reads to the end, this would take minutes."""
    text = orjson.dumps({"a": (piece * 60_000)[:60_000]}).decode()
    assert ConfigKeeper(SecretBox(settings.secret_key)).keep(text).whole == orjson.loads(text)
