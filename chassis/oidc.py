"""Tokens of an OpenID Connect provider: from a signed JWT to the principal that it stands for.

Only RS256 and ES256 are taken, only with a key that the provider publishes: never `alg: none`, never a shared secret.
The provider's keys are fetched when they are first needed, kept for a while, and fetched again when a token names a key
that is not among them, but not more often than every few seconds: an invented key id costs the provider nothing.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping
from typing import Any

import httpx2
import jwt
import orjson
from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from chassis import errors
from chassis.principals import Principal
from chassis.settings import SettingsModel
from chassis.telemetry import log

ALGORITHMS = ("RS256", "ES256")
LEEWAY_SECONDS = 10
_MAX_ANSWER_BYTES = 1 << 20
# Which claim names the caller: the first that is there, as in Feast.
_NAMES = ("preferred_username", "upn", "azp", "appid", "sub")


class OidcSettings(SettingsModel):
    """Settings of the OpenID Connect provider whose tokens are taken beside API keys."""

    model_config = SettingsConfigDict(env_prefix="TRIGLOT_OIDC_", frozen=True, extra="ignore")

    discovery_url: str = Field(
        "", description="The provider's `.well-known/openid-configuration`; empty: no tokens are taken."
    )
    client_id: str = Field("", description="Roles are read from `resource_access.<client id>.roles` and `roles`.")
    audience: str = Field(
        "",
        description="What `aud` of a token must hold; empty: it is not looked at. Administrators need one.",
    )
    issuer: str = Field("", description="What `iss` of a token must be; empty: the issuer that the provider names.")
    administrator_role: str = Field("", description="Callers with this role may do everything; empty: no token may.")
    ca_certificate: str = Field("", description="PEM file of the authorities that vouch for the provider.")
    keys_seconds: float = Field(300.0, gt=0, description="How long the provider's keys are kept.")
    least_seconds: float = Field(5.0, ge=0, description="How long at least between two looks at the provider's keys.")
    timeout_seconds: float = Field(10.0, gt=0, description="Deadline of a request to the provider.")

    @model_validator(mode="after")
    def _administrators_have_tokens_for_us(self) -> OidcSettings:
        if self.administrator_role and not self.audience:
            raise ValueError(
                f"{self.variable('administrator_role')} needs {self.variable('audience')}: a token for another"
                " application would make an administrator"
            )
        return self


class Oidc:
    """Verifies tokens of one provider."""

    def __init__(self, settings: OidcSettings) -> None:
        self._settings = settings
        self._keys: Mapping[str, jwt.PyJWK] = {}
        self._issuer = settings.issuer
        self._trusted = ssl.create_default_context(cafile=settings.ca_certificate or None)
        self._fetched = -float("inf")
        self._fetching = asyncio.Lock()

    def takes(self, token: str) -> bool:
        """Whether a token looks like a JWT: it has two dots, an API key one."""
        return token.count(".") == 2

    async def principal(self, token: str) -> Principal:
        """Whom a token stands for. Raises Unauthenticated, or Unavailable if the provider's keys cannot be had."""
        try:
            header = jwt.get_unverified_header(token)
        except jwt.InvalidTokenError:
            raise errors.Unauthenticated("the token is no signed JWT") from None
        if header.get("alg") not in ALGORITHMS:
            raise errors.Unauthenticated(f"only tokens signed with {' or '.join(ALGORITHMS)} are taken")
        key = await self._key(str(header.get("kid", "")))
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=[key.algorithm_name],
                audience=self._settings.audience or None,
                issuer=self._issuer or None,
                leeway=LEEWAY_SECONDS,
                options={
                    "require": ["exp"],
                    "verify_aud": bool(self._settings.audience),
                    "verify_iss": bool(self._issuer),
                },
            )
        except jwt.InvalidTokenError as error:
            # PyJWT's texts name the claim and show nothing of the token.
            raise errors.Unauthenticated(f"the token is refused: {error}") from None
        return self._principal_of(claims)

    def _principal_of(self, claims: Mapping[str, Any]) -> Principal:
        name = next((claims[each] for each in _NAMES if isinstance(claims.get(each), str) and claims[each]), None)
        if name is None:
            raise errors.Unauthenticated("the token names nobody")
        access = claims.get("resource_access")
        of_client = access.get(self._settings.client_id) if isinstance(access, dict) else None
        roles = _texts(of_client.get("roles") if isinstance(of_client, dict) else None) | _texts(claims.get("roles"))
        return Principal(
            name=name,
            administrator=bool(self._settings.administrator_role) and self._settings.administrator_role in roles,
            roles=roles,
            groups=_texts(claims.get("groups")),
            issuer=self._issuer or self._settings.discovery_url,
            subject=_subject(claims, name),
        )

    async def _key(self, key_id: str) -> jwt.PyJWK:
        """The provider's key of that id; a provider with one key may leave ids out."""
        if self._age() > self._settings.keys_seconds or self._found(key_id) is None:
            async with self._fetching:
                stale = self._age() > self._settings.keys_seconds
                if stale or (self._found(key_id) is None and self._age() >= self._settings.least_seconds):
                    await self._fetch()
        key = self._found(key_id)
        if not self._keys:
            raise errors.Unavailable("the OpenID provider cannot be reached", dependency="oidc")
        if key is None:
            raise errors.Unauthenticated("the token is signed with a key that the provider does not publish")
        return key

    def _age(self) -> float:
        return time.monotonic() - self._fetched

    def _found(self, key_id: str) -> jwt.PyJWK | None:
        if not key_id and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(key_id)

    async def _fetch(self) -> None:
        """Read the provider's keys. Those that we have stay in use while it cannot be reached."""
        settings = self._settings
        try:
            async with (
                asyncio.timeout(settings.timeout_seconds),
                httpx2.AsyncClient(verify=self._trusted, trust_env=False) as client,
            ):
                found = await _json(client, settings.discovery_url)
                published = await _json(client, _as_secure(str(found["jwks_uri"]), settings.discovery_url))
            keys = jwt.PyJWKSet.from_dict(dict(published)).keys
        except (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError, KeyError, ValueError, jwt.PyJWTError) as error:
            log.warning("the keys of the OpenID provider cannot be read", error=repr(error))
        else:
            self._keys = {key.key_id or "": key for key in keys if _signs(key)}
            self._issuer = settings.issuer or str(found.get("issuer", ""))
        self._fetched = time.monotonic()


def _as_secure(url: str, first: str) -> str:
    if first.startswith("https:") and not url.startswith("https:"):
        raise ValueError("the provider's keys are not behind https")
    return url


async def _json(client: httpx2.AsyncClient, url: str) -> Mapping[str, Any]:
    """A JSON object of bounded size. ValueError for anything else."""
    async with client.stream("GET", url) as response:
        response.raise_for_status()
        content = b""
        async for part in response.aiter_bytes():
            content += part
            if len(content) > _MAX_ANSWER_BYTES:
                raise ValueError("the provider's answer is too large")
    found = orjson.loads(content)
    if not isinstance(found, dict):
        raise ValueError("the provider's answer is no JSON object")
    return found


def _signs(key: jwt.PyJWK) -> bool:
    return key.algorithm_name in ALGORITHMS and key.public_key_use != "enc"


def _subject(claims: Mapping[str, Any], name: str) -> str:
    """What the provider never gives to two. A token may do without it; then there is only the name."""
    subject = claims.get("sub")
    return subject if isinstance(subject, str) and subject else f"named {name}"


def _texts(claim: object) -> frozenset[str]:
    return frozenset(each for each in claim if isinstance(each, str)) if isinstance(claim, list) else frozenset()
