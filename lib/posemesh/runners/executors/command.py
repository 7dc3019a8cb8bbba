"""Any program as a runner: it finds the task's inputs as files, and what it leaves as files is uploaded.

The program runs in a directory of its task's (:class:`~posemesh.runners.executors.layout.Layout` says what is there),
without input, kept so that nothing it starts outlives it.

* **Arguments** come from a template (:class:`~posemesh.runners.executors.template.Template`); there is no shell. None
  that the network has a part in can become an option by itself: ``{task_id}`` is a UUID, ``{capability}`` the runner's
  own, all others are absolute paths. A text for ``sh -c`` should hold none of them: give them as its arguments.
* **Environment**: of the node's own only PASSED_ON; over that what the node is built with, over that the runner's
  ``env``. TMPDIR is a directory of the task's. POSEMESH_INPUTS, POSEMESH_OUTPUTS and POSEMESH_TASK name the directories
  and the file ``task.json``. None of the node's secrets is there; but this is no sandbox, and what the node's user may
  read the program may read.
* **Output**: a line on stdout that is a JSON object with the one key ``progress`` or ``event`` is reported as such, up
  to 64 KiB. All other lines go to the log, of stderr as warnings.
* **End**: after exit code 0 every file below ``outputs`` is uploaded under its relative path. After any other end
  nothing is: what a program left that failed may be half of a file, and the service would take it for a result.

A container runtime is a program too, with some care, since the container of one with a daemon is no child of the node::

    argv=["docker", "run", "--rm", "--init", "--name", "posemesh-{task_id}", "--user", "1000:1000",
          "--mount", "type=bind,src={inputs},dst=/in,readonly", "--mount", "type=bind,src={outputs},dst=/out",
          "image", "/in", "/out"]

A stop reaches the client as SIGTERM, which it passes on to the container's first process; that ignores it unless it is
``--init`` or handles it. What goes on for longer than CHILD_GRACE_SECS outlives the client: let the image end in time,
or have it limit itself (``timeout -k``). ``--user`` is the node's user, so that the outputs are its own. DOCKER_HOST
and the like belong into the runner's ``env``.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from posemesh.errors import StorageError
from posemesh.outcomes import FailureCode
from posemesh.policy import CHILD_GRACE_SECS
from posemesh.runners.api import TaskSpec
from posemesh.runners.context import BuildContext
from posemesh.runners.ending import Ending
from posemesh.runners.executors.keeping import Exit, Kept, keep, signal_name
from posemesh.runners.executors.layout import Layout
from posemesh.runners.executors.program import (
    PASSED_ON,
    ProgramRun,
    aside,
    cancelled,
    check_limits,
    program_env,
    unprepared,
)
from posemesh.runners.executors.template import Template
from posemesh.runners.ids import RunId, make_run_id
from posemesh.runners.job import Ended, Job, Run
from posemesh.runners.metrics import RunnerType
from posemesh.runners.router import TaskRef

__all__ = ("PASSED_ON", "CommandRunner")

_NO_MEMORY: Final = re.compile(r"MemoryError|bad_alloc|out of memory|cannot allocate memory|\bENOMEM\b", re.IGNORECASE)


class CommandRunner:
    """``argv`` for tasks of ``capability``. ``env`` is added to what the program finds; ``memory_bytes`` limits the
    address space of each of its processes, of which CUDA takes more than there is memory.

    Raises ValueError for an ``argv``, ``env`` or ``memory_bytes`` that no program could be started with.
    """

    runner_type = RunnerType.COMMAND

    def __init__(
        self,
        name: str,
        capability: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        memory_bytes: int | None = None,
    ) -> None:
        self.name = name
        self.capability = capability
        self.template = Template(argv)
        self.env = dict(env or {})
        self.memory_bytes = memory_bytes
        check_limits(self.env, memory_bytes)

    def __repr__(self) -> str:
        return f"<CommandRunner {self.name} {self.capability}>"  # arguments and variables may hold secrets

    def supports(self, spec: TaskSpec) -> bool:
        return spec.capability == self.capability

    def build_task(self, spec: TaskSpec, ctx: BuildContext) -> TaskRef:
        return _CommandRef(make_run_id(self.name, ctx.slot), self, ctx)


@dataclass(frozen=True, slots=True)
class _CommandRef:
    run_id: RunId
    runner: CommandRunner
    context: BuildContext
    runner_type: RunnerType = RunnerType.COMMAND

    def start(self, job: Job, ended: Ended) -> Run:
        return _CommandRun(self, job, ended)


class _CommandRun(ProgramRun):
    """One task, from its inputs to its artifacts. A stop ends the program by :meth:`Kept.stop`."""

    def __init__(self, ref: _CommandRef, job: Job, ended: Ended) -> None:
        self._runner = ref.runner
        self._kept: Kept | None = None
        self._over_before = False
        """Whether the program had ended by itself when it would have been stopped."""
        super().__init__(ref.context, job, ended)

    async def _prepared(self) -> Ending:
        lease = self._job.lease
        needed, cids = self._runner.template.inputs_min, lease.task.inputs_cids
        if len(cids) < needed:
            message = f"{self._runner.name}: its command needs {needed} inputs or more, the task has {len(cids)}"
            return Ending(code=FailureCode.BAD_INPUT, message=message)
        try:
            root = await aside(self._job.workspace)
        except StorageError as error:
            return unprepared(error)
        layout = await aside(partial(Layout, root))
        inputs = [str(path) for path in await self._placed(layout)]
        await aside(partial(layout.describe, lease))
        return await self._programmed(layout, inputs)

    async def _programmed(self, layout: Layout, inputs: Sequence[str]) -> Ending:
        if self._told:
            return cancelled()
        runner, values = self._runner, self._values(layout)
        try:
            self._kept = await keep(
                runner.template.fill(values, inputs),
                env=self._environment(layout),
                cwd=layout.work,
                memory_bytes=runner.memory_bytes,
                output=self._output.take,
            )
        except (OSError, ValueError) as error:
            self._context.metrics.runner_error(RunnerType.COMMAND, "spawn_failed")
            return unprepared(error)
        if self._told:
            self._stop()
        try:
            ended = await self._kept.wait()
        except asyncio.CancelledError:  # not by a stop: the loop is being closed
            await self._kept.kill()
            raise
        self._output.close()
        if self._told and not self._over_before:
            return cancelled(self._output.tail)
        if ended.code != 0:
            return self._failed(ended)
        return await self._uploaded(layout)

    def _failed(self, ended: Exit) -> Ending:
        if ended.code is None:
            name = signal_name(ended.signal)
            code, message, details = FailureCode.KILLED, f"the program was killed by {name}", self._details(signal=name)
        else:
            code, message = FailureCode.RUNNER_ERROR, f"the program ended with exit code {ended.code}"
            details = self._details(exit_code=ended.code)
        limit = self._runner.memory_bytes
        if limit is not None and any(map(_NO_MEMORY.search, self._output.tail)):
            return Ending(
                code=FailureCode.OUT_OF_MEMORY,
                message=f"{message}, and said that memory ran out; it may use {limit} bytes",
                details=details,
            )
        return Ending(code=code, message=message, details=details)

    def _values(self, layout: Layout) -> dict[str, str]:
        spec = self._job.lease.task
        return {
            "capability": spec.capability,
            "inputs": str(layout.inputs),
            "outputs": str(layout.outputs),
            "task": str(layout.task),
            "task_id": str(spec.id),
            "workspace": str(layout.root),
        }

    def _environment(self, layout: Layout) -> dict[str, str]:
        return program_env(self._context, self._runner.env, TMPDIR=str(layout.tmp)) | {
            "POSEMESH_INPUTS": str(layout.inputs),
            "POSEMESH_OUTPUTS": str(layout.outputs),
            "POSEMESH_TASK": str(layout.task),
        }

    def _stop(self) -> None:
        if self._kept is not None:
            self._over_before = self._kept.is_over()
            self._kept.stop(CHILD_GRACE_SECS)
