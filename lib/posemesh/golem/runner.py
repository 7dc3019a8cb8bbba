"""A Golem runtime as a runner: it is deployed and started once, and each task is one command of it.

* **Work directory**: each runtime that is deployed has one of its own beside the tasks' workspaces, and serves one task
  at a time; as many as tasks run at once are deployed. After a task its runtime is kept for the next one, unless
  ``keep`` is false, it ended, or its command could not be ended.
* **Volumes**: inputs become files in the volume whose path ends in ``in``, ``input`` or ``inputs``; what is in that
  which ends in ``out``, ``output`` or ``outputs`` after exit code 0 is uploaded under its relative path. ``inputs`` and
  ``outputs`` name other paths. In a runtime with another volume, and no more, they are the folders ``inputs`` and
  ``outputs`` in it; in one without volumes those in its work directory. All of these are emptied before each task and
  after it.
* **Command**: ``entrypoint``, and ``args`` with the placeholders of :mod:`~posemesh.runners.executors.template`, whose
  paths are as the runtime sees them; ``{workspace}`` is the work directory. ``task.json`` is written into the inputs
  where ``{task}`` asks for it. With ``allow_meta`` a task's ``meta`` may hold ``entrypoint`` and ``args`` of its own;
  without, a task that brings either is failed: something else than it says would be run.
* **Reports**: counters become the progress ``{"counters": {name: value}}``, states the events ``{"state": name,
  "value": value}``; lines on stdout are taken as those of any program.
* **End**: an exit code other than 0 fails the task. A stop kills the command, and the runtime where it cannot do that.
"""

from __future__ import annotations

import asyncio
import math
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Final

from posemesh.errors import StorageError
from posemesh.golem.command import KILLED_CODE, Command, Counter, Output, State
from posemesh.golem.failures import GolemError, RuntimeEnded, RuntimeRefused
from posemesh.golem.hosted import INPUTS, OUTPUTS, Hosted, place_of
from posemesh.golem.supervisor import CommandLine, RuntimeMode, Supervisor, Timeouts
from posemesh.outcomes import FailureCode
from posemesh.policy import CHILD_GRACE_SECS
from posemesh.runners.api import TaskSpec
from posemesh.runners.context import BuildContext
from posemesh.runners.ending import Ending
from posemesh.runners.executors.declared import Declared, Terms, check_capability
from posemesh.runners.executors.layout import Layout
from posemesh.runners.executors.output import ProgramOutput
from posemesh.runners.executors.program import ProgramRun, aside, check_limits, program_env, unprepared
from posemesh.runners.executors.template import Template
from posemesh.runners.ids import RunId, make_run_id
from posemesh.runners.job import Ended, Job, Run
from posemesh.runners.metrics import RunnerType
from posemesh.runners.router import TaskRef
from posemesh.shell.offload import Offload
from posemesh.telemetry import logger
from posemesh.types import JSON

__all__ = ("RuntimeRunner", "declare_runtime")

KILL_SECS: Final = CHILD_GRACE_SECS / 2
"""For a runtime to end a command that is to stop, and again for the runtime itself where it does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is to be run: the entry point and the template of its arguments."""

    entrypoint: str
    template: Template


def work_of(entrypoint: Any, args: Any) -> Work:
    """Raises ValueError for what cannot be run."""
    if not isinstance(entrypoint, str) or PurePosixPath(entrypoint).name in ("", "..") or "\0" in entrypoint:
        raise ValueError(f"entrypoint: expected the path of a file in the runtime, got {entrypoint!r:.200}")
    if isinstance(args, str | bytes) or not isinstance(args, Sequence):
        raise ValueError(f"args: expected a list of texts, got {args!r:.200}")
    for text in (entrypoint, *args):
        if isinstance(text, str) and not text.isascii():
            text.encode()  # as Unicode's half of a pair, which no runtime can be sent
    return Work(entrypoint=entrypoint, template=Template(["entrypoint", *args]))


