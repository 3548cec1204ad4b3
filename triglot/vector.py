"""`triglot vector`: one feature vector, as JSON clients are answered it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import msgspec
import orjson

from chassis import errors
from protos.gen.triglot.serving.v1 import serving_service_pb2 as pb
from protos.gen.triglot.serving.v1 import vector_pb2
from triglot.deployment import Serving
from triglot.names import Name
from triglot.terminal import console, print_table

_STATUSES = {
    vector_pb2.VECTOR_STATUS_COMPLETE: "COMPLETE",
    vector_pb2.VECTOR_STATUS_MISSING: "MISSING",
}
_WHY = {400: "its key was not given", 404: "it has no such row"}
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?", re.ASCII)


@dataclass(frozen=True)
class Found:
    """A vector: name, type and JSON text of each value; what became of each group's row."""

    status: str
    features: Sequence[tuple[str, str, str]]
    groups: Sequence[tuple[str, int]]


def entry_of(pairs: Sequence[str]) -> dict[str, str]:
    """The entry that options NAME=VALUE stand for. Raises WrongSetting."""
    entry: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals) or name in entry:
            raise errors.WrongSetting(f"--entry {pair}: it must be NAME=VALUE, once for each name")
        entry[name] = value
    return entry


async def read(view: Name, entry: Mapping[str, str], reached: AbstractAsyncContextManager[Serving]) -> Found:
    """The vector. Raises a TriglotError."""
    # A number is sent as one, because keys come back as they were sent.
    keys = {name: orjson.Fragment(value) if _NUMBER.fullmatch(value) else value for name, value in entry.items()}
    wanted = pb.RenderFeatureVectorsRequest(
        feature_store=view.store,
        feature_view=view.name,
        version=view.version,
        entries=orjson.dumps(keys),
        options=vector_pb2.VectorOptions(include_names=True, include_types=True, include_detailed_status=True),
    )
    describe = pb.DescribeFeatureViewRequest(feature_store=view.store, name=view.name, version=view.version)
    async with reached as serving:
        described = await serving.call(serving.stub.DescribeFeatureView, describe)
        reply = await serving.call(serving.stub.RenderFeatureVectors, wanted)
    names = {group.id: f"{group.feature_store}/{group.name}/{group.version}" for group in described.feature_groups}
    values = msgspec.json.decode(reply.vectors[0], type=list[msgspec.Raw])
    return Found(
        _STATUSES[reply.statuses[0]],
        [
            (each.feature_name, each.feature_type, bytes(value).decode())
            for each, value in zip(reply.metadata, values, strict=True)
        ],
        [(names.get(each.feature_group_id, ""), each.http_status) for each in reply.details[0].groups],
    )


def described(found: Found) -> dict[str, Any]:
    """For scripts."""
    return {
        "status": found.status,
        "features": [
            {"name": name, "type": hive, "value": orjson.Fragment(value)} for name, hive, value in found.features
        ],
        "groups": [{"name": name, "status": status} for name, status in found.groups],
    }


def show(found: Found) -> None:
    """For people."""
    print_table(("FEATURE", "TYPE", "VALUE"), found.features)
    console.print(found.status, style="green" if found.status == "COMPLETE" else "yellow")
    for name, status in found.groups:
        if status in _WHY:
            console.print(f"{name}: {_WHY[status]}", markup=False, soft_wrap=True)
