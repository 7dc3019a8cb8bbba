"""Plain functions: each task in a thread of its own.

A thread cannot be made to stop. It is told by ``is_cancelled()``, and every other call of its task raises; one that
looks at neither keeps its slot until it ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from posemesh.policy import TEARDOWN_SECS
from posemesh.runners.blocking import BlockingTask
from posemesh.runners.context import BuildContext
from posemesh.runners.ending import ending_of
from posemesh.runners.ids import RunId, make_run_id
from posemesh.runners.job import Ended, Job, Run
from posemesh.runners.kinds import BlockingRunner
from posemesh.runners.metrics import RunnerType
from posemesh.runners.port import LogEvent, Progress, Question
from posemesh.shell.offload import Offload
from posemesh.telemetry import logger, task_span
from posemesh.types import TaskSpec

__all__ = ("ThreadRunner",)


class ThreadRunner:
    """User code's plain forms. ``setup()`` runs once, in the first task's thread; ``teardown()`` when the node ends."""

    runner_type = RunnerType.THREAD

    def __init__(self, name: str, capability: str, user: BlockingRunner, offload: Offload) -> None:
        self.name = name
        self._capability = capability
        self._user = user
        self._offload = offload

    def supports(self, spec: TaskSpec) -> bool:
        return spec.capability == self._capability

    def build_task(self, spec: TaskSpec, ctx: BuildContext) -> _ThreadTask:
        return _ThreadTask(make_run_id(self.name, ctx.slot), self._user, self._offload)

    async def check(self) -> None:
        """What the runner declares as ``check()``. Raises what it raises."""
        if not self._user.has_check:
            return
        error = await self._offload.call(_raised, self._user.check)
        if error is not None:
            raise error if isinstance(error, Exception) else RuntimeError(repr(error))

    async def close(self) -> None:
        """``teardown()``, where there is one; it has 2 s."""
        if not self._user.has_teardown:
            return
        try:
            async with asyncio.timeout(TEARDOWN_SECS):
                error = await self._offload.call(_raised, self._user.teardown)
        except TimeoutError:
            logger().warning(f"runner {self.name}: teardown() did not end within {TEARDOWN_SECS:g} s; it is left alone")
            return
        if error is not None:
            logger().opt(exception=error).warning(f"runner {self.name}: teardown() failed")


class _ThreadTask:
    runner_type = RunnerType.THREAD

    def __init__(self, run_id: RunId, user: BlockingRunner, offload: Offload) -> None:
        self.run_id = run_id
        self._user = user
        self._offload = offload

    def start(self, job: Job, ended: Ended) -> Run:
        run = _ThreadRun(job)
        task = BlockingTask(job.lease, run, job.workspace)

        ready = False

        def work() -> None:
            nonlocal ready
            with task_span(job.lease):
                self._user.setup()
                ready = True
                self._user.run(task)

        async def watch() -> None:
            error = await self._offload.call(_raised, work)
            ended(ending_of(error, ready=ready))

        run.watch = asyncio.ensure_future(watch())
        return run


class _ThreadRun:
    """The run, and user code's end of the port: it waits in the thread for what the node's loop answers."""

    def __init__(self, job: Job) -> None:
        self.watch: asyncio.Future[None] | None = None
        self._job = job
        self._loop = asyncio.get_running_loop()

    def cancel(self) -> None:
        """The job knows it was told to stop, and has ended its transfers; a thread learns of it when it asks."""

    @property
    def cancelled(self) -> bool:
        return self._job.cancelled

    def post(self, message: Progress | LogEvent) -> None:
        self._job.report(message)

    def call(self, message: Question) -> Any:
        answer = asyncio.run_coroutine_threadsafe(self._job.answer(message), self._loop)
        try:
            return answer.result()
        except BaseException:
            if self._job.cancelled:
                raise asyncio.CancelledError("the task was told to stop") from None
            raise


def _raised(function: Callable[[], object]) -> BaseException | None:
    """What the function raised. SystemExit and its like end a task here, never the node's loop."""
    try:
        function()
    except BaseException as error:
        return error
    return None