class RuntimeRunner:
    """``binary`` for tasks of ``capability``. ``env`` is added to what it finds of the node's environment;
    ``memory_bytes`` limits the address space of each of its processes.

    Raises ValueError for what no runtime could be started with.
    """

    runner_type = RunnerType.COMMAND

    def __init__(
        self,
        name: str,
        capability: str,
        binary: str,
        *,
        mode: str = "server",
        entrypoint: str | None = None,
        args: Sequence[str] = (),
        allow_meta: bool = False,
        inputs: str | None = None,
        outputs: str | None = None,
        runtime_args: Sequence[str] = (),
        timeouts: Timeouts | None = None,
        keep: bool = True,
        env: Mapping[str, str] | None = None,
        memory_bytes: int | None = None,
    ) -> None:
        self.name = name
        self.capability = capability
        if not binary or "\0" in binary:
            raise ValueError(f"binary: expected the path or the name of a program, got {binary!r}")
        modes = {each.name.lower(): each for each in RuntimeMode}
        if mode not in modes:
            raise ValueError(f"mode: expected server or command, got {mode!r}")
        if entrypoint is None and not allow_meta:
            raise ValueError("entrypoint: expected what the runtime is to run, or allow_meta for tasks that say it")
        for path in (inputs, outputs):
            if path is not None and not path.startswith("/"):
                raise ValueError(f"inputs, outputs: expected an absolute path in the runtime, got {path!r}")
        self.work = None if entrypoint is None else work_of(entrypoint, args)
        self.allow_meta = allow_meta
        self.env = dict(env or {})
        check_limits(self.env, memory_bytes)
        self._binary, self._mode, self._runtime_args = binary, modes[mode], tuple(runtime_args)
        self._paths = {"inputs": inputs, "outputs": outputs}
        self._timeouts, self._keep, self._memory_bytes = timeouts or Timeouts(), keep, memory_bytes
        self._idle: list[Hosted] = []
        self._runs: set[_RuntimeRun] = set()

    def __repr__(self) -> str:
        return f"<RuntimeRunner {self.name} {self.capability}, {len(self._runs)} running, {len(self._idle)} idle>"

    def supports(self, spec: TaskSpec) -> bool:
        return spec.capability == self.capability

    def build_task(self, spec: TaskSpec, ctx: BuildContext) -> TaskRef:
        return _RuntimeRef(make_run_id(self.name, ctx.slot), self, ctx)

    async def check(self) -> None:
        """Have the runtime test itself. Raises StepFailed and the like."""
        await self._supervisor(Path.cwd(), ProgramOutput(None), program_env(BuildContext(), self.env)).test()

    async def close(self) -> None:
        """Stop all runtimes; what does not stop in time is killed."""
        for run in tuple(self._runs):
            run.cancel()
        idle, self._idle = self._idle, []
        await asyncio.gather(*(run.over.wait() for run in self._runs), *(each.end() for each in idle))

    async def deployed(self, beside: Path, context: BuildContext) -> Hosted:
        """A runtime that is kept, or a new one in a directory next to the workspace ``beside``."""
        while self._idle:
            found = self._idle.pop()
            if found.is_usable(context):
                return found
            await found.end()
        # It outlives its first task, whose context must not be in what it logs later.
        return await asyncio.get_running_loop().create_task(self._deploy(beside, context), context=Context())

    async def give_back(self, deployed: Hosted) -> None:
        """A task is over. Its runtime is kept where it is as it was before."""
        if self._keep and deployed.is_usable(deployed.context) and await deployed.cleared():
            self._idle.append(deployed)
        else:
            await deployed.end()

    async def _deploy(self, beside: Path, context: BuildContext) -> Hosted:
        root = await aside(lambda: Path(tempfile.mkdtemp(prefix="runtime-", dir=beside.parent)).resolve())
        said, (work, tmp) = ProgramOutput(None), (root / "work", root / "tmp")
        for folder in (work, tmp):
            folder.mkdir()
        supervisor = self._supervisor(work, said, program_env(context, self.env, TMPDIR=str(tmp)))
        deployed = Hosted(root, supervisor, context, said)
        try:
            deployment = await supervisor.deploy()
            deployed.places = {
                "inputs": place_of(deployment, work, "inputs", self._paths["inputs"], INPUTS),
                "outputs": place_of(deployment, work, "outputs", self._paths["outputs"], OUTPUTS),
            }
            await supervisor.start()
            await deployed.cleared()
        except BaseException:
            await deployed.end()
            raise
        return deployed

    def _supervisor(self, workdir: Path, said: ProgramOutput, env: Mapping[str, str]) -> Supervisor:
        return Supervisor(
            CommandLine(binary=self._binary, workdir=workdir, args=self._runtime_args),
            mode=self._mode,
            timeouts=self._timeouts,
            env=env,
            memory_bytes=self._memory_bytes,
            log=lambda event: said.take(*event) if isinstance(event, Output) else None,
        )


@dataclass(frozen=True, slots=True)
class _RuntimeRef:
    run_id: RunId
    runner: RuntimeRunner
    context: BuildContext
    runner_type: RunnerType = RunnerType.COMMAND

    def start(self, job: Job, ended: Ended) -> Run:
        return _RuntimeRun(self, job, ended)


