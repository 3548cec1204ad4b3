"""What a check found, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

# A check waits for a dependency for so long.
PATIENCE_SECONDS = 5.0
# Signatures of PAI's clients are taken for a quarter of an hour, by the clock of the process.
_TOO_FAR, _FAR = timedelta(minutes=15), timedelta(seconds=30)


@dataclass(frozen=True)
class Finding:
    """`advice` says what to do; there is none where all is well."""

    check: str
    status: Literal["ok", "warning", "error"]
    text: str
    advice: str = ""


def fine(check: str, text: str) -> Finding:
    """All is well."""
    return Finding(check, "ok", text)


def warning(check: str, text: str, advice: str) -> Finding:
    """It works, and may not for long, or not as well as it could."""
    return Finding(check, "warning", text, advice)


def wrong(check: str, text: str, advice: str) -> Finding:
    """Something does not work."""
    return Finding(check, "error", text, advice)


def clock(check: str, theirs: datetime, asked: datetime) -> Finding:
    """How far a server's clock is from ours, given when it was asked; it has just answered."""
    answered = datetime.now(UTC)
    # Anything between the question and the answer is no difference at all.
    apart = max(asked - theirs, theirs - answered, timedelta(0))
    text = f"{apart.total_seconds():.1f} s apart from this machine's"
    advice = "have both machines keep time by NTP"
    if apart >= _TOO_FAR:
        return wrong(check, f"{text}: PAI's signatures are refused, keys expire at other times", advice)
    return warning(check, text, advice) if apart >= _FAR else fine(check, text)
