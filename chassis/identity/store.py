"""Rows of schema `identity`: principals and keys. A secret leaves it once, when it is made."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

from chassis import errors
from chassis.audit import AuditLog
from chassis.migrations import Migrations
from chassis.postgres import Database, load_queries
from chassis.principals import Principal
from chassis.secretbox import SecretBox

MIGRATIONS = Migrations("identity", Path(__file__).parent / "migrations")
ACCESS_KEY_PURPOSE = "access key"
# Kinds of objects in the audit log.
PRINCIPAL, API_KEY, ACCESS_KEY = "principal", "API key", "access key"
QUERIES = load_queries(Path(__file__).parent / "queries.sql")
_LOG = AuditLog("identity")


def principal_of(row: Any) -> Principal:
    """The principal in a row that holds its columns."""
    return Principal(
        name=row["name"],
        administrator=row["administrator"],
        roles=frozenset(row["roles"]),
        groups=frozenset(row["groups"]),
        feature_stores=frozenset(row["feature_stores"]),
        actions=tuple(row["actions"]),
    )


def hashed(api_key: str) -> bytes:
    """What is stored of an API key. Its secret is random and long, so a plain hash is enough."""
    return hashlib.sha256(api_key.encode()).digest()


@dataclass(frozen=True)
class StoredPrincipal:
    """A principal and when it was made."""

    principal: Principal
    created_at: datetime


@dataclass(frozen=True)
class StoredKey:
    """What can be shown of an API key (`identifier` is its prefix) or an access key."""

    identifier: str
    principal: str
    created_at: datetime
    expires_at: datetime | None = None


class IdentityStore:
    """All writes to schema `identity` go through here."""

    def __init__(self, database: Database, secret_box: SecretBox) -> None:
        self._database = database
        self._box = secret_box

    async def create_principal(self, principal: Principal) -> StoredPrincipal:
        """Raises AlreadyExists if the name is taken, InvalidArgument if it is empty, too long or not of one line."""
        if not 1 <= len(principal.name) <= 128 or "\n" in principal.name:
            raise errors.InvalidArgument("a principal's name has 1 to 128 characters in one line", field="name")
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(
                QUERIES.insert_principal,
                principal.name,
                principal.administrator,
                sorted(principal.roles),
                sorted(principal.groups),
                sorted(principal.feature_stores),
                list(principal.actions),
            )
            assert row is not None  # noqa: S101 - an INSERT .. RETURNING answers or raises
            await _LOG.record(connection, "create", PRINCIPAL, principal.name, after=_document(row))
        return StoredPrincipal(principal_of(row), row["created_at"])

    async def list_principals(self) -> list[StoredPrincipal]:
        """All of them, by name."""
        rows = await self._database.fetch(QUERIES.list_principals)
        return [StoredPrincipal(principal_of(row), row["created_at"]) for row in rows]

    async def delete_principal(self, name: str) -> None:
        """Deletes its keys too. Raises NotFound."""
        await self._delete(QUERIES.delete_principal, PRINCIPAL, name)

    async def create_api_key(self, principal: str, expires_at: datetime | None = None) -> tuple[str, StoredKey]:
        """The key's text, and what can be shown of it. Raises NotFound without that principal."""
        prefix, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
        key = f"{prefix}.{secret}"
        async with self._database.transaction() as connection:
            made = await connection.fetchval(QUERIES.insert_api_key, prefix, hashed(key), principal, expires_at)
            stored = StoredKey(prefix, principal, _made(made, principal), expires_at)
            document = _document({"principal": principal, "expires_at": expires_at, "created_at": made})
            await _LOG.record(connection, "create", API_KEY, prefix, after=document)
        return key, stored

    async def list_api_keys(self) -> list[StoredKey]:
        """All of them, newest first."""
        rows = await self._database.fetch(QUERIES.list_api_keys)
        return [StoredKey(row["prefix"], row["principal"], row["created_at"], row["expires_at"]) for row in rows]

    async def revoke_api_key(self, prefix: str) -> None:
        """Raises NotFound."""
        await self._delete(QUERIES.delete_api_key, API_KEY, prefix)

    async def create_access_key(self, principal: str) -> tuple[str, str]:
        """Id and secret. Raises NotFound without that principal."""
        key_id, secret = "LTAI" + secrets.token_hex(10), secrets.token_urlsafe(24)
        sealed = self._box.encrypt(secret, ACCESS_KEY_PURPOSE)
        async with self._database.transaction() as connection:
            made = _made(await connection.fetchval(QUERIES.insert_access_key, key_id, sealed, principal), principal)
            document = _document({"principal": principal, "created_at": made})
            await _LOG.record(connection, "create", ACCESS_KEY, key_id, after=document)
        return key_id, secret

    async def list_access_keys(self) -> list[StoredKey]:
        """All of them, newest first."""
        rows = await self._database.fetch(QUERIES.list_access_keys)
        return [StoredKey(row["access_key_id"], row["principal"], row["created_at"]) for row in rows]

    async def revoke_access_key(self, access_key_id: str) -> None:
        """Raises NotFound."""
        await self._delete(QUERIES.delete_access_key, ACCESS_KEY, access_key_id)

    async def _delete(self, query: str, kind: str, name: str) -> None:
        async with self._database.transaction() as connection:
            gone = await connection.fetchrow(query, name)
            if gone is None:
                raise errors.NotFound(f"no such {kind}", reason="IDENTITY_NOT_FOUND", name=name)
            await _LOG.record(connection, "delete", kind, name, before=_document(gone))


def _document(row: Any) -> str:
    """What the audit log shows. No row that comes here has a secret in it."""
    return orjson.dumps(dict(row)).decode()


def _made(created_at: datetime | None, principal: str) -> datetime:
    if created_at is None:
        raise errors.NotFound(f"no principal named {principal}", reason="IDENTITY_NOT_FOUND", name=principal)
    return created_at
