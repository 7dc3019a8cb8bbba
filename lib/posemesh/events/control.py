"""Events of a hosted runtime and of its inputs. The driver sends all of them; times and numbers come with them."""

from __future__ import annotations

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
    "Obligation",
    "ObligationClosed",
    "RunCancelled",
    "RunCommitted",
    "RunFailed",
    "RunId",
    "RunPrepared",
    "RunRolledBack",
    "RuntimeDestroyed",
    "RuntimeEventPublished",
    "RuntimeInitialized",
    "RuntimeRecovered",
    "RuntimeRecycled",
    "RuntimeRegistered",
    "RuntimeReset",
    "RuntimeRetired",
    "StagingRefused",
    "StopRequested",
    "UnregisterBegun",
    "Unregistered",
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


class InputQueued(Event, frozen=True, kw_only=True):
    """Driver: it was admitted to ``lane``. ``sequence`` is its place among all inputs of the runtime."""

    machines: ClassVar[tuple[str, ...]] = ("input",)
    lane: Lane
    sequence: int


class InputNoted(Event, frozen=True, kw_only=True):
    """Driver: it asked for nothing but to be on record."""

    machines: ClassVar[tuple[str, ...]] = ("input",)
    sequence: int


class InputStaged(Event, frozen=True, kw_only=True):
    """Driver: ``run`` takes it up. ``current`` are the runs that the runtime has."""

    machines: ClassVar[tuple[str, ...]] = ("input",)
    run: RunId
    current: frozenset[RunId]


class InputRolledBack(Event, frozen=True, kw_only=True):
    """Driver: ``run`` ended with nothing done: the input may be tried again."""

    machines: ClassVar[tuple[str, ...]] = ("input",)
    run: RunId


class StagingRefused(Event, frozen=True, kw_only=True):
    """Driver: no run would take it. ``sequence`` is its place behind what waits."""

    machines: ClassVar[tuple[str, ...]] = ("input",)
    sequence: int


class InputDeferred(Event, frozen=True, kw_only=True):
    """Driver: others go first. ``sequence`` is its place behind what waits."""

    machines: ClassVar[tuple[str, ...]] = ("input",)
    sequence: int


class InputApplied(Event, frozen=True, kw_only=True):
    """Driver: ``run`` has done what it asked."""

    machines: ClassVar[tuple[str, ...]] = ("input",)
    run: RunId


class BoundaryRecorded(Event, frozen=True, kw_only=True):
    """Driver: the receipt of ``run`` has ``sequence``."""

    machines: ClassVar[tuple[str, ...]] = ("input",)
    run: RunId
    sequence: int


class InputConsumed(Event, frozen=True, kw_only=True):
    """Driver: nothing is left of it to do."""

    machines: ClassVar[tuple[str, ...]] = ("input",)


class InputSuperseded(Event, frozen=True, kw_only=True):
    """Driver: ``by`` holds a newer lease of the same task."""

    machines: ClassVar[tuple[str, ...]] = ("input",)
    by: InputId


class InputCoalesced(Event, frozen=True, kw_only=True):
    """Driver: ``into`` says the same, and later."""

    machines: ClassVar[tuple[str, ...]] = ("input",)
    into: InputId


class InputAbandoned(Event, frozen=True, kw_only=True):
    """Driver: it will not be worked off. ``run`` where that run was cancelled."""

    machines: ClassVar[tuple[str, ...]] = ("input",)
    reason: AbandonReason
    run: RunId | None = None


class InputRecovered(Event, frozen=True, kw_only=True):
    """Driver: the process that held it is gone. ``receipt`` tells whether its last run's boundary is on record;
    ``lane`` and ``sequence`` are for one that was accepted and not yet queued.
    """

    machines: ClassVar[tuple[str, ...]] = ("input",)
    receipt: bool
    lane: Lane
    sequence: int


# -- One runtime ----------------------------------------------------------------------------------------------------


class Obligation(StrEnum):
    """What has to end before a process may let go of a runtime."""

    LOOP = "loop"
    """What runs inputs has ended."""
    MESSAGES = "messages"
    """What user code said last was read."""
    WAITERS = "waiters"
    """Whoever waits for an input was told."""


