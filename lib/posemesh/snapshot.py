"""A node at one moment, and the end of a lease: what the engine tells of itself."""

from __future__ import annotations

from dataclasses import dataclass, field

from posemesh.events import LeaseId
from posemesh.types import JSON, TaskIdentity

__all__ = ("Ended", "MachineStatus", "Statistics", "TaskStatus")


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineStatus:
    """``since`` and ``deadline`` are monotonic seconds."""

    state: str
    since: float
    deadline: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskStatus:
    """A leased task that has not ended. ``transfers`` holds ``{way, done, total}`` in bytes by name; ``problem`` is the
    service's latest word on its report, or that its user code goes on although it has failed.
    """

    lease: LeaseId
    task_id: str
    capability: str
    state: str
    progress: JSON
    transfers: dict[str, JSON] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """One lease is over: ``ending`` is completed, failed, refused, unconfirmed, stuck, lost or cancelled."""

    lease: LeaseId
    task: TaskIdentity
    ending: str
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """A snapshot of a node."""

    machines: dict[str, MachineStatus]
    tasks: tuple[TaskStatus, ...]
    counters: dict[str, int]
