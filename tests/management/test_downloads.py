"""Files from URLs: only from where it is allowed, from the very address that was checked, in bounded time and size."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from chassis import errors
from services.management import downloads
from services.management.downloads import Limits, Stop

ROWS = b"id,x,city,at\n1,0.5,Bern,2026-01-31 13:05:00\n2,,,\n"


class Site(ThreadingHTTPServer):
    """A site that answers each path as it is told, and remembers who was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pages: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self.asked: list[tuple[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def page(self, path: str, body: bytes = b"", status: int = 200, **headers: str) -> str:
        """Answer a path; its URL."""

        def answer(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(body)

        self.pages[path] = answer
        return self.url + path


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        site: Any = self.server
        site.asked.append((self.path, self.headers["Host"]))
        page = site.pages.get(self.path)
        if page is None:
            self.send_error(404)
        else:
            page(self)

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as serving:
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


def fetched(url: str, folder: Path, *hosts: str, max_bytes: int = 1 << 20, seconds: float = 60) -> bytes:
    downloads.fetch(url, Limits(hosts, max_bytes, seconds), folder / "file", Stop())
    return (folder / "file").read_bytes()


def test_an_allowed_host(site: Site, tmp_path: Path) -> None:
    url = site.page("/a%20b.csv?sign=x%2By", ROWS)
    port = site.server_port
    for allowed in ("127.0.0.1", f"127.0.0.1:{port}", "127.0.0.0/8"):
        assert fetched(url, tmp_path, allowed) == ROWS
    assert set(site.asked) == {("/a%20b.csv?sign=x%2By", f"127.0.0.1:{port}")}
    # A name is allowed, and so is the internal address that it leads to.
    assert fetched(site.page("/x", ROWS).replace("127.0.0.1", "localhost"), tmp_path, "localhost", "127.0.0.1", "::1")
    assert site.asked[-1] == ("/x", f"localhost:{port}")


@pytest.mark.parametrize(
    ("change", "hosts"),
    [
        ("127.0.0.1", ()),
        ("127.0.0.1", ("127.0.0.1:1", "example.com", "10.0.0.0/8")),
        # Every public host, or a name that leads inside: not inside.
        ("127.0.0.1", ("*",)),
        ("localhost", ("*",)),
        ("localhost", ("localhost",)),
        ("127.1", ("*",)),
        ("2130706433", ("*",)),
        ("0x7f000001", ("*",)),
        ("0.0.0.0", ("*",)),
        ("[::1]", ("*",)),
        ("[::ffff:127.0.0.1]", ("*",)),
        ("[64:ff9b::7f00:1]", ("*",)),
        ("[2002:7f00:1::]", ("*",)),
        ("169.254.169.254", ("*",)),
        ("[fe80::1]", ("*",)),
        ("100.64.0.1", ("*",)),
        ("224.0.0.1", ("*",)),
        ("user:secret@127.0.0.1", ("127.0.0.1",)),
    ],
)
def test_other_hosts(site: Site, tmp_path: Path, change: str, hosts: tuple[str, ...]) -> None:
    url = site.page("/x", ROWS).replace("127.0.0.1", change)
    with pytest.raises(errors.InvalidArgument) as refused:
        fetched(url, tmp_path, *hosts)
    assert "secret" not in refused.value.message
    assert site.asked == []


def test_a_name_that_changes_its_mind(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name leads outside when it is checked, and inside ever after: it is asked for once, and not once more."""
    answers = [[(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("203.0.113.1", site.server_port))]]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers.pop())
    reached: list[Any] = []

    def connect(address: Any, **_: Any) -> Any:
        reached.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(errors.InvalidArgument):
        # Addresses of documentation are no public ones.
        fetched(site.page("/x").replace("127.0.0.1", "rebinding.example"), tmp_path, "*")
    answers[:] = [[(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("198.41.0.4", site.server_port))]]
    with pytest.raises(errors.Unavailable):
        fetched(site.page("/x").replace("127.0.0.1", "rebinding.example"), tmp_path, "*")
    assert reached == [("198.41.0.4", site.server_port)]


def test_redirects_are_checked_too(site: Site, tmp_path: Path) -> None:
    site.page("/end", ROWS)
    assert fetched(site.page("/far", status=302, Location="/end"), tmp_path, "127.0.0.1") == ROWS
    inside = site.page("/in", status=307, Location=f"http://localhost:{site.server_port}/end")
    for hosts in (("127.0.0.1",), ("127.0.0.1", "10.0.0.0/8")):
        with pytest.raises(errors.InvalidArgument, match="does not allow"):
            fetched(inside, tmp_path, *hosts)
    with pytest.raises(errors.InvalidArgument):
        fetched(site.page("/file", status=302, Location="file:///etc/passwd"), tmp_path, "127.0.0.1")
    with pytest.raises(errors.InvalidArgument, match="more than 5 times"):
        fetched(site.page("/round", status=302, Location="/round"), tmp_path, "127.0.0.1")
    assert [path for path, _ in site.asked].count("/round") == 6


def test_size_and_time_are_bounded(site: Site, tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidArgument, match="more than 10 bytes"):
        fetched(site.page("/large", ROWS), tmp_path, "127.0.0.1", max_bytes=10)

    def unending(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(b"x" * 65_536)
        except OSError:
            return

    site.pages["/unending"] = unending
    with pytest.raises(errors.InvalidArgument, match="more than 1000000 bytes"):
        fetched(site.url + "/unending", tmp_path, "127.0.0.1", max_bytes=1_000_000)
    with pytest.raises(errors.Unavailable, match="too long"):
        fetched(site.url + "/unending", tmp_path, "127.0.0.1", max_bytes=1 << 40, seconds=0.05)
    stopped = Stop()
    stopped.set()
    with pytest.raises(errors.Unavailable, match="stopped"):
        downloads.fetch(site.url + "/unending", Limits(("127.0.0.1",), 1 << 40, 60), tmp_path / "file", stopped)


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.0 200 OK\r\nX: ", b"HTTP/1.0 200 OK\r\n\r\nid,x\n"])
def test_a_server_that_falls_silent_is_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sent: bytes) -> None:
    """At once when the task is stopped, and when its time is over: however long a step may take."""
    monkeypatch.setattr(downloads, "_STEP_SECONDS", 3600)
    for seconds, said in ((3600.0, "stopped"), (0.2, "too long")):
        with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor(1) as pool:
            stop, limits = Stop(), Limits(("127.0.0.1",), 1 << 20, seconds)
            url = f"http://127.0.0.1:{listening.getsockname()[1]}/rows"
            fetching = pool.submit(downloads.fetch, url, limits, tmp_path / "file", stop)
            caller, _ = listening.accept()
            with caller:
                assert caller.recv(1 << 16)
                caller.sendall(sent)
                if said == "stopped":
                    stop.set()
                with pytest.raises(errors.Unavailable, match=said):
                    fetching.result(60)


def test_what_the_server_says(site: Site, tmp_path: Path) -> None:
    for status, error in (
        (404, errors.NotFound), (403, errors.InvalidArgument), (204, errors.InvalidArgument),
        (500, errors.Unavailable), (503, errors.Unavailable), (429, errors.Unavailable),
    ):  # fmt: skip
        with pytest.raises(error):
            fetched(site.page("/said", status=status), tmp_path, "127.0.0.1")
    with pytest.raises(errors.Unavailable):
        fetched(site.page("/cut", b"half", **{"Content-Length": "8"}), tmp_path, "127.0.0.1")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with pytest.raises(errors.Unavailable):
            fetched(f"http://127.0.0.1:{nobody.getsockname()[1]}/", tmp_path, "127.0.0.1")


def test_an_object_of_oss() -> None:
    """Everybody's objects are read over https; a bucket without its endpoint cannot be found."""
    limits = Limits(("bucket.oss-cn-hangzhou.aliyuncs.com",), 1, 1)
    downloads.check("oss://bucket.oss-cn-hangzhou.aliyuncs.com/a/b.csv", limits)
    for url in (
        "oss://bucket/a.csv",
        "oss://other.oss-cn-hangzhou.aliyuncs.com/a",
        "ftp://x/y",
        "http://",
        "http:///x",
    ):
        with pytest.raises(errors.InvalidArgument):
            downloads.check(url, limits)
