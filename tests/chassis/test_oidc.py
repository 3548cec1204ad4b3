"""Tokens of an OpenID Connect provider: a real one on a port, with real keys, that rotates them and goes away."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import jwt
import pytest
import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from chassis import errors
from chassis.auth import Keys
from chassis.oidc import Oidc, OidcSettings, _as_secure
from chassis.postgres import Database
from chassis.principals import Principal
from chassis.secretbox import SecretBox
from chassis.settings import Settings

RSA, OTHER_RSA = (rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(2))
EC = ec.generate_private_key(ec.SECP256R1())


class Provider:
    """An OpenID Connect provider: its discovery document and its keys."""

    def __init__(self) -> None:
        self.keys: dict[str, Any] = {"rsa": RSA, "ec": EC}
        self.asked = 0
        self.status = 200
        self.url = ""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self.status != 200:
            self.asked += 1
        if scope["path"] == "/.well-known/openid-configuration":
            answer: Any = {"issuer": self.url, "jwks_uri": f"{self.url}/keys"}
        else:
            self.asked += 1
            answer = {"keys": [self._published(key_id, key) for key_id, key in self.keys.items()]}
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})

    @staticmethod
    def _published(key_id: str, key: Any) -> dict[str, Any]:
        if isinstance(key, bytes):
            return {"kty": "oct", "k": base64.urlsafe_b64encode(key).decode(), "alg": "HS256", "kid": key_id}
        algorithm = jwt.algorithms.ECAlgorithm if key is EC else jwt.algorithms.RSAAlgorithm
        return {**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": key_id, "use": "sig"}

    def token(self, key_id: str = "rsa", key: Any = None, algorithm: str = "", **claims: Any) -> str:
        chosen = key or self.keys[key_id]
        given = {"exp": time.time() + 60, "iss": self.url, "preferred_username": "ann", **claims}
        kept = {name: value for name, value in given.items() if value is not None}
        return jwt.encode(kept, chosen, algorithm or ("ES256" if chosen is EC else "RS256"), headers={"kid": key_id})


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    provider = Provider()
    config = uvicorn.Config(provider, port=0, lifespan="off", log_config=None, ws="none")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn tells it no other way
        await asyncio.sleep(0.01)
    provider.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    yield provider
    server.should_exit = True
    await serving


def oidc(provider: Provider, **changes: Any) -> Oidc:
    url = f"{provider.url}/.well-known/openid-configuration"
    return Oidc(OidcSettings(**{"discovery_url": url, "client_id": "feast", "least_seconds": 0, **changes}))


async def refused(verifier: Oidc, token: str) -> str:
    with pytest.raises(errors.Unauthenticated) as raised:
        await verifier.principal(token)
    return raised.value.message


@pytest.mark.parametrize("key_id", ["rsa", "ec"])
async def test_who_a_token_stands_for(provider: Provider, key_id: str) -> None:
    verifier = oidc(provider, administrator_role="root", audience="us")
    roles = {"resource_access": {"feast": {"roles": ["reader"]}, "other": {"roles": ["writer"]}}, "roles": ["both", 3]}
    found = await verifier.principal(provider.token(key_id, aud="us", groups=["g"], **roles))
    assert (found.name, found.roles, found.groups) == ("ann", {"reader", "both"}, {"g"})
    assert (found.administrator, found.feature_stores, found.actions) == (False, frozenset(), ())
    service = await verifier.principal(
        provider.token(preferred_username=None, azp="robot", sub="s", roles=["root"], aud="us")
    )
    assert (service.name, service.administrator) == ("robot", True)
    assert not (await oidc(provider).principal(provider.token(roles=["root", ""]))).administrator


async def test_a_name_is_not_who_it_is(provider: Provider) -> None:
    """A provider lets people choose their names; only issuer and `sub` together are one caller's for ever."""
    verifier = oidc(provider)
    person = await verifier.principal(provider.token(sub="7"))
    renamed = await verifier.principal(provider.token(sub="7", preferred_username="bob"))
    robot = await verifier.principal(provider.token(sub="8", preferred_username=None, azp="ann"))
    nameless = await verifier.principal(provider.token())
    key = Principal("ann")
    assert person.identity == renamed.identity == f"{provider.url}\n7"
    assert {each.name for each in (person, robot, nameless, key)} == {"ann"}
    assert len({each.identity for each in (person, robot, nameless, key)}) == 4


