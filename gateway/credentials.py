"""What every dialect asks of a credential before it is handed on to a service as gRPC metadata."""

from __future__ import annotations

from chassis import errors

# An OIDC token with many roles is some 4 KiB; gRPC takes 16 KiB of metadata at most.
MAX_CREDENTIAL_LENGTH = 6144


def sendable(header: str) -> str:
    """The header's value without spaces around it. Raises Unauthenticated for one that gRPC cannot carry."""
    text = header.strip()
    if len(text) > MAX_CREDENTIAL_LENGTH:
        raise errors.Unauthenticated(f"the credential is longer than {MAX_CREDENTIAL_LENGTH} characters")
    if text and not (text.isascii() and text.isprintable()):
        raise errors.Unauthenticated("the credential holds characters that no key has")
    return text
