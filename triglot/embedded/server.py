"""The life of an embedded server, whichever it is: claim, prepare, start, wait, stop.

Both servers listen on TCP at 127.0.0.1 and nowhere else. A unix socket would be about 10 % faster
per round trip (measured with asyncpg and redis-py), but its path is limited to 107 bytes, so it
could not lie in the data folder; a folder for it elsewhere would stay behind after a kill -9 and
would have to be shared between two users when we run as root. A TCP URL is also understood alike
by every client, including those that only know host and port.
"""

import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from triglot.embedded import login as logins
from triglot.embedded.claim import Claim
from triglot.embedded.errors import EmbeddedServerError
from triglot.embedded.login import Login
from triglot.embedded.process import Child, Command, Log

POLL_SECONDS = 0.01
PORT_ATTEMPTS = 3


class EmbeddedServer(ABC):
    """A server that runs as our child, on data below `data_dir`, until we stop it or die.

    `data_dir` is created with mode 0700 if absent. It also gets `logs/<name>.log`, `<name>.lock`,
    and `<name>.url`, the URL with the password (mode 0600) for other processes of the same user.
    Password and port stay the same over restarts (the port if it is free).
    """

    name: ClassVar[str]
    # What to send and how many seconds to wait after each; SIGKILL follows. Below 3 s in all.
    stop_steps: ClassVar[Sequence[tuple[signal.Signals, float]]]

    def __init__(self, data_dir: Path, *, start_seconds: float = 60) -> None:
        """`start_seconds` bounds the wait for an answer, recovery after a crash included."""
        self.data_dir = data_dir.resolve()
        self.start_seconds = start_seconds
        self._claim: Claim | None = None
        self._child: Child | None = None

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.running

    @property
    def exit_status(self) -> int | None:
        """How the server ended, if it was not we who stopped it; None while it runs."""
        return self._child.exit_status if self._child else None

    @property
    def pid(self) -> int | None:
        """The server's process id; None while it does not run."""
        return self._child.pid if self._child and self._child.running else None

    @property
    def url(self) -> str:
        """The URL with the password, valid while the server runs. Raises EmbeddedServerError if
        it was never started on this data folder."""
        if (login := Login.read(self._url_file)) is None:
            raise EmbeddedServerError(f"{self.name} was never started on {self.data_dir}")
        return self._url(login)

    def start(self) -> str:
        """Starts the server and returns its URL once it answers. Does nothing if it runs.

        Raises EmbeddedServerError: if another stack uses the data folder (at once, touching
        nothing); if there is no usable program; if the server does not answer in time, with the
        last lines of its log. Nothing runs after an error. Main thread only (RuntimeError).
        """
        if self.running:
            return self.url
        self.stop()
        try:
            self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._claim = Claim.take(self._lock_file, self.stop_steps[0][0])
            log = Log(self.data_dir / "logs" / f"{self.name}.log")
            return self._start(log, self._claim)
        except (OSError, subprocess.SubprocessError) as error:
            self.stop()
            raise EmbeddedServerError(f"{self.name} cannot start: {error}") from error
        except BaseException:  # Ctrl-C included
            self.stop()
            raise

    def stop(self) -> None:
        """Stops the server: politely, and by SIGKILL if it is not gone within 3 s. Idempotent."""
        if self._child is not None:
            self._child.stop(self.stop_steps)
            self._child = None
        if self._claim is not None:
            self._claim.release()
            self._claim = None

    def destroy(self) -> None:
        """Stops the server and deletes its data, wherever it lies, and its password.

        Raises EmbeddedServerError if another stack uses the data folder. Idempotent.
        """
        self.stop()
        if not self.data_dir.exists():
            return
        claim = Claim.take(self._lock_file, self.stop_steps[0][0])
        try:
            self._delete()
            self._url_file.unlink(missing_ok=True)
        finally:
            claim.release()

    @abstractmethod
    def _prepare(self, password: str, is_new: bool, log: Log, claim: Claim) -> None:
        """Makes the data ready to be served with this password. `is_new`: data that exists may
        have another password. Nothing else runs on the data."""

    @abstractmethod
    def _command(self, login: Login) -> Command:
        """The command that serves the data at this port until it gets the stop signal."""

    @abstractmethod
    def _answers(self, pid: int, login: Login) -> bool:
        """Whether that very process, not another at this port, now takes connections."""

    @abstractmethod
    def _url(self, login: Login) -> str: ...

    @abstractmethod
    def _delete(self) -> None:
        """Deletes the data if there is any."""

    @property
    def _url_file(self) -> Path:
        return self.data_dir / f"{self.name}.url"

    @property
    def _lock_file(self) -> Path:
        return self.data_dir / f"{self.name}.lock"

    def _start(self, log: Log, claim: Claim) -> str:
        known = Login.read(self._url_file)
        login = known or Login.new()
        self._prepare(login.password, known is None, log, claim)
        for _ in range(PORT_ATTEMPTS):
            login = Login(login.password, logins.free_port(login.port))
            logins.write(self._url_file, self._url(login))
            self._child = self._command(login).spawn(log, claim.fd)
            if self._wait(self._child, login):
                return self._url(login)
            timed_out = self._child.running
            self._child.stop(self.stop_steps)
            if timed_out or logins.is_free(login.port):
                break  # it was not about the port
        problem = f"did not answer within {self.start_seconds:g} s" if timed_out else "ended"
        raise EmbeddedServerError(f"{self.name} {problem} while starting. The end of {log.path}:\n{log.tail()}")

    def _wait(self, child: Child, login: Login) -> bool:
        deadline = time.monotonic() + self.start_seconds
        while child.running and time.monotonic() < deadline:
            if self._answers(child.pid, login):
                return True
            time.sleep(POLL_SECONDS)
        return False
