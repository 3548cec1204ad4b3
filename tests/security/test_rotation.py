"""Keys are replaced while everybody goes on: for a while the old one and the new one both work."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from google.protobuf.duration_pb2 import Duration
from pydantic import SecretStr

from chassis import auth, calls, errors
from chassis.identity.store import ACCESS_KEY_PURPOSE, IdentityStore
from chassis.inprocess import InProcessChannel
from chassis.postgres import Database
from chassis.principals import Principal
from chassis.secretbox import SecretBox, new_key
from chassis.settings import Settings
from protos.gen.triglot.identity.v1 import identity_service_pb2 as pb
from protos.gen.triglot.identity.v1.identity_service_pb2_grpc import IdentityServiceStub
from services.management.process import open_service
from services.management.secrets import ConfigKeeper
from services.management.settings import ManagementSettings
from tests.chassis.test_auth import signed
from tests.conftest import SECRET_KEY, Servers
from triglot import cli, keyring

DAY = timedelta(days=1)
Run = Callable[..., str]


@pytest.fixture
def keys(database: Database, settings: Settings) -> auth.Keys:
    return auth.Keys(database, settings.secret_box, cache_seconds=0)


async def works(keys: auth.Keys, metadata: dict[str, Any]) -> bool:
    try:
        return (await keys.principal(metadata)).name == "admin"
    except errors.Unauthenticated:
        return False


async def test_an_api_key_and_the_one_after_it(identity: IdentityStore, keys: auth.Keys) -> None:
    old, shown = await identity.create_api_key("admin")
    new, _ = await identity.rotate_api_key(shown.identifier, DAY)
    assert [await works(keys, {"x-api-key": each}) for each in (old, new)] == [True, True]
    await identity.rotate_api_key(shown.identifier, timedelta())
    assert [await works(keys, {"x-api-key": each}) for each in (old, new)] == [False, True]


async def test_an_access_key_and_the_one_after_it(identity: IdentityStore, keys: auth.Keys) -> None:
    old = await identity.create_access_key("admin")
    new = await identity.rotate_access_key(old[0], DAY)
    assert [await works(keys, signed(each, nonce="a")) for each in (old, new)] == [True, True]
    await identity.rotate_access_key(old[0], timedelta())
    assert [await works(keys, signed(each, nonce="b")) for each in (old, new)] == [False, True]


async def test_no_key_lives_longer_than_it_was_to(identity: IdentityStore) -> None:
    """And one that expires is followed by one that does."""
    soon = datetime.now(UTC) + timedelta(hours=1)
    _, shown = await identity.create_api_key("admin", soon)
    _, after = await identity.rotate_api_key(shown.identifier, DAY)
    expiry = {key.identifier: key.expires_at for key in await identity.list_api_keys()}
    assert expiry[shown.identifier] == soon
    assert after.expires_at is not None
    assert timedelta(0) <= after.expires_at - soon < timedelta(minutes=10)


async def test_an_unknown_key(identity: IdentityStore) -> None:
    for rotate in (identity.rotate_api_key, identity.rotate_access_key):
        with pytest.raises(errors.NotFound):
            await rotate("nobody", DAY)


@pytest.fixture
async def rpcs(settings: Settings) -> AsyncIterator[Any]:
    async with open_service(settings, ManagementSettings(), InProcessChannel([])) as services:
        yield IdentityServiceStub(InProcessChannel(services))


async def test_over_grpc(
    rpcs: Any, servers: Servers, keys: auth.Keys, make_key: Callable[[Principal], Awaitable[str]]
) -> None:
    """For administrators; grace has bounds."""
    admin = calls.bearer(servers.admin_key)
    prefix, key_id = servers.admin_key.partition(".")[0], servers.access_key[0]
    api = pb.RotateApiKeyRequest(prefix=prefix, grace=Duration(seconds=60))
    access = pb.RotateAccessKeyRequest(access_key_id=key_id, grace=Duration(seconds=60))
    made = await calls.invoke(rpcs.RotateApiKey, api, metadata=admin)
    assert await works(keys, {"x-api-key": made.api_key})
    other = await calls.invoke(rpcs.RotateAccessKey, access, metadata=admin)
    assert await works(keys, signed((other.access_key_id, other.access_key_secret)))
    listed = await calls.invoke(rpcs.ListAccessKeys, pb.ListAccessKeysRequest(), metadata=admin)
    assert [key.HasField("expire_time") for key in listed.keys] == [False, True]
    somebody = calls.bearer(await make_key(Principal("bob", actions=("featurestore:*",))))
    with pytest.raises(errors.PermissionDenied):
        await calls.invoke(rpcs.RotateApiKey, api, metadata=somebody)
    for wrong in (Duration(seconds=-1), Duration(seconds=366 * 86_400), Duration(nanos=-1)):
        with pytest.raises(errors.InvalidArgument):
            request = pb.RotateApiKeyRequest(prefix=prefix, grace=wrong)
            await calls.invoke(rpcs.RotateApiKey, request, metadata=admin)


def test_a_secret_box_reads_what_other_keys_wrote() -> None:
    old, new = SecretStr(new_key()), SecretStr(new_key())
    sealed = SecretBox(old).encrypt("text", "purpose")
    both = SecretBox(new, [old])
    assert both.decrypt(sealed, "purpose") == "text"
    renewed = both.renewed(sealed, "purpose")
    assert renewed is not None
    assert both.renewed(renewed, "purpose") is None
    assert SecretBox(new).decrypt(renewed, "purpose") == "text"
    for box, purpose in ((SecretBox(new), "purpose"), (both, "other purpose")):
        with pytest.raises(errors.FailedPrecondition):
            box.decrypt(sealed, purpose)


@pytest.fixture
def run(settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs a command of `triglot keys` on this test's database; what it prints."""
    monkeypatch.setenv("TRIGLOT_POSTGRES_URL", settings.postgres_url.get_secret_value())

    def command(*arguments: str, secret_key: str = SECRET_KEY, others: tuple[str, ...] = ()) -> str:
        monkeypatch.setenv("TRIGLOT_SECRET_KEY", secret_key)
        monkeypatch.setenv("TRIGLOT_DECRYPTION_KEYS", orjson.dumps(others).decode())
        monkeypatch.setattr(sys, "argv", ["triglot", "keys", *arguments, f"--data-dir={tmp_path}"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        assert ended.value.code in (0, None), printed.err
        return printed.out.strip()

    return command


def test_commands(run: Run, servers: Servers) -> None:
    prefix = servers.admin_key.partition(".")[0]
    new = run("rotate", prefix, "--grace-hours=1")
    key_id, _ = run("rotate", servers.access_key[0]).split()
    listed = {each["prefix"]: each["expires"] for each in orjson.loads(run("list", "--json"))}
    assert listed.keys() == {prefix, new.partition(".")[0], key_id, servers.access_key[0]}
    assert [listed[name] == "never" for name in (prefix, new.partition(".")[0], key_id, servers.access_key[0])] == [
        False, True, True, False,
    ]  # fmt: skip
    assert run("revoke", key_id) == run("revoke", prefix) == "revoked"
    assert len(orjson.loads(run("list", "--json"))) == 2


def test_the_secret_key_is_changed(run: Run, settings: Settings, servers: Servers) -> None:
    """All that is stored is read with the new key alone in the end, and with both at any time before."""
    new = new_key()
    both = settings.model_copy(update={"secret_key": SecretStr(new), "decryption_keys": (settings.secret_key,)})
    only = settings.model_copy(update={"secret_key": SecretStr(new)})
    config = {"host": "h", "password": "hunter2"}
    sealed = ConfigKeeper(settings.secret_box).keep(orjson.dumps(config).decode()).sealed

    async def execute(statement: str, *arguments: Any) -> Any:
        database = await cli.open_database(settings)
        try:
            return await database.fetchval(statement, *arguments)
        finally:
            await database.close()

    asyncio.run(
        execute(
            "INSERT INTO management.datasource (name, workspace_id, type, uri, config, config_sealed)"
            " VALUES ('d', '1', 'Hologres', 'i/db', '{}', $1)",
            sealed,
        )
    )

    def read(box: SecretBox) -> tuple[str, Any]:
        of_key = asyncio.run(execute("SELECT secret_encrypted FROM identity.access_key"))
        of_config = asyncio.run(execute("SELECT config_sealed FROM management.datasource"))
        return box.decrypt(of_key, ACCESS_KEY_PURPOSE), ConfigKeeper(box).open({"config_sealed": of_config})  # type: ignore[arg-type]

    expected = (servers.access_key[1], config)
    assert read(settings.secret_box) == read(both.secret_box) == expected
    done = "encrypted again: {} access keys, {} datasources"
    assert run("reencrypt", secret_key=new, others=(SECRET_KEY,)) == done.format(1, 1)
    assert run("reencrypt", secret_key=new, others=(SECRET_KEY,)) == done.format(0, 0)
    assert read(only.secret_box) == read(both.secret_box) == expected


async def test_an_embedded_stack_replaces_keys_that_expire(
    identity: IdentityStore, settings: Settings, database: Database, tmp_path: Path
) -> None:
    """Somebody rotated its own. And with the secret key of before its access key is kept."""
    first = keyring.read_or_begin(tmp_path, settings)
    first = await keyring.complete(first, database)
    keyring.write(tmp_path, first)
    new = SecretStr(new_key())
    changed = settings.model_copy(update={"secret_key": new, "decryption_keys": (settings.secret_key,)})
    kept = await keyring.complete(keyring.read_or_begin(tmp_path, changed), database)
    assert (kept.access_key_id, kept.api_key, kept.secret_key) == (
        first.access_key_id,
        first.api_key,
        new.get_secret_value(),
    )
    await identity.rotate_api_key(first.service_api_key.partition(".")[0], DAY)
    after = await keyring.complete(kept, database)
    assert after.service_api_key != first.service_api_key
    assert after.api_key == first.api_key