class RuntimeInitialized(Event, frozen=True, kw_only=True):
    """Driver: it was looked up. ``epoch`` names this process's hold on it; the rest tells what the process before
    left: that it was to take nothing new, or was destroyed.
    """

    machines: ClassVar[tuple[str, ...]] = ("driver",)
    epoch: str
    retired: bool = False
    destroyed: bool = False


class RuntimeRegistered(Event, frozen=True, kw_only=True):
    """Driver: a process takes the runtime up. ``epoch`` names that process's hold on it."""

    machines: ClassVar[tuple[str, ...]] = ("driver",)
    epoch: str


class InputAccepted(Event, frozen=True, kw_only=True):
    """Driver: an input asks to be taken in."""

    machines: ClassVar[tuple[str, ...]] = ("driver",)


class ExecutorAttached(Event, frozen=True, kw_only=True):
    """Driver: what runs inputs is ready."""

    machines: ClassVar[tuple[str, ...]] = ("driver",)


class ExecutorExited(Event, frozen=True, kw_only=True):
    """Driver: what ran inputs is gone."""

    machines: ClassVar[tuple[str, ...]] = ("driver",)


class StopRequested(Event, frozen=True, kw_only=True):
    """Driver: what runs inputs is to end; that it has is told by ExecutorExited."""

    machines: ClassVar[tuple[str, ...]] = ("driver",)


class RunPrepared(Event, frozen=True, kw_only=True):
    """Driver: ``run`` is to begin. ``drain`` where it works off what a retired runtime still holds."""

    machines: ClassVar[tuple[str, ...]] = ("driver",)
    run: RunId
    drain: bool = False


class RunCommitted(Event, frozen=True, kw_only=True):
    """Driver: ``run`` reached its boundary."""

    machines: ClassVar[tuple[str, ...]] = ("driver",)
    run: RunId


class RunFailed(Event, frozen=True, kw_only=True):
    """Driver: ``run`` ended in a failure; ``cause`` says of what kind."""

    machines: ClassVar[tuple[str, ...]] = ("driver",)
    run: RunId
    cause: str


class RunCancelled(Event, frozen=True, kw_only=True):
    """Driver: ``run`` was cancelled."""

    machines: ClassVar[tuple[str, ...]] = ("driver",)
    run: RunId


class RunRolledBack(Event, frozen=True, kw_only=True):
    """Driver: ``run`` is cleared away before it came to any end."""

    machines: ClassVar[tuple[str, ...]] = ("driver",)
    run: RunId


class RuntimeRetired(Event, frozen=True, kw_only=True):
    """Driver: no new input; what is there is worked off."""

    machines: ClassVar[tuple[str, ...]] = ("driver",)


class RuntimeReset(Event, frozen=True, kw_only=True):
    """Driver: everything is dropped, and it begins anew."""

    machines: ClassVar[tuple[str, ...]] = ("driver",)


class RuntimeRecycled(Event, frozen=True, kw_only=True):
    """Driver: its driver is made anew around the same inputs."""

    machines: ClassVar[tuple[str, ...]] = ("driver",)


class RuntimeRecovered(Event, frozen=True, kw_only=True):
    """Driver: its inputs were put in order after a crash."""

    machines: ClassVar[tuple[str, ...]] = ("driver",)


class RuntimeDestroyed(Event, frozen=True, kw_only=True):
    """Driver: it is over for good."""

    machines: ClassVar[tuple[str, ...]] = ("driver",)


class RuntimeEventPublished(Event, frozen=True, kw_only=True):
    """Driver: an event is to be delivered to it."""

    machines: ClassVar[tuple[str, ...]] = ("driver",)


class UnregisterBegun(Event, frozen=True, kw_only=True):
    """Driver: the process wants to let go of it: from now on nothing is begun."""

    machines: ClassVar[tuple[str, ...]] = ("driver",)


class ObligationClosed(Event, frozen=True, kw_only=True):
    """Driver: one of them has ended; ``forced`` where it was cut short."""

    machines: ClassVar[tuple[str, ...]] = ("driver",)
    obligation: Obligation
    forced: bool = False


class Unregistered(Event, frozen=True, kw_only=True):
    """Driver: the process that holds it by ``epoch`` lets go of it."""

    machines: ClassVar[tuple[str, ...]] = ("driver",)
    epoch: str
