"""Groups and plans in memory: loaded when first asked for, dropped when PostgreSQL says that they changed.

While no notifications arrive, what is known is loaded again when it is a second old. The value from before stays in
use only as long as PostgreSQL does not answer. When notifications arrive again everything is loaded again, because
some may have been lost.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Generic, NamedTuple, TypeVar

from chassis import errors
from chassis.listener import Listener
from chassis.postgres import Database
from chassis.settings import Settings
from chassis.telemetry import cache_lookups
from services.serving.catalogue import CHANNEL, Catalogue
from services.serving.definitions import Group
from services.serving.plans import Plan, compile_plan
from services.serving.rows import Rows

Key = tuple[str, str, int]  # feature store, name, version
V = TypeVar("V")

_MAX_KEPT = 10_000
# How old may be what no notification vouches for.
_TRUSTED_SECONDS = 1.0
# How long a read waits for PostgreSQL when there is a value from before. The load goes on and is there for the next.
_PATIENCE_SECONDS = 0.25


class DefinitionCache:
    """Groups and plans by (feature store, name, version)."""

    def __init__(self, catalogue: Catalogue, rows: Rows, database: Database, settings: Settings) -> None:
        self._catalogue = catalogue
        self._rows = rows
        self._listener = Listener(settings, database, CHANNEL, self.changed, self._gap)
        self._groups: _Cache[Group] = _Cache("groups", self._load_group, self._vouched_for)
        self._plans: _Cache[Plan] = _Cache("plans", self._load_plan, self._vouched_for)

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
        self._groups.doubt()
        self._plans.doubt()

    def _vouched_for(self) -> bool:
        return self._listener.listening

    async def _load_group(self, key: Key) -> Group:
        return await self._catalogue.group(*key)

    async def _load_plan(self, key: Key) -> Plan:
        return compile_plan(await self._catalogue.view(*key), self._rows.prefix)


class _Doubtful(NamedTuple, Generic[V]):
    """A value that may have changed without our knowing."""

    value: V
    # Until then it is served without asking PostgreSQL, on time.monotonic()'s clock.
    trusted_until: float


class _Cache(Generic[V]):
    """Values by key, loaded once for all who wait. What was loaded before a drop is not kept after it.

    `vouched_for` says whether changes are heard of at this moment.
    """

    def __init__(self, name: str, load: Callable[[Key], Awaitable[V]], vouched_for: Callable[[], bool]) -> None:
        self._hits, self._misses = cache_lookups.count(name, "yes"), cache_lookups.count(name, "no")
        self._load = load
        self._vouched_for = vouched_for
        # A key is in one of the two at most.
        self._kept: dict[Key, V] = {}
        self._doubtful: dict[Key, _Doubtful[V]] = {}
        self._refused: dict[Key, tuple[errors.NotFound, float]] = {}
        self._loading: dict[Key, asyncio.Task[V]] = {}

    async def get(self, key: Key) -> V:
        kept = self._kept.get(key)
        if kept is not None:
            self._hits.add()
            return kept
        self._misses.add()
        doubtful = self._doubtful.get(key)
        if doubtful is not None and doubtful.trusted_until > time.monotonic():
            return doubtful.value
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
            async with asyncio.timeout(None if doubtful is None else _PATIENCE_SECONDS):
                return await asyncio.shield(task)
        except errors.TriglotError as error:
            if doubtful is None or isinstance(error, errors.NotFound):
                raise _again(error) from None
        except TimeoutError:
            if doubtful is None:
                raise
        # Nobody else should wait for a PostgreSQL that is away, for a while.
        if self._doubtful.get(key) is doubtful:
            self._doubtful[key] = _Doubtful(doubtful.value, time.monotonic() + _TRUSTED_SECONDS)
        return doubtful.value

    async def _loaded(self, key: Key) -> V:
        me = asyncio.current_task()
        trusted_until = time.monotonic() + _TRUSTED_SECONDS
        try:
            value = await self._load(key)
            if self._loading.get(key) is me:
                self._doubtful.pop(key, None)
                if self._vouched_for():
                    _put(self._kept, key, value)
                else:
                    _put(self._doubtful, key, _Doubtful(value, trusted_until))
            return value
        except errors.NotFound as error:
            if self._loading.get(key) is me:
                self._doubtful.pop(key, None)
                _put(self._refused, key, (error, trusted_until))
            raise
        finally:
            if self._loading.get(key) is me:
                del self._loading[key]

    def drop(self, touched: Callable[[Key, V], bool]) -> None:
        """Forget the values that `touched` is true for, every refusal, and what is being loaded just now."""
        for key in [key for key, value in self._kept.items() if touched(key, value)]:
            del self._kept[key]
        for key in [key for key, doubtful in self._doubtful.items() if touched(key, doubtful.value)]:
            del self._doubtful[key]
        self._refused.clear()
        self._loading.clear()

    def doubt(self) -> None:
        """Load everything again before it is used again, unless PostgreSQL does not answer."""
        values = self._kept | {key: doubtful.value for key, doubtful in self._doubtful.items()}
        self._kept.clear()
        self._doubtful = {key: _Doubtful(value, float("-inf")) for key, value in values.items()}
        self._refused.clear()
        self._loading.clear()


def _put(values: dict[Key, Any], key: Key, value: Any) -> None:
    """Keep a value in place of the oldest one, if there are many."""
    if len(values) >= _MAX_KEPT and key not in values:
        del values[next(iter(values))]
    values[key] = value


def _again(error: errors.TriglotError) -> errors.TriglotError:
    """The same error once more: one that is raised twice would gather tracebacks."""
    return type(error)(error.message, reason=error.reason, **error.metadata)
