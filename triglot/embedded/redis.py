"""The embedded Redis: append-only file, one password, loopback only.

It may run as root: unlike PostgreSQL it has no objection, and needs no folder outside.
"""

import os
import shutil
import signal
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from triglot.embedded.binaries import RedisBinary, find_redis
from triglot.embedded.claim import Claim
from triglot.embedded.errors import EmbeddedServerError
from triglot.embedded.login import HOST, Login
from triglot.embedded.process import Command, Log
from triglot.embedded.server import EmbeddedServer

# What everysec promises: a power cut or a kill -9 loses the last second or two of writes, always a
# tail, never something in between. A killed server loses nothing while the disk keeps up; while a
# flush to a slow disk is under way, Redis answers before the write is in the file (seen with
# flushes of 1.5 s).
CONFIGURATION = """\
# Written at every start; changes are lost.
bind {host}
port {port}
requirepass {password}
protected-mode yes
daemonize no
appendonly yes
appendfsync everysec
save ""
"""


class EmbeddedRedis(EmbeddedServer):
    """Redis 6.2 or newer, or Valkey; the data lies in `<data_dir>/redis`.

    The URL is `redis://:<password>@127.0.0.1:<port>/0`.
    """

    name = "redis"
    stop_steps = ((signal.SIGTERM, 2.8),)

    _binary: RedisBinary

    def _prepare(self, password: str, is_new: bool, log: Log, claim: Claim) -> None:
        self._binary = find_redis()
        self._folder.mkdir(mode=0o700, exist_ok=True)
        # Redis 7 moved the append-only file; an older server would not see it and start empty.
        if self._binary.version < (7, 0) and (self._folder / "appendonlydir").exists():
            raise EmbeddedServerError(
                f"{self._folder} was written by Redis 7 or newer and {self._binary.path} is "
                "older: set EMBEDDED_REDIS_BIN to a newer one, or choose another data folder"
            )

    def _command(self, login: Login) -> Command:
        # A file, not arguments: those are for everybody to see.
        file = self._folder / "redis.conf"
        file.unlink(missing_ok=True)
        fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "w") as stream:
            stream.write(CONFIGURATION.format(host=HOST, port=login.port, password=login.password))
        # The data goes to the working folder, which spares quoting its path in the file.
        return Command([self._binary.path, file.name], cwd=self._folder, death_signal=signal.SIGTERM)

    def _answers(self, pid: int, login: Login) -> bool:
        client = redis.Redis(
            host=HOST,
            port=login.port,
            password=login.password,
            socket_timeout=1,
            retry=Retry(NoBackoff(), 0),
        )
        try:
            client.ping()
            return bool(client.info("server")["process_id"] == pid)
        except redis.RedisError:
            return False  # not yet there, still loading, or not ours
        finally:
            client.close()

    def _url(self, login: Login) -> str:
        return f"redis://:{login.password}@{HOST}:{login.port}/0"

    def _delete(self) -> None:
        if self._folder.exists():
            shutil.rmtree(self._folder)

    @property
    def _folder(self) -> Path:
        return self.data_dir / "redis"
