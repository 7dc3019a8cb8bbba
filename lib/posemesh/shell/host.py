"""The node's end of one running task: it starts the user's code, answers its messages, and says how it ended."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

from posemesh.commands import StartRunner
from posemesh.errors import BadInput, DiskFull, InvalidCid, StorageError, TaskStopped
from posemesh.events import Event, EventLogged, LeaseId, ProgressMade, RunnerFailed, RunnerFinished, TransferMoved
from posemesh.policy import EVENTS_MAX
from posemesh.runners.api import RunnerFunction, TaskContext
from posemesh.runners.port import GetToken, LogEvent, Progress, Question, StorageQuestion
from posemesh.shell.offload import Offload, Run
from posemesh.telemetry import logger, scrub, task_span
from posemesh.types import JSON, Artifact

__all__ = ("Storage", "TaskHost")

T = TypeVar("T")

CHAIN_MAX = 8
SAID_CHARS_MAX = 4000
"""A report that is too large is refused, and the reason lost with it."""
GATHER_SECS = 0.02
"""What user code reports within this is taken in together."""


class Storage(Protocol):
    """One task's inputs, artifacts and workspace, wherever they are kept."""

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """What was uploaded so far."""
        ...

    def workspace(self) -> Path:
        """The task's directory, made at the first use. From any thread."""
        ...

    async def answer(self, message: StorageQuestion) -> Any: ...

    def stop(self) -> None:
        """The task was told to stop. No more goes out than word of uploads that come to nothing."""
        ...

    async def close(self) -> None:
        """End what is under way and remove the workspace."""
        ...


class TaskHost:
    """One task. ``post`` takes its events; all methods but those of its port are for the node's loop."""

    def __init__(
        self,
        command: StartRunner,
        offload: Offload,
        post: Callable[[Event], None],
        storage: Callable[[TaskHost], Storage],
    ) -> None:
        self.lease: LeaseId = command.lease
        self.envelope = command.envelope
        self.cancelled = False
        self.stop_reason: str | None = None
        self._offload = offload
        self._post = post
        self._make_storage = storage
        self._storage: Storage | None = None
        self._run: Run | None = None
        self._transfers: set[asyncio.Future[Any]] = set()

    async def run(self, runner: RunnerFunction) -> Event:
        """Run user code to its end and return the event that says how it ended."""
        self._storage = self._make_storage(self)
        if self.cancelled:
            return self._event(asyncio.CancelledError())
        ended: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
        reports = _Reports(self.receive)
        context = TaskContext(self.envelope, _HostPort(self, reports), self._storage.workspace)

        async def work() -> None:
            with task_span(context.lease):
                await runner(context)

        def end(error: BaseException | None) -> None:
            if not ended.done():
                ended.set_result(error)

        self._run = self._offload.start(work, end)
        try:
            error = await ended
            reports.flush()
            return self._event(error)
        finally:
            self.cancelled = True
            self._end_transfers()
            if self._transfers:
                await asyncio.wait(tuple(self._transfers))
            await self._close(self._storage)

    async def _close(self, storage: Storage) -> None:
        try:
            await storage.close()
        except Exception as error:  # how the task ended is told all the same
            task = self.envelope.task.id
            logger().opt(exception=error).warning(f"task {task}: what it left behind could not be removed")

    def stop(self, reason: str = "shutdown") -> None:
        """Tell user code to stop: the flag it can look at, and a cancellation where it awaits. The first ``reason``, a
        ``StopReason`` of the lease, counts.
        """
        self.stop_reason = self.stop_reason or reason
        self.cancelled = True
        self._end_transfers()
        if self._storage is not None:
            self._storage.stop()
        if self._run is not None:
            self._run.cancel()

    def _end_transfers(self) -> None:
        for job in self._transfers:
            job.cancel()

    def receive(self, message: Progress | LogEvent) -> None:
        match message:
            case Progress(value=value):
                self._post(ProgressMade(lease=self.lease, progress=value))
            case LogEvent(value=value):
                self._post(EventLogged(lease=self.lease, record=value))

    def transferred(self, name: str, way: str, done: int, total: int | None) -> None:
        """A transfer of the task's storage got so far."""
        if not self.cancelled:
            self._post(TransferMoved(lease=self.lease, transfer=name, way=way, done=done, total=total))

    async def answer(self, message: Question) -> Any:
        if self.cancelled or self._storage is None:
            raise TaskStopped(f"task {self.envelope.task.id} was told to stop; nothing more goes out for it")
        if isinstance(message, GetToken):
            if self.envelope.access_token is None:
                raise StorageError("the lease carries no access token; the service gave none")
            return self.envelope.access_token
        return await self._transfer(self._storage.answer(message))

    async def _transfer(self, work: Coroutine[Any, Any, T]) -> T:
        """A storage request, which ends with the task at the latest."""
        job = asyncio.ensure_future(work)
        self._transfers.add(job)
        try:
            return await job
        finally:
            job.cancel()
            self._transfers.discard(job)

    def _event(self, error: BaseException | None) -> Event:
        artifacts = self._storage.artifacts if self._storage else ()
        if error is None:
            return RunnerFinished(lease=self.lease, artifacts=artifacts)
        if isinstance(error, asyncio.CancelledError):
            code, message = "cancelled", "the runner was cancelled"
        else:
            code, message = _code(error), _said(error)
        details: dict[str, JSON] = {"chain": list(_chain(error))}
        return RunnerFailed(lease=self.lease, code=code, message=message, details=details, artifacts=artifacts)


