"""User code in interpreters of its own: whatever it does there, the node goes on.

Each task that runs has a child of its own, which imports user code again and is kept for the next task, so that
``setup()`` is done once a child. Its environment is the node's without the node's secrets. It speaks to the node
through a socket, in messages that are data only; what it prints is logged. A child that was told to stop, crashed, ran
out of memory or lost its ``setup()`` is not used again. What a task started and left is ended with it, but for what
``setup()`` started: that ends with the child, and the child with the node.

User code is imported as by another program, so what only the node should do goes below ``if __name__ == "__main__":``
(``Node.run()`` does nothing in a child). What is read from the node's secrets while it is imported is not there.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from contextvars import Context
from dataclasses import dataclass
from typing import Final, TypeAlias

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

Env: TypeAlias = tuple[tuple[str, str], ...]
CLOSE_SECS: Final = CHILD_GRACE_SECS + 1.0
"""Within this all children have ended, unless the system cannot end them."""


class ProcessRunner:
    """``target`` for tasks of ``capability``. ``env`` is added to what the children find; ``memory_bytes`` limits the
    address space of each, of which CUDA takes more than there is memory. Without ``keep`` each task has a new child.

    Raises TypeError for what is no runner and a ``keep`` that is no bool, ValueError for a runner that another
    interpreter cannot find, and for an ``env`` or ``memory_bytes`` that no program could be started with.
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
        self._idle: dict[Env, list[Peer]] = {}
        self._runs: set[_ProcessRun] = set()
        self._leaving: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count(1)
        for key, value in self._env.items():
            if not key or "=" in key or type(value) is not str or "\0" in f"{key}{value}":
                raise ValueError(f"env {key!r}: expected a name without '=' and a text, both without NUL")
        if type(keep) is not bool:
            raise TypeError(f"keep: expected True or False, got {keep!r:.80}")
        if memory_bytes is not None and memory_bytes <= 0:
            raise ValueError(f"memory_bytes: expected a number of bytes above 0, got {memory_bytes}; None is no limit")

    def __repr__(self) -> str:
        idle = sum(map(len, self._idle.values()))
        return f"<ProcessRunner {self.name} {self.capability}, {len(self._runs)} running, {idle} idle>"

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
        peer = await self._started(())
        try:
            ending = await peer.carried_out(Check(next(self._numbers)))
        except BaseException:
            self._let_go(peer)
            raise
        if ending.code is not None:
            raise RunnerInternal(ending.message)
        if not self._put_back((), peer):
            await peer.leave()

    async def close(self) -> None:
        """End all children: each is told to stop, and killed where it does not."""
        for run in tuple(self._runs):
            run.cancel()
        for peer in itertools.chain(*self._idle.values()):
            self._let_go(peer)
        self._idle.clear()
        ends = [*self._leaving, *(run.over() for run in self._runs)]
        if ends:
            await asyncio.wait(ends, timeout=CLOSE_SECS)

    def _ensure_found(self) -> None:
        if not is_found(self._target, self._load):
            raise RunnerInternal(
                f"{self._load.name} of {self._load.module} is not what was registered as {self.name}: give that a name "
                "of its own, by which another interpreter finds it"
            )

    def _idle_child(self, env: Env) -> Peer | None:
        idle = self._idle.get(env, [])
        while idle:
            peer = idle.pop()
            if peer.is_usable():
                return peer
            self._let_go(peer)
        self._idle.pop(env, None)
        return None

    def _started(self, env: Env) -> asyncio.Task[Peer]:
        """A new child, soon. It outlives its first task, whose context must not be in what it logs later."""
        whole = merge_env(task=environment(), context=env, runner=self._env)
        start = Peer.start(self.name, self._load, whole, self._memory_bytes)
        return asyncio.get_running_loop().create_task(start, context=Context())

    def _put_back(self, env: Env, peer: Peer) -> bool:
        """Whether it is kept for the next task."""
        kept = self._keep and peer.is_sound()
        if kept:
            self._idle.setdefault(env, []).append(peer)
        return kept

    def _let_go(self, peer: Peer) -> asyncio.Task[None]:
        self._leaving.add(leaving := asyncio.get_running_loop().create_task(peer.leave()))
        leaving.add_done_callback(self._leaving.discard)
        return leaving


@dataclass(slots=True)
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
        self._told = False
        self._peer: Peer | None = None
        self._starting: asyncio.Task[Peer] | None = None
        self._over: asyncio.Future[None] | None = None
        idle = self._runner._idle_child(self._context.env)
        self._runner._runs.add(self)
        if idle is not None:
            self._begin(idle)
        else:
            self._starting = self._runner._started(self._context.env)
            self._starting.add_done_callback(self._begin_with)

    def over(self) -> asyncio.Future[None]:
        """Done when it is."""
        if self._over is None:
            self._over = asyncio.get_running_loop().create_future()
        return self._over

    def cancel(self) -> None:
        if self._told or self not in self._runner._runs:
            return
        self._told = True
        if self._peer is not None:
            self._peer.stop()
        elif self._starting is not None:
            self._starting.cancel()

    def _begin_with(self, starting: asyncio.Task[Peer]) -> None:
        error = asyncio.CancelledError() if starting.cancelled() else starting.exception()
        if isinstance(error, asyncio.CancelledError):
            self._end(ending_of(error))
        elif error is not None:
            self._context.metrics.runner_error(RunnerType.PROCESS, "spawn_failed")
            message = f"the runner's process could not be started: {said(error)}"
            self._end(Ending(code=FailureCode.SETUP_FAILED, message=message, details=ending_of(error).details))
        elif self._told:  # when it had just started
            self._end_without(starting.result(), ending_of(asyncio.CancelledError()))
        else:
            self._begin(starting.result())

    def _begin(self, peer: Peer) -> None:
        self._peer = peer
        peer.begin(run_of(next(self._runner._numbers), self._job.lease), self._job, self._finish)

    def _finish(self, ending: Ending) -> None:
        assert self._peer is not None
        if self._runner._put_back(self._context.env, self._peer):
            self._end(ending)
        else:
            self._end_without(self._peer, ending)

    def _end_without(self, peer: Peer, ending: Ending) -> None:
        """End once the child is gone too."""
        self._runner._let_go(peer).add_done_callback(lambda _: self._end(ending))

    def _end(self, ending: Ending) -> None:
        self._runner._runs.discard(self)
        if self._over is not None:
            self._over.set_result(None)
        if self._told:
            asyncio.get_running_loop().call_soon(self._ended, ending)  # perhaps it is being told just now
        else:
            self._ended(ending)
