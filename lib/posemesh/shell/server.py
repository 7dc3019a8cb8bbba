"""What nodes serve: ``/health``, the registration callback, ``/ready``, ``/status``, ``/metrics``; and what listens."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, ClassVar, TypeVar

from aiohttp import web

from posemesh.commands import AnswerCallback
from posemesh.errors import CallbackRefused
from posemesh.events import CallbackArrived, Event, HealthProbed
from posemesh.shell.http import is_loopback
from posemesh.telemetry import logger, scrub
from posemesh.wire.dds import CALLBACK_BYTES_MAX, decode_callback, is_health_probe

__all__ = ("Endpoints", "Overview", "Server", "routes")

T = TypeVar("T", bound="Overview")

BACKLOG = 1024
CALLBACK_SECS_MAX = 30.0
NAME_CHARS_MAX = 100


class Overview:
    """What can be seen of a node, or of several. ``metrics`` gives the content type and the body of ``/metrics``."""

    #: The method, the path, and what answers there.
    SERVED: ClassVar[tuple[tuple[str, str, str], ...]] = (
        ("GET", "/health", "answer_health"),
        ("GET", "/ready", "answer_ready"),
        ("GET", "/status", "answer_status"),
        ("GET", "/metrics", "answer_metrics"),
    )

    def __init__(
        self,
        *,
        ready: Callable[[], bool],
        status: Callable[[], dict[str, Any]],
        expose_status: bool,
        metrics: Callable[[], tuple[str, bytes]] | None = None,
    ) -> None:
        self.ready = ready
        self.status = status
        self._expose = expose_status
        self._metrics = metrics

    async def answer_health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def answer_ready(self, request: web.Request) -> web.Response:
        self._guard(request)
        ready = self.ready()
        return web.json_response({"ready": ready}, status=200 if ready else 503)

    async def answer_status(self, request: web.Request) -> web.Response:
        self._guard(request)
        return web.json_response(self.status(), dumps=lambda shown: scrub(json.dumps(shown)))

    async def answer_metrics(self, request: web.Request) -> web.Response:
        self._guard(request)
        if self._metrics is None:
            raise web.HTTPNotFound(
                text="this node counts nothing; pip install 'posemesh[prometheus]' and start it again"
            )
        content_type, body = self._metrics()
        return web.Response(body=body, headers={"Content-Type": content_type})

    def _guard(self, request: web.Request) -> None:
        if not self._expose and not is_loopback(request.remote or ""):
            raise web.HTTPForbidden(
                text="only from this machine; EXPOSE_STATUS=true, or expose_status of a Host, opens it"
            )


class Endpoints(Overview):
    """One node's. ``expect`` gives the future that a callback of that number is answered by."""

    SERVED = (*Overview.SERVED, ("POST", "/internal/v1/registrations", "answer_callback"))

    def __init__(
        self,
        *,
        post: Callable[[Event], None],
        expect: Callable[[int], asyncio.Future[AnswerCallback]],
        ready: Callable[[], bool],
        status: Callable[[], dict[str, Any]],
        expose_status: bool,
        metrics: Callable[[], tuple[str, bytes]] | None = None,
    ) -> None:
        super().__init__(ready=ready, status=status, expose_status=expose_status, metrics=metrics)
        self._post = post
        self._expect = expect
        self._numbers = itertools.count(1)

    async def answer_health(self, request: web.Request) -> web.Response:
        if is_health_probe(request.headers.get("User-Agent")):
            self._post(HealthProbed())
        return web.Response()

    async def answer_callback(self, request: web.Request) -> web.Response:
        content_type = request.headers.get("Content-Type")
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            body = bytes(CALLBACK_BYTES_MAX + 1)  # what was read of it is of no use; its type is looked at first
        try:
            callback = decode_callback(content_type, body)
        except CallbackRefused as refused:
            return web.Response(status=refused.status, text=refused.text)
        logger().info(
            "Received registration callback",
            id=callback.id[:NAME_CHARS_MAX],
            org=(callback.organization_id or "")[:NAME_CHARS_MAX] or None,
            secret_len=len(callback.secret.reveal()),
        )
        number = next(self._numbers)
        answered = self._expect(number)
        self._post(CallbackArrived(request=number, node_id=callback.id, secret=callback.secret))
        try:
            answer = await asyncio.wait_for(answered, CALLBACK_SECS_MAX)
        except TimeoutError:
            return web.Response(status=503, text="the node did not answer in time")
        if answer.status == 200:
            return web.Response(text='{"ok":true}', content_type="application/json")
        return web.Response(status=answer.status, text=answer.text)


def routes(kind: type[T], find: Callable[[web.Request], T], prefix: str = "") -> list[web.RouteDef]:
    """What a ``kind`` serves, below ``prefix``; ``find`` gives the one that a request is for, or raises an answer."""

    def to(name: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def answer(request: web.Request) -> web.StreamResponse:
            answered: web.StreamResponse = await getattr(find(request), name)(request)
            return answered

        return answer

    made = {"GET": web.get, "POST": web.post}
    return [made[method](f"{prefix}{path}", to(name)) for method, path, name in kind.SERVED]


class Server:
    """What listens for ``routes``."""

    def __init__(self, routes: Iterable[web.RouteDef]) -> None:
        self._routes = tuple(routes)
        self._runner: web.AppRunner | None = None

    async def open(self, host: str, port: int) -> int:
        """Accept connections and return the port. Raises OSError where it cannot be had."""
        app = web.Application(client_max_size=CALLBACK_BYTES_MAX)
        app.add_routes(self._routes)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.1)
        await self._runner.setup()
        try:
            site = web.TCPSite(self._runner, host, port, backlog=BACKLOG)
            await site.start()
        except OSError:
            await self.close()
            raise
        return int(self._runner.addresses[0][1])

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
