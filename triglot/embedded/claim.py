"""Who may run a server on a data folder: one stack at a time. Knows one lock file per server.

The lock is a flock whose descriptor the server inherits, together with every process that it
forks. So the lock is free exactly when the stack *and* all its server's processes are gone, which
no process id in a file can promise: ids are reused, zombies keep theirs, and a PostgreSQL backend
may outlive its killed postmaster. The kernel keeps it and nothing can leave it behind stale.
"""

import contextlib
import fcntl
import os
import signal
import time
from pathlib import Path

from triglot.embedded import process
from triglot.embedded.errors import EmbeddedServerError

POLL_SECONDS = 0.05
LEFTOVER_SECONDS = 10.0


class Claim:
    """A lock file held by us. `fd` is to be inherited by the server."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def take(cls, path: Path, stop_signal: signal.Signals) -> "Claim":
        """Takes the lock. Raises EmbeddedServerError at once if a living stack holds it.

        If only what a dead stack left behind holds it, those processes get `stop_signal` (most
        likely they are ending already) and up to 10 s to go; raises if they do not.
        """
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _lock(fd, path, stop_signal)
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        except BaseException:
            os.close(fd)
            raise
        return cls(fd)

    def release(self) -> None:
        """Lets go of the lock; what is left of the server keeps it until it has ended too."""
        # Not LOCK_UN: that would take the lock away from every process that inherited it.
        os.close(self.fd)


def _lock(fd: int, path: Path, stop_signal: signal.Signals) -> None:
    deadline = time.monotonic() + LEFTOVER_SECONDS
    seen: set[int] = set()
    asked_to_stop = {os.getpid()}
    while not _try_lock(fd):
        stack = _read_stack(fd)
        if stack and process.holds_lock(stack, path) is not False:
            raise EmbeddedServerError(
                f"{path.parent} is in use by process {stack}: stop that one first, or choose another data folder"
            )
        leftovers = set(process.lock_holders(path))
        # Seen twice: another stack may have got the lock just now and not have said so yet.
        for pid in (leftovers & seen) - asked_to_stop:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, stop_signal)
            asked_to_stop.add(pid)
        seen = leftovers
        if time.monotonic() > deadline:
            # Root in a container may not look into the processes of nobody: then none is known.
            known = f"process {', '.join(map(str, leftovers))}" if leftovers else "see `ps`"
            raise EmbeddedServerError(
                f"{path.parent} is still in use by a server that a killed run left behind ({known}): end it first"
            )
        time.sleep(POLL_SECONDS)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_stack(fd: int) -> int:
    """The process that took the lock last; 0 if it has not said so yet."""
    text = os.pread(fd, 100, 0).strip()
    return int(text) if text.isdigit() else 0
