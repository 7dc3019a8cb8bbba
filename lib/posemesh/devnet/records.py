"""What the task service keeps: jobs, tasks, leases, receipts, and the form in which an app sends them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec

__all__ = (
    "HELD",
    "TASK_STATES",
    "Body",
    "Edge",
    "Job",
    "JobRequest",
    "Lease",
    "Receipt",
    "State",
    "Task",
    "TaskRequest",
)

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class Body(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """A request body: exactly the fields written down, with exactly their types."""


class State(StrEnum):
    """Of a task; a job has the same ones without leased, and ``pending`` for queued."""

    PENDING = "pending"
    QUEUED = "queued"
    LEASED = "leased"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"


TASK_STATES = (State.QUEUED, State.LEASED, State.RUNNING, State.COMPLETED, State.FAILED, State.CANCELED)
HELD = (State.LEASED, State.RUNNING)


class TaskRequest(Body, kw_only=True, frozen=True):
    """One task of ``POST /jobs``."""

    label: Name
    capability: Name
    stage: str = ""
    capability_filters: dict[str, Any] = {}
    priority: Annotated[int, msgspec.Meta(ge=-(2**31), lt=2**31)] = 0
    inputs_cids: list[str] = []
    outputs_prefix: str | None = None
    mode: Literal["public", "dedicated"] = "public"
    meta: dict[str, Any] = {}
    max_attempts: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 3
    organization_filter: str | None = None
    billing_units: str | None = None


class Edge(Body, kw_only=True, frozen=True, rename={"source": "from", "target": "to"}):
    """Tasks of stage ``target`` wait for those of stage ``source``."""

    source: Name
    target: Name


class JobRequest(Body, kw_only=True, frozen=True):
    """The body of ``POST /jobs``."""

    label: Name
    domain_id: UUID
    tasks: Annotated[list[TaskRequest], msgspec.Meta(min_length=1, max_length=10_000)]
    priority: Annotated[int, msgspec.Meta(ge=0, lt=2**32)] = 0
    meta: dict[str, Any] = {}
    edges: list[Edge] = []


@dataclass(slots=True, kw_only=True)
class Task:
    """A task and where it stands. Times are wall seconds; ``number`` is its place in the order of submission."""

    id: str
    job_id: str
    number: int
    spec: TaskRequest
    created_at: float
    updated_at: float
    state: State = State.QUEUED
    attempts: int = 0
    deps_remaining: int = 0
    node_id: str | None = None
    lease_expires_at: float | None = None
    last_heartbeat_at: float | None = None
    cancel_requested_at: float | None = None
    progress: Any = None
    events: list[Any] = field(default_factory=list)
    #: ``reason`` and ``details`` of the latest failed attempt.
    failure: dict[str, Any] | None = None

    @property
    def stage(self) -> str:
        return self.spec.stage or self.spec.label


@dataclass(slots=True, kw_only=True)
class Job:
    """A job and where it stands."""

    id: str
    request: JobRequest
    created_at: float
    updated_at: float
    state: State = State.PENDING


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What a node handed in for a task."""

    id: str
    job_id: str
    task_id: str
    node_id: str
    outputs: list[str]
    meta: Any
    created_at: float


@dataclass(slots=True, kw_only=True)
class Lease:
    """A node's latest hold on a task, remembered after it ended to say why a later request is refused."""

    task_id: str
    node_id: str
    expires_at: float
    ended: str = ""
    ended_at: float = 0.0
