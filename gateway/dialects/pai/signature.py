"""What a caller shows, as gRPC metadata. Of a signed request that is its canonical form, built from what arrived.

The secret is the service's business: it alone signs that text again and compares.
"""

from __future__ import annotations

import hashlib
import hmac
from urllib.parse import parse_qsl, quote

from chassis import auth, calls, errors
from gateway import credentials
from gateway.dialect import Metadata
from gateway.exchange import Exchange

_UNRESERVED = "-_.~"
_CONTENT_HASH = "x-acs-content-sha256"
# PAI's own limit of a request; gRPC takes 16 KiB of metadata at most.
_MAX_SIGNED_BYTES = 8192
# What must be signed, or it could be exchanged on the way.
_MUST_SIGN = ("host", "x-acs-action", "x-acs-version", auth.DATE, auth.NONCE, _CONTENT_HASH)


def credential(exchange: Exchange) -> Metadata:
    """Metadata for the credential of a request. Raises Unauthenticated for a signed request that lacks something."""
    headers = exchange.headers
    authorization = credentials.sendable(headers.get("authorization", ""))
    if authorization.startswith(f"{auth.SIGNATURE_ALGORITHM} "):
        canonical = _canonical_request(exchange, authorization)
        if len(canonical) > _MAX_SIGNED_BYTES:
            raise errors.InvalidArgument(
                f"a signed request may have {_MAX_SIGNED_BYTES} bytes besides its body, not {len(canonical)}"
            )
        return (("authorization", authorization), (auth.CANONICAL_REQUEST, canonical))
    if authorization:
        return (("authorization", authorization),)
    return calls.bearer(credentials.sendable(headers.get("x-acs-bearer-token", "")))


def _canonical_request(exchange: Exchange, authorization: str) -> bytes:
    """The text that ACS3 signs: method, path, query, signed headers, their names, the body's hash."""
    parts = dict(part.strip().partition("=")[::2] for part in authorization.partition(" ")[2].split(","))
    signed = [name.strip().lower() for name in parts.get("SignedHeaders", "").split(";")]
    missing = [name for name in _MUST_SIGN if name not in signed]
    missing += [name for name in signed if name not in exchange.headers]
    if missing:
        raise errors.Unauthenticated(
            f"the signature does not cover {', '.join(dict.fromkeys(missing))}", reason="SIGNATURE_INCOMPLETE"
        )
    body_hash = hashlib.sha256(exchange.body).hexdigest()
    if not hmac.compare_digest(body_hash.encode(), exchange.headers[_CONTENT_HASH].encode()):
        raise errors.Unauthenticated(f"{_CONTENT_HASH} is not the body's", reason="SIGNATURE_MISMATCH")
    return "\n".join(
        (
            exchange.method,
            exchange.raw_path.decode("latin-1").partition("?")[0] or "/",
            _canonical_query(exchange),
            "".join(f"{name}:{exchange.headers[name].strip()}\n" for name in signed),
            ";".join(signed),
            body_hash,
        )
    ).encode()


def _canonical_query(exchange: Exchange) -> str:
    """Decoded as a form, because a space arrives as `+`; encoded again strictly, because it was signed as %20."""
    pairs = parse_qsl(exchange.query_string.decode("latin-1"), keep_blank_values=True)
    return "&".join(f"{quote(key, safe=_UNRESERVED)}={quote(value, safe=_UNRESERVED)}" for key, value in sorted(pairs))
