"""Runs scripts of the SDK's users, each in a process of its own, forked from this one after it has imported the SDK.

To import it takes seconds of processor time, longer than most scripts do.

Runs inside the SDK's own environment:  .venv-feast/bin/python forks.py
A line of the input is a JSON object: `script` with its `arguments`, the folder `cwd`, environment `variables`, and the
files for its `output` and `errors`. The answer is a line with its exit code.
"""

import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

import feast.cli.cli  # noqa: F401 - what the scripts would import


def become(asked: dict[str, Any]) -> None:
    """Be the script, in this process."""
    for name, descriptor in (("output", 1), ("errors", 2)):
        os.dup2(os.open(asked[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(asked["cwd"])
    os.environ.update(asked["variables"])
    sys.argv = [asked["script"], *asked["arguments"]]
    sys.path[0] = str(Path(asked["script"]).parent)
    runpy.run_path(asked["script"], run_name="__main__")


if __name__ == "__main__":
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            become(json.loads(line))
            break
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
