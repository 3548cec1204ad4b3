"""Secrets at rest: AES-256-GCM under keys from the environment. What it makes is nonce, then ciphertext."""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Iterable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import SecretStr

from chassis import errors

_NONCE_BYTES = 12


def new_key() -> str:
    """A fresh key in the form that TRIGLOT_SECRET_KEY takes."""
    return base64.b64encode(AESGCM.generate_key(256)).decode()


class SecretBox:
    """Encrypts with one key, and decrypts with that or with one of `others`: so keys are changed while processes run.

    Without a key both raise FailedPrecondition, and say what to set.
    """

    def __init__(self, key: SecretStr, others: Iterable[SecretStr] = ()) -> None:
        """Raises ValueError for what is no key."""
        self._cipher = _cipher(key)
        self._others = [cipher for cipher in map(_cipher, others) if cipher is not None]

    def encrypt(self, text: str, purpose: str) -> bytes:
        """Only `decrypt` with the same purpose gives the text back."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._ready().encrypt(nonce, text.encode(), purpose.encode())

    def decrypt(self, sealed: bytes, purpose: str) -> str:
        """Raises FailedPrecondition if the key or the purpose is another one, or the bytes were changed."""
        for cipher in (self._ready(), *self._others):
            text = _opened(cipher, sealed, purpose)
            if text is not None:
                return text
        raise errors.FailedPrecondition("a stored secret cannot be read with this TRIGLOT_SECRET_KEY")

    def renewed(self, sealed: bytes, purpose: str) -> bytes | None:
        """The same secret, encrypted with the first key; None: it is. Raises FailedPrecondition as `decrypt` does."""
        if _opened(self._ready(), sealed, purpose) is not None:
            return None
        return self.encrypt(self.decrypt(sealed, purpose), purpose)

    def _ready(self) -> AESGCM:
        if self._cipher is None:
            raise errors.FailedPrecondition("set TRIGLOT_SECRET_KEY to store or read secrets")
        return self._cipher


def _cipher(key: SecretStr) -> AESGCM | None:
    text = key.get_secret_value()
    try:
        raw = base64.b64decode(text, validate=True)
    except binascii.Error:
        raw = b""
    if text and len(raw) != 32:
        raise ValueError("a secret key is 32 bytes in base64")
    return AESGCM(raw) if raw else None


def _opened(cipher: AESGCM, sealed: bytes, purpose: str) -> str | None:
    try:
        return cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], purpose.encode()).decode()
    except InvalidTag:
        return None
