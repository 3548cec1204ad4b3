"""What `triglot up` prints when everything answers: endpoints, the key, and a call for each dialect with its answer.

What is printed may be kept by whoever runs services and containers, so that the key is not always shown.
"""

from __future__ import annotations

import shlex
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx2
import orjson
from rich.console import Console

from triglot.sample.tables import PROJECT

_SHOWN_CHARACTERS = 900


@dataclass(frozen=True)
class Call:
    """One HTTP call that a reader can paste into a shell."""

    dialect: str
    method: str
    url: str
    headers: Mapping[str, str]
    shows: str  # a part of the right answer
    body: Mapping[str, Any] | None = None
    certificate: str = ""  # a PEM file that the server's certificate is in, if it speaks TLS

    async def send(self, client: httpx2.AsyncClient) -> httpx2.Response:
        """The answer. Raises httpx2.HTTPError if there is none."""
        content = orjson.dumps(self.body) if self.body is not None else None
        return await client.request(self.method, self.url, headers=dict(self.headers), content=content)

    def shown_by(self, response: httpx2.Response) -> bool:
        """Whether it is the right answer."""
        return response.status_code == 200 and self.shows in response.text

    def curl(self) -> str:
        """The call as a curl command."""
        parts = ["curl", "-s"]
        if self.certificate:
            parts += ["--cacert", shlex.quote(self.certificate)]
        if self.method != "GET":
            parts += ["-X", self.method]
        parts.append(shlex.quote(self.url))
        for name, value in self.headers.items():
            parts += ["\\\n      -H", shlex.quote(f"{name}: {value}")]
        if self.body is not None:
            parts += ["\\\n      -d", shlex.quote(orjson.dumps(self.body).decode())]
        return " ".join(parts)


def open_client(endpoints: Mapping[str, Any], *, timeout_seconds: float) -> httpx2.AsyncClient:
    """A client of the stack. With TLS it trusts our own certificate, whatever name that is for, and no other."""
    context: ssl.SSLContext | bool = True
    if endpoints["certificate"]:
        context = ssl.create_default_context(cafile=endpoints["certificate"])
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return httpx2.AsyncClient(base_url=endpoints["rest"], timeout=timeout_seconds, verify=context)


def sample_calls(endpoints: Mapping[str, Any]) -> list[Call]:
    """One call a dialect, each on that dialect's own port if it is served."""
    sample, key = endpoints["sample"], endpoints["api_key"]
    bearer = {"Authorization": f"Bearer {key}"} if key else {}
    hopsworks_headers = {"Content-Type": "application/json"} | ({"X-API-KEY": key} if key else {})
    instance = quote(endpoints["instance_id"])
    plane = sample["entry"]["tailnum"]
    join_ids = quote(orjson.dumps([plane]).decode())
    certificate = endpoints["certificate"]
    return [
        Call(
            "Hopsworks: one feature vector",
            "POST",
            f"{_base(endpoints, 4406)}/0.1.0/feature_store",
            hopsworks_headers,
            '"COMPLETE"',
            {
                "featureStoreName": sample["feature_store"],
                "featureViewName": sample["feature_view"],
                "featureViewVersion": sample["version"],
                "entries": sample["entry"],
            },
            certificate=certificate,
        ),
        Call(
            "Feast: an entity of the registry",
            "GET",
            f"{_base(endpoints, 6572)}/api/v1/entities/plane?project={PROJECT}",
            bearer,
            '"joinKey"',
            certificate=certificate,
        ),
        Call(
            "PAI FeatureStore: online features of one plane",
            "GET",
            f"{_base(endpoints, 8080)}/api/PaiFeatureStore/2023-06-21/ListFeatureViewOnlineFeatures"
            f"?InstanceId={instance}&FeatureViewId={sample['pai_feature_view_id']}&JoinIds={join_ids}",
            bearer,
            rf"\"{plane}\"",  # a row is JSON in a string
            certificate=certificate,
        ),
    ]


def _base(endpoints: Mapping[str, Any], port: int) -> str:
    base = str(endpoints["rest"])
    return f"{base.rpartition(':')[0]}:{port}" if port in endpoints["rest_ports"] else base


async def show(endpoints: Mapping[str, Any], console: Console, *, seconds: float, key_place: str) -> None:
    """Print the endpoints and, if the sample is there, the calls with the answers they just got.

    `key_place`: where the key is to be found, instead of the key itself; empty: the key is shown.
    """
    console.print(f"\n  [bold]Triglot is up[/bold] after {seconds:.1f} s\n")
    for label, value in _lines(endpoints, key_place):
        console.print(f"  {label:<22} {value}", soft_wrap=True, highlight=False, markup=False)
    if "sample" in endpoints:
        async with open_client(endpoints, timeout_seconds=10) as client:
            for call in sample_calls(endpoints):
                await _show_call(client, call, console, hidden=endpoints["api_key"] if key_place else "")
    console.print("\n  Ctrl-C stops everything.\n", style="dim")


def _lines(endpoints: Mapping[str, Any], key_place: str) -> list[tuple[str, str]]:
    base = str(endpoints["rest"]).rpartition(":")[0]
    key = endpoints["api_key"]
    shown = f"`api_key` in {key_place}; $KEY in the calls" if key and key_place else key
    lines = [
        ("REST, all dialects", "  ".join(f"{base}:{port}" for port in endpoints["rest_ports"])),
        ("gRPC registry", endpoints["registry_grpc"]),
        ("gRPC serving", endpoints["serving_grpc"]),
        ("gRPC management", endpoints["management_grpc"]),
        ("Prometheus metrics", endpoints["metrics"] or "off"),
        ("PAI instance", endpoints["instance_id"]),
        ("API key", shown or "not needed: authentication is off"),
    ]
    if endpoints["access_key_id"]:
        lines.append(("Access key id", f"{endpoints['access_key_id']}  (its secret is in endpoints.json)"))
    return lines


async def _show_call(client: httpx2.AsyncClient, call: Call, console: Console, *, hidden: str) -> None:
    response = await call.send(client)
    answer = response.text
    if len(answer) > _SHOWN_CHARACTERS:
        answer = f"{answer[:_SHOWN_CHARACTERS]} ... ({len(answer)} characters)"
    console.print(f"\n  [bold]{call.dialect}[/bold]\n")
    # In the middle of a text in single quotes, which the shell leaves as it is.
    curl = call.curl().replace(hidden, "'\"$KEY\"'") if hidden else call.curl()
    console.print(f"  {curl}\n", soft_wrap=True, highlight=False, markup=False)
    console.print(f"  {response.status_code} {answer}", style="green", soft_wrap=True, highlight=False, markup=False)
