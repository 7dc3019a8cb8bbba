"""The way of a lease to its runner: what starts is counted, and ends as one thing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from posemesh.commands import StopReason
from posemesh.errors import InvalidSpec, NodeStartError, RunnerInternal, UnsupportedKind
from posemesh.machines import lease
from posemesh.outcomes import OUTCOMES, FailureCode
from posemesh.runners.ending import Ending, ending_of
from posemesh.runners.metrics import RunnerType
from posemesh.runners.registry import Route, RunnerRegistry
from posemesh.runners.router import RunnerRouter
from posemesh.testing import run_virtual

from .routing import CAPABILITY, Counting, FakeJob, Started, Stub, logged, spec

FINE = Ending()
FAILED = Ending(code=FailureCode.RUNNER_ERROR, message="ValueError")


class Rig:
    """A registry over some runners, what it counted, and how its runs ended."""

    def __init__(self, *runners: Any, metrics: Any = None) -> None:
        self.router = RunnerRouter()
        for runner in runners:
            self.router.register(runner, capability=CAPABILITY)
        self.counted = Counting()
        self.now = 100.0
        self.registry = RunnerRegistry(self.router, metrics or self.counted, clock=lambda: self.now)
        self.endings: list[Ending] = []

    def run(self, job: FakeJob | None = None) -> Any:
        return self.registry.run_for_lease(job or FakeJob(), self.endings.append)

    def close(self) -> None:
        asyncio.run(self.registry.close())

    @property
    def balanced(self) -> bool:
        return len(self.counted.started) == len(self.counted.completed)


# --- Where a task goes ------------------------------------------------------------------------------------------


def test_the_capabilities_are_those_that_runners_are_registered_for() -> None:
    router = RunnerRouter()
    for name, capability in {"b": "/b/v1", "a": "/a/v1", "any": None, "b2": "/b/v1"}.items():
        router.register(Stub(name), capability=capability)
    registry = RunnerRegistry(router)
    assert registry.capabilities == ("/a/v1", "/b/v1")
    assert repr(registry) == "<RunnerRegistry ['/a/v1', '/b/v1'], 0 running>"


def test_a_route_names_the_runner_or_the_problem() -> None:
    runner = Stub("a")
    registry = Rig(runner).registry
    assert registry.route(spec()) == Route(runner="a", problem="")
    assert registry.route(spec("/y/v1")) == Route(runner="", problem="none is registered for it")
    bad = registry.route(spec(meta={"runner_selector": 5}))
    assert bad.runner == "" and "meta.runner_selector: expected an object" in bad.problem
    assert runner.contexts == []


# --- A run ------------------------------------------------------------------------------------------------------


def test_a_run_that_returns() -> None:
    runner = Stub("a")
    rig = Rig(runner)
    job = FakeJob()
    rig.run(job)
    (started,) = runner.runs
    assert started.job is job
    assert (rig.counted.started, rig.counted.completed, rig.endings) == (["inline"], [], [])
    rig.now += 1.5
    started.end(FINE)
    assert rig.endings == [FINE]
    assert rig.counted.completed == [("inline", "success", 1500.0)]
    assert rig.counted.errors == []


def test_a_cancellation_that_nobody_asked_for_is_told_as_the_error_it_is() -> None:
    """An operator looked for a cancel that never was."""
    runner = Stub("a")
    rig = Rig(runner)
    rig.run()
    runner.runs[0].end(ending_of(asyncio.CancelledError()))
    [told] = rig.endings
    assert told.code is FailureCode.RUNNER_ERROR and "nobody had told it to stop" in told.message
    job = FakeJob()
    rig.run(job)
    job.cancelled, job.stop_reason = True, "shutdown"
    runner.runs[1].end(ending_of(asyncio.CancelledError()))
    assert rig.endings[1].code is FailureCode.CANCELLED
    rig.run()
    rig.close()
    runner.runs[2].end(ending_of(asyncio.CancelledError()))
    assert rig.endings[2].code is FailureCode.CANCELLED, "the registry's end is what ended it"


def test_what_makes_a_result_worthless_is_what_the_lease_s_table_says() -> None:
    """Else a task that is reported complete counts as cancelled, or the other way round."""
    step: Any = SimpleNamespace(now=0.0)
    for reason in StopReason:
        runner, job, told = Stub("a"), FakeJob(), lease.Lease(key=1)
        rig = Rig(runner)
        rig.run(job)
        told.stop, job.cancelled, job.stop_reason = reason, True, reason.value
        runner.runs[0].end(FINE)
        assert (rig.counted.outcomes == ["success"]) != lease.unwanted(told, step), reason


@pytest.mark.parametrize("reason", [None, "shutdown", "expired", "lost", "cancelled", "timeout"])
@pytest.mark.parametrize("code", [None, *FailureCode])
def test_every_end_is_counted_once_under_one_outcome(code: FailureCode | None, reason: str | None) -> None:
    """As it is reported: what returns is a success, but for a task that was late or taken away; else why it was
    told to stop says more than how it ended, and a cancellation that nobody asked for is an error.
    """
    runner = Stub("a")
    rig = Rig(runner)
    job = FakeJob()
    rig.run(job)
    job.stop_reason, job.cancelled = reason, reason is not None
    runner.runs[0].end(Ending(code=code))
    if code is None and reason in (None, "shutdown", "expired"):
        expected = "success"
    elif code is FailureCode.CANCELLED and reason is None:
        expected = "failure"
    elif reason is not None:
        expected = "timeout" if reason == "timeout" else "canceled"
    else:
        assert code is not None
        expected = OUTCOMES[code].value
    assert rig.counted.outcomes == [expected]
    assert rig.balanced


def test_a_second_end_is_not_told_and_not_counted() -> None:
    runner = Stub("a")
    rig = Rig(runner)
    rig.run()
    with logged() as lines:
        runner.runs[0].end(FAILED)
        runner.runs[0].end(FINE)
    assert rig.endings == [FAILED] and rig.counted.outcomes == ["failure"]
    assert lines == ["runner a said more than once that a run has ended; the first time counts\n"]


def test_a_run_that_ends_while_it_is_started() -> None:
    def start(job: Any, ended: Callable[[Ending], None]) -> Started:
        ended(FINE)
        return Started(job, ended)

    rig = Rig(Stub("a", start=start))
    rig.run().cancel()
    assert rig.endings == [FINE] and rig.counted.outcomes == ["success"]


def test_being_told_to_stop_reaches_the_runner_as_often_as_it_is_said_until_its_end() -> None:
    runner = Stub("a")
    rig = Rig(runner)
    run = rig.run()
    run.cancel()
    run.cancel()
    assert runner.runs[0].cancels == 2
    assert rig.endings == [], "it may take its time"
    runner.runs[0].end(Ending(code=FailureCode.CANCELLED))
    run.cancel()
    assert runner.runs[0].cancels == 2


def test_a_run_whose_cancel_raises_hurts_nobody() -> None:
    class Deaf(Started):
        def cancel(self) -> None:
            raise ValueError("deaf")

    rig = Rig(Stub("a", start=Deaf))
    run = rig.run()
    with logged() as lines:
        run.cancel()
    assert "runner a could not be told to stop" in lines[0]


def test_each_lease_gets_the_lowest_lane_that_is_free() -> None:
    """A lane is free again at the end of its run, and counts for its runner alone."""
    a, b = Stub("a"), Stub("b")
    rig = Rig(a)
    rig.router.register(b, capability="/y/v1")
    for _ in range(3):
        rig.run()
    a.runs[1].end(FINE)
    rig.run()
    rig.run()
    rig.run(FakeJob(spec("/y/v1")))
    assert [context.slot for context in a.contexts] == ["0", "1", "2", "1", "3"]
    assert [context.slot for context in b.contexts] == ["0"]
    ids = [ref.run_id for ref in a.built]
    assert [each.name for each in ids] == [
        f"a-{slot}-{each.seq}" for slot, each in zip((0, 1, 2, 1, 3), ids, strict=True)
    ]
    assert [each.seq for each in ids] == sorted({each.seq for each in ids})


def test_a_build_that_fails_takes_no_lane() -> None:
    runner = Stub("a", fails=RunnerInternal("x"))
    rig = Rig(runner)
    rig.run()
    runner.fails = None
    rig.run()
    assert [context.slot for context in runner.contexts] == ["0", "0"]


# --- What cannot be started -------------------------------------------------------------------------------------


def test_a_lease_that_no_runner_takes() -> None:
    rig = Rig()
    run = rig.run()
    run.cancel()
    (ending,) = rig.endings
    assert ending.code == FailureCode.NO_RUNNER
    assert ending.message == "no runner for '/x/v1': none is registered for it"
    assert rig.counted.errors == [("other", "no_runner")]
    assert rig.counted.started == rig.counted.completed == []


@pytest.mark.parametrize(
    ("error", "code", "kind"),
    [
        (UnsupportedKind("a", CAPABILITY), FailureCode.NO_RUNNER, "unsupported_kind"),
        (InvalidSpec("/x/v1: no image"), FailureCode.SETUP_FAILED, "invalid_spec"),
        (FileNotFoundError("model.bin"), FailureCode.SETUP_FAILED, "io"),
        (KeyError("x"), FailureCode.SETUP_FAILED, "internal"),
        (SystemExit(3), FailureCode.SETUP_FAILED, "internal"),
        (asyncio.CancelledError(), FailureCode.SETUP_FAILED, "internal"),
    ],
)
def test_a_runner_that_cannot_be_built_starts_nothing(error: BaseException, code: FailureCode, kind: str) -> None:
    rig = Rig(Stub("a", fails=error))
    rig.run()
    (ending,) = rig.endings
    assert ending.code == code
    assert ending.details["chain"]
    assert rig.counted.errors == [("inline", kind)]
    assert rig.counted.started == rig.counted.completed == []


def test_the_reason_of_a_failed_build_is_told() -> None:
    rig = Rig(Stub("a", fails=FileNotFoundError("model.bin")))
    rig.run()
    assert rig.endings[0].message == "FileNotFoundError: model.bin"


@pytest.mark.parametrize("error", [OSError("no room"), SystemExit(1), asyncio.CancelledError()])
def test_a_runner_that_cannot_start_completes_as_a_failure(error: BaseException) -> None:
    """Counting a start without its end would leave a task running on every dashboard, for ever."""

    def start(job: Any, ended: Any) -> Any:
        raise error

    rig = Rig(Stub("a", start=start))
    rig.run().cancel()
    (ending,) = rig.endings
    assert ending.code == FailureCode.SETUP_FAILED
    assert rig.counted.outcomes == ["failure"] and rig.balanced
    assert rig.counted.errors == [("inline", "io" if isinstance(error, OSError) else "internal")]


def test_a_runner_that_ends_and_then_raises_has_ended_once() -> None:
    def start(job: Any, ended: Any) -> Any:
        ended(FINE)
        raise ValueError

    rig = Rig(Stub("a", start=start))
    rig.run()
    assert rig.endings == [FINE] and rig.counted.outcomes == ["success"]


def test_a_task_that_is_told_to_stop_while_it_is_started() -> None:
    """Its runner hears of it once there is one to tell."""
    runs: list[Any] = []

    class Impatient(Stub):
        def build_task(self, spec: Any, ctx: Any) -> Any:
            ref = super().build_task(spec, ctx)
            ref._start = start
            return ref

    def start(job: Any, ended: Any) -> Any:
        next(iter(rig.registry._open)).cancel()
        runs.append(Started(job, ended))
        return runs[0]

    rig = Rig(Impatient("a"))
    rig.run()
    assert runs[0].cancels == 1


def test_a_build_that_gives_nothing_to_start_is_an_error_of_the_runner() -> None:
    class Forgetful(Stub):
        def build_task(self, spec: Any, ctx: Any) -> Any:
            return None

    rig = Rig(Forgetful("a"))
    rig.run()
    assert [ending.code for ending in rig.endings] == [FailureCode.SETUP_FAILED]
    assert rig.counted.started == []


def test_a_runner_of_another_making_has_a_label_too() -> None:
    class Foreign:
        name = "foreign"

        def supports(self, spec: Any) -> bool:
            return True

        def build_task(self, spec: Any, ctx: Any) -> Any:
            raise ValueError

    rig = Rig(Foreign())
    rig.run()
    assert rig.counted.errors == [(RunnerType.OTHER, "internal")]


# --- A backend that fails ---------------------------------------------------------------------------------------


class Broken:
    def task_started(self, runner_type: object) -> None:
        raise ValueError("no room")

    def task_completed(self, runner_type: object, outcome: object, duration_ms: float) -> None:
        raise ValueError("no room")

    def runner_error(self, runner_type: object, error_kind: str) -> None:
        raise ValueError("no room")


def test_a_backend_that_raises_changes_no_task() -> None:
    runner = Stub("a")
    rig = Rig(runner, metrics=Broken())
    with logged() as lines:
        for ending in (FINE, FAILED):
            rig.run()
            runner.runs[-1].end(ending)
        rig.run(FakeJob(spec("/y/v1")))
        rig.run()
        rig.close()
    assert [ending.code for ending in rig.endings] == [None, FailureCode.RUNNER_ERROR, FailureCode.NO_RUNNER]
    assert len(lines) == 1


def test_the_node_is_counted_too_where_a_backend_does_so() -> None:
    class Node(Counting):
        def __init__(self) -> None:
            super().__init__()
            self.active: list[int] = []
            self.took: list[float] = []

        def poll_latency(self, ms: float) -> None: ...

        def active_tasks(self, n: int) -> None:
            self.active.append(n)

        def run_latency(self, ms: float) -> None:
            self.took.append(ms)

        def token_rotated(self) -> None: ...

        def bytes_uploaded(self, n: int) -> None: ...

        def bytes_downloaded(self, n: int) -> None: ...

    runner, counted = Stub("a"), Node()
    rig = Rig(runner, metrics=counted)
    rig.run()
    rig.run()
    rig.now += 2
    for run in runner.runs:
        run.end(FINE)
    assert counted.active == [1, 2, 1, 0]
    assert counted.took == [2000.0, 2000.0]


# --- Checks and the end -----------------------------------------------------------------------------------------


class Keeping(Stub):
    """A runner with something to check and to let go of."""

    def __init__(self, name: str, error: BaseException | None = None) -> None:
        super().__init__(name)
        self.error = error
        self.heard: list[str] = []

    async def check(self) -> None:
        self.heard.append("check")
        await self._fail()

    async def close(self) -> None:
        self.heard.append("close")
        await self._fail()

    async def _fail(self) -> None:
        await asyncio.sleep(1)
        if self.error is not None:
            raise self.error


def test_checks_that_pass() -> None:
    runners = [Keeping("a"), Stub("b"), Keeping("c")]
    run_virtual(Rig(*runners).registry.check())
    assert [each.heard for each in runners if isinstance(each, Keeping)] == [["check"], ["check"]]


@pytest.mark.parametrize("error", [ValueError("no GPU"), SystemExit("no GPU")])
def test_all_that_is_lacking_is_said_before_the_first_lease(error: BaseException) -> None:
    runners = [Keeping("a", error), Keeping("b"), Keeping("c", OSError("no disk"))]
    with pytest.raises(NodeStartError) as caught:
        run_virtual(Rig(*runners).registry.check())
    assert "runner a: " in str(caught.value) and "no GPU" in str(caught.value)
    assert "runner c: OSError: no disk" in str(caught.value)
    assert "runner b" not in str(caught.value)
    assert [each.heard for each in runners] == [["check"]] * 3


def test_a_check_may_be_a_plain_function() -> None:
    class Plain(Stub):
        def check(self) -> None:
            raise ValueError("no GPU")

    with pytest.raises(NodeStartError, match="no GPU"):
        run_virtual(Rig(Plain("a")).registry.check())


@pytest.mark.parametrize("error", [ValueError("stuck"), SystemExit("stuck"), asyncio.CancelledError("stuck")])
def test_all_are_closed_even_if_one_raises_and_once(error: BaseException) -> None:
    runners = [Keeping("a", error), Stub("b"), Keeping("c")]
    registry = Rig(*runners).registry

    async def main() -> None:
        await registry.close()
        await registry.close()

    with logged() as lines:
        run_virtual(main())
    assert [each.heard for each in runners if isinstance(each, Keeping)] == [["close"], ["close"]]
    assert len(lines) == 1 and "runner a could not be closed" in lines[0]


def test_what_runs_still_when_the_node_leaves_counts_as_canceled_once() -> None:
    """A thread that ignores being told, say. Its end is told to whoever waits for it, and not counted again."""
    runner = Stub("a")
    rig = Rig(runner)
    rig.run()
    rig.run()
    runner.runs[0].end(FINE)
    rig.close()
    assert rig.counted.outcomes == ["success", "canceled"] and rig.balanced
    runner.runs[1].end(FINE)
    assert rig.endings == [FINE, FINE]
    assert rig.counted.outcomes == ["success", "canceled"]


def test_nothing_is_started_after_the_end() -> None:
    runner = Stub("a")
    rig = Rig(runner)
    rig.close()
    rig.run().cancel()
    assert [ending.code for ending in rig.endings] == [FailureCode.NODE_SHUTDOWN]
    assert runner.contexts == [] and rig.counted.started == []
