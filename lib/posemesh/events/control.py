"""Events of a hosted runtime and of its inputs. The driver sends all of them; times and numbers come with them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, NewType

from posemesh.events._base import Event

__all__ = (
    "AbandonReason",
    "BoundaryRecorded",
    "ExecutorAttached",
    "ExecutorExited",
    "InputAbandoned",
    "InputAccepted",
    "InputApplied",
    "InputCoalesced",
    "InputConsumed",
    "InputDeferred",
    "InputId",
    "InputNoted",
    "InputQueued",
    "InputRecovered",
    "InputRolledBack",
    "InputStaged",
    "InputSuperseded",
    "Lane",
    "RunCancelled",
    "RunCommitted",
    "RunFailed",
    "RunId",
    "RunPrepared",
    "RunRolledBack",
    "RuntimeDestroyed",
    "RuntimeEventPublished",
    "RuntimeRecovered",
    "RuntimeRecycled",
    "RuntimeRegistered",
    "RuntimeReset",
    "RuntimeRetired",
    "StagingRefused",
    "StopRequested",
)

InputId = NewType("InputId", str)
"""The name of one input: a UUIDv7, so that names sort by when they were made."""

RunId = NewType("RunId", str)
"""The name of one attempt: a UUIDv7. The router's readable name of the same run stands beside it in the receipt."""


class Lane(StrEnum):
    """Where an input waits. Steer is always looked at first."""

    STEER = "steer"
    QUEUE = "queue"


class AbandonReason(StrEnum):
    """Why an input ended without having been worked off."""

    RETIRED = "retired"
    RESET = "reset"
    STOPPED = "stopped"
    DESTROYED = "destroyed"
    CANCELLED = "cancelled"
    MAX_ATTEMPTS = "max_attempts"
    NEVER_EXECUTED = "never_executed"
    """Its run was given up on while its effects may have happened: running it again could do them twice."""
    LEASE_LOST = "lease_lost"


# -- One input ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class InputQueued(Event):
    """It was admitted to ``lane``. ``sequence`` is its place among all inputs of the runtime."""

    machines: ClassVar[tuple[str, ...]] = ("input",)
    lane: Lane
    sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InputNoted(Event):
    """It asked for nothing but to be on record."""

    machines: ClassVar[tuple[str, ...]] = ("input",)
    sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InputStaged(Event):
    """``run`` takes it up. ``current`` are the runs that the runtime has."""

    machines: ClassVar[tuple[str, ...]] = ("input",)
    run: RunId
    current: frozenset[RunId]


@dataclass(frozen=True, slots=True, kw_only=True)
class InputRolledBack(Event):
    """``run`` ended with nothing done: the input may be tried again."""

    machines: ClassVar[tuple[str, ...]] = ("input",)
    run: RunId


@dataclass(frozen=True, slots=True, kw_only=True)
class StagingRefused(Event):
    """No run would take it. ``sequence`` is its place behind what waits."""

    machines: ClassVar[tuple[str, ...]] = ("input",)
    sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InputDeferred(Event):
    """Others go first. ``sequence`` is its place behind what waits."""

    machines: ClassVar[tuple[str, ...]] = ("input",)
    sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InputApplied(Event):
    """``run`` has done what it asked."""

    machines: ClassVar[tuple[str, ...]] = ("input",)
    run: RunId


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundaryRecorded(Event):
    """The receipt of ``run`` has ``sequence``."""

    machines: ClassVar[tuple[str, ...]] = ("input",)
    run: RunId
    sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InputConsumed(Event):
    """Nothing is left of it to do."""

    machines: ClassVar[tuple[str, ...]] = ("input",)


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSuperseded(Event):
    """``by`` holds a newer lease of the same task."""

    machines: ClassVar[tuple[str, ...]] = ("input",)
    by: InputId


@dataclass(frozen=True, slots=True, kw_only=True)
class InputCoalesced(Event):
    """``into`` says the same, and later."""

    machines: ClassVar[tuple[str, ...]] = ("input",)
    into: InputId


@dataclass(frozen=True, slots=True, kw_only=True)
class InputAbandoned(Event):
    """It will not be worked off."""

    machines: ClassVar[tuple[str, ...]] = ("input",)
    reason: AbandonReason


@dataclass(frozen=True, slots=True, kw_only=True)
class InputRecovered(Event):
    """The process that held it is gone. ``receipt`` tells whether its last run's boundary is on record; ``lane`` and
    ``sequence`` are for one that was accepted and not yet queued.
    """

    machines: ClassVar[tuple[str, ...]] = ("input",)
    receipt: bool
    lane: Lane
    sequence: int


# -- One runtime ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeRegistered(Event):
    """A process takes the runtime up. ``epoch`` names that process's hold on it."""

    machines: ClassVar[tuple[str, ...]] = ("driver",)
    epoch: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InputAccepted(Event):
    """An input asks to be taken in."""

    machines: ClassVar[tuple[str, ...]] = ("driver",)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorAttached(Event):
    """What runs inputs is ready."""

    machines: ClassVar[tuple[str, ...]] = ("driver",)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorExited(Event):
    """What ran inputs is gone."""

    machines: ClassVar[tuple[str, ...]] = ("driver",)


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRequested(Event):
    """What runs inputs is to end; that it has is told by ExecutorExited."""

    machines: ClassVar[tuple[str, ...]] = ("driver",)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPrepared(Event):
    """``run`` is to begin. ``drain`` where it works off what a retired runtime still holds."""

    machines: ClassVar[tuple[str, ...]] = ("driver",)
    run: RunId
    drain: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCommitted(Event):
    """``run`` reached its boundary."""

    machines: ClassVar[tuple[str, ...]] = ("driver",)
    run: RunId


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFailed(Event):
    """``run`` ended in a failure; ``cause`` says of what kind."""

    machines: ClassVar[tuple[str, ...]] = ("driver",)
    run: RunId
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCancelled(Event):
    """``run`` was cancelled."""

    machines: ClassVar[tuple[str, ...]] = ("driver",)
    run: RunId


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRolledBack(Event):
    """``run`` is cleared away before it came to any end."""

    machines: ClassVar[tuple[str, ...]] = ("driver",)
    run: RunId


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeRetired(Event):
    """No new input; what is there is worked off."""

    machines: ClassVar[tuple[str, ...]] = ("driver",)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeReset(Event):
    """Everything is dropped, and it begins anew."""

    machines: ClassVar[tuple[str, ...]] = ("driver",)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeRecycled(Event):
    """Its driver is made anew around the same inputs."""

    machines: ClassVar[tuple[str, ...]] = ("driver",)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeRecovered(Event):
    """Its inputs were put in order after a crash."""

    machines: ClassVar[tuple[str, ...]] = ("driver",)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeDestroyed(Event):
    """It is over for good."""

    machines: ClassVar[tuple[str, ...]] = ("driver",)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeEventPublished(Event):
    """An event is to be delivered to it."""

    machines: ClassVar[tuple[str, ...]] = ("driver",)
