"""The secrets of an embedded stack: made at its first start, kept in one file that only its user can read."""

from __future__ import annotations

import os
from pathlib import Path

import orjson
from pydantic import BaseModel, ConfigDict, SecretStr

from chassis.identity.store import IdentityStore
from chassis.postgres import Database
from chassis.principals import Principal
from chassis.secretbox import SecretBox, new_key
from chassis.settings import Settings

ADMINISTRATOR = "administrator"
SERVICE = "triglot-services"
_FILE = "keys.json"


class Keyring(BaseModel):
    """`api_key` and the access key pair are the administrator's; `service_api_key` is for management's own calls."""

    model_config = ConfigDict(frozen=True)

    secret_key: str = ""
    api_key: str = ""
    access_key_id: str = ""
    access_key_secret: str = ""
    service_api_key: str = ""


def read(data_dir: Path) -> Keyring:
    """The keyring of a data folder; an empty one if it has none yet."""
    path = data_dir / _FILE
    return Keyring.model_validate_json(path.read_bytes()) if path.exists() else Keyring()


def read_or_begin(data_dir: Path, given: Settings) -> Keyring:
    """The keyring of a data folder, kept before it is used. Its secret is the given one, or made the first time.

    With another secret than before, the access key is unreadable and is left out, unless the one before is given as
    well, to decrypt with.
    """
    kept = read(data_dir)
    secret_key = given.secret_key.get_secret_value() or kept.secret_key or new_key()
    if secret_key != kept.secret_key:
        readable = kept.secret_key in {key.get_secret_value() for key in given.decryption_keys}
        unreadable = {} if readable else {"access_key_id": "", "access_key_secret": ""}
        kept = kept.model_copy(update={"secret_key": secret_key, **unreadable})
        write(data_dir, kept)
    return kept


async def complete(keyring: Keyring, database: Database) -> Keyring:
    """Make what the keyring lacks, or what this database does not know: principals, API keys, an access key pair."""
    identity = IdentityStore(database, SecretBox(SecretStr(keyring.secret_key)))
    listed = (*await identity.list_api_keys(), *await identity.list_access_keys())
    # One that expires has been replaced by somebody, and would end while we use it.
    known = {key.identifier for key in listed if key.expires_at is None}
    names = {stored.principal.name for stored in await identity.list_principals()}
    for principal in (
        Principal(ADMINISTRATOR, administrator=True),
        Principal(SERVICE, feature_stores=frozenset("*"), actions=("featurestore:*",)),
    ):
        if principal.name not in names:
            await identity.create_principal(principal)
    made: dict[str, str] = {}
    if keyring.api_key.partition(".")[0] not in known:
        made["api_key"], _ = await identity.create_api_key(ADMINISTRATOR)
    if keyring.service_api_key.partition(".")[0] not in known:
        made["service_api_key"], _ = await identity.create_api_key(SERVICE)
    if keyring.access_key_id not in known:
        made["access_key_id"], made["access_key_secret"] = await identity.create_access_key(ADMINISTRATOR)
    return keyring.model_copy(update=made)


def write(data_dir: Path, keyring: Keyring) -> None:
    """Keep the keyring; the old one stays whole until the new one is."""
    write_private(data_dir / _FILE, orjson.dumps(keyring.model_dump(), option=orjson.OPT_INDENT_2))


def write_private(path: Path, content: bytes) -> None:
    """Write a file, mode 0600, that appears whole or not at all."""
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    draft.replace(path)