class _Reports:
    """What user code reported and the node has not taken in yet: the latest progress and the newest events.

    ``add`` may be called from any thread and as often as user code likes: one wake-up serves all that came meanwhile,
    so that a runner which reports without end floods neither the node's loop nor its memory.
    """

    def __init__(self, take: Callable[[Progress | LogEvent], None]) -> None:
        self._take = take
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._progress: Progress | None = None
        self._events: deque[LogEvent] = deque(maxlen=EVENTS_MAX)
        self._woken = False

    def add(self, message: Progress | LogEvent) -> None:
        with self._lock:
            if isinstance(message, Progress):
                self._progress = message
            else:
                self._events.append(message)
            woken, self._woken = self._woken, True
        if not woken:
            with suppress(RuntimeError):  # the node's loop is closed: nobody is left to hear it
                self._loop.call_soon_threadsafe(self._loop.call_later, GATHER_SECS, self.flush)

    def flush(self) -> None:
        """Hand all of it on; on the node's loop."""
        with self._lock:
            events, progress = tuple(self._events), self._progress
            self._events.clear()
            self._progress, self._woken = None, False
        for message in (*events, *(() if progress is None else (progress,))):
            self._take(message)


class _HostPort:
    """User code's end of the port, in the same process."""

    def __init__(self, host: TaskHost, reports: _Reports) -> None:
        self._host = host
        self._reports = reports

    @property
    def cancelled(self) -> bool:
        return self._host.cancelled

    def post(self, message: Progress | LogEvent) -> None:
        self._reports.add(message)

    async def call(self, message: Question) -> Any:
        return await self._host._offload.ask(lambda: self._host.answer(message))


def _code(error: BaseException) -> str:
    """What a task that ends with ``error`` is failed with."""
    if isinstance(error, StorageError):
        return error.code
    if isinstance(error, InvalidCid):
        return BadInput.code
    full = (errno.ENOSPC, errno.EDQUOT)
    if any(isinstance(each, OSError) and each.errno in full for each in _causes(error)):
        return DiskFull.code  # user code met it, in its workspace most likely
    return "runner_error"


def _said(error: BaseException) -> str:
    text = str(error).encode("utf-8", "backslashreplace").decode()  # a file's name may be no text
    if len(text) > SAID_CHARS_MAX:
        text = f"{text[:SAID_CHARS_MAX]}…"
    return scrub(f"{type(error).__name__}: {text}" if text else type(error).__name__)


def _chain(error: BaseException) -> list[JSON]:
    """The error and its causes, outermost first."""
    return [_said(each) for each in _causes(error)]


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen and len(seen) < CHAIN_MAX:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
