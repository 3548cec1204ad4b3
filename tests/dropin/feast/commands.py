"""Runs commands of the real `feast` CLI one after the other and prints what each said as one JSON array.

Runs inside the SDK's own environment, in a folder with a feature_store.yaml:
.venv-feast/bin/python commands.py COMMANDS, a JSON array of arrays of arguments. One process for all, because to import
the SDK takes longer than most commands.
"""

import json
import sys
from typing import Any

from click.testing import CliRunner
from feast.cli.cli import cli


def run(arguments: list[str]) -> dict[str, Any]:
    done = CliRunner().invoke(cli, arguments)
    raised = done.exception if not isinstance(done.exception, SystemExit) else None
    return {"code": done.exit_code, "output": done.output, "raised": type(raised).__name__ if raised else ""}


if __name__ == "__main__":
    seen = [run(arguments) for arguments in json.loads(sys.argv[1])]
    print("\n" + json.dumps(seen))