class _RuntimeRun(ProgramRun):
    """One task, from its inputs to its artifacts. What it waits for of its runtime is asked like all else, so that a
    stop interrupts it.
    """

    def __init__(self, ref: _RuntimeRef, job: Job, ended: Ended) -> None:
        self._runner = ref.runner
        self.over = asyncio.Event()
        self._counters: dict[str, JSON] = {}
        ref.runner._runs.add(self)
        super().__init__(ref.context, job, ended)
        self._main.add_done_callback(lambda _: self._forget())

    def _forget(self) -> None:
        self._runner._runs.discard(self)
        self.over.set()

    def _stop(self) -> None:
        pass  # what goes on is short

    async def _prepared(self) -> Ending:
        lease = self._job.lease
        try:
            work = self._work(lease.task.meta)
        except ValueError as error:
            return Ending(code=FailureCode.BAD_INPUT, message=f"{self._runner.name}: meta: {error}")
        needed, count = work.template.inputs_min, len(lease.task.inputs_cids)
        if count < needed:
            message = f"{self._runner.name}: its command needs {needed} inputs or more, the task has {count}"
            return Ending(code=FailureCode.BAD_INPUT, message=message)
        try:
            workspace = await aside(self._job.workspace)
            deployed = await self._ask(partial(self._runner.deployed, workspace, self._context))
        except (GolemError, StorageError) as error:
            self._context.metrics.runner_error(RunnerType.COMMAND, "spawn_failed")
            return unprepared(error)
        try:
            return await self._served(deployed, work, workspace)
        finally:
            await self._runner.give_back(deployed)

    def _work(self, meta: JSON) -> Work:
        """What to run. Raises ValueError for a task that must not say it, or says it badly."""
        asked = {name: meta[name] for name in ("entrypoint", "args") if name in meta} if isinstance(meta, dict) else {}
        own = self._runner.work
        if not asked:
            if own is None:
                raise ValueError("expected an entrypoint, as the runner has none of its own")
            return own
        if not self._runner.allow_meta:
            raise ValueError(f"expected no {' and no '.join(asked)}: this runner chooses what is run")
        entrypoint = asked.get("entrypoint", None if own is None else own.entrypoint)
        if "args" in asked:
            return work_of(entrypoint, asked["args"])
        return work_of(entrypoint, ())

    async def _served(self, deployed: Hosted, work: Work, workspace: Path) -> Ending:
        inputs, outputs = deployed.places["inputs"], deployed.places["outputs"]

        def shown(path: Path) -> str:
            return str(inputs.shown / path.relative_to(inputs.path))

        layout = await aside(partial(Layout, workspace, inputs=inputs.path, outputs=outputs.path, shown=shown))
        found = [shown(path) for path in await self._placed(layout)]
        if "task" in work.template.names:
            await aside(partial(layout.describe, self._job.lease))
        spec = self._job.lease.task
        values = {
            "capability": spec.capability,
            "inputs": str(inputs.shown),
            "outputs": str(outputs.shown),
            "task": shown(layout.task),
            "task_id": str(spec.id),
            "workspace": str(deployed.supervisor.line.workdir),
        }
        args, command = work.template.fill(values, found)[1:], None
        try:
            command = await self._ask(partial(deployed.supervisor.run, work.entrypoint, args))
            await self._ask(partial(self._followed, command))
        except asyncio.CancelledError:
            await _end(deployed.supervisor, command)
            raise
        except GolemError as error:
            self._output.close()
            if not isinstance(error, RuntimeRefused):  # it may begin yet
                await _end(deployed.supervisor, None)
            killed = isinstance(error, RuntimeEnded) and error.signal is not None
            code = FailureCode.KILLED if killed else FailureCode.RUNNER_ERROR
            return Ending(code=code, message=str(error), details=self._details())
        self._output.close()
        return await self._uploaded(layout) if command.code == 0 else self._failed(command)

    async def _followed(self, command: Command) -> None:
        async for event in command:
            if isinstance(event, Output):
                self._output.take(*event)
            else:
                self._report(event)

    def _report(self, event: Counter | State) -> None:
        try:
            if isinstance(event, Counter):
                self._counters[event.name] = event.value if math.isfinite(event.value) else None
                self._task.ctrl.progress({"counters": dict(self._counters)})
            else:
                self._task.ctrl.log_event({"state": event.name, "value": event.value})
        except (TypeError, ValueError, RecursionError) as error:
            logger().warning(f"a report of the runtime was refused: {error}")

    def _failed(self, command: Command) -> Ending:
        if command.pid is None and command.code == KILLED_CODE:
            message = "the runtime's process was killed by a signal"
            return Ending(code=FailureCode.KILLED, message=message, details=self._details())
        message = f"the runtime's command ended with exit code {command.code}"
        details = self._details(exit_code=command.code)
        return Ending(code=FailureCode.RUNNER_ERROR, message=message, details=details)


async def _end(supervisor: Supervisor, command: Command | None) -> None:
    """End the command; where the runtime does not do that, and where there is none that can be told of, the runtime."""
    with suppress(TimeoutError, GolemError):
        if command is not None:
            async with asyncio.timeout(KILL_SECS):
                await command.kill()
                await command.ended()
            return
    with suppress(GolemError):
        await supervisor.stop(KILL_SECS)


def declare_runtime(
    capability: str, binary: str, terms: Terms, *, env: Mapping[str, str] | None = None, **options: Any
) -> Declared:
    """A Golem runtime. Raises TypeError and ValueError for options that do not fit."""
    check_capability(capability)
    name = terms.name or capability

    def make(offload: Offload | None = None) -> RuntimeRunner:
        return RuntimeRunner(name, capability, binary, env=env, **options)

    make()  # what does not fit is told here, where it was written
    return Declared(name=name, capability=capability, terms=terms, make=make)
