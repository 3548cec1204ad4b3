"""Signs requests as a client of PAI does."""

from __future__ import annotations

import hashlib
import hmac
from datetime import UTC, datetime
from urllib.parse import quote


class Signer:
    """Signs requests as ACS3-HMAC-SHA256 has it, written from the description of the algorithm."""

    def __init__(self, key_id: str, secret: str) -> None:
        self.key_id, self.secret = key_id, secret
        self.count = 0

    def headers(self, method: str, path: str, query: dict[str, str], body: bytes, **changes: str) -> dict[str, str]:
        self.count += 1
        headers = {
            "host": "test",
            "x-acs-action": "Any",
            "x-acs-version": "2023-06-21",
            "x-acs-date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "x-acs-signature-nonce": f"nonce-{self.count}",
            "x-acs-content-sha256": hashlib.sha256(body).hexdigest(),
            **changes,
        }
        left_out = {"unsigned", *changes.get("unsigned", "").split(";")}
        names = sorted(name for name in headers if name not in left_out)
        canonical_query = "&".join(f"{key}={quote(query[key], safe='-_.~')}" for key in sorted(query))
        lines = "".join(f"{name}:{headers[name]}\n" for name in names)
        request = "\n".join((method, path, canonical_query, lines, ";".join(names), headers["x-acs-content-sha256"]))
        to_sign = f"ACS3-HMAC-SHA256\n{hashlib.sha256(request.encode()).hexdigest()}"
        signature = hmac.new(self.secret.encode(), to_sign.encode(), hashlib.sha256).hexdigest()
        headers.pop("unsigned", None)
        headers["authorization"] = (
            f"ACS3-HMAC-SHA256 Credential={self.key_id},SignedHeaders={';'.join(names)},Signature={signature}"
        )
        return headers
