"""What lies between the node and user code: the node's end of a running task, and a run that can be told to stop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from posemesh.runners.ending import Ending
from posemesh.runners.port import LogEvent, Progress, Question
from posemesh.types import LeaseEnvelope

__all__ = ("Ended", "Job", "NamedRun", "Run")


class Run(Protocol):
    """User code that was started."""

    def cancel(self) -> object:
        """Tell it to stop. It may take its time, or ignore it. Any number of times; after its end it does nothing."""
        ...


class NamedRun(Run, Protocol):
    """A run with its :class:`RunId` as text; ``""`` where none came to be."""

    @property
    def name(self) -> str: ...


Ended: TypeAlias = Callable[[Ending], None]
"""Called on the node's loop, once, when user code and all that it started has ended."""


class Job(Protocol):
    """The node's end of one running task."""

    @property
    def lease(self) -> LeaseEnvelope:
        """The terms of the moment."""
        ...

    @property
    def cancelled(self) -> bool:
        """Whether it was told to stop. From any thread."""
        ...

    @property
    def stop_reason(self) -> str | None:
        """Why it was: a ``StopReason`` of the lease (timeout, shutdown, expired, lost, cancelled)."""
        ...

    def report(self, message: Progress | LogEvent) -> None:
        """Take in what user code reports. From any thread, as often as it likes."""
        ...

    def workspace(self) -> Path:
        """The task's directory, made at the first use. From any thread; raises OSError."""
        ...

    async def answer(self, question: Question) -> Any:
        """On the node's loop. Raises what user code is to see: StorageError, InvalidCid, TaskStopped."""
        ...
