"""`triglot doctor`: looks at what a deployment stands on, and says what to do about what is wrong.

What is looked at is what the settings name: in a pod that pod's own dependencies, on a laptop all of `triglot up`. No
finding shows a secret: errors of drivers are told by their kind.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version as package_version
from pathlib import Path

import typer
from pydantic import SecretStr

from chassis import errors
from chassis.settings import Settings
from triglot import keyring
from triglot.checkup import certificates, postgres, redis, services
from triglot.checkup.finding import Finding, fine, warning, wrong
from triglot.deployment import SERVICES, CallerSettings, Target, targets
from triglot.terminal import DEFAULT_DATA_DIR, AsJson, DataDir, console, print_json

_NEEDED_BYTES, _WANTED_BYTES = 1 << 30, 5 << 30
_MARKS = {"ok": ("ok", "green"), "warning": ("warn", "yellow"), "error": ("FAIL", "red")}


def doctor(data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False) -> None:
    """Check a deployment, and say what to do about what is wrong. Exit code 1 if something is.

    Looks at what the environment names: PostgreSQL, Redis, certificates, and the services whose targets are set. If
    none is, it looks at what `triglot up` keeps and runs on the data folder.

    Examples: `triglot doctor` - `triglot doctor --json` - `kubectl exec deploy/management -- triglot doctor`
    """
    found = asyncio.run(findings(data_dir))
    if as_json:
        print_json([asdict(each) for each in found])
    else:
        _show(found)
    if any(each.status == "error" for each in found):
        raise typer.Exit(1)


def _show(found: Sequence[Finding]) -> None:
    width = max(len(each.check) for each in found)
    for each in found:
        mark, style = _MARKS[each.status]
        console.print(f"{mark:<5}", style=style, end="", markup=False)
        console.print(f"{each.check:<{width}}  {each.text}", markup=False, soft_wrap=True)
        if each.advice:
            console.print(f"     {'':<{width}}  -> {each.advice}", style="bold", markup=False, soft_wrap=True)


@dataclass(frozen=True)
class Subject:
    """What is to be looked at."""

    settings: Settings
    targets: Sequence[Target]
    data_dir: Path | None = None  # of `triglot up`, if that is what is looked at

    @property
    def is_empty(self) -> bool:
        urls = (self.settings.postgres_url, self.settings.redis_url)
        return not (self.targets or self.data_dir or any(url.get_secret_value() for url in urls))


async def findings(data_dir: Path) -> list[Finding]:
    """All there is to say, in order."""
    try:
        subject = _subject(data_dir)
    except errors.CannotStart as error:
        return [wrong("settings", str(error), "correct it: docs/configuration.md describes every variable")]
    if subject.is_empty:
        text = f"nothing is set in the environment, and nothing is kept in {data_dir}"
        return [wrong("settings", text, "set TRIGLOT_... as the deployment's processes have it, or run `triglot up`")]
    found = [fine("Triglot", package_version("triglot"))]
    found += _secret_key(subject)
    found += certificates.examine_files(subject.settings)
    if subject.data_dir is not None:
        found += _folder(subject.data_dir)
    service_key = subject.settings.service_api_key.get_secret_value()
    parts = [postgres.examine(subject.settings), redis.examine(subject.settings)]
    parts += [services.examine(target, service_key) for target in subject.targets]
    for part in await asyncio.gather(*map(_gathered, parts)):
        found += part
    return found


async def _gathered(part: AsyncIterator[Finding]) -> list[Finding]:
    return [each async for each in part]


def _subject(data_dir: Path) -> Subject:
    """What the environment names; what it does not, as `triglot up` keeps it in the folder. Raises WrongSetting."""
    settings = Settings()
    named = [service for service in SERVICES if f"{service}_target" in settings.model_fields_set]
    if named or not data_dir.is_dir():
        key = CallerSettings().api_key.get_secret_value()
        return Subject(settings, [Target(each, getattr(settings, f"{each}_target"), settings, key) for each in named])
    keys = keyring.read(data_dir)
    kept = {name: getattr(keys, name) for name in ("secret_key", "service_api_key")}
    kept |= {f"{path.stem}_url": path.read_text().strip() for path in data_dir.glob("*.url")}
    missing = {name: SecretStr(each) for name, each in kept.items() if not getattr(settings, name).get_secret_value()}
    try:
        called = targets(data_dir)
    except errors.CannotStart:
        called = []
    return Subject(settings.model_copy(update=missing), called, data_dir)


def _secret_key(subject: Subject) -> Iterator[Finding]:
    """Processes with a database need it; the gateway has none."""
    if not subject.settings.postgres_url.get_secret_value():
        return
    if subject.settings.secret_key.get_secret_value():
        yield fine("TRIGLOT_SECRET_KEY", "is set")
    else:
        text = "is not set: access keys and passwords of datasources can be neither stored nor read"
        yield warning("TRIGLOT_SECRET_KEY", text, "set 32 random bytes in base64: openssl rand -base64 32")


def _folder(data_dir: Path) -> Iterator[Finding]:
    """The folder that embedded servers keep their data in."""
    check = f"data folder {data_dir}"
    if data_dir.stat().st_uid != os.geteuid():
        advice = "run as the user who made it, or choose another one with --data-dir"
        yield wrong(check, "belongs to another user", advice)
    open_files = [path.name for path in _secret_files(data_dir) if path.stat().st_mode & 0o077]
    if open_files:
        advice = f"chmod 600 {' '.join(str(data_dir / name) for name in open_files)}"
        yield wrong(check, f"others can read {', '.join(open_files)}", advice)
    free = shutil.disk_usage(data_dir).free
    text = f"{free / 2**30:.1f} GB are free"
    advice = "make room on its disk, or move the folder to a larger one while nothing runs on it"
    if free < _NEEDED_BYTES:
        yield wrong(check, text, advice)
    else:
        yield warning(check, text, advice) if free < _WANTED_BYTES else fine(check, text)
    if not (data_dir / "endpoints.json").exists():
        yield wrong(check, "nothing runs on it", "start it with `triglot up`")


def _secret_files(data_dir: Path) -> list[Path]:
    names = ("keys.json", "endpoints.json", "postgres.url", "redis.url")
    return [data_dir / name for name in names if (data_dir / name).exists()]
