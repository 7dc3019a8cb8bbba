"""Driver: the table of operations and states, what is refused and why, and all that can be reached."""

from __future__ import annotations

from typing import Any

import pytest

from posemesh.errors import IllegalTransition, OperationRefused
from posemesh.events import (
    Event,
    ExecutorAttached,
    ExecutorExited,
    InputAccepted,
    Obligation,
    ObligationClosed,
    RunCancelled,
    RunCommitted,
    RunFailed,
    RunId,
    RunPrepared,
    RunRolledBack,
    RuntimeDestroyed,
    RuntimeEventPublished,
    RuntimeInitialized,
    RuntimeRecovered,
    RuntimeRecycled,
    RuntimeRegistered,
    RuntimeReset,
    RuntimeRetired,
    StopRequested,
    UnregisterBegun,
    Unregistered,
)
from posemesh.machines import driver
from posemesh.machines._kernel import Tick
from posemesh.machines.driver import MACHINE, STORED, RuntimeState, RuntimeSubject, invariants

from .search import search

INITIALIZING, IDLE, ATTACHED, RUNNING, RETIRED, STOPPED, DESTROYED = RuntimeState
RUNS = RunId("run-1"), RunId("run-2")
EPOCHS = "epoch-1", "epoch-2"
DEPTH = 12
DOORS: tuple[Event, ...] = (
    RunCommitted(run=RUNS[0]),
    RunFailed(run=RUNS[0], cause="runner_error"),
    RunCancelled(run=RUNS[0]),
    RunRolledBack(run=RUNS[0]),
)


def after(*events: Event, **data: Any) -> RuntimeSubject:
    subject = RuntimeSubject(**data)
    for event in events:
        MACHINE.fire(subject, Tick(event, 0.0))
        assert not list(invariants(subject))
    return subject


IN = RuntimeInitialized(epoch=EPOCHS[0])
RUN, DRAIN = RunPrepared(run=RUNS[0]), RunPrepared(run=RUNS[0], drain=True)
REACH: dict[RuntimeState, tuple[Event, ...]] = {
    INITIALIZING: (),
    IDLE: (IN,),
    ATTACHED: (IN, ExecutorAttached()),
    RUNNING: (IN, ExecutorAttached(), RUN),
    RETIRED: (IN, RuntimeRetired()),
    STOPPED: (IN, ExecutorExited()),
    DESTROYED: (IN, RuntimeDestroyed()),
}
NO = None
SAME = EPOCHS[0]
# What each operation makes of Initializing, Idle, Attached, Running, Retired, Stopped and Destroyed; NO: it is refused.
OPERATIONS: tuple[tuple[Event, tuple[RuntimeState | None, ...]], ...] = (
    (InputAccepted(), (NO, IDLE, ATTACHED, RUNNING, NO, NO, NO)),
    (ExecutorAttached(), (NO, ATTACHED, ATTACHED, RUNNING, RETIRED, ATTACHED, NO)),
    (RUN, (NO, RUNNING, RUNNING, RUNNING, NO, NO, NO)),
    (DRAIN, (NO, RUNNING, RUNNING, RUNNING, RUNNING, NO, NO)),
    *((door, (NO, NO, NO, ATTACHED, NO, NO, NO)) for door in DOORS),
    (RuntimeRetired(), (NO, RETIRED, RETIRED, RUNNING, RETIRED, RETIRED, NO)),
    (RuntimeReset(), (IDLE, IDLE, IDLE, NO, IDLE, NO, NO)),
    (RuntimeRecycled(), (NO, IDLE, ATTACHED, NO, IDLE, NO, NO)),
    (RuntimeRecovered(), (INITIALIZING, IDLE, ATTACHED, NO, RETIRED, STOPPED, NO)),
    (StopRequested(), (NO, IDLE, ATTACHED, RUNNING, RETIRED, NO, NO)),
    (ExecutorExited(), (NO, STOPPED, STOPPED, STOPPED, RETIRED, STOPPED, NO)),
    (RuntimeDestroyed(), (NO, DESTROYED, DESTROYED, DESTROYED, DESTROYED, DESTROYED, NO)),
    (RuntimeRegistered(epoch=SAME), (NO, IDLE, ATTACHED, RUNNING, RETIRED, IDLE, NO)),
    (RuntimeRegistered(epoch=EPOCHS[1]), (NO, NO, NO, NO, NO, IDLE, NO)),
    (UnregisterBegun(), (NO, IDLE, ATTACHED, RUNNING, RETIRED, STOPPED, NO)),
    (RuntimeEventPublished(), (NO, IDLE, ATTACHED, RUNNING, RETIRED, STOPPED, NO)),
    (IN, (IDLE, NO, NO, NO, NO, NO, NO)),
)


