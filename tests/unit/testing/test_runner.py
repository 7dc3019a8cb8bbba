"""run_runner: one task as a node runs it. Real threads, which wait for events."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from posemesh.errors import TaskStopped
from posemesh.outcomes import FailureCode
from posemesh.runners.api import SyncTaskContext, TaskContext
from posemesh.testing import RunResult, run_runner
from posemesh.testing import runner as module

STARTED: contextvars.ContextVar[str] = contextvars.ContextVar("started", default="nowhere")


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may let a thread wait for longer than a node would wait for its runner."""
    monkeypatch.setattr(module, "STOP_GRACE_SECS", 60.0)


async def copy(task: TaskContext) -> None:
    (cid,) = task.lease.task.inputs_cids
    task.ctrl.progress({"pct": 0})
    task.ctrl.log_event("begun")
    await task.output.put_bytes("copy", await task.input.get_bytes_by_cid(cid))
    await task.ctrl.progress({"pct": 100})


def copy_plainly(task: SyncTaskContext) -> None:
    (cid,) = task.lease.task.inputs_cids
    task.ctrl.progress({"pct": 0})
    task.ctrl.log_event("begun")
    task.output.put_bytes("copy", task.input.get_bytes_by_cid(cid))
    task.ctrl.progress({"pct": 100})


async def copy_in_steps(task: TaskContext) -> AsyncIterator[object]:
    yield {"pct": 0}
    task.ctrl.log_event("begun")
    await task.output.put_file("copy", await task.input.materialize_cid_to_temp(task.lease.task.inputs_cids[0]))
    yield {"pct": 100}


def copy_plainly_in_steps(task: SyncTaskContext) -> Iterator[object]:
    yield {"pct": 0}
    task.ctrl.log_event("begun")
    with task.output.open_multipart("copy") as part:
        part.write(task.input.get_bytes_by_cid(task.lease.task.inputs_cids[0]))
    assert [artifact.id for artifact in task.output.uploaded_artifacts()] == [part.id]
    yield {"pct": 100}


class Copier:
    async def run(self, task: TaskContext) -> None:
        await copy(task)


KINDS = [copy, copy_plainly, copy_in_steps, copy_plainly_in_steps, Copier, Copier()]


def check(result: RunResult) -> None:
    assert result.outcome.ok and result.outcome.code is None and result.outcome.error is None
    assert result.artifacts == {"copy": b"data"}
    assert result.progress == [{"pct": 0}, {"pct": 100}]
    assert result.events == ["begun"]


@pytest.mark.parametrize("target", KINDS)
def test_each_kind_runs(target: Any) -> None:
    check(run_runner(target, inputs={"cid": b"data"}))


@pytest.mark.parametrize("target", KINDS)
def test_it_runs_on_a_running_loop(target: Any) -> None:
    async def main() -> None:
        check(run_runner(target, inputs={"cid": b"data"}))

    asyncio.run(main())


def test_what_the_task_says(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}
    (tmp_path / "scan.ply").write_bytes(b"points")

    class Curious:
        def capability(self) -> str:
            return "/curious/v1"

        async def run(self, task: TaskContext) -> None:
            seen["capability"], seen["meta"] = task.lease.task.capability, task.lease.task.meta
            seen["token"], seen["context"] = await task.access_token.get(), STARTED.get()
            seen["workspace"], seen["cancelled"] = task.workspace, task.ctrl.is_cancelled()
            (task.workspace / "own").write_bytes(b"")
            seen["input"] = (await task.input.materialize_cid_to_temp("scan")).read_bytes()

    token = STARTED.set("in the test")
    assert run_runner(Curious(), inputs={"scan": tmp_path / "scan.ply"}, meta={"size": 1}).outcome.ok
    STARTED.reset(token)
    assert not seen.pop("workspace").exists()
    assert seen == {
        **{"capability": "/curious/v1", "meta": {"size": 1}, "token": "domain-token", "context": "in the test"},
        **{"cancelled": False, "input": b"points"},
    }
    assert run_runner(Curious(), inputs={"scan": b"points"}, capability="/given/v1").outcome.ok
    assert seen["capability"] == "/given/v1"


class Failing:
    async def run(self, task: TaskContext) -> None:
        await task.output.put_bytes("early", b"")
        raise ValueError("no points") from KeyError("inner")


class FailingPlainly:
    def run(self, task: SyncTaskContext) -> None:
        task.output.put_bytes("early", b"")
        raise ValueError("no points") from KeyError("inner")


