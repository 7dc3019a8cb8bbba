"""The whole network on one port: the three services, their timers, and what tests look at and interfere with."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, Self

import msgspec
from aiohttp import web
from ecdsa import SECP256k1

from posemesh.devnet.config import DevnetConfig
from posemesh.devnet.context import ARRIVED, Context, Refused
from posemesh.devnet.dds import Dds
from posemesh.devnet.dms import Dms
from posemesh.devnet.domain import Domain
from posemesh.devnet.jobs import JobBook
from posemesh.devnet.records import JobRequest
from posemesh.devnet.uploads import Uploads
from posemesh.shell.clock import Clock, SystemClock

__all__ = ("Devnet", "Faults", "Replies", "SeenRequest", "cut")

#: Called before a request is handled; an answer it returns is sent instead.
Faults = Callable[[web.Request], Awaitable[web.StreamResponse | None]]
#: Called with the answer to a request; returns the one to send, or None to hang up without any.
Replies = Callable[[web.Request, web.StreamResponse], Awaitable[web.StreamResponse | None]]

# Above the number of nodes in any simulation: a connection the kernel delays is delayed in real time.
_BACKLOG = 1024
_JSON_BODY_MAX_BYTES = 2 * 1024 * 1024
_SERVICES = {"internal": "dds", "v1": "dms", "api": "domain"}


class SeenRequest(NamedTuple):
    """One request: when it arrived (monotonic seconds), at which service, and how it was answered."""

    at: float
    service: str
    method: str
    path: str
    status: int


class _Identity(msgspec.Struct):
    domain_id: str
    organization_id: str
    node_id: str


def cut(request: web.Request) -> web.Response:
    """Hang up on a request. For a fault hook: ``return cut(request)``."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=499)


