"""The node's own server: ``/health``, the registration callback, ``/ready``, ``/status`` and ``/metrics``."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable
from typing import Any

from aiohttp import web

from posemesh.commands import AnswerCallback
from posemesh.errors import CallbackRefused
from posemesh.events import CallbackArrived, Event, HealthProbed
from posemesh.shell.http import is_loopback
from posemesh.telemetry import logger, scrub
from posemesh.wire.dds import CALLBACK_BYTES_MAX, decode_callback, is_health_probe

__all__ = ("Server",)

BACKLOG = 1024
CALLBACK_SECS_MAX = 30.0
NAME_CHARS_MAX = 100


class Server:
    """One node's. ``expect`` gives the future that a callback of that number is answered by; ``metrics`` gives the
    content type and the body of ``/metrics``.
    """

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
        self._post = post
        self._expect = expect
        self._ready = ready
        self._status = status
        self._expose = expose_status
        self._metrics = metrics
        self._numbers = itertools.count(1)
        self._runner: web.AppRunner | None = None

    async def open(self, host: str, port: int) -> int:
        """Accept connections and return the port. Raises OSError where it cannot be had."""
        app = web.Application(client_max_size=CALLBACK_BYTES_MAX)
        app.router.add_get("/health", self._health)
        app.router.add_post("/internal/v1/registrations", self._callback)
        app.router.add_get("/ready", self._answer_ready)
        app.router.add_get("/status", self._answer_status)
        app.router.add_get("/metrics", self._answer_metrics)
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

    async def _health(self, request: web.Request) -> web.Response:
        if is_health_probe(request.headers.get("User-Agent")):
            self._post(HealthProbed())
        return web.Response()

    async def _callback(self, request: web.Request) -> web.Response:
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

    async def _answer_ready(self, request: web.Request) -> web.Response:
        self._guard(request)
        ready = self._ready()
        return web.json_response({"ready": ready}, status=200 if ready else 503)

    async def _answer_status(self, request: web.Request) -> web.Response:
        self._guard(request)
        return web.json_response(self._status(), dumps=lambda shown: scrub(json.dumps(shown)))

    async def _answer_metrics(self, request: web.Request) -> web.Response:
        self._guard(request)
        if self._metrics is None:
            raise web.HTTPNotFound(
                text="this node counts nothing; pip install 'posemesh[prometheus]' and start it again"
            )
        content_type, body = self._metrics()
        return web.Response(body=body, headers={"Content-Type": content_type})

    def _guard(self, request: web.Request) -> None:
        if not self._expose and not is_loopback(request.remote or ""):
            raise web.HTTPForbidden(text="only from this machine; EXPOSE_STATUS=true opens it")
