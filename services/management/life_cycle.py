"""How long tables last that the store wrote itself: a project's OfflineLifeCycle, in days, counted for each partition.

Nothing else is ever removed: a file must be noted here, and say of itself that the task which is noted wrote it.
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from pathlib import Path

from chassis import errors
from chassis.postgres import Database
from chassis.telemetry import log
from services.management.offline import NewFile, OfflineStore
from services.management.rows import QUERIES

_AT_A_TIME = 1_000


class LifeCycle:
    """Rows of `offline_file`, and the files."""

    def __init__(self, database: Database, offline: OfflineStore) -> None:
        self._database = database
        self._offline = offline

    async def show(self, file: NewFile, table: Path, days: int) -> None:
        """Show a file that was written in a table's folder, to be kept so many days. 0: for ever."""
        if days:
            # Noted first, so that no file is forgotten. One that is being removed is waited for.
            await self._database.execute(QUERIES.keep_offline_file, str(file.path), str(table), file.task_id, days)
        await asyncio.to_thread(file.finish)
        if not days:
            await self._database.execute(QUERIES.forget_offline_file, str(file.path))

    async def remove_expired(self, now: datetime) -> list[Path]:
        """Remove what has been kept long enough by `now`, at most a thousand files; those that were removed."""
        removed = []
        for _ in range(_AT_A_TIME):
            async with self._database.transaction() as connection:
                row = await connection.fetchrow(QUERIES.expired_offline_file, now)
                if row is None:
                    break
                path = Path(row["path"])
                try:
                    gone = await asyncio.to_thread(
                        self._offline.remove_made, path, Path(row["table_path"]), row["task_id"]
                    )
                except errors.InvalidArgument as error:
                    # Not below an allowed folder any more, or not ours: it stays, and is not asked about again.
                    log.warning("a table that expired stays", path=str(path), error=error.message)
                    gone = False
                await connection.execute(QUERIES.forget_offline_file, row["path"])
                if gone:
                    removed.append(path)
        return removed
