"""The lists by which tests are chosen."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import LONG


def test_what_takes_long_is_there() -> None:
    here = Path(__file__).parent
    named = [f"{folder}/{name}.py" for folder, names in LONG.items() for name in names]
    assert [each for each in named if not [*here.glob(f"**/{each}")]] == []
