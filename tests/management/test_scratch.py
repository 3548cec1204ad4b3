"""Folders of tasks go with them; those of killed workers go later, those of living ones never."""

from __future__ import annotations

import os
import time
from pathlib import Path

from services.management import scratch

HOUR = 3_600


def aged(path: Path) -> Path:
    """The folder, as if it had been made an hour ago."""
    then = time.time() - HOUR
    os.utime(path, (then, then))
    return path


def test_folders_of_tasks(tmp_path: Path) -> None:
    def left_behind(name: str) -> Path:
        """What a killed worker leaves."""
        made = tmp_path / f"triglot-task-{name}"
        (made / "files").mkdir(parents=True)
        (made / "owner.lock").touch()
        return made

    old, young = aged(left_behind("old")), left_behind("young")
    # Not ours by its name, and not ours by what is in it.
    theirs, odd = tmp_path / "somebody", tmp_path / "triglot-task-odd"
    for folder in (theirs, odd):
        folder.mkdir()
        aged(folder)
    with scratch.folder(tmp_path) as first:
        (first / "x").write_text("x")
        assert not old.exists()
        aged(first.parent)
        with scratch.folder(tmp_path) as second:
            # The first one is old by now, and its owner lives.
            assert (first / "x").exists()
            assert second != first
    assert sorted(tmp_path.iterdir()) == sorted([young, theirs, odd])
