"""From what a call shows to the principal behind it. The only reader of credentials in any service.

Shown in gRPC metadata, by clients or by the gateway on their behalf:

    authorization: Bearer <API key>            Feast, PAI, our own clients
    authorization: Bearer <JWT>                of an OpenID Connect provider or of Kubernetes, if one is set; see
                                               chassis.oidc and chassis.kubernetes
    x-api-key: <API key>                       Hopsworks
    authorization: ACS3-HMAC-SHA256 ...        PAI's SDK, with the canonical request that was signed in
                                               x-triglot-canonical-request-bin; date and nonce are read from that
                                               text alone, so nobody can put others beside an old signature
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from chassis import errors
from chassis.identity.store import ACCESS_KEY_PURPOSE, QUERIES, hashed, principal_of
from chassis.kubernetes import KubernetesSettings, TokenReviews
from chassis.oidc import Oidc, OidcSettings
from chassis.postgres import Database
from chassis.principals import ANYBODY, Principal
from chassis.rpc import Authenticator, Metadata
from chassis.secretbox import SecretBox
from chassis.settings import Settings, require_loopback
from chassis.telemetry import cache_lookups, log

SIGNATURE_ALGORITHM = "ACS3-HMAC-SHA256"
CANONICAL_REQUEST = "x-triglot-canonical-request-bin"
DATE = "x-acs-date"
NONCE = "x-acs-signature-nonce"
MAX_CLOCK_SKEW = timedelta(minutes=15)
_MAX_CACHED = 10_000
_REFUSAL_CACHE_SECONDS = 1.0
# How long PostgreSQL may take about a key that was good before that counts as no answer; when it is asked again.
_PATIENCE_SECONDS = 1.0
_AGAIN_SECONDS = 1.0
_NONCE_SWEEP_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known of an API key: whose it is, None if it is refused. On the clock of time.monotonic()."""

    principal: Principal | None
    checked: float
    trusted_until: float


class Tokens(Protocol):
    """Tokens of one issuer."""

    def takes(self, token: str) -> bool:
        """Whether a token may be one of them."""

    async def principal(self, token: str) -> Principal:
        """Whom a token stands for. Raises Unauthenticated."""


_hits, _misses = cache_lookups.count("keys", "yes"), cache_lookups.count("keys", "no")


class Anyone:
    """Authentication switched off: every caller is an administrator. Loopback only; see chassis.settings."""

    async def principal(self, metadata: Metadata) -> Principal:
        """Anybody."""
        return ANYBODY


