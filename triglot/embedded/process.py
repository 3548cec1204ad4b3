"""Processes of the operating system: start one that dies with us, stop it, recognise one by its id.

Start children from the main thread only. Linux sends the death signal when the *thread* that
created the child ends, so a server started from a pool's thread would die with that thread.
"""

import contextlib
import ctypes
import os
import pwd
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PR_SET_PDEATHSIG = 1
LOG_LIMIT_BYTES = 10 * 1024 * 1024
LOG_TAIL_LINES = 15

# A short list, not our whole environment: that may hold secrets (the server may run as another
# user) and PG* variables (which would change what initdb and postgres do).
PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "TZ")

# Loaded here because nothing may be loaded between fork and exec.
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Account:
    """A user of the operating system to run as."""

    name: str
    uid: int
    gid: int

    @classmethod
    def named(cls, name: str) -> "Account":
        """Raises KeyError if there is no such user."""
        entry = pwd.getpwnam(name)
        return cls(name, entry.pw_uid, entry.pw_gid)


class Log:
    """The output of one server over all its runs, started anew when it has grown large."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > LOG_LIMIT_BYTES:
            path.replace(path.with_name(path.name + ".1"))
        self._begin = path.stat().st_size if path.exists() else 0

    def tail(self) -> str:
        """The last lines written since this object was made."""
        if not self.path.exists():
            return ""
        with self.path.open("rb") as file:
            file.seek(self._begin)
            lines = file.read().decode(errors="replace").splitlines()
        return "\n".join(lines[-LOG_TAIL_LINES:])


@dataclass(frozen=True)
class Command:
    """What to run: arguments, folder, and the account if it is not ours.

    `death_signal` is what the process gets if we die, whatever we die of (Linux only).
    """

    argv: Sequence[str | Path]
    cwd: Path
    account: Account | None = None
    death_signal: signal.Signals = signal.SIGKILL
    environment: Mapping[str, str] = field(default_factory=dict)  # on top of what is passed on

    def spawn(self, log: Log | None, keep_fd: int | None = None, stdin: int = subprocess.DEVNULL) -> "Child":
        """Starts the process in a session of its own, so that Ctrl-C in the terminal reaches us
        alone and we can drain before we stop it. Its output goes to the log, or where ours goes.
        It inherits the descriptor `keep_fd` and no other.
        Raises RuntimeError outside the main thread, OSError if the program cannot be run.
        """
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("embedded servers must be started from the main thread")
        account = self.account
        with log.path.open("ab") if log else contextlib.nullcontext() as output:
            popen = subprocess.Popen(
                self.argv,
                cwd=self.cwd,
                stdin=stdin,
                stdout=output,
                stderr=output,
                env={name: os.environ[name] for name in PASSED_ON if name in os.environ}
                | {"LC_ALL": "C"}
                | dict(self.environment),
                user=account.uid if account else None,
                group=account.gid if account else None,
                extra_groups=[] if account else None,
                umask=0o077,
                start_new_session=True,
                pass_fds=() if keep_fd is None else (keep_fd,),
                preexec_fn=_die_with_parent(self.death_signal),  # noqa: PLW1509 (see there)
            )
        return Child(popen)

    def run(self, log: Log, keep_fd: int, text: str = "", seconds: float = 60) -> int:
        """Runs the command to its end with `text` as its input; its exit status. Raises
        subprocess.TimeoutExpired after `seconds`. It is killed on any way out of here."""
        child = self.spawn(log, keep_fd, stdin=subprocess.PIPE)
        try:
            child.popen.communicate(text.encode(), timeout=seconds)
            return child.popen.returncode
        finally:
            child.stop(())


class Child:
    """A process that we started and must reap."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self.popen = popen
        self.pid = popen.pid

    @property
    def running(self) -> bool:
        return self.exit_status is None

    @property
    def exit_status(self) -> int | None:
        """None while it runs; minus the signal's number if one ended it."""
        return self.popen.poll()

    def stop(self, steps: Sequence[tuple[signal.Signals, float]]) -> None:
        """Sends each signal and waits that many seconds after it, then kills. Reaps. Idempotent."""
        for number, seconds in steps:
            self.popen.send_signal(number)
            try:
                self.popen.wait(seconds)
            except subprocess.TimeoutExpired:
                continue
            return
        self.popen.kill()
        self.popen.wait()


def _die_with_parent(death_signal: signal.Signals) -> Callable[[], None] | None:
    """What a child does between fork and exec so that it outlives us in no case, kill -9 included.

    subprocess calls it after the change of user, which would clear the setting. It only makes two
    system calls, so it is safe although other threads may hold locks at the fork.
    """
    if sys.platform != "linux":
        return None
    parent = os.getpid()

    def arrange() -> None:
        if _libc.prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0) != 0:
            os._exit(126)
        # We may have died before the call above took effect: then no signal will ever come.
        if os.getppid() != parent:
            os._exit(126)

    return arrange


def is_alive(pid: int) -> bool:
    """Whether the process runs. A zombie does not: its parent merely has not reaped it, and in
    containers whose first process reaps nothing, it never will."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    try:
        # The name, in parentheses, may hold anything; the state follows the last of them.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (OSError, IndexError):
        return not Path("/proc/self").exists()  # without /proc the signal's word must do


def holds_lock(pid: int, path: Path) -> bool | None:
    """Whether the process has a flock on the file, taken or inherited; None if that cannot be told.

    To have the file open is not enough: another stack may just be trying to get the lock.
    """
    if not is_alive(pid):
        return False
    wanted = path.stat()
    try:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed since it was listed
                if os.path.samestat(descriptor.stat(), wanted):
                    details = Path(f"/proc/{pid}/fdinfo/{descriptor.name}").read_text()
                    if "FLOCK" in details:
                        return True
    except OSError:
        return None if is_alive(pid) else False
    return False


def lock_holders(path: Path) -> list[int]:
    """The ids of all processes that are known to hold it; those of other users may be hidden."""
    ids = [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]
    return [pid for pid in ids if holds_lock(pid, path)]


def works_in(pid: int, program: str, folder: Path) -> bool:
    """Whether the process is a `program` whose working folder, or an argument, is `folder`.

    Both are asked for because the working folder of another user's process may be hidden from us,
    even from root in a container.
    """
    if not is_alive(pid):
        return False
    entry = Path(f"/proc/{pid}")
    try:
        if (entry / "comm").read_text().strip() != program:
            return False
        if os.fsencode(folder) in (entry / "cmdline").read_bytes().split(b"\0"):
            return True
        return (entry / "cwd").readlink() == folder
    except OSError:
        return False
