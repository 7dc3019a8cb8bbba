"""Commands become coroutines; each ends in exactly one event, also when it fails or is cancelled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeAlias

from msgspec.structs import replace

from posemesh.commands import (
    AnswerCallback,
    Answered,
    Ask,
    Command,
    CommitAccepted,
    CommitOutcome,
    GiveUp,
    Leave,
    OfferOutcome,
    Register,
    SendHeartbeat,
    SettleOutcome,
    SignIn,
    StartRunner,
    StopReason,
    StopRunner,
    StoreSecret,
    UpdateLease,
    Warn,
)
from posemesh.errors import NodeStartError
from posemesh.events import Committed, Event, Failure, LeaseId, LeaseOffered, SecretStored, SecretUnstored
from posemesh.runners.metrics import MetricsHandle
from posemesh.runners.registry import RunnerRegistry
from posemesh.shell.host import Storage, TaskHost
from posemesh.shell.ledger import Ledger
from posemesh.shell.network import Network
from posemesh.shell.secrets import SecretStore
from posemesh.telemetry import logger
from posemesh.types import Artifact, LeaseEnvelope, OutcomeKind

__all__ = ("Executor",)

_Work: TypeAlias = tuple[Answered, Awaitable[None] | None]
"""A command and, where the ledger is at it, what to wait for."""


class Executor:
    """One node's hands. ``post`` takes the events; ``left`` is called when the node has nothing left to do, with its
    error.
    """

    def __init__(
        self,
        *,
        network: Network,
        ledger: Ledger,
        secrets: SecretStore,
        registry: RunnerRegistry,
        storage: Callable[[TaskHost], Storage],
        stands: Callable[[LeaseEnvelope, tuple[Artifact, ...]], Awaitable[bool]],
        metrics: MetricsHandle,
        post: Callable[[Event], None],
        left: Callable[[NodeStartError | None], None],
    ) -> None:
        self._network = network
        self._ledger = ledger
        self._secrets = secrets
        self._registry = registry
        self._storage = storage
        self._stands = stands
        self._metrics = metrics
        self._post = post
        self._left = left
        self._hosts: dict[LeaseId, TaskHost] = {}
        self._names: dict[LeaseId, str] = {}
        self._jobs: set[asyncio.Task[None]] = set()
        self._goes_on = False
        self._next: _Work | None = None
        self._callbacks: dict[int, asyncio.Future[AnswerCallback]] = {}
        self._loop = asyncio.get_running_loop()
        self._closed = False

    def execute(self, command: Command) -> None:
        """Carry ``command`` out: at once where it is not answered, else as a task that posts its answer."""
        match command:
            case CommitAccepted() | CommitOutcome():
                self._commit(command)
            case Answered():
                if isinstance(command, StartRunner):  # now, since a stop may follow in the same step
                    self._hosts[command.lease] = TaskHost(command, self._post, self._storage, self._metrics)
                self._begin(command)
            case AnswerCallback(request=request):
                waiting = self._callbacks.pop(request, None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(command)
            case StopRunner(lease=lease, reason=reason):
                if lease in self._hosts:
                    self._hosts[lease].stop(reason)
            case UpdateLease(lease=lease, envelope=envelope):
                self._metrics.token_rotated()
                if lease in self._hosts:
                    self._hosts[lease].envelope = envelope
            case SettleOutcome(lease=lease, ending=ending, problem=problem):
                try:
                    self._ledger.settle(lease, ending, problem)
                except Exception as error:
                    logger().opt(exception=error).warning("the ledger did not take note of a delivery's end")
            case Warn(message=message):
                logger().warning(message)
            case GiveUp(error=error):
                self._left(error)
            case Leave():
                self._left(None)
            case _:
                raise TypeError(f"no way to carry out {command}")

    def expect_callback(self, request: int) -> asyncio.Future[AnswerCallback]:
        """The answer to the registration callback of that number, when the machine gives it."""
        future: asyncio.Future[AnswerCallback] = asyncio.get_running_loop().create_future()
        self._callbacks[request] = future
        return future

    async def close(self) -> None:
        """Cancel what is still in flight and wait for it; user code that does not stop is not waited for."""
        self._closed = True
        for host in self._hosts.values():
            host.stop(StopReason.SHUTDOWN)
        for job in self._jobs:
            job.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)

    def _begin(self, command: Answered, commit: Awaitable[None] | None = None) -> None:
        work = command, commit
        if self._goes_on and self._next is None:
            self._next = work
            return
        job = self._loop.create_task(self._carry_out(work))
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)

    async def _carry_out(self, work: _Work | None) -> None:
        """Post the answer of a command. Where nothing else is in flight, go on with the first that follows from it: a
        new task would begin a turn of the loop later. Among many, those of one kind together are faster.
        """
        while work is not None:
            event = await self._answer(*work)
            self._goes_on = len(self._jobs) == 1 and not self._is_cancelled()
            try:
                self._post(event)
            finally:
                self._goes_on = False
            work, self._next = self._next, None

    def _is_cancelled(self) -> bool:
        """The loop is being torn down around the node: what follows must not hold that up."""
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0

    async def _answer(self, command: Answered, commit: Awaitable[None] | None) -> Event:
        try:
            return await (self._coroutine(command) if commit is None else self._committed(command, commit))
        except asyncio.CancelledError:
            if self._closed:
                raise
            return command.failed(Failure(message="cancelled"))
        except Exception as error:
            return _failed(command, error)

    def _coroutine(self, command: Answered) -> Coroutine[Any, Any, Event]:
        match command:
            case Register():
                return self._network.register()
            case SignIn():
                return self._network.sign_in()
            case Ask():
                return self._ask(command)
            case SendHeartbeat():
                return self._network.heartbeat(command)
            case OfferOutcome():
                return self._network.offer(command)
            case StartRunner():
                return self._run(command)
            case StoreSecret():
                return self._store(command)
            case _:
                raise TypeError(f"no way to answer {command}")

    async def _ask(self, command: Ask) -> Event:
        asked = time.monotonic()
        event = await self._network.ask(command)
        self._metrics.poll_latency((time.monotonic() - asked) * 1000)
        if isinstance(event, LeaseOffered):
            outcome = self._ledger.undelivered(str(event.envelope.task.id))
            if outcome is not None and outcome.kind is OutcomeKind.COMPLETED:
                stands = await self._stands(event.envelope, outcome.artifacts)
                return replace(event, standing=outcome if stands else None)
        return event

    async def _run(self, command: StartRunner) -> Event:
        host = self._hosts[command.lease]
        try:
            return await host.run(self._registry.run_for_lease)
        finally:
            self._names[command.lease] = host.run_name
            del self._hosts[command.lease]

    def _commit(self, command: CommitAccepted | CommitOutcome) -> None:
        try:
            if isinstance(command, CommitAccepted):
                commit = self._ledger.commit_accepted(command.lease, command.envelope)
            else:
                name = self._names.get(command.lease, "")
                commit = self._ledger.commit_outcome(command.lease, command.outcome, name)
        except Exception as error:
            self._post(_failed(command, error))
            return
        if commit is None:
            self._post(self._noted(command))
        else:
            self._begin(command, commit)

    async def _committed(self, command: Answered, commit: Awaitable[None]) -> Event:
        assert isinstance(command, CommitAccepted | CommitOutcome)
        await commit
        return self._noted(command)

    def _noted(self, command: CommitAccepted | CommitOutcome) -> Event:
        if isinstance(command, CommitOutcome):
            self._names.pop(command.lease, None)
        return Committed(lease=command.lease)

    async def _store(self, command: StoreSecret) -> Event:
        try:
            await self._secrets.write(command.node_id, command.secret)
        except Exception:
            return SecretUnstored(request=command.request, problem="persist failed")
        try:
            kept = await self._secrets.read()
        except Exception:
            kept = None
        if kept != command.secret:
            return SecretUnstored(request=command.request, problem="persist verify failed")
        return SecretStored(request=command.request, node_id=command.node_id)


def _failed(command: Answered, error: Exception) -> Event:
    logger().opt(exception=error).error(f"{type(command).__name__} failed")
    return command.failed(Failure(message=f"{type(error).__name__}: {error}"))
