"""HTTP/1.1 as its RFCs (9110, 9112) have it, spoken to an application of a test over a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx2
import pytest

from gateway import http1
from gateway.exchange import WHOLE_BODY
from gateway.server import HttpServer
from gateway.settings import GatewaySettings
from tests.patience import PATIENCE_SECONDS, until

HOST = "127.0.0.1"
SETTINGS = GatewaySettings(ports=(0,))


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Says what it was asked: method, path, query and body."""
    body, more = b"", True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            return
        body, more = body + event["body"], event["more_body"]
    said = b"%b %b ?%b %b" % (scope["method"].encode(), scope["path"].encode(), scope["query_string"], body)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(said))]})
    await send({"type": "http.response.body", "body": said})


def in_parts(*parts: bytes, headers: Sequence[tuple[bytes, bytes]] = (), status: int = 200) -> Any:
    """Answers in parts, whatever it is asked."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for part in parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body"})

    return app


@asynccontextmanager
async def serving(app: Any = echo, settings: GatewaySettings = SETTINGS) -> AsyncIterator[HttpServer]:
    server = HttpServer(app, settings, host=HOST, drain_seconds=1)
    server.port = (await server.start())[0]  # type: ignore[attr-defined]
    try:
        yield server
    finally:
        await asyncio.wait_for(server.stop(), PATIENCE_SECONDS)


class Talk:
    """A connection, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def say(self, *sent: bytes) -> None:
        self.writer.write(b"".join(sent))

    async def hear(self, count: int) -> bytes:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self.reader.readexactly(count)

    async def head(self) -> bytes:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self.reader.readuntil(b"\r\n\r\n")

    async def rest(self) -> bytes:
        """All until the other side closes."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self.reader.read()


@asynccontextmanager
async def talk(server: HttpServer) -> AsyncIterator[Talk]:
    reader, writer = await asyncio.open_connection(HOST, server.port)  # type: ignore[attr-defined]
    try:
        yield Talk(reader, writer)
    finally:
        writer.close()


def post(body: bytes, *headers: bytes, path: bytes = b"/a", version: bytes = b"1.1") -> bytes:
    lines = [b"POST %b HTTP/%b" % (path, version), b"host: t", b"content-length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


async def answered(each: Talk, said: bytes) -> bytes:
    """The head before a body that is expected."""
    head = await each.head()
    assert head.startswith(b"HTTP/1.1 200 OK\r\ndate: "), head
    assert b"content-length: %d\r\n" % len(said) in head
    assert await each.hear(len(said)) == said
    return head


async def test_requests_that_do_not_wait_for_answers_are_answered_in_turn() -> None:
    async with serving() as server, talk(server) as client:
        client.say(*(post(b"%d" % number) for number in range(50)))
        for number in range(50):
            await answered(client, b"POST /a ? %d" % number)
        client.say(post(b"after"))
        await answered(client, b"POST /a ? after")


async def test_a_request_in_single_bytes() -> None:
    async with serving() as server, talk(server) as client:
        for byte in post(b"body", path=b"/a%20b?c=d"):
            client.say(bytes([byte]))
            await asyncio.sleep(0)
        await answered(client, b"POST /a b ?c=d body")


async def test_a_body_in_chunks_and_a_large_one() -> None:
    async with serving() as server, talk(server) as client:
        client.say(b"POST /a HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n", b"3\r\nabc\r\n", b"2\r\nde\r\n0\r\n\r\n")
        await answered(client, b"POST /a ? abcde")
        large = b"x" * 3_000_000
        client.say(post(large))
        await answered(client, b"POST /a ? " + large)


async def test_who_asks_first_whether_to_go_on() -> None:
    async with serving() as server, talk(server) as client:
        client.say(b"POST /a HTTP/1.1\r\ncontent-length: 2\r\nexpect: 100-continue\r\n\r\n")
        assert await client.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.say(b"ab")
        await answered(client, b"POST /a ? ab")


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (b"/a?b=%20c#d", b"GET /a ?b=%20c "),
        (b"http://elsewhere/a?b", b"GET /a ?b "),
        (b"http://elsewhere?b", b"GET / ?b "),
        (b"/%C3%A9", "GET /\u00e9 ? ".encode()),
        (b"//a", b"GET //a ? "),
    ],
)
async def test_targets(target: bytes, said: bytes) -> None:
    async with serving() as server, talk(server) as client:
        client.say(b"GET ", target, b" HTTP/1.1\r\nhost: t\r\n\r\n")
        await answered(client, said)


@pytest.mark.parametrize(
    ("request_", "keeps"),
    [
        (post(b""), True),
        (post(b"", b"connection: close"), False),
        (post(b"", version=b"1.0"), False),
    ],
)
async def test_how_long_a_connection_lasts(request_: bytes, keeps: bool) -> None:
    async with serving() as server, talk(server) as client:
        client.say(request_)
        head = await answered(client, b"POST /a ? ")
        assert (b"connection: close" in head) is not keeps
        if keeps:
            client.say(post(b"", b"connection: close"))
            await answered(client, b"POST /a ? ")
        assert await client.rest() == b""


async def test_who_offers_another_protocol_is_answered_in_this_one() -> None:
    """As clients that would rather speak HTTP/2 do."""
    offer = (b"connection: Upgrade, HTTP2-Settings", b"upgrade: h2c", b"http2-settings: AAMAAABk")
    async with serving() as server, talk(server) as client:
        client.say(post(b"body", *offer))
        await answered(client, b"POST /a ? body")


async def test_who_has_said_all_may_still_read() -> None:
    async with serving() as server, talk(server) as client:
        client.say(post(b"x"))
        client.writer.write_eof()
        await answered(client, b"POST /a ? x")
        assert await client.rest() == b""


async def test_what_is_no_request_comes_after_the_answers_before_it() -> None:
    async with serving() as server, talk(server) as client:
        client.say(post(b"good"), b"\x00nonsense\r\n\r\n")
        await answered(client, b"POST /a ? good")
        assert await client.rest() == b""


async def test_a_head_without_an_end_comes_after_the_answer_before_it() -> None:
    released = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await released.wait()
        await echo(scope, receive, send)

    async with serving(app) as server, talk(server) as client:
        client.say(post(b"good"))
        for _ in range(20):
            client.say(b"GET / HTTP/1.1\r\n" if not _ else b"", b"x: " + b"y" * 10_000 + b"\r\n")
            await asyncio.sleep(0.01)
        released.set()
        await answered(client, b"POST /a ? good")
        with suppress(ConnectionResetError):  # it was closed before all was read
            assert await client.rest() == b""


async def test_there_is_a_most_of_requests_that_wait() -> None:
    async with serving() as server, talk(server) as client:
        client.say(*(post(b"%d" % number) for number in range(1_000)))
        # One is answered, so many wait, and no more is heard.
        for number in range(1 + http1._MAX_WAITING):
            await answered(client, b"POST /a ? %d" % number)
        with suppress(ConnectionResetError):
            assert await client.rest() == b""


async def test_a_body_that_has_arrived_whole_can_be_had_at_once() -> None:
    """As an extension of ASGI, of which `receive` knows: nothing is given twice, and nothing is lost."""
    asked = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        whole = scope[WHOLE_BODY]
        first = [whole(3), whole(4), whole(4)]
        asked.set()
        rest = await receive() if first == [None] * 3 else {}
        while rest.get("more_body"):
            rest = {**(more := await receive()), "body": rest["body"] + more["body"]}
        said = repr((*first, rest.get("body"), whole(4))).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(said))]})
        await send({"type": "http.response.body", "body": said})

    async with serving(app) as server, talk(server) as client:
        client.say(post(b"four"))
        await answered(client, b"(None, b'four', None, None, None)")
        client.say(post(b""))
        await answered(client, b"(b'', None, None, None, None)")
        client.say(post(b"larger"))
        await answered(client, b"(None, None, None, b'larger', None)")
        asked.clear()
        client.say(post(b"part")[:-2])
        await asyncio.wait_for(asked.wait(), PATIENCE_SECONDS)
        client.say(b"rt")
        await answered(client, b"(None, None, None, b'part', None)")


async def test_what_follows_a_body_is_no_header() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass
        said = b"%d" % len(scope["headers"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(said))]})
        await send({"type": "http.response.body", "body": said})

    async with serving(app) as server, talk(server) as client:
        client.say(b"POST /a HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nx-api-key: stolen\r\n\r\n")
        await answered(client, b"1")


async def test_what_follows_a_body_is_bounded() -> None:
    async with serving() as server, talk(server) as client:
        client.say(b"POST /a HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n")
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not client.reader.at_eof():
                    client.say(b"a:b\r\n" * 1_000)
                    await client.writer.drain()
                    await asyncio.sleep(0)
        except ConnectionError:
            return
        assert (await client.rest()).startswith(b"HTTP/1.1 400 ")


async def test_there_is_a_most_of_headers() -> None:
    async with serving() as server, talk(server) as client:
        client.say(b"GET / HTTP/1.1\r\n", b"a: b\r\n" * 1_000, b"\r\n")
        assert (await client.rest()).startswith(b"HTTP/1.1 431 ")


async def refusing(scope: Any, receive: Any, send: Any) -> None:
    """Answers without a look at the body."""
    await send({"type": "http.response.start", "status": 405, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"no"})


async def test_who_asks_whether_to_go_on_and_is_told_not_to() -> None:
    """It may send the body nevertheless, or not: what comes next is not taken for one or the other."""
    async with serving(refusing) as server, talk(server) as client:
        client.say(b"POST /a HTTP/1.1\r\ncontent-length: 200\r\nexpect: 100-continue\r\n\r\n")
        head = await client.head()
        assert head.startswith(b"HTTP/1.1 405 ")
        assert b"connection: close" in head
        client.say(post(b""))
        assert await client.rest() == b"no"


async def test_an_answer_reaches_who_is_still_sending() -> None:
    """Closing a connection with something unread would take it back."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-length", b"300000"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 403, "headers": headers})
        await send({"type": "http.response.body", "body": b"x" * 300_000})

    async with serving(app) as server, talk(server) as client:
        client.say(b"POST /a HTTP/1.1\r\ncontent-length: 5000000\r\n\r\n")
        for _ in range(50):
            client.say(b"y" * 100_000)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await client.writer.drain()
        assert (await client.head()).startswith(b"HTTP/1.1 403 ")
        assert await client.rest() == b"x" * 300_000


