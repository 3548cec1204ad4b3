"""TLS on every port: who is believed, who is not heard, and files that are replaced while everything runs."""

from __future__ import annotations

import asyncio
import http.client
import shutil
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from chassis import errors, metrics_port, tls
from chassis.calls import invoke
from chassis.client import open_channel
from chassis.errors import WrongSetting
from chassis.server import listening
from chassis.settings import Settings
from gateway import server as http_server
from gateway.app import create_app
from gateway.settings import GatewaySettings
from tests.certificates import Certificate, make
from tests.chassis.echo import Stub, Text, service
from tests.gateway.test_frame import dialect
from tests.patience import PATIENCE_SECONDS, until
from tests.ports import reserved_ports

ADMIN = (("authorization", "admin"),)
HOST = "127.0.0.1"


@pytest.fixture
def ours(tmp_path: Path) -> Certificate:
    return fresh(tmp_path / "ours")


@pytest.fixture
def other(tmp_path: Path) -> Certificate:
    return fresh(tmp_path / "other")


def fresh(folder: Path) -> Certificate:
    folder.mkdir()
    return make(folder)


def replace(old: Certificate, new: Certificate) -> None:
    """Both files, each at once, as a person or a script would."""
    for path, by in ((old.certificate, new.certificate), (old.key, new.key)):
        shutil.copy(by, path.with_suffix(".new"))
        path.with_suffix(".new").rename(path)


def of_server(shown: Certificate, believes: Certificate | None = None) -> Settings:
    """Of a process that shows a certificate, and asks for one that an authority vouches for."""
    authority = str(believes.certificate) if believes else ""
    return Settings(
        host=HOST, tls_certificate=str(shown.certificate), tls_key=str(shown.key), client_authority=authority
    )


def of_client(believes: Certificate, shows: Certificate | None = None) -> Settings:
    shown = {"client_certificate": str(shows.certificate), "client_key": str(shows.key)} if shows else {}
    return Settings(host=HOST, tls_authority=str(believes.certificate), **shown)  # type: ignore[arg-type]


async def say(port: int, settings: Settings) -> str:
    async with open_channel(f"{HOST}:{port}", settings) as channel:
        reply: Text = await invoke(Stub(channel).Say, Text(value="hello"), metadata=ADMIN)
        return str(reply.value)


async def test_services_know_their_callers_by_certificates(ours: Certificate, other: Certificate) -> None:
    """A caller without one that the authority vouches for is not heard, whatever key it has."""
    async with listening([service()], of_server(ours, other), 0) as port:
        assert await say(port, of_client(ours, other)) == "hello"
        for stranger in (of_client(ours), of_client(ours, ours), Settings(host=HOST)):
            with pytest.raises(errors.Unavailable):
                await say(port, stranger)


async def test_a_process_shows_targets_its_own_certificate_unless_it_has_another(ours: Certificate) -> None:
    shown = of_server(ours, ours).model_copy(update={"tls_authority": str(ours.certificate)})
    async with listening([service()], shown, 0) as port:
        assert await say(port, shown) == "hello"


@pytest.mark.parametrize(
    ("given", "variable"),
    [
        ({"client_authority": "ours"}, "TRIGLOT_CLIENT_AUTHORITY works with TLS only"),
        ({"metrics_tls": "true"}, "TRIGLOT_METRICS_TLS works with TLS only"),
        ({"client_certificate": "ours"}, "set both TRIGLOT_CLIENT_CERTIFICATE and TRIGLOT_CLIENT_KEY"),
        ({"client_certificate": "ours", "client_key": "other"}, "TRIGLOT_CLIENT_CERTIFICATE and TRIGLOT_CLIENT_KEY: "),
    ],
)
def test_settings_that_do_not_fit(ours: Certificate, other: Certificate, given: dict[str, str], variable: str) -> None:
    files = {"ours": str(ours.certificate), "other": str(other.key)}
    with pytest.raises(WrongSetting, match=variable):
        Settings(**{name: files.get(value, value) for name, value in given.items()})  # type: ignore[arg-type]


