"""The runners of a node at work: the single way on which a lease reaches one, and where every run is counted."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from posemesh.errors import NodeStartError, NoRunner, RunnerError, RunnerInternal, RunnerIo, UnsupportedKind
from posemesh.outcomes import OUTCOMES, FailureCode
from posemesh.runners.ending import FAULTS, Ending, ending_of, said, unasked
from posemesh.runners.job import Ended, Job, NamedRun, Run
from posemesh.runners.metrics import MetricsBackend, MetricsHandle, RunnerType, TaskOutcome, noop_metrics
from posemesh.runners.router import Registered, RunnerRouter, TaskRef
from posemesh.telemetry import hears_debug, logger
from posemesh.types import TaskSpec

__all__ = ("Route", "RunnerRegistry")

_UNWANTED: Final = ("timeout", "lost", "cancelled")
"""What a task is told to stop for that makes its result worthless, if it comes to one all the same."""


class Route(NamedTuple):
    """Where a task goes. ``runner`` is "" where none takes it; then ``problem`` says why."""

    runner: str
    problem: str


class RunnerRegistry:
    """What a lease is run by. ``clock`` gives seconds that never go back.

    Names of runners are unique: the reference lets the runner of a capability that was registered last take the place
    of the one before it, without a word; here ``router.register`` refuses the second.
    """

    def __init__(
        self,
        router: RunnerRouter,
        metrics: MetricsBackend | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._router = router
        self._metrics = noop_metrics() if metrics is None else MetricsHandle.of(metrics)
        self._clock = clock
        self._open: set[_Run] = set()
        self._closed = False

    def __repr__(self) -> str:
        return f"<RunnerRegistry {list(self.capabilities)}, {len(self._open)} running>"

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What runners are registered for, sorted. One that is registered for nothing in particular adds nothing."""
        return tuple(sorted({each.capability for each in self._router.catalog() if each.capability is not None}))

    def route(self, spec: TaskSpec) -> Route:
        """Where this task would go now. Changes nothing, never raises."""
        try:
            return Route(self._router.pick(spec).name, "")
        except RunnerError as error:
            return Route("", error.why if isinstance(error, NoRunner) else str(error))

    def run_for_lease(self, job: Job, ended: Ended) -> NamedRun:
        """Build the task of ``job`` and start it. On the node's loop, as ``ended`` is: once, perhaps before this
        returns, with ``no_runner`` or ``setup_failed`` where nothing could be started.

        A run that was started is counted as such, and once as completed: at its end, or as canceled when the registry
        is closed before.
        """
        if self._closed:
            ended(Ending(code=FailureCode.NODE_SHUTDOWN, message="the node is leaving; nothing new is started"))
            return _NotStarted()
        spec, picked = job.lease.task, None
        try:
            picked = self._router.pick(spec)
            lane = self._free_lane(picked.name)
            ref = self._router.build(spec, slot=str(lane), picked=picked)
            run = _Run(job, ended, str(ref.run_id), picked.name, lane, ref.runner_type, self._clock())
            if hears_debug():
                logger().debug(f"task {spec.id} is run {ref.run_id}")
        except FAULTS as error:
            self._metrics.runner_error(_type_of(picked), _kind_of(error))
            unroutable = picked is None or isinstance(error, NoRunner | UnsupportedKind)
            ended(_failed(FailureCode.NO_RUNNER if unroutable else FailureCode.SETUP_FAILED, error))
            return _NotStarted()
        self._start(run, ref)
        return run

    async def check(self) -> None:
        """Have each runner that can look whether this machine has what it needs, one after the other.

        Raises NodeStartError, which names each that lacks something.
        """
        problems: list[str] = []
        for each in self._router.catalog():
            try:
                await _call(each, "check")
            except Exception as error:
                problems.append(f"runner {each.name}: {said(error)}")
        if problems:
            raise NodeStartError("the node cannot run its tasks here: " + "; ".join(problems))

    async def close(self) -> None:
        """Have each runner let go of what it keeps, all at once; nothing is started any more. A second call does
        nothing.

        How long it takes is up to the runners. One that raises is logged, and hurts no other.
        """
        if self._closed:
            return
        self._closed = True
        for run in self._open:
            self._count(run, TaskOutcome.CANCELED)
        catalog = self._router.catalog()
        results = await asyncio.gather(*(_call(each, "close") for each in catalog), return_exceptions=True)
        for each, result in zip(catalog, results, strict=True):
            if isinstance(result, BaseException):
                logger().opt(exception=result).warning(f"runner {each.name} could not be closed")

    def _free_lane(self, runner: str) -> int:
        taken = {run.lane for run in self._open if run.runner == runner}
        return next(lane for lane in itertools.count() if lane not in taken)

    def _start(self, run: _Run, ref: TaskRef) -> None:
        self._open.add(run)
        self._metrics.task_started(run.runner_type)
        self._metrics.active_tasks(len(self._open))
        try:
            run.began(ref.start(run.job, lambda ending: self._end(run, ending)))
        except FAULTS as error:
            self._metrics.runner_error(run.runner_type, _kind_of(error))
            self._end(run, _failed(FailureCode.SETUP_FAILED, error))

    def _end(self, run: _Run, ending: Ending) -> None:
        if run.over:
            logger().warning(f"runner {run.runner} said more than once that a run has ended; the first time counts")
            return
        run.over = True
        self._open.discard(run)
        self._metrics.active_tasks(len(self._open))
        if not (run.job.cancelled or self._closed):
            ending = unasked(ending)
        self._count(run, _outcome(run.job, ending))
        run.ended(ending)

    def _count(self, run: _Run, outcome: TaskOutcome) -> None:
        if not run.counted:
            run.counted = True
            milliseconds = (self._clock() - run.since) * 1000
            self._metrics.task_completed(run.runner_type, outcome, milliseconds)
            self._metrics.run_latency(milliseconds)


