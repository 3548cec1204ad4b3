"""What a process takes on, by clocks that the tests hold: calls a second of one caller, calls that would wait."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable

import pytest

from chassis import errors
from chassis.limits import Overload, RateLimit, admitting, of_key
from chassis.principals import Principal


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def admitted(limit: RateLimit, principal: Principal) -> int:
    """How many calls are let in before one is refused."""
    count = 0
    while True:
        try:
            limit.admit(principal)
        except errors.ResourceExhausted:
            return count
        count += 1


@pytest.mark.parametrize(("rate", "at_once"), [(10, 10), (100, 100), (1, 1), (0.5, 1), (2.5, 2)])
def test_a_second_s_worth_at_once(rate: float, at_once: int) -> None:
    assert admitted(RateLimit(rate, Clock()), Principal("alice")) == at_once


def test_calls_flow_back_one_by_one() -> None:
    clock = Clock()
    limit, alice = RateLimit(10, clock), Principal("alice")
    assert admitted(limit, alice) == 10
    assert admitted(limit, Principal("bob")) == 10
    with pytest.raises(errors.ResourceExhausted) as refused:
        limit.admit(alice)
    assert refused.value.metadata["retry_after_ms"] == "100"
    clock.now += 0.1
    assert admitted(limit, alice) == 1
    clock.now += 3600
    assert admitted(limit, alice) == 10


def test_each_key_has_a_limit_of_its_own() -> None:
    limit = RateLimit(3, Clock(), whose=of_key)
    assert admitted(limit, Principal("alice", api_key="aaaa")) == 3
    assert admitted(limit, Principal("alice", api_key="bbbb")) == 3
    # Whoever shows no API key is known by name.
    assert admitted(limit, Principal("alice")) == 3
    assert admitted(limit, Principal("bob")) == 3


def test_no_limit() -> None:
    assert admitting(0) is None
    admit = admitting(0.5)
    assert admit is not None
    admit(Principal("alice"), "Read")
    with pytest.raises(errors.ResourceExhausted):
        admit(Principal("alice"), "Write")


class Server:
    """Answers calls on the test's own clock.

    `lanes` calls at a time take `seconds` each, the others queue. Its event loop is late by `lag_seconds`.
    """

    def __init__(self, lanes: float = math.inf, seconds: float = 0.01, most_seconds: float = 0.5) -> None:
        self.lanes, self.seconds, self.lag_seconds = lanes, seconds, 0.0
        self._clock = Clock()
        self.overload = Overload(most_seconds, self._clock, self._call_later)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._lanes_free: list[float] = []
        self.refused: list[errors.Unavailable] = []
        self.waited: list[float] = []

    def _call_later(self, delay: float, callback: Callable[[], None]) -> None:
        self._at(self._clock.now + delay + self.lag_seconds, callback)

    def _at(self, moment: float, callback: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (moment, self._count, callback))

    def call(self, *, counts: bool = True) -> bool:
        """A call arrives. Whether it is let in."""
        now = self._clock.now
        try:
            ahead = self.overload.enter()
        except errors.Unavailable as error:
            self.refused.append(error)
            return False
        starts = now
        if len(self._lanes_free) >= self.lanes:
            starts = max(now, heapq.heappop(self._lanes_free))
        ends = starts + self.seconds
        heapq.heappush(self._lanes_free, ends)
        self.waited.append(starts - now)
        self._at(ends, lambda: self.overload.leave(ahead, ends - now, counts=counts))
        return True

    def run(self, seconds: float, calls_per_second: float = 0.0) -> int:
        """Let time pass, with calls at equal distances. How many were let in."""
        end, let_in = self._clock.now + seconds, 0
        if calls_per_second:
            for number in range(round(seconds * calls_per_second)):
                self._until(end - seconds + number / calls_per_second)
                let_in += self.call()
        self._until(end)
        return let_in

    def _until(self, moment: float) -> None:
        while self._events and self._events[0][0] <= moment:
            self._clock.now, _, callback = heapq.heappop(self._events)
            callback()
        self._clock.now = moment

    @property
    def timers(self) -> int:
        return len(self._events)


def test_what_would_wait_too_long_is_refused_at_once() -> None:
    """Capacity 100 a second, 20 times as many calls: what is let in waits for half a second, and nothing is idle."""
    server = Server(lanes=1, seconds=0.01)
    server.run(1, calls_per_second=90)
    assert not server.refused
    # Nothing is known of a queue before it is there: what came in the first tenth of a second is served first.
    server.run(4, calls_per_second=2000)
    server.waited.clear()
    let_in = server.run(10, calls_per_second=2000)
    assert let_in == pytest.approx(1000, rel=0.05)
    assert min(server.waited) > 0.4
    assert max(server.waited) < 0.65
    error = server.refused[-1]
    assert error.reason == "OVERLOADED"
    assert 500 < int(error.metadata["retry_after_ms"]) < 700


def test_it_recovers_as_soon_as_the_queue_is_gone() -> None:
    server = Server(lanes=1, seconds=0.01)
    server.run(5, calls_per_second=2000)
    assert not server.call()
    server.refused.clear()
    # A few ends later there is room for a few more.
    server.run(0.1)
    assert server.call()
    server.run(1)
    server.run(1, calls_per_second=90)
    assert not server.refused


def test_slow_calls_are_no_queue() -> None:
    """All of them wait for the same slow thing, and none for another."""
    server = Server(seconds=0.8)
    server.run(20, calls_per_second=100)
    assert not server.refused


def test_one_stall_is_no_queue() -> None:
    """A dependency hangs for a second, and everything that arrived meanwhile ends at once."""
    server = Server(seconds=0.01)
    server.run(5, calls_per_second=1000)
    server.seconds = 1.0
    server.run(0.02, calls_per_second=1000)
    server.seconds = 0.01
    server.run(5, calls_per_second=1000)
    assert not server.refused


def test_a_burst_on_an_idle_server_is_taken() -> None:
    server = Server(lanes=1, seconds=0.001)
    server.run(1, calls_per_second=10)
    assert all(server.call() for _ in range(300))


def test_a_few_calls_are_never_refused() -> None:
    """However slow they are: the fifth would wait for two seconds here."""
    server = Server(lanes=1, seconds=0.5)
    for _ in range(10):
        server.run(5, calls_per_second=10)
        assert server.refused
        server.refused.clear()
        server.run(60)
        assert all(server.call() for _ in range(5))
        server.run(10)


def test_calls_that_fail_teach_nothing() -> None:
    """Redis is away: calls fail after a second each. They are told so, and not that the server is busy."""
    server = Server(lanes=1, seconds=1.0)
    for _ in range(50):
        assert server.call(counts=False)
        server.run(0.1)


def test_what_was_learnt_is_forgotten_when_nothing_ends() -> None:
    server = Server(lanes=1, seconds=0.01)
    server.run(5, calls_per_second=2000)
    assert not server.call()
    server.seconds = 60.0
    server.run(0.01)
    server.call()
    server.run(10)
    for _ in range(10):
        server.call()
    server.refused.clear()
    assert server.call()


def test_a_late_event_loop_counts() -> None:
    """Calls that are read late have waited before anybody knew of them: the queue may be half as long."""
    server = Server(lanes=1, seconds=0.01)
    server.lag_seconds = 0.6
    server.run(5, calls_per_second=2000)
    server.waited.clear()
    assert server.run(5, calls_per_second=2000) == pytest.approx(500, rel=0.05)
    assert max(server.waited) < 0.35
    server.lag_seconds = 0.0
    server.run(1)
    server.refused.clear()
    server.run(1, calls_per_second=90)
    assert not server.refused


def test_being_late_alone_refuses_nobody() -> None:
    server = Server(seconds=0.01)
    server.lag_seconds = 5.0
    server.run(20, calls_per_second=100)
    assert not server.refused


def test_one_late_moment_does_not() -> None:
    server = Server(seconds=0.01)
    server.run(1, calls_per_second=1000)
    server.lag_seconds = 0.6
    server.run(0.05, calls_per_second=1000)
    server.lag_seconds = 0.0
    server.run(2, calls_per_second=1000)
    assert not server.refused


def test_one_timer_runs_while_there_is_something_to_do() -> None:
    server = Server(seconds=1.0)
    for _ in range(100):
        server.call()
    assert server.timers == 101
    server.run(2)
    assert server.timers == 0
