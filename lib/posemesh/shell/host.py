"""The node's end of one running task: it starts the user's code, answers its messages, and says how it ended."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar

from posemesh.commands import StartRunner
from posemesh.errors import StorageError, TaskStopped
from posemesh.events import Event, EventLogged, LeaseId, ProgressMade, RunnerFailed, RunnerFinished, TransferMoved
from posemesh.policy import EVENTS_MAX
from posemesh.runners.ending import Ending, ending_of
from posemesh.runners.job import Ended, Job, NamedRun
from posemesh.runners.metrics import MetricsHandle
from posemesh.runners.port import GetToken, LogEvent, Progress, Question, StorageQuestion
from posemesh.telemetry import logger
from posemesh.types import Artifact, LeaseEnvelope

__all__ = ("Launch", "Storage", "TaskHost")

T = TypeVar("T")
Launch: TypeAlias = Callable[[Job, Ended], NamedRun]

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
    """One task: the ``Job`` that user code runs against. ``post`` takes its events; methods are for the node's loop
    where nothing else is said.
    """

    def __init__(
        self,
        command: StartRunner,
        post: Callable[[Event], None],
        storage: Callable[[TaskHost], Storage],
        metrics: MetricsHandle,
    ) -> None:
        self.key: LeaseId = command.lease
        self.envelope = command.envelope
        self.cancelled = False
        self.stop_reason: str | None = None
        self._post = post
        self._make_storage = storage
        self._metrics = metrics
        self._storage: Storage | None = None
        self._run: NamedRun | None = None
        self._transfers: set[asyncio.Future[Any]] = set()
        self._moved: dict[tuple[str, str], int] = {}
        self._reports = _Reports(self._take)

    @property
    def lease(self) -> LeaseEnvelope:
        return self.envelope

    @property
    def run_name(self) -> str:
        return "" if self._run is None else self._run.name

    async def run(self, launch: Launch) -> Event:
        """Run user code to its end and return the event that says how it ended."""
        self._storage = self._make_storage(self)
        if self.cancelled:
            return self._event(ending_of(asyncio.CancelledError()))
        ended: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()

        def end(ending: Ending) -> None:
            if not ended.done():
                ended.set_result(ending)

        self._run = launch(self, end)
        try:
            ending = await ended
            self._reports.flush()
            return self._event(ending)
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

    def stop(self, reason: str) -> None:
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

    def report(self, message: Progress | LogEvent) -> None:
        """Take in what user code reports. From any thread, as often as it likes."""
        self._reports.add(message)

    def _take(self, message: Progress | LogEvent) -> None:
        match message:
            case Progress(value=value):
                self._post(ProgressMade(lease=self.key, progress=value))
            case LogEvent(value=value):
                self._post(EventLogged(lease=self.key, record=value))

    def transferred(self, name: str, way: str, done: int, total: int | None) -> None:
        """A transfer of the task's storage got so far."""
        more = done - self._moved.get((way, name), 0)
        self._moved[way, name] = done
        if more > 0:
            self._metrics.bytes_downloaded(more) if way == "in" else self._metrics.bytes_uploaded(more)
        if not self.cancelled:
            self._post(TransferMoved(lease=self.key, transfer=name, way=way, done=done, total=total))

    def workspace(self) -> Path:
        """The task's directory, made at the first use. From any thread."""
        if self._storage is None:
            raise TaskStopped(f"task {self.envelope.task.id} has not begun")
        return self._storage.workspace()

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

    def _event(self, ending: Ending) -> Event:
        artifacts = self._storage.artifacts if self._storage else ()
        if ending.code is None:
            return RunnerFinished(lease=self.key, artifacts=artifacts)
        return RunnerFailed(
            lease=self.key, code=ending.code, message=ending.message, details=ending.details, artifacts=artifacts
        )


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
