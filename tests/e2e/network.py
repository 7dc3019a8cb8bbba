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
- a storage request under a lease that has run out, with another task's token, or for another domain.

The services live in a thread of the test, which waits for what happens there: :meth:`Network.wait`.
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any, TypeVar

from aiohttp import web

from . import dds, dms, domain

__all__ = ("Answer", "Fault", "Network", "Request")

T = TypeVar("T")

LATE_SECS = 0.3
"""A request may arrive this much after the answer that forbids it: the two passed each other."""


@dataclass(slots=True)
class Request:
    """What arrived, and what was done about it."""

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

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")


@dataclass(slots=True)
class Answer:
    """A service's own answer. ``then`` runs once it is sure to reach the node."""

    status: int = 200
    body: Any = b""
    headers: dict[str, str] = field(default_factory=dict)
    then: Callable[[], None] | None = None

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

        async def until() -> T:
            async with asyncio.timeout(within):
                while not (value := ready()):
                    self._changed.clear()
                    await self._changed.wait()
                return value

        try:
            return asyncio.run_coroutine_threadsafe(until(), self._loop).result(within + 10)
        except TimeoutError:
            last = [f"{r.at:.3f} {r.kind} {r.task or ''} {r.status} {r.fault or ''}" for r in self.requests[-12:]]
            raise AssertionError(f"not within {within} s: {what}; last: {last}; wrong: {self.violations}") from None

    def quiet(self, seconds: float, unless: Callable[[], Any], what: str) -> None:
        """The scenario's own time passes, and ``unless`` stays false in it."""
        try:
            self.wait(unless, seconds, what)
        except AssertionError:
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

    def _handler(self, name: str, service: Any) -> Callable[[web.Request], Any]:
        async def handle(raw: web.Request) -> web.StreamResponse:
            body = await raw.read()
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
            )
            service.name(request)
            self.requests.append(request)
            self._changed.set()
            return await self._respond(raw, request, service)

        return handle

    async def _respond(self, raw: web.Request, request: Request, service: Any) -> web.StreamResponse:
        fault = self.fault(request)
        answer = Answer()
        if fault is not None:
            request.fault = fault.name
            if fault.revoke:
                self.dds.revoke()
        if fault is None or fault.apply:
            answer = await service.answer(request)
        if fault is not None and fault.delay:
            await asyncio.sleep(fault.delay)
        if fault is not None and fault.status is None and not fault.torn:
            if raw.transport is not None:
                raw.transport.abort()
            self._changed.set()
            return web.Response()
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
