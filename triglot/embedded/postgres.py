"""The embedded PostgreSQL: one cluster, one role, one database, all named triglot.

The role `triglot` owns the database and may create databases and the extensions that PostgreSQL
trusts (pg_trgm among them). It is no superuser, so that code which works here also works on a
managed PostgreSQL. The superuser `postgres` has no password and therefore cannot log in; it is
used without a server, in single-user mode.
"""

import os
import signal
import socket
import struct
from collections.abc import Mapping
from pathlib import Path

from triglot.embedded import placement, process
from triglot.embedded.binaries import find_postgres
from triglot.embedded.claim import Claim
from triglot.embedded.errors import EmbeddedServerError
from triglot.embedded.login import HOST, Login
from triglot.embedded.placement import Placement
from triglot.embedded.process import Command, Log
from triglot.embedded.server import EmbeddedServer

NAME = "triglot"
BUILTIN_LOCALES_SINCE = 17
PROTOCOL = 3 << 16

# Sized for a laptop. Durability stays as PostgreSQL has it: synchronous_commit on, fsync on.
SETTINGS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "shared_buffers": "128MB",
    "max_connections": "200",
    "jit": "off",  # compiling costs more than our short queries take
    "timezone": "UTC",
    "log_destination": "stderr",
    "logging_collector": "off",
}


class EmbeddedPostgres(EmbeddedServer):
    """PostgreSQL 15 or newer; the cluster of major version 18 lies in `<data_dir>/pg18`.

    The URL is `postgresql://triglot:<password>@127.0.0.1:<port>/triglot`, scram-sha-256. As root,
    the server runs as `nobody` and `pg18` is a link (see `placement`).
    """

    name = "postgres"
    # Fast shutdown, then immediate shutdown, which unlike SIGKILL lets it end its own children.
    stop_steps = ((signal.SIGINT, 2.2), (signal.SIGQUIT, 0.6))

    _placement: Placement

    def __init__(self, data_dir: Path, *, start_seconds: float = 60, settings: Mapping[str, str] | None = None) -> None:
        """`settings` stand above ours, for servers whose data nobody keeps."""
        super().__init__(data_dir, start_seconds=start_seconds)
        self._settings = {**SETTINGS, **(settings or {})}

    def _prepare(self, password: str, is_new: bool, log: Log, claim: Claim) -> None:
        binaries = find_postgres()
        self._placement = placement.place(self.data_dir, binaries)
        if not self._placement.exists:
            self._placement.make_draft()
            self._initdb(binaries.major, log, claim)
            self._administer(
                self._placement.draft,
                f"CREATE ROLE {NAME} LOGIN CREATEDB PASSWORD '{password}';\nCREATE DATABASE {NAME} OWNER {NAME};\n",
                log,
                claim,
            )
            self._placement.complete()
            return
        clear_stale_pid_file(self._placement.cluster)
        if is_new:  # the file with the password was lost
            change = f"ALTER ROLE {NAME} PASSWORD '{password}';\n"
            self._administer(self._placement.cluster, change, log, claim)

    def _initdb(self, major: int, log: Log, claim: Claim) -> None:
        # The same on a machine whose own locale is POSIX or not installed.
        locale = ["--locale=C.UTF-8", "--encoding=UTF8"]
        if major >= BUILTIN_LOCALES_SINCE:
            locale.append("--locale-provider=builtin")
        # Nobody may log in by initdb's own rules; --auth=scram would demand a superuser password.
        rules = ["--username=postgres", "--auth=reject"]
        self._run(["initdb", "-D", self._placement.draft, *locale, *rules], "", log, claim)
        # Not through a link: as root we write into a folder of another user's.
        fd = os.open(self._placement.draft / "pg_hba.conf", os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW)
        with os.fdopen(fd, "w") as file:
            file.write(f"host all {NAME} {HOST}/32 scram-sha-256\n")

    def _administer(self, cluster: Path, sql: str, log: Log, claim: Claim) -> None:
        """Runs SQL as superuser, one statement a line, while no server runs on the cluster."""
        strict = ["-c", "exit_on_error=on", "-c", "log_min_error_statement=panic"]
        self._run(["postgres", "--single", "-D", cluster, *strict, "postgres"], sql, log, claim)

    def _run(self, argv: list[str | Path], text: str, log: Log, claim: Claim) -> None:
        where = self._placement
        command = Command([where.programs / argv[0], *argv[1:]], Path("/"), where.account)
        if command.run(log, claim.fd, text) != 0:
            raise EmbeddedServerError(f"{argv[0]} failed. The end of {log.path}:\n{log.tail()}")

    def _command(self, login: Login) -> Command:
        where = self._placement
        settings = self._settings | {"port": str(login.port)}
        options = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        return Command(
            [where.programs / "postgres", "-D", where.cluster, *options],
            cwd=where.cluster,
            account=where.account,
            death_signal=signal.SIGINT,
        )

    def _answers(self, pid: int, login: Login) -> bool:
        # The pid file is the server's own word that it is this one and is ready (line 8); the
        # connection shows that the word is true.
        try:
            lines = (self._placement.cluster / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        ready = len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"
        return ready and _asks_for_password(login.port)

    def _url(self, login: Login) -> str:
        return f"postgresql://{NAME}:{login.password}@{HOST}:{login.port}/{NAME}"

    def _delete(self) -> None:
        for cluster in self.data_dir.glob("pg*"):
            clear_stale_pid_file(cluster.resolve())
        placement.delete(self.data_dir)


def clear_stale_pid_file(cluster: Path) -> None:
    """Deletes the postmaster.pid of a server that is gone. Raises EmbeddedServerError if it runs.

    PostgreSQL itself refuses to start if any process has the id in the file, also a zombie (nobody
    reaps those in many containers) or a stranger that got the id later. We look closer. Backends
    that outlived a killed server cannot be met here: they would hold the claim.
    """
    file = cluster / "postmaster.pid"
    try:
        first = file.read_text().partition("\n")[0].strip()
    except FileNotFoundError:
        return
    pid = abs(int(first)) if first.lstrip("-").isdigit() else 0
    if pid and not Path("/proc/self").exists():
        return  # nothing to look closer with: let PostgreSQL decide
    if pid and process.works_in(pid, "postgres", cluster):
        raise EmbeddedServerError(f"a PostgreSQL (process {pid}) runs on {cluster}: stop it first")
    file.unlink()


def _asks_for_password(port: int) -> bool:
    """Whether a PostgreSQL at the port answers our startup message with its request to log in."""
    body = f"user\0{NAME}\0database\0{NAME}\0\0".encode()
    try:
        with socket.create_connection((HOST, port), timeout=1) as connection:
            connection.sendall(struct.pack("!ii", len(body) + 8, PROTOCOL) + body)
            # All of it: closing with bytes unread is a reset, which the server logs.
            return connection.recv(1024)[:1] == b"R"
    except OSError:
        return False
