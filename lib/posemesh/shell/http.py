"""HTTP as the node speaks it: kept connections, bounded bodies, no redirects, proxies but for loopback."""

from __future__ import annotations

import asyncio
import io
import ipaddress
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from posemesh.errors import PosemeshError
from posemesh.policy import service_time
from posemesh.shell.clock import Clock
from posemesh.shell.offload import Offload
from posemesh.wire.dms import parse_http_date, parse_retry_after

__all__ = (
    "ANSWER_BYTES_MAX",
    "CONNECTIONS_MAX",
    "AddressRefused",
    "Http",
    "Incoming",
    "Reply",
    "TransportError",
    "is_loopback",
    "new_connector",
)

T = TypeVar("T")

ANSWER_BYTES_MAX = 8 * 1024 * 1024
"""A service's JSON answer is read up to this many bytes."""
PIECE_BYTES = 64 * 1024
JSON_TYPE = "application/json"
CONNECTIONS_MAX = 256
"""Requests that one client has under way at a time; those of another never wait for them."""
STREAM_BYTES = 256 * 1024
EXCERPT_CHARS = 300
KEPT_SECS = 55.0
"""A connection is kept for the next request this long: above the longest pause between two polls by default, below the
60 s after which load balancers commonly hang up."""
# Where clouds keep what they tell a machine about itself, beside the link-local addresses: Amazon, Alibaba, Oracle.
METADATA = frozenset(map(ipaddress.ip_address, ("fd00:ec2::254", "100.100.100.200", "192.0.0.192")))
NAT64 = ipaddress.ip_network("64:ff9b::/96")


class TransportError(PosemeshError):
    """No usable answer came. ``sent`` is False only where the request surely never left."""

    def __init__(self, message: str, *, sent: bool) -> None:
        self.sent = sent
        super().__init__(message)


class AddressRefused(TransportError):
    """The URL leads to an address that is no server's: this machine's link, or its cloud's metadata."""

    def __init__(self, message: str) -> None:
        super().__init__(message, sent=False)


class _Unsafe(OSError):
    """A name that resolves to such an address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer. ``service_now`` is the service's time in epoch seconds at its arrival."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    service_now: float

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def retry_after(self) -> float | None:
        """Seconds the service asks to wait, None where it does not."""
        return parse_retry_after(self.headers.get("Retry-After"), service_now=self.service_now)

    @property
    def excerpt(self) -> str:
        """The beginning of the body on one line, for an error message."""
        text = self.body[: EXCERPT_CHARS * 4].decode("utf-8", "replace")
        return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:EXCERPT_CHARS]


class Incoming:
    """An answer whose body is still arriving. ``service_now`` as in :class:`Reply`."""

    def __init__(self, response: aiohttp.ClientResponse, service_now: float, alive: Callable[[], None]) -> None:
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers
        self.service_now = service_now
        self._content = response.content
        self._alive = alive

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it arrives."""
        async for chunk in self._content.iter_any():
            self._alive()
            yield chunk

    async def reply(self, limit: int = ANSWER_BYTES_MAX) -> Reply:
        """All of it. Raises TransportError beyond ``limit`` bytes."""
        body = await _read(self._content, limit)
        if body is None:
            raise TransportError(f"the answer exceeds {limit} bytes", sent=True)
        return Reply(status=self.status, headers=self.headers, body=body, service_now=self.service_now)


class _Resolver(AbstractResolver):
    """Names through the offload: a slow name server must not hold up the loop, nor its thread the process's end."""

    def __init__(self, offload: Offload, *, wary: bool) -> None:
        self._offload = offload
        self._wary = wary

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._offload.call(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM, family=family)
        if self._wary and any(_leads_inside(str(address[0])) for *_, address in found):
            raise _Unsafe(f"{host} resolves to a link-local or metadata address")
        return [
            ResolveResult(hostname=host, host=str(address[0]), port=int(address[1]), family=kind, proto=proto, flags=0)
            for kind, _, proto, _, address in found
        ]

    async def close(self) -> None:
        pass


def new_connector(offload: Offload, *, wary: bool) -> aiohttp.BaseConnector:
    """Connections, made and kept; each client that uses them keeps to its own limit."""
    return aiohttp.TCPConnector(limit=0, keepalive_timeout=KEPT_SECS, resolver=_Resolver(offload, wary=wary))


