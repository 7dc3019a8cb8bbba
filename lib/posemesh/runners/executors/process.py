"""User code in interpreters of its own: whatever it does there, the node goes on.

Each task that runs has a child of its own, which imports user code again and is kept for the next task, so that
``setup()`` is done once a child. Its environment is the node's without the node's secrets. It speaks to the node
through a socket, in messages that are data only; what it prints is logged. A child that was told to stop, crashed, ran
out of memory or lost its ``setup()`` is not used again. What a task started and left is ended with it, but for what
``setup()`` started: that ends with the child, and the child with the node.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from contextvars import Context
from dataclasses import dataclass
from typing import Final

from posemesh.errors import RunnerInternal
from posemesh.outcomes import FailureCode
from posemesh.policy import CHILD_GRACE_SECS
from posemesh.runners.api import RunnerTarget, TaskSpec
from posemesh.runners.context import BuildContext, merge_env
from posemesh.runners.ending import Ending, ending_of, said
from posemesh.runners.executors.frames import Check, run_of
from posemesh.runners.executors.locating import environment, is_found, located
from posemesh.runners.executors.peer import Peer
from posemesh.runners.ids import RunId, make_run_id
from posemesh.runners.job import Ended, Job, Run
from posemesh.runners.kinds import user_runner
from posemesh.runners.metrics import RunnerType
from posemesh.runners.router import TaskRef

__all__ = ("ProcessRunner",)

CLOSE_SECS: Final = CHILD_GRACE_SECS + 1.0
"""Within this all children have ended, unless the system cannot end them."""


class ProcessRunner:
    """``target`` for tasks of ``capability``. ``env`` is added to what the children find; ``memory_bytes`` limits the
    address space of each, of which CUDA takes more than there is memory. Without ``keep`` each task has a new child.

    Raises TypeError for what is no runner, ValueError for one that another interpreter cannot find, and for an ``env``
    or ``memory_bytes`` that no program could be started with.
    """

    runner_type = RunnerType.PROCESS

    def __init__(
        self,
        name: str,
        capability: str,
        target: RunnerTarget,
        *,
        env: Mapping[str, str] | None = None,
        memory_bytes: int | None = None,
        keep: bool = True,
    ) -> None:
        user_runner(target)
        self.name = name
        self.capability = capability
        self._target = target
        self._load = located(target)
        self._env = dict(env or {})
        self._memory_bytes = memory_bytes
        self._keep = keep
        self._idle: list[tuple[tuple[tuple[str, str], ...], Peer]] = []
        self._runs: set[_ProcessRun] = set()
        self._leaving: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count(1)
        for key, value in self._env.items():
            if not key or "=" in key or type(value) is not str or "\0" in f"{key}{value}":
                raise ValueError(f"env {key!r}: expected a name without '=' and a text, both without NUL")
        if memory_bytes is not None and memory_bytes <= 0:
            raise ValueError(f"memory_bytes: expected a number of bytes above 0, got {memory_bytes}; None is no limit")

    def __repr__(self) -> str:
        return f"<ProcessRunner {self.name} {self.capability}, {len(self._runs)} running, {len(self._idle)} idle>"

    def supports(self, spec: TaskSpec) -> bool:
        return spec.capability == self.capability

    def build_task(self, spec: TaskSpec, ctx: BuildContext) -> TaskRef:
        """Raises RunnerInternal where the name of the runner's function stands for another one by now."""
        self._ensure_found()
        return _ProcessRef(make_run_id(self.name, ctx.slot), self, ctx)

    async def check(self) -> None:
        """Start a child, for the first task if children are kept, and have it call the user's ``check()``.

        Raises RunnerInternal where user code cannot be imported there, or its check raises.
        """
        self._ensure_found()
        peer = await self._child(())
        ending = await peer.carry_out(Check())
        if ending.code is not None:
            raise RunnerInternal(ending.message)
        await self._put_back((), peer)

    async def close(self) -> None:
        """End all children: each is told to stop, and killed where it does not."""
        for run in self._runs:
            run.cancel()
        idle, self._idle = self._idle, []
        for _, peer in idle:
            self._let_go(peer)
        ends = [*self._leaving, *(run.main for run in self._runs)]
        if ends:
            await asyncio.wait(ends, timeout=CLOSE_SECS)

    def _ensure_found(self) -> None:
        if not is_found(self._target, self._load):
            raise RunnerInternal(
                f"{self._load.name} of {self._load.module} is not what was registered as {self.name}: give that a name "
                "of its own, by which another interpreter finds it"
            )

    async def _child(self, env: tuple[tuple[str, str], ...]) -> Peer:
        """An idle child, or a new one."""
        for at in reversed(range(len(self._idle))):
            context, peer = self._idle[at]
            if context == env:
                del self._idle[at]
                if peer.is_usable():
                    return peer
                self._let_go(peer)
        whole = merge_env(task=environment(), context=env, runner=self._env)
        start = Peer.start(self.name, self._load, whole, self._memory_bytes)
        # A child outlives its first task, whose context must not be in what it logs later.
        starting = asyncio.get_running_loop().create_task(start, context=Context())
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            starting.cancel()
            (found,) = await asyncio.gather(starting, return_exceptions=True)
            if isinstance(found, Peer):
                await found.leave()
            raise

    def _let_go(self, peer: Peer) -> None:
        """End it, while nobody waits."""
        self._leaving.add(leaving := asyncio.get_running_loop().create_task(peer.leave()))
        leaving.add_done_callback(self._leaving.discard)

    async def _put_back(self, env: tuple[tuple[str, str], ...], peer: Peer) -> None:
        if self._keep and peer.is_usable():
            self._idle.append((env, peer))
        else:
            await peer.leave()


@dataclass(frozen=True, slots=True)
class _ProcessRef:
    run_id: RunId
    runner: ProcessRunner
    context: BuildContext
    runner_type: RunnerType = RunnerType.PROCESS

    def start(self, job: Job, ended: Ended) -> Run:
        return _ProcessRun(self, job, ended)


class _ProcessRun:
    """One task, from the choice of its child until all that it started is gone."""

    def __init__(self, ref: _ProcessRef, job: Job, ended: Ended) -> None:
        self._runner = ref.runner
        self._context = ref.context
        self._job = job
        self._ended = ended
        self._peer: Peer | None = None
        self._told = False
        self._is_over = False
        self._runner._runs.add(self)
        self.main = asyncio.get_running_loop().create_task(self._run())
        self.main.add_done_callback(self._end)

    def cancel(self) -> None:
        if self._told or self._is_over:
            return
        self._told = True
        if self._peer is None:
            self.main.cancel()
        else:
            self._peer.stop()

    async def _run(self) -> Ending:
        runner, env = self._runner, self._context.env
        try:
            peer = await runner._child(env)
        except (OSError, ValueError) as error:
            self._context.metrics.runner_error(RunnerType.PROCESS, "spawn_failed")
            message = f"the runner's process could not be started: {said(error)}"
            return Ending(code=FailureCode.SETUP_FAILED, message=message, details=ending_of(error).details)
        self._peer = peer
        ending = await peer.carry_out(run_of(next(runner._numbers), self._job.lease), self._job)
        self._is_over = True
        await runner._put_back(env, peer)
        return ending

    def _end(self, main: asyncio.Task[Ending]) -> None:
        self._runner._runs.discard(self)
        if main.cancelled():
            self._ended(ending_of(asyncio.CancelledError()))
        else:
            error = main.exception()
            self._ended(main.result() if error is None else ending_of(error))
