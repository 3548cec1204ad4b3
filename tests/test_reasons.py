"""Reasons are a contract: what the code raises is in the .proto file, and nothing there is unused for long."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from chassis import errors
from protos.gen.triglot.errors.v1 import reasons_pb2

ROOT = Path(__file__).resolve().parent.parent


def raised_reasons() -> Iterator[tuple[str, str]]:
    """Every `reason="..."` given to a call, with its place."""
    for folder in ("chassis", "services", "gateway", "triglot"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.keyword) and node.arg == "reason" and isinstance(node.value, ast.Constant):
                    yield str(node.value.value), f"{path.relative_to(ROOT)}:{node.value.lineno}"


def test_every_raised_reason_is_documented() -> None:
    documented = {name.removeprefix("REASON_") for name in reasons_pb2.Reason.DESCRIPTOR.values_by_name}
    unknown = [f"{reason} at {place}" for reason, place in raised_reasons() if reason not in documented]
    assert not unknown


def test_every_default_reason_is_documented() -> None:
    documented = {name.removeprefix("REASON_") for name in reasons_pb2.Reason.DESCRIPTOR.values_by_name}
    kinds = errors.TriglotError.__subclasses__()
    assert len(kinds) == 12
    assert {kind.default_reason for kind in kinds} <= documented
