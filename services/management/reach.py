"""Whether what a datasource leads to can be reached and used, found out by trying."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from chassis import errors
from services.management import hologres
from services.management.offline import OfflineStore
from services.management.online import ServingRows
from services.management.publish import SERVED_TYPES
from services.management.settings import ManagementSettings
from services.management.tables import OFFLINE_TYPE, tables_of


class Reach:
    """Tries datasources out."""

    def __init__(self, offline: OfflineStore, online: ServingRows, own: ManagementSettings) -> None:
        self._offline = offline
        self._online = online
        self._own = own

    async def failure(self, kind: str, uri: str, config: Mapping[str, Any]) -> str:
        """Why a datasource cannot be used, beginning with the step that failed; empty if it can."""
        timeout = self._own.check_timeout_seconds
        try:
            if kind == OFFLINE_TYPE:
                async with asyncio.timeout(timeout):
                    await tables_of(kind, uri, config, self._offline, self._own).tables()
            elif kind in SERVED_TYPES:
                await self._online.ping(timeout)
            elif kind == hologres.TYPE:
                await hologres.check(uri, config, self._own.datasource_hosts, timeout)
            else:
                return f"type: this deployment has nothing that reads or writes {kind}"
        except TimeoutError:
            return f"folder: no answer within {timeout:g} s"
        except errors.TriglotError as error:
            return f"{'folder' if kind == OFFLINE_TYPE else 'online rows'}: {error.message}"
        except hologres.Unusable as error:
            return str(error)
        return ""
