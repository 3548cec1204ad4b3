"""The feature views of a datasource, with what their online rows take and how much they are used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from chassis.postgres import Database
from protos.gen.triglot.management.v1 import datasource_pb2 as pb
from services.management.inputs import (
    invalid,
    not_found,
    number,
    number_or_none,
    one_of,
    page_of,
    visible_stores,
)
from services.management.online import OnlineStore, Use
from services.management.rows import QUERIES, Row
from services.management.views import TYPES

_SORTS = ("GmtCreateTime", "GmtModifiedTime", "ReadCount", "WriteCount")
_MAX_VIEWS = 1_000
_MAX_DAYS = 31
_DEFAULT_DAYS = 30
# Serving keeps its counts so long.
_KEPT_DAYS = 400


@dataclass(frozen=True)
class _Known:
    """A view, and its use where its online rows are in the datasource."""

    row: Row
    use: Use | None

    def read(self) -> int:
        return sum(day.rows_read for day in self.use.days) if self.use else 0

    def written(self) -> int:
        return sum(day.rows_written for day in self.use.days) if self.use else 0


class DatasourceViews:
    """Reads rows of `feature_view`, and asks about their online rows."""

    def __init__(self, database: Database, online: OnlineStore) -> None:
        self._database = database
        self._online = online

    async def page(self, request: pb.ListDatasourceFeatureViewsRequest) -> pb.ListDatasourceFeatureViewsResponse:
        """Raises NotFound, InvalidArgument."""
        identifier = number("DatasourceId", request.datasource_id)
        page = page_of(request, _SORTS)
        first, last = _days(request.start_date, request.end_date)
        if await self._database.fetchrow(QUERIES.datasource, identifier) is None:
            raise not_found("Datasource", identifier)
        rows = await self._database.fetch(
            QUERIES.list_datasource_feature_views,
            identifier,
            visible_stores(),
            request.name,
            number_or_none("ProjectId", request.project_id),
            request.project_name,
            one_of("Type", request.type, TYPES) if request.type else "",
            page.sort,
            page.direction,
            _MAX_VIEWS + 1,
        )
        if len(rows) > _MAX_VIEWS:
            raise invalid("ProjectId", f"is required, or another filter: more than {_MAX_VIEWS} feature views match")
        known = await self._known(rows, first, last)
        if page.sort in ("ReadCount", "WriteCount"):
            count = _Known.read if page.sort == "ReadCount" else _Known.written
            known = sorted(known, key=lambda each: (count(each) * page.direction, each.row["id"] * page.direction))
        storage = request.show_storage_usage if request.HasField("show_storage_usage") else True
        verbose = request.verbose if request.HasField("verbose") else True
        shown = known if request.all else known[page.offset : page.offset + page.limit]
        uses = [each.use for each in known if each.use is not None]
        return pb.ListDatasourceFeatureViewsResponse(
            feature_views=[_shown(each, storage, verbose) for each in shown],
            total_count=len(known),
            total_usage_statistics=_total(uses, storage) if uses else None,
        )

    async def _known(self, rows: Sequence[Row], first: date, last: date) -> list[_Known]:
        here = [row for row in rows if row["online_here"]]
        uses = dict(zip((row["id"] for row in here), await self._online.uses(here, first, last), strict=True))
        return [_Known(row, uses.get(row["id"])) for row in rows]


def _days(start: str, end: str) -> tuple[date, date]:
    """The first and the last day asked for."""
    today = datetime.now(UTC).date()
    last = _day("EndDate", end) if end else today
    if (today - last).days >= _KEPT_DAYS:
        raise invalid("EndDate", f"must be less than {_KEPT_DAYS} days ago")
    first = _day("StartDate", start) if start else last - timedelta(days=_DEFAULT_DAYS - 1)
    if first > last:
        raise invalid("StartDate", "must not be after EndDate")
    if (last - first).days >= _MAX_DAYS:
        raise invalid("StartDate", f"must be at most {_MAX_DAYS - 1} days before EndDate")
    if (today - first).days >= _KEPT_DAYS:
        raise invalid("StartDate", f"must be less than {_KEPT_DAYS} days ago")
    return first, last


def _day(field: str, text: str) -> date:
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).date()
    except ValueError:
        raise invalid(field, "must be a day such as 2026-01-31") from None


def _shown(each: _Known, storage: bool, verbose: bool) -> pb.DatasourceFeatureView:
    row = each.row
    return pb.DatasourceFeatureView(
        feature_view_id=str(row["id"]),
        name=row["name"],
        type=row["type"],
        project_name=row["project_name"],
        feature_entity_name=row["entity_name"] or "",
        config=row["config"],
        ttl=row["ttl"],
        usage_statistics=_statistics(each.use, storage) if verbose and each.use is not None else None,
    )


def _statistics(use: Use, storage: bool) -> pb.UsageStatistics:
    return pb.UsageStatistics(
        row_count=use.rows if storage else None,
        disk_usage=use.disk_bytes if storage else None,
        memory_usage=use.bytes if storage else None,
        read_write_count=[
            pb.ReadWriteCount(date=day.date, read_count=day.rows_read, write_count=day.rows_written) for day in use.days
        ],
    )


def _total(uses: Iterable[Use], storage: bool) -> pb.TotalUsageStatistics:
    memory = disk = 0
    read: Counter[str] = Counter()
    written: Counter[str] = Counter()
    for use in uses:
        memory += use.bytes
        disk += use.disk_bytes
        for day in use.days:
            read[day.date] += day.rows_read
            written[day.date] += day.rows_written
    return pb.TotalUsageStatistics(
        total_disk_usage=disk if storage else None,
        total_memory_usage=memory if storage else None,
        total_read_write_count=[
            pb.TotalReadWriteCount(date=day, total_read_count=read[day], total_write_count=written[day])
            for day in sorted({*read, *written})
        ],
    )
