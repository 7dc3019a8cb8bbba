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
import os
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

from posemesh.errors import StorageError, TaskStopped
from posemesh.outcomes import FailureCode
from posemesh.policy import CHILD_GRACE_SECS
from posemesh.runners.api import TaskSpec
from posemesh.runners.context import BuildContext, merge_env
from posemesh.runners.ending import Ending, ending_of
from posemesh.runners.executors.keeping import Exit, Kept, keep, signal_name
from posemesh.runners.executors.layout import Layout
from posemesh.runners.executors.output import ProgramOutput
from posemesh.runners.executors.template import Template
from posemesh.runners.ids import RunId, make_run_id
from posemesh.runners.job import Ended, Job, Run
from posemesh.runners.metrics import RunnerType
from posemesh.runners.port import LogEvent, Progress, Question
from posemesh.runners.router import TaskRef
from posemesh.runners.task import PortTask
from posemesh.shell.offload import HostOffload
from posemesh.telemetry import task_span
from posemesh.types import JSON

__all__ = ("PASSED_ON", "CommandRunner")

T = TypeVar("T")

PASSED_ON: Final = frozenset(
    "PATH HOME USER LOGNAME LANG LANGUAGE TZ LD_LIBRARY_PATH "
    "CUDA_VISIBLE_DEVICES CUDA_DEVICE_ORDER NVIDIA_VISIBLE_DEVICES NVIDIA_DRIVER_CAPABILITIES "
    "HIP_VISIBLE_DEVICES ROCR_VISIBLE_DEVICES ZE_AFFINITY_MASK".split()
)
"""The variables of the node that a program is given, where they are set, and all that begin with ``LC_``: where
programs and libraries are, how to write, and which devices are the node's. Addresses of proxies and the like may hold
passwords: who needs them puts them into ``env``."""
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
        for key, value in self.env.items():
            if not key or "=" in key or "\0" in f"{key}{value}" or type(value) is not str:
                raise ValueError(f"env {key!r}: expected a name without '=' and a text, both without NUL")
        if memory_bytes is not None and memory_bytes <= 0:
            raise ValueError(f"memory_bytes: expected a number of bytes above 0, got {memory_bytes}; None is no limit")

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


class _CommandRun:
    """One task, from its inputs to its artifacts.

    A stop ends what it asks of the node at once, and the program by :meth:`Kept.stop`. All else is short and is waited
    for, so that nothing goes on once the end is told.
    """

    def __init__(self, ref: _CommandRef, job: Job, ended: Ended) -> None:
        self._runner = ref.runner
        self._context = ref.context
        self._job = job
        self._task = PortTask(job.lease, _JobPort(job), job.workspace)
        self._output = ProgramOutput(self._task.ctrl)
        self._told = False
        self._asking = False
        self._kept: Kept | None = None
        self._over_before = False
        """Whether the program had ended by itself when it would have been stopped."""
        self._main = asyncio.get_running_loop().create_task(self._run())
        self._main.add_done_callback(lambda done: ended(_cancelled() if done.cancelled() else done.result()))

    def cancel(self) -> None:
        if self._told:
            return
        self._told = True
        if self._asking:
            self._main.cancel()
        elif self._kept is not None:
            self._stop(self._kept)

    async def _run(self) -> Ending:
        with task_span(self._job.lease):
            try:
                return await self._prepared()
            except (asyncio.CancelledError, TaskStopped):
                return _cancelled(self._output.tail)
            except OSError as error:
                return _unprepared(error)
            except Exception as error:
                return ending_of(error, self._output.tail)

    async def _prepared(self) -> Ending:
        lease = self._job.lease
        needed, cids = self._runner.template.inputs_min, lease.task.inputs_cids
        if len(cids) < needed:
            message = f"{self._runner.name}: its command needs {needed} inputs or more, the task has {len(cids)}"
            return Ending(code=FailureCode.BAD_INPUT, message=message)
        try:
            root = await _aside(self._job.workspace)
        except StorageError as error:
            return _unprepared(error)
        layout = await _aside(partial(Layout, root))
        inputs: list[str] = []
        for cid in cids:
            found = await self._ask(partial(self._task.input.materialize_cid_with_meta, cid))
            inputs.append(str(await _aside(partial(layout.place, found))))
        await _aside(partial(layout.describe, lease))
        return await self._programmed(layout, inputs)

    async def _programmed(self, layout: Layout, inputs: Sequence[str]) -> Ending:
        if self._told:
            return _cancelled()
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
            return _unprepared(error)
        if self._told:
            self._stop(self._kept)
        try:
            ended = await self._kept.wait()
        except asyncio.CancelledError:  # not by a stop: the loop is being closed
            await self._kept.kill()
            raise
        self._output.close()
        if self._told and not self._over_before:
            return _cancelled(self._output.tail)
        if ended.code != 0:
            return self._failed(ended)
        return await self._uploaded(layout)

    async def _uploaded(self, layout: Layout) -> Ending:
        try:
            found = await _aside(layout.collect)
        except (OSError, ValueError) as error:
            return Ending(code=FailureCode.RUNNER_ERROR, message=str(error), details=self._details())
        for rel_path, path in found:
            try:
                await self._ask(partial(self._task.output.put_file, rel_path, path))
            except StorageError as error:
                ending = ending_of(error, self._output.tail)
                return Ending(code=FailureCode.UPLOAD_FAILED, message=ending.message, details=ending.details)
        return Ending()

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

    def _details(self, **known: JSON) -> dict[str, JSON]:
        return {**known, "output": list(self._output.tail)}

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
        passed = {name: value for name, value in os.environ.items() if name in PASSED_ON or name.startswith("LC_")}
        least = {"PATH": os.defpath, **passed, "TMPDIR": str(layout.tmp)}
        return merge_env(task=least, context=self._context.env, runner=self._runner.env) | {
            "POSEMESH_INPUTS": str(layout.inputs),
            "POSEMESH_OUTPUTS": str(layout.outputs),
            "POSEMESH_TASK": str(layout.task),
        }

    def _stop(self, kept: Kept) -> None:
        self._over_before = kept.is_over()
        kept.stop(CHILD_GRACE_SECS)

    async def _ask(self, question: Callable[[], Awaitable[T]]) -> T:
        """What a stop interrupts, or keeps from being asked."""
        if self._told:
            raise asyncio.CancelledError
        self._asking = True
        try:
            return await question()
        finally:
            self._asking = False


class _JobPort:
    """The port of a task, on the node's loop."""

    def __init__(self, job: Job) -> None:
        self._job = job

    @property
    def cancelled(self) -> bool:
        return self._job.cancelled

    def post(self, message: Progress | LogEvent) -> None:
        self._job.report(message)

    async def call(self, message: Question) -> Any:
        return await self._job.answer(message)


async def _aside(function: Callable[[], T]) -> T:
    """What may block, in a thread."""
    return await HostOffload().call(function)


def _unprepared(error: Exception) -> Ending:
    ending = ending_of(error)
    code = ending.code if ending.code is FailureCode.DISK_FULL else FailureCode.SETUP_FAILED
    return Ending(code=code, message=f"the program could not be started: {ending.message}", details=ending.details)


def _cancelled(output: Sequence[str] = ()) -> Ending:
    return ending_of(asyncio.CancelledError(), output)
