"""Lease: event in, list of commands out."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec import structs

from posemesh.commands import CommitAccepted, CommitOutcome, StartRunner, StopReason, StopRunner, UpdateLease
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
from posemesh.machines import lease
from posemesh.machines.lease import LeaseState
from posemesh.policy import STOP_GRACE_SECS
from posemesh.secret import Secret
from posemesh.types import HeartbeatAnswer, Outcome, OutcomeKind, TaskIdentity

from ...stage import ARTIFACT, CAPABILITY, DOMAIN, DONE, IDENTITY, TASK, Bench, envelope, names, sweep, untaken

OFFERED, FOUND, ACCEPTED, PREPARING, QUEUED, RUNNING, STOPPING, UNSTOPPABLE, FINISHING, *ENDS = LeaseState
SETTLED, CANCELLED, LOST = ENDS
SETTLED_FIRST, COMMITTED, FINISHED = KeepAliveSettled(), Committed(), RunnerFinished(artifacts=(ARTIFACT,))
FAILED = RunnerFailed(code="runner_error", message="it failed", details={"chain": ["a"]}, artifacts=(ARTIFACT,))
CANCEL, SHUTDOWN = LeaseCancelled(), NodeStopping()
GONE, EXPIRED = LeaseLost(expired=False), LeaseLost(expired=True)
UNCOMMITTED = CommitFailed(problem="disk full")
ENVELOPE = envelope()


def offered(*, runner: str = "", timeout: float | None = None, problem: str = "", **changes: Any) -> LeaseOffered:
    return LeaseOffered(envelope=envelope(**changes), ttl=60.0, runner=runner, timeout=timeout, problem=problem)


def bench(*events: Event) -> Bench:
    made = Bench(lease)
    made(*events)
    return made


def recovered(*, code: str = "", problem: str = "", **changes: Any) -> LeaseRecovered:
    return LeaseRecovered(envelope=envelope(**changes), ttl=60.0, runner="big", timeout=5.0, code=code, problem=problem)


def accepted(*events: Event) -> Bench:
    return bench(offered(), *events)


def found(*events: Event) -> Bench:
    return bench(recovered(), *events)


def queued(*events: Event) -> Bench:
    made = accepted(COMMITTED)
    made.room = False
    assert made(SETTLED_FIRST) == []
    made(*events)
    return made


def running(*events: Event) -> Bench:
    return accepted(COMMITTED, SETTLED_FIRST, *events)


def timed(*events: Event, seconds: float = 5.0) -> Bench:
    """User code runs that may take so long."""
    return bench(offered(timeout=seconds), COMMITTED, SETTLED_FIRST, *events)


def overdue(*events: Event) -> Bench:
    """It took longer, and was told to stop."""
    made = timed()
    assert made.due(RunnerOverdue) == [StopRunner(lease=0, reason=StopReason.TIMEOUT)]
    made(*events)
    return made


def unstoppable(*events: Event) -> Bench:
    made = running(*events)
    made.due(StopOverdue)
    return made


def outcome(kind: OutcomeKind, code: str = "", message: str = "", **changes: Any) -> CommitOutcome:
    given = {"task": IDENTITY, "details": {"code": code} if code else {}} | changes
    return CommitOutcome(lease=0, outcome=Outcome(kind=kind, code=code, message=message, **given))


def missing(what: str) -> CommitOutcome:
    task = replace(IDENTITY, domain_id=None) if what == "domain_id" else IDENTITY
    return outcome(OutcomeKind.FAILED, "setup_failed", f"lease missing {what}", task=task)


def said(**answer: Any) -> HeartbeatAccepted:
    return HeartbeatAccepted(answer=HeartbeatAnswer(**answer), ttl=60.0)


WITH_RESULT = {"artifacts": (ARTIFACT,)}
COMPLETED = outcome(OutcomeKind.COMPLETED, **WITH_RESULT)
NODE_SHUTDOWN = outcome(OutcomeKind.FAILED, "node_shutdown", "the node was told to stop")

REACH = {
    OFFERED: lambda: bench(),
    FOUND: lambda: found(),
    ACCEPTED: lambda: accepted(),
    PREPARING: lambda: accepted(COMMITTED),
    QUEUED: lambda: queued(),
    RUNNING: lambda: running(),
    STOPPING: lambda: running(CANCEL),
    UNSTOPPABLE: lambda: unstoppable(CANCEL),
    FINISHING: lambda: running(FINISHED),
    SETTLED: lambda: running(FINISHED, COMMITTED),
    CANCELLED: lambda: bench(offered(cancel=True), COMMITTED),
    LOST: lambda: accepted(COMMITTED, GONE, COMMITTED),
}


def test_every_event_in_every_state() -> None:
    sweep(REACH)


def test_a_task_from_its_offer_to_its_commit() -> None:
    made = bench()
    assert made(offered()) == [CommitAccepted(lease=0, envelope=ENVELOPE)]
    assert made(COMMITTED) == []
    assert made(SETTLED_FIRST) == [StartRunner(lease=0, envelope=ENVELOPE)]
    assert made(FINISHED) == [COMPLETED]
    assert made.state is FINISHING
    assert made(COMMITTED) == [] and made.state is SETTLED


def test_the_first_heartbeat_may_be_settled_before_the_commit() -> None:
    made = accepted()
    assert made(SETTLED_FIRST) == [] and made.state is ACCEPTED
    assert made(COMMITTED) == [StartRunner(lease=0, envelope=ENVELOPE)]


def test_a_runner_that_fails() -> None:
    details = {"code": "runner_error", "chain": ["a"]}
    failed = outcome(OutcomeKind.FAILED, "runner_error", "it failed", artifacts=(ARTIFACT,), details=details)
    assert running()(FAILED) == [failed]
    assert failed.outcome.reason == "runner_error: it failed"


def test_a_capability_the_node_does_not_have() -> None:
    (command,) = bench()(offered(capability="/other/v1"))
    assert command.outcome.code == "no_runner" and command.outcome.task.capability == "/other/v1"
    assert "/other/v1" in command.outcome.message and CAPABILITY in command.outcome.message


def test_a_lease_that_cannot_be_read_is_failed_by_name() -> None:
    """Weakness 18 of the reference: such a task is neither run nor failed."""
    (command,) = bench()(LeaseUnreadable(task_id="t", problem="$.task: wrong"))
    assert command.outcome.task == TaskIdentity(task_id="t")
    assert command.outcome.reason == "bad_input: lease cannot be decoded: $.task: wrong"


def test_a_lease_that_was_cancelled_before_it_arrived() -> None:
    """Weakness 14 of the reference: it asks again at once, for ever."""
    made = bench()
    assert made(offered(cancel=True)) == [outcome(OutcomeKind.CANCELLED)]
    assert made(COMMITTED) == [] and made.state is CANCELLED


@pytest.mark.parametrize("what", ["domain_server_url", "domain_id"])
@pytest.mark.parametrize("order", [(COMMITTED, SETTLED_FIRST), (SETTLED_FIRST, COMMITTED)])
def test_terms_that_lack_what_a_task_needs(what: str, order: tuple[Event, Event]) -> None:
    made = bench(offered(**{what: None}), order[0])
    assert made(order[1]) == [missing(what)] and not made.subject.ran


def test_terms_are_missing_in_both_orders() -> None:
    for order in ((COMMITTED, SETTLED_FIRST), (SETTLED_FIRST, COMMITTED)):
        test_terms_that_lack_what_a_task_needs("domain_id", order)


@pytest.mark.parametrize("before", [(), (COMMITTED,)])
def test_the_first_answer_completes_the_terms(before: tuple[Event, ...]) -> None:
    made = bench(offered(domain_id=None), *before)
    made(said(domain_id=DOMAIN, access_token=Secret("new")))
    *_, start = made(SETTLED_FIRST, *(() if before else (COMMITTED,)))
    assert start.envelope.domain_id == DOMAIN and start.envelope.access_token == Secret("new")
    (end,) = made(FINISHED)
    assert end.outcome.task.domain_id == str(DOMAIN)


def test_a_running_task_gets_the_new_token_and_no_other_term() -> None:
    """Weakness 17 of the reference: an answer silently changes the task under the runner."""
    made, later = running(), datetime(2027, 1, 1, tzinfo=UTC)
    assert made(said(domain_id=TASK, domain_server_url="https://other.example")) == []
    (update,) = made(said(access_token=Secret("new"), access_token_expires_at=later, domain_id=TASK))
    terms = replace(ENVELOPE, access_token=Secret("new"), access_token_expires_at=later)
    assert update == UpdateLease(lease=0, envelope=terms)
    (update,) = made(said(access_token=Secret("newer")))
    assert update.envelope.access_token_expires_at is None, "the old token's expiry says nothing of the new one's"


@pytest.mark.parametrize(
    ("stop", "end"),
    [
        (CANCEL, outcome(OutcomeKind.CANCELLED)),
        (GONE, outcome(OutcomeKind.LOST)),
        (EXPIRED, outcome(OutcomeKind.LOST)),
        (SHUTDOWN, NODE_SHUTDOWN),
    ],
    ids=["cancelled", "gone", "expired", "shutdown"],
)
@pytest.mark.parametrize("answer", [COMMITTED, UNCOMMITTED], ids=["committed", "commit failed"])
def test_a_stop_before_user_code_began(stop: Event, end: CommitOutcome, answer: Event) -> None:
    assert accepted(COMMITTED)(stop) == [end] == queued()(stop)
    made = accepted()
    assert made(stop) == [] and made.state is ACCEPTED
    assert made(answer) == [end]


def test_a_stop_before_the_commit_is_answered() -> None:
    for answer in (COMMITTED, UNCOMMITTED):
        for stop in (CANCEL, GONE, SHUTDOWN):
            made = accepted(stop)
            assert names(made(answer)) == ["CommitOutcome"] == names(queued()(stop))


@pytest.mark.parametrize(
    ("stops", "reason", "after_finish", "after_fail"),
    [
        ((CANCEL,), "cancelled", OutcomeKind.CANCELLED, OutcomeKind.CANCELLED),
        ((GONE,), "lost", OutcomeKind.LOST, OutcomeKind.LOST),
        ((EXPIRED,), "expired", OutcomeKind.COMPLETED, OutcomeKind.LOST),
        ((SHUTDOWN,), "shutdown", OutcomeKind.COMPLETED, OutcomeKind.FAILED),
        ((SHUTDOWN, CANCEL), "cancelled", OutcomeKind.CANCELLED, OutcomeKind.CANCELLED),
        ((SHUTDOWN, GONE), "lost", OutcomeKind.LOST, OutcomeKind.LOST),
        ((SHUTDOWN, EXPIRED), "expired", OutcomeKind.COMPLETED, OutcomeKind.LOST),
    ],
)
@pytest.mark.parametrize("arrive", [running, unstoppable])
def test_what_becomes_of_a_result_that_comes_after_the_stop(
    arrive: Any, stops: tuple[Event, ...], reason: str, after_finish: OutcomeKind, after_fail: OutcomeKind
) -> None:
    first, *rest = stops
    for end, kind in ((FINISHED, after_finish), (FAILED, after_fail), (RunnerAbandoned(), after_fail)):
        made = running()
        assert made(first) == [StopRunner(lease=0, reason=made.subject.stop)]
        if arrive is unstoppable:
            assert names(made.due(StopOverdue)) == ["Warn"]
        assert made(*rest) == []
        assert made.subject.stop == reason
        (command,) = made(end)
        assert command.outcome.kind is kind and made.state is FINISHING
        assert command.outcome.artifacts == (() if isinstance(end, RunnerAbandoned) else (ARTIFACT,))
        if kind is OutcomeKind.FAILED and end is FAILED:
            assert command.outcome.details == {"chain": ["a"], "code": command.outcome.code}


def test_results_that_come_after_the_stop() -> None:
    for arrive in (running, unstoppable):
        test_what_becomes_of_a_result_that_comes_after_the_stop(
            arrive, (SHUTDOWN, GONE), "lost", OutcomeKind.LOST, OutcomeKind.LOST
        )
        test_what_becomes_of_a_result_that_comes_after_the_stop(
            arrive, (EXPIRED,), "expired", OutcomeKind.COMPLETED, OutcomeKind.LOST
        )


def test_a_runner_that_does_not_stop_keeps_its_slot() -> None:
    """Weakness 12 of the reference: such a runner blocks the node for ever, and nobody is told."""
    made = running(CANCEL)
    assert made.left(StopOverdue) == STOP_GRACE_SECS
    assert names(made.due(StopOverdue)) == ["Warn"]
    assert made.state is UNSTOPPABLE and made.subject.holds and made.subject.stuck and made.wait(1e6) == []


def test_an_acceptance_that_cannot_be_recorded_is_not_begun() -> None:
    made = accepted()
    problem = "the acceptance could not be recorded: disk full"
    assert made(UNCOMMITTED) == [outcome(OutcomeKind.FAILED, "setup_failed", problem)]


def test_an_outcome_that_cannot_be_recorded_is_tried_until_it_is() -> None:
    made = running(FINISHED)
    for bound in (1, 2, 4, 8, 16, 32, 60, 60):
        assert names(made(UNCOMMITTED)) == ["Warn"]
        assert 0.8 * bound <= made.left(CommitDue) <= 1.2 * bound and made.subject.holds
        assert made.due(CommitDue) == [COMPLETED]
    made(COMMITTED)
    assert made.state is SETTLED


# -- What a node finds on record ------------------------------------------------------------------------------------


def test_a_lease_that_is_found_runs_again_once_the_service_says_that_it_stands() -> None:
    made = found()
    assert made.state is FOUND and made.subject.holds and not made.subject.settled and made.wait(1e6) == []
    moved = "https://moved.example"
    terms = replace(ENVELOPE, access_token=Secret("new"), domain_server_url=moved)
    answer = said(access_token=Secret("new"), domain_server_url=moved)
    assert made(answer) == [CommitAccepted(lease=0, envelope=terms)], "on record as it stands now"
    assert made.state is ACCEPTED and made(SETTLED_FIRST) == []
    assert made(COMMITTED) == [StartRunner(lease=0, envelope=terms, runner="big")]
    assert made.left(RunnerOverdue) == 5.0 and made(FINISHED) == [COMPLETED] and not made.subject.recovered


def test_a_lease_that_is_found_takes_its_turn_for_room() -> None:
    made = found(said(), SETTLED_FIRST)
    made.room = False
    assert made(COMMITTED) == [] and made.state is QUEUED
    assert names(made(RoomFound())) == ["StartRunner"]


def test_a_lease_that_is_found_may_be_told_to_end_in_the_answer() -> None:
    for answer in ({"cancel": True}, {"status": "canceled"}, {"status": "cancelled"}):
        made = found()
        assert made(said(**answer)) == [] and made.state is FOUND, "nothing begins"
        assert made(CANCEL) == [outcome(OutcomeKind.CANCELLED)]
        assert made(COMMITTED) == [] and made.state is CANCELLED


def test_a_lease_that_is_found_may_end_before_it_stands() -> None:
    for stop, end in (
        (CANCEL, outcome(OutcomeKind.CANCELLED)),
        (GONE, outcome(OutcomeKind.LOST)),
        (EXPIRED, outcome(OutcomeKind.LOST)),
        (SHUTDOWN, NODE_SHUTDOWN),
    ):
        made = found()
        assert made(stop) == [end] and made.state is FINISHING and not made.subject.ran
        assert made(said()) == [], "the answer came too late"


def test_a_lease_that_is_found_and_told_to_stop_while_it_is_put_on_record_again() -> None:
    for answer in (COMMITTED, UNCOMMITTED):
        made = found(said(), SHUTDOWN)
        assert made.state is ACCEPTED and made(answer) == [NODE_SHUTDOWN]


def test_a_lease_that_is_found_and_lacks_what_a_task_needs() -> None:
    made = bench(recovered(domain_id=None), said(), SETTLED_FIRST)
    assert made(COMMITTED) == [missing("domain_id")] and not made.subject.ran
    made = bench(recovered(domain_id=None), said(domain_id=DOMAIN), SETTLED_FIRST)
    assert names(made(COMMITTED)) == ["StartRunner"] and made.subject.task.domain_id == str(DOMAIN)


def test_a_lease_that_is_found_runs_with_the_token_on_record_unless_there_is_a_new_one() -> None:
    """An answer without a token says that nothing has changed."""
    for given, token in ((said(), "old"), (said(access_token=Secret("new")), "new")):
        made = bench(recovered(access_token=Secret("old")))
        (commit,) = made(given)
        assert isinstance(commit, CommitAccepted) and commit.envelope.access_token == Secret(token)


def test_a_lease_that_is_found_but_must_not_run_again_has_failed() -> None:
    made = bench()
    assert made(recovered(code="killed", problem="it ran")) == [outcome(OutcomeKind.FAILED, "killed", "it ran")]
    assert made.state is FINISHING and not made.subject.ran
    assert made(said(), COMMITTED) == [] and made.state is SETTLED
    assert not made.subject.recovered, "nobody can have heard of this failure"


def test_an_outcome_that_is_found_is_on_record_already() -> None:
    made = bench()
    assert made(OutcomeRecovered(outcome=DONE)) == [] and made.state is SETTLED
    assert (made.subject.outcome, made.subject.task, made.subject.recovered) == (DONE, IDENTITY, True)
    assert not made.subject.holds and made.subject.timers == {}


def test_a_task_whose_result_is_there_does_not_run_again() -> None:
    """The earlier lease may have been of another job of the same task; the report is this one's."""
    standing = replace(DONE, task=replace(IDENTITY, job_id="earlier"))
    for changes in ({}, {"capability": "/other/v1"}):
        made = bench()
        offer = structs.replace(offered(**changes), standing=standing)
        assert made(offer) == [CommitOutcome(lease=0, outcome=replace(DONE, task=made.subject.task))]
        assert made.subject.task == replace(IDENTITY, **changes) and made.state is FINISHING
        assert made(COMMITTED) == [] and made.state is SETTLED and not (made.subject.ran or made.subject.recovered)


