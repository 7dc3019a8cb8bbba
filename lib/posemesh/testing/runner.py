"""One task of a runner, as a node would run it, without a node and without a network."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from posemesh.errors import TaskStopped
from posemesh.outcomes import FailureCode
from posemesh.policy import STOP_GRACE_SECS
from posemesh.runners.api import RunnerTarget
from posemesh.runners.blocking import BlockingTask
from posemesh.runners.ending import ending_of, said, unasked
from posemesh.runners.kinds import AsyncRunner, BlockingRunner, UserRunner, user_runner
from posemesh.runners.port import GetToken, LogEvent, Progress, Question
from posemesh.runners.task import PortTask
from posemesh.secret import Secret
from posemesh.testing.storage import DOMAIN, MemoryStorage
from posemesh.types import JSON, LeaseEnvelope, TaskSpec

__all__ = ("RunOutcome", "RunResult", "run_runner")

CAPABILITY = "/tests/runner/v1"
TASK = UUID("7a5c0000-0000-4000-8000-000000000000")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOutcome:
    """How the task ended. Where ``ok`` is false, a node would fail it with ``code`` and ``message`` as its reason, and
    report ``details``; ``error`` is what the runner raised.
    """

    ok: bool
    code: FailureCode | None = None
    message: str = ""
    details: dict[str, JSON] = field(default_factory=dict)
    error: BaseException | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What a node would have seen of the task: the artifacts' bytes by their path; each progress and each event, in
    their order; and how it ended.
    """

    artifacts: dict[str, bytes]
    progress: list[JSON]
    events: list[JSON]
    outcome: RunOutcome


def run_runner(
    target: RunnerTarget,
    *,
    inputs: Mapping[str, bytes | Path] | None = None,
    meta: JSON = None,
    capability: str | None = None,
    timeout: float | None = None,
) -> RunResult:
    """Run one task of ``target``, a runner of any kind: its ``setup()``, its ``run(task)``, its ``teardown()``.

    ``inputs`` gives each input's id its bytes, or the file that holds them. After ``timeout`` seconds of real time the
    task is told to stop, as a node does it; a runner that does not heed that is left alone 3 seconds later. The
    capability is the runner's own where it names one.

    It may be called on a running event loop: the runner has a loop, or a thread, of its own. What ``teardown()`` raises
    is raised here, and TypeError for what is no runner; ``check()`` is not called. All else is in the result.
    """
    runner = user_runner(target)
    own = getattr(target, "capability", None)
    name = capability or (own() if callable(own) and not isinstance(target, type) else CAPABILITY)
    task = TaskSpec(id=TASK, capability=name, meta=meta, inputs_cids=list(inputs or ()))
    lease = LeaseEnvelope(
        task=task, access_token=Secret("domain-token"), domain_id=DOMAIN, domain_server_url="https://domain.example"
    )
    storage = MemoryStorage(task, inputs or {})
    run = _Run(runner, lease, storage)
    try:
        stopped = run.wait(timeout)
    finally:
        storage.remove()
    if run.teardown_error is not None:
        raise run.teardown_error
    outcome = _outcome(run.error, in_setup=run.in_setup)
    if stopped:  # however it ended then
        details = {**outcome.details, "code": FailureCode.TIMEOUT.value}
        message = f"the runner took longer than its {timeout:g} s"
        outcome = RunOutcome(ok=False, code=FailureCode.TIMEOUT, message=message, details=details, error=run.error)
    return RunResult(
        artifacts=dict(storage.contents), progress=list(run.progress), events=list(run.events), outcome=outcome
    )


def _outcome(error: BaseException | None, *, in_setup: bool) -> RunOutcome:
    if error is None:
        return RunOutcome(ok=True)
    ending = unasked(ending_of(error))  # where it was told to stop, its own words do not count
    code, message = (FailureCode.SETUP_FAILED, said(error)) if in_setup else (ending.code, ending.message)
    assert code is not None
    return RunOutcome(ok=False, code=code, message=message, details={**ending.details, "code": code.value}, error=error)


class _Run:
    """A task in a thread of its own, and the node's end of its port."""

    def __init__(self, runner: UserRunner, lease: LeaseEnvelope, storage: MemoryStorage) -> None:
        self.cancelled = False
        self.progress: list[JSON] = []
        self.events: list[JSON] = []
        self.error: BaseException | None = None
        self.in_setup = True
        self.teardown_error: BaseException | None = None
        self._runner = runner
        self._lease = lease
        self._storage = storage
        self._running: tuple[asyncio.AbstractEventLoop, asyncio.Task[None]] | None = None
        self._began = threading.Event()
        self._over = threading.Event()
        self._ended = threading.Event()

    def wait(self, timeout: float | None) -> bool:
        """Run it; whether it had to be told to stop."""
        work = contextvars.copy_context().run
        thread = threading.Thread(target=work, args=(self._work,), name="posemesh-run-runner", daemon=True)
        thread.start()
        self._began.wait()
        in_time = self._over.wait(timeout)
        if not in_time:
            self.stop()
        if in_time or self._over.wait(STOP_GRACE_SECS):
            self._ended.wait()
            thread.join(STOP_GRACE_SECS)  # what it left on its loop is cancelled, and may ignore that
        return not in_time

    def stop(self) -> None:
        """Tell it to stop, where it awaits and at its calls."""
        self.cancelled = True
        if self._running is not None:
            loop, task = self._running
            with suppress(RuntimeError):  # it has just ended, and its loop is closed
                loop.call_soon_threadsafe(lambda: self._over.is_set() or task.cancel())

    def _work(self) -> None:
        try:
            if self._runner.is_async:
                asyncio.run(self._serve(self._runner))
            else:
                self._serve_plainly(self._runner)
        except BaseException as error:  # no loop could be made
            self.error = error
        finally:
            for each in (self._began, self._over, self._ended):
                each.set()

    async def _serve(self, runner: AsyncRunner) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._running = asyncio.get_running_loop(), task
        self._began.set()
        try:
            await runner.setup()
            self.in_setup = False
            await runner.run(PortTask(self._lease, _Port(self), self._storage.workspace))
        except BaseException as error:
            self.error = error
        self._over.set()
        try:
            await runner.teardown()
        except BaseException as error:
            self.teardown_error = error
        self._ended.set()  # before what it left on the loop has ended

    def _serve_plainly(self, runner: BlockingRunner) -> None:
        self._began.set()
        try:
            runner.setup()
            self.in_setup = False
            runner.run(BlockingTask(self._lease, _BlockingPort(self), self._storage.workspace))
        except BaseException as error:
            self.error = error
        self._over.set()
        try:
            runner.teardown()
        except BaseException as error:
            self.teardown_error = error

    def post(self, message: Progress | LogEvent) -> None:
        (self.progress if isinstance(message, Progress) else self.events).append(message.value)

    def answer(self, message: Question) -> Any:
        return self._lease.access_token if isinstance(message, GetToken) else self._storage.respond(message)


class _Port:
    def __init__(self, run: _Run) -> None:
        self._run = run
        self.post = run.post

    @property
    def cancelled(self) -> bool:
        return self._run.cancelled

    async def call(self, message: Question) -> Any:
        await asyncio.sleep(0)  # as it would wait for a node
        if self.cancelled:
            raise TaskStopped("the task was told to stop; nothing more goes out for it")
        return self._run.answer(message)


class _BlockingPort:
    def __init__(self, run: _Run) -> None:
        self._run = run
        self.post = run.post
        self.call = run.answer

    @property
    def cancelled(self) -> bool:
        return self._run.cancelled
