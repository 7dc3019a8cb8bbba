"""What tests of routing need: runners that note what is asked of them, a job, and the lines that were logged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from posemesh import telemetry
from posemesh.runners.context import BuildContext
from posemesh.runners.ids import make_run_id
from posemesh.runners.job import Ended
from posemesh.runners.metrics import RunnerType, TaskOutcome
from posemesh.runners.port import LogEvent, Progress, Question
from posemesh.types import LeaseEnvelope, TaskSpec

CAPABILITY = "/x/v1"


def spec(capability: Any = CAPABILITY, *, meta: Any = None, filters: Any = None) -> TaskSpec:
    return TaskSpec(id=UUID(int=1), capability=capability, meta=meta, capability_filters=filters)


def wanting(**labels: str) -> TaskSpec:
    return spec(meta={"runner_selector": {"matchLabels": labels}})


class Started:
    """A run that ends when the test says so."""

    def __init__(self, job: Any, ended: Ended) -> None:
        self.job = job
        self.end = ended
        self.cancels = 0

    def cancel(self) -> None:
        self.cancels += 1


class Ref:
    """``start`` is what happens instead of starting."""

    def __init__(self, runner: str, slot: str, start: Callable[[Any, Ended], Any] | None = None) -> None:
        self.run_id = make_run_id(runner, slot)
        self.runner_type = RunnerType.INLINE
        self.runs: list[Started] = []
        self._start = start

    def start(self, job: Any, ended: Ended) -> Any:
        if self._start is not None:
            return self._start(job, ended)
        self.runs.append(Started(job, ended))
        return self.runs[-1]


class Stub:
    """A runner that inherits nothing. ``takes`` answers for ``supports``; an error is raised."""

    runner_type = RunnerType.INLINE

    def __init__(
        self,
        name: str = "stub",
        *,
        takes: bool | Exception = True,
        fails: BaseException | None = None,
        start: Callable[[Any, Ended], Any] | None = None,
    ) -> None:
        self.name = name
        self.takes = takes
        self.fails = fails
        self.asked = 0
        self.built: list[Ref] = []
        self.contexts: list[BuildContext] = []
        self._start = start

    def supports(self, spec: TaskSpec) -> bool:
        self.asked += 1
        if isinstance(self.takes, Exception):
            raise self.takes
        return self.takes

    def build_task(self, spec: TaskSpec, ctx: BuildContext) -> Ref:
        self.contexts.append(ctx)
        if self.fails is not None:
            raise self.fails
        self.built.append(Ref(self.name, ctx.slot, self._start))
        return self.built[-1]

    @property
    def runs(self) -> list[Started]:
        return [run for ref in self.built for run in ref.runs]


class FakeJob:
    """The node's end of a task that asks for nothing."""

    def __init__(self, task: TaskSpec | None = None) -> None:
        self.lease = LeaseEnvelope(task=task or spec())
        self.cancelled = False
        self.stop_reason: str | None = None

    def report(self, message: Progress | LogEvent) -> None: ...

    def workspace(self) -> Path:
        raise OSError

    async def answer(self, question: Question) -> Any: ...


class Counting:
    """A backend that keeps what it is told."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.completed: list[tuple[str, str, float]] = []
        self.errors: list[tuple[str, str]] = []

    def task_started(self, runner_type: RunnerType) -> None:
        self.started.append(runner_type.value)

    def task_completed(self, runner_type: RunnerType, outcome: TaskOutcome, duration_ms: float) -> None:
        self.completed.append((runner_type.value, outcome.value, duration_ms))

    def runner_error(self, runner_type: RunnerType, error_kind: str) -> None:
        self.errors.append((runner_type.value, error_kind))

    @property
    def outcomes(self) -> list[str]:
        return [outcome for _, outcome, _ in self.completed]


@contextmanager
def logged() -> Iterator[list[str]]:
    """The warnings logged inside."""
    logger = telemetry.logger()
    lines: list[str] = []
    sink = logger.add(lambda line: lines.append(str(line)), level="WARNING", format="{message}")
    logger.enable("posemesh")
    try:
        yield lines
    finally:
        logger.disable("posemesh")
        logger.remove(sink)