def test_a_result_that_is_there_is_of_no_use_to_a_cancelled_task() -> None:
    assert bench()(structs.replace(offered(cancel=True), standing=DONE)) == [outcome(OutcomeKind.CANCELLED)]


# -- Room -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(COMMITTED, SETTLED_FIRST), (SETTLED_FIRST, COMMITTED)])
def test_a_task_waits_until_its_runner_has_room(order: tuple[Event, Event]) -> None:
    made = bench(offered(runner="big"))
    made.room = False
    assert made(*order) == [] and made.state is QUEUED and not made.subject.ran and made.subject.holds
    made.room = True
    assert made(RoomFound()) == [StartRunner(lease=0, envelope=ENVELOPE, runner="big")]
    assert made.state is RUNNING


def test_a_task_waits_in_both_orders() -> None:
    for order in ((COMMITTED, SETTLED_FIRST), (SETTLED_FIRST, COMMITTED)):
        test_a_task_waits_until_its_runner_has_room(order)


def test_a_task_that_waited_begins_with_the_latest_terms() -> None:
    made = queued(said(access_token=Secret("new"), domain_server_url="https://moved.example"))
    (start,) = made(RoomFound())
    assert start.envelope.access_token == Secret("new")
    assert start.envelope.domain_server_url == "https://moved.example"


