"""``posemesh.Node``: what a host sees."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from posemesh import telemetry
from posemesh.capacity import Capacity
from posemesh.config import NodeConfig
from posemesh.control.ledger import SqliteStore
from posemesh.errors import ConfigError, NodeStopped, PosemeshError
from posemesh.hosting import Home, Host, OpenStore, home_of_its_own
from posemesh.machines._kernel import Moved
from posemesh.runners.api import Runner, RunnerTarget, SyncRunner
from posemesh.runners.executors.declared import (
    Declared,
    Terms,
    check_capability,
    check_name,
    declare_command,
    declare_routed,
    declare_runner,
    offered,
)
from posemesh.runners.metrics import MetricsBackend
from posemesh.runners.router import RoutedRunner
from posemesh.runtime import Runtime
from posemesh.shell.clock import Clock, SystemClock
from posemesh.shell.offload import HostOffload, Offload, ThreadOffload
from posemesh.shell.secrets import MemorySecretStore, SecretStore
from posemesh.shell.signer import Signer
from posemesh.signals import Signals
from posemesh.snapshot import Statistics
from posemesh.target import importing

if TYPE_CHECKING:
    from posemesh.golem.supervisor import Timeouts

__all__ = ("Node",)

DEFAULT_PORT = 8080
F = TypeVar("F", bound=RunnerTarget)


class Node:
    """One compute node: it leases tasks for the capabilities it has runners for, runs them and reports what came of
    them.

    Making one does no I/O, reads no configuration and never fails. ``config`` is read from the environment by
    :meth:`start` and :meth:`run` where it is None. Nodes in one process, or on one loop, share nothing but their
    ``host``, if they are given one.
    """

    def __init__(
        self,
        config: NodeConfig | None = None,
        *,
        runners: Iterable[Runner | SyncRunner] = (),
        metrics: MetricsBackend | None = None,
        clock: Clock | None = None,
        host: Host | None = None,
    ) -> None:
        self._config = config
        self._host = host
        self._clock: Clock = clock or SystemClock()
        self._given = tuple(runners)
        self._metrics = metrics
        self._declared: dict[str, Declared] = {}
        self._runtime: Runtime | None = None
        self._statistics: Statistics | None = None
        self._home: Home | None = None
        self._opening: asyncio.Future[None] | None = None
        self._closing: asyncio.Future[None] | None = None
        # What a simulation puts in place of these is not part of the public surface.
        self._offload: Callable[[], Offload] = HostOffload
        self._open_store: OpenStore = SqliteStore.open
        self._rng = Random()
        self._secrets: SecretStore = MemorySecretStore()

    def __repr__(self) -> str:
        state = "stopped" if self._runtime is None else repr(self._runtime.address)
        return f"<Node {state} {sorted(self._declared)}>"

    def runner(
        self,
        capability: str,
        *,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        executor: str | None = None,
        timeout: float | None = None,
        slots: int | None = None,
        resources: Mapping[str, int] | None = None,
        restart: str = "replay",
        memory_bytes: int | None = None,
        keep: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> Callable[[F], F]:
        """Decorate a function, a generator or a class with ``run(task)`` to offer ``capability`` (1 to 256 bytes, no
        blanks).

        ``name`` is the capability where it is not given; names are unique, and ``labels`` tell runners of one
        capability apart. ``executor`` is inline (async functions) or thread (plain ones) where it is not given, or
        process, an interpreter of its own, to which alone ``memory_bytes``, ``keep`` (reuse it for the next task) and
        ``env`` apply. A task may take ``timeout`` seconds. At most ``slots`` run at once, and as many as
        ``resources`` (RESOURCES) suffice for. A task that was under way when the node ended runs again once the node is
        started and its lease still stands, unless ``restart`` is ``never``: then it is failed.

        Raises ValueError for a name that is taken and options that do not fit, TypeError for what is no runner.
        """
        check_capability(capability)  # now: a decorator without its brackets would give the function away unseen
        terms = Terms.of(name, labels, timeout, slots, resources, restart)

        def register(target: F) -> F:
            self._add(
                declare_runner(
                    capability, target, terms, executor=executor, memory_bytes=memory_bytes, keep=keep, env=env
                )
            )
            return target

        return register

    def command(
        self,
        capability: str,
        argv: Sequence[str],
        *,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        timeout: float | None = None,
        slots: int | None = None,
        resources: Mapping[str, int] | None = None,
        restart: str = "replay",
        memory_bytes: int | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Offer ``capability`` by a program: ``argv`` with ``{input}``, ``{outputs}`` and the like filled in. The
        options are those of :meth:`runner`.
        """
        terms = Terms.of(name, labels, timeout, slots, resources, restart)
        self._add(declare_command(capability, argv, terms, memory_bytes=memory_bytes, env=env))

    def runtime(
        self,
        capability: str,
        *,
        binary: str,
        mode: str = "server",
        entrypoint: str | None = None,
        args: Sequence[str] = (),
        allow_meta: bool = False,
        inputs: str | None = None,
        outputs: str | None = None,
        runtime_args: Sequence[str] = (),
        timeouts: Timeouts | None = None,
        keep: bool = True,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        timeout: float | None = None,
        slots: int | None = None,
        resources: Mapping[str, int] | None = None,
        restart: str = "replay",
        memory_bytes: int | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Offer ``capability`` by a Golem runtime, the program ``binary``, that runs ``entrypoint`` with ``args`` for
        each task, whose meta chooses these only with ``allow_meta`` (docs/golem.md). ``mode`` is server or command;
        ``inputs`` and ``outputs`` are paths in its volumes. The options from ``keep`` on are those of :meth:`runner`.
        """
        from posemesh.golem.runner import declare_runtime

        declared = declare_runtime(
            capability,
            binary,
            Terms.of(name, labels, timeout, slots, resources, restart),
            mode=mode,
            entrypoint=entrypoint,
            args=args,
            allow_meta=allow_meta,
            inputs=inputs,
            outputs=outputs,
            runtime_args=runtime_args,
            timeouts=timeouts,
            keep=keep,
            memory_bytes=memory_bytes,
            env=env,
        )
        self._add(declared)

    def register(
        self,
        routed: RoutedRunner,
        capability: str,
        *,
        labels: Mapping[str, str] | None = None,
        timeout: float | None = None,
        slots: int | None = None,
        resources: Mapping[str, int] | None = None,
        restart: str = "replay",
    ) -> None:
        """Offer ``capability`` by a runner that says itself which tasks it supports, and builds them. The options are
        those of :meth:`runner`.
        """
        self._add(declare_routed(capability, routed, Terms.of(None, labels, timeout, slots, resources, restart)))

    async def start(self) -> None:
        """Register, sign in, and begin to lease; user code runs on this loop. Returns after the first sign-in.

        Raises ConfigError, RegistrationRefused, SignInRefused. Serves HTTP only where NODE_PORT or NODE_URL is set, or
        its host does.
        """
        config = self._config or NodeConfig.from_env()
        await self._open(config, self._offload, DEFAULT_PORT if config.node_url else None)
        runtime = self._running()
        try:
            await asyncio.wait((runtime.ready, runtime.left), return_when=asyncio.FIRST_COMPLETED)
            if not runtime.ready.done():
                runtime.left.result()
                raise NodeStopped("the node was told to stop before it had signed in")
            runtime.ready.result()
        except BaseException:
            await self._close()
            raise

    async def stop(self, drain: float | None = None) -> None:
        """Take nothing new, let running tasks end for ``drain`` seconds (DRAIN_TIMEOUT_SECS; 0 cancels them), report,
        leave.

        A node that is not running is left as it is.
        """
        if self._opening is not None:
            await asyncio.wait((self._opening,))
        runtime = self._runtime
        if runtime is None:
            return
        seconds = runtime.config.drain_timeout_secs if drain is None else drain
        runtime.drain(seconds) if seconds > 0 else runtime.cancel()
        with suppress(PosemeshError):
            await asyncio.shield(runtime.left)
        await self._close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def run(self, *, env_file: str | Path | None = None) -> None:
        """Run until told to stop: the program's main. Owns signals and logging; user code has a loop of its own.

        Returns after SIGINT or SIGTERM and a drained stop. What is wrong is printed, then SystemExit: 2 for the
        configuration, 1 for a start that was refused. Does nothing while ``posemesh-node run`` imports the file. Raises
        PosemeshError on a running loop, off the main thread and for a node with a host.
        """
        if importing():
            return
        if self._host is not None:
            raise PosemeshError(
                "run() needs a loop to itself, which a host is not on; await node.start() on the host's"
            )
        with suppress(RuntimeError):
            asyncio.get_running_loop()
            raise PosemeshError("run() needs a loop and the signals to itself; on a running loop, await node.start()")
        if threading.current_thread() is not threading.main_thread():
            raise PosemeshError("run() needs the main thread, where signals arrive; elsewhere, await node.start()")
        try:
            config = self._config or NodeConfig.from_env(env_file=env_file)
            telemetry.init(format=config.log_format, level=config.log_level)
            asyncio.run(self._main(config))
        except PosemeshError as error:
            print(f"posemesh: {telemetry.scrub(str(error))}", file=sys.stderr)  # noqa: T201
            raise SystemExit(2 if isinstance(error, ConfigError) else 1) from None

    def statistics(self) -> Statistics:
        """A snapshot of the machines, the tasks and the counters; after a stop, the last one. Raises NodeStopped before
        a start.
        """
        if self._runtime is not None:
            return self._runtime.statistics()
        if self._statistics is None:
            raise NodeStopped("the node has not been started; call start() or run()")
        return self._statistics

    def transitions(self) -> AsyncIterator[Moved]:
        """Every move of every machine from now on, until the node has stopped. Raises NodeStopped where it is not
        running.
        """
        return self._running().records()

    async def _main(self, config: NodeConfig) -> None:
        signals = Signals(lambda: self._runtime)
        try:
            await self._open(config, ThreadOffload, DEFAULT_PORT)
            signals.heed()
            gc.freeze()  # what is here by now stays: the collector need not look at it again, some 6 % of a quick task
            await self._running().left
        finally:
            await self._close()

    async def _open(self, config: NodeConfig, offload: Callable[[], Offload], default: int | None) -> None:
        """``default`` is the port where NODE_PORT is not set."""
        if self._runtime is not None or self._opening is not None:
            raise PosemeshError("the node is running already; stop it first")
        self._opening = asyncio.get_running_loop().create_future()
        try:
            home, self._runtime = await self._made(config, offload(), default)
        finally:
            self._opening.set_result(None)
            self._opening = None
        try:
            home.settled(self._runtime)
            await self._runtime.open(home.port, fixed=config.node_port is not None or config.node_url is not None)
        except BaseException:
            await self._close()
            raise

    async def _made(self, config: NodeConfig, offload: Offload, default: int | None) -> tuple[Home, Runtime]:
        """The runtime on its ledger, which is open then."""
        try:
            self._closing = None
            runners = self._offered(config)
            capacity = Capacity((runner.offer for runner in runners), dict(config.resources))
            address = Signer(config.secp256k1_privhex).address
            if self._host is not None:
                home = self._home = self._host.admit(config, address, self.stop)
            else:
                home = self._home = await home_of_its_own(config, address, self._open_store, offload, default)
            runtime = Runtime(
                config,
                runners,
                capacity=capacity,
                metrics=self._metrics or home.metrics,
                clock=self._clock,
                offload=offload,
                rng=self._rng,
                ledger=await home.ledger(config.secp256k1_privhex, address, self._clock.wall),
                secrets=self._secrets,
                state=home.state,
                pool=home.pool,
            )
        except BaseException:
            await self._close()
            offload.close()
            raise
        return home, runtime

    async def _close(self) -> None:
        """Close the runtime, once, whoever asks and whether or not they are cancelled while they wait."""
        if self._runtime is not None:
            self._statistics = self._runtime.statistics()
        if self._home is not None:
            self._closing = asyncio.ensure_future(self._let_go(self._runtime, self._home))
            self._runtime = self._home = None
        if self._closing is not None:
            await asyncio.shield(self._closing)

    async def _let_go(self, runtime: Runtime | None, home: Home) -> None:
        try:
            if runtime is not None:
                await runtime.close()
        finally:
            await home.leave()

    def _running(self) -> Runtime:
        if self._runtime is None:
            raise NodeStopped("the node is not running; call start() first")
        return self._runtime

    def _offered(self, config: NodeConfig) -> list[Declared]:
        """The runners in the order of their routing: decorated, given, and the no-op where it is enabled."""
        return offered(self._declared, self._given, config)

    def _add(self, declared: Declared) -> None:
        check_name(declared, self._declared)
        if self._runtime is not None:
            raise PosemeshError(
                f"runner {declared.name}: DDS knows this node's capabilities already; add runners before start()"
            )
        self._declared[declared.name] = declared
