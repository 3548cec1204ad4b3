"""Service-account tokens of Kubernetes: its API server says whose they are (TokenReview).

Roles are Feast's or OpenID's business; a service account brings its groups and its namespace, which Feast's group and
namespace policies ask for. What the API server said is trusted for a while, so that not every request asks it.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import httpx2
import jwt
import orjson
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from chassis import errors
from chassis.principals import Principal
from chassis.settings import SettingsModel
from chassis.telemetry import log

# How Kubernetes calls a service account: `system:serviceaccount:<namespace>:<name>`.
_ACCOUNT = "system:serviceaccount:"
_MOUNTED = "/var/run/secrets/kubernetes.io/serviceaccount"
_MAX_CACHED = 10_000
_MAX_ASKED_AT_ONCE = 16
_MAX_WAITING = 1000

_Known = tuple[Principal | None, float]


class KubernetesSettings(SettingsModel):
    """Settings of the Kubernetes cluster whose service-account tokens are taken beside API keys."""

    model_config = SettingsConfigDict(env_prefix="TRIGLOT_KUBERNETES_", frozen=True, extra="ignore")

    api_url: str = Field(
        "", description="`https://kubernetes.default.svc` in a cluster; empty: no such tokens are taken."
    )
    audiences: tuple[str, ...] = Field(
        (), description="Audiences, a JSON list, that a token must be for; empty: those of the API server."
    )
    token_file: str = Field(
        f"{_MOUNTED}/token", description="File of our own token, which must be allowed to create TokenReviews."
    )
    ca_certificate: str = Field(f"{_MOUNTED}/ca.crt", description="PEM file of the authority of the API server.")
    cache_seconds: float = Field(10.0, ge=0, description="How long an answer of the API server is trusted.")
    timeout_seconds: float = Field(5.0, gt=0, description="Deadline of a request to the API server.")


class TokenReviews:
    """Asks a Kubernetes API server about tokens."""

    def __init__(self, settings: KubernetesSettings) -> None:
        self._settings = settings
        url = f"{settings.api_url.rstrip('/')}/apis/authentication.k8s.io/v1/tokenreviews"
        self._url = httpx2.URL(url)
        secure = self._url.scheme == "https"
        self._trusted = ssl.create_default_context(cafile=settings.ca_certificate) if secure else False
        self._asking = asyncio.Semaphore(_MAX_ASKED_AT_ONCE)
        self._waiting = 0
        # Hash of a token -> (principal or None if refused, until when). Oldest first.
        self._cache: OrderedDict[bytes, _Known] = OrderedDict()

    def takes(self, token: str) -> bool:
        """Whether a token claims to be of Kubernetes. Nothing else is taken from the claims: they are not verified."""
        try:
            claims = jwt.decode(token, options={"verify_signature": False})
        except jwt.InvalidTokenError:
            return False
        return "kubernetes.io" in claims

    async def principal(self, token: str) -> Principal:
        """Whom a token stands for. Raises Unauthenticated, or Unavailable if the API server cannot be asked."""
        digest = hashlib.sha256(token.encode()).digest()
        cached = self._cached(digest)
        if cached is None:
            if self._waiting >= _MAX_WAITING:
                raise errors.Unavailable("too many tokens wait for the Kubernetes API server", dependency="kubernetes")
            self._waiting += 1
            try:
                async with self._asking:
                    cached = self._cached(digest) or await self._asked(digest, token)
            finally:
                self._waiting -= 1
        if cached[0] is None:
            raise errors.Unauthenticated("Kubernetes does not know the token, or it has expired")
        return cached[0]

    def _cached(self, digest: bytes) -> _Known | None:
        known = self._cache.get(digest)
        return known if known is not None and known[1] >= time.monotonic() else None

    async def _asked(self, digest: bytes, token: str) -> _Known:
        known = (await self._review(token), time.monotonic() + self._settings.cache_seconds)
        self._cache[digest] = known
        self._cache.move_to_end(digest)
        if len(self._cache) > _MAX_CACHED:
            self._cache.popitem(last=False)
        return known

    async def _review(self, token: str) -> Principal | None:
        review = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": list(self._settings.audiences)},
        }
        try:
            # Read each time: Kubernetes renews the file.
            own = Path(self._settings.token_file).read_text().strip()  # noqa: ASYNC240 - a small file in memory
            headers = {"authorization": f"Bearer {own}", "content-type": "application/json"}
            async with (
                asyncio.timeout(self._settings.timeout_seconds),
                httpx2.AsyncClient(verify=self._trusted, trust_env=False) as client,
            ):
                answer = await client.post(self._url, content=orjson.dumps(review), headers=headers)
            answer.raise_for_status()
            status = orjson.loads(answer.content)["status"]
        except (OSError, httpx2.HTTPError, ValueError, KeyError, TypeError) as error:
            # Not its repr: that of a request may show headers.
            log.warning("the Kubernetes API server cannot be asked", error=type(error).__name__)
            raise errors.Unavailable("the Kubernetes API server cannot be asked", dependency="kubernetes") from None
        # An API server that knows nothing of audiences answers for tokens of any.
        wanted = self._settings.audiences
        if wanted and not set(wanted).intersection(status.get("audiences") or ()):
            return None
        return _principal_of(status)


def _principal_of(status: Any) -> Principal | None:
    user = status.get("user") or {}
    name = str(user.get("username") or "")
    if status.get("authenticated") is not True or not name:
        return None
    groups = frozenset(str(group) for group in user.get("groups") or ())
    namespace = name.removeprefix(_ACCOUNT).partition(":")[0] if name.startswith(_ACCOUNT) else ""
    return Principal(name, groups=groups, namespaces=frozenset([namespace] if namespace else []), issuer="kubernetes")