@pytest.mark.parametrize("target", [Failing, FailingPlainly])
def test_what_a_runner_raises_is_the_outcome(target: Any) -> None:
    result = run_runner(target)
    assert not result.outcome.ok
    assert (result.outcome.code, result.outcome.message) == (FailureCode.RUNNER_ERROR, "ValueError: no points")
    assert result.outcome.details == {"code": "runner_error", "chain": ["ValueError: no points", "KeyError: 'inner'"]}
    assert isinstance(result.outcome.error, ValueError)
    assert result.artifacts == {"early": b""}


def leave(task: SyncTaskContext) -> None:
    raise SystemExit(3)


async def leave_loop(task: TaskContext) -> None:
    raise SystemExit(3)


@pytest.mark.parametrize("target", [leave, leave_loop])
def test_an_exit_ends_the_task_and_not_the_test(target: Any) -> None:
    assert run_runner(target).outcome.code == FailureCode.RUNNER_ERROR


@pytest.mark.parametrize("asynchronous", [False, True])
def test_setup_run_teardown(asynchronous: bool) -> None:
    calls: list[str] = []

    class Plain:
        def setup(self) -> None:
            calls.append("setup")

        def check(self) -> None:
            calls.append("check")

        def teardown(self) -> None:
            calls.append("teardown")

        def run(self, task: Any) -> None:
            calls.append("run")

    class Asynchronous(Plain):
        async def run(self, task: Any) -> None:  # type: ignore[override]
            calls.append("run")

    assert run_runner(Asynchronous if asynchronous else Plain).outcome.ok
    assert calls == ["setup", "run", "teardown"]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_error_in_setup_has_its_code_and_one_in_teardown_is_the_test_s(asynchronous: bool) -> None:
    class Plain:
        fails = "setup"

        def setup(self) -> None:
            if self.fails == "setup":
                raise OSError("no model")

        def teardown(self) -> None:
            raise OSError("no goodbye")

        def run(self, task: Any) -> None: ...

    class Asynchronous(Plain):
        async def run(self, task: Any) -> None:  # type: ignore[override]
            ...

    target = Asynchronous if asynchronous else Plain
    outcome = run_runner(target).outcome
    assert (outcome.code, outcome.message) == (FailureCode.SETUP_FAILED, "OSError: no model")
    target.fails = "teardown"
    with pytest.raises(OSError, match="no goodbye"):
        run_runner(target)


def test_a_timeout_cancels_where_the_runner_awaits() -> None:
    seen: list[str] = []

    async def forever(task: TaskContext) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append(f"cancelled: {task.ctrl.is_cancelled()}")
            with pytest.raises(TaskStopped):
                await task.output.put_bytes("late", b"")
            raise

    result = run_runner(forever, timeout=0.05)
    assert seen == ["cancelled: True"]
    assert (result.outcome.ok, result.outcome.code) == (False, FailureCode.TIMEOUT)
    assert result.outcome.message == "the runner took longer than its 0.05 s"
    assert result.artifacts == {}


def test_a_timeout_ends_plain_code_at_its_next_call() -> None:
    def forever(task: SyncTaskContext) -> None:
        while True:
            try:
                task.ctrl.progress("still here")
            except Exception:
                pytest.fail("it can be swallowed")

    result = run_runner(forever, timeout=0.05)
    assert result.outcome.code == FailureCode.TIMEOUT
    assert isinstance(result.outcome.error, asyncio.CancelledError)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_returns_after_its_timeout_was_too_late(asynchronous: bool) -> None:
    def wait(task: Any) -> None:
        while not task.ctrl.is_cancelled():
            threading.Event().wait(0.001)

    async def wait_on_the_loop(task: TaskContext) -> None:
        wait(task)

    target: Any = wait_on_the_loop if asynchronous else wait
    assert run_runner(target, timeout=0.05).outcome.code == FailureCode.TIMEOUT


def test_a_cancellation_of_its_own_is_an_error() -> None:
    async def cancels_itself(task: TaskContext) -> None:
        raise asyncio.CancelledError

    outcome = run_runner(cancels_itself).outcome
    assert outcome.code is FailureCode.RUNNER_ERROR and "nobody had told it to stop" in outcome.message


def test_code_that_does_not_heed_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STOP_GRACE_SECS", 0.05)
    release, ended = threading.Event(), threading.Event()

    def deaf(task: SyncTaskContext) -> None:
        release.wait(60)
        ended.set()

    result = run_runner(deaf, timeout=0.05)
    assert result.outcome.code == FailureCode.TIMEOUT
    assert result.outcome.error is None
    assert not ended.is_set()
    release.set()
    assert ended.wait(60)


def test_what_is_no_runner_is_refused() -> None:
    with pytest.raises(TypeError, match="expected a runner"):
        run_runner("text")  # type: ignore[arg-type]


def test_three_lines_are_a_test() -> None:
    result = run_runner(copy, inputs={"cid": b"data"})
    assert result.outcome.ok, result.outcome.message
    assert result.artifacts["copy"] == b"data"
