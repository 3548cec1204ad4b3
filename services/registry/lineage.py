"""Who uses whom, in whole projects and around one object: reads of the table of edges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import asyncpg

from services.registry.access import Access
from services.registry.kinds import BY_NAME, FEATURE, LABEL, PERMISSION, Edge
from services.registry.queries import QUERIES

# What permissions speak of: features go with their views.
_COVERED = sorted(BY_NAME.keys() - {FEATURE.name, LABEL.name})


@dataclass(frozen=True)
class Edges:
    """One page of edges, each with its project, and how many edges are on all pages."""

    edges: Sequence[tuple[str, Edge]]
    total: int


def by_target(*, indirect: bool) -> Sequence[str]:
    """The queries that give all edges of projects, one after the other, with their JSON: see direct_edges_by_target."""
    if indirect:
        return QUERIES.indirect_edges_by_source, QUERIES.indirect_edges_by_service
    return (QUERIES.direct_edges_by_target,)


class LineageStore:
    """Reads of lineage."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def projects(self) -> Sequence[str]:
        """The names of all projects, sorted."""
        return [row["name"] for row in await self._access.fetch(QUERIES.project_names)]

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
            rows = await self._access.fetch(statement, *arguments)
            total = len(rows)
        else:
            total = await self._access.fetchval(f"SELECT count(*) FROM (\n{query}\n) e", *arguments)  # noqa: S608
            offset = (page - 1) * limit
            rows = (
                await self._access.fetch(f"{statement} LIMIT $4 OFFSET $5", *arguments, limit, offset)
                if offset < total
                else []
            )
        return Edges([(row[0], (row[3], row[4], row[1], row[2])) for row in rows], total)

    async def covered(
        self, permissions: Sequence[tuple[str, str]], limit: int
    ) -> Mapping[tuple[str, str], Sequence[Edge]]:
        """Of permissions, given as (project, name): edges to the objects they speak of, those that changed last."""
        projects, names = [each[0] for each in permissions], [each[1] for each in permissions]
        found: dict[tuple[str, str], list[Edge]] = {}
        for row in await self._access.fetch(QUERIES.covered_by_permissions, projects, names, limit, _COVERED):
            edge = (PERMISSION.name, row["about"], BY_NAME[row["kind"]].lineage, row["name"])
            found.setdefault((row["project"], row["about"]), []).append(edge)
        return found

    async def rendered(
        self, projects: Sequence[str], *, indirect: bool, page: int, limit: int
    ) -> Mapping[str, tuple[bytes, int]]:
        """Edges of projects as JSON arrays, by project, each with how many edges the project has.

        Page and limit 0: all of them; otherwise one page of them all, for a single project.
        """
        if page:
            [project] = projects
            return {project: await self._rendered_page(project, indirect=indirect, page=page, limit=limit)}
        pieces: dict[str, list[asyncpg.Record]] = {}
        for query in by_target(indirect=indirect):
            for row in await self._access.fetch(query, projects):
                pieces.setdefault(row["project"], []).append(row)
        return {
            project: (f"[{','.join(row['content'] for row in rows)}]".encode(), sum(row["edges"] for row in rows))
            for project, rows in pieces.items()
        }

    async def _rendered_page(self, project: str, *, indirect: bool, page: int, limit: int) -> tuple[bytes, int]:
        query = QUERIES.indirect_edges if indirect else QUERIES.direct_edges
        arguments = ([project], "", "")
        statement = f"{QUERIES.page_of_edges_as_json} FROM (\n{query} ORDER BY 1, 2, 3, 4, 5 LIMIT $4 OFFSET $5\n) e"
        content = await self._access.fetchval(statement, *arguments, limit, (page - 1) * limit)
        total: int = await self._access.fetchval(f"SELECT count(*) FROM (\n{query}\n) e", *arguments)  # noqa: S608
        return b"[%b]" % (content or "").encode(), total

    async def sources_of_entity(self, name: str, project: str, limit: int) -> tuple[Sequence[bytes], int]:
        """JSON of the data sources behind an entity's views, first what came to it last, and how many they are."""
        narrowed = not self._access.reads_everything
        total: int = await self._access.fetchval(QUERIES.count_sources_of_entity, project, name, narrowed)
        found = await self._access.fetch(QUERIES.newest_sources_of_entity, project, name, limit)
        return [row["rendered"] for row in found], total

    async def around(
        self, lineage: str, objects: Sequence[tuple[str, str]], *, with_indirect: bool = True
    ) -> Mapping[tuple[str, str], Sequence[Edge]]:
        """Of objects of one lineage type, given as (project, name): their direct, then their indirect edges."""
        projects, names = [each[0] for each in objects], [each[1] for each in objects]
        found: dict[tuple[str, str], dict[Edge, None]] = {}
        for row in await self._access.fetch(QUERIES.relationships, lineage, projects, names):
            if with_indirect or not row["indirect"]:
                edge = (row["source_type"], row["source_name"], row["target_type"], row["target_name"])
                found.setdefault((row["project"], row["about"]), {})[edge] = None
        return {key: list(edges) for key, edges in found.items()}
