"""PAI FeatureStore's REST API: the document's /api/PaiFeatureStore/2023-06-21/{operation} and the SDK's paths.

Both are made from one table of operations. The document's style takes each parameter wherever it stands: in the query,
in the JSON body, in the body's `body`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from chassis import errors
from gateway.dialect import Dialect, Row
from gateway.dialects.pai.faults import render
from gateway.dialects.pai.messages import read_message, write_message
from gateway.dialects.pai.operations import OPERATIONS, Operation
from gateway.dialects.pai.signature import credential
from gateway.exchange import Answer, Exchange, json_answer
from gateway.settings import GatewaySettings
from protos.gen.triglot.management.v1 import management_service_pb2, management_service_pb2_grpc

DOCUMENT_PREFIX = "/api/PaiFeatureStore"
DOCUMENT_ROOT = f"{DOCUMENT_PREFIX}/2023-06-21"
SDK_ROOT = "/api/v1/instances"
_OWNED = (DOCUMENT_PREFIX, SDK_ROOT, "/api/v1/serviceidentityroles")
_INDEXED = re.compile(r"(\w+)\.(\d{1,4})")


def dialect(channel: grpc.aio.Channel, settings: GatewaySettings) -> Dialect:
    """The dialect, its RPCs on `channel`."""
    stub = management_service_pb2_grpc.ManagementServiceStub(channel)
    rows = [row for operation in OPERATIONS for row in _rows(operation, stub)]
    if settings.pai_max_request_bytes:
        rows = [replace(row, request=_bounded(row.request, settings.pai_max_request_bytes)) for row in rows]
    return Dialect(
        name="pai",
        # Longest first: a path that ends in a parameter takes all that follows.
        rows=sorted(rows, key=lambda row: -row.path.count("/")),
        credential=credential,
        render_error=render,
        owns=lambda path: any(path == owned or path.startswith(f"{owned}/") for owned in _OWNED),
        metered=True,
    )


def _rows(operation: Operation, stub: Any) -> Iterable[Row]:
    rpc = getattr(stub, operation.name)
    service = management_service_pb2.DESCRIPTOR.services_by_name["ManagementService"]
    kind = GetMessageClass(service.methods_by_name[operation.name].input_type)
    answer = _answer_of(operation)
    methods = ("GET", "POST") if operation.method == "GET" else tuple({operation.method, "POST"})
    path = f"{DOCUMENT_ROOT}/{operation.name}"
    yield Row(methods, path, operation.name, rpc, lambda exchange: read_message(kind, parameters(exchange)), answer)
    segments = f"{SDK_ROOT}{operation.path}".split("/")
    # A name may hold an encoded slash, which the router sees decoded.
    pattern = "/".join(f"{part[:-1]}:path}}" if part.endswith("Name}") else part for part in segments)
    yield Row((operation.method,), pattern, operation.name, rpc, _sdk_request_of(operation, kind, segments), answer)


def _bounded(request: Callable[[Exchange], Any], max_bytes: int) -> Callable[[Exchange], Any]:
    """The same for requests that are not larger than that, query and body together. Raises InvalidArgument."""

    def bounded(exchange: Exchange) -> Any:
        size = len(exchange.query_string) + len(exchange.body)
        if size > max_bytes:
            raise errors.InvalidArgument(
                f"the request has {size} bytes, and at most {max_bytes} are taken",
                reason="BODY_TOO_LARGE",
                limit_bytes=max_bytes,
            )
        return request(exchange)

    return bounded


def _sdk_request_of(operation: Operation, kind: type[Message], segments: list[str]) -> Callable[[Exchange], Message]:
    def request(exchange: Exchange) -> Message:
        given = {**parameters(exchange), **_path_parameters(exchange, segments)}
        for name in operation.sdk_requires:
            if not given.get(name):
                raise errors.InvalidArgument(f"{name} is required", field=name)
        return read_message(kind, given)

    return request


def _answer_of(operation: Operation) -> Callable[[Exchange, Any], Answer]:
    def answer(exchange: Exchange, reply: Any) -> Answer:
        content = {"RequestId": exchange.request_id, **write_message(reply)}
        if operation.lower_request_id:
            content["requestId"] = exchange.request_id
        return json_answer(content, headers={"x-acs-request-id": exchange.request_id})

    return answer


def _path_parameters(exchange: Exchange, segments: list[str]) -> dict[str, str]:
    """Parameters in the path, cut before they are decoded. Raises NotFound if there are more segments than expected."""
    sent = exchange.raw_path.decode("latin-1").partition("?")[0].split("/")
    if len(sent) != len(segments):
        raise errors.NotFound("no such operation", reason="OPERATION_NOT_FOUND")
    return {
        segment[1:-1]: unquote(part) for segment, part in zip(segments, sent, strict=True) if segment.startswith("{")
    }


def parameters(exchange: Exchange) -> dict[str, Any]:
    """All parameters by name, wherever they stand; what stands further in wins. Raises InvalidArgument."""
    given: dict[str, Any] = {}
    indexed: dict[str, dict[int, str]] = {}
    for name, values in exchange.query.items():
        match = _INDEXED.fullmatch(name)
        if match:
            indexed.setdefault(match[1], {})[int(match[2])] = values[-1]
        else:
            given[name] = values if len(values) > 1 else values[0]
    for name, items in indexed.items():
        given.setdefault(name, [items[number] for number in sorted(items)])
    if exchange.body.strip():
        body = exchange.json()
        if not isinstance(body, dict):
            raise errors.InvalidArgument("the body must be a JSON object", reason="MALFORMED_BODY")
        given |= body
        inner = body.get("body")
        if isinstance(inner, dict):
            given |= inner
    return given
