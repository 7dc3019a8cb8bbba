"""Lease: one leased task, from the offer to the commit of its outcome.

Rules:
1. User code starts once the acceptance is committed and the first heartbeat was answered, failed, or took its second;
   by then the lease's terms are as the service last gave them.
2. Every accepted lease has exactly one outcome, and every outcome is committed before anything is reported. The slot is
   free then, but for rule 5.
3. User code that was told to stop may still finish. Its result counts unless the service has taken the task away: it
   cancelled it, or answered that the lease is gone. A lease that merely ran out here may still stand there, so a
   finished result is offered.
4. What ends after its timeout has failed by it, however it ends.
5. A task whose code goes on after its timeout is reported failed all the same, for another node to take; its slot stays
   occupied until that code ends or the node leaves.

Unusual edges: a stop that comes while the acceptance is being committed is noted and acted on when the commit is
answered, so that two commits are never in flight. A lease that cannot be read goes straight to its outcome, a failure
that names the reason; one whose result is there from an earlier lease, to that result. A lease that a node before this
one took is only found: its task runs again once the service has said that the lease stands.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from posemesh.commands import (
    Command,
    CommitAccepted,
    CommitOutcome,
    StartRunner,
    StopReason,
    StopRunner,
    UpdateLease,
    Warn,
)
from posemesh.events import (
    CommitDue,
    CommitFailed,
    Committed,
    Event,
    HeartbeatAccepted,
    KeepAliveSettled,
    LeaseCancelled,
    LeaseLost,
    LeaseOffered,
    LeaseRecovered,
    LeaseUnreadable,
    NodeStopping,
    OutcomeRecovered,
    RoomDenied,
    RoomFound,
    RunnerAbandoned,
    RunnerFailed,
    RunnerFinished,
    RunnerOverdue,
    StopOverdue,
)
from posemesh.machines._kernel import Edge, Lifecycle, Step
from posemesh.machines.lease.record import HOLDING, Lease, LeaseState
from posemesh.outcomes import FailureCode
from posemesh.policy import STOP_GRACE_SECS, offer_delay
from posemesh.terms import merge, missing
from posemesh.types import Outcome, OutcomeKind, TaskIdentity
from posemesh.verdict import failed, identity, no_runner, stopped

__all__ = ("HOLDING", "MACHINE", "Lease", "LeaseState", "invariants")

OFFERED, FOUND, ACCEPTED, PREPARING, QUEUED, RUNNING, STOPPING, UNSTOPPABLE, FINISHING, *ENDS = LeaseState
SETTLED, CANCELLED, LOST = ENDS


def cancelled(lease: Lease, step: Step[LeaseOffered]) -> bool:
    return step.event.envelope.cancel


def has_result(lease: Lease, step: Step[LeaseOffered]) -> bool:
    return step.event.standing is not None


def refused(lease: Lease, step: Step[LeaseRecovered]) -> bool:
    return bool(step.event.code)


def says_cancel(lease: Lease, step: Step[HeartbeatAccepted]) -> bool:
    return step.event.answer.cancels


def unrunnable(lease: Lease, step: Step[LeaseOffered]) -> bool:
    return bool(step.event.problem) or step.event.envelope.task.capability not in step.capabilities


def told_to_stop(lease: Lease, step: Step[Event]) -> bool:
    return lease.stop is not None


def unpreparable(lease: Lease, step: Step[Event]) -> bool:
    return (lease.settled or isinstance(step.event, KeepAliveSettled)) and missing(lease.envelope) is not None


def settled(lease: Lease, step: Step[Event]) -> bool:
    return lease.settled


def no_room(lease: Lease, step: Step[Event]) -> bool:
    return not step.has_room(lease.key)


def settled_no_room(lease: Lease, step: Step[Event]) -> bool:
    return lease.settled and no_room(lease, step)


def taken_away(lease: Lease, step: Step[Event]) -> bool:
    return lease.stop in (StopReason.LOST, StopReason.CANCELLED)


def late(lease: Lease, step: Step[Event]) -> bool:
    past = lease.stop is StopReason.TIMEOUT or lease.timers.get(RunnerOverdue, step.now + 1) <= step.now
    return past and not taken_away(lease, step)


def unwanted(lease: Lease, step: Step[RunnerFinished]) -> bool:
    return taken_away(lease, step) or late(lease, step)


def ends_cancelled(lease: Lease, step: Step[Committed]) -> bool:
    return lease.outcome is not None and lease.outcome.kind is OutcomeKind.CANCELLED


def ends_lost(lease: Lease, step: Step[Committed]) -> bool:
    return lease.outcome is not None and lease.outcome.kind is OutcomeKind.LOST


def take_terms(lease: Lease, step: Step[LeaseOffered | LeaseRecovered]) -> None:
    lease.envelope, lease.ttl = step.event.envelope, step.event.ttl
    lease.runner, lease.timeout = step.event.runner, step.event.timeout
    lease.task = identity(step.event.envelope)


def accept(lease: Lease, step: Step[Event]) -> Command:
    assert lease.envelope is not None
    return CommitAccepted(lease=lease.key, envelope=lease.envelope)


def take_result(lease: Lease, step: Step[LeaseOffered]) -> Command:
    assert step.event.standing is not None
    return _conclude(lease, replace(step.event.standing, task=lease.task))


def take_outcome(lease: Lease, step: Step[OutcomeRecovered]) -> None:
    lease.outcome, lease.task, lease.recovered = step.event.outcome, step.event.outcome.task, True


def fail_recovered(lease: Lease, step: Step[LeaseRecovered]) -> Command:
    return _conclude(lease, failed(lease.task, step.event.code, step.event.problem))


def fail_unreadable(lease: Lease, step: Step[LeaseUnreadable]) -> Command:
    lease.task = TaskIdentity(task_id=step.event.task_id)
    return _fail(lease, FailureCode.BAD_INPUT, f"lease cannot be decoded: {step.event.problem}")


def fail_no_runner(lease: Lease, step: Step[LeaseOffered]) -> Command:
    return _conclude(lease, no_runner(lease.task, step.capabilities, step.event.problem))


def fail_no_room(lease: Lease, step: Step[RoomDenied]) -> Command:
    problem = "what it needs is held by user code that was told to stop and goes on"
    return _conclude(lease, no_runner(lease.task, step.capabilities, problem))


def end_cancelled(lease: Lease, step: Step[LeaseOffered]) -> Command:
    return _conclude(lease, Outcome(kind=OutcomeKind.CANCELLED, task=lease.task))


def fail_setup(lease: Lease, step: Step[Event]) -> Command:
    return _fail(lease, FailureCode.SETUP_FAILED, missing(lease.envelope) or "")


def fail_commit(lease: Lease, step: Step[CommitFailed]) -> Command:
    return _fail(lease, FailureCode.SETUP_FAILED, f"the acceptance could not be recorded: {step.event.problem}")


def merge_terms(lease: Lease, step: Step[HeartbeatAccepted]) -> None:
    if lease.envelope is not None:
        known, lease.envelope = lease.envelope.domain_id, merge(lease.envelope, step.event.answer)
        if lease.envelope.domain_id != known:
            lease.task = replace(lease.task, domain_id=str(lease.envelope.domain_id))


def rotate_token(lease: Lease, step: Step[HeartbeatAccepted]) -> Command | None:
    answer = step.event.answer
    if lease.envelope is None or answer.access_token is None:
        return None
    lease.envelope = replace(
        lease.envelope, access_token=answer.access_token, access_token_expires_at=answer.access_token_expires_at
    )
    return UpdateLease(lease=lease.key, envelope=lease.envelope)


def note_settled(lease: Lease, step: Step[KeepAliveSettled]) -> None:
    lease.settled = True


def start(lease: Lease, step: Step[Event]) -> Command:
    assert lease.envelope is not None
    lease.ran = True
    if lease.timeout is not None:
        lease.arm(RunnerOverdue, step.now + lease.timeout)
    return StartRunner(lease=lease.key, envelope=lease.envelope, runner=lease.runner)


def note_stop(lease: Lease, step: Step[LeaseCancelled | LeaseLost | NodeStopping | RunnerOverdue]) -> None:
    expired = isinstance(step.event, LeaseLost) and step.event.expired
    reason = StopReason.EXPIRED if expired else _REASONS[type(step.event)]
    if reason.outweighs(lease.stop):
        lease.stop = reason


def stop_runner(lease: Lease, step: Step[Event]) -> Command:
    assert lease.stop is not None
    lease.arm(StopOverdue, step.now + STOP_GRACE_SECS)
    return StopRunner(lease=lease.key, reason=lease.stop)


def complete(lease: Lease, step: Step[RunnerFinished]) -> Command:
    return _conclude(lease, Outcome(kind=OutcomeKind.COMPLETED, task=lease.task, artifacts=step.event.artifacts))


def fail(lease: Lease, step: Step[RunnerFailed]) -> Command:
    event = step.event
    return _conclude(lease, failed(lease.task, event.code, event.message, event.artifacts, event.details))


def end_stopped(lease: Lease, step: Step[Event]) -> Command:
    """The outcome of a task that was told to stop and has no result to keep."""
    artifacts = step.event.artifacts if isinstance(step.event, RunnerFinished | RunnerFailed) else ()
    details = step.event.details if isinstance(step.event, RunnerFailed) else None
    if late(lease, step):
        lease.stop = StopReason.TIMEOUT
    return _conclude(lease, stopped(lease.task, lease.stop, lease.timeout, artifacts, details))


def give_up(lease: Lease, step: Step[RunnerOverdue | StopOverdue]) -> Command:
    lease.occupied = True
    return end_stopped(lease, step)


def vacate(lease: Lease, step: Step[Event]) -> None:
    lease.occupied = False


def _fail(lease: Lease, code: FailureCode, message: str) -> Command:
    return _conclude(lease, failed(lease.task, code, message))


def _conclude(lease: Lease, outcome: Outcome) -> Command:
    lease.disarm(StopOverdue, RunnerOverdue)
    lease.outcome = outcome
    return CommitOutcome(lease=lease.key, outcome=outcome)


def commit_again(lease: Lease, step: Step[CommitDue]) -> Command:
    assert lease.outcome is not None
    return CommitOutcome(lease=lease.key, outcome=lease.outcome)


def commit_later(lease: Lease, step: Step[CommitFailed]) -> Command:
    lease.commits += 1
    wait = offer_delay(lease.commits, None, step.rng)
    lease.arm(CommitDue, step.now + wait)
    problem = f"its outcome could not be recorded ({step.event.problem}); again in {wait:.0f} s"
    return Warn(message=f"task {lease.task.task_id}: {problem}")


def warn(lease: Lease, step: Step[StopOverdue]) -> Command:
    return Warn(
        message=f"task {lease.task.task_id}: its runner was told to stop ({lease.stop}) and goes on; it keeps its slot"
    )


_REASONS = {
    LeaseCancelled: StopReason.CANCELLED,
    LeaseLost: StopReason.LOST,
    NodeStopping: StopReason.SHUTDOWN,
    RunnerOverdue: StopReason.TIMEOUT,
}
_STOPS = (LeaseCancelled, LeaseLost, NodeStopping)
_RUNNER_ENDS = (RunnerFinished, RunnerFailed)
_TOLD = (STOPPING, UNSTOPPABLE)
_RUNS = (RUNNING, *_TOLD)
_READY = (ACCEPTED, PREPARING, QUEUED)
_UNBEGUN = (FOUND, PREPARING, QUEUED)
_OVER = (FINISHING, SETTLED, CANCELLED, LOST)

TABLE = (
    Edge(LeaseOffered, OFFERED, FINISHING, "cancelled before it arrived", cancelled, (take_terms, end_cancelled)),
    Edge(LeaseOffered, OFFERED, FINISHING, "its result is there already", has_result, (take_terms, take_result)),
    Edge(LeaseOffered, OFFERED, FINISHING, "another node may run it", unrunnable, (take_terms, fail_no_runner)),
    Edge(LeaseOffered, OFFERED, ACCEPTED, "a runner for it is here", do=(take_terms, accept)),
    Edge(LeaseUnreadable, OFFERED, FINISHING, "its task is named, so it can be given back", do=(fail_unreadable,)),
    Edge(OutcomeRecovered, OFFERED, SETTLED, "it was committed before the node ended", do=(take_outcome,)),
    Edge(LeaseRecovered, OFFERED, FINISHING, "it must not run again", refused, (take_terms, fail_recovered)),
    Edge(LeaseRecovered, OFFERED, FOUND, "it may run again where its lease stands", do=(take_terms,)),
    Edge(HeartbeatAccepted, FOUND, None, "it stands, to be cancelled", says_cancel),
    Edge(HeartbeatAccepted, FOUND, ACCEPTED, "the service says that it stands", do=(merge_terms, accept)),
    Edge(Committed, ACCEPTED, FINISHING, "it was to stop before it began", told_to_stop, (end_stopped,)),
    Edge(Committed, ACCEPTED, FINISHING, "its terms lack what a task needs", unpreparable, (fail_setup,)),
    Edge(Committed, ACCEPTED, QUEUED, "what its runner needs is taken", settled_no_room),
    Edge(Committed, ACCEPTED, RUNNING, "the first heartbeat is settled as well", settled, (start,)),
    Edge(Committed, ACCEPTED, PREPARING, "the first heartbeat may still change the terms, or cancel"),
    Edge(CommitFailed, ACCEPTED, FINISHING, "it was to stop before it began", told_to_stop, (end_stopped,)),
    Edge(CommitFailed, ACCEPTED, FINISHING, "work that is not on record is not begun", do=(fail_commit,)),
    Edge(KeepAliveSettled, ACCEPTED, None, "user code waits for the commit", do=(note_settled,)),
    Edge(KeepAliveSettled, PREPARING, FINISHING, "its terms lack what a task needs", unpreparable, (fail_setup,)),
    Edge(KeepAliveSettled, PREPARING, QUEUED, "what its runner needs is taken", no_room, (note_settled,)),
    Edge(KeepAliveSettled, PREPARING, RUNNING, "all is ready", do=(note_settled, start)),
    Edge(RoomFound, QUEUED, RUNNING, "it is its turn", do=(start,)),
    Edge(RoomDenied, QUEUED, FINISHING, "it could wait for ever; another node may run it", do=(fail_no_room,)),
    Edge(HeartbeatAccepted, _READY, None, "user code begins with the terms as last given", do=(merge_terms,)),
    Edge(HeartbeatAccepted, _RUNS, None, "the next storage request uses the new token", do=(rotate_token,)),
    Edge(HeartbeatAccepted, _OVER, None, "the task needs no terms any more"),
    *(Edge(stop, ACCEPTED, None, "acted on when the commit is answered", do=(note_stop,)) for stop in _STOPS),
    *(Edge(stop, _UNBEGUN, FINISHING, "user code need not begin", do=(note_stop, end_stopped)) for stop in _STOPS),
    *(
        Edge(stop, RUNNING, STOPPING, "going on is of no use, or not allowed", do=(note_stop, stop_runner))
        for stop in _STOPS
    ),
    Edge(RunnerOverdue, RUNNING, STOPPING, "it has had its time", do=(note_stop, stop_runner)),
    Edge(RunnerOverdue, STOPPING, None, "how it ends matters less than that it is late", do=(note_stop,)),
    Edge(RunnerOverdue, UNSTOPPABLE, None, "the service took the task away; there is nothing to report", taken_away),
    Edge(RunnerOverdue, UNSTOPPABLE, FINISHING, "it has failed, whatever its code does", do=(note_stop, give_up)),
    *(
        Edge(stop, _TOLD, None, "the reason decides what becomes of a result", do=(note_stop,))
        for stop in (LeaseCancelled, LeaseLost)
    ),
    Edge(RunnerFinished, RUNNING, FINISHING, "it took too long, and nobody looked", late, (end_stopped,)),
    Edge(RunnerFinished, RUNNING, FINISHING, "the result is kept before anybody hears of it", do=(complete,)),
    Edge(RunnerFailed, RUNNING, FINISHING, "it took too long, and nobody looked", late, (end_stopped,)),
    Edge(RunnerFailed, RUNNING, FINISHING, "the failure is kept before anybody hears of it", do=(fail,)),
    Edge(RunnerFinished, _TOLD, FINISHING, "its result is not wanted any more", unwanted, (end_stopped,)),
    Edge(RunnerFinished, _TOLD, FINISHING, "it finished all the same", do=(complete,)),
    Edge(RunnerFailed, _TOLD, FINISHING, "it stopped, as it was told", do=(end_stopped,)),
    *(Edge(end, _OVER, None, "its user code has ended after all", do=(vacate,)) for end in _RUNNER_ENDS),
    Edge(StopOverdue, STOPPING, FINISHING, "it has failed, whatever its code does", late, (warn, give_up)),
    Edge(StopOverdue, STOPPING, UNSTOPPABLE, "the operator should know", do=(warn,)),
    Edge(RunnerAbandoned, _TOLD, FINISHING, "user code must not keep the node from leaving", do=(end_stopped,)),
    Edge(RunnerAbandoned, (FINISHING, SETTLED), None, "user code must not keep the node from leaving", do=(vacate,)),
    Edge(Committed, FINISHING, CANCELLED, "it is on record; the service knows already", ends_cancelled),
    Edge(Committed, FINISHING, LOST, "it is on record; the service would not take it", ends_lost),
    Edge(Committed, FINISHING, SETTLED, "it is on record and can be reported"),
    Edge(CommitFailed, FINISHING, None, "an outcome is not let go", do=(commit_later,)),
    Edge(CommitDue, FINISHING, None, "the ledger may have recovered", do=(commit_again,)),
)

MACHINE = Lifecycle("lease", LeaseState, TABLE, subject=Lease, initial=OFFERED, ends=(SETTLED, CANCELLED, LOST))


def invariants(lease: Lease) -> Iterator[str]:
    """What does not hold and should."""
    if (lease.outcome is not None) != (lease.state in _OVER):
        yield f"{lease.state} with outcome {lease.outcome}"
    if lease.state in (STOPPING, UNSTOPPABLE) and lease.stop is None:
        yield f"{lease.state} without a reason"
    if lease.state is STOPPING and StopOverdue not in lease.timers:
        yield "stopping without an end of patience"
    if lease.state is RUNNING and not (lease.ran and lease.settled):
        yield "running before its time"
    if lease.state is RUNNING and (lease.timeout is None) is (RunnerOverdue in lease.timers):
        yield f"running with timeout {lease.timeout} and timers {lease.timers}"
    if lease.occupied and lease.state not in (FINISHING, SETTLED):
        yield f"{lease.state} and occupied"