def made_of(subject: RuntimeSubject, event: Event) -> Any:
    try:
        MACHINE.fire(subject, Tick(event, 0.0))
    except IllegalTransition as error:
        assert (error.machine, error.state, error.trigger) == ("driver", subject.state, type(event).__name__)
        return NO
    assert not list(invariants(subject))
    return subject.state


@pytest.mark.parametrize(
    ("event", "row"), OPERATIONS, ids=lambda value: type(value).__name__ if isinstance(value, Event) else ""
)
def test_the_table_of_operations_and_states(event: Event, row: tuple[RuntimeState | None, ...]) -> None:
    assert tuple(REACH) == tuple(RuntimeState)
    assert tuple(made_of(after(*events), event) for events in REACH.values()) == row


def guard_of(subject: RuntimeSubject, event: Event) -> str:
    with pytest.raises(OperationRefused) as refused:
        MACHINE.fire(subject, Tick(event, 0.0))
    return refused.value.guard


def test_what_is_refused_names_what_has_to_hold() -> None:
    running, retired, letting_go = after(*REACH[RUNNING]), after(*REACH[RETIRED]), after(IN, UnregisterBegun())
    unheld = after(RuntimeReset())
    for door in (RunCommitted, RunCancelled, RunRolledBack):
        assert guard_of(running, door(run=RUNS[1])) == "the run is in progress"
    assert guard_of(running, RunFailed(run=RUNS[1], cause="x")) == "the run is in progress"
    assert guard_of(running, RunFailed(run=RUNS[0], cause="")) == "the cause of the failure is named"
    assert guard_of(running, RunPrepared(run=RUNS[1])) == "a slot is free"
    assert guard_of(retired, RUN) == "a retired runtime's run drains it"
    assert guard_of(unheld, RuntimeRecycled()) == "a process holds it"
    assert guard_of(RuntimeSubject(), RuntimeDestroyed()) == "the ledger knows it"
    assert guard_of(after(IN), RuntimeRegistered(epoch=EPOCHS[1])) == "no other process holds it"
    for event in (InputAccepted(), RUN):
        assert guard_of(letting_go, event) == "its process is not letting go of it"
    assert guard_of(letting_go, RuntimeRegistered(epoch=SAME)) == "obligations of the process before are closed"


def test_a_runtime_that_the_ledger_knows_is_destroyed_before_it_is_looked_up() -> None:
    assert made_of(RuntimeSubject(bound=True), RuntimeDestroyed()) is DESTROYED


@pytest.mark.parametrize(
    ("found", "state"), [({}, IDLE), ({"retired": True}, RETIRED), ({"destroyed": True}, DESTROYED)]
)
def test_what_a_process_before_left(found: dict[str, bool], state: RuntimeState) -> None:
    assert made_of(RuntimeSubject(), RuntimeInitialized(epoch=SAME, **found)) is state


@pytest.mark.parametrize("door", DOORS, ids=lambda door: type(door).__name__)
def test_a_run_ends_where_it_began(door: Event) -> None:
    assert made_of(after(IN, RUN), door) is IDLE
    assert made_of(after(IN, RUN, ExecutorAttached()), door) is ATTACHED
    assert made_of(after(IN, RuntimeRetired(), DRAIN), door) is RETIRED
    assert made_of(after(*REACH[RUNNING], RuntimeRetired()), door) is RETIRED


def test_as_many_runs_as_slots() -> None:
    subject = after(*REACH[RUNNING], RunPrepared(run=RUNS[1]), slots=2)
    assert subject.runs == frozenset(RUNS)
    assert made_of(subject, DOORS[0]) is RUNNING and subject.runs == {RUNS[1]}
    assert made_of(subject, RUN) is RUNNING
    MACHINE.fire(subject, Tick(RuntimeRetired(), 0.0))
    MACHINE.fire(subject, Tick(RunCommitted(run=RUNS[0]), 0.0))
    assert guard_of(subject, RUN) == "a retired runtime's run drains it"
    assert made_of(subject, DRAIN) is RUNNING


def test_what_is_stored() -> None:
    stored = {state: after(*events).stored for state, events in REACH.items()}
    assert stored == {
        INITIALIZING: INITIALIZING,
        IDLE: IDLE,
        ATTACHED: IDLE,
        RUNNING: IDLE,
        RETIRED: RETIRED,
        STOPPED: STOPPED,
        DESTROYED: DESTROYED,
    }
    assert after(*REACH[RUNNING], RuntimeRetired()).stored is RETIRED
    assert set(stored.values()) - {INITIALIZING} == STORED


def test_an_exit_does_not_undo_a_retirement() -> None:
    assert made_of(after(*REACH[RUNNING], RuntimeRetired()), ExecutorExited()) is RETIRED
    assert made_of(after(*REACH[RETIRED]), ExecutorExited()) is RETIRED


