"""Another implementation of the network: DDS, DMS and a domain server on loopback, which judge the node they serve.

Written from the protocol's text and sharing no code with the library. Each service has an origin of its own. What a
node may not do is noted as a violation, whether or not the answer refuses it:

- a path, method, content type, header or body that the protocol does not have; fields unknown or of a wrong type;
- a bearer token where none belongs, none where one does, one never issued to this node, one that has expired;
- a challenge's nonce used twice, a message or signature that is not the challenge's, foreign credentials;
- a registration by a wallet that stands registered and was told nothing else;
- an ask while as many tasks run as the node said it can run;
- a heartbeat for a task of somebody else, before the lease, after a complete or fail was answered, after the service
  cancelled it, or after the last expiry the node was told;
- a complete or fail after a cancel, after another one that was accepted, or of an attempt never leased;
- a storage request under a lease that has run out, with another task's token, or for another domain;
- a storage request with a token, where an earlier heartbeat brought a newer one and the next heartbeat shows that the
  node has read it.

The domain server keeps data in files, and takes and sends it in pieces.

The services live in a thread of the test, which waits for what happens there: :meth:`Network.wait`.
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any, TypeVar

from aiohttp import web

from . import dds, dms, domain
from .checks import lag

__all__ = ("Answer", "Fault", "Network", "Request")

T = TypeVar("T")

LATE_SECS = 0.3
"""A request may arrive this much after the answer that forbids it: the two passed each other."""
HOLD_SECS = 20.0


@dataclass(slots=True)
class Request:
    """What arrived, and what was done about it. The domain server reads the body itself, from ``stream``."""

    service: str
    method: str
    path: str
    query: dict[str, str]
    headers: Mapping[str, str]
    body: bytes
    at: float
    connection: int
    kind: str = ""
    task: str | None = None
    status: int | None = None
    answered: float | None = None
    fault: str | None = None
    stream: Any = None
    about: str = ""
    """The name of the item."""

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")


@dataclass(slots=True)
class Answer:
    """A service's own answer. ``then`` runs once it is sure to reach the node. ``pieces`` are a body of ``size``."""

    status: int = 200
    body: Any = b""
    headers: dict[str, str] = field(default_factory=dict)
    then: Callable[[], None] | None = None
    pieces: AsyncIterator[bytes] | None = None
    size: int = 0

    def bytes(self) -> tuple[bytes, str]:
        if isinstance(self.body, bytes):
            return self.body, "application/octet-stream"
        if isinstance(self.body, str):
            return self.body.encode(), "text/plain"
        return json.dumps(self.body).encode(), "application/json"


@dataclass(slots=True)
class Fault:
    """What goes wrong with one request. With ``apply`` the service does its part all the same."""

    name: str
    status: int | None = None
    """None cuts the connection."""
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    apply: bool = False
    delay: float = 0.0
    torn: bool = False
    """The connection ends in the middle of the answer."""
    short: str = ""
    """Half of an answer in pieces is all that comes. Then the connection is ``closed`` in the middle; or the answer
    ends as if that were all: by its ``length``, its ``chunks``, or, where it told no length, by the connection's
    ``end``.
    """
    revoke: bool = False
    """Every node token issued so far is void from here on."""


