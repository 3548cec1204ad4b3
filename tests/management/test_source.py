"""Rows on their way from Parquet to serving: which files, which rows, which types, and what is said of bad ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chassis import errors
from services.management import publish
from services.management.offline import OfflineStore


def view_of(*fields: tuple[str, str, str], join_id: str = "uid") -> dict[str, Any]:
    """A row of `feature_view`, as far as publishing reads it."""
    kept = [{"name": name, "type": kind, "attributes": [mark] if mark else []} for name, kind, mark in fields]
    return {
        "fields": orjson.dumps(kept).decode(),
        "join_id": join_id,
        "feature_store": "shop",
        "name": "profile",
        "type": "Batch",
        "ttl": 2,
    }


def rows(folder: Path, view: dict[str, Any], partitions: dict[str, Any] | None = None, batch: int = 2) -> list[Any]:
    table = OfflineStore([folder]).open({"root": str(folder)}, "t")
    source = publish.source_of(view, table, partitions or {})
    return [row for piece in source.batches(batch, 1 << 20) for row in piece.to_pylist()]


def write(path: Path, **columns: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


KEYED = (("id", "INT64", "PrimaryKey"), ("x", "DOUBLE", ""))


def test_partitions(tmp_path: Path) -> None:
    for day in ("20230819", "20230820", "20230821"):
        for hour in ("00", "12"):
            write(tmp_path / "t" / f"ds={day}" / f"hh={hour}" / "a.parquet", id=[int(day + hour)], x=[0.5])
    write(tmp_path / "t" / "_temporary" / "ds=1" / "a.parquet", id=[1], x=[0.5])
    view = view_of(*KEYED)

    def ids(**partitions: Any) -> list[str]:
        return [str(row["uid"]) for row in rows(tmp_path, view, partitions)]

    assert len(ids()) == 6
    assert ids(ds={"value": "20230820"}) == ["2023082000", "2023082012"]
    assert ids(ds={"value": "20230820"}, hh={"value": "12"}) == ["2023082012"]
    assert ids(hh={"values": ["00"]}) == ["2023081900", "2023082000", "2023082100"]
    assert ids(ds={"start_value": "20230820", "end_value": ""}, hh={"value": "00"}) == ["2023082000", "2023082100"]
    assert ids(ds={"start_value": "", "end_value": "20230819"}, hh={"value": "00"}) == ["2023081900"]
    with pytest.raises(errors.NotFound):
        ids(ds={"value": "20200101"})
    with pytest.raises(errors.InvalidArgument, match="no column"):
        ids(day={"value": "20200101"})


def test_a_partition_may_be_a_column(tmp_path: Path) -> None:
    write(tmp_path / "t.parquet", id=[1, 2, 3], x=[0.1, 0.2, 0.3], ds=[20230820, 20230821, 20230820])
    view = view_of(*KEYED, ("ds", "INT64", "Partition"))
    found = rows(tmp_path, view, {"ds": {"value": "20230820"}})
    assert found == [{"uid": 1, "x": 0.1}, {"uid": 3, "x": 0.3}]


def test_only_the_views_columns_in_its_order_and_types(tmp_path: Path) -> None:
    write(
        tmp_path / "t.parquet",
        extra=[1, 2],
        x=pa.array([1.5, None], pa.float32()),
        ms=[1_600_000_000_123, None],
        at=pa.array([1, 2], pa.timestamp("ns")),
        day=pa.array([0, 1], pa.date32()),
        text=pa.array(["7", "8"]),
        id=pa.array([1, 2], pa.int32()),
    )
    view = view_of(
        *KEYED, ("ms", "TIMESTAMP", ""), ("at", "TIMESTAMP", "EventTime"), ("day", "STRING", ""), ("text", "INT32", "")
    )
    table = OfflineStore([tmp_path]).open({"root": str(tmp_path)}, "t")
    [batch] = publish.source_of(view, table, {}).batches(10, 1 << 20)
    assert batch.schema.names == ["uid", "x", "ms", "at", "day", "text"]
    moment = pa.timestamp("us", tz="UTC")
    assert batch.schema.types == [pa.int64(), pa.float64(), moment, moment, pa.string(), pa.int32()]
    assert batch.column("ms").cast(pa.int64()).to_pylist() == [1_600_000_000_123_000, None]
    assert batch.column("day").to_pylist() == ["1970-01-01", "1970-01-02"]
    group = publish.group_of(view, "days")
    assert [(feature.name, feature.type) for feature in group.features][:3] == [
        ("uid", "bigint"),
        ("x", "double"),
        ("ms", "timestamp"),
    ]
    assert (list(group.primary_key), group.event_time, group.time_to_live.seconds) == (["uid"], "at", 172_800)


def test_bad_rows_are_named(tmp_path: Path) -> None:
    write(tmp_path / "t.parquet", id=[1, 2, 3, 4, 5], x=["1", "2", "3", "four", "5"])
    with pytest.raises(errors.InvalidArgument, match=r"t\.parquet, row 4, column x: 'four'"):
        rows(tmp_path, view_of(*KEYED))
    write(tmp_path / "t.parquet", id=[1, 2, 3, None], x=[0.0] * 4)
    with pytest.raises(errors.InvalidArgument, match=r"row 4, column id: the key is null"):
        rows(tmp_path, view_of(*KEYED), batch=3)
    write(tmp_path / "t.parquet", id=[2**40], x=[0.0])
    with pytest.raises(errors.InvalidArgument, match="row 1, column id"):
        rows(tmp_path, view_of(("id", "INT32", "PrimaryKey"), ("x", "DOUBLE", "")))


def test_what_cannot_be_published(tmp_path: Path) -> None:
    write(tmp_path / "t.parquet", id=[1])
    with pytest.raises(errors.InvalidArgument, match="no column x"):
        rows(tmp_path, view_of(*KEYED))
    with pytest.raises(errors.InvalidArgument, match="without a primary key"):
        rows(tmp_path, view_of(("id", "INT64", "")))
    with pytest.raises(errors.InvalidArgument, match="served by that name"):
        rows(tmp_path, view_of(*KEYED, join_id="x"))
    (tmp_path / "t.parquet").write_text("no Parquet")
    with pytest.raises(errors.InvalidArgument, match="not the Parquet"):
        rows(tmp_path, view_of(*KEYED))


def test_large_batches_are_split(tmp_path: Path) -> None:
    write(tmp_path / "t.parquet", id=list(range(1000)), x=[0.5] * 1000)
    table = OfflineStore([tmp_path]).open({"root": str(tmp_path)}, "t")
    batches = list(publish.source_of(view_of(*KEYED), table, {}).batches(1000, 4096))
    assert len(batches) == 4
    assert sum(batch.num_rows for batch in batches) == 1000
    assert all(len(publish.arrow_stream(batch)) < 8192 for batch in batches)


def test_the_life_of_rows() -> None:
    """A view's TTL counts days, or seconds where the settings say so; 0 is for ever."""
    view = view_of(*KEYED)
    assert publish.group_of(view, "days").time_to_live.seconds == 2 * 86_400
    assert publish.group_of(view, "seconds").time_to_live.seconds == 2
    assert publish.group_of({**view, "ttl": 0}, "days").time_to_live.seconds == 0
