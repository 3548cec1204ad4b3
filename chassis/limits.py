"""How much this process takes on: calls a second of one caller, and calls that would wait for too long."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

from chassis import errors
from chassis.principals import Principal
from chassis.telemetry import log

# Above so many callers, those that are not near their limit are forgotten.
_MAX_REMEMBERED = 10_000

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


class RateLimit:
    """A second's worth of calls at once, and then as many as flow back. Refused calls cost nothing."""

    def __init__(
        self,
        calls_per_second: float,
        clock: Callable[[], float] = time.monotonic,
        *,
        whose: Callable[[Principal], str] = of_account,
    ) -> None:
        self._seconds_per_call = 1 / calls_per_second
        self._allowance_seconds = max(1.0, self._seconds_per_call)
        self._clock = clock
        self._whose = whose
        # Caller -> when all its calls will have flowed back.
        self._until: dict[str, float] = {}

    def admit(self, principal: Principal) -> None:
        """Count a call. Raises ResourceExhausted, saying after how many milliseconds to try again."""
        now, caller = self._clock(), self._whose(principal)
        until = max(self._until.get(caller, now), now) + self._seconds_per_call
        early_seconds = until - now - self._allowance_seconds
        if early_seconds > 1e-9:
            raise errors.ResourceExhausted(
                f"more calls than {1 / self._seconds_per_call:g} a second",
                retry_after_ms=math.ceil(early_seconds * 1000),
            )
        if len(self._until) >= _MAX_REMEMBERED:
            self._until = {name: other for name, other in self._until.items() if other > now}
        self._until[caller] = until


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
