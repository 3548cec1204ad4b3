"""Keeping a child, without one: what is logged, how the pauses grow, and what ends it."""

from __future__ import annotations

from pathlib import Path

import pytest
import structlog

from triglot import supervision
from triglot.supervision import described, keep


async def test_pauses_grow_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "_FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(supervision, "_LONGEST_PAUSE_SECONDS", 0.003)
    starts = 0

    def start() -> None:
        nonlocal starts
        starts += 1
        if starts == 4:
            raise OSError("no more")

    with structlog.testing.capture_logs() as lines, pytest.raises(OSError, match="no more"):
        await keep("worker", lambda: 3, start, Path("worker.log"))
    assert [line["pause_seconds"] for line in lines] == [0.001, 0.002, 0.003, 0.003]
    assert {(line["event"], line["ended_by"], line["log"]) for line in lines} == {
        ("worker ended; starting it again", "exit status 3", "worker.log")
    }


async def test_who_ran_for_long_is_given_a_short_pause_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "_FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(supervision, "_STEADY_SECONDS", -1.0)
    left = iter([None, None, OSError("no more")])

    def start() -> None:
        if (error := next(left)) is not None:
            raise error

    with structlog.testing.capture_logs() as lines, pytest.raises(OSError, match="no more"):
        await keep("worker", lambda: -9, start, Path("worker.log"))
    assert [line["pause_seconds"] for line in lines] == [0.001] * 3


def test_an_end_is_described_for_a_person() -> None:
    assert described(0) == "exit status 0"
    assert described(-9) == "signal 9 (Killed)"