def test_a_task_does_not_wait_for_user_code_that_does_not_stop() -> None:
    (command,) = queued()(RoomDenied())
    assert command.outcome.code == "no_runner" and "goes on" in command.outcome.message
    assert command.outcome.message.startswith(f"no runner for capability {CAPABILITY}: ")


def test_a_task_that_no_runner_takes_although_one_has_its_capability() -> None:
    (command,) = bench()(offered(problem="its selector asks for zone=b"))
    assert command.outcome.reason == f"no_runner: no runner for capability {CAPABILITY}: its selector asks for zone=b"


# -- Time -----------------------------------------------------------------------------------------------------------


def timeout(**changes: Any) -> CommitOutcome:
    return outcome(OutcomeKind.FAILED, "timeout", "the runner took longer than its 5 s", **changes)


def test_user_code_that_takes_too_long_is_told_to_stop() -> None:
    made = timed()
    assert made.left(RunnerOverdue) == 5.0
    assert made.wait(4.999) == [] and made.state is RUNNING
    assert made.wait(0.001) == [StopRunner(lease=0, reason=StopReason.TIMEOUT)] and made.state is STOPPING


def test_user_code_that_ends_in_time() -> None:
    for end in (FINISHED, FAILED):
        made = timed(end)
        assert made.subject.outcome.code == ("" if end is FINISHED else "runner_error")
        assert made.wait(1e6) == []


