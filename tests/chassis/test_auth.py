"""Credentials and what becomes of them, on the real database."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from chassis import auth, errors
from chassis.identity.store import IdentityStore
from chassis.postgres import Database, open_database
from chassis.principals import Principal
from chassis.secretbox import SecretBox
from chassis.settings import Settings
from tests.conftest import Servers
from tests.patience import PATIENCE_SECONDS, until
from tests.relay import open_relay


def now_text(offset: timedelta = timedelta()) -> str:
    return (datetime.now(UTC) + offset).strftime("%Y-%m-%dT%H:%M:%SZ")


def signed(key: tuple[str, str], *, nonce: str = "n1", date: str | None = None) -> dict[str, str | bytes]:
    headers = f"{auth.DATE}:{date or now_text()}\n{auth.NONCE}:{nonce}\n"
    canonical = f"GET\n/api/v1/instances\n\n{headers}\n{auth.DATE};{auth.NONCE}\n{'0' * 64}".encode()
    return {
        "authorization": f"ACS3-HMAC-SHA256 Credential={key[0]},SignedHeaders={auth.DATE};{auth.NONCE},"
        f"Signature={auth.sign(key[1], canonical)}",
        auth.CANONICAL_REQUEST: canonical,
    }


async def test_api_keys_by_both_headers(settings: Settings, database: Database, servers: Servers) -> None:
    keys = auth.open_authenticator(settings, database)
    for metadata in ({"authorization": f"Bearer {servers.admin_key}"}, {"x-api-key": servers.admin_key}):
        assert (await keys.principal(metadata)).name == "admin"


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({}, "CREDENTIAL_MISSING"),
        ({"authorization": "Bearer nonsense"}, "CREDENTIAL_INVALID"),
        ({"authorization": "Bearer 0123456789abcdef.wrong"}, "CREDENTIAL_INVALID"),
        ({"authorization": "Basic YTpi"}, "CREDENTIAL_INVALID"),
        ({"authorization": "ACS3-RSA-SHA256 Credential=a"}, "SIGNATURE_TYPE_UNSUPPORTED"),
        ({"authorization": "ACS3-HMAC-SHA256 Credential=a"}, "SIGNATURE_INCOMPLETE"),
    ],
)
async def test_refused(settings: Settings, database: Database, metadata: dict[str, str], reason: str) -> None:
    keys = auth.open_authenticator(settings, database)
    with pytest.raises(errors.Unauthenticated) as raised:
        await keys.principal(metadata)
    assert raised.value.reason == reason


async def test_signatures(settings: Settings, database: Database, servers: Servers) -> None:
    keys = auth.open_authenticator(settings, database)
    assert (await keys.principal(signed(servers.access_key))).name == "admin"
    refusals = {
        "SIGNATURE_NONCE_USED": signed(servers.access_key),
        "SIGNATURE_MISMATCH": signed((servers.access_key[0], "wrong"), nonce="n2"),
        "ACCESS_KEY_NOT_FOUND": signed(("LTAIunknown", "wrong"), nonce="n3"),
        # A captured signature is of no use with another nonce, wherever that is put.
        "SIGNATURE_INCOMPLETE": {**signed(servers.access_key, nonce=""), auth.NONCE: "n5"},
        "SIGNATURE_EXPIRED": signed(servers.access_key, nonce="n4", date=now_text(timedelta(minutes=-16))),
    }
    for reason, metadata in refusals.items():
        with pytest.raises(errors.Unauthenticated) as raised:
            await keys.principal(metadata)
        assert raised.value.reason == reason


async def test_a_captured_signature_is_of_no_use_with_another_nonce(
    settings: Settings, database: Database, servers: Servers
) -> None:
    keys = auth.open_authenticator(settings, database)
    captured = signed(servers.access_key, nonce="n1")
    canonical = captured[auth.CANONICAL_REQUEST]
    assert isinstance(canonical, bytes)
    with pytest.raises(errors.Unauthenticated) as raised:
        await keys.principal({**captured, auth.CANONICAL_REQUEST: canonical.replace(b":n1", b":n2")})
    assert raised.value.reason == "SIGNATURE_MISMATCH"


async def test_a_revoked_key_stops_working(settings: Settings, database: Database, identity: IdentityStore) -> None:
    await identity.create_principal(Principal("bob", actions=("featurestore:Get*",)))
    key, shown = await identity.create_api_key("bob")
    keys = auth.Keys(database, SecretBox(settings.secret_key), cache_seconds=0)
    bob = await keys.principal({"x-api-key": key})
    assert bob.may("featurestore:GetTask")
    assert not bob.may("featurestore:CreateProject")
    await identity.revoke_api_key(shown.identifier)
    with pytest.raises(errors.Unauthenticated):
        await keys.principal({"x-api-key": key})


async def test_a_key_that_was_good_is_taken_while_postgresql_is_away(
    settings: Settings, identity: IdentityStore
) -> None:
    await identity.create_principal(Principal("bob"))
    key, shown = await identity.create_api_key("bob")
    async with open_relay(settings.postgres_url.get_secret_value()) as relay:
        through = settings.model_copy(update={"postgres_url": type(settings.postgres_url)(relay.url)})
        database = await open_database(through)
        box = SecretBox(settings.secret_key)
        patient = auth.Keys(database, box, cache_seconds=0, stale_seconds=3600)
        strict = auth.Keys(database, box, cache_seconds=0)
        for keys in (patient, strict):
            assert (await keys.principal({"x-api-key": key})).name == "bob"
        relay.closed = True
        relay.close()
        assert (await patient.principal({"x-api-key": key})).name == "bob"
        for keys, other in ((strict, key), (patient, f"{shown.identifier}.wrong"), (patient, "0123456789abcdef.x")):
            with pytest.raises(errors.Unavailable):
                await keys.principal({"x-api-key": other})
        await identity.revoke_api_key(shown.identifier)
        relay.closed = False

        async def refused() -> bool:
            try:
                await patient.principal({"x-api-key": key})
            except errors.Unauthenticated:
                return True
            return False

        await until(refused)
        await database.close()


async def test_a_key_that_was_good_waits_for_no_postgresql_that_hangs(
    settings: Settings, identity: IdentityStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ending a statement that is under way is a question to PostgreSQL too: nobody waits for its answer."""
    monkeypatch.setattr(auth, "_PATIENCE_SECONDS", 0.1)
    key, _ = await identity.create_api_key("admin")
    async with open_relay(settings.postgres_url.get_secret_value()) as relay:
        url = type(settings.postgres_url)(relay.url)
        through = settings.model_copy(update={"postgres_url": url, "postgres_timeout_seconds": 2.0 * PATIENCE_SECONDS})
        database = await open_database(through)
        keys = auth.Keys(database, SecretBox(settings.secret_key), cache_seconds=0, stale_seconds=3600)
        assert (await keys.principal({"x-api-key": key})).name == "admin"
        relay.flowing.clear()
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert (await keys.principal({"x-api-key": key})).name == "admin"
        relay.flowing.set()
        await database.close()


async def test_an_expired_key_is_refused(settings: Settings, database: Database, identity: IdentityStore) -> None:
    key, _ = await identity.create_api_key("admin", datetime.now(UTC) - timedelta(seconds=1))
    with pytest.raises(errors.Unauthenticated):
        await auth.Keys(database, SecretBox(settings.secret_key), 10).principal({"x-api-key": key})


def test_switching_it_off_asks_for_loopback(settings: Settings) -> None:
    opened = settings.model_copy(update={"auth": "off", "host": "0.0.0.0"})
    with pytest.raises(ValueError, match="loopback"):
        auth.open_authenticator(opened, None)  # type: ignore[arg-type]


def test_every_process_refuses_to_be_open_to_a_network() -> None:
    """The gateway has no authenticator of its own, so the settings themselves refuse."""
    assert Settings(auth="off", host="127.0.0.1").auth == "off"
    with pytest.raises(ValueError, match="loopback"):
        Settings(auth="off", host="0.0.0.0")
