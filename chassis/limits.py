"""How much this process takes on: of one caller, of one network address, and altogether before calls wait for long."""

from __future__ import annotations

import asyncio
import ipaddress
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from urllib.parse import unquote

from chassis import errors
from chassis.principals import Principal
from chassis.settings import Settings
from chassis.telemetry import log

# Of so many callers at most something is remembered.
_MAX_REMEMBERED = 10_000
_MAX_NAME = 64

# So many calls under way are no queue, however long they take.
_FEW = 4
_WINDOW_SECONDS = 0.05
# What was learnt from calls that ended longer ago says nothing any more.
_FRESH_SECONDS = 5.0
_BEAT_SECONDS = 0.05
_COMPLAINT_SECONDS = 5.0


def of_account(principal: Principal) -> str:
    """Counts all calls of a principal together."""
    return principal.identity


def of_key(principal: Principal) -> str:
    """Counts the calls with each API key by themselves; those without one by principal."""
    return principal.api_key or principal.identity


class Allowances:
    """What each of many names may use up: `per_second` flows back, and `at_once` is all there is.

    A name that has its whole allowance is forgotten, and of very many names those that were new longest ago.
    """

    def __init__(self, per_second: float, at_once: float, clock: Callable[[], float]) -> None:
        self._seconds_each = 1 / per_second
        self._most_seconds = at_once / per_second
        self._clock = clock
        # Name -> when all that it used will have flowed back.
        self._until: dict[str, float] = {}

    def wait_seconds(self, name: str) -> float:
        """After how many seconds the name may use one more; 0: now."""
        now = self._clock()
        early = max(self._until.get(name, now), now) + self._seconds_each - now - self._most_seconds
        return early if early > 1e-9 else 0.0

    def use(self, name: str) -> None:
        """Use one up, whether or not there is one."""
        now = self._clock()
        if len(self._until) >= _MAX_REMEMBERED and name not in self._until:
            in_use = [each for each in self._until.items() if each[1] > now]
            self._until = dict(in_use[-_MAX_REMEMBERED // 2 :])
        until = max(self._until.get(name, now), now) + self._seconds_each
        self._until[name] = min(until, now + self._most_seconds)


class RateLimit:
    """A second's worth of calls at once, and then as many as flow back. Refused calls cost nothing."""

    def __init__(
        self,
        calls_per_second: float,
        clock: Callable[[], float] = time.monotonic,
        *,
        whose: Callable[[Principal], str] = of_account,
    ) -> None:
        self._calls_per_second = calls_per_second
        self._allowances = Allowances(calls_per_second, max(1.0, calls_per_second), clock)
        self._whose = whose

    def admit(self, principal: Principal) -> None:
        """Count a call. Raises ResourceExhausted, saying after how many milliseconds to try again."""
        self.count(self._whose(principal))

    def count(self, caller: str) -> None:
        """The same of a caller by its name."""
        wait_seconds = self._allowances.wait_seconds(caller)
        if wait_seconds:
            raise errors.ResourceExhausted(
                f"more calls than {self._calls_per_second:g} a second", retry_after_ms=math.ceil(wait_seconds * 1000)
            )
        self._allowances.use(caller)


class Addresses:
    """What one network address may do to a port: calls a second, wrong credentials a minute, connections.

    After too many wrong credentials all calls from there are refused unread, until some have flowed back. An IPv6
    address counts as its network of 64 bits, since whoever has one has all of them. Proxies that are trusted are not
    counted themselves: what they say of who called them is.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        calls, failures = settings.address_calls_per_second, settings.address_failures_per_minute
        self._trusted = tuple(map(ipaddress.ip_network, settings.trusted_addresses))
        self._calls = RateLimit(calls, clock) if calls else None
        self._failures = Allowances(failures / 60, failures, clock) if failures else None
        self._most_connections = settings.address_connections
        self._connections: Counter[str] = Counter()
        self._name = lru_cache(_MAX_REMEMBERED)(self._named)

    def caller(self, peer: str, forwarded: str = "") -> str:
        """Who calls, as `admit` and `failed` want it; empty: somebody who is not counted.

        `forwarded` is what a proxy said, as in X-Forwarded-For; of it only what trusted proxies wrote is believed.
        """
        caller = self._name(peer)
        said = forwarded.split(",") if forwarded else []
        while not caller and said:
            caller = self._name(said.pop().strip())
        return caller

    def admit(self, caller: str) -> None:
        """Count a call. Raises ResourceExhausted."""
        if not caller:
            return
        if self._failures is not None and (wait_seconds := self._failures.wait_seconds(caller)):
            raise errors.ResourceExhausted(
                "too many wrong credentials from this address", retry_after_ms=math.ceil(wait_seconds * 1000)
            )
        if self._calls is not None:
            self._calls.count(caller)

    def failed(self, caller: str, error: errors.Unauthenticated) -> None:
        """Count a wrong credential. To show none is no attempt."""
        if caller and self._failures is not None and error.reason != "CREDENTIAL_MISSING":
            self._failures.use(caller)

    @contextmanager
    def counting(self, peer: str) -> Iterator[None]:
        """Around a call from gRPC's peer, such as `ipv4:10.0.0.1:4711`. Raises ResourceExhausted."""
        caller = self.caller(unquote(peer.partition(":")[2].rpartition(":")[0]).strip("[]"))
        self.admit(caller)
        try:
            yield
        except errors.Unauthenticated as error:
            self.failed(caller, error)
            raise

    def connected(self, caller: str) -> bool:
        """Count a connection, which `disconnected` is to be told of; False: it is one too many, and not counted."""
        if not (caller and self._most_connections):
            return True
        if self._connections[caller] >= self._most_connections:
            return False
        self._connections[caller] += 1
        return True

    def disconnected(self, caller: str) -> None:
        """A connection that was counted is gone."""
        if caller and self._most_connections:
            self._connections[caller] -= 1
            if not self._connections[caller]:
                del self._connections[caller]

    def _named(self, address: str) -> str:
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:  # no address of the network, or nothing that we know as one
            return address[:_MAX_NAME]
        parsed = getattr(parsed, "ipv4_mapped", None) or parsed
        if any(parsed in network for network in self._trusted):
            return ""
        return str(ipaddress.ip_network((parsed, 64), strict=False)) if parsed.version == 6 else str(parsed)


def of_addresses(settings: Settings) -> Addresses | None:
    """The limits of one port; None: there are none."""
    limits = settings.address_calls_per_second, settings.address_failures_per_minute, settings.address_connections
    return Addresses(settings) if any(limits) else None


def admitting(
    calls_per_second: float, whose: Callable[[Principal], str] = of_account
) -> Callable[[Principal, str], None] | None:
    """The `admit` of a policy that limits calls of all RPCs together. 0: no limit."""
    if not calls_per_second:
        return None
    limit = RateLimit(calls_per_second, whose=whose)
    return lambda principal, _: limit.admit(principal)


class Overload:
    """Refuses a call at once when those before it would keep it waiting for longer than `most_seconds`.

    Each call remembers how many were under way when it came. When it ends, the time that it took beyond what a call
    takes that meets hardly any other, divided by that number, is what one call ahead costs: the pace. Calls under way,
    times the pace, plus how late the event loop is (up to half of what is allowed), is what a call must wait that comes
    now.

    Calls that are slow because a dependency is slow take as long when there are few of them, so they have no pace and
    are not refused. One stall is none either: pace and lateness count when they have lasted for two looks. The queue
    shrinks as fast as calls end, so nobody is refused after that; and up to four calls are never refused.

    It costs a few additions a call. A timer runs while calls are under way, one for all of them.
    """

    def __init__(
        self,
        most_seconds: float,
        clock: Callable[[], float] = time.perf_counter,
        call_later: Callable[[float, Callable[[], None]], object] | None = None,
    ) -> None:
        self._most_seconds = most_seconds
        self._clock = clock
        self._call_later = call_later
        self._under_way = 0
        # Of calls that met hardly any other, smoothed.
        self._alone_seconds: float | None = None
        # The window: of the calls that ended in it, how many there were, what they took, how many were ahead of them.
        self._ended, self._took_seconds, self._ahead = 0, 0.0, 0
        self._window_ends = self._learnt_at = -math.inf
        self._pace, self._last_pace = 0.0, 0.0
        self._lag_seconds, self._last_lag_seconds = 0.0, 0.0
        self._beat_due: float | None = None
        self._refused, self._next_complaint = 0, -math.inf

    def enter(self) -> int:
        """A call begins; what `leave` is to be given. Raises Unavailable, reason OVERLOADED."""
        ahead = self._under_way
        if ahead > _FEW:
            # Being late alone refuses nobody: who refuses all that it reads is busy with that, and serves none.
            wait_seconds = min(self._lag_seconds, self._most_seconds / 2) + ahead * self._pace
            if wait_seconds > self._most_seconds:
                self._refuse(wait_seconds)
        self._under_way = ahead + 1
        if self._beat_due is None:
            self._beat_again()
        return ahead

    def leave(self, ahead: int, seconds: float, *, counts: bool) -> None:
        """A call that was let in has ended after this time. `counts`: it did not fail, which can take any time."""
        self._under_way -= 1
        if not counts:
            return
        if ahead <= _FEW:
            alone = self._alone_seconds
            self._alone_seconds = seconds if alone is None else alone + (seconds - alone) / 8
        self._ended += 1
        self._took_seconds += seconds
        self._ahead += ahead
        now = self._clock()
        if now >= self._window_ends:
            self._learn(now)

    def _learn(self, now: float) -> None:
        queued_seconds = self._took_seconds - self._ended * (self._alone_seconds or 0.0)
        pace = max(0.0, queued_seconds) / self._ahead if self._ahead > _FEW * self._ended else 0.0
        self._pace, self._last_pace = min(pace, self._last_pace), pace
        self._ended, self._took_seconds, self._ahead = 0, 0.0, 0
        self._window_ends, self._learnt_at = now + _WINDOW_SECONDS, now

    def _refuse(self, wait_seconds: float) -> None:
        now = self._clock()
        if now - self._learnt_at > _FRESH_SECONDS:
            self._pace = self._last_pace = 0.0
            return
        self._refused += 1
        if now >= self._next_complaint:
            log.warning("overloaded: calls are refused", refused=self._refused, wait_seconds=round(wait_seconds, 3))
            self._refused, self._next_complaint = 0, now + _COMPLAINT_SECONDS
        wait_ms = math.ceil(wait_seconds * 1000)
        raise errors.Unavailable(
            f"the server is busy: this call would wait for {wait_ms} ms", reason="OVERLOADED", retry_after_ms=wait_ms
        )

    def _beat_again(self) -> None:
        self._beat_due = self._clock() + _BEAT_SECONDS
        (self._call_later or asyncio.get_running_loop().call_later)(_BEAT_SECONDS, self._beat)

    def _beat(self) -> None:
        """Looks how late the event loop is, for as long as it has something to do."""
        if self._under_way and self._beat_due is not None:
            late_seconds = max(0.0, self._clock() - self._beat_due)
            self._lag_seconds = min(late_seconds, self._last_lag_seconds)
            self._last_lag_seconds = late_seconds
            self._beat_again()
        else:
            self._lag_seconds = self._last_lag_seconds = 0.0
            self._beat_due = None
