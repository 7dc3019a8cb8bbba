"""HTTP as the node speaks it, against real servers on loopback, in virtual time."""

from __future__ import annotations

import asyncio
import gzip
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from email.utils import formatdate
from typing import Any

import pytest
from aiohttp import web

from posemesh.shell.http import Http, Incoming, Reply, TransportError, is_loopback
from posemesh.shell.offload import InlineOffload
from posemesh.testing import EPOCH, LoopClock, run_virtual

from .server_double import Handler, served


def with_http(handler: Handler, test: Callable[[Http, str], Awaitable[Any]], **clock: float) -> None:
    async def main() -> None:
        async with served(handler) as url:
            http = Http(LoopClock(**clock), InlineOffload(), user_agent="posemesh/1.2.3")
            try:
                await test(http, url)
            finally:
                await http.close()

    run_virtual(main(), limit=3600)


async def hello(request: web.Request) -> web.Response:
    return web.Response(text="hello")


async def failing(http: Http, url: str, *, method: str = "GET", within: float = 10.0, **options: Any) -> TransportError:
    with pytest.raises(TransportError) as caught:
        await http.request(method, url, within=within, **options)
    return caught.value


def test_a_request_and_its_answer() -> None:
    seen: list[Any] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append((request.method, request.path_qs, dict(request.headers), await request.read()))
        return web.Response(status=418, body=b"short\n and  stout", headers={"X-Kettle": "on"})

    async def test(http: Http, url: str) -> None:
        reply = await http.request(
            "POST", f"{url}/pot?x=1", body=b"{}", headers={"Authorization": "Bearer t"}, within=5
        )
        assert (reply.status, reply.ok, reply.body) == (418, False, b"short\n and  stout")
        assert reply.headers["x-kettle"] == "on"
        assert reply.excerpt == "short and stout"
        assert (await http.request("GET", url, within=5)).body
        (method, path, headers, body), (_, _, bare, _) = seen
        assert (method, path, body) == ("POST", "/pot?x=1", b"{}")
        assert headers["User-Agent"] == "posemesh/1.2.3"
        assert headers["Content-Type"] == "application/json"
        assert headers["Authorization"] == "Bearer t"
        assert "Content-Type" not in bare and "Authorization" not in bare

    with_http(handler, test)


def test_connections_are_kept() -> None:
    """Reference: a new client, and with it a connection, for every poll."""
    peers = set()

    async def handler(request: web.Request) -> web.Response:
        assert request.transport is not None
        peers.add(request.transport.get_extra_info("peername"))
        return web.Response()

    async def test(http: Http, url: str) -> None:
        for _ in range(10):
            await http.request("GET", url, within=5)
            await asyncio.sleep(30)
        assert len(peers) == 1

    with_http(handler, test)


def test_cookies_are_not_kept() -> None:
    seen = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Cookie"))
        return web.Response(headers={"Set-Cookie": "a=b"})

    async def test(http: Http, url: str) -> None:
        for _ in range(2):
            await http.request("GET", url, within=5)
        assert seen == [None, None]

    with_http(handler, test)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(status: int) -> None:
    """A token goes only where it was issued for."""
    paths = []

    async def handler(request: web.Request) -> web.Response:
        paths.append(request.path)
        return web.Response(status=status, headers={"Location": "/elsewhere"})

    async def test(http: Http, url: str) -> None:
        reply = await http.request("POST", f"{url}/here", body=b"", within=5)
        assert (reply.status, paths) == (status, ["/here"])

    with_http(handler, test)


@pytest.mark.parametrize("size", [0, 65_536, 65_537, 5_000_000])
def test_a_body_of_any_size(size: int) -> None:
    async def handler(request: web.Request) -> web.Response:
        body = await request.read()
        assert request.content_length == len(body)
        return web.Response(text=f"{len(body)} {body == bytes(size)} {request.content_type}")

    async def test(http: Http, url: str) -> None:
        reply = await http.request("POST", url, body=bytes(size), headers={"Content-Type": "a/b"}, within=5)
        assert reply.body.decode() == f"{size} True a/b"

    with_http(handler, test)


# --- Bounds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 999, 1000])
def test_an_answer_within_its_limit(size: int) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=b"x" * size)

    async def test(http: Http, url: str) -> None:
        assert len((await http.request("GET", url, within=5, limit=1000)).body) == size

    with_http(handler, test)


@pytest.mark.parametrize("encoding", [None, "gzip"])
@pytest.mark.parametrize("size", [1001, 8 * 1024**2])
def test_an_answer_over_its_limit(size: int, encoding: str | None) -> None:
    async def handler(request: web.Request) -> web.Response:
        if encoding is None:
            return web.Response(body=b"x" * size)
        return web.Response(body=gzip.compress(bytes(size)), headers={"Content-Encoding": "gzip"})

    async def test(http: Http, url: str) -> None:
        error = await failing(http, url, limit=1000)
        assert "exceeds 1000 bytes" in str(error)
        assert error.sent

    with_http(handler, test)