async def test_refused_tokens(provider: Provider) -> None:
    verifier = oidc(provider, audience="triglot")
    good = provider.token(aud="triglot")
    assert (await verifier.principal(good)).name == "ann"
    head, body, signature = good.split(".")
    unsigned = base64.urlsafe_b64encode(b'{"alg":"none","kid":"rsa"}').rstrip(b"=").decode()
    public = RSA.public_key().public_numbers().n.to_bytes(256, "big")
    for token, says in (
        (f"{unsigned}.{body}.", "RS256"),
        (f"{unsigned}.{body}.{signature}", "RS256"),
        (provider.token(key=public, algorithm="HS256", aud="triglot"), "RS256"),
        (f"{head}.{body}.{signature[:-8]}AAAAAAAA", "refused"),
        (provider.token(key=OTHER_RSA, aud="triglot"), "refused"),
        (provider.token("ec", key=RSA, aud="triglot"), "refused"),
        (provider.token("new", key=OTHER_RSA, aud="triglot"), "does not publish"),
        (provider.token(aud="triglot", exp=time.time() - 60), "expired"),
        (provider.token(aud="triglot", exp=None), "exp"),
        (provider.token(aud="triglot", nbf=time.time() + 60), "not yet valid"),
        (provider.token(aud="triglot", iss="https://elsewhere"), "ssuer"),
        (provider.token(aud="other"), "udience"),
        (provider.token(), "aud"),
        (provider.token(aud="triglot", preferred_username=None), "names nobody"),
        ("a.b.c", "no signed JWT"),
    ):
        assert says in await refused(verifier, token), token


async def test_a_symmetric_key_is_no_key(provider: Provider) -> None:
    provider.keys["shared"] = b"s" * 32
    token = provider.token("shared", algorithm="HS256")
    assert "RS256" in await refused(oidc(provider), token)


async def test_keys_are_kept_and_rotated(provider: Provider) -> None:
    verifier = oidc(provider)
    tokens = [provider.token() for _ in range(20)]
    await asyncio.gather(*(verifier.principal(token) for token in tokens))
    assert provider.asked == 1
    provider.keys = {"new": OTHER_RSA}
    assert (await verifier.principal(provider.token("new"))).name == "ann"
    assert provider.asked == 2
    assert "does not publish" in await refused(verifier, tokens[0])
    # Invented key ids do not make the provider work.
    patient = oidc(provider, least_seconds=60)
    for number in range(5):
        assert "does not publish" in await refused(patient, provider.token(f"invented-{number}", key=RSA))
    assert provider.asked == 4


async def test_a_provider_that_is_away(provider: Provider) -> None:
    verifier = oidc(provider, keys_seconds=0.001)
    assert (await verifier.principal(provider.token())).name == "ann"
    provider.status = 500
    asked = provider.asked
    assert (await verifier.principal(provider.token())).name == "ann"
    assert provider.asked > asked
    away = OidcSettings(discovery_url="http://127.0.0.1:1/x", least_seconds=60)
    for _ in range(2):
        with pytest.raises(errors.Unavailable):
            await Oidc(away).principal(provider.token())


def test_an_administrators_token_has_to_be_for_us() -> None:
    with pytest.raises(errors.WrongSetting, match="TRIGLOT_OIDC_AUDIENCE"):
        OidcSettings(administrator_role="root")


async def test_keys_come_as_safely_as_their_address(provider: Provider) -> None:
    with pytest.raises(ValueError, match="https"):
        _as_secure("http://provider/keys", "https://provider/.well-known/openid-configuration")


async def test_beside_api_keys(provider: Provider, database: Database, settings: Settings) -> None:
    without, taking = (
        Keys(database, SecretBox(settings.secret_key), cache_seconds=10, tokens=each) for each in ([], [oidc(provider)])
    )
    shown = {"authorization": f"Bearer {provider.token()}"}
    assert (await taking.principal(shown)).name == "ann"
    with pytest.raises(errors.Unauthenticated):
        await without.principal(shown)
    with pytest.raises(errors.Unauthenticated):
        await taking.principal({"authorization": "Bearer 0123456789abcdef.wrong"})