class Keys:
    """Authentication by API keys, access keys and tokens.

    What was found out about an API key is trusted for `cache_seconds`, that it is refused for one second. While
    PostgreSQL cannot be asked, a key that was good is taken for `stale_seconds` more.
    """

    def __init__(
        self,
        database: Database,
        secret_box: SecretBox,
        cache_seconds: float,
        tokens: Sequence[Tokens] = (),
        *,
        stale_seconds: float = 0.0,
    ) -> None:
        self._database = database
        self._box = secret_box
        self._cache_seconds = cache_seconds
        self._stale_seconds = stale_seconds
        self._tokens = tokens
        # Hash of an API key -> what is known of it. Oldest first.
        self._cache: OrderedDict[bytes, _Known] = OrderedDict()
        self._next_sweep = 0.0
        # Questions about keys that were good.
        self._asked: set[asyncio.Task[Principal | None]] = set()

    async def principal(self, metadata: Metadata) -> Principal:
        """Who calls. Raises Unauthenticated, with the reason that says what is wrong with the credential."""
        api_key = metadata.get("x-api-key")
        if isinstance(api_key, str) and api_key:
            return await self._by_api_key(api_key)
        authorization = metadata.get("authorization")
        if not isinstance(authorization, str) or not authorization.strip():
            raise errors.Unauthenticated("no credential was shown", reason="CREDENTIAL_MISSING")
        scheme, _, rest = authorization.strip().partition(" ")
        if scheme.lower() == "bearer":
            token = rest.strip()
            for tokens in self._tokens:
                if tokens.takes(token):
                    return await tokens.principal(token)
            return await self._by_api_key(token)
        if scheme.upper().startswith("ACS"):
            return await self._by_signature(scheme, rest, metadata)
        raise errors.Unauthenticated("the Authorization header is of an unknown kind")

    async def _by_api_key(self, api_key: str) -> Principal:
        digest = hashed(api_key)
        known = self._cache.get(digest)
        if known is not None and known.trusted_until >= time.monotonic():
            _hits.add()
        else:
            _misses.add()
            known = await self._checked(api_key, digest, known)
            self._cache[digest] = known
            self._cache.move_to_end(digest)
            if len(self._cache) > _MAX_CACHED:
                self._cache.popitem(last=False)
        if known.principal is None:
            raise errors.Unauthenticated("the API key is unknown, revoked or expired")
        return known.principal

    async def _checked(self, api_key: str, digest: bytes, before: _Known | None) -> _Known:
        usable = before is not None and before.principal and time.monotonic() < before.checked + self._stale_seconds
        if before is None or not usable:
            found = await self._look_up(api_key, digest)
        else:
            # A statement that is ended asks PostgreSQL to end it, which may hang as well: that goes on without us.
            asked = asyncio.ensure_future(self._look_up(api_key, digest))
            self._asked.add(asked)
            asked.add_done_callback(self._answered)
            try:
                async with asyncio.timeout(_PATIENCE_SECONDS):
                    found = await asyncio.shield(asked)
            except (errors.Unavailable, TimeoutError):
                asked.cancel()
                log.warning("PostgreSQL cannot be asked about a key that was good; it is taken", key=api_key[:16])
                return _Known(before.principal, before.checked, time.monotonic() + _AGAIN_SECONDS)
        now = time.monotonic()
        lasts = self._cache_seconds if found else min(_REFUSAL_CACHE_SECONDS, self._cache_seconds)
        return _Known(found, now, now + lasts)

    def _answered(self, asked: asyncio.Task[Principal | None]) -> None:
        self._asked.discard(asked)
        if not asked.cancelled():
            asked.exception()

    async def _look_up(self, api_key: str, digest: bytes) -> Principal | None:
        prefix, dot, _ = api_key.partition(".")
        if not dot or len(prefix) != 16 or not prefix.isalnum():
            return None
        row = await self._database.fetchrow(QUERIES.principal_by_api_key, prefix)
        if row is None or not hmac.compare_digest(row["secret_sha256"], digest):
            return None
        if _has_expired(row):
            return None
        return replace(principal_of(row), api_key=prefix)

    async def _by_signature(self, scheme: str, rest: str, metadata: Metadata) -> Principal:
        if scheme != SIGNATURE_ALGORITHM:
            raise errors.Unauthenticated(
                f"only {SIGNATURE_ALGORITHM} signatures are taken",
                reason="SIGNATURE_TYPE_UNSUPPORTED",
            )
        parts = dict(part.strip().partition("=")[::2] for part in rest.split(","))
        canonical = metadata.get(CANONICAL_REQUEST)
        headers = _signed_headers(canonical) if isinstance(canonical, bytes) else {}
        date, nonce = headers.get(DATE, ""), headers.get(NONCE, "")
        key_id, signature = parts.get("Credential", ""), parts.get("Signature", "")
        if not (isinstance(canonical, bytes) and all((date, nonce, key_id, signature))):
            raise errors.Unauthenticated("the signature is incomplete", reason="SIGNATURE_INCOMPLETE")
        signed_at = _parsed_date(date)
        # A text that is no key's id may be one that PostgreSQL does not take.
        row = await self._database.fetchrow(QUERIES.principal_by_access_key, key_id) if key_id.isalnum() else None
        if row is None or _has_expired(row):
            raise errors.Unauthenticated("no such access key", reason="ACCESS_KEY_NOT_FOUND", access_key_id=key_id)
        secret = self._box.decrypt(row["secret_encrypted"], ACCESS_KEY_PURPOSE)
        if not hmac.compare_digest(sign(secret, canonical).encode(), signature.encode()):
            raise errors.Unauthenticated("the signature does not match", reason="SIGNATURE_MISMATCH")
        await self._use_nonce(key_id, nonce, signed_at)
        return principal_of(row)

    async def _use_nonce(self, key_id: str, nonce: str, signed_at: datetime) -> None:
        if time.monotonic() > self._next_sweep:
            self._next_sweep = time.monotonic() + _NONCE_SWEEP_SECONDS
            await self._database.execute(QUERIES.drop_expired_nonces)
        fresh: Any = await self._database.fetchval(QUERIES.use_nonce, key_id, nonce, signed_at + 2 * MAX_CLOCK_SKEW)
        if fresh is None:
            raise errors.Unauthenticated("the signature's nonce was used before", reason="SIGNATURE_NONCE_USED")


def _has_expired(row: Any) -> bool:
    return row["expires_at"] is not None and row["expires_at"] <= datetime.now(UTC)


def sign(secret: str, canonical_request: bytes) -> str:
    """The ACS3-HMAC-SHA256 signature, in hex, of a canonical request."""
    string_to_sign = f"{SIGNATURE_ALGORITHM}\n{hashlib.sha256(canonical_request).hexdigest()}"
    return hmac.new(secret.encode(), string_to_sign.encode(), hashlib.sha256).hexdigest()


def _signed_headers(canonical_request: bytes) -> dict[str, str]:
    """The headers in a canonical request: the lines after method, path and query, up to the first empty one."""
    lines = canonical_request.decode("utf-8", "replace").split("\n")[3:]
    block = lines[: lines.index("")] if "" in lines else []
    return dict(line.partition(":")[::2] for line in block)


def _parsed_date(text: str) -> datetime:
    try:
        signed_at = datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        raise errors.Unauthenticated(
            "x-acs-date must look like 2026-11-21T05:44:58Z", reason="SIGNATURE_INCOMPLETE"
        ) from None
    if abs(datetime.now(UTC) - signed_at) > MAX_CLOCK_SKEW:
        raise errors.Unauthenticated("the signature's date is more than 15 minutes off", reason="SIGNATURE_EXPIRED")
    return signed_at


def open_authenticator(settings: Settings, database: Database) -> Authenticator:
    """The authenticator that the settings ask for. Raises WrongSetting where switching it off would open a network."""
    if settings.auth == "off":
        require_loopback(settings.host)
        return Anyone()
    cluster, provider = KubernetesSettings(), OidcSettings()
    tokens: list[Tokens] = []
    if cluster.api_url:
        tokens.append(TokenReviews(cluster))
    if provider.discovery_url:
        tokens.append(Oidc(provider))
    return Keys(
        database,
        settings.secret_box,
        settings.auth_cache_seconds,
        tokens,
        stale_seconds=settings.auth_stale_seconds,
    )
