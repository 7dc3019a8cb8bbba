"""Input: which event leads where, what is refused and why, and all that can be reached."""

from __future__ import annotations

from typing import Any

import pytest

from posemesh.errors import IllegalTransition, OperationRefused
from posemesh.events import (
    AbandonReason,
    BoundaryRecorded,
    Event,
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
from posemesh.machines import input
from posemesh.machines._kernel import Tick
from posemesh.machines.input import ATTEMPTS_MAX, MACHINE, InputPhase, InputSubject, invariants

from .search import search

ACCEPTED, QUEUED, STAGED, APPLIED, PENDING, CONSUMED, SUPERSEDED, COALESCED, ABANDONED = InputPhase
RUNS = RunId("run-1"), RunId("run-2")
BOTH = frozenset(RUNS)
OTHERS = InputId("input-2"), InputId("input-3")
DEPTH = 16


def queued(lane: Lane = Lane.QUEUE, sequence: int = 1) -> InputQueued:
    return InputQueued(lane=lane, sequence=sequence)


def staged(run: RunId = RUNS[0]) -> InputStaged:
    return InputStaged(run=run, current=BOTH)


def recovered(receipt: bool = False) -> InputRecovered:
    return InputRecovered(receipt=receipt, lane=Lane.STEER, sequence=9)


def after(*events: Event, **data: Any) -> InputSubject:
    subject = InputSubject(**data)
    for event in events:
        MACHINE.fire(subject, Tick(event, 0.0))
        assert not list(invariants(subject))
    return subject


APPLY = (queued(), staged(), InputApplied(run=RUNS[0]))
BOUND = (*APPLY, BoundaryRecorded(run=RUNS[0], sequence=1))
TIRED = (queued(), *(event for run in (*RUNS, RUNS[0]) for event in (staged(run), InputRolledBack(run=run))))


def guard_of(subject: InputSubject, event: Event) -> str:
    with pytest.raises(OperationRefused) as refused:
        MACHINE.fire(subject, Tick(event, 0.0))
    assert refused.value.machine == "input" and refused.value.state == subject.state
    return refused.value.guard


def test_a_task_is_done() -> None:
    subject = after(*BOUND, InputConsumed())
    assert subject.state is CONSUMED
    assert (subject.last_run, subject.boundary, subject.attempts, subject.run) == (RUNS[0], 1, 1, None)


def test_what_only_asks_to_be_on_record_never_waits() -> None:
    subject = after(InputNoted(sequence=4))
    assert (subject.state, subject.sequence, subject.lane, subject.attempts) == (CONSUMED, 4, None, 0)


def test_staging_takes_it_from_its_lane_and_counts() -> None:
    subject = after(queued(Lane.STEER))
    assert (subject.lane, subject.recovery_lane) == (Lane.STEER, Lane.STEER)
    MACHINE.fire(subject, Tick(staged(), 0.0))
    assert (subject.lane, subject.run, subject.attempts) == (None, RUNS[0], 1)
    MACHINE.fire(subject, Tick(InputRolledBack(run=RUNS[0]), 0.0))
    assert (subject.lane, subject.run, subject.last_run, subject.sequence) == (Lane.STEER, None, RUNS[0], 1)


def test_the_run_it_was_in_does_not_keep_it_from_another() -> None:
    subject = after(queued(), staged(RUNS[0]), InputRolledBack(run=RUNS[0]), staged(RUNS[1]))
    assert (subject.run, subject.attempts) == (RUNS[1], 2)


def test_attempts_end() -> None:
    subject = after(*TIRED)
    assert (subject.state, subject.reason, subject.attempts) == (ABANDONED, AbandonReason.MAX_ATTEMPTS, ATTEMPTS_MAX)
    subject = after(queued(), *(StagingRefused(sequence=place) for place in (5, 6, 7, 8)))
    assert (subject.state, subject.reason) == (ABANDONED, AbandonReason.MAX_ATTEMPTS)


def test_a_refused_staging_goes_behind_what_waits() -> None:
    subject = after(queued(), StagingRefused(sequence=5))
    assert (subject.state, subject.attempts, subject.sequence) == (QUEUED, 1, 5)
    assert after(queued(), InputDeferred(sequence=7)).sequence == 7


def test_what_is_refused_names_what_has_to_hold() -> None:
    laneless = InputSubject(state=QUEUED, sequence=1)
    other = RUNS[1]
    assert guard_of(after(queued()), InputStaged(run=RUNS[0], current=frozenset())) == "the run is one of the runtime's"
    for event in (staged(), InputDeferred(sequence=2), StagingRefused(sequence=2), recovered()):
        assert guard_of(laneless, event) == "a queued input is in a lane"
    for event in (InputRolledBack(run=other), InputApplied(run=other)):
        assert guard_of(after(queued(), staged()), event) == "the run is the one it is bound to"
    assert guard_of(after(*APPLY), BoundaryRecorded(run=other, sequence=1)) == "the run is the one that applied it"
    assert "higher" in guard_of(after(*APPLY, boundary=4), BoundaryRecorded(run=RUNS[0], sequence=4))
    cancelled = InputAbandoned(reason=AbandonReason.CANCELLED)
    assert guard_of(after(queued(), staged()), cancelled) == "what a run has taken up is cancelled with the run"


def test_a_cancelled_run_cancels_its_inputs() -> None:
    subject = after(queued(), staged(), InputAbandoned(reason=AbandonReason.CANCELLED, run=RUNS[0]))
    assert (subject.state, subject.reason, subject.run) == (ABANDONED, AbandonReason.CANCELLED, None)


def test_deferring_what_has_ended_is_no_mistake() -> None:
    for ended in (after(*BOUND, InputConsumed()), after(*TIRED)):
        before = ended.sequence
        MACHINE.fire(ended, Tick(InputDeferred(sequence=99), 0.0))
        assert ended.sequence == before


@pytest.mark.parametrize(
    ("before", "receipt", "after_it"),
    [
        ((), False, QUEUED),
        ((queued(),), False, QUEUED),
        ((queued(), staged()), False, QUEUED),
        (TIRED[:-1], False, ABANDONED),
        (APPLY, False, QUEUED),
        (APPLY, True, CONSUMED),
        (BOUND, False, QUEUED),
        (BOUND, True, CONSUMED),
        ((*BOUND, InputConsumed()), False, CONSUMED),
        ((queued(), InputSuperseded(by=OTHERS[0])), False, SUPERSEDED),
        ((queued(), InputCoalesced(into=OTHERS[0])), False, COALESCED),
    ],
)
def test_recovery(before: tuple[Event, ...], receipt: bool, after_it: InputPhase) -> None:
    subject = after(*before)
    attempts = subject.attempts
    MACHINE.fire(subject, Tick(recovered(receipt), 0.0))
    assert (subject.state, subject.attempts) == (after_it, attempts)


def test_what_has_ended_stays_so() -> None:
    for event in EVENTS:
        for ended in (after(*BOUND, InputConsumed()), after(*TIRED)):
            if not isinstance(event, InputDeferred | InputRecovered):
                with pytest.raises(IllegalTransition, match="has no edge for"):
                    MACHINE.fire(ended, Tick(event, 0.0))


EVENTS: tuple[Event, ...] = (
    *(queued(lane) for lane in Lane),
    InputNoted(sequence=1),
    *(staged(run) for run in RUNS),
    InputStaged(run=RUNS[0], current=frozenset({RUNS[1]})),
    *(InputRolledBack(run=run) for run in RUNS),
    StagingRefused(sequence=2),
    InputDeferred(sequence=2),
    *(InputApplied(run=run) for run in RUNS),
    *(BoundaryRecorded(run=run, sequence=sequence) for run in RUNS for sequence in (1, 2)),
    InputConsumed(),
    *(InputSuperseded(by=by) for by in OTHERS),
    *(InputCoalesced(into=by) for by in OTHERS),
    *(InputAbandoned(reason=AbandonReason.CANCELLED, run=run) for run in (None, *RUNS)),
    *(InputAbandoned(reason=reason) for reason in AbandonReason if reason is not AbandonReason.MAX_ATTEMPTS),
    *(recovered(receipt) for receipt in (False, True)),
)


def looked_at(before: InputSubject, event: Event, now: InputSubject) -> None:
    assert now.attempts >= before.attempts, "an attempt is never taken back"
    assert now.attempts == before.attempts or isinstance(event, InputStaged | StagingRefused)
    assert (now.boundary or 0) >= (before.boundary or 0)
    if now.state is CONSUMED and before.state is not CONSUMED:
        assert isinstance(event, InputNoted) or before.boundary or (isinstance(event, InputRecovered) and event.receipt)


def test_all_that_can_be_reached() -> None:
    """Sixteen events deep, with two runs, two other inputs and two boundaries; and what no row may do does not happen.

    An input queued in no lane, as only a damaged row is, is a start of its own.
    """
    starts = (InputSubject(), InputSubject(state=QUEUED, sequence=1))
    found, untaken = search(input, starts, EVENTS, DEPTH, looked_at)
    assert not untaken
    assert found > 500


@pytest.mark.parametrize(
    "broken",
    [
        {"state": QUEUED, "sequence": 1, "recovery_lane": Lane.QUEUE},
        {"state": STAGED, "sequence": 1, "recovery_lane": Lane.QUEUE},
        {"state": STAGED, "sequence": 1, "recovery_lane": Lane.QUEUE, "run": RUNS[0], "last_run": RUNS[1]},
        {"state": QUEUED, "lane": Lane.QUEUE},
        {"state": PENDING, "sequence": 1, "recovery_lane": Lane.QUEUE},
        {"state": SUPERSEDED},
        {"state": ABANDONED},
        {"state": ABANDONED, "reason": AbandonReason.MAX_ATTEMPTS, "attempts": 2},
    ],
)
def test_what_never_holds_is_found(broken: dict[str, Any]) -> None:
    assert list(invariants(InputSubject(**broken)))
