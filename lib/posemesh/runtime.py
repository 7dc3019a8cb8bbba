"""One node put together on one loop: engine, scheduler, executor, network, server; its start, its stop."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from posemesh.capacity import Capacity
from posemesh.commands import Command
from posemesh.config import NodeConfig
from posemesh.control.node_ledger import NodeLedger
from posemesh.engine import Engine
from posemesh.errors import NodeStartError, PosemeshError
from posemesh.events import CancelRequested, DrainRequested, Event, NodeLeft, NodeStarted
from posemesh.machines._kernel import Moved
from posemesh.recovered import recovered
from posemesh.runners.context import BuildContext
from posemesh.runners.executors.declared import Declared
from posemesh.runners.metrics import MetricsBackend, MetricsHandle
from posemesh.runners.registry import RunnerRegistry
from posemesh.runners.router import RunnerRouter
from posemesh.shell.clock import Clock
from posemesh.shell.executor import Executor
from posemesh.shell.http import Http
from posemesh.shell.network import Network
from posemesh.shell.observe import Observer
from posemesh.shell.offload import Offload
from posemesh.shell.pool import Pool
from posemesh.shell.scheduler import Scheduler
from posemesh.shell.secrets import SecretStore
from posemesh.shell.server import Endpoints, Server, routes
from posemesh.shell.signer import Signer
from posemesh.snapshot import Statistics
from posemesh.storage.task import NodeStorage
from posemesh.telemetry import logger, register_secret

__all__ = ("ListenError", "Runtime")


class ListenError(PosemeshError):
    """The node's server cannot have its port."""


