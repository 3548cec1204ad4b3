"""Service-account tokens. No Kubernetes is here: an HTTP server answers TokenReviews as its API describes them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jwt
import pytest
import uvicorn

from chassis import errors
from chassis.kubernetes import KubernetesSettings, TokenReviews

ACCOUNT = "system:serviceaccount:ml:trainer"


def token(name: str) -> str:
    return jwt.encode({"kubernetes.io": {"namespace": "forged"}, "sub": name}, "k" * 32, "HS256")


class ApiServer:
    """Knows one token."""

    def __init__(self) -> None:
        self.reviews: list[Any] = []
        self.shown: list[str] = []
        self.status = 201
        self.audiences: list[str] = ["triglot", "other"]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert (scope["method"], scope["path"]) == ("POST", "/apis/authentication.k8s.io/v1/tokenreviews")
        self.shown.append(dict(scope["headers"])[b"authorization"].decode())
        review = json.loads((await receive())["body"])
        self.reviews.append(review["spec"])
        status: dict[str, Any] = {"authenticated": False, "error": "unknown"}
        if review["spec"]["token"] == token("trainer"):
            user = {"username": ACCOUNT, "groups": ["system:serviceaccounts:ml"]}
            status = {"authenticated": True, "user": user, "audiences": self.audiences}
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps({**review, "status": status}).encode()})


@pytest.fixture
async def cluster() -> AsyncIterator[tuple[ApiServer, str]]:
    api = ApiServer()
    server = uvicorn.Server(uvicorn.Config(api, port=0, lifespan="off", log_config=None, ws="none"))
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn tells it no other way
        await asyncio.sleep(0.01)
    yield api, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    await serving


def reviews(url: str, folder: Path, **changes: Any) -> TokenReviews:
    (folder / "token").write_text("our own\n")
    return TokenReviews(KubernetesSettings(api_url=url, token_file=str(folder / "token"), **changes))


async def test_a_service_account_brings_groups_and_its_namespace(
    cluster: tuple[ApiServer, str], tmp_path: Path
) -> None:
    api, url = cluster
    asked = reviews(url, tmp_path, audiences=("triglot",))
    found = await asyncio.gather(*(asked.principal(token("trainer")) for _ in range(40)))
    assert {each.name for each in found} == {ACCOUNT}
    assert (found[0].namespaces, found[0].groups) == ({"ml"}, {"system:serviceaccounts:ml"})
    assert not found[0].administrator
    assert api.reviews[0] == {"token": token("trainer"), "audiences": ["triglot"]}
    assert len(api.reviews) <= 16
    assert set(api.shown) == {"Bearer our own"}


async def test_an_api_server_that_knows_no_audiences_does_not_vouch_for_ours(
    cluster: tuple[ApiServer, str], tmp_path: Path
) -> None:
    api, url = cluster
    api.audiences = []
    with pytest.raises(errors.Unauthenticated):
        await reviews(url, tmp_path, audiences=("triglot",)).principal(token("trainer"))
    assert (await reviews(url, tmp_path).principal(token("trainer"))).name == ACCOUNT


async def test_what_kubernetes_does_not_know_is_refused_and_asked_once(
    cluster: tuple[ApiServer, str], tmp_path: Path
) -> None:
    api, url = cluster
    asked = reviews(url, tmp_path)
    for _ in range(3):
        with pytest.raises(errors.Unauthenticated):
            await asked.principal(token("stranger"))
    assert len(api.reviews) == 1


async def test_an_api_server_that_cannot_be_asked(cluster: tuple[ApiServer, str], tmp_path: Path) -> None:
    api, url = cluster
    api.status = 403
    for asked in (reviews(url, tmp_path), reviews("http://127.0.0.1:1", tmp_path)):
        with pytest.raises(errors.Unavailable):
            await asked.principal(token("trainer"))
    api.status = 201
    assert (await reviews(url, tmp_path).principal(token("trainer"))).name == ACCOUNT


def test_other_tokens_are_not_its_business(tmp_path: Path) -> None:
    asked = reviews("http://127.0.0.1:1", tmp_path)
    assert asked.takes(token("anybody"))
    assert not asked.takes(jwt.encode({"sub": "x"}, "k" * 32, "HS256"))
    assert not asked.takes("0123456789abcdef.key")
