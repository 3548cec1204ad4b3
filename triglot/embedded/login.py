"""The address and password of an embedded server, kept as a URL in a file that only we may read."""

import os
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Login:
    """`password` holds URL-safe characters only: no URL, SQL or configuration file quotes it."""

    password: str
    port: int = 0

    @classmethod
    def new(cls) -> "Login":
        return cls(secrets.token_urlsafe(24))

    @classmethod
    def read(cls, path: Path) -> "Login | None":
        """What `write` wrote; None if the file is absent or is no URL with a password."""
        try:
            url = urlsplit(path.read_text().strip())
            return cls(url.password, url.port or 0) if url.password else None
        except (FileNotFoundError, ValueError):
            return None


def write(path: Path, url: str) -> None:
    """Replaces the file as a whole, mode 0600."""
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(url + "\n")
        file.flush()
        os.fsync(fd)
    draft.replace(path)


def free_port(preferred: int) -> int:
    """The preferred port if it is free, or else any free one. Another process may take it before
    the server does, so be ready to ask again."""
    return preferred if preferred and is_free(preferred) else _any_port()


def is_free(port: int) -> bool:
    """Whether a server could listen on the port of 127.0.0.1 now."""
    with socket.socket() as probe:
        # As both servers do: connections of the last run may linger in TIME_WAIT.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def _any_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
