"""What tasks of programs have in common, however the program is run: the way from inputs to artifacts."""

from __future__ import annotations

import asyncio
import os
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from posemesh.errors import StorageError, TaskStopped
from posemesh.outcomes import FailureCode
from posemesh.runners.context import BuildContext, merge_env
from posemesh.runners.ending import Ending, ending_of
from posemesh.runners.executors.layout import Layout
from posemesh.runners.executors.output import ProgramOutput
from posemesh.runners.job import Ended, Job
from posemesh.runners.port import LogEvent, Progress, Question
from posemesh.runners.task import PortTask
from posemesh.shell.offload import HostOffload
from posemesh.telemetry import task_span
from posemesh.types import JSON

__all__ = ("PASSED_ON", "ProgramRun", "aside", "cancelled", "check_limits", "program_env", "unprepared")

T = TypeVar("T")

PASSED_ON: Final = frozenset(
    "PATH HOME USER LOGNAME LANG LANGUAGE TZ LD_LIBRARY_PATH "
    "CUDA_VISIBLE_DEVICES CUDA_DEVICE_ORDER NVIDIA_VISIBLE_DEVICES NVIDIA_DRIVER_CAPABILITIES "
    "HIP_VISIBLE_DEVICES ROCR_VISIBLE_DEVICES ZE_AFFINITY_MASK".split()
)
"""The variables of the node that a program is given, where they are set, and all that begin with ``LC_``: where
programs and libraries are, how to write, and which devices are the node's. Addresses of proxies and the like may hold
passwords: who needs them puts them into ``env``."""


class ProgramRun(ABC):
    """One task of a program. What it asks of the node is asked by :meth:`_ask`, which a stop interrupts; all else is
    short or is ended by :meth:`_stop`, and is waited for, so that nothing goes on once the end is told.
    """

    def __init__(self, context: BuildContext, job: Job, ended: Ended) -> None:
        self._context = context
        self._job = job
        self._task = PortTask(job.lease, _JobPort(job), job.workspace)
        self._output = ProgramOutput(self._task.ctrl)
        self._told = False
        self._asking = False
        self._main = asyncio.get_running_loop().create_task(self._run())
        self._main.add_done_callback(lambda done: ended(cancelled() if done.cancelled() else done.result()))

    def cancel(self) -> None:
        if self._told:
            return
        self._told = True
        if self._asking:
            self._main.cancel()
        else:
            self._stop()

    @abstractmethod
    async def _prepared(self) -> Ending:
        """All of the task."""

    @abstractmethod
    def _stop(self) -> None:
        """It is to end, and asks nothing of the node just now."""

    async def _run(self) -> Ending:
        with task_span(self._job.lease):
            try:
                return await self._prepared()
            except (asyncio.CancelledError, TaskStopped):
                return cancelled(self._output.tail)
            except OSError as error:
                return unprepared(error)
            except Exception as error:
                return ending_of(error, self._output.tail)

    async def _placed(self, layout: Layout) -> list[Path]:
        """The task's inputs, each in its place."""
        inputs: list[Path] = []
        for cid in self._job.lease.task.inputs_cids:
            found = await self._ask(partial(self._task.input.materialize_cid_with_meta, cid))
            inputs.append(await aside(partial(layout.place, found)))
        return inputs

    async def _uploaded(self, layout: Layout) -> Ending:
        try:
            found = await aside(layout.collect)
        except (OSError, ValueError) as error:
            return Ending(code=FailureCode.RUNNER_ERROR, message=str(error), details=self._details())
        for rel_path, path in found:
            try:
                await self._ask(partial(self._task.output.put_file, rel_path, path))
            except StorageError as error:
                ending = ending_of(error, self._output.tail)
                return Ending(code=FailureCode.UPLOAD_FAILED, message=ending.message, details=ending.details)
        return Ending()

    def _details(self, **known: JSON) -> dict[str, JSON]:
        return {**known, "output": list(self._output.tail)}

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


async def aside(function: Callable[[], T]) -> T:
    """What may block, in a thread."""
    return await HostOffload().call(function)


def program_env(context: BuildContext, runner: Mapping[str, str], **known: str) -> dict[str, str]:
    """What a program finds: PASSED_ON and ``known``, over that what the node is built with, over that the runner's."""
    passed = {name: value for name, value in os.environ.items() if name in PASSED_ON or name.startswith("LC_")}
    return merge_env(task={"PATH": os.defpath, **passed, **known}, context=context.env, runner=runner)


def check_limits(env: Mapping[str, str], memory_bytes: int | None) -> None:
    """Raises ValueError for what no program could be started with."""
    for key, value in env.items():
        if not key or "=" in key or "\0" in f"{key}{value}" or type(value) is not str:
            raise ValueError(f"env {key!r}: expected a name without '=' and a text, both without NUL")
    if memory_bytes is not None and memory_bytes <= 0:
        raise ValueError(f"memory_bytes: expected a number of bytes above 0, got {memory_bytes}; None is no limit")


def unprepared(error: Exception) -> Ending:
    ending = ending_of(error)
    code = ending.code if ending.code is FailureCode.DISK_FULL else FailureCode.SETUP_FAILED
    return Ending(code=code, message=f"the program could not be started: {ending.message}", details=ending.details)


def cancelled(output: Sequence[str] = ()) -> Ending:
    return ending_of(asyncio.CancelledError(), output)