def test_what_ends_after_its_timeout_has_failed_by_it_however_it_ends() -> None:
    """Its artifacts are there all the same, and what it said last may say why it took so long."""
    assert overdue()(FINISHED) == [timeout(**WITH_RESULT)]
    assert overdue()(FAILED) == [timeout(**WITH_RESULT, details={"chain": ["a"], "code": "timeout"})]


def test_what_ends_after_its_timeout_where_nobody_looked() -> None:
    for end in (FINISHED, FAILED):
        for stop in (None, SHUTDOWN, EXPIRED, GONE):
            made = timed(*(() if stop is None else (stop,)))
            made.now += 5.0
            (command,) = made(end)
            assert command.outcome.code == ("" if stop is GONE else "timeout") and command.outcome.artifacts


def test_patience_and_time_are_over_at_once_where_nobody_looked() -> None:
    for stop, state in ((EXPIRED, FINISHING), (GONE, UNSTOPPABLE)):
        made = timed(stop)
        made.now += 60.0
        made.subject.timers.pop(StopOverdue)
        made(StopOverdue())
        assert made.state is state and made.subject.stuck


@pytest.mark.parametrize(
    ("stop", "reason", "kind"),
    [
        (CANCEL, "cancelled", OutcomeKind.CANCELLED),
        (GONE, "lost", OutcomeKind.LOST),
        (EXPIRED, "timeout", OutcomeKind.FAILED),
    ],
)
def test_what_the_service_says_after_the_timeout(stop: Event, reason: str, kind: OutcomeKind) -> None:
    """A lease that merely ran out here may still stand, and its failure is as good as it was."""
    for end in (FINISHED, FAILED):
        made = overdue(stop)
        assert made.subject.stop == reason
        (command,) = made(end)
        assert command.outcome.kind is kind


