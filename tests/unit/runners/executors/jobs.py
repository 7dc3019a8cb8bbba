"""The node's end of tasks that an executor is given, with nothing behind it."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any
from uuid import UUID

from posemesh.runners.context import BuildContext
from posemesh.runners.ending import Ending
from posemesh.runners.job import Run
from posemesh.runners.port import GetBytes, LogEvent, Progress, PutArtifact
from posemesh.runners.router import RoutedRunner
from posemesh.types import LeaseEnvelope, TaskSpec

__all__ = ("Job", "Jobs")


class Job:
    """One task. ``reported`` holds what user code told, ``ending`` how it ended; inputs are their own names."""

    def __init__(self, number: int, workspace: Path, meta: Any = None, inputs: tuple[str, ...] = ()) -> None:
        task = TaskSpec(id=UUID(int=number), capability="/a/v1", meta=meta, inputs_cids=list(inputs))
        self.lease = LeaseEnvelope(task=task)
        self.cancelled = False
        self.stop_reason: str | None = None
        self.reported: list[Any] = []
        self.puts: dict[str, bytes | Path] = {}
        self.ending: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self.run: Run
        self._loop = asyncio.get_running_loop()
        self._heard = asyncio.Event()
        self._workspace = workspace

    def report(self, message: Progress | LogEvent) -> None:
        self.reported.append(message.value)
        self._loop.call_soon_threadsafe(self._heard.set)

    async def said(self, value: Any) -> None:
        """Wait until user code has told ``value``."""
        while value not in self.reported:
            self._heard.clear()
            await self._heard.wait()

    def stop(self, reason: str) -> None:
        """As the node does it."""
        self.cancelled, self.stop_reason = True, self.stop_reason or reason
        self.run.cancel()

    def workspace(self) -> Path:
        self._workspace.mkdir(parents=True, exist_ok=True)
        return self._workspace

    async def answer(self, question: Any) -> Any:
        match question:
            case GetBytes(cid=cid):
                return cid.encode()
            case PutArtifact(rel_path=rel_path, content=content):
                self.puts[rel_path] = content
                return f"id of {rel_path}"
            case _:
                raise AssertionError(question)

    def end(self, ending: Ending) -> None:
        assert asyncio.get_running_loop() is self._loop
        assert not self.ending.done(), "the end was told twice"
        self.ending.set_result(ending)


class Jobs:
    """Tasks of one runner."""

    def __init__(self, runner: RoutedRunner, directory: Path = Path("/nowhere")) -> None:
        self._runner = runner
        self._directory = directory
        self._numbers = itertools.count(1)

    def start(self, meta: Any = None, inputs: tuple[str, ...] = ()) -> Job:
        number = next(self._numbers)
        job = Job(number, self._directory / str(number), meta, inputs)
        ref = self._runner.build_task(job.lease.task, BuildContext(slot=str(number)))
        job.run = ref.start(job, job.end)
        return job
