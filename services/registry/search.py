"""Search over names, descriptions, tags and features: substrings in SQL, likeness among what the index offers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import orjson

from chassis.postgres import Database
from services.registry.access import Access
from services.registry.kinds import BY_NAME, PERMISSION, PROJECT, VALIDATION_REFERENCE
from services.registry.queries import QUERIES

KINDS = sorted(BY_NAME.keys() - {PROJECT.name, PERMISSION.name, VALIDATION_REFERENCE.name})
# The part of a query's trigrams that something similar shares with it, at least.
WORD_SIMILARITY = "0.4"
LEAST_LIKENESS = 0.5
# Likeness is found out here, where nothing else runs meanwhile: among short texts, and not among any number of them.
MAX_COMPARED_LENGTH = 128
MAX_COMPARED_LETTERS = 64_000

_ORDERS = {
    "match_score": "r.score{}, r.project, r.type, r.sort_name, r.id",
    "name": "r.sort_name{}, r.project, r.id",
    "type": "r.type{}, r.project, r.sort_name, r.id",
}


@dataclass(frozen=True)
class Search:
    """What to search. An empty query finds everything. `sort_by`: match_score, name or type."""

    query: str
    projects: Sequence[str]
    tags: Mapping[str, str]
    page: int
    limit: int
    sort_by: str = "match_score"
    descending: bool = True


@dataclass(frozen=True)
class Match:
    """One object that was found. `score` is 0 if everything was asked for."""

    type: str
    project: str
    name: str
    parent: str
    description: str
    score: int
    tags: Mapping[str, str]  # those that match


class SearchStore:
    """Reads for search. Letters are compared in lower case: in names all of them, elsewhere those of ASCII."""

    def __init__(self, database: Database, access: Access) -> None:
        self._database = database
        self._access = access

    async def search(self, wanted: Search) -> tuple[Sequence[Match], int]:
        """One page of what was found, and how many objects were found.

        The best of these counts: the query is part of the name (100), of the description (80), of a tag `key=value`
        (60); it is part of the name of a feature that a view or service holds (50); the name or a tag is at least
        half like it (40), which is looked for in short texts, and in names before tags.
        """
        query = wanted.query.lower()
        arguments: list[object] = [wanted.projects, KINDS, orjson.dumps(dict(wanted.tags)).decode()]
        order = _ORDERS[wanted.sort_by].format(" DESC" if wanted.descending else "")
        offset = (wanted.page - 1) * wanted.limit
        async with self._database.transaction() as connection:
            await connection.execute(QUERIES.search_settings, WORD_SIMILARITY)
            access = self._access.over(connection)
            statement = QUERIES.search_everything
            if query:
                pattern = _pattern(query)
                arguments += [pattern, await _similar(access, query, pattern, arguments)]
                statement = QUERIES.search_matching
            number = len(arguments)
            paged = (
                f"SELECT r.*, count(*) OVER () AS total FROM (\n{statement}\n) r"  # noqa: S608 - constants of this file
                f" ORDER BY {order} LIMIT ${number + 1} OFFSET ${number + 2}"
            )
            rows = await access.fetch(paged, *arguments, wanted.limit, offset)
            # Behind the last page no row is left to carry the total.
            counted = rows or (await access.fetch(paged, *arguments, 1, 0) if offset else [])
        likeness = Likeness(query)
        matches = [
            Match(
                type=row["type"],
                project=row["project"],
                name=row["name"],
                parent=row["parent"],
                description=row["description"],
                score=row["score"],
                tags=_matching(likeness, orjson.loads(row["tags"])),
            )
            for row in rows
        ]
        return matches, counted[0]["total"] if counted else 0


async def _similar(access: Access, query: str, pattern: str, arguments: Sequence[object]) -> Sequence[int]:
    """Ids of the objects that are like the query and do not hold it."""
    rows = await access.fetch(QUERIES.search_similar, *arguments, query, pattern)
    likeness = Likeness(query)
    named = {row["id"] for row in rows if likeness.to(row["name"])}
    others = [row for row in rows if row["id"] not in named]
    return [*named, *(row["id"] for row in others if _alike(likeness, orjson.loads(row["tags"])))]


def _pattern(query: str) -> str:
    """The LIKE pattern of a part of a text."""
    escaped = query.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%"


def _matching(likeness: Likeness, tags: Mapping[str, str]) -> Mapping[str, str]:
    """The tags that hold the query or, if none does, those that are like it."""
    query = likeness.query
    if not query:
        return {}
    holding = {key: value for key, value in tags.items() if query in f"{key}={value}".lower()}
    return holding or _alike(likeness, tags)


def _alike(likeness: Likeness, tags: Mapping[str, str]) -> Mapping[str, str]:
    return {key: value for key, value in tags.items() if any(map(likeness.to, (key, value, f"{key}={value}")))}


class Likeness:
    """Finds out what is like a query in lower case. After so many letters nothing is any more."""

    def __init__(self, query: str) -> None:
        self.query = query
        self._left = MAX_COMPARED_LETTERS

    def to(self, text: str) -> bool:
        """Whether at most half of the longer text must be edited to make the other. Not if one of them is long."""
        shorter, longer = sorted((len(self.query), len(text)))
        if longer > MAX_COMPARED_LENGTH or shorter < longer * LEAST_LIKENESS or not shorter or self._left < len(text):
            return False
        self._left -= len(text)
        return distance(self.query, text.lower()) <= longer * (1 - LEAST_LIKENESS)


def distance(left: str, right: str) -> int:
    """Levenshtein's distance, a column of its table at a time (Myers 1999): a bit says how a row differs from the last.

    `left` is not empty.
    """
    places: dict[str, int] = {}
    for place, letter in enumerate(left):
        places[letter] = places.get(letter, 0) | 1 << place
    rows, last = (1 << len(left)) - 1, 1 << len(left) >> 1
    more, less = rows, 0
    edits = len(left)
    for letter in right:
        equal = places.get(letter, 0)
        kept = (((equal & more) + more) ^ more) | equal | less
        rises, falls = less | ~(kept | more), more & kept
        edits += bool(rises & last) - bool(falls & last)
        rises, falls = rises << 1 | 1, falls << 1
        more, less = (falls | ~(kept | rises)) & rows, rises & kept & rows
    return edits