class Devnet:
    """A DDS, a DMS and a domain server on loopback, on the running loop; ``async with Devnet() as net``.

    ``clock`` gives the time, ``rng`` ids and tokens; timers are the loop's. Set ``faults`` and ``replies`` to
    interfere; read ``violations`` (what a correct node never sends), ``requests``, ``jobs``, ``dds``, ``domain``.
    """

    def __init__(
        self,
        config: DevnetConfig | None = None,
        *,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        on_violation: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.config = config or DevnetConfig()
        self.clock = clock or SystemClock()
        self.faults: Faults | None = None
        self.replies: Replies | None = None
        self.requests: deque[SeenRequest] = deque(maxlen=100_000)
        self._context = Context(self.config, self.clock, rng or random.SystemRandom(), on_violation)
        self.dds = Dds(self._context)
        self._identity = self._load_identity()
        self.dms = Dms(self._context, self.dds, self._identity.organization_id)
        self.domain = Domain(self._context, self.jobs, self._identity.domain_id)
        self._uploads = Uploads(self._context, self.domain)
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen. Raises OSError when the port is taken."""
        app = web.Application(middlewares=[self._serve], client_max_size=_JSON_BODY_MAX_BYTES)
        app.router.add_get("/health", self._health)
        # Uploads come first: "multipart" would else be taken for the id of an item.
        for service in (self.dds, self.dms, self._uploads, self.domain):
            app.add_routes(service.routes())
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.5)
        await runner.setup()
        self._runner = runner
        await web.TCPSite(runner, self.config.host, self.config.port, backlog=_BACKLOG).start()
        self._context.url = f"http://{self.config.host}:{runner.addresses[0][1]}"
        self.dds.start()
        self.dms.start()

    async def stop(self) -> None:
        """Hang up, end the timers, and close or remove what is on disk."""
        await self.dms.stop()
        await self.dds.stop()
        if self._runner is not None:
            await self._runner.cleanup()
        self._context.close()

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    # Where things are.

    @property
    def url(self) -> str:
        """The base of DDS and of the domain server; no slash at the end."""
        return self._context.url

    @property
    def dms_url(self) -> str:
        return f"{self.url}/v1"

    @property
    def domain_id(self) -> str:
        return self._identity.domain_id

    @property
    def reg_secret(self) -> str:
        """``REG_SECRET`` of the node that is provisioned from the start."""
        return self.dds.nodes[self._identity.node_id].reg_secret

    def provision(self) -> str:
        """``REG_SECRET`` for one more node."""
        return self.dds.provision(self._identity.organization_id).reg_secret

    def node_settings(self, private_key: str | None = None, reg_secret: str | None = None) -> dict[str, str]:
        """The environment a node needs; without arguments the first node's, with a fresh wallet."""
        scalar = self._context.rng.randrange(1, SECP256k1.order)
        return {
            "DMS_BASE_URL": self.dms_url,
            "DDS_BASE_URL": self.url,
            "REG_SECRET": reg_secret or self.reg_secret,
            "SECP256K1_PRIVHEX": private_key or f"{scalar:064x}",
        }

    def app_settings(self) -> dict[str, str]:
        """The environment of an app that submits jobs."""
        return {
            "DMS_BASE_URL": self.dms_url,
            "DOMAIN_SERVER_URL": self.url,
            "DOMAIN_ID": self.domain_id,
            "APP_JWT": self.app_token(),
        }

    # What happened, and how to make things happen.

    @property
    def violations(self) -> list[str]:
        """What nodes and apps sent that a correct one never sends."""
        return self._context.violations

    @property
    def jobs(self) -> JobBook:
        return self.dms.book

    def app_token(self) -> str:
        """A new token for the job API and the domain server."""
        return self._context.issue("app", self.domain_id, self.config.app_token_ttl).value

    def revoke_tokens(self, kind: str = "node") -> None:
        """Answer 401 to every token given out so far: ``node``, ``domain`` or ``app``."""
        self._context.revoke(kind)

    def submit(self, capability: str, *, count: int = 1, **fields: Any) -> str:
        """Queue a job of ``count`` equal tasks without a request; ``fields`` are the tasks'. Returns its id."""
        task = {"label": capability, "capability": capability} | fields
        body = {"label": capability, "domain_id": self.domain_id, "tasks": [task] * count}
        return self.jobs.submit(msgspec.convert(body, JobRequest), self.clock.wall()).id

    def put_data(self, name: str, data_type: str, data: bytes) -> str:
        """Store bytes without a request. Returns their id."""
        blob = self._context.new_secret()
        self._context.blobs.path(blob).write_bytes(data)
        return self.domain.create(name, data_type, blob).id

    def get_data(self, key: str) -> bytes:
        """The bytes with that id."""
        return self._context.blobs.path(self.domain.item(key).blob).read_bytes()

    def _load_identity(self) -> _Identity:
        for found in self._context.store.load("identity", _Identity):
            return found
        organization_id = self._context.new_id()
        identity = _Identity(
            domain_id=self._context.new_id(),
            organization_id=organization_id,
            node_id=self.dds.provision(organization_id).id,
        )
        self._context.store.put("identity", "", identity)
        return identity

    # Every request passes here.

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({"ok": True})

    @web.middleware
    async def _serve(self, request: web.Request, handler: Callable[..., Any]) -> web.StreamResponse:
        at = self.clock.monotonic()
        ARRIVED.set(self.clock.wall())
        status = 0
        try:
            answer = await self.faults(request) if self.faults is not None else None
            if answer is None:
                answer = await self._handle(request, handler)
            original = answer
            if self.replies is not None:
                answer = await self.replies(request, answer) or cut(request)
            status = answer.status
            if answer is not original or request.transport is None or request.transport.is_closing():
                self._context.unheard.add(request.match_info.get("task", ""))
            return answer
        finally:
            service = _SERVICES.get(request.path.split("/")[1], "devnet")
            self.requests.append(SeenRequest(at, service, request.method, request.path, status))

    async def _handle(self, request: web.Request, handler: Callable[..., Any]) -> web.StreamResponse:
        try:
            answer: web.StreamResponse = await handler(request)
            return answer
        except Refused as exc:
            if exc.violation:
                self._context.violation(f"{request.method} {request.path}: {exc}")
            return web.Response(status=exc.status, text=exc.text)
        except web.HTTPException as exc:
            return web.Response(status=exc.status, text=exc.text, headers=_allow(exc))


def _allow(exc: web.HTTPException) -> dict[str, str]:
    return {"Allow": exc.headers["Allow"]} if "Allow" in exc.headers else {}
