"""Feast's permissions: what of the registry a caller may read, and what it may do to one object.

Judged by PostgreSQL, from the permissions as they are stored at that moment: see migrations/0007_permissions.sql. An
administrator may do everything and costs nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import asyncpg
import orjson

from chassis import calls, errors
from chassis.postgres import Connection, Database, load_queries
from chassis.principals import Principal
from protos.gen.feast.core.Permission_pb2 import PermissionSpec
from services.registry import kinds
from services.registry.kinds import Kind

_QUERIES = load_queries(Path(__file__).parent / "access.sql")
# A table that a query marks is read whole by everybody.
_TABLE = re.compile(r"\bregistry\.(object|project|tally|edge)\b(?! /\* whole \*/)")
_BACK_REFERENCE = re.compile(r"\\[1-9]")
_COMMENTS = re.compile(r"^(?:--.*\n)+")
_DENIED = "ACTION_NOT_ALLOWED"
MAX_PATTERNS = 100
MAX_PATTERN_LENGTH = 200

CREATE, DESCRIBE, UPDATE, DELETE, WRITE_ONLINE = (
    PermissionSpec.AuthzedAction.Name(action)
    for action in (
        PermissionSpec.CREATE,
        PermissionSpec.DESCRIBE,
        PermissionSpec.UPDATE,
        PermissionSpec.DELETE,
        PermissionSpec.WRITE_ONLINE,
    )
)


@dataclass(frozen=True)
class Target:
    """An object that something is to be done to: as it is stored, or as it would be."""

    kind: Kind
    project: str
    name: str
    tags: str  # JSON
    rendered: bytes


class Access:
    """Permissions for whoever calls. `strict`: a project without permissions is closed, not open.

    A query that is read through it names at least one of the tables that access.sql narrows, and joins others to it.
    Under `strict` nobody learns from a refusal whether what was refused is there.
    """

    def __init__(self, source: Database | Connection, *, strict: bool) -> None:
        self._source = source
        self._strict = strict

    def over(self, connection: Connection) -> Access:
        """The same, reading over one connection: inside its transaction."""
        return Access(connection, strict=self._strict)

    # ---- reading ----

    async def fetch(self, query: str, *arguments: Any) -> list[asyncpg.Record]:
        """What `Database.fetch` gives, of what the caller may read."""
        query, arguments = self.narrowed(query, arguments)
        return await self._source.fetch(query, *arguments)

    async def fetchrow(self, query: str, *arguments: Any) -> asyncpg.Record | None:
        """What `Database.fetchrow` gives, of what the caller may read."""
        query, arguments = self.narrowed(query, arguments)
        return await self._source.fetchrow(query, *arguments)

    async def fetchval(self, query: str, *arguments: Any) -> Any:
        """What `Database.fetchval` gives, of what the caller may read."""
        query, arguments = self.narrowed(query, arguments)
        return await self._source.fetchval(query, *arguments)

    def narrowed(self, query: str, arguments: tuple[Any, ...]) -> tuple[str, tuple[Any, ...]]:
        """A SELECT and its arguments, narrowed to what the caller may read."""
        if self.reads_everything:
            return query, arguments
        return _narrowed(query, len(arguments) + 1), (*arguments, self._caller(calls.principal()))

    @property
    def reads_everything(self) -> bool:
        """Whether nothing is hidden from the caller."""
        return calls.principal().administrator

    async def absent(
        self, missing: errors.NotFound, project: str, family: str, parent: str, name: str
    ) -> errors.TriglotError:
        """The error for what a read did not find: it is missing, or the object that it was sought in is hidden."""
        if self.reads_everything:
            return missing
        # What a feature may be read by is its view.
        place = (project, kinds.VIEW_FAMILY, parent) if parent else (project, family, name)
        if await self.fetchrow(_QUERIES.target, *place) is not None:
            return missing
        stored = None if self._strict else await self._stored(*place)
        if stored is not None:
            return await self._refusal((DESCRIBE,), stored) or missing
        return _unexplained(project, place[2]) if self._strict else missing

    # ---- doing ----

    async def require_for_stored(self, actions: Sequence[str], kind: Kind, project: str, name: str) -> None:
        """Raise PermissionDenied unless the caller may perform all the actions on an object as it is stored.

        Nothing is raised if there is none, unless access is strict.
        """
        if calls.principal().administrator:
            return
        target = await self._stored(project, kind.family, name)
        if target is not None:
            await self._require(actions, target)
        elif self._strict:
            raise _unexplained(project, name)

    async def require_to_apply(self, made: Callable[[], Target]) -> None:
        """What applying an object takes: CREATE, or DESCRIBE and UPDATE for what there is and for what it becomes.

        `made` makes what it becomes; it is not called for an administrator.
        """
        if calls.principal().administrator:
            return
        target = made()
        stored = await self._stored(target.project, target.kind.family, target.name)
        if stored is None:
            await self._require((CREATE,), target)
            return
        for each in (stored, target):
            await self._require((DESCRIBE, UPDATE), each)

    async def _require(self, actions: Sequence[str], target: Target) -> None:
        refusal = await self._refusal(actions, target)
        if refusal is not None:
            raise refusal

    async def _refusal(self, actions: Sequence[str], target: Target) -> errors.PermissionDenied | None:
        types = await self._source.fetchval(_QUERIES.types_of, target.kind.name, target.rendered)
        rules = await self._source.fetch(
            _QUERIES.judgement,
            self._caller(calls.principal()),
            list(actions),
            target.project,
            types,
            target.name,
            target.tags,
        )
        if any(rule["granted"] for rule in rules) or not (self._strict or rules[0]["ruled"]):
            return None
        if self._strict:
            return _unexplained(target.project, target.name)
        what = f"{list(actions)} to {_class_name(target.kind)}:{target.name}"
        said = [
            f"Permission {rule['name']} denied execution of {what}: {rule['asked']}" for rule in rules if rule["name"]
        ]
        return _denied("\n".join(said) or f"No permission of project {target.project} grants {what}")

    async def _stored(self, project: str, family: str, name: str) -> Target | None:
        """An object as it is stored; of a view, whatever kind of view that is."""
        row = await self._source.fetchrow(_QUERIES.target, project, family, name)
        return Target(kinds.BY_NAME[row["kind"]], project, name, row["tags"], row["rendered"]) if row else None

    def _caller(self, principal: Principal) -> str:
        caller = {
            "strict": self._strict,
            "roles": sorted(principal.roles),
            "groups": sorted(principal.groups),
            "namespaces": sorted(principal.namespaces),
        }
        return orjson.dumps(caller).decode()


async def check_patterns(connection: Connection, patterns: Sequence[str]) -> None:
    """Raise InvalidArgument for a name pattern that PostgreSQL cannot match, or not in bounded time.

    Without back-references its matcher is an automaton. With them one pattern can keep everybody's lists waiting.
    """
    if len(patterns) > MAX_PATTERNS:
        raise errors.InvalidArgument(f"a permission has at most {MAX_PATTERNS} name patterns", field="name_patterns")
    for pattern in patterns:
        if len(pattern) > MAX_PATTERN_LENGTH:
            raise errors.InvalidArgument(
                f"a name pattern has at most {MAX_PATTERN_LENGTH} characters", field="name_patterns"
            )
        if _BACK_REFERENCE.search(pattern):
            raise errors.InvalidArgument(
                f"name pattern {pattern!r}: back-references are not taken", field="name_patterns"
            )
        try:
            await connection.fetchval(_QUERIES.tries_pattern, pattern)
        except asyncpg.InvalidRegularExpressionError as error:
            raise errors.InvalidArgument(f"name pattern {pattern!r}: {error}", field="name_patterns") from None


@lru_cache(maxsize=1024)
def _narrowed(query: str, number: int) -> str:
    readable = _QUERIES.readable.replace("$caller", f"${number}")
    query = _TABLE.sub(r"readable_\1", _COMMENTS.sub("", query))
    return f"{readable},\n{query.removeprefix('WITH ')}" if query.startswith("WITH ") else f"{readable}\n{query}"


def _denied(text: str) -> errors.PermissionDenied:
    return errors.PermissionDenied(f"Permission error:\n{text}", reason=_DENIED)


def _unexplained(project: str, name: str) -> errors.PermissionDenied:
    """A refusal that says the same of what is there and of what is not."""
    return _denied(f"No permission of project {project} lets you do this to {name}")


def _class_name(kind: Kind) -> str:
    return f"{kind.name[0].upper()}{kind.name[1:]}"
