"""How many calls an account may make of this process in a second."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from chassis import errors
from chassis.principals import Principal

# Above so many accounts, those that are not near their limit are forgotten.
_MAX_REMEMBERED = 10_000


class RateLimit:
    """A second's worth of calls at once, and then as many as flow back. Refused calls cost nothing."""

    def __init__(self, calls_per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds_per_call = 1 / calls_per_second
        self._allowance_seconds = max(1.0, self._seconds_per_call)
        self._clock = clock
        # Account -> when all its calls will have flowed back.
        self._until: dict[str, float] = {}

    def admit(self, principal: Principal) -> None:
        """Count a call. Raises ResourceExhausted, saying after how many milliseconds to try again."""
        now = self._clock()
        until = max(self._until.get(principal.identity, now), now) + self._seconds_per_call
        early_seconds = until - now - self._allowance_seconds
        if early_seconds > 1e-9:
            raise errors.ResourceExhausted(
                f"more calls than {1 / self._seconds_per_call:g} a second",
                retry_after_ms=math.ceil(early_seconds * 1000),
            )
        if len(self._until) >= _MAX_REMEMBERED:
            self._until = {name: other for name, other in self._until.items() if other > now}
        self._until[principal.identity] = until
