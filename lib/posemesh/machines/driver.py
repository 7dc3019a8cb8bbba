"""Driver: one hosted runtime, from its creation to its end.

Rules:
1. It takes inputs while it is idle, attached or running. A retired one takes none and works off what it has, by runs
   that say that they drain it.
2. Running is left with the last run, for where the first one began. A runtime has as many runs at a time as it has
   slots; each ends by its own name and by one of four doors, so that what was cancelled is never taken for a retry.
3. A stop is asked for and later told of: the request moves nothing, the executor's exit does. An exit does not undo
   a retirement.
4. Stopped is left for good reason only: a new executor, a new registration, retirement, destruction, letting go.
5. Destroyed is for ever, also for the processes to come. So is retired, until a reset or recycling undoes it.
6. A process lets go in two steps. Between them nothing begins, runs that are in progress may still end, and three
   obligations are to close, each once.

Attached and Running hold only as long as their process and are never stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from posemesh.events.control import (
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
from posemesh.machines._kernel import Action, Edge, Guard, Lifecycle, State, Subject, Tick, refuse

__all__ = ("MACHINE", "STORED", "RuntimeState", "RuntimeSubject", "invariants")


class RuntimeState(State):
    INITIALIZING = "initializing", "Made, and not looked up yet."
    IDLE = "idle", "Registered; nothing is there to run inputs."
    ATTACHED = "attached", "What runs inputs is ready."
    RUNNING = "running", "At least one run is in progress."
    RETIRED = "retired", "It takes no new input and works off what it has."
    STOPPED = "stopped", "What ran inputs is gone."
    DESTROYED = "destroyed", "It is over for good."


INITIALIZING, IDLE, ATTACHED, RUNNING, RETIRED, STOPPED, DESTROYED = RuntimeState
_HELD = (IDLE, ATTACHED, RUNNING, RETIRED, STOPPED)

STORED = frozenset({IDLE, RETIRED, STOPPED, DESTROYED})
"""The states that are stored."""


@dataclass(eq=False, slots=True, kw_only=True)
class RuntimeSubject(Subject):
    """``bound`` where the ledger knows it; ``before`` is where Running goes back to; ``stopping`` since a stop was
    asked for. ``open`` are the obligations left while it is ``draining``; ``forced`` were cut short.
    """

    state: State = INITIALIZING
    slots: int = 1
    bound: bool = False
    epoch: str = ""
    runs: frozenset[RunId] = frozenset()
    before: State | None = None
    stopping: bool = False
    draining: bool = False
    open: frozenset[Obligation] = frozenset()
    forced: frozenset[Obligation] = field(default=frozenset())

    @property
    def stored(self) -> State:
        """The state as a process to come may find it."""
        state = self.before if self.state is RUNNING and self.before is not None else self.state
        return IDLE if state is ATTACHED else state


def was_destroyed(subject: RuntimeSubject, step: Tick[RuntimeInitialized]) -> bool:
    return step.event.destroyed


def was_retired(subject: RuntimeSubject, step: Tick[RuntimeInitialized]) -> bool:
    return step.event.retired


def draining(subject: RuntimeSubject, step: Tick[Any]) -> bool:
    return subject.draining


def not_draining(subject: RuntimeSubject, step: Tick[Any]) -> bool:
    return not subject.draining


def another_epoch(subject: RuntimeSubject, step: Tick[RuntimeRegistered | Unregistered]) -> bool:
    return step.event.epoch != subject.epoch


def no_epoch(subject: RuntimeSubject, step: Tick[Any]) -> bool:
    return not subject.epoch


def not_bound(subject: RuntimeSubject, step: Tick[Any]) -> bool:
    return not subject.bound


def in_progress(subject: RuntimeSubject, step: Tick[RunPrepared]) -> bool:
    return step.event.run in subject.runs


def no_slot(subject: RuntimeSubject, step: Tick[RunPrepared]) -> bool:
    return len(subject.runs) >= subject.slots


def drains_not(subject: RuntimeSubject, step: Tick[RunPrepared]) -> bool:
    return not step.event.drain


def retiring_and_drains_not(subject: RuntimeSubject, step: Tick[RunPrepared]) -> bool:
    return subject.before is RETIRED and not step.event.drain


def unknown_run(subject: RuntimeSubject, step: Tick[Any]) -> bool:
    return step.event.run not in subject.runs


def no_cause(subject: RuntimeSubject, step: Tick[RunFailed]) -> bool:
    return not step.event.cause


def others_go_on(subject: RuntimeSubject, step: Tick[Any]) -> bool:
    return len(subject.runs) > 1


def from_retired(subject: RuntimeSubject, step: Tick[Any]) -> bool:
    return subject.before is RETIRED


def from_attached(subject: RuntimeSubject, step: Tick[Any]) -> bool:
    return subject.before is ATTACHED


def closed_already(subject: RuntimeSubject, step: Tick[ObligationClosed]) -> bool:
    return step.event.obligation not in subject.open


def obligations_left(subject: RuntimeSubject, step: Tick[Any]) -> bool:
    return bool(subject.open)


def hold(subject: RuntimeSubject, step: Tick[RuntimeInitialized | RuntimeRegistered]) -> None:
    subject.epoch, subject.bound = step.event.epoch, True


def expect_executor(subject: RuntimeSubject, step: Tick[ExecutorAttached]) -> None:
    if subject.before is IDLE:
        subject.before = ATTACHED


def begin(subject: RuntimeSubject, step: Tick[RunPrepared]) -> None:
    subject.before = subject.before or subject.state
    subject.runs |= {step.event.run}


def end(subject: RuntimeSubject, step: Tick[Any]) -> None:
    subject.runs -= {step.event.run}
    if not subject.runs:
        subject.before = None


def drop_runs(subject: RuntimeSubject, step: Tick[Any]) -> None:
    subject.runs, subject.before = frozenset(), None


def retire(subject: RuntimeSubject, step: Tick[RuntimeRetired]) -> None:
    subject.before = RETIRED


def ask_stop(subject: RuntimeSubject, step: Tick[StopRequested]) -> None:
    subject.stopping = True


def forget_stop(subject: RuntimeSubject, step: Tick[Any]) -> None:
    subject.stopping = False


def open_obligations(subject: RuntimeSubject, step: Tick[UnregisterBegun]) -> None:
    subject.draining, subject.open, subject.forced = True, frozenset(Obligation), frozenset()


def close(subject: RuntimeSubject, step: Tick[ObligationClosed]) -> None:
    subject.open -= {step.event.obligation}
    if step.event.forced:
        subject.forced |= {step.event.obligation}


def let_go(subject: RuntimeSubject, step: Tick[Any]) -> None:
    subject.epoch, subject.draining, subject.open = "", False, frozenset()


def _refused(event: type[Any], sources: State | tuple[State, ...], guard: Guard, requirement: str) -> Edge:
    return Edge(event, sources, None, "nothing is changed", guard, (refuse(requirement),))


def _ends(event: type[Any], why: str, *refused: Edge, do: tuple[Action, ...] = ()) -> tuple[Edge, ...]:
    """The rows of one door out of a run."""
    return (
        _refused(event, RUNNING, unknown_run, "the run is in progress"),
        *refused,
        Edge(event, RUNNING, None, "other runs go on", others_go_on, (end,)),
        Edge(event, RUNNING, RETIRED, why, from_retired, (end, forget_stop)),
        Edge(event, RUNNING, ATTACHED, why, from_attached, (end,)),
        Edge(event, RUNNING, IDLE, why, do=(end, forget_stop)),
    )


_TAKES = (IDLE, ATTACHED, RUNNING)
_BEGINS = (IDLE, ATTACHED, RUNNING, RETIRED)

TABLE = (
    Edge(RuntimeInitialized, INITIALIZING, DESTROYED, "it was destroyed, and stays so", was_destroyed, (hold, let_go)),
    Edge(RuntimeInitialized, INITIALIZING, RETIRED, "it was to take nothing new, and still is", was_retired, (hold,)),
    Edge(RuntimeInitialized, INITIALIZING, IDLE, "what ran in the process before is gone", do=(hold,)),
    _refused(RuntimeRegistered, _HELD, obligations_left, "obligations of the process before are closed"),
    _refused(RuntimeRegistered, (IDLE, ATTACHED, RUNNING, RETIRED), another_epoch, "no other process holds it"),
    Edge(RuntimeRegistered, (IDLE, ATTACHED, RUNNING, RETIRED), None, "it is registered already"),
    Edge(RuntimeRegistered, STOPPED, IDLE, "a process takes it up again", do=(hold, forget_stop)),
    _refused(InputAccepted, _TAKES, draining, "its process is not letting go of it"),
    Edge(InputAccepted, _TAKES, None, "it takes inputs"),
    _refused(ExecutorAttached, STOPPED, no_epoch, "a process holds it"),
    Edge(ExecutorAttached, (IDLE, STOPPED), ATTACHED, "inputs can be run", do=(forget_stop,)),
    Edge(ExecutorAttached, (ATTACHED, RUNNING, RETIRED), None, "what it has can be run", do=(expect_executor,)),
    _refused(RunPrepared, _BEGINS, draining, "its process is not letting go of it"),
    Edge(RunPrepared, RUNNING, None, "it is in progress already", in_progress),
    _refused(RunPrepared, RUNNING, no_slot, "a slot is free"),
    _refused(RunPrepared, RUNNING, retiring_and_drains_not, "a retired runtime's run drains it"),
    _refused(RunPrepared, RETIRED, drains_not, "a retired runtime's run drains it"),
    Edge(RunPrepared, (IDLE, ATTACHED, RETIRED), RUNNING, "there is work", do=(begin,)),
    Edge(RunPrepared, RUNNING, None, "a slot is free", do=(begin,)),
    *_ends(RunCommitted, "its boundary is on record"),
    *_ends(RunFailed, "it failed", _refused(RunFailed, RUNNING, no_cause, "the cause of the failure is named")),
    *_ends(RunCancelled, "it was cancelled"),
    *_ends(RunRolledBack, "it is as if it had not begun"),
    Edge(RuntimeRetired, (IDLE, ATTACHED, STOPPED), RETIRED, "it is to take nothing new", do=(forget_stop,)),
    Edge(RuntimeRetired, RUNNING, None, "what runs may end; then it is retired", do=(retire,)),
    Edge(RuntimeRetired, RETIRED, None, "it is retired"),
    Edge(RuntimeReset, (INITIALIZING, IDLE, ATTACHED, RETIRED), IDLE, "it begins anew", do=(drop_runs, forget_stop)),
    _refused(RuntimeRecycled, (IDLE, ATTACHED, RETIRED), no_epoch, "a process holds it"),
    Edge(RuntimeRecycled, (IDLE, RETIRED), IDLE, "it goes on with what it has"),
    Edge(RuntimeRecycled, ATTACHED, None, "it goes on with what it has"),
    Edge(RuntimeRecovered, (INITIALIZING, IDLE, ATTACHED, RETIRED, STOPPED), None, "only its inputs are put in order"),
    Edge(StopRequested, (IDLE, RETIRED), None, "nothing is to be waited for; the exit will be told"),
    Edge(StopRequested, (ATTACHED, RUNNING), None, "the exit will be told", do=(ask_stop,)),
    Edge(
        ExecutorExited, RUNNING, RETIRED, "an exit does not undo a retirement", from_retired, (drop_runs, forget_stop)
    ),
    Edge(ExecutorExited, (IDLE, ATTACHED, RUNNING), STOPPED, "nothing runs any more", do=(drop_runs, forget_stop)),
    Edge(ExecutorExited, RETIRED, None, "an exit does not undo a retirement"),
    Edge(ExecutorExited, STOPPED, None, "it is stopped"),
    _refused(RuntimeDestroyed, INITIALIZING, not_bound, "the ledger knows it"),
    Edge(
        RuntimeDestroyed,
        (INITIALIZING, *_HELD),
        DESTROYED,
        "nothing of it is wanted any more",
        do=(drop_runs, forget_stop, let_go),
    ),
    Edge(RuntimeEventPublished, _HELD, None, "events are told, and change nothing of it"),
    _refused(UnregisterBegun, _HELD, draining, "its process is not letting go of it already"),
    Edge(UnregisterBegun, _HELD, None, "what it owes is to end first", do=(open_obligations,)),
    _refused(ObligationClosed, _HELD, not_draining, "its process is letting go of it"),
    _refused(ObligationClosed, _HELD, closed_already, "an obligation is closed once"),
    Edge(ObligationClosed, _HELD, None, "one less", do=(close,)),
    _refused(Unregistered, (IDLE, ATTACHED, RETIRED, STOPPED), not_draining, "its process is letting go of it"),
    _refused(Unregistered, (IDLE, ATTACHED, RETIRED, STOPPED), obligations_left, "all its obligations are closed"),
    _refused(Unregistered, (IDLE, ATTACHED, RETIRED, STOPPED), another_epoch, "the process holds it"),
    Edge(Unregistered, (IDLE, ATTACHED, RETIRED, STOPPED), IDLE, "nobody holds it", do=(let_go, forget_stop)),
)

MACHINE = Lifecycle("driver", RuntimeState, TABLE, subject=RuntimeSubject, initial=INITIALIZING, ends=(DESTROYED,))


def invariants(subject: RuntimeSubject) -> Iterator[str]:
    """What does not hold and should."""
    if (subject.state is RUNNING) != bool(subject.runs):
        yield f"{subject.state} with the runs {sorted(subject.runs)}"
    if bool(subject.runs) != (subject.before is not None):
        yield f"the runs {sorted(subject.runs)} came from {subject.before}"
    if subject.before not in (None, IDLE, ATTACHED, RETIRED):
        yield f"running came from {subject.before}"
    if len(subject.runs) > subject.slots:
        yield f"{len(subject.runs)} runs in {subject.slots} slots"
    if subject.stopping and subject.state not in (RUNNING, ATTACHED):
        yield f"{subject.state} and to be stopped"
    if subject.open and not subject.draining:
        yield "obligations of a process that does not let go"
    if subject.epoch and not subject.bound:
        yield "held, and the ledger does not know it"
    if subject.state is DESTROYED and (subject.epoch or subject.draining):
        yield "destroyed and held"
    if subject.stored not in STORED | {INITIALIZING}:
        yield f"stored as {subject.stored}"