async def test_a_body_that_goes_wrong_after_its_answer_gets_no_second_one() -> None:
    async with serving(refusing) as server, talk(server) as client:
        client.say(b"POST /a HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n")
        assert (await client.head()).startswith(b"HTTP/1.1 405 ")
        assert await client.hear(2) == b"no"
        client.say(b"zz\r\n")
        assert await client.rest() == b""


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/2.0\r\n\r\n",
        b"GET / HTTP/0.9\r\n\r\n",
        b"CONNECT t:80 HTTP/1.1\r\nhost: t\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        b"POST / HTTP/1.1\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n0\r\n\r\n",
    ],
)
async def test_what_could_be_read_in_two_ways(head: bytes) -> None:
    async with serving() as server, talk(server) as client:
        client.say(head)
        assert (await client.rest()).startswith(b"HTTP/1.1 400 ")


async def test_a_body_that_is_none() -> None:
    async with serving() as server, talk(server) as client:
        client.say(b"POST /a HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n")
        assert (await client.rest()).startswith(b"HTTP/1.1 400 Bad Request\r\n")


@pytest.mark.parametrize(
    ("method", "version", "app", "head", "body"),
    [
        (b"GET", b"1.1", in_parts(b"ab", b"", b"c"), b"transfer-encoding: chunked", b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"),
        (b"GET", b"1.0", in_parts(b"ab", b"c"), b"connection: close", b"abc"),
        (b"GET", b"1.1", in_parts(b"ab", b"c", headers=[(b"content-length", b"3")]), b"content-length: 3", b"abc"),
        (b"HEAD", b"1.1", in_parts(b"ab", headers=[(b"content-length", b"2")]), b"content-length: 2", b""),
        (b"HEAD", b"1.1", in_parts(b"ab"), b"HTTP/1.1 200 OK", b""),
        (b"GET", b"1.1", in_parts(status=204), b"HTTP/1.1 204 No Content", b""),
        (b"GET", b"1.1", in_parts(b"nobody", status=204), b"HTTP/1.1 204 No Content", b""),
        (b"GET", b"1.1", in_parts(status=304, headers=[(b"content-length", b"9")]), b"content-length: 9", b""),
    ],
)
async def test_bodies_of_answers(method: bytes, version: bytes, app: Any, head: bytes, body: bytes) -> None:
    async with serving(app) as server, talk(server) as client:
        client.say(method, b" / HTTP/", version, b"\r\nconnection: close\r\n\r\n")
        assert head in await client.head()
        assert await client.rest() == body


@pytest.mark.parametrize(
    ("app", "status"),
    [
        (in_parts(headers=[(b"x", b"a\r\ny: b")]), b"500"),
        (in_parts(headers=[(b"x", b"a\rb")]), b"500"),
        (in_parts(b"abc", headers=[(b"content-length", b"2")]), b""),
        (in_parts(b"a", headers=[(b"content-length", b"2")]), b""),
    ],
    ids=["two headers", "bare return", "too long", "too short"],
)
async def test_answers_that_cannot_be_sent(app: Any, status: bytes) -> None:
    """They are never sent in part as if they were whole."""
    async with serving(app) as server, talk(server) as client:
        client.say(b"GET / HTTP/1.1\r\n\r\n")
        try:
            said = await client.rest()
        except ConnectionResetError:
            said = b""
        assert said.startswith(b"HTTP/1.1 500 ") if status else not said.endswith(b"abc")
        assert b"\ny: b" not in said


async def test_an_application_that_fails_says_so() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("on purpose")

    async with serving(app) as server, talk(server) as client:
        client.say(b"GET / HTTP/1.1\r\n\r\n")
        assert (await client.rest()).startswith(b"HTTP/1.1 500 Internal Server Error\r\n")


async def test_who_does_not_read_is_not_written_to_without_end() -> None:
    sent = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200, "headers": ()})
        while True:
            await send({"type": "http.response.body", "body": b"x" * 65_536, "more_body": True})
            sent += 1

    async with serving(app) as server, talk(server) as client:
        client.writer.transport.pause_reading()
        client.say(b"GET / HTTP/1.1\r\n\r\n")

        async def stands_still() -> bool:
            before = sent
            await asyncio.sleep(0.2)
            return 0 < before == sent

        await until(stands_still)
        assert sent < 1_000


