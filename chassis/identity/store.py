"""Rows of schema `identity`: principals and keys. A secret leaves it once, when it is made."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson

from chassis import errors
from chassis.audit import AuditLog
from chassis.migrations import Migrations
from chassis.postgres import Connection, Database, load_queries
from chassis.principals import Principal
from chassis.secretbox import SecretBox

MIGRATIONS = Migrations("identity", Path(__file__).parent / "migrations")
ACCESS_KEY_PURPOSE = "access key"
# Kinds of objects in the audit log.
PRINCIPAL, API_KEY, ACCESS_KEY = "principal", "API key", "access key"
QUERIES = load_queries(Path(__file__).parent / "queries.sql")
_LOG = AuditLog("identity")
_AT_ONCE = 500


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
        async with self._database.transaction() as connection:
            return await self._add_api_key(connection, principal, expires_at)

    async def rotate_api_key(self, prefix: str, grace: timedelta) -> tuple[str, StoredKey]:
        """A new key for the principal of an old one, which works for `grace` more, or less if it expires before.

        A key that expires is followed by one that lives as long. Raises NotFound.
        """
        async with self._database.transaction() as connection:
            principal, expires_at = await _retire(connection, QUERIES.retire_api_key, API_KEY, prefix, grace)
            return await self._add_api_key(connection, principal, expires_at)

    async def _add_api_key(
        self, connection: Connection, principal: str, expires_at: datetime | None
    ) -> tuple[str, StoredKey]:
        prefix, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
        key = f"{prefix}.{secret}"
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
        async with self._database.transaction() as connection:
            return await self._add_access_key(connection, principal, None)

    async def rotate_access_key(self, access_key_id: str, grace: timedelta) -> tuple[str, str]:
        """Id and secret of a new access key, as `rotate_api_key`. Raises NotFound."""
        async with self._database.transaction() as connection:
            principal, expires_at = await _retire(
                connection, QUERIES.retire_access_key, ACCESS_KEY, access_key_id, grace
            )
            return await self._add_access_key(connection, principal, expires_at)

    async def _add_access_key(
        self, connection: Connection, principal: str, expires_at: datetime | None
    ) -> tuple[str, str]:
        key_id, secret = "LTAI" + secrets.token_hex(10), secrets.token_urlsafe(24)
        sealed = self._box.encrypt(secret, ACCESS_KEY_PURPOSE)
        made = await connection.fetchval(QUERIES.insert_access_key, key_id, sealed, principal, expires_at)
        document = {"principal": principal, "expires_at": expires_at, "created_at": _made(made, principal)}
        await _LOG.record(connection, "create", ACCESS_KEY, key_id, after=_document(document))
        return key_id, secret

    async def list_access_keys(self) -> list[StoredKey]:
        """All of them, newest first."""
        rows = await self._database.fetch(QUERIES.list_access_keys)
        return [StoredKey(row["access_key_id"], row["principal"], row["created_at"], row["expires_at"]) for row in rows]

    async def renew_secrets(self) -> int:
        """Encrypt all secrets with the box's first key; how many were not. Raises FailedPrecondition for what no key
        reads, after all that come before it."""
        renewed, last = 0, ""
        while rows := await self._database.fetch(QUERIES.sealed_access_keys, last, _AT_ONCE):
            for row in rows:
                last, sealed = row["access_key_id"], row["secret_encrypted"]
                fresh = self._box.renewed(sealed, ACCESS_KEY_PURPOSE)
                if fresh is not None:
                    await self._database.execute(QUERIES.reseal_access_key, last, sealed, fresh)
                    renewed += 1
        return renewed

    async def revoke_access_key(self, access_key_id: str) -> None:
        """Raises NotFound."""
        await self._delete(QUERIES.delete_access_key, ACCESS_KEY, access_key_id)

    async def _delete(self, query: str, kind: str, name: str) -> None:
        async with self._database.transaction() as connection:
            gone = await connection.fetchrow(query, name)
            if gone is None:
                raise errors.NotFound(f"no such {kind}", reason="IDENTITY_NOT_FOUND", name=name)
            await _LOG.record(connection, "delete", kind, name, before=_document(gone))


async def _retire(
    connection: Connection, query: str, kind: str, name: str, grace: timedelta
) -> tuple[str, datetime | None]:
    """Have a key expire after `grace`; its principal, and when one expires that is made now and lives as long."""
    row = await connection.fetchrow(query, name, grace)
    if row is None:
        raise errors.NotFound(f"no such {kind}", reason="IDENTITY_NOT_FOUND", name=name)
    same = {"principal": row["principal"], "created_at": row["created_at"]}
    before, after = (
        _document({**same, "expires_at": row["expired_at"]}),
        _document({**same, "expires_at": row["expires_at"]}),
    )
    await _LOG.record(connection, "update", kind, name, before=before, after=after)
    lifetime = row["expired_at"] - row["created_at"] if row["expired_at"] else None
    return row["principal"], datetime.now(UTC) + lifetime if lifetime else None


def _document(row: Any) -> str:
    """What the audit log shows. No row that comes here has a secret in it."""
    return orjson.dumps(dict(row)).decode()


def _made(created_at: datetime | None, principal: str) -> datetime:
    if created_at is None:
        raise errors.NotFound(f"no principal named {principal}", reason="IDENTITY_NOT_FOUND", name=principal)
    return created_at