async def test_a_grpc_port_shows_what_the_files_hold_now(ours: Certificate, other: Certificate) -> None:
    """And an open connection goes on; while key and certificate do not fit, the old ones are shown."""
    believes_first, believes_then = copy_of(ours, "first"), copy_of(other, "then")
    async with listening([service()], of_server(ours, ours), 0) as port:
        kept = open_channel(f"{HOST}:{port}", of_client(believes_first, believes_first))
        async with kept:
            stub = Stub(kept)
            assert (await invoke(stub.Say, Text(value="a"), metadata=ADMIN)).value == "a"
            shutil.copy(other.certificate, ours.certificate)
            assert await say(port, of_client(believes_first, believes_first)) == "hello"
            replace(ours, believes_then)
            assert await say(port, of_client(believes_then, believes_then)) == "hello"
            with pytest.raises(errors.Unavailable):
                await say(port, of_client(believes_then, believes_first))
            assert (await invoke(stub.Say, Text(value="b"), metadata=ADMIN)).value == "b"


def copy_of(certificate: Certificate, name: str) -> Certificate:
    folder = certificate.key.parent / name
    folder.mkdir()
    return Certificate(Path(shutil.copy(certificate.certificate, folder)), Path(shutil.copy(certificate.key, folder)))


async def test_a_channel_shows_and_believes_what_the_files_hold_now(ours: Certificate, other: Certificate) -> None:
    """The other side begins to use new certificates, and the channel that was opened before reaches it still."""
    files, then = copy_of(ours, "files"), copy_of(other, "then")
    with reserved_ports(1) as [port]:
        async with open_channel(f"{HOST}:{port}", of_client(files, files)) as channel:
            stub = Stub(channel)

            async def heard() -> bool:
                try:
                    return bool((await invoke(stub.Say, Text(value="a"), metadata=ADMIN)).value == "a")
                except errors.Unavailable:
                    return False

            async with listening([service()], of_server(ours, ours), port):
                await until(heard)
                spelling = stub.Spell(Text(value="ab."), metadata=ADMIN)
                assert (await spelling.read()).value == "a"
                replace(files, then)
                await until(heard)
                assert (await spelling.read()).value == "b"
                spelling.cancel()
            async with listening([service()], of_server(then, then), port):
                await until(heard)


@asynccontextmanager
async def over_https(settings: Settings) -> AsyncIterator[int]:
    own = GatewaySettings(ports=(0,))
    async with http_server.listening(create_app((dialect("one", ""),), own), own, settings) as [port]:
        yield port


@asynccontextmanager
async def metrics_over_https(settings: Settings) -> AsyncIterator[int]:
    with reserved_ports(1) as [port]:
        metrics_port.serve(settings.model_copy(update={"metrics_port": port, "metrics_tls": True}))
        yield port


@pytest.mark.parametrize("world", [over_https, metrics_over_https], ids=["gateway", "metrics"])
async def test_an_http_port_shows_what_the_files_hold_now(world: Any, ours: Certificate, other: Certificate) -> None:
    first, then = ssl.PEM_cert_to_DER_cert(ours.certificate.read_text()), other.certificate.read_text()
    copy = copy_of(other, "then")
    async with world(of_server(ours)) as port:
        kept = await asyncio.to_thread(connected, port)
        assert kept.getpeercert(binary_form=True) == first
        shutil.copy(other.certificate, ours.certificate)
        assert await asyncio.to_thread(shown_at, port) == first
        replace(ours, copy)
        assert await asyncio.to_thread(shown_at, port) == ssl.PEM_cert_to_DER_cert(then)
        assert await asyncio.to_thread(ask, kept) < 500
        with pytest.raises((OSError, http.client.HTTPException)):
            plain = socket.create_connection((HOST, port), timeout=PATIENCE_SECONDS)
            await asyncio.to_thread(ask, plain)


def connected(port: int) -> ssl.SSLSocket:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(socket.create_connection((HOST, port), timeout=PATIENCE_SECONDS))


def shown_at(port: int) -> bytes | None:
    with connected(port) as connection:
        return connection.getpeercert(binary_form=True)


def ask(connection: socket.socket) -> int:
    with connection:
        connection.sendall(b"GET /own HTTP/1.1\r\nhost: t\r\n\r\n")
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        return answer.status


def test_a_file_that_cannot_be_read_changes_nothing(ours: Certificate) -> None:
    made = iter(range(10))
    files = tls.FromFiles((str(ours.certificate),), lambda: (ours.certificate.read_bytes(), next(made))[1])
    assert [files.now(), files.now()] == [0, 0]
    content = ours.certificate.read_bytes()
    ours.certificate.unlink()
    assert files.now() == 0
    ours.certificate.write_bytes(content)
    assert [files.now(), files.now()] == [1, 1]
