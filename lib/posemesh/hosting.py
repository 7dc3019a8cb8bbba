"""``posemesh.Host``: what the nodes of one process share, and what a node has to itself where it has no host."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from posemesh.config import NodeConfig
from posemesh.control.ledger import SqliteStore
from posemesh.control.node_ledger import NodeLedger
from posemesh.control.records import Ids
from posemesh.control.store import Commit, LedgerUnfit, Store, StoreError
from posemesh.control.vault import Vault
from posemesh.errors import ConfigError, PosemeshError
from posemesh.runners.metrics import MetricsBackend, MetricsShare, default_metrics
from posemesh.runtime import ListenError, Runtime
from posemesh.secret import Secret
from posemesh.shell.offload import HostOffload, Offload
from posemesh.shell.pool import Pool
from posemesh.shell.server import Endpoints, Overview, Server, routes
from posemesh.storage.workspace import state_dir
from posemesh.telemetry import logger

__all__ = ("Home", "Host", "OpenStore", "home_of_its_own")

OpenStore = Callable[[Path, Offload], Awaitable[Store]]


def runtime_name(address: str) -> str:
    """What the node of that wallet is called in a ledger."""
    return f"rt:node:{address}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """What a node lives on: its ledger's store, its directory, its metrics, the port of a server of its own, if any.

    ``settled`` is called with the runtime before that opens, ``leave`` when it has closed.
    """

    store: Store
    state: Path
    metrics: MetricsBackend
    leave: Callable[[], Awaitable[None]]
    settled: Callable[[Runtime], None] = lambda runtime: None
    port: int | None = None
    pool: Pool | None = None

    async def ledger(self, key: Secret, address: str, wall: Callable[[], float]) -> NodeLedger:
        """That of the wallet with that ``key`` and ``address``; ``wall`` gives seconds since the epoch."""
        ids = Ids(wall, Random())
        return await NodeLedger.open(self.store, runtime_name(address), wall=wall, ids=ids, vault=Vault(key))


async def home_of_its_own(
    config: NodeConfig, address: str, open_store: OpenStore, offload: Offload, default: int | None
) -> Home:
    """Without a host. ``default`` is the port where NODE_PORT is not set, None for no server. Raises StoreError."""
    state = state_dir(config.state_dir, address)
    if state is None:
        raise LedgerUnfit("there is no home directory to keep the node's records in; set STATE_DIR")
    port = default if config.node_port is None else config.node_port
    store = await open_store(state, offload)
    return Home(
        store=store, state=state, metrics=default_metrics(served=port is not None), leave=store.close, port=port
    )


@dataclass(slots=True)
class _Guest:
    stop: Callable[[float | None], Awaitable[None]]
    gone: asyncio.Future[None]
    endpoints: Endpoints | None = None


@dataclass(slots=True, kw_only=True)
class _Opened:
    loop: asyncio.AbstractEventLoop
    store: Store
    pool: Pool
    metrics: MetricsBackend
    running: dict[MetricsShare, int]
    port: int | None
    parts: AsyncExitStack


class Host:
    """One ledger, one set of connections and one server for any number of nodes: ``Node(config, host=host)``.

    ``state_dir`` has the ledger, in which each node is a runtime of its own; a node whose STATE_DIR is not set keeps
    its workspaces in ``nodes/<address>`` there. With a ``port`` (0 for any free one) the host serves on ``bind``: each
    node below ``/nodes/<address>``, which is where its NODE_URL has to lead, and all of them together at ``/health``,
    ``/ready``, ``/status`` and ``/metrics``, which with ``expose_status`` other machines may look at. NODE_PORT and
    NODE_HOST of a hosted node are not heeded. Nodes without ``metrics`` of their own are counted in the host's.

    Making one does nothing. It lives on one loop, as its nodes do. ``async with`` opens and closes it.
    """

    def __init__(
        self,
        state_dir: str | Path,
        *,
        bind: str = "127.0.0.1",
        port: int | None = None,
        expose_status: bool = False,
        metrics: MetricsBackend | None = None,
    ) -> None:
        self.state_dir = Path(state_dir).expanduser().absolute()
        self._bind = bind
        self._port = port
        self._expose = expose_status
        self._given_metrics = metrics
        self._guests: dict[str, _Guest] = {}
        self._opened: _Opened | None = None
        self._closing: asyncio.Future[None] | None = None
        self._gate = asyncio.Lock()
        # What a simulation puts in place of these is not part of the public surface.
        self._offload: Callable[[], Offload] = HostOffload
        self._open_store: OpenStore = SqliteStore.open

    def __repr__(self) -> str:
        return f"<Host {str(self.state_dir)!r} {'closed' if self._opened is None else list(self._guests)}>"

    @property
    def port(self) -> int | None:
        """Where it listens; None where it does not."""
        return None if self._opened is None else self._opened.port

    async def open(self) -> None:
        """Open the ledger, and listen. What fails leaves nothing open.

        Raises StoreError (LedgerBusy, LedgerCorrupt and so on), ListenError, PosemeshError where it is open already.
        """
        async with self._gate:
            if self._opened is not None:
                raise PosemeshError("the host is open already; close it first")
            async with AsyncExitStack() as parts:
                self._opened = await self._open(parts)

    async def _open(self, parts: AsyncExitStack) -> _Opened:
        offload = self._offload()
        parts.callback(offload.close)
        store = await self._open_store(self.state_dir, offload)
        parts.push_async_callback(store.close)
        pool = Pool(offload)
        parts.push_async_callback(pool.close)
        metrics = self._given_metrics or default_metrics(served=self._port is not None)
        port = None if self._port is None else await self._listen(self._port, metrics, parts)
        return _Opened(
            loop=asyncio.get_running_loop(),
            store=store,
            pool=pool,
            metrics=metrics,
            running={},
            port=port,
            parts=parts.pop_all(),
        )

    async def _listen(self, port: int, metrics: MetricsBackend, parts: AsyncExitStack) -> int:
        overview = Overview(
            ready=self._is_ready,
            status=self._status,
            expose_status=self._expose,
            metrics=getattr(metrics, "render", None),
        )
        together = routes(Overview, lambda request: overview)
        server = Server([*together, *routes(Endpoints, self._endpoints, prefix="/nodes/{address}")])
        try:
            taken = await server.open(self._bind, port)
        except OSError as error:
            raise ListenError(
                f"cannot listen on {self._bind}:{port} ({error.strerror or error}); give the host a free port, "
                "and bind it to an address of this machine"
            ) from error
        parts.push_async_callback(server.close)
        logger().info(f"the host serves on http://{self._bind}:{taken}")
        return taken

    async def close(self, drain: float | None = None) -> None:
        """Stop the nodes that are still running, all at the same time, each within ``drain`` seconds (its
        DRAIN_TIMEOUT_SECS); then let go of everything. A host that is not open is left as it is.
        """
        closing = self._closing = asyncio.ensure_future(self._close(drain))
        await asyncio.shield(closing)

    async def _close(self, drain: float | None) -> None:
        async with self._gate:
            opened, self._opened = self._opened, None
            if opened is None:
                return
            async with opened.parts:
                guests = tuple(self._guests.values())
                ends = await asyncio.gather(*(guest.stop(drain) for guest in guests), return_exceptions=True)
                for error in filter(None, ends):
                    logger().opt(exception=error).warning("a node did not stop as it should")
                await asyncio.gather(*(guest.gone for guest in guests))  # one may have been leaving already

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # --- For nodes ----------------------------------------------------------------------------------------------

    def admit(self, config: NodeConfig, address: str, stop: Callable[[float | None], Awaitable[None]]) -> Home:
        """What the node of that wallet lives on until it leaves. ``stop`` stops it within so many seconds.

        Raises ConfigError for a wallet that is here, PosemeshError where the host is not open on this loop.
        """
        opened = self._opened
        if opened is None:
            raise PosemeshError("the host is not open; start its nodes within `async with host`, or after host.open()")
        if opened.loop is not asyncio.get_running_loop():
            raise PosemeshError("the host was opened on another loop; start its nodes on that one")
        self._check(config, address)
        guest = self._guests[address] = _Guest(stop, opened.loop.create_future())
        share = MetricsShare(opened.metrics, opened.running)

        def settled(runtime: Runtime) -> None:
            guest.endpoints = runtime.endpoints

        async def leave() -> None:
            guest.endpoints = None
            share.close()
            try:
                with suppress(StoreError):  # what the node asked for last is through, whoever takes its place
                    await opened.store.commit(Commit(runtime=runtime_name(address)))
            finally:
                del self._guests[address]
                guest.gone.set_result(None)

        return Home(
            store=opened.store,
            state=config.state_dir or self.state_dir / "nodes" / address,
            metrics=share,
            leave=leave,
            settled=settled,
            pool=opened.pool,
        )

    def _check(self, config: NodeConfig, address: str) -> None:
        place = f"/nodes/{address}"
        problem = ""
        if address in self._guests:
            problem = (
                f"SECP256K1_PRIVHEX: expected a wallet that no other node of this host has, got that of {address}; "
                "stop that node first, or give this one a wallet of its own"
            )
        elif config.node_url is not None and self.port is None:
            problem = (
                "NODE_URL: expected a host that serves, as DDS calls the node back; give the host a port, or leave "
                "NODE_URL out"
            )
        if problem:
            raise ConfigError([problem])
        if config.node_url is not None and not config.node_url.lower().rstrip("/").endswith(place):
            logger().warning(
                f"NODE_URL does not end with {place}, where the host serves this node; DDS reaches it only if "
                "something in between leads there"
            )
        if config.node_port is not None:
            logger().warning(f"NODE_PORT is not heeded: the host serves this node, at {place}")

    # --- What is served -----------------------------------------------------------------------------------------

    def _endpoints(self, request: web.Request) -> Endpoints:
        guest = self._guests.get(request.match_info["address"].lower())
        if guest is None or guest.endpoints is None:
            raise web.HTTPNotFound(text="no such node runs on this host")
        return guest.endpoints

    def _is_ready(self) -> bool:
        """Whether all nodes can lease tasks; a host without any can not."""
        found = [guest.endpoints for guest in self._guests.values()]
        return bool(found) and all(endpoints is not None and endpoints.ready() for endpoints in found)

    def _status(self) -> dict[str, Any]:
        found = {address: guest.endpoints for address, guest in self._guests.items()}
        return {"nodes": {address: endpoints.status() for address, endpoints in found.items() if endpoints}}