async def test_the_application_hears_who_has_gone() -> None:
    heard = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        heard.set()

    async with serving(app) as server:
        async with talk(server) as client:
            client.say(b"GET / HTTP/1.1\r\n\r\n")
            await until(lambda: _true(lambda: bool(server.connections)))
        async with asyncio.timeout(PATIENCE_SECONDS):
            await heard.wait()


async def _true(check: Callable[[], bool]) -> bool:
    return check()


async def test_there_is_a_most_of_connections() -> None:
    async with serving(settings=SETTINGS.model_copy(update={"max_connections": 2})) as server:
        async with talk(server) as first, talk(server) as second, talk(server) as third:
            for client in (first, second):
                client.say(post(b""))
                await answered(client, b"POST /a ? ")
            assert (await third.rest()).startswith(b"HTTP/1.1 503 Service Unavailable\r\n")

        async def gone() -> bool:
            return not server.connections

        await until(gone)
        async with talk(server) as again:
            again.say(post(b""))
            await answered(again, b"POST /a ? ")


async def test_a_client_of_everyday() -> None:
    async with serving() as server, httpx2.AsyncClient(base_url=f"http://{HOST}:{server.port}") as http:  # type: ignore[attr-defined]
        answers = await asyncio.gather(*(http.post("/a", content=b"%d" % number) for number in range(100)))
    assert [answer.text for answer in answers] == [f"POST /a ? {number}" for number in range(100)]
