"""`triglot usage`: how often which account called which operation of PAI's API in a month, and what that costs."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from protos.gen.triglot.management.v1 import usage_pb2 as pb
from triglot.deployment import open_management
from triglot.terminal import DEFAULT_DATA_DIR, AsJson, DataDir, print_json, print_table

_ALL = "all"
_PAGE = 100


def usage(
    month: Annotated[str, typer.Option(help="`2026-11`, or `all`.  [default: the month that it is, in UTC]")] = "",
    account: Annotated[str, typer.Option(help="Only this account's. Others than one's own: administrators only.")] = "",
    operation: Annotated[str, typer.Option(help="Only this operation's, such as `ListProjects`.")] = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Show the usage of PAI's API by month, account and operation, and its price.

    Asks what `triglot up` runs on the data folder, or the deployment at `TRIGLOT_MANAGEMENT_TARGET` with the key
    `TRIGLOT_API_KEY`.

    Examples: `triglot usage` - `triglot usage --month all --account alice` - `triglot usage --json`
    """
    chosen = "" if month == _ALL else month or f"{datetime.now(UTC):%Y-%m}"
    wanted = pb.ListUsageRequest(month=chosen, account=account, operation=operation, page_size=_PAGE)
    found, total = asyncio.run(_read(data_dir, wanted))
    if as_json:
        print_json({"usage": found, "total_calls": total.total_calls, "total_price": total.total_price})
        return
    rows = [
        (each["month"], each["account"].replace("\n", " "), each["operation"], each["calls"], each["price"])
        for each in found
    ]
    print_table(
        ("MONTH", "ACCOUNT", "OPERATION", "CALLS", "PRICE"),
        [*rows, ("total", "", "", total.total_calls, total.total_price)],
    )


async def _read(data_dir: Path, wanted: pb.ListUsageRequest) -> tuple[list[dict[str, Any]], pb.ListUsageResponse]:
    """All that matches, and an answer with its totals."""
    found: list[dict[str, Any]] = []
    async with open_management(data_dir) as management:
        while True:
            wanted.page_number = len(found) // _PAGE + 1
            answer: pb.ListUsageResponse = await management.call(management.usage.ListUsage, wanted)
            found += [
                {
                    "month": each.month,
                    "account": each.account,
                    "operation": each.operation,
                    "calls": each.calls,
                    "free_calls": each.free_calls,
                    "price": each.price,
                }
                for each in answer.usage
            ]
            if len(answer.usage) < _PAGE:
                return found, answer