def test_an_endless_answer_ends() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x" * 10_000)

    async def test(http: Http, url: str) -> None:
        assert "exceeds" in str(await failing(http, url))

    with_http(handler, test)


def test_an_excerpt_is_one_short_line() -> None:
    body = "é\u0000\x1b[31m\n".encode() * 500
    reply = Reply(status=500, headers={}, body=body[:-1], service_now=0.0)
    assert len(reply.excerpt) <= 300
    assert reply.excerpt.isprintable()
    assert Reply(status=500, headers={}, body=b"\xff\xfe", service_now=0.0).excerpt == "��"


# --- What did not arrive ----------------------------------------------------------------------------------------


def no_name_server(*args: Any, **kwargs: Any) -> Any:
    raise socket.gaierror(socket.EAI_NONAME, "no such host")


def test_a_request_that_surely_never_left(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(http: Http, url: str) -> None:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            refused = await failing(http, f"http://127.0.0.1:{closed.getsockname()[1]}/a?secret=1", method="POST")
        assert not refused.sent
        assert "/a" in str(refused) and "secret=1" not in str(refused)
        assert not (await failing(http, "http://host.invalid./")).sent
        assert not (await failing(http, "http://")).sent

    monkeypatch.setattr(socket, "getaddrinfo", no_name_server)
    with_http(hello, test)


@pytest.mark.parametrize("how", ["hang up", "half", "no http", "wrong length"])
def test_a_request_that_may_have_arrived(how: str) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        match how:
            case "half":
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
            case "no http":
                writer.write(b"SSH-2.0-OpenSSH_9.6\r\n")
            case "wrong length":
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n")
        await writer.drain()
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(handler, "127.0.0.1", 0)
        http = Http(LoopClock(), InlineOffload(), user_agent="posemesh/1")
        try:
            port = server.sockets[0].getsockname()[1]
            error = await failing(http, f"http://127.0.0.1:{port}/v1/tasks")
            assert error.sent
            assert str(error).startswith(f"GET http://127.0.0.1:{port}/v1/tasks: ")
        finally:
            await http.close()
            server.close()

    run_virtual(main(), limit=60)


def test_an_answer_that_does_not_come_in_time() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        if request.path == "/slow":
            await asyncio.sleep(100)
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b".")
            await asyncio.sleep(1)

    async def test(http: Http, url: str) -> None:
        for path in ("slow", "trickle"):
            began = asyncio.get_running_loop().time()
            error = await failing(http, f"{url}/{path}", within=7.5)
            assert error.sent
            assert "no answer within 7.5 s" in str(error)
            assert asyncio.get_running_loop().time() - began == pytest.approx(7.5)

    with_http(handler, test)


def test_an_exchange_may_take_long_as_long_as_something_moves() -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=await request.read())

    async def test(http: Http, url: str) -> None:
        async def body(pause: float) -> AsyncIterator[bytes]:
            for _ in range(4):
                await asyncio.sleep(pause)
                yield b"x"

        async def send(pause: float) -> bytes:
            read = Incoming.reply
            reply = await http.exchange("PUT", url, read, body=body(pause), size=4, headers={}, idle=60.0)
            return reply.body

        assert await send(40.0) == b"xxxx"
        with pytest.raises(TransportError, match="within 60 s of the last byte"):
            await send(70.0)

    with_http(handler, test)


def test_a_failed_request_is_not_repeated_by_the_client() -> None:
    """An ask may have leased a task though its answer was lost; only the engine decides when to ask again."""
    paths = []

    async def handler(request: web.Request) -> web.Response:
        paths.append(request.path)
        if request.path == "/v1/tasks":
            assert request.transport is not None
            request.transport.abort()
        return web.Response()

    async def test(http: Http, url: str) -> None:
        await http.request("GET", f"{url}/kept", within=5)
        assert (await failing(http, f"{url}/v1/tasks")).sent
        assert paths == ["/kept", "/v1/tasks"]

    with_http(handler, test)


# --- The service's time -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("skew", "off"), [(0, 0), (4, 4), (-4, -4), (0, -4), (3600, 0), (-3600, 0), (6, 0), (0, 30), (0, -30)]
)
def test_the_date_header_counts_where_the_clocks_differ(skew: float, off: float) -> None:
    """``skew`` is how wrong the node's clock is, ``off`` by how much the answer's Date is."""

    async def handler(request: web.Request) -> web.Response:
        return web.Response(headers={"Date": formatdate(EPOCH + off, usegmt=True)})

    async def test(http: Http, url: str) -> None:
        reply = await http.request("GET", url, within=5)
        assert reply.service_now == pytest.approx(EPOCH + (skew if abs(off - skew) <= 5 else off))

    with_http(handler, test, skew=skew)


