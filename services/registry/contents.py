"""Whole projects as JSON: all their objects in lists by kind, and their lineage; in one message, or in parts."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing

from protos.gen.triglot.registry.v1 import registry_service_pb2 as rpc
from services.registry import checks, kinds
from services.registry.lineage import LineageStore
from services.registry.listing import Listing
from services.registry.store import RegistryStore

Part = rpc.StreamProjectContentsResponse

# The lists of objects: field of ProjectContents, and in the order of ContentsList. None is any feature view but a label
# view.
_LISTS: Mapping[str, kinds.Kind | None] = {
    "entities": kinds.ENTITY,
    "data_sources": kinds.DATA_SOURCE,
    "feature_views": None,
    "label_views": kinds.LABEL_VIEW,
    "feature_services": kinds.FEATURE_SERVICE,
    "features": kinds.FEATURE,
    "labels": kinds.LABEL,
    "saved_datasets": kinds.SAVED_DATASET,
}
_EDGES = ("relationships", "indirect_relationships")
_PART_BYTES = 1 << 20


class Contents:
    """What projects hold. What is in one message is ResourceExhausted if it is more than `max_message_bytes`."""

    def __init__(self, store: RegistryStore, lineage: LineageStore, max_message_bytes: int) -> None:
        self._store = store
        self._lineage = lineage
        self._max_message_bytes = max_message_bytes

    async def parts(self, project: str, page: int = 0, limit: int = 0) -> AsyncGenerator[Part]:
        """What a project holds, list by list. Page and limit 0: everything, as it was at one moment."""
        if page:
            [paged] = await self.of([project], page, limit)
            for part in _parts_of(paged):
                yield part
            return
        async with self._store.snapshot() as snapshot:
            for field, kind in _LISTS.items():
                total = 0
                async with aclosing(snapshot.batches(Listing(kind, project=project), rendered=True)) as batches:
                    async for batch in batches:
                        total += len(batch)
                        for elements in self._sized([found.content for found in batch]):
                            yield Part(list=_list(field), elements=elements)
                yield Part(list=_list(field), total=total)
            for field in _EDGES:
                total = 0
                async with aclosing(snapshot.edges(project, indirect=field == _EDGES[1])) as pieces:
                    async for edges, contents in pieces:
                        total += edges
                        for elements in self._sized(contents):
                            yield Part(list=_list(field), elements=elements)
                yield Part(list=_list(field), total=total)

    async def of(self, projects: Sequence[str], page: int = 0, limit: int = 0) -> Sequence[rpc.ProjectContents]:
        """What some projects hold. A page only of a single one."""
        shown = {project: rpc.ProjectContents(project=project) for project in projects}
        if not shown:
            return ()
        size = 0
        for field, kind in _LISTS.items():
            listed = await self._store.page(Listing(kind, projects=projects, page=page, limit=limit), rendered=True)
            size = self._grown(size, (found.content for found in listed.objects))
            lists = {project: getattr(contents, field) for project, contents in shown.items()}
            objects = {project: found.objects for project, found in lists.items()}
            for found in listed.objects:
                objects[found.project].append(found.content)
            for each in lists.values():
                each.total = listed.total if page else len(each.objects)
        for field in _EDGES:
            edges = await self._lineage.rendered(projects, indirect=field == _EDGES[1], page=page, limit=limit)
            size = self._grown(size, (content for content, _ in edges.values()))
            for project, contents in shown.items():
                content, total = edges.get(project, (b"[]", 0))
                setattr(contents, field, content)
                setattr(contents, f"{field}_total", total)
        return list(shown.values())

    def _sized(self, elements: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
        """Elements in parts that a message holds."""
        most = min(_PART_BYTES, self._max_message_bytes // 2)
        first, size = 0, 0
        for position, element in enumerate(elements):
            if position > first and size + len(element) > most:
                yield elements[first:position]
                first, size = position, 0
            size += len(element)
        yield elements[first:]

    def _grown(self, size: int, contents: Iterable[bytes]) -> int:
        """The size of an answer to which contents are added."""
        size += sum(map(len, contents))
        if size > self._max_message_bytes:
            raise checks.too_large(self._max_message_bytes)
        return size


def _list(field: str) -> rpc.ContentsList.ValueType:
    return rpc.ContentsList.Value(f"CONTENTS_LIST_{field.upper()}")


def _parts_of(contents: rpc.ProjectContents) -> Iterable[Part]:
    for field in _LISTS:
        found = getattr(contents, field)
        yield Part(list=_list(field), elements=found.objects, total=found.total)
    for field in _EDGES:
        inside = getattr(contents, field)[1:-1]
        total = getattr(contents, f"{field}_total")
        yield Part(list=_list(field), elements=[inside] if inside else [], total=total)
