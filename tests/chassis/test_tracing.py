"""Traces, from a request's header to the statements behind it, as a collector gets them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from chassis import otlp, tracing
from chassis.bundles import BundlingChannel
from chassis.errors import WrongSetting
from chassis.server import GrpcServer
from chassis.settings import Settings
from gateway.assembly import BUNDLED
from tests.conftest import Servers
from tests.serving.conftest import Client, hopsworks_client, open_stack

__all__ = ["open_stack"]  # a fixture

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
RENDER = "/triglot.serving.v1.ServingService/RenderFeatureVectors"


class Collector:
    """Takes spans over OTLP, as any collector does."""

    def __init__(self) -> None:
        self.requests: list[Message] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.requests.append(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/v1/traces"

    def spans(self) -> list[Any]:
        return [
            span
            for request in self.requests
            for resource in request.resource_spans  # type: ignore[attr-defined]
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.server.serve_forever)
    thread.start()
    try:
        yield collector
    finally:
        collector.server.shutdown()
        thread.join()
        collector.server.server_close()


def attributes(span: Any) -> dict[str, Any]:
    return {each.key: each.value.string_value or each.value.int_value for each in span.attributes}


async def test_a_request_through_gateway_and_serving(
    settings: Settings, servers: Servers, open_stack: Callable[..., Any]
) -> None:
    with collecting() as collector, tracing.tracing(settings.model_copy(update={"traces_url": collector.url})):
        async with open_stack() as stack:
            client: Client = stack.client
            group = await client.group("g", {"id": "bigint", "x": "bigint"}, ["id"])
            await client.write(group, [{"id": 1, "x": 7}])
            await client.view("v", [{"group": "g"}], [(0, "x")])
            server = GrpcServer(stack.services, host="127.0.0.1", port=0, max_message_bytes=1 << 20)
            port = await server.start()
            channel = BundlingChannel(grpc.aio.insecure_channel(f"127.0.0.1:{port}"), BUNDLED)
            async with channel, hopsworks_client(channel, servers.admin_key) as http:
                body = {"featureStoreName": "demo", "featureViewName": "v", "featureViewVersion": 1}
                header = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "R-1"}
                answer = await http.post("/feature_store", json=body | {"entries": {"id": 1}}, headers=header)
                assert answer.json()["features"] == [7]
                refused = await http.post("/feature_store", json=body | {"entries": {"no": 1}}, headers=header)
                assert refused.status_code == 400
            await server.stop(0)
    spans = [span for span in collector.spans() if span.trace_id.hex() == TRACE]
    by_id = {span.span_id: span for span in spans}

    def path(span: Any) -> list[str]:
        above = by_id.get(span.parent_span_id)
        return [*(path(above) if above else [span.parent_span_id.hex()]), span.name]

    paths = [path(span) for span in spans]
    frame = [PARENT, "hopsworks feature_store", RENDER]
    assert paths.count(frame) == paths.count(frame[:2]) == 2
    # The key and the view are looked up once; the refused request reads no row.
    assert paths.count([*frame, "redis read"]) == 1
    assert [*frame, "postgres SELECT"] in paths
    [gateway, other] = [span for span in spans if span.name == "hopsworks feature_store"]
    assert {attributes(each)["http.response.status_code"] for each in (gateway, other)} == {200, 400}
    assert attributes(gateway)["request_id"] == "R-1"
    statuses = {attributes(span)["rpc.grpc.status"] for span in spans if span.name == RENDER}
    assert statuses == {"OK", "INVALID_ARGUMENT"}
    everything = b"".join(request.SerializeToString() for request in collector.requests)
    assert servers.admin_key.encode() not in everything


async def test_nothing_is_traced_unless_asked_for(settings: Settings) -> None:
    with tracing.tracing(settings):
        assert tracing.begin("x") is None
        assert tracing.parent() == ()


async def test_a_share_of_none_is_overruled_by_who_calls(settings: Settings) -> None:
    with collecting() as collector:
        given = {"traces_url": collector.url, "traces_share": 0.0}
        with tracing.tracing(settings.model_copy(update=given)):
            tracing.begin("not chosen", {}).end({})
            tracing.begin("chosen", {"traceparent": f"00-{TRACE}-{PARENT}-01"}).end({}, "wrong")
    [span] = collector.spans()
    assert (span.name, span.status.message) == ("chosen", "wrong")


@pytest.mark.parametrize(
    ("environment", "service"),
    [({}, "triglot"), ({"OTEL_SERVICE_NAME": "gateway", "OTEL_RESOURCE_ATTRIBUTES": "zone=a"}, "gateway")],
)
async def test_the_environment_names_the_process(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], service: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with collecting() as collector, tracing.tracing(settings.model_copy(update={"traces_url": collector.url})):
        tracing.begin("x").end({})
    [request] = collector.requests
    about = attributes(request.resource_spans[0].resource)  # type: ignore[attr-defined]
    assert about["service.name"] == service
    assert about.get("zone") == ("a" if environment else None)


async def test_a_collector_that_is_away_stops_nothing(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp, "_EXPORT_SECONDS", 0.2)
    with collecting() as collector:
        url = collector.url
    with tracing.tracing(settings.model_copy(update={"traces_url": url})):
        tracing.begin("x").end({})


def test_the_url_is_one() -> None:
    with pytest.raises(WrongSetting, match="TRIGLOT_TRACES_URL"):
        Settings(traces_url="collector:4317")
