"""How much there is of what, what changed last, and which tags are used most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from services.registry.access import Access
from services.registry.kinds import Kind
from services.registry.queries import QUERIES


@dataclass(frozen=True)
class Newest:
    """An object that changed lately; `features` is how many it holds, if it is a view."""

    project: str
    name: str
    type: str
    description: str
    features: int


@dataclass(frozen=True)
class PopularTag:
    """A tag, how many views have it, and those that changed last, as (project, name)."""

    key: str
    value: str
    total: int
    views: Sequence[tuple[str, str]]


class CountStore:
    """Counts that cost the same however much there is to count, and popular tags, which do not."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def tallies(self, projects: Sequence[str]) -> Mapping[str, Mapping[str, int]]:
        """Objects by project and name of their kind; what there is none of is left out."""
        found: dict[str, dict[str, int]] = {}
        for row in await self._access.fetch(QUERIES.tallies, projects):
            found.setdefault(row["project"], {})[row["kind"]] = row["objects"]
        return found

    async def last_update(self, projects: Sequence[str]) -> datetime | None:
        """When anything in these projects was last written."""
        moment: datetime | None = await self._access.fetchval(QUERIES.last_update, projects)
        return moment

    async def newest(self, kinds: Sequence[Kind], limit: int, project: str = "") -> Sequence[Newest]:
        """The objects of some kinds that changed last, newest first, in one project or in all."""
        names = [kind.name for kind in kinds]
        if project:
            rows = await self._access.fetch(QUERIES.newest_in_project, names, limit, project)
        else:
            rows = await self._access.fetch(QUERIES.newest_anywhere, names, limit)
        return [Newest(**row) for row in rows]

    async def popular_tags(self, projects: Sequence[str], limit: int, views: int) -> tuple[Sequence[PopularTag], int]:
        """The tags that most feature views have, with at most `views` of them each, and how many tags there are.

        Equally popular ones are by key and value, last first, as in Feast.
        """
        rows = await self._access.fetch(QUERIES.popular_tags, projects, limit, views)
        found: dict[tuple[str, str, int], list[tuple[str, str]]] = {}
        for row in rows:
            found.setdefault((row["key"], row["value"], row["views"]), []).append((row["project"], row["name"]))
        return [PopularTag(*tag, views=names) for tag, names in found.items()], rows[0]["tags"] if rows else 0