def test_a_wrong_date_says_nothing() -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(headers={"Date": "yesterday"})

    async def test(http: Http, url: str) -> None:
        assert (await http.request("GET", url, within=5)).service_now == EPOCH

    with_http(handler, test)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        ("0", 0.0),
        (formatdate(EPOCH + 90, usegmt=True), 90.0),
        (formatdate(EPOCH - 90, usegmt=True), 0.0),
        ("soon", None),
        ("-5", None),
        (None, None),
    ],
)
def test_retry_after(header: str | None, seconds: float | None) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=503, headers={} if header is None else {"Retry-After": header})

    async def test(http: Http, url: str) -> None:
        assert (await http.request("GET", url, within=5)).retry_after == seconds

    with_http(handler, test, skew=0.0)


# --- Proxies ----------------------------------------------------------------------------------------------------


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def through(monkeypatch: pytest.MonkeyPatch, url: str, **env: str) -> tuple[list[str], Reply | TransportError]:
    """What a proxy of this environment saw of a request for ``url``, and what came of it."""
    seen: list[str] = []

    async def proxy(request: web.Request) -> web.Response:
        seen.append(str(request.url))
        return web.Response(status=502 if request.method == "CONNECT" else 200, text="proxied")

    async def main() -> Reply | TransportError:
        async with served(proxy) as at:
            for name, value in env.items():
                monkeypatch.setenv(name, value.format(proxy=at))
            http = Http(LoopClock(), InlineOffload(), user_agent="x")
            try:
                return await http.request("GET", url.format(proxy=at), within=5)
            except TransportError as error:
                return error
            finally:
                await http.close()

    return seen, run_virtual(main(), limit=60)


def test_a_proxy_is_used_for_other_hosts(monkeypatch: pytest.MonkeyPatch, no_proxies: None) -> None:
    seen, reply = through(monkeypatch, "http://dms.invalid/v1/tasks", HTTP_PROXY="{proxy}")
    assert isinstance(reply, Reply) and reply.body == b"proxied"
    assert seen == ["http://dms.invalid/v1/tasks"]


def test_a_proxy_is_not_used_for_loopback(monkeypatch: pytest.MonkeyPatch, no_proxies: None) -> None:
    seen, reply = through(
        monkeypatch, "{proxy}/direct", HTTP_PROXY="http://127.0.0.1:1", https_proxy="http://127.0.0.1:1"
    )
    assert isinstance(reply, Reply) and seen[0].endswith("/direct")


def test_no_proxy_is_honoured(monkeypatch: pytest.MonkeyPatch, no_proxies: None) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", no_name_server)
    seen, reply = through(monkeypatch, "http://dms.invalid./x", HTTP_PROXY="{proxy}", NO_PROXY="dms.invalid.")
    assert isinstance(reply, TransportError) and seen == []


def test_a_url_that_cannot_be_read_is_told_as_without_a_proxy(
    monkeypatch: pytest.MonkeyPatch, no_proxies: None
) -> None:
    """Choosing the proxy raised a bare ValueError."""
    seen, reply = through(monkeypatch, "http://[::1/v1", HTTP_PROXY="{proxy}")
    assert isinstance(reply, TransportError) and not reply.sent and seen == []


def test_a_tunnel_that_is_refused_sent_nothing(monkeypatch: pytest.MonkeyPatch, no_proxies: None) -> None:
    seen, reply = through(monkeypatch, "https://dms.invalid/v1", HTTPS_PROXY="{proxy}")
    assert isinstance(reply, TransportError)
    assert not reply.sent


@pytest.mark.parametrize(
    ("host", "is_it"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("localhost.example", False),
        ("127.0.0.1.example", False),
        ("", False),
    ],
)
def test_loopback(host: str, is_it: bool) -> None:
    assert is_loopback(host) is is_it


def test_names_go_through_the_offload() -> None:
    """A slow name server must not hold up the loop."""
    asked = []

    class Noting(InlineOffload):
        async def call(self, function: Any, *args: Any, **kwargs: Any) -> Any:
            asked.append((function, args[0]))
            return await super().call(function, *args, **kwargs)

    async def main() -> None:
        async with served(hello) as url:
            http = Http(LoopClock(), Noting(), user_agent="x")
            try:
                assert (await http.request("GET", url.replace("127.0.0.1", "localhost"), within=5)).ok
            finally:
                await http.close()

    run_virtual(main(), limit=60)
    assert asked == [(socket.getaddrinfo, "localhost")]
