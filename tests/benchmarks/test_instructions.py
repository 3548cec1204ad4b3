"""Instructions are counted, and a machine that cannot count them says what it lacks."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest

from tests.stack.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_request_takes_some() -> None:
    command = [sys.executable, "-m", "benchmarks.instructions", "--seconds=2", "--shapes", "1 x 10"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if shutil.which("valgrind") is None:
        assert (done.returncode, done.stderr) == (1, "valgrind is missing: apt-get install valgrind\n")
        return
    assert done.returncode == 0, done.stderr
    [counts] = re.findall(r"^1 x 10 +([0-9,]+) +([0-9,]+) +[0-9.]+$", done.stdout, re.MULTILINE)
    assert all(int(count.replace(",", "")) > 10 for count in counts)
