"""A program's task without a node, and small programs for it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

from posemesh.errors import TaskStopped
from posemesh.runners.api import LeaseEnvelope, MaterializedInput, TaskSpec
from posemesh.runners.context import BuildContext
from posemesh.runners.ending import Ending
from posemesh.runners.executors.command import CommandRunner
from posemesh.runners.metrics import MetricsHandle, NoOpMetrics, RunnerType, TaskOutcome
from posemesh.runners.port import LogEvent, Materialize, Progress, PutArtifact
from posemesh.secret import Secret

PATIENCE_SECS = 100.0
TASK_ID = UUID(int=7)


class Metrics(NoOpMetrics):
    def __init__(self) -> None:
        self.errors: list[tuple[str, str]] = []
        self.counted: list[str] = []

    def task_started(self, runner_type: RunnerType) -> None:
        self.counted.append("started")

    def task_completed(self, runner_type: RunnerType, outcome: TaskOutcome, duration_ms: float) -> None:
        self.counted.append(outcome)

    def runner_error(self, runner_type: RunnerType, error_kind: str) -> None:
        self.errors.append((runner_type, error_kind))


class Rig:
    """One task of a program: what is asked of the node for it, and how it ended."""

    def __init__(self, root: Path, argv: list[str], cids: list[str], context: BuildContext | None, **options: Any):
        self.root = root
        task = TaskSpec(id=TASK_ID, capability="/a/v1", inputs_cids=cids)
        self.lease = LeaseEnvelope(task=task, access_token=Secret("token-of-the-domain"))
        self.cancelled = False
        self.stop_reason: str | None = None
        self.events: list[Any] = []
        self.progress: list[Any] = []
        self.uploads: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.fails: dict[str, BaseException] = {}
        """What an input's or output's name is answered with."""
        self.holds: set[str] = set()
        """Those that are not answered."""
        self.metrics = Metrics()
        self.ending: Ending | None = None
        self.runner = self.runner_of(argv, options)
        context = context or BuildContext(metrics=MetricsHandle(self.metrics))
        self._ref = self.runner.build_task(task, context)
        self._told = asyncio.Event()
        self._over = asyncio.Event()

    def runner_of(self, argv: list[str], options: dict[str, Any]) -> Any:
        return CommandRunner("tool", "/a/v1", argv, **options)

    def start(self) -> None:
        self.run = self._ref.start(self, self._ended)

    def cancel(self) -> None:
        self.cancelled = True
        self.run.cancel()

    async def end(self) -> Ending:
        await self._over.wait()
        assert self.ending is not None
        return self.ending

    async def until(self, met: Callable[[], object]) -> None:
        """Wait for something to be reported or asked."""
        while not met():
            self._told.clear()
            await self._told.wait()

    def workspace(self) -> Path:
        if "workspace" in self.fails:
            raise self.fails["workspace"]
        return self.root

    def report(self, message: Progress | LogEvent) -> None:
        (self.progress if isinstance(message, Progress) else self.events).append(message.value)
        self._told.set()

    async def answer(self, question: Any) -> Any:
        name = question.cid if isinstance(question, Materialize) else question.rel_path
        self.asked.append(name)
        self._told.set()
        if self.cancelled:
            raise TaskStopped("it was told to stop")
        if name in self.holds:
            await asyncio.Event().wait()
        if name in self.fails:
            raise self.fails[name]
        if isinstance(question, PutArtifact):
            assert isinstance(question.content, Path)
            self.uploads[name] = question.content.read_bytes()
            return f"id of {name}"
        return self._downloaded(name)

    def _downloaded(self, cid: str) -> MaterializedInput:
        folder = self.root / f"download-{len(self.asked)}"
        folder.mkdir()
        files = [folder / f"{cid}.txt", folder / f"{cid}.csv"]
        for file in files:
            file.write_text(f"data of {file.name}")
        fields = {"data_id": "1", "name": cid, "data_type": "txt", "domain_id": "2"}
        return MaterializedInput(path=files[0], root_dir=folder, related_files=(files[1],), **fields)

    def _ended(self, ending: Ending) -> None:
        assert self.ending is None, "ended twice"
        self.ending = ending
        self._over.set()
        self._told.set()


Work = Callable[["Rig"], Any]


def ran(
    root: Path,
    argv: list[str],
    *,
    cids: tuple[str, ...] = (),
    before: Work | None = None,
    during: Work | None = None,
    context: BuildContext | None = None,
    **options: Any,
) -> Rig:
    """Run a program to its end, ``during`` beside it."""

    async def main() -> Rig:
        async with asyncio.timeout(PATIENCE_SECS):
            rig = Rig(root, argv, list(cids), context, **options)
            if before is not None:
                before(rig)
            rig.start()
            if during is not None:
                await during(rig)
            await rig.end()
            return rig

    return asyncio.run(main())


def python(*lines: str) -> list[str]:
    """A program that has ``os``, ``signal``, ``sys``, ``time`` and ``say(event)``."""
    head = "import json, os, signal, sys, time\ndef say(event): print(json.dumps({'event': event}), flush=True)\n"
    text = head + "\n".join(lines)
    return [sys.executable, "-I", "-S", "-c", text.replace("{", "{{").replace("}", "}}")]


def sh(text: str, *more: str) -> list[str]:
    return ["/bin/sh", "-c", text, "sh", *more]


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
