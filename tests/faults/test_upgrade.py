"""A new version takes the place of a recorded earlier one, as docs/deploy.md says, under load."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.deploy.deployment import ROLES, running
from tests.faults.load import Load
from tests.patience import PATIENCE_SECONDS

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
# The commit of the last release; until there is one, of an earlier day. Its history must be here.
PREVIOUS = ROOT / "tests/deploy/PREVIOUS"


def test_the_version_before_serves_until_the_new_one_does(tmp_path: Path, tell: Callable[[str], None]) -> None:
    commit = PREVIOUS.read_text().strip()
    source = tmp_path / "previous"
    source.mkdir()
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", source], input=archive, check=True)
    with running(tmp_path / "deployment", source=source) as deployment:
        pods = deployment.pods
        with Load(deployment) as load:
            load.goes_on()
            since = time.monotonic()
            pods.source = None
            # The old pods meet the new schemas first.
            assert pods.start("Job", "migrate", "migrate").wait(PATIENCE_SECONDS) == 0, pods.log("migrate-migrate")
            load.goes_on()
            for role in ROLES:
                pods.roll(role)
                # Both versions' pods of the other roles call it, and are called by it.
                load.goes_on()
            assert not load.lost()
            tell(load.report(f"upgrade from {commit[:7]}, migrations first, then each Deployment", since))
        assert not load.wrong
        assert not load.failed
