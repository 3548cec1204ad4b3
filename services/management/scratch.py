"""Folders for what is needed while a task runs. Blocks: its calls are short, but for the removal of much."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PREFIX = "triglot-task-"
_LOCK = "owner.lock"
# Younger ones may not be locked yet.
_OLD_SECONDS = 600.0


@contextmanager
def folder(parent: Path | None) -> Iterator[Path]:
    """A new folder that goes with the block, below `parent` or the system's temporary folder.

    Folders whose processes were killed are removed first: while a process lives it holds a lock in each of its own.
    """
    place = parent or Path(tempfile.gettempdir())
    for other in place.glob(f"{_PREFIX}*"):
        _remove_if_orphaned(other)
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=place) as made, (Path(made) / _LOCK).open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        inner = Path(made) / "files"
        inner.mkdir()
        yield inner


def _remove_if_orphaned(other: Path) -> None:
    try:
        if time.time() - other.stat().st_mtime < _OLD_SECONDS:
            return
        with (other / _LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(other, ignore_errors=True)
    except OSError:
        # Somebody's, or just removed by somebody else, or not ours to remove.
        return
