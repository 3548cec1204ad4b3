"""Secrets at rest: AES-256-GCM under a key from the environment. What it makes is nonce, then ciphertext."""

from __future__ import annotations

import base64
import binascii
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import SecretStr

from chassis import errors

_NONCE_BYTES = 12


def new_key() -> str:
    """A fresh key in the form that TRIGLOT_SECRET_KEY takes."""
    return base64.b64encode(AESGCM.generate_key(256)).decode()


class SecretBox:
    """Encrypts and decrypts with one key. Without a key both raise FailedPrecondition, and say what to set."""

    def __init__(self, key: SecretStr) -> None:
        text = key.get_secret_value()
        try:
            raw = base64.b64decode(text, validate=True)
        except binascii.Error:
            raw = b""
        if text and len(raw) != 32:
            raise ValueError("a secret key is 32 bytes in base64")
        self._cipher = AESGCM(raw) if raw else None

    def encrypt(self, text: str, purpose: str) -> bytes:
        """Only `decrypt` with the same purpose gives the text back."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._ready().encrypt(nonce, text.encode(), purpose.encode())

    def decrypt(self, sealed: bytes, purpose: str) -> str:
        """Raises FailedPrecondition if the key or the purpose is another one, or the bytes were changed."""
        try:
            nonce, ciphertext = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
            return self._ready().decrypt(nonce, ciphertext, purpose.encode()).decode()
        except InvalidTag:
            raise errors.FailedPrecondition("a stored secret cannot be read with this TRIGLOT_SECRET_KEY") from None

    def _ready(self) -> AESGCM:
        if self._cipher is None:
            raise errors.FailedPrecondition("set TRIGLOT_SECRET_KEY to store or read secrets")
        return self._cipher