def test_a_timeout_that_comes_while_user_code_is_being_stopped() -> None:
    for stop, reason in ((SHUTDOWN, "timeout"), (EXPIRED, "timeout"), (GONE, "lost"), (CANCEL, "cancelled")):
        made = timed(seconds=1.0)
        made(stop)
        assert made.due(RunnerOverdue) == [] and made.subject.stop == reason and made.state is STOPPING
        (command,) = made(FINISHED)
        assert (command.outcome.code == "timeout") is (reason == "timeout")


def test_user_code_that_ignores_its_timeout_has_failed_and_keeps_its_slot() -> None:
    """Another node may take the task; here nothing else may have the slot, or the memory that goes with it."""
    made = overdue()
    assert made.left(StopOverdue) == STOP_GRACE_SECS
    warning, commit = made.due(StopOverdue)
    assert "(timeout)" in warning.message and commit == timeout()
    assert made.state is FINISHING and made.subject.stuck
    assert made(COMMITTED) == [] and made.state is SETTLED and made.subject.holds
    assert made.wait(1e6) == []
    assert made(FINISHED) == [] and not made.subject.holds and not made.subject.stuck


def test_user_code_that_occupies_its_slot_ends_while_its_failure_is_being_recorded() -> None:
    for end in (FINISHED, FAILED, RunnerAbandoned()):
        made = overdue()
        made.due(StopOverdue)
        assert made(end) == [] and made.state is FINISHING and not made.subject.stuck
        assert made(COMMITTED) == [] and not made.subject.holds


def test_user_code_that_occupies_its_slot_is_abandoned_when_the_node_leaves() -> None:
    made = overdue()
    made.due(StopOverdue)
    made(COMMITTED)
    assert made(RunnerAbandoned()) == [] and not made.subject.holds


def test_a_timeout_of_user_code_that_does_not_stop() -> None:
    """Its lease ran out here, so nobody was told; after its timeout the task has failed, whatever becomes of it."""
    made = timed(seconds=60.0)
    made(EXPIRED)
    made.due(StopOverdue)
    assert made.state is UNSTOPPABLE
    assert made.due(RunnerOverdue) == [outcome(OutcomeKind.FAILED, "timeout", "the runner took longer than its 60 s")]
    assert made.subject.holds
    for stop in (CANCEL, GONE):
        made = timed(seconds=60.0)
        made(stop)
        made.due(StopOverdue)
        assert made.due(RunnerOverdue) == [] and made.state is UNSTOPPABLE, "there is nobody to tell"


def test_every_edge_is_taken() -> None:
    assert not untaken(lease, globals())
