"""Groups and plans in memory: loaded when first asked for, dropped when PostgreSQL says that they changed.

While no notifications arrive, what is known stays in use and what is loaded is not kept; when they arrive again
everything is dropped, because some may have been lost.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from chassis import errors
from chassis.listener import Listener
from chassis.settings import Settings
from services.serving.catalogue import CHANNEL, Catalogue
from services.serving.definitions import Group
from services.serving.plans import Plan, compile_plan
from services.serving.rows import Rows

Key = tuple[str, str, int]  # feature store, name, version
V = TypeVar("V")

_MAX_KEPT = 10_000
_REFUSAL_SECONDS = 1.0


class DefinitionCache:
    """Groups and plans by (feature store, name, version)."""

    def __init__(self, catalogue: Catalogue, rows: Rows, settings: Settings) -> None:
        self._catalogue = catalogue
        self._rows = rows
        self._listener = Listener(settings, CHANNEL, self.changed, self._gap)
        self._groups: _Cache[Group] = _Cache(self._load_group, self._keeping)
        self._plans: _Cache[Plan] = _Cache(self._load_plan, self._keeping)

    async def start(self) -> None:
        """Begin to listen. PostgreSQL may be away."""
        await self._listener.start()

    async def stop(self) -> None:
        """Stop to listen."""
        await self._listener.stop()

    async def group(self, store: str, name: str, version: int) -> Group:
        """Raises NotFound: FEATURE_STORE_NOT_FOUND or FEATURE_GROUP_NOT_FOUND."""
        return await self._groups.get((store, name, version))

    async def plan(self, store: str, name: str, version: int) -> Plan:
        """Raises NotFound: FEATURE_STORE_NOT_FOUND or FEATURE_VIEW_NOT_FOUND."""
        return await self._plans.get((store, name, version))

    def changed(self, payload: str) -> None:
        """Drop what a change touches; see catalogue for the payload. This process calls it for its own changes too."""
        kind, _, what = payload.partition(" ")
        if kind == "g":
            group_id = int(what)
            self._groups.drop(lambda _, group: group.id == group_id)
            self._plans.drop(lambda _, plan: group_id in plan.group_ids)
        else:
            self._plans.drop(lambda key, _: f"{key[0]}/{key[1]}/{key[2]}" == what)

    def _gap(self) -> None:
        if self._listener.listening:
            self._groups.drop(lambda *_: True)
            self._plans.drop(lambda *_: True)

    def _keeping(self) -> bool:
        return self._listener.listening

    async def _load_group(self, key: Key) -> Group:
        return await self._catalogue.group(*key)

    async def _load_plan(self, key: Key) -> Plan:
        return compile_plan(await self._catalogue.view(*key), self._rows.prefix)


class _Cache(Generic[V]):
    """Values by key, loaded once for all who wait. What was loaded before a drop is not kept after it."""

    def __init__(self, load: Callable[[Key], Awaitable[V]], keeping: Callable[[], bool]) -> None:
        self._load = load
        self._keeping = keeping
        self._kept: dict[Key, V] = {}
        self._refused: dict[Key, tuple[errors.NotFound, float]] = {}
        self._loading: dict[Key, asyncio.Task[V]] = {}

    async def get(self, key: Key) -> V:
        kept = self._kept.get(key)
        if kept is not None:
            return kept
        refused = self._refused.get(key)
        if refused is not None and refused[1] > time.monotonic():
            raise _again(refused[0])
        task = self._loading.get(key)
        if task is None:
            task = self._loading[key] = asyncio.create_task(self._loaded(key))
            # Its error is nobody's when all who waited have given up.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            # A caller that gives up must not take the others' answer away.
            return await asyncio.shield(task)
        except errors.TriglotError as error:
            raise _again(error) from None

    async def _loaded(self, key: Key) -> V:
        me = asyncio.current_task()
        try:
            value = await self._load(key)
            if self._loading.get(key) is me and self._keeping():
                if len(self._kept) >= _MAX_KEPT:
                    del self._kept[next(iter(self._kept))]
                self._kept[key] = value
            return value
        except errors.NotFound as error:
            if self._loading.get(key) is me and self._keeping():
                if len(self._refused) >= _MAX_KEPT:
                    self._refused.clear()
                self._refused[key] = (error, time.monotonic() + _REFUSAL_SECONDS)
            raise
        finally:
            if self._loading.get(key) is me:
                del self._loading[key]

    def drop(self, touched: Callable[[Key, V], bool]) -> None:
        """Forget the values that `touched` is true for, every refusal, and what is being loaded just now."""
        for key in [key for key, value in self._kept.items() if touched(key, value)]:
            del self._kept[key]
        self._refused.clear()
        self._loading.clear()


def _again(error: errors.TriglotError) -> errors.TriglotError:
    """The same error once more: one that is raised twice would gather tracebacks."""
    return type(error)(error.message, reason=error.reason, **error.metadata)