EXITS = {
    INITIALIZING: {IDLE, RETIRED, DESTROYED},
    IDLE: {ATTACHED, RUNNING, RETIRED, STOPPED, DESTROYED},
    ATTACHED: {IDLE, RUNNING, RETIRED, STOPPED, DESTROYED},
    RUNNING: {IDLE, ATTACHED, RETIRED, STOPPED, DESTROYED},
    RETIRED: {IDLE, RUNNING, DESTROYED},
    STOPPED: {IDLE, ATTACHED, RETIRED, DESTROYED},
    DESTROYED: set(),
}


def test_the_ways_out_of_each_state_are_these() -> None:
    found = {
        state: {e.dest for e in MACHINE.table if state in e.sources and e.dest not in (None, state)}
        for state in RuntimeState
    }
    assert found == EXITS
    assert {e.event for e in MACHINE.table if STOPPED in e.sources and e.dest not in (None, STOPPED)} == {
        ExecutorAttached,
        RuntimeRegistered,
        RuntimeRetired,
        RuntimeDestroyed,
        Unregistered,
    }


def test_a_process_lets_go_in_two_steps() -> None:
    subject = after(*REACH[RUNNING], UnregisterBegun())
    assert guard_of(subject, UnregisterBegun()) == "its process is not letting go of it already"
    assert made_of(subject, DOORS[0]) is ATTACHED, "what was under way may still end"
    assert guard_of(subject, Unregistered(epoch=SAME)) == "all its obligations are closed"
    for obligation in Obligation:
        MACHINE.fire(subject, Tick(ObligationClosed(obligation=obligation, forced=obligation is Obligation.LOOP), 0.0))
        assert guard_of(subject, ObligationClosed(obligation=obligation)) == "an obligation is closed once"
    assert guard_of(subject, Unregistered(epoch=EPOCHS[1])) == "the process holds it"
    assert made_of(subject, Unregistered(epoch=SAME)) is IDLE
    assert (subject.epoch, subject.forced, subject.draining) == ("", {Obligation.LOOP}, False)
    assert guard_of(subject, ObligationClosed(obligation=Obligation.LOOP)) == "its process is letting go of it"
    assert guard_of(subject, Unregistered(epoch=SAME)) == "its process is letting go of it"


EVENTS: tuple[Event, ...] = (
    *(RuntimeInitialized(epoch=epoch) for epoch in EPOCHS),
    RuntimeInitialized(epoch=SAME, retired=True),
    RuntimeInitialized(epoch=SAME, destroyed=True),
    *(RuntimeRegistered(epoch=epoch) for epoch in EPOCHS),
    InputAccepted(),
    ExecutorAttached(),
    ExecutorExited(),
    StopRequested(),
    *(RunPrepared(run=run, drain=drain) for run in RUNS for drain in (False, True)),
    *(kind(run=run) for run in RUNS for kind in (RunCommitted, RunCancelled, RunRolledBack)),
    *(RunFailed(run=run, cause=cause) for run in RUNS for cause in ("", "runner_error")),
    RuntimeRetired(),
    RuntimeReset(),
    RuntimeRecycled(),
    RuntimeRecovered(),
    RuntimeDestroyed(),
    RuntimeEventPublished(),
    UnregisterBegun(),
    *(ObligationClosed(obligation=obligation, forced=obligation is Obligation.LOOP) for obligation in Obligation),
    *(Unregistered(epoch=epoch) for epoch in EPOCHS),
)


def looked_at(before: RuntimeSubject, event: Event, now: RuntimeSubject) -> None:
    begun = now.runs - before.runs
    assert not begun or (isinstance(event, RunPrepared) and begun == {event.run} and not before.draining)
    if before.stored is RETIRED and now.stored is not RETIRED:
        assert isinstance(event, RuntimeReset | RuntimeRecycled | RuntimeDestroyed | Unregistered)
    if before.epoch and now.epoch not in ("", before.epoch):
        assert before.state is STOPPED


def test_all_that_can_be_reached() -> None:
    """Twelve events deep, with one slot and with two, two runs, two epochs and every obligation."""
    starts = [RuntimeSubject(slots=slots, bound=bound) for slots in (1, 2) for bound in (False, True)]
    found, untaken = search(driver, starts, EVENTS, DEPTH, looked_at)
    assert not untaken
    assert found > 1_000


@pytest.mark.parametrize(
    "broken",
    [
        {"state": RUNNING},
        {"state": RUNNING, "runs": frozenset(RUNS[:1])},
        {"state": RUNNING, "runs": frozenset(RUNS[:1]), "before": STOPPED},
        {"state": RUNNING, "runs": frozenset(RUNS), "before": IDLE},
        {"state": IDLE, "stopping": True},
        {"state": IDLE, "open": frozenset(Obligation)},
        {"state": IDLE, "epoch": SAME},
        {"state": DESTROYED, "draining": True},
        {"state": RUNNING, "runs": frozenset(RUNS[:1]), "before": RUNNING},
    ],
)
def test_what_never_holds_is_found(broken: dict[str, Any]) -> None:
    assert list(invariants(RuntimeSubject(**broken)))
