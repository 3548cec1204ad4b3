"""What keeps a process from starting is one line on standard error that names the setting, and never a secret."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.conftest import Servers
from tests.patience import PATIENCE_SECONDS
from tests.stack.conftest import FREE_PORTS, ROOT

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]
SECRET = "hunter2"
PROCESSES = {
    "registry": ("services.registry",),
    "serving": ("services.serving",),
    "management": ("services.management",),
    "worker": ("services.management.worker",),
    "gateway": ("gateway",),
    "serve": ("triglot.cli", "serve", "registry"),
    "migrate": ("triglot.cli", "migrate"),
    "keys": ("triglot.cli", "keys", "list"),
    "up": ("triglot.cli", "up", "--no-sample", *FREE_PORTS),
}
# Those that open the database, each its own way.
ON_POSTGRES = ("serving", "worker", "migrate", "keys", "up")


def start(name: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    data_dir = [f"--data-dir={folder}"] if name in {"migrate", "keys", "up"} else []
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TRIGLOT_")}
    common = {"TRIGLOT_HOST": "127.0.0.1", "TRIGLOT_METRICS_PORT": "0", "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        [sys.executable, "-m", *PROCESSES[name], *data_dir],
        cwd=ROOT, env=clean | common | environment,
        capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False,
    )  # fmt: skip


def assert_refused(done: subprocess.CompletedProcess[str], code: int, *parts: str) -> None:
    """One line, with these parts, and no secret."""
    assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
    assert done.stderr.startswith("triglot: ")
    assert not [part for part in parts if part not in done.stderr], done.stderr
    assert SECRET not in done.stderr + done.stdout


@pytest.mark.parametrize("process", PROCESSES)
def test_a_wrong_setting(process: str, tmp_path: Path) -> None:
    assert_refused(
        start(process, tmp_path, TRIGLOT_POSTGRES_POOL_SIZE=SECRET), 2, "TRIGLOT_POSTGRES_POOL_SIZE", "integer"
    )


@pytest.mark.parametrize(
    ("process", "variable", "value", "says"),
    [
        ("gateway", "TRIGLOT_GATEWAY_PORTS", SECRET, "JSON"),
        ("gateway", "TRIGLOT_GATEWAY_PORTS", '["hunter2"]', "integer"),
        ("gateway", "TRIGLOT_LOG_LEVEL", SECRET, "'debug'"),
        ("registry", "TRIGLOT_REGISTRY_MAX_PAGE", "0", "greater"),
        ("worker", "TRIGLOT_MANAGEMENT_OFFLINE_ROOTS", "/hunter2", "JSON"),
        ("management", "TRIGLOT_SECRET_KEY", SECRET, "32 bytes"),
        ("management", "TRIGLOT_SECRET_KEY", base64.b64encode(SECRET.encode()).decode(), "32 bytes"),
        ("up", "TRIGLOT_SECRET_KEY", SECRET, "32 bytes"),
        ("registry", "TRIGLOT_POSTGRES_URL", "", "not set"),
        ("serving", "TRIGLOT_REDIS_URL", "", "not set"),
        *((process, "TRIGLOT_POSTGRES_URL", f"mysql://u:{SECRET}@127.0.0.1/db", "URL") for process in ON_POSTGRES),
        ("registry", "TRIGLOT_POSTGRES_URL", f"postgresql://u:p@127.0.0.1:{SECRET}/db", "URL"),
        ("serving", "TRIGLOT_REDIS_URL", f"http://:{SECRET}@127.0.0.1", "URL"),
        ("serving", "TRIGLOT_REDIS_URL", f"redis://:p@127.0.0.1:{SECRET}/0", "URL"),
    ],
)  # fmt: skip
def test_a_setting_of_its_own(
    *, process: str, variable: str, value: str, says: str, tmp_path: Path, database_url: str, servers: Servers
) -> None:
    good = {"TRIGLOT_POSTGRES_URL": database_url, "TRIGLOT_REDIS_URL": servers.redis_url}
    assert_refused(start(process, tmp_path, **good | {variable: value}), 2, variable, says)


@pytest.mark.parametrize("process", ON_POSTGRES)
@pytest.mark.parametrize(
    ("part", "instead", "says"), [("password", SECRET, "password"), ("path", f"/no_{SECRET}", "database")]
)
def test_postgresql_lets_nobody_in(
    *, process: str, part: str, instead: str, says: str, tmp_path: Path, database_url: str, servers: Servers
) -> None:
    right = urlsplit(database_url)
    password = instead if part == "password" else right.password
    path = instead if part == "path" else right.path
    url = f"postgresql://{right.username}:{password}@{right.hostname}:{right.port}{path}"
    done = start(process, tmp_path, TRIGLOT_POSTGRES_URL=url, TRIGLOT_REDIS_URL=servers.redis_url)
    assert_refused(done, 1, "TRIGLOT_POSTGRES_URL", says)


def test_redis_lets_nobody_in(tmp_path: Path, database_url: str, servers: Servers) -> None:
    url = urlsplit(servers.redis_url)
    wrong = f"redis://:{SECRET}@{url.hostname}:{url.port}/0"
    done = start("serving", tmp_path, TRIGLOT_POSTGRES_URL=database_url, TRIGLOT_REDIS_URL=wrong)
    assert_refused(done, 1, "TRIGLOT_REDIS_URL", "password")


def test_several_wrong_settings_are_still_one_line(tmp_path: Path) -> None:
    done = start("gateway", tmp_path, TRIGLOT_AUTH="maybe", TRIGLOT_DRAIN_SECONDS="-1")
    assert_refused(done, 2, "TRIGLOT_AUTH", "TRIGLOT_DRAIN_SECONDS")
