"""Coroutines, on the loop where the node puts user code: a thread's under ``run()``, the host's under ``start()``."""

from __future__ import annotations

import asyncio
from typing import Any

from posemesh.policy import TEARDOWN_SECS
from posemesh.runners.context import BuildContext
from posemesh.runners.ending import ending_of
from posemesh.runners.ids import RunId, make_run_id
from posemesh.runners.job import Ended, Job, Run
from posemesh.runners.kinds import AsyncRunner
from posemesh.runners.metrics import RunnerType
from posemesh.runners.port import LogEvent, Progress, Question
from posemesh.runners.task import PortTask
from posemesh.shell.offload import Offload
from posemesh.telemetry import logger, task_span
from posemesh.types import TaskSpec

__all__ = ("InlineRunner",)


class InlineRunner:
    """User code's ``async`` forms. ``setup()`` runs once, before the first task; ``teardown()`` when the node ends."""

    runner_type = RunnerType.INLINE

    def __init__(self, name: str, capability: str, user: AsyncRunner, offload: Offload) -> None:
        self.name = name
        self._capability = capability
        self._user = user
        self._offload = offload

    def supports(self, spec: TaskSpec) -> bool:
        return spec.capability == self._capability

    def build_task(self, spec: TaskSpec, ctx: BuildContext) -> _InlineTask:
        return _InlineTask(make_run_id(self.name, ctx.slot), self._user, self._offload)

    async def check(self) -> None:
        """What the runner declares as ``check()``, where its tasks will run. Raises what it raises."""
        if self._user.has_check:
            await self._elsewhere(self._user.check)

    async def close(self) -> None:
        """``teardown()``, where there is one; it has 2 s."""
        if not self._user.has_teardown:
            return
        try:
            async with asyncio.timeout(TEARDOWN_SECS):
                await self._elsewhere(self._user.teardown)
        except TimeoutError:
            logger().warning(f"runner {self.name}: teardown() did not end within {TEARDOWN_SECS:g} s; it is left alone")
        except Exception as error:
            logger().opt(exception=error).warning(f"runner {self.name}: teardown() failed")

    async def _elsewhere(self, work: Any) -> None:
        ended: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
        run = self._offload.start(work, lambda error: None if ended.done() else ended.set_result(error))
        try:
            error = await ended
        except asyncio.CancelledError:
            run.cancel()
            raise
        if error is not None:
            raise error if isinstance(error, Exception) else RuntimeError(repr(error))


class _InlineTask:
    runner_type = RunnerType.INLINE

    def __init__(self, run_id: RunId, user: AsyncRunner, offload: Offload) -> None:
        self.run_id = run_id
        self._user = user
        self._offload = offload

    def start(self, job: Job, ended: Ended) -> Run:
        task = PortTask(job.lease, _JobPort(job, self._offload), job.workspace)

        ready = False

        async def work() -> None:
            nonlocal ready
            with task_span(job.lease):
                await self._user.setup()
                ready = True
                await self._user.run(task)

        return self._offload.start(work, lambda error: ended(ending_of(error, ready=ready)))


class _JobPort:
    """User code's end of the port, on a loop of the same process."""

    def __init__(self, job: Job, offload: Offload) -> None:
        self._job = job
        self._offload = offload

    @property
    def cancelled(self) -> bool:
        return self._job.cancelled

    def post(self, message: Progress | LogEvent) -> None:
        self._job.report(message)

    async def call(self, message: Question) -> Any:
        return await self._offload.ask(lambda: self._job.answer(message))
