"""Input: one thing that a runtime was given to do, from its admission to its end.

Rules:
1. An input waits in exactly one lane while it is queued, and in none at any other time.
2. A run takes up what is queued, and each time counts as an attempt. Staged is bound to that run: only the same run
   applies it, rolls it back or cancels it. The run it last took part in stays on record and binds nothing.
3. A run that ended with nothing done gives its inputs back, unless they have had their attempts.
4. What was applied has its boundary's number before it is consumed. After a crash the receipt decides: with one the
   work is done, without one it is done again.
5. A newer lease of the same task takes the place of whatever has not ended.

Unusual edges: rows that refuse name what has to hold. Deferring what has ended is no mistake, as a batch may have ended
in part; deferring what is queued in no lane is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from posemesh.events.control import (
    AbandonReason,
    BoundaryRecorded,
    InputAbandoned,
    InputApplied,
    InputCoalesced,
    InputConsumed,
    InputDeferred,
    InputId,
    InputNoted,
    InputQueued,
    InputRecovered,
    InputRolledBack,
    InputStaged,
    InputSuperseded,
    Lane,
    RunId,
    StagingRefused,
)
from posemesh.machines._kernel import Edge, Lifecycle, State, Subject, Tick, refuse

__all__ = ("ATTEMPTS_MAX", "MACHINE", "InputPhase", "InputSubject", "invariants")

ATTEMPTS_MAX = 3
"""How often an input is taken up before it is given up."""


class InputPhase(State):
    ACCEPTED = "accepted", "It passed admission; it is in no lane yet."
    QUEUED = "queued", "It waits in its lane."
    STAGED = "staged", "A run has taken it up."
    APPLIED = "applied", "Its run has done what it asked; the boundary's number is to come."
    APPLIED_PENDING_CONSUMPTION = "applied_pending_consumption", "Its run's boundary has its number."
    CONSUMED = "consumed", "Done, or noted where there was nothing to do."
    SUPERSEDED = "superseded", "A newer lease of the same task took its place."
    COALESCED = "coalesced", "A later one that says the same took it in."
    ABANDONED = "abandoned", "It will not be worked off; the reason stands beside it."


ACCEPTED, QUEUED, STAGED, APPLIED, PENDING, CONSUMED, SUPERSEDED, COALESCED, ABANDONED = InputPhase
_ENDED = (CONSUMED, SUPERSEDED, COALESCED, ABANDONED)


@dataclass(eq=False, slots=True, kw_only=True)
class InputSubject(Subject):
    """``run`` binds it while it is staged, ``lane`` is where it waits, ``recovery_lane`` where it waits after a run
    gave it back. ``by`` is its successor or what took it in.
    """

    state: State = ACCEPTED
    run: RunId | None = None
    last_run: RunId | None = None
    boundary: int | None = None
    sequence: int | None = None
    lane: Lane | None = None
    recovery_lane: Lane | None = None
    attempts: int = 0
    by: InputId | None = None
    reason: AbandonReason | None = None


def run_is_over(subject: InputSubject, step: Tick[InputStaged]) -> bool:
    return step.event.run not in step.event.current


def in_no_lane(subject: InputSubject, step: Tick[Any]) -> bool:
    return subject.lane is None or subject.sequence is None


def another_run(subject: InputSubject, step: Tick[Any]) -> bool:
    return bool(step.event.run != subject.run)


def another_last_run(subject: InputSubject, step: Tick[Any]) -> bool:
    return bool(step.event.run != subject.last_run)


def number_is_old(subject: InputSubject, step: Tick[BoundaryRecorded]) -> bool:
    return step.event.sequence <= (subject.boundary or 0)


def exhausted(subject: InputSubject, step: Tick[Any]) -> bool:
    return subject.attempts >= ATTEMPTS_MAX


def has_receipt(subject: InputSubject, step: Tick[InputRecovered]) -> bool:
    return step.event.receipt


def cancelled_past_its_run(subject: InputSubject, step: Tick[InputAbandoned]) -> bool:
    return step.event.reason is AbandonReason.CANCELLED and step.event.run != subject.run


def enqueue(subject: InputSubject, step: Tick[InputQueued]) -> None:
    subject.lane = subject.recovery_lane = step.event.lane
    subject.sequence = step.event.sequence


def note(subject: InputSubject, step: Tick[InputNoted]) -> None:
    subject.sequence = step.event.sequence


def stage(subject: InputSubject, step: Tick[InputStaged]) -> None:
    subject.run = subject.last_run = step.event.run
    subject.lane = None
    subject.attempts += 1


def count_refusal(subject: InputSubject, step: Tick[StagingRefused]) -> None:
    subject.attempts += 1


def go_back(subject: InputSubject, step: Tick[StagingRefused | InputDeferred]) -> None:
    subject.sequence = step.event.sequence


def requeue(subject: InputSubject, step: Tick[Any]) -> None:
    subject.run, subject.lane = None, subject.recovery_lane


def unbind(subject: InputSubject, step: Tick[Any]) -> None:
    subject.run = subject.lane = None


def number(subject: InputSubject, step: Tick[BoundaryRecorded]) -> None:
    subject.boundary = step.event.sequence


def name_successor(subject: InputSubject, step: Tick[InputSuperseded]) -> None:
    subject.by = step.event.by


def name_aggregate(subject: InputSubject, step: Tick[InputCoalesced]) -> None:
    subject.by = step.event.into


def name_reason(subject: InputSubject, step: Tick[InputAbandoned]) -> None:
    subject.reason = step.event.reason


def give_up(subject: InputSubject, step: Tick[Any]) -> None:
    subject.reason = AbandonReason.MAX_ATTEMPTS


_Guard = Callable[[InputSubject, Tick[Any]], bool]


def _refused(event: type[Any], source: State, guard: _Guard, requirement: str) -> Edge:
    return Edge(event, source, None, "nothing is changed", guard, (refuse(requirement),))


TABLE = (
    Edge(InputQueued, ACCEPTED, QUEUED, "it waits for a run", do=(enqueue,)),
    Edge(InputNoted, ACCEPTED, CONSUMED, "being on record is all it asked", do=(note,)),
    _refused(InputStaged, QUEUED, run_is_over, "the run is one of the runtime's"),
    _refused(InputStaged, QUEUED, in_no_lane, "a queued input is in a lane"),
    Edge(InputStaged, QUEUED, STAGED, "it is its turn", do=(stage,)),
    _refused(InputRolledBack, STAGED, another_run, "the run is the one it is bound to"),
    Edge(InputRolledBack, STAGED, ABANDONED, "it has had its attempts", exhausted, (unbind, give_up)),
    Edge(InputRolledBack, STAGED, QUEUED, "nothing was done, so it may be tried again", do=(requeue,)),
    _refused(StagingRefused, QUEUED, in_no_lane, "a queued input is in a lane"),
    Edge(StagingRefused, QUEUED, ABANDONED, "it has had its attempts", exhausted, (unbind, give_up)),
    Edge(StagingRefused, QUEUED, None, "it must not keep the others from running", do=(count_refusal, go_back)),
    _refused(InputDeferred, QUEUED, in_no_lane, "a queued input is in a lane"),
    Edge(InputDeferred, QUEUED, None, "others go first", do=(go_back,)),
    Edge(InputDeferred, _ENDED, None, "a batch may have ended in part"),
    _refused(InputApplied, STAGED, another_run, "the run is the one it is bound to"),
    Edge(InputApplied, STAGED, APPLIED, "its run has done it", do=(unbind,)),
    _refused(BoundaryRecorded, APPLIED, another_last_run, "the run is the one that applied it"),
    _refused(BoundaryRecorded, APPLIED, number_is_old, "a boundary's number is higher than those before"),
    Edge(BoundaryRecorded, APPLIED, PENDING, "the receipt can name it", do=(number,)),
    Edge(InputConsumed, PENDING, CONSUMED, "nothing is left to do"),
    Edge(
        InputSuperseded,
        (ACCEPTED, QUEUED, STAGED, APPLIED),
        SUPERSEDED,
        "only the newer lease counts",
        do=(unbind, name_successor),
    ),
    Edge(InputCoalesced, QUEUED, COALESCED, "only the latest counts", do=(unbind, name_aggregate)),
    _refused(InputAbandoned, STAGED, cancelled_past_its_run, "what a run has taken up is cancelled with the run"),
    Edge(
        InputAbandoned,
        (ACCEPTED, QUEUED, STAGED, APPLIED, PENDING),
        ABANDONED,
        "it is not wanted, or not safe to run again",
        do=(unbind, name_reason),
    ),
    Edge(InputRecovered, ACCEPTED, QUEUED, "it was on record before it was in a lane", do=(enqueue,)),
    _refused(InputRecovered, QUEUED, in_no_lane, "a queued input is in a lane"),
    Edge(InputRecovered, QUEUED, None, "it waits as before"),
    Edge(InputRecovered, STAGED, ABANDONED, "it has had its attempts", exhausted, (unbind, give_up)),
    Edge(InputRecovered, STAGED, QUEUED, "its run died with its process", do=(requeue,)),
    Edge(InputRecovered, (APPLIED, PENDING), CONSUMED, "the receipt says that it was done", has_receipt),
    Edge(InputRecovered, (APPLIED, PENDING), ABANDONED, "it has had its attempts", exhausted, (give_up,)),
    Edge(InputRecovered, (APPLIED, PENDING), QUEUED, "no receipt says that it was done", do=(requeue,)),
    Edge(InputRecovered, _ENDED, None, "it has ended"),
)

MACHINE = Lifecycle("input", InputPhase, TABLE, subject=InputSubject, initial=ACCEPTED, ends=_ENDED)


def invariants(subject: InputSubject) -> Iterator[str]:
    """What does not hold and should."""
    phase = subject.state
    if (phase is QUEUED) != (subject.lane is not None):
        yield f"{phase} in lane {subject.lane}"
    if (phase is STAGED) != (subject.run is not None):
        yield f"{phase} bound to {subject.run}"
    if subject.run is not None and subject.run != subject.last_run:
        yield f"bound to {subject.run} and last in {subject.last_run}"
    if phase is not ACCEPTED and phase not in _ENDED and (subject.sequence is None or subject.recovery_lane is None):
        yield f"{phase} without a place or a lane to come back to"
    if phase is PENDING and subject.boundary is None:
        yield "pending consumption without a boundary"
    if (phase in (SUPERSEDED, COALESCED)) != (subject.by is not None):
        yield f"{phase} by {subject.by}"
    if (phase is ABANDONED) != (subject.reason is not None):
        yield f"{phase} because of {subject.reason}"
    if subject.reason is AbandonReason.MAX_ATTEMPTS and subject.attempts < ATTEMPTS_MAX:
        yield f"given up after {subject.attempts} attempts"