@dataclass(eq=False, slots=True)
class _Run:
    """A run that was started at ``since``, seconds on the registry's clock."""

    job: Job
    ended: Ended
    name: str
    runner: str
    lane: int
    runner_type: RunnerType
    since: float
    over: bool = False
    counted: bool = False
    _told: bool = False
    _inner: Run | None = None

    def began(self, inner: Run) -> None:
        self._inner = inner
        if self._told:  # while it was being started
            self.cancel()

    def cancel(self) -> None:
        self._told = True
        if self._inner is None or self.over:
            return
        try:
            self._inner.cancel()
        except Exception as error:  # the others that are to stop must hear of it too
            logger().opt(exception=error).warning(f"runner {self.runner} could not be told to stop")


class _NotStarted:
    name = ""

    def cancel(self) -> None:
        pass


async def _call(registered: Registered, name: str) -> None:
    """Call a method that a runner may have or not, and await it where it is asynchronous."""
    method: Callable[[], Any] | None = getattr(registered.runner, name, None)
    if method is None:
        return
    try:
        result = method()
        if inspect.isawaitable(result):
            await result
    except SystemExit as error:
        raise RunnerInternal(f"{name}() called sys.exit({error.code!r})") from error


def _outcome(job: Job, ending: Ending) -> TaskOutcome:
    if ending.code is None and job.stop_reason not in _UNWANTED:
        return TaskOutcome.SUCCESS
    if ending.code is not None and job.stop_reason is None:
        return OUTCOMES[ending.code]
    return TaskOutcome.TIMEOUT if job.stop_reason == "timeout" else TaskOutcome.CANCELED


def _failed(code: FailureCode, error: BaseException) -> Ending:
    message = said(error)
    if isinstance(error, RunnerError):
        message = message.removeprefix(f"{type(error).__name__}: ")
    return Ending(code=code, message=message, details=ending_of(error).details)


def _type_of(picked: Registered | None) -> RunnerType:
    found = None if picked is None else getattr(picked.runner, "runner_type", None)
    return found if isinstance(found, RunnerType) else RunnerType.OTHER


def _kind_of(error: BaseException) -> str:
    if isinstance(error, RunnerError):
        return error.kind
    return RunnerIo.kind if isinstance(error, OSError) else RunnerInternal.kind