class Network:
    """DDS, DMS and one domain server. Attributes may be set before a node starts; later through :meth:`do`."""

    def __init__(self, *, seed: int = 1) -> None:
        self.rng = random.Random(seed)
        self.requests: list[Request] = []
        self.violations: list[str] = []
        self.secrets: set[str] = set()
        self.fault: Callable[[Request], Fault | None] = lambda request: None
        self.hold: Callable[[Request], Callable[[], Any] | None] = lambda request: None
        """What has to be true before an answer goes out."""
        self.skew = 0.0
        """Seconds by which the services' clocks are ahead, Date headers included."""
        self.dds = dds.Dds(self)
        self.dms = dms.Dms(self)
        self.domain = domain.DomainServer(self)
        self.urls: dict[str, str] = {}
        self._loop = asyncio.new_event_loop()
        self._changed = asyncio.Event()
        self._runners: list[web.AppRunner] = []
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="network")

    # -- for the test's thread

    def open(self) -> None:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result(10)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def do(self, action: Callable[[], T]) -> T:
        """Run ``action`` between two requests."""

        async def run() -> T:
            value = action()
            self._changed.set()
            return value

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)

    def wait(self, ready: Callable[[], T], within: float, what: str) -> T:
        """The first true value of ``ready``, asked for after each thing that happens here."""

        try:
            return self._wait(ready, within)
        except TimeoutError:
            pass
        try:
            return self._wait(ready, lag())
        except TimeoutError:
            last = [f"{r.at:.3f} {r.kind} {r.task or ''} {r.status} {r.fault or ''}" for r in self.requests[-12:]]
            raise AssertionError(f"not within {within} s: {what}; last: {last}; wrong: {self.violations}") from None

    def _wait(self, ready: Callable[[], T], within: float) -> T:
        return asyncio.run_coroutine_threadsafe(self.until(ready, within), self._loop).result(within + 10)

    def quiet(self, seconds: float, unless: Callable[[], Any], what: str) -> None:
        """The scenario's own time passes, and ``unless`` stays false in it."""
        try:
            self._wait(unless, seconds)
        except TimeoutError:
            return
        raise AssertionError(what)

    def of(self, kind: str, task: str | None = None, since: float = 0.0) -> list[Request]:
        """The requests of one kind: challenge, register, verify, ask, heartbeat, complete, fail, data …"""
        return [r for r in self.requests if r.kind == kind and task in (None, r.task) and r.at >= since]

    # -- for the services

    def now(self) -> float:
        """The services' time, in epoch seconds."""
        return time.time() + self.skew

    def wrong(self, request: Request | None, what: str) -> None:
        where = f"{request.method} {request.service}{request.path}: " if request else ""
        self.violations.append(where + what)

    def secret(self, text: str) -> str:
        """Remember ``text`` as one that a node may not show."""
        self.secrets.add(text)
        return text

    def changed(self) -> None:
        self._changed.set()

    async def until(self, ready: Callable[[], T], within: float = HOLD_SECS) -> T:
        """As :meth:`wait`, on the services' side. Raises TimeoutError."""
        async with asyncio.timeout(within):
            while not (value := ready()):
                self._changed.clear()
                await self._changed.wait()
            return value

    # -- within

    async def _open(self) -> None:
        for name, service in (("dds", self.dds), ("dms", self.dms), ("domain", self.domain)):
            app = web.Application(client_max_size=64 * 1024 * 1024)
            app.router.add_route("*", "/{rest:.*}", self._handler(name, service))
            runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self._runners.append(runner)
            self.urls[name] = f"http://127.0.0.1:{runner.addresses[0][1]}"

    async def _close(self) -> None:
        await self.dds.close()
        for runner in self._runners:
            await runner.cleanup()
        self.domain.close()

    def _handler(self, name: str, service: Any) -> Callable[[web.Request], Any]:
        async def handle(raw: web.Request) -> web.StreamResponse:
            body = b"" if service is self.domain else await raw.read()
            peer = raw.transport.get_extra_info("peername")[1] if raw.transport else 0
            request = Request(
                service=name,
                method=raw.method,
                path=raw.rel_url.raw_path,
                query=dict(raw.query),
                headers=raw.headers.copy(),
                body=body,
                at=time.monotonic(),
                connection=peer,
                stream=raw.content,
            )
            service.name(request)
            self.requests.append(request)
            self._changed.set()
            try:
                return await self._respond(raw, request, service)
            finally:
                request.stream = None

        return handle

    async def _respond(self, raw: web.Request, request: Request, service: Any) -> web.StreamResponse:
        fault = self.fault(request)
        answer = Answer()
        if fault is not None:
            request.fault = fault.name
            if fault.revoke:
                self.dds.revoke()
        if fault is None or fault.apply or fault.short:
            answer = await service.answer(request)
        else:
            async for _ in raw.content.iter_any():
                pass
        if (ready := self.hold(request)) is not None:
            await self.until(ready)
        if fault is not None and fault.delay:
            await asyncio.sleep(fault.delay)
        if fault is not None and fault.status is None and not fault.torn and not fault.short:
            if raw.transport is not None:
                raw.transport.abort()
            self._changed.set()
            return web.Response()
        if answer.pieces is not None and (fault is None or fault.short):
            return await self._stream(raw, request, answer, fault.short if fault else "")
        body, kind = answer.bytes()
        status, headers = answer.status, dict(answer.headers)
        if fault is not None and not fault.torn:
            status, body, headers = fault.status or 500, fault.body, dict(fault.headers)
        headers.setdefault("Content-Type", kind)
        headers["Date"] = formatdate(self.now(), usegmt=True)
        if fault is not None and fault.torn:
            return await self._tear(raw, body, headers)
        request.status, request.answered = status, time.monotonic()
        if fault is None and answer.then is not None:
            answer.then()
        self._changed.set()
        if status == 204:
            headers.pop("Content-Type")
        return web.Response(status=status, body=body, headers=headers)

    async def _tear(self, raw: web.Request, body: bytes, headers: dict[str, str]) -> web.StreamResponse:
        response = web.StreamResponse(status=200, headers={**headers, "Content-Length": str(len(body) + 64)})
        await response.prepare(raw)
        await response.write(body[: len(body) // 2] or b"{")
        if raw.transport is not None:
            raw.transport.abort()
        self._changed.set()
        return response

    async def _stream(self, raw: web.Request, request: Request, answer: Answer, short: str) -> web.StreamResponse:
        assert answer.pieces is not None and raw.transport is not None
        left = answer.size // 2 if short else answer.size
        length = {"Content-Length": str(left)} if short == "length" else {}
        response = web.StreamResponse(headers={**answer.headers, **length, "Date": formatdate(self.now(), usegmt=True)})
        if short == "end":
            lines = [f"{name}: {value}" for name, value in (*answer.headers.items(), ("Connection", "close"))]
            raw.transport.write("\r\n".join(("HTTP/1.1 200 OK", *lines, "", "")).encode())
        else:
            await response.prepare(raw)
        async for piece in answer.pieces:
            given = piece[:left]
            left -= len(given)
            if short == "end":
                raw.transport.write(given)
            else:
                await response.write(given)
            if not left:
                break
        if short in ("closed", "end"):
            raw.transport.close()
        else:
            await response.write_eof()
        request.status, request.answered = 200, time.monotonic()
        self._changed.set()
        return response
