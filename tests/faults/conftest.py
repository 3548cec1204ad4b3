"""One deployment for all faults: the production manifests, two replicas of each, whole again before each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.deploy.deployment import ROLES, Deployment, running

_REPORT = "load"


@pytest.fixture(scope="session")
def _deployment_of_the_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with running(tmp_path_factory.mktemp("faults")) as deployment:
        yield deployment


@pytest.fixture
def deployment(_deployment_of_the_run: Deployment) -> Deployment:
    """Everything is ready, whatever the test before did to it."""
    _deployment_of_the_run.redis.mend(keep_rows=True)
    _deployment_of_the_run.pods.ready(*ROLES)
    return _deployment_of_the_run


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Prints a line, now and at the end of the run."""

    def told(line: str) -> None:
        print(line)
        record_property(_REPORT, line)

    return told


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """All that was counted, in one place."""
    reports = [each for outcome in ("passed", "failed") for each in terminalreporter.stats.get(outcome, ())]
    lines = [value for each in reports for name, value in each.user_properties if name == _REPORT]
    if lines:
        terminalreporter.section("under load")
        for line in lines:
            terminalreporter.write_line(line)
