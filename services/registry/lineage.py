"""Who uses whom, in whole projects and around one object: reads of the table of edges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from chassis.postgres import Database
from services.registry.kinds import Edge
from services.registry.queries import QUERIES


@dataclass(frozen=True)
class Edges:
    """One page of edges, each with its project, and how many edges are on all pages."""

    edges: Sequence[tuple[str, Edge]]
    total: int


class LineageStore:
    """Reads of lineage."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def projects(self) -> Sequence[str]:
        """The names of all projects, sorted."""
        return [row["name"] for row in await self._database.fetch(QUERIES.project_names)]

    async def page(
        self,
        projects: Sequence[str],
        object_type: str = "",
        object_name: str = "",
        *,
        indirect: bool = False,
        page: int = 0,
        limit: int = 0,
        descending: bool = False,
    ) -> Edges:
        """Edges of projects without repetition, by project, target and source. Page and limit 0: all of them.

        Type and name narrow to edges that have such an object at either end, each alone or both together.
        """
        query = QUERIES.indirect_edges if indirect else QUERIES.direct_edges
        direction = " DESC" if descending else ""
        order = ", ".join(f"{column}{direction}" for column in range(1, 6))
        statement, arguments = f"{query}\nORDER BY {order}", [projects, object_type, object_name]
        if not page:
            rows = await self._database.fetch(statement, *arguments)
            total = len(rows)
        else:
            total = await self._database.fetchval(f"SELECT count(*) FROM (\n{query}\n) e", *arguments)  # noqa: S608
            offset = (page - 1) * limit
            rows = (
                await self._database.fetch(f"{statement} LIMIT $4 OFFSET $5", *arguments, limit, offset)
                if offset < total
                else []
            )
        return Edges([(row[0], (row[3], row[4], row[1], row[2])) for row in rows], total)

    async def around(
        self, lineage: str, objects: Sequence[tuple[str, str]], *, with_indirect: bool = True
    ) -> Mapping[tuple[str, str], Sequence[Edge]]:
        """Of objects of one lineage type, given as (project, name): their direct, then their indirect edges."""
        projects, names = [each[0] for each in objects], [each[1] for each in objects]
        found: dict[tuple[str, str], dict[Edge, None]] = {}
        for row in await self._database.fetch(QUERIES.relationships, lineage, projects, names):
            if with_indirect or not row["indirect"]:
                edge = (row["source_type"], row["source_name"], row["target_type"], row["target_name"])
                found.setdefault((row["project"], row["about"]), {})[edge] = None
        return {key: list(edges) for key, edges in found.items()}
