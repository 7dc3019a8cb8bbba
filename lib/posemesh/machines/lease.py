"""Lease: one leased task, from the offer to the commit of its outcome.

Rules:
1. User code starts once the acceptance is committed and the first heartbeat was answered, failed, or took its second;
   by then the lease's terms are as the service last gave them.
2. Every accepted lease has exactly one outcome, and every outcome is committed before anything is reported. The slot is
   free then.
3. User code that was told to stop may still finish. Its result counts unless the service has taken the task away: it
   cancelled it, or answered that the lease is gone. A lease that merely ran out here may still stand there, so a
   finished result is offered.

Unusual edges: a stop that comes while the acceptance is being committed is noted and acted on when the commit is
answered, so that two commits are never in flight. A lease that cannot be read goes straight to its outcome, a failure
that names the reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from posemesh.commands import Command, CommitAccepted, CommitOutcome, StartRunner, StopRunner, UpdateLease, Warn
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
    LeaseUnreadable,
    NodeStopping,
    RunnerAbandoned,
    RunnerFailed,
    RunnerFinished,
    StopOverdue,
)
from posemesh.machines._kernel import Edge, Lifecycle, State, Step, Subject
from posemesh.policy import STOP_GRACE_SECS, offer_delay
from posemesh.terms import merge
from posemesh.types import JSON, Artifact, LeaseEnvelope, Outcome, OutcomeKind, TaskIdentity

__all__ = ("HOLDING", "MACHINE", "Lease", "LeaseState", "StopReason", "invariants")


class LeaseState(State):
    OFFERED = "offered", "The service gave a task; nothing is decided."
    ACCEPTED = "accepted", "The acceptance is being committed, the first heartbeat is on its way."
    PREPARING = "preparing", "Committed; the first heartbeat is not settled."
    RUNNING = "running", "User code runs."
    STOPPING = "stopping", "User code was told to stop and has not ended."
    UNSTOPPABLE = "unstoppable", "User code does not stop. It keeps its slot until it ends or the node leaves."
    FINISHING = "finishing", "The outcome is known and is being committed."
    SETTLED = "settled", "The outcome is committed and has to be reported."
    CANCELLED = "cancelled", "The service cancelled the task. Nothing is reported."
    LOST = "lost", "The lease was gone before there was a result. Nothing is reported."


OFFERED, ACCEPTED, PREPARING, RUNNING, STOPPING, UNSTOPPABLE, FINISHING, SETTLED, CANCELLED, LOST = LeaseState

HOLDING = frozenset({OFFERED, ACCEPTED, PREPARING, RUNNING, STOPPING, UNSTOPPABLE, FINISHING})
"""The states in which a lease holds a slot."""


class StopReason(StrEnum):
    """Why user code was told to stop, weakest first: a later, stronger one takes the place of a weaker."""

    SHUTDOWN = "shutdown"
    EXPIRED = "expired"
    LOST = "lost"
    CANCELLED = "cancelled"


@dataclass(eq=False, slots=True, kw_only=True)
class Lease(Subject):
    """``ran`` since user code was started; ``settled`` since the first heartbeat is; ``commits`` failed in a row."""

    state: State = OFFERED
    task: TaskIdentity = TaskIdentity(task_id="")
    envelope: LeaseEnvelope | None = None
    ttl: float | None = None
    settled: bool = False
    ran: bool = False
    stop: StopReason | None = None
    outcome: Outcome | None = None
    commits: int = 0


def cancelled_on_arrival(lease: Lease, step: Step[LeaseOffered]) -> bool:
    return step.event.envelope.cancel


def no_runner(lease: Lease, step: Step[LeaseOffered]) -> bool:
    return step.event.envelope.task.capability not in step.capabilities


def told_to_stop(lease: Lease, step: Step[Event]) -> bool:
    return lease.stop is not None


def unpreparable(lease: Lease, step: Step[Event]) -> bool:
    return (lease.settled or isinstance(step.event, KeepAliveSettled)) and _missing(lease) is not None


def settled(lease: Lease, step: Step[Event]) -> bool:
    return lease.settled


def taken_away(lease: Lease, step: Step[Event]) -> bool:
    return lease.stop in (StopReason.LOST, StopReason.CANCELLED)


def ends_cancelled(lease: Lease, step: Step[Committed]) -> bool:
    return lease.outcome is not None and lease.outcome.kind is OutcomeKind.CANCELLED


def ends_lost(lease: Lease, step: Step[Committed]) -> bool:
    return lease.outcome is not None and lease.outcome.kind is OutcomeKind.LOST


def _missing(lease: Lease) -> str | None:
    if lease.envelope is None or not lease.envelope.domain_server_url:
        return "lease missing domain_server_url"
    return "lease missing domain_id" if lease.envelope.domain_id is None else None


def take_terms(lease: Lease, step: Step[LeaseOffered]) -> None:
    envelope = step.event.envelope
    task, domain = envelope.task, envelope.domain_id
    lease.envelope, lease.ttl = envelope, step.event.ttl
    lease.task = TaskIdentity(
        task_id=str(task.id),
        job_id=None if task.job_id is None else str(task.job_id),
        domain_id=None if domain is None else str(domain),
        capability=task.capability,
    )


def accept(lease: Lease, step: Step[LeaseOffered]) -> Command:
    return CommitAccepted(lease=lease.key, envelope=step.event.envelope)


def take_name(lease: Lease, step: Step[LeaseUnreadable]) -> None:
    lease.task = TaskIdentity(task_id=step.event.task_id)


def fail_unreadable(lease: Lease, step: Step[LeaseUnreadable]) -> Command:
    return _conclude(lease, OutcomeKind.FAILED, "bad_input", f"lease cannot be decoded: {step.event.problem}")


def fail_no_runner(lease: Lease, step: Step[LeaseOffered]) -> Command:
    offered = ", ".join(sorted(step.capabilities)) or "none"
    message = f"no runner registered for capability {lease.task.capability}; this node offers {offered}"
    return _conclude(lease, OutcomeKind.FAILED, "no_runner", message)


def end_cancelled(lease: Lease, step: Step[LeaseOffered]) -> Command:
    return _conclude(lease, OutcomeKind.CANCELLED)


def fail_setup(lease: Lease, step: Step[Event]) -> Command:
    return _conclude(lease, OutcomeKind.FAILED, "setup_failed", _missing(lease) or "")


def fail_commit(lease: Lease, step: Step[CommitFailed]) -> Command:
    return _conclude(
        lease, OutcomeKind.FAILED, "setup_failed", f"the acceptance could not be recorded: {step.event.problem}"
    )


def merge_terms(lease: Lease, step: Step[HeartbeatAccepted]) -> None:
    if lease.envelope is not None:
        lease.envelope = merge(lease.envelope, step.event.answer)
        if lease.envelope.domain_id is not None:
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
    return StartRunner(lease=lease.key, envelope=lease.envelope)


def note_stop(lease: Lease, step: Step[LeaseCancelled | LeaseLost | NodeStopping]) -> None:
    match step.event:
        case LeaseCancelled():
            lease.stop = StopReason.CANCELLED
        case LeaseLost(expired=expired):
            lease.stop = StopReason.EXPIRED if expired else StopReason.LOST
        case _:
            lease.stop = lease.stop or StopReason.SHUTDOWN


def stop_runner(lease: Lease, step: Step[Event]) -> Command:
    assert lease.stop is not None
    lease.arm(StopOverdue, step.now + STOP_GRACE_SECS)
    return StopRunner(lease=lease.key, reason=lease.stop)


def complete(lease: Lease, step: Step[RunnerFinished]) -> Command:
    return _conclude(lease, OutcomeKind.COMPLETED, artifacts=step.event.artifacts)


def fail(lease: Lease, step: Step[RunnerFailed]) -> Command:
    event = step.event
    return _conclude(lease, OutcomeKind.FAILED, event.code, event.message, event.artifacts, event.details)


def end_stopped(lease: Lease, step: Step[Event]) -> Command:
    """The outcome of a task that was told to stop and has no result to keep."""
    artifacts = step.event.artifacts if isinstance(step.event, RunnerFinished | RunnerFailed) else ()
    match lease.stop:
        case StopReason.CANCELLED:
            return _conclude(lease, OutcomeKind.CANCELLED, artifacts=artifacts)
        case StopReason.LOST | StopReason.EXPIRED:
            return _conclude(lease, OutcomeKind.LOST, artifacts=artifacts)
        case _:
            return _conclude(lease, OutcomeKind.FAILED, "node_shutdown", "the node was told to stop", artifacts)


def _conclude(
    lease: Lease,
    kind: OutcomeKind,
    code: str = "",
    message: str = "",
    artifacts: tuple[Artifact, ...] = (),
    details: dict[str, JSON] | None = None,
) -> Command:
    lease.disarm(StopOverdue)
    known = {"code": code, **(details or {})} if code else dict(details or {})
    lease.outcome = Outcome(kind=kind, task=lease.task, artifacts=artifacts, code=code, message=message, details=known)
    return CommitOutcome(lease=lease.key, outcome=lease.outcome)


def commit_again(lease: Lease, step: Step[CommitDue]) -> Command:
    assert lease.outcome is not None
    return CommitOutcome(lease=lease.key, outcome=lease.outcome)


def commit_later(lease: Lease, step: Step[CommitFailed]) -> Command:
    lease.commits += 1
    wait = offer_delay(lease.commits, None, step.rng)
    lease.arm(CommitDue, step.now + wait)
    problem = f"its outcome could not be recorded ({step.event.problem}); again in {wait:.0f} s"
    return Warn(message=f"task {lease.task.task_id}: {problem}")


def warn_unstoppable(lease: Lease, step: Step[StopOverdue]) -> Command:
    return Warn(
        message=f"task {lease.task.task_id}: its runner was told to stop ({lease.stop}) and goes on; it keeps its slot"
    )


_STOPS = (LeaseCancelled, LeaseLost, NodeStopping)
_OVER = (FINISHING, SETTLED, CANCELLED, LOST)

TABLE = (
    Edge(
        LeaseOffered,
        OFFERED,
        FINISHING,
        "the service cancelled it before it arrived",
        cancelled_on_arrival,
        (take_terms, end_cancelled),
    ),
    Edge(
        LeaseOffered,
        OFFERED,
        FINISHING,
        "nobody here can run it; another node may",
        no_runner,
        (take_terms, fail_no_runner),
    ),
    Edge(LeaseOffered, OFFERED, ACCEPTED, "a runner for it is here", do=(take_terms, accept)),
    Edge(
        LeaseUnreadable,
        OFFERED,
        FINISHING,
        "its task is named, so it can be given back",
        do=(take_name, fail_unreadable),
    ),
    Edge(Committed, ACCEPTED, FINISHING, "it was to stop before it began", told_to_stop, (end_stopped,)),
    Edge(Committed, ACCEPTED, FINISHING, "its terms lack what a task needs", unpreparable, (fail_setup,)),
    Edge(Committed, ACCEPTED, RUNNING, "the first heartbeat is settled as well", settled, (start,)),
    Edge(Committed, ACCEPTED, PREPARING, "the first heartbeat may still change the terms, or cancel"),
    Edge(CommitFailed, ACCEPTED, FINISHING, "it was to stop before it began", told_to_stop, (end_stopped,)),
    Edge(CommitFailed, ACCEPTED, FINISHING, "work that is not on record is not begun", do=(fail_commit,)),
    Edge(KeepAliveSettled, ACCEPTED, None, "user code waits for the commit", do=(note_settled,)),
    Edge(
        KeepAliveSettled,
        PREPARING,
        FINISHING,
        "its terms lack what a task needs",
        unpreparable,
        (note_settled, fail_setup),
    ),
    Edge(KeepAliveSettled, PREPARING, RUNNING, "all is ready", do=(note_settled, start)),
    Edge(HeartbeatAccepted, (ACCEPTED, PREPARING), None, "the first answer completes the terms", do=(merge_terms,)),
    Edge(
        HeartbeatAccepted,
        (RUNNING, STOPPING, UNSTOPPABLE),
        None,
        "the next storage request uses the new token",
        do=(rotate_token,),
    ),
    Edge(HeartbeatAccepted, _OVER, None, "the task needs no terms any more"),
    *(Edge(stop, ACCEPTED, None, "acted on when the commit is answered", do=(note_stop,)) for stop in _STOPS),
    *(Edge(stop, PREPARING, FINISHING, "user code need not begin", do=(note_stop, end_stopped)) for stop in _STOPS),
    *(
        Edge(stop, RUNNING, STOPPING, "going on is of no use, or not allowed", do=(note_stop, stop_runner))
        for stop in _STOPS
    ),
    *(
        Edge(stop, (STOPPING, UNSTOPPABLE), None, "the reason decides what becomes of a result", do=(note_stop,))
        for stop in (LeaseCancelled, LeaseLost)
    ),
    Edge(RunnerFinished, RUNNING, FINISHING, "the result is kept before anybody hears of it", do=(complete,)),
    Edge(RunnerFailed, RUNNING, FINISHING, "the failure is kept before anybody hears of it", do=(fail,)),
    Edge(
        RunnerFinished,
        (STOPPING, UNSTOPPABLE),
        FINISHING,
        "the service took the task away; its result is not wanted",
        taken_away,
        (end_stopped,),
    ),
    Edge(RunnerFinished, (STOPPING, UNSTOPPABLE), FINISHING, "it finished all the same", do=(complete,)),
    Edge(RunnerFailed, (STOPPING, UNSTOPPABLE), FINISHING, "it stopped, as it was told", do=(end_stopped,)),
    *(Edge(end, _OVER, None, "an abandoned runner ends some time") for end in (RunnerFinished, RunnerFailed)),
    Edge(StopOverdue, STOPPING, UNSTOPPABLE, "the operator should know", do=(warn_unstoppable,)),
    Edge(
        RunnerAbandoned,
        (STOPPING, UNSTOPPABLE),
        FINISHING,
        "user code must not keep the node from leaving",
        do=(end_stopped,),
    ),
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