class Runtime:
    """A running node. Make it on the loop it is to live on. ``state`` and ``pool`` are as its storage has them."""

    def __init__(
        self,
        config: NodeConfig,
        runners: Sequence[Declared],
        *,
        capacity: Capacity,
        metrics: MetricsBackend,
        clock: Clock,
        offload: Offload,
        rng: Random,
        ledger: NodeLedger,
        secrets: SecretStore,
        state: Path | None = None,
        pool: Pool | None = None,
    ) -> None:
        for secret in (config.reg_secret, config.secp256k1_privhex):
            register_secret(secret, lasting=True)
        loop = asyncio.get_running_loop()
        self.config = config
        self.ready: asyncio.Future[None] = loop.create_future()
        self.left: asyncio.Future[None] = loop.create_future()
        self.port: int | None = None
        self._clock = clock
        self._gate = asyncio.Lock()
        self._offload = offload
        self._ledger = ledger
        self._signer = Signer(config.secp256k1_privhex)
        services = None if pool is None else pool.services()
        agent = f"posemesh/{config.node_version}"
        self._http = Http(clock, offload, user_agent=agent, connector=services)
        self._storage = NodeStorage(config, self._signer.address, clock, offload, rng, state=state, pool=pool)
        self._sweeping: asyncio.Task[None] | None = None
        counted = MetricsHandle.of(metrics)
        self._registry = RunnerRegistry(_router(runners, offload, counted), counted)
        capabilities = sorted({runner.capability for runner in runners})
        self._runners = {runner.name: runner for runner in runners}
        self._found = range(1, 1 + len(ledger.owed) + len(ledger.interrupted))
        self._engine = Engine(config, capabilities, rng, first_lease=self._found.stop, capacity=capacity)
        self._observer = Observer(self._engine, clock)
        timeouts = {runner.name: runner.terms.timeout for runner in runners}
        self._executor = Executor(
            network=Network(self._http, config, self._signer, capabilities, clock, self._registry.route, timeouts),
            ledger=ledger,
            secrets=secrets,
            registry=self._registry,
            storage=self._storage.task,
            stands=self._storage.stands,
            metrics=counted,
            post=self.post,
            left=self._leave,
        )
        self._scheduler = Scheduler(self._engine, clock, self._execute, self._observe, self._observer.ended)
        #: What the node serves, here or where it is hosted.
        self.endpoints = Endpoints(
            post=self.post,
            expect=self._executor.expect_callback,
            ready=self.can_lease,
            status=self.status,
            expose_status=config.expose_status,
            metrics=getattr(metrics, "render", None),
        )
        self._server = Server(routes(Endpoints, lambda request: self.endpoints))

    @property
    def address(self) -> str:
        """The wallet's."""
        return self._signer.address

    def statistics(self) -> Statistics:
        return self._engine.statistics()

    def records(self) -> AsyncIterator[Moved]:
        """Each move of a machine from now on."""
        return self._observer.records()

    def status(self) -> dict[str, Any]:
        """What ``/status`` shows."""
        config = self.config
        node = {
            "address": self.address,
            "version": config.node_version,
            "capabilities": sorted(self._engine.capabilities),
            "dds": config.dds_base_url,
            "dms": config.dms_base_url,
            "max_concurrency": config.max_concurrency,
        }
        return self._observer.status(node)

    def can_lease(self) -> bool:
        """Whether a task offered now would be taken up."""
        machines = self._engine.statistics().machines
        return machines["auth"].state in ("signed_in", "refreshing") and machines["poller"].state in (
            "waiting",
            "asking",
            "full",
        )

    async def open(self, port: int | None, *, fixed: bool) -> None:
        """Serve, if there is a port, then start the machines. Without ``fixed`` another port will do where this one is
        taken.
        """
        async with self._gate:
            await self._open(port, fixed=fixed)

    async def _open(self, port: int | None, *, fixed: bool) -> None:
        if port is not None:
            self.port = await self._listen(port, fixed=fixed)
            logger().info(f"serving on http://{self.config.node_host}:{self.port}")
        for name in sorted(self.config.defaulted & {"DMS_BASE_URL", "DDS_BASE_URL"}):
            logger().info(f"{name} is not set; using {getattr(self.config, name.lower())}")
        for sentence in self.config.warnings:
            logger().warning(sentence)
        if self._signer.backend == "ecdsa":
            logger().warning("coincurve is not installed, so ecdsa signs, which leaks timing; pip install coincurve")
        logger().info(f"node {self.address} offers {', '.join(sorted(self._engine.capabilities))}")
        self._sweeping = asyncio.ensure_future(self._sweep())
        await self._check()
        self._recover()
        self.post(NodeStarted())

    def _recover(self) -> None:
        owed, left = len(self._ledger.owed), len(self._ledger.interrupted)
        for each in self._ledger.interrupted:
            if each.envelope.access_token is not None:
                register_secret(each.envelope.access_token)
        if owed or left:
            logger().info(f"on record: {owed} outcome(s) to deliver, {left} task(s) that were under way")
        for event in recovered(
            self._ledger,
            self._found,
            route=self._registry.route,
            runners=self._runners,
            slots=self.config.max_concurrency,
            wall=self._clock.wall(),
        ):
            self.post(event)

    async def _check(self) -> None:
        """Let runners look whether they can work here, unless the node is told to stop meanwhile."""
        check = asyncio.ensure_future(self._registry.check())
        await asyncio.wait((check, self.left), return_when=asyncio.FIRST_COMPLETED)
        if not check.done():
            check.cancel()
        await asyncio.gather(check, return_exceptions=self.left.done())

    async def _sweep(self) -> None:
        try:
            swept = await self._storage.sweep()
        except Exception as error:
            logger().opt(exception=error).warning("what an earlier run left behind could not be removed")
        else:
            if swept:
                logger().info(f"removed the workspaces that {swept} crashed run(s) of this node left behind")

    async def _listen(self, port: int, *, fixed: bool) -> int:
        host = self.config.node_host
        try:
            return await self._server.open(host, port)
        except OSError as error:
            if fixed or error.errno != errno.EADDRINUSE:
                said = error.strerror or error
                raise ListenError(
                    f"cannot listen on {host}:{port} ({said}); set NODE_PORT to a free port, NODE_HOST to an address "
                    "of this machine"
                ) from error
        taken = await self._server.open(host, 0)
        logger().warning(f"port {port} is taken; NODE_PORT chooses another")
        return taken

    def post(self, event: Event) -> None:
        """Take an event in, on this loop."""
        self._scheduler.post(event)

    def drain(self, seconds: float) -> None:
        """Take nothing new, and leave once running tasks have ended or ``seconds`` are over."""
        logger().info(f"told to stop: nothing new is taken, running tasks have {seconds:g} s")
        self.post(DrainRequested(seconds=seconds))

    def cancel(self) -> None:
        """Cancel what runs, report it, and leave."""
        logger().info("told to stop at once: running tasks are cancelled and failed back")
        self.post(CancelRequested())

    async def close(self) -> None:
        """Let go of everything, once :meth:`open` is through. What is undelivered is told to the operator."""
        async with self._gate:
            await self._close()

    async def _close(self) -> None:
        for task in self._engine.statistics().tasks:
            if task.state == "finishing":
                logger().warning(
                    f"task {task.task_id}: its outcome is not on record yet, and may be lost with this node; see that "
                    "STATE_DIR has room. The service leases the task again when its lease has run out"
                )
        self.post(NodeLeft())
        self._scheduler.close()
        for outcome in self._ledger.unsettled():
            logger().warning(
                f"task {outcome.task.task_id}: its outcome ({outcome.kind}) is not delivered; it is on record and goes "
                "out when the node is started again"
            )
        await self._executor.close()
        await self._ledger.close()
        await self._registry.close()
        await self._server.close()
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.gather(self._sweeping, return_exceptions=True)
        await self._http.close()
        await self._storage.close()
        self._offload.close()
        self._observer.close()
        if not self.left.done():
            self.left.set_result(None)
        for future in (self.ready, self.left):
            if future.done() and not future.cancelled():
                future.exception()  # it has been told, or nobody asked

    def _execute(self, command: Command) -> None:
        self._executor.execute(command)

    def _observe(self, records: Sequence[Moved]) -> None:
        self._observer.moved(records)
        if not self.ready.done() and any(each.machine == "auth" and each.dest == "signed_in" for each in records):
            self.ready.set_result(None)

    def _leave(self, error: NodeStartError | None) -> None:
        if error is not None and not self.ready.done():
            self.ready.set_exception(error)
        if not self.left.done():
            self.left.set_result(None) if error is None else self.left.set_exception(error)


def _router(runners: Sequence[Declared], offload: Offload, metrics: MetricsHandle) -> RunnerRouter:
    router = RunnerRouter(BuildContext(metrics=metrics))
    for runner in runners:
        router.register(runner.make(offload), runner.terms.labels, capability=runner.capability)
    return router