class Http:
    """One node's client. Open it on the loop that uses it.

    A ``wary`` one is for URLs that come from the network: it refuses link-local and metadata addresses. A ``connector``
    that is given, as wary as the client, is shared with others, and closed by whom it belongs to.
    """

    def __init__(
        self,
        clock: Clock,
        offload: Offload,
        *,
        user_agent: str,
        wary: bool = False,
        connector: aiohttp.BaseConnector | None = None,
    ) -> None:
        self._clock = clock
        self._wary = wary
        self._proxies = getproxies_environment()
        self._share = asyncio.Semaphore(CONNECTIONS_MAX)
        self._session = aiohttp.ClientSession(
            connector=connector or new_connector(offload, wary=wary),
            connector_owner=connector is None,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": user_agent},
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=True,
        )
        # aiohttp repeats a GET at once where a kept connection fails. An ask that leases a task is no such GET, and the
        # engine alone decides when to try again.
        self._session._retry_connection = False

    async def close(self) -> None:
        await self._session.close()

    async def request(
        self,
        method: str,
        url: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        within: float,
        limit: int = ANSWER_BYTES_MAX,
    ) -> Reply:
        """Send one request and read its whole answer, ``within`` seconds.

        Raises TransportError where no answer comes, or one of more than ``limit`` bytes.
        """
        return await self._send(
            method,
            url,
            _sent(body),
            headers or {},
            lambda incoming: incoming.reply(limit),
            asyncio.timeout(within),
            f"within {within:.3g} s",
        )

    async def exchange(
        self,
        method: str,
        url: str,
        read: Callable[[Incoming], Awaitable[T]],
        *,
        body: AsyncIterator[bytes | memoryview] | None = None,
        size: int = 0,
        headers: Mapping[str, str],
        idle: float,
    ) -> T:
        """Send one request whose ``body`` of ``size`` bytes leaves in pieces, and have ``read`` take the answer as it
        arrives. ``read`` may raise PosemeshErrors of its own, but no OSError.

        Raises TransportError where no answer comes, or nothing moves either way for ``idle`` seconds.
        """
        given = dict(headers)
        if body is not None:
            given["Content-Length"] = str(size)
        patience = asyncio.timeout(idle)
        loop = asyncio.get_running_loop()

        def alive() -> None:
            patience.reschedule(loop.time() + idle)

        async def watched(pieces: AsyncIterator[bytes | memoryview]) -> AsyncIterator[bytes | memoryview]:
            async for piece in pieces:
                alive()
                yield piece

        data = None if body is None else watched(body)
        return await self._send(
            method, url, data, given, read, patience, f"within {idle:.3g} s of the last byte", alive
        )

    async def _send(
        self,
        method: str,
        url: str,
        data: Any,
        headers: Mapping[str, str],
        read: Callable[[Incoming], Awaitable[T]],
        patience: asyncio.Timeout,
        term: str,
        alive: Callable[[], None] = lambda: None,
    ) -> T:
        where = f"{method} {_shown(url)}"
        if self._wary and _leads_inside(_host(url)):
            raise AddressRefused(f"{where}: link-local and metadata addresses are no domain server's")
        proxy = self._proxy(url)
        try:
            async with patience, self._share:
                async with self._session.request(
                    method,
                    url,
                    data=data,
                    headers=headers,
                    allow_redirects=False,
                    proxy=proxy,
                    read_bufsize=STREAM_BYTES,
                ) as response:
                    date = parse_http_date(response.headers.get("Date"))
                    return await read(Incoming(response, service_time(self._clock.wall(), date), alive))
        except TimeoutError as error:
            raise TransportError(f"{where}: no answer {term}", sent=not _unsent(error)) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            said = str(error) or type(error).__name__
            if isinstance(cause := getattr(error, "os_error", None), _Unsafe):
                raise AddressRefused(f"{where}: {cause}") from error
            if isinstance(error, aiohttp.ClientHttpProxyError):  # its text holds the proxy's URL, password and all
                said = f"the proxy answered {error.status}"
            said = " ".join(said.split())[:EXCERPT_CHARS]  # some hold what a server sent, lines and all
            raise TransportError(f"{where}: {said}", sent=not _unsent(error)) from error
        except TransportError as error:
            raise TransportError(f"{where}: {error}", sent=error.sent) from error

    def _proxy(self, url: str) -> str | None:
        if not self._proxies:
            return None
        try:
            parts = urlsplit(url)
        except ValueError:
            return None  # the request will say so
        host = parts.hostname or ""
        if is_loopback(host) or proxy_bypass_environment(host, self._proxies):
            return None
        return self._proxies.get(parts.scheme)


def is_loopback(host: str) -> bool:
    """Whether ``host`` is this machine by name or address, without asking a name server."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host(url: str) -> str:
    """As the connection reads it: digits of any script are digits there."""
    try:
        return URL(url).host or ""
    except ValueError:
        return ""  # the request will say so


def _leads_inside(host: str) -> bool:
    """Whether ``host`` is an address at which no server of the network can be. Loopback is another matter."""
    text = host.partition("%")[0].rstrip(".")
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        try:
            address = ipaddress.IPv4Address(socket.inet_aton(text))  # 2852039166 is 169.254.169.254
        except (OSError, ValueError):
            return False
    if isinstance(address, ipaddress.IPv6Address):
        within = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if address in NAT64 else None
        address = address.ipv4_mapped or address.sixtofour or within or address
    return address in METADATA or address.is_link_local or address.is_multicast or address.is_unspecified


def _sent(body: bytes | None) -> aiohttp.Payload | None:
    """JSON. A long body goes out piece by piece, so that the loop has its turns between."""
    if body is None:
        return None
    if len(body) <= PIECE_BYTES:
        return aiohttp.BytesPayload(body, content_type=JSON_TYPE)
    return aiohttp.BytesIOPayload(io.BytesIO(body), content_type=JSON_TYPE)


async def _read(stream: Any, limit: int) -> bytes | None:
    """The whole body, None where it is longer than ``limit``."""
    chunks, size = [], 0
    while not stream.at_eof():
        chunk = await stream.readany()
        size += len(chunk)
        if size > limit:
            return None
        chunks.append(chunk)
    return b"".join(chunks)


def _unsent(error: BaseException) -> bool:
    return isinstance(
        error,
        aiohttp.ClientConnectorError
        | aiohttp.ClientHttpProxyError
        | aiohttp.ConnectionTimeoutError
        | aiohttp.InvalidURL,
    )


def _shown(url: str) -> str:
    """The URL without its query: names and ids in it belong to the user."""
    return url.partition("?")[0]
