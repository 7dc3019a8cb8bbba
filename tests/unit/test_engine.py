"""The engine: a node's whole life, event in, list of commands out."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any
from uuid import UUID

import pytest
from msgspec import structs

from posemesh.capacity import Capacity, Offer
from posemesh.commands import (
    Ask,
    CommitAccepted,
    CommitOutcome,
    Leave,
    OfferOutcome,
    Register,
    SendHeartbeat,
    SettleOutcome,
    SignIn,
    StartRunner,
    StopReason,
    StopRunner,
)
from posemesh.engine import LEASE_MACHINES, Engine
from posemesh.errors import IllegalTransition
from posemesh.events import (
    AskFailed,
    CallbackArrived,
    CancelRequested,
    CommitFailed,
    Committed,
    DrainRequested,
    Event,
    EventLogged,
    HeartbeatAccepted,
    HeartbeatFailed,
    LeaseId,
    LeaseOffered,
    LeaseRecovered,
    LeaseUnreadable,
    NodeLeft,
    NodeStarted,
    NoWork,
    OutcomeAccepted,
    OutcomeRecovered,
    OutcomeRejected,
    ProgressMade,
    RegistrationAccepted,
    RunnerFailed,
    RunnerFinished,
    SignedIn,
    SignInFailed,
)
from posemesh.policy import STOP_GRACE_SECS
from posemesh.secret import Secret
from posemesh.types import HeartbeatAnswer

from ..stage import ARTIFACT, CAPABILITY, DONE, TASK, TOKEN, Stage, config, envelope, failure, names

OFFERED = LeaseOffered(envelope=envelope(), ttl=60.0)
DRAIN = DrainRequested(seconds=30.0)


def token(text: str = "token", ttl: float | None = 3600.0) -> SignedIn:
    return SignedIn(token=Secret(text), ttl=ttl)


def beat(lease: int = 1, ttl: float | None = 60.0, **answer: Any) -> HeartbeatAccepted:
    return HeartbeatAccepted(lease=lease, answer=HeartbeatAnswer(**answer), ttl=ttl)


def finished(lease: int = 1) -> RunnerFinished:
    return RunnerFinished(lease=lease, artifacts=(ARTIFACT,))


def rejected(status: int | None = 503, lease: int = 1, **changes: Any) -> OutcomeRejected:
    return OutcomeRejected(lease=lease, failure=failure(status, **changes))


def committed(lease: int = 1) -> Committed:
    return Committed(lease=lease)


def accepted(lease: int = 1) -> OutcomeAccepted:
    return OutcomeAccepted(lease=lease)


def signed_in(**settings: Any) -> Stage:
    """A node with a token whose first ask is in flight."""
    stage = Stage(**settings)
    stage(NodeStarted(), RegistrationAccepted(), token())
    return stage


def running(*events: Event, **settings: Any) -> Stage:
    stage = signed_in(**settings)
    stage(OFFERED, committed(), beat(), *events)
    return stage


def offering(**settings: Any) -> Stage:
    return running(finished(), committed(), **settings)


def ending(stage: Stage) -> str:
    (end,) = stage.engine.ended
    return end.ending


# -- A node's life --------------------------------------------------------------------------------------------------


def test_a_node_at_work() -> None:
    stage = Stage()
    assert stage(NodeStarted()) == [Register()]
    assert stage(RegistrationAccepted()) == [SignIn()]
    assert stage(token()) == [Ask(token=TOKEN, generation=1)]
    accept, heartbeat = stage(OFFERED)
    assert accept == CommitAccepted(lease=1, envelope=envelope())
    assert heartbeat == SendHeartbeat(
        lease=1, task_id=str(TASK), progress={}, events=(), timeout=20.0, token=TOKEN, generation=1
    )
    assert stage(committed()) == []
    assert stage(beat()) == [StartRunner(lease=1, envelope=envelope())]
    assert stage(finished()) == [CommitOutcome(lease=1, outcome=DONE)]
    assert stage(committed()) == [OfferOutcome(lease=1, outcome=DONE, token=TOKEN, generation=1)]
    assert stage(accepted()) == [SettleOutcome(lease=1, ending="delivered"), Ask(token=TOKEN, generation=1)]
    assert ending(stage) == "completed"
    assert stage.engine.statistics().counters == {"leased": 1, "completed": 1}
    assert stage.engine.statistics().tasks == ()


def test_a_step_moves_any_number_of_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """What concerns all leases at once is one step: a renewed token, a stop. It was taken for one without an end."""
    monkeypatch.setattr("posemesh.engine.STEPS_MAX", 20)
    stage = signed_in(max_concurrency=30)
    for number in range(1, 31):
        offered = structs.replace(OFFERED, envelope=envelope(task_id=UUID(int=number)), ttl=1e6)
        stage(offered, committed(number), beat(number, ttl=1e6))
    stage.wait(3599.0)
    stage(token("later"))
    told = [command for command in stage(CancelRequested()) if isinstance(command, StopRunner)]
    assert len(told) == 30


def test_a_stop_while_idle_is_immediate() -> None:
    stage = signed_in()
    stage(NoWork())
    assert stage(DRAIN) == [Leave()]
    assert stage(NodeLeft()) == [] and stage.wait(1e6) == []


def test_a_stop_waits_for_an_ask_for_less_than_half_a_second() -> None:
    stage = signed_in()
    assert stage(DRAIN) == []
    assert stage.wait(0.5) == [Leave()]


def test_a_lease_that_arrives_after_the_signal_is_failed_back() -> None:
    stage = signed_in()
    stage(DRAIN)
    assert names(stage(OFFERED)) == ["CommitAccepted"]
    (commit,) = stage(committed())
    assert commit.outcome.code == "node_shutdown"
    assert names(stage(committed())) == ["OfferOutcome"]
    assert names(stage(accepted())) == ["SettleOutcome", "Leave"]
    assert ending(stage) == "failed"


def test_a_task_that_was_being_prepared_at_the_signal_is_failed_back() -> None:
    stage = signed_in()
    stage(OFFERED, committed())
    (commit,) = stage(DRAIN)
    assert commit.outcome.code == "node_shutdown"


def test_a_running_task_may_end_and_its_heartbeats_go_on() -> None:
    stage = running()
    assert stage(DRAIN) == []
    beats = 0
    for _ in range(25):
        for command in stage.wait(1.0):
            assert isinstance(command, SendHeartbeat)
            stage(beat())
            beats += 1
    assert beats
    stage(finished(), committed())
    assert names(stage(accepted())) == ["SettleOutcome", "Leave"]


def test_a_drain_that_is_over_stops_what_runs() -> None:
    stage = running()
    stage(DRAIN)
    assert StopRunner(lease=1, reason="shutdown") in stage.wait(30.0)
    (commit,) = stage(RunnerFailed(lease=1, code="cancelled", message="stopped"))
    assert commit.outcome.code == "node_shutdown"
    stage(committed())
    assert names(stage(accepted())) == ["SettleOutcome", "Leave"]


def test_a_second_signal_stops_what_runs_at_once() -> None:
    stage = running()
    stage(DRAIN)
    assert stage(CancelRequested()) == [StopRunner(lease=1, reason="shutdown")]


def test_cancel_after_the_signal_is_honoured() -> None:
    stage = running()
    heartbeats = stage.wait(21.0)
    assert names(heartbeats) == ["SendHeartbeat"]
    stage(CancelRequested(), beat(cancel=True))
    (commit,) = stage(finished())
    assert commit.outcome.kind == "cancelled"


def test_a_runner_that_does_not_stop_does_not_keep_the_node() -> None:
    stage = running()
    stage(CancelRequested())
    commands = stage.wait(STOP_GRACE_SECS)
    assert names(commands) == ["Warn", "CommitOutcome"]
    assert commands[1].outcome.code == "node_shutdown"
    assert names(stage(committed())) == ["OfferOutcome"]
    assert names(stage(accepted())) == ["SettleOutcome", "Leave"]
    assert stage(finished()) == [], "it ends after all"


def test_a_service_that_does_not_answer_does_not_keep_the_node() -> None:
    stage = offering()
    stage(CancelRequested())
    assert Leave() in stage.wait(5.0)


# -- Keeping a lease ------------------------------------------------------------------------------------------------


def test_cancel_in_the_first_answer_starts_nothing() -> None:
    stage = signed_in()
    stage(OFFERED, committed())
    assert names(stage(beat(cancel=True))) == ["CommitOutcome"]
    assert stage(committed()) == [] and ending(stage) == "cancelled"
    assert stage.states()["poller"] == "waiting"


def test_cancel_before_the_acceptance_is_recorded() -> None:
    for answer in (committed(), CommitFailed(lease=1, problem="disk full")):
        stage = signed_in()
        stage(OFFERED, beat(cancel=True))
        assert names(stage(answer)) == ["CommitOutcome"]
        stage(committed())
        assert ending(stage) == "cancelled"


def test_cancel_stops_a_running_task_and_nothing_is_reported() -> None:
    stage = running()
    assert stage(beat(cancel=True)) == [StopRunner(lease=1, reason="cancelled")]
    assert names(stage(finished())) == ["CommitOutcome"]
    assert names(stage(committed())) == ["Ask"] and ending(stage) == "cancelled"


def test_a_cancelled_lease_that_is_offered_again_is_no_hot_loop() -> None:
    """Weakness 14 of the reference: it asks 1,816 times a second."""
    stage, asks = signed_in(), 0
    for lease in range(1, 8):
        stage(LeaseOffered(envelope=envelope(cancel=True), ttl=60.0), committed(lease))
        assert ending(stage) == "cancelled"
        before = stage.now
        while not asks and names(stage.wait(0.1)) != ["Ask"]:
            pass
        assert stage.now - before >= 0.99
    assert stage.now >= 1000 + 1 + 1 + 2 + 4 + 8 + 15


@pytest.mark.parametrize("status", [404, 409, 410])
def test_a_lost_lease_stops_its_runner_and_nothing_is_reported(status: int) -> None:
    stage = running()
    (heartbeat,) = stage.wait(21.0)
    assert isinstance(heartbeat, SendHeartbeat)
    assert stage(HeartbeatFailed(lease=1, failure=failure(status))) == [StopRunner(lease=1, reason="lost")]
    assert names(stage(finished())) == ["CommitOutcome"]
    assert names(stage(committed())) == ["Ask"] and ending(stage) == "lost"


def test_a_lost_lease() -> None:
    test_a_lost_lease_stops_its_runner_and_nothing_is_reported(404)


def test_while_settling_a_lost_lease_ends_only_the_heartbeats() -> None:
    stage = offering()
    stage(rejected(503))
    heartbeats = [command for command in stage.wait(0.5) if isinstance(command, SendHeartbeat)]
    while not heartbeats:
        heartbeats = [command for command in stage.wait(0.5) if isinstance(command, SendHeartbeat)]
        stage(*(rejected(503) for task in stage.engine.statistics().tasks if task.state == "offering"))
    assert stage(HeartbeatFailed(lease=1, failure=failure(404))) == []
    assert "OfferOutcome" in names(stage.wait(100.0))
    stage(accepted())
    assert ending(stage) == "completed"


def test_an_expired_lease_stops_its_runner_and_a_result_is_still_offered() -> None:
    """Weakness 12 of the reference: expiry is not looked at."""
    stage = running()
    commands = [command for command in stage.wait(60.0) if not isinstance(command, SendHeartbeat)]
    assert commands == [StopRunner(lease=1, reason="expired")]
    stage(finished())
    assert names(stage(committed())) == ["OfferOutcome"]
    stage(accepted())
    assert ending(stage) == "completed"


def test_a_process_that_slept_begins_nothing_under_a_lease_that_ran_out() -> None:
    stage = signed_in()
    stage(OFFERED, HeartbeatFailed(lease=1, failure=failure()))
    stage.now += 60.0
    (commit,) = stage(committed())
    assert commit.outcome.kind == "lost"
    stage = signed_in()
    stage(OFFERED, committed())
    stage.now += 60.0
    assert names(stage.engine.elapse(stage.now)) == ["CommitOutcome"]


def test_a_process_that_slept_believes_an_answer_that_accepts() -> None:
    stage = running()
    (heartbeat,) = stage.wait(21.0)
    assert isinstance(heartbeat, SendHeartbeat)
    stage.now += 60.0
    assert stage(beat()) == [] and stage.states()["1"] == "running"


def test_a_task_runs_although_every_heartbeat_fails() -> None:
    """Weakness 3 of the reference: 8,500 asks in 10 s while heartbeats answer 500."""
    stage = signed_in()
    stage(OFFERED, committed())
    assert names(stage(HeartbeatFailed(lease=1, failure=failure(500)))) == ["StartRunner"]
    for _ in range(15):
        for _command in stage.wait(1.0):
            stage(HeartbeatFailed(lease=1, failure=failure(500)))
    stage(finished())
    assert names(stage(committed())) == ["OfferOutcome"]


def test_a_task_starts_without_the_first_answer_after_a_second() -> None:
    stage = signed_in()
    stage(OFFERED, committed())
    assert stage.wait(0.99) == []
    assert names(stage.wait(0.02)) == ["StartRunner"]


def test_the_last_progress_arrives_before_the_completion() -> None:
    stage = running(ProgressMade(lease=1, progress={"pct": 100}), finished())
    (flush,) = stage(committed())
    assert isinstance(flush, SendHeartbeat) and flush.progress == {"pct": 100}
    assert names(stage(beat())) == ["OfferOutcome"]


def test_a_completion_does_not_wait_longer_than_a_second_for_it() -> None:
    stage = running(ProgressMade(lease=1, progress={"pct": 100}), finished(), committed())
    assert "OfferOutcome" not in names(stage.wait(0.99))
    assert "OfferOutcome" in names(stage.wait(0.01))


def test_a_failed_flush_never_discards_a_result() -> None:
    """Weakness 2 of the reference."""
    for status in (None, 401, 404, 500):
        stage = running(ProgressMade(lease=1, progress=1), finished(), committed())
        commands = stage(HeartbeatFailed(lease=1, failure=failure(status, generation=1)))
        if status == 401:
            assert names(commands) == ["SignIn"], "the offer waits for a token"
            commands = stage(token("two"))
        assert "OfferOutcome" in names(commands)


def test_cancel_in_the_flush_withdraws_the_completion() -> None:
    stage = running(ProgressMade(lease=1, progress=1), finished(), committed())
    assert stage(beat(cancel=True)) == [SettleOutcome(lease=1, ending="withdrawn"), Ask(token=TOKEN, generation=1)]
    assert ending(stage) == "cancelled"


def test_cancel_while_the_outcome_is_being_recorded_withdraws_it() -> None:
    stage = running()
    (heartbeat,) = stage.wait(21.0)
    assert isinstance(heartbeat, SendHeartbeat)
    stage(finished(), beat(cancel=True))
    assert SettleOutcome(lease=1, ending="withdrawn") in stage(committed())


def test_cancel_between_two_offers_withdraws_unless_the_service_may_have_heard() -> None:
    for status, end in ((401, "withdrawn"), (503, "withdrawn"), (None, None)):
        stage = running()
        (heartbeat,) = stage.wait(21.0)
        assert isinstance(heartbeat, SendHeartbeat)
        stage(finished(), committed(), rejected(status))
        commands = stage(beat(cancel=True))
        withdrawn = SettleOutcome(lease=1, ending="withdrawn", problem=f"answered {status}")
        assert (withdrawn in commands) is (end is not None)
        assert ("OfferOutcome" in names(stage.wait(2.0))) is (end is None)


def test_a_task_that_never_ran_has_nothing_to_flush() -> None:
    stage = signed_in()
    stage(OFFERED, CommitFailed(lease=1, problem="disk full"))
    assert names(stage(committed())) == ["OfferOutcome"]


def test_what_user_code_said_last_arrives_before_its_failure() -> None:
    """It is what explains the failure."""
    stage = running(EventLogged(lease=1, record="bad frame 7"), RunnerFailed(lease=1, code="runner_error", message="x"))
    (flush,) = stage(committed())
    assert isinstance(flush, SendHeartbeat) and flush.events == ("bad frame 7",)
    assert names(stage(beat())) == ["OfferOutcome"]


# -- Reporting ------------------------------------------------------------------------------------------------------


def test_every_ending_of_a_report() -> None:
    for answers, end in (
        ([accepted()], "completed"),
        ([rejected(404)], "refused"),
        ([rejected(None), rejected(409)], "unconfirmed"),
        ([rejected(400), accepted()], "failed"),
        ([rejected(422), rejected(413)], "stuck"),
    ):
        stage = offering()
        for index, answer in enumerate(answers):
            stage(answer)
            if index + 1 < len(answers) and "1" in stage.states() and stage.states()["1"] == "backing_off":
                while stage.states()["1"] == "backing_off":
                    stage.wait(0.5)
        assert ending(stage) == end


def test_a_stuck_outcome_is_shown_to_the_operator() -> None:
    stage = offering()
    stage(rejected(422))
    assert offers(stage.wait(0.0)) == [1]
    stage(rejected(413))
    (task,) = stage.engine.statistics().tasks
    assert (task.state, task.problem, task.capability) == ("stuck", "answered 413", CAPABILITY)
    assert stage.states()["poller"] == "asking", "it holds no slot"


def test_a_task_nobody_here_can_run_is_failed_and_the_next_ask_backs_off() -> None:
    stage, since = signed_in(), 1000.0
    for lease, least in enumerate((1, 1, 2, 4, 8), 1):
        (commit,) = stage(LeaseOffered(envelope=envelope(capability="/other/v1"), ttl=60.0))
        assert commit.outcome.code == "no_runner"
        since = stage.now
        assert names(stage(committed(lease), accepted(lease))) == ["OfferOutcome", "SettleOutcome"]
        while "Ask" not in names(stage.wait(0.05)):
            pass
        assert stage.now - since >= least - 0.01


def test_a_lease_that_cannot_be_read_is_failed() -> None:
    stage = signed_in()
    (commit,) = stage(LeaseUnreadable(task_id="t", problem="broken"))
    assert commit.outcome.code == "bad_input"
    assert names(stage(committed())) == ["OfferOutcome"]


# -- Tokens ---------------------------------------------------------------------------------------------------------


def test_a_request_without_a_token_is_answered_here() -> None:
    stage = signed_in()
    stage(NoWork(retry_after=300.0))
    stage.wait(1.0)
    stage.engine.auth.expires_at = stage.now
    commands = stage.wait(300.0)
    assert "Ask" not in names(commands)
    assert stage.engine.poller.blocked and stage.states()["poller"] == "waiting"


def test_a_token_that_expired_while_the_process_slept_is_not_sent() -> None:
    stage = running()
    stage.now += 3600.0
    commands = stage.engine.elapse(stage.now)
    assert names(commands) == ["StopRunner", "SignIn"]


def test_a_heartbeat_waits_for_the_token_and_goes_out_with_it() -> None:
    stage = running()
    (heartbeat,) = stage.wait(21.0)
    assert heartbeat.generation == 1
    assert stage(HeartbeatFailed(lease=1, failure=failure(401, generation=1))) == [SignIn()]
    (again,) = stage(token("two"))
    assert isinstance(again, SendHeartbeat) and (again.token, again.generation) == (Secret("two"), 2)


def test_an_outcome_waits_for_the_token_and_goes_out_with_it() -> None:
    stage = offering()
    commands = stage(rejected(401, generation=1))
    assert "SignIn" in names(commands) and "OfferOutcome" not in names(commands)
    (offer,) = [command for command in stage(token("two")) if isinstance(command, OfferOutcome)]
    assert offer.generation == 2


def test_an_ask_that_met_a_401_is_made_good_once() -> None:
    stage = signed_in()
    assert stage(AskFailed(failure=failure(401, generation=1))) == [SignIn()]
    assert stage(token("two")) == [Ask(token=Secret("two"), generation=2)]
    assert stage(AskFailed(failure=failure(401, generation=2))) == [SignIn()]
    assert stage(token("three")) == []


def test_concurrent_401s_sign_in_once() -> None:
    """Weakness 45 of the reference."""
    stage = running(finished(), committed(), max_concurrency=2)
    assert names(stage(rejected(401, generation=1))).count("SignIn") == 1
    assert "SignIn" not in names(stage(AskFailed(failure=failure(401, generation=1))))
    stage(token("two"))
    assert "SignIn" not in names(stage(HeartbeatFailed(lease=1, failure=failure(401, generation=1))))


def test_a_401_for_a_lease_that_is_over_still_concerns_the_token() -> None:
    stage = offering()
    stage(accepted())
    assert stage(HeartbeatFailed(lease=1, failure=failure(401, generation=1))) == [SignIn()]


def test_an_outage_of_dds_with_a_valid_token_stops_nothing() -> None:
    stage = signed_in()
    while stage.now < 1000.0 + 3500:
        for command in stage.wait(1.0):
            if isinstance(command, SignIn):
                stage(SignInFailed(failure=failure(None)))
            else:
                assert isinstance(command, Ask) and command.token == TOKEN
                stage(NoWork())
    assert stage.states()["auth"] in ("signed_in", "refreshing")


def test_a_wallet_dds_does_not_know_is_registered_again() -> None:
    stage = Stage()
    stage(NodeStarted(), RegistrationAccepted())
    assert stage(SignInFailed(failure=failure(403), at_verify=True)) == [Register()]
    assert stage.states()["registration"] == "registering"


def test_with_a_callback_auth_waits_for_the_stored_secret() -> None:
    stage = Stage(node_url="https://node.example")
    assert stage(NodeStarted(), RegistrationAccepted()) == [Register()]
    (store,) = stage(CallbackArrived(request=1, node_id="n", secret=TOKEN))
    answer, sign_in = stage(store.answers[0](request=1, node_id="n"))
    assert answer.status == 200 and sign_in == SignIn()


# -- Slots ----------------------------------------------------------------------------------------------------------


def test_a_slot_is_free_once_its_outcome_is_committed() -> None:
    stage = running()
    stage(finished())
    assert stage.engine.poller.busy == 1
    stage(committed())
    assert stage.engine.poller.busy == 0
    assert names(stage.wait(1.0)) == ["Ask"], "not when the service has heard of it"


def test_asking_stops_at_64_undelivered_outcomes() -> None:
    stage = signed_in()
    for lease in range(1, 65):
        stage(task(lease), committed(lease), beat(lease), finished(lease), committed(lease), rejected(503, lease))
        while lease < 64 and stage.states()["poller"] != "asking":
            for command in stage.wait(0.1):
                if isinstance(command, SendHeartbeat):
                    stage(beat(command.lease))
                elif isinstance(command, OfferOutcome):
                    stage(rejected(503, command.lease))
    assert stage.states()["poller"] == "full"
    assert len(stage.engine.statistics().tasks) == 64
    while "backing_off" in stage.states().values() and "1" in stage.states():
        offers = [command for command in stage.wait(0.1) if isinstance(command, OfferOutcome)]
        stage(*(accepted(1) if offer.lease == 1 else rejected(503, offer.lease) for offer in offers))
    assert stage.states()["poller"] in ("waiting", "asking")


# -- Runners --------------------------------------------------------------------------------------------------------

A, B = "/a/v1", "/b/v1"
ONE_OF_EACH = Capacity([Offer(A, A, slots=1), Offer(B, B, slots=1)])


def task(
    lease: int, capability: str = CAPABILITY, ttl: float = 3600.0, timeout: float | None = None, **given: Any
) -> LeaseOffered:
    """The offer of a task of its own."""
    made = envelope(capability=capability, task_id=UUID(int=lease))
    return LeaseOffered(envelope=made, ttl=ttl, timeout=timeout, **given)


def limited(capacity: Capacity = ONE_OF_EACH, **settings: Any) -> Stage:
    """A node of many slots whose runners are limited; its first ask is in flight."""
    return signed_in(capacity=capacity, capabilities=(A, B), max_concurrency=8, **settings)


def begin(stage: Stage, lease: int, capability: str, **given: Any) -> list[Any]:
    return stage(task(lease, capability, **given), committed(lease), beat(lease, 3600.0))


def asked(commands: list[Any]) -> list[str | None]:
    return [command.capability for command in commands if isinstance(command, Ask)]


def test_a_runner_is_started_by_its_name() -> None:
    stage = limited()
    start = begin(stage, 1, A, runner="big")
    assert [(one.lease, one.runner) for one in start if isinstance(one, StartRunner)] == [(1, "big")]


def test_where_one_runner_is_taken_the_node_asks_for_the_other() -> None:
    stage = limited()
    assert asked(begin(stage, 1, A)) == [B]
    begin(stage, 2, B)
    assert stage.states()["poller"] == "full" and "Ask" not in names(stage.wait(600.0))
    stage(finished(1))
    assert asked(stage(committed(1), accepted(1))) == [A]


def test_a_lease_that_cannot_begin_waits_with_its_heartbeats_and_the_node_does_not_ask() -> None:
    """A service need not know of the filter."""
    stage = limited()
    begin(stage, 1, A)
    assert names(begin(stage, 2, A)) == ["CommitAccepted", "SendHeartbeat"]
    assert stage.states()["2"] == "queued" and stage.states()["poller"] == "full"
    beats = stage.wait(1200.0)
    assert names(beats) == ["SendHeartbeat"] * 2 and {heartbeat.lease for heartbeat in beats} == {1, 2}
    stage(beat(1, 3600.0), beat(2, 3600.0), finished(1))
    commands = stage(committed(1))
    assert names(commands)[:2] == ["OfferOutcome", "StartRunner"] and stage.states()["2"] == "running"
    assert asked(commands) == [B]


def test_tasks_begin_in_the_order_they_came() -> None:
    stage = limited()
    for lease in (1, 2, 3):
        begin(stage, lease, A)
    for lease in (1, 2, 3):
        assert stage.states()[str(lease)] == "running" and "running" not in [
            stage.states()[str(later)] for later in range(lease + 1, 4)
        ]
        stage(finished(lease), committed(lease))


def test_a_task_that_waits_may_end_before_it_began() -> None:
    for stop, outcome in (
        (beat(2, cancel=True), "cancelled"),
        (HeartbeatFailed(lease=2, failure=failure(404)), "lost"),
        (DRAIN, "node_shutdown"),
        (CancelRequested(), "node_shutdown"),
    ):
        stage = limited()
        begin(stage, 1, A)
        begin(stage, 2, A, ttl=60.0)
        if not isinstance(stop, DrainRequested | CancelRequested):
            stage.wait(1200.0)
        (commit,) = [command for command in stage(stop) if isinstance(command, CommitOutcome)]
        assert outcome in (commit.outcome.kind, commit.outcome.code) and commit.lease == 2
        assert "StartRunner" not in names(stage(committed(2)))


def test_what_ends_before_it_began_makes_room_before_its_end_is_recorded() -> None:
    stage = limited()
    begin(stage, 1, A)
    begin(stage, 2, A, ttl=60.0)
    begin(stage, 3, A)
    stage.wait(1200.0)
    stage(beat(2, cancel=True), finished(1))
    assert stage.states()["2"] == "finishing"
    assert [one.lease for one in stage(committed(1)) if isinstance(one, StartRunner)] == [3]


def test_a_task_does_not_begin_under_a_lease_that_ran_out_while_it_waited() -> None:
    """The process slept; the first event after that is another lease's."""
    stage = limited()
    begin(stage, 1, A)
    stage(task(2, A, ttl=60.0), committed(2), beat(2, 60.0))
    stage(finished(1))
    stage.now += 60.0
    assert "StartRunner" not in names(stage(committed(1)))
    assert [one.outcome.kind for one in stage.engine.elapse(stage.now) if isinstance(one, CommitOutcome)] == ["lost"]


def test_named_resources_are_shared_by_runners() -> None:
    gpu = {"gpu": 1}
    stage = limited(Capacity([Offer(A, A, resources=gpu), Offer(B, B, resources=gpu)]))
    begin(stage, 1, A)
    assert stage.states()["poller"] == "full"
    begin(stage, 2, B)
    assert stage.states()["2"] == "queued"
    stage(finished(1))
    assert "StartRunner" in names(stage(committed(1)))


def test_a_task_leased_again_does_not_run_twice_at_once() -> None:
    """Its lease ran out at the service while its user code still runs here."""
    stage = running(max_concurrency=2)
    stage(OFFERED, committed(2), beat(2))
    assert stage.states()["2"] == "queued"
    stage(finished(1))
    assert "StartRunner" in names(stage(committed(1)))


def test_a_task_leased_again_is_given_back_where_its_user_code_does_not_stop() -> None:
    stage = running(HeartbeatFailed(lease=1, failure=failure(404)), max_concurrency=2)
    stage(OFFERED, committed(2), beat(2))
    assert stage.states() | {"1": "stopping", "2": "queued"} == stage.states()
    (commit,) = [command for command in stage.wait(STOP_GRACE_SECS) if isinstance(command, CommitOutcome)]
    assert commit.lease == 2 and commit.outcome.code == "no_runner" and "goes on" in commit.outcome.message
    stage(committed(2), accepted(2))
    assert ending(stage) == "failed" and stage.states()["1"] == "unstoppable"
    assert "Ask" in names(stage.wait(5.0)), "the node goes on with what it can do"


def test_a_lease_does_not_wait_for_a_runner_that_is_held_by_user_code_that_does_not_stop() -> None:
    stage = limited()
    begin(stage, 1, A, timeout=10.0)
    stage.wait(10.0 + STOP_GRACE_SECS)
    stage(committed(1), accepted(1))
    assert "CommitOutcome" in names(begin(stage, 2, A)) and stage.states()["2"] == "finishing"


def test_a_lease_that_ran_out_while_it_waited_is_not_given_back() -> None:
    """The process slept: user code was found not to stop before anybody looked at the lease that waits for it."""
    stage = limited()
    begin(stage, 1, A, timeout=10.0)
    stage(task(2, A, ttl=13.5), committed(2), beat(2, 13.5))
    stage.wait(10.0)
    stage.now += 4.0
    ends = {one.lease: one.outcome for one in stage.engine.elapse(stage.now) if isinstance(one, CommitOutcome)}
    assert ends[1].code == "timeout" and ends[2].kind == "lost"


# -- Timeouts -------------------------------------------------------------------------------------------------------


def overdue() -> Stage:
    """User code that may take 10 s was told to stop after them."""
    stage = limited()
    begin(stage, 1, A, timeout=10.0)
    assert stage.wait(9.99) == []
    assert stage.wait(0.01) == [StopRunner(lease=1, reason=StopReason.TIMEOUT)]
    return stage


def test_a_task_that_takes_too_long_is_failed() -> None:
    stage = overdue()
    (commit,) = stage(RunnerFailed(lease=1, code="cancelled", message="x", details={"output": ["last words"]}))
    assert commit.outcome.reason == "timeout: the runner took longer than its 10 s"
    assert commit.outcome.details == {"code": "timeout", "output": ["last words"]}
    stage(committed(1), accepted(1))
    assert ending(stage) == "failed"


def test_a_result_that_arrives_after_the_timeout_is_not_taken_also_where_nobody_looked() -> None:
    stage = limited()
    begin(stage, 1, A, timeout=10.0)
    stage.now += 10.0
    *_, commit = stage(finished())
    assert commit.outcome.code == "timeout" and commit.outcome.artifacts == (ARTIFACT,)
    stage = limited()
    begin(stage, 1, A, timeout=10.0)
    stage.now += 9.9
    (commit,) = stage(finished())
    assert commit.outcome.kind == "completed"


def test_user_code_that_ignores_its_timeout_is_reported_and_holds_its_slot() -> None:
    stage = overdue()
    assert names(stage.wait(STOP_GRACE_SECS)) == ["Warn", "CommitOutcome"]
    assert names(stage(committed(1))) == ["OfferOutcome"]
    stage(accepted(1))
    assert ending(stage) == "failed", "the service knows, and so does the operator"
    (held,) = stage.engine.statistics().tasks
    assert held.state == "delivered" and held.problem == "its user code was told to stop and goes on; it keeps its slot"
    assert stage.engine.poller.busy == 1 and stage.engine.poller.with_room == (B,)
    assert asked(stage.wait(60.0)) in ([B], [])
    assert stage(ProgressMade(lease=1, progress=1)) == [], "nobody listens any more"
    commands = stage(finished(1))
    assert stage.engine.ended == [] and stage.engine.statistics().tasks == ()
    assert stage.engine.poller.busy == 0 and stage.engine.poller.with_room is None
    assert stage.engine.statistics().counters == {"leased": 1, "failed": 1} and "StartRunner" not in names(commands)


def test_what_the_service_says_of_such_a_report_is_shown_beside_it() -> None:
    stage = overdue()
    stage.wait(STOP_GRACE_SECS)
    stage(committed(1), rejected(503))
    (held,) = stage.engine.statistics().tasks
    assert held.state == "backing_off" and held.problem.startswith("answered 503 - its user code")


def test_user_code_that_ignores_its_timeout_does_not_keep_the_node() -> None:
    stage = overdue()
    stage.wait(STOP_GRACE_SECS)
    stage(committed(1), accepted(1), NoWork())
    assert stage(DRAIN) == [Leave()]
    assert stage(finished(1)) == [], "it ends after all"


def test_it_may_also_run_out_of_time_while_the_node_waits_for_it() -> None:
    stage = limited()
    begin(stage, 1, A, timeout=10.0)
    stage(NoWork(), DRAIN)
    assert names(stage.wait(10.0 + STOP_GRACE_SECS)) == ["StopRunner", "Warn", "CommitOutcome"]
    stage(committed(1))
    assert names(stage(accepted(1))) == ["SettleOutcome", "Leave"]


# -- What a node finds on record ------------------------------------------------------------------------------------

FIRST = 10
"""The number of the first lease that the node itself gets."""
FOUND = LeaseRecovered(lease=1, envelope=envelope(), ttl=60.0, runner="big", timeout=5.0)
OWED = OutcomeRecovered(lease=1, outcome=DONE)


def recovering(*events: Event, **settings: Any) -> Stage:
    """A node that starts with ``events`` on record, before there is a token."""
    stage = Stage(first_lease=FIRST, **settings)
    assert stage(*events) == []
    stage(NodeStarted(), RegistrationAccepted())
    return stage


def asking(*events: Event, **settings: Any) -> Stage:
    """It has a token, and a heartbeat asks whether the lease that it found stands."""
    stage = recovering(*(events or (FOUND,)), **settings)
    (heartbeat,) = stage(token())
    assert isinstance(heartbeat, SendHeartbeat) and heartbeat.task_id == str(TASK)
    return stage


def test_a_lease_that_is_found_waits_for_a_token_before_it_is_asked_about() -> None:
    stage = recovering(FOUND)
    assert stage.wait(600.0) == [] and stage.states()["1"] == "found", "its time does not begin either"
    assert stage(token()) == [
        SendHeartbeat(lease=1, task_id=str(TASK), progress={}, events=(), timeout=20.0, token=TOKEN, generation=1)
    ]
    assert stage.engine.statistics().counters == {"recovered": 1}


def test_a_lease_that_stands_runs_again_with_its_terms_as_they_are_now() -> None:
    stage = asking()
    assert stage.engine.poller.busy == 1 and stage.engine.poller.spare == 0
    moved = envelope(domain_server_url="https://moved.example")
    assert stage(beat(domain_server_url="https://moved.example")) == [CommitAccepted(lease=1, envelope=moved)]
    assert stage(committed()) == [StartRunner(lease=1, envelope=moved, runner="big")]
    assert stage(finished()) == [CommitOutcome(lease=1, outcome=DONE)]
    assert names(stage(committed())) == ["OfferOutcome"]
    assert stage(accepted()) == [SettleOutcome(lease=1, ending="delivered"), Ask(token=TOKEN, generation=1)]
    assert ending(stage) == "completed"
    assert [one.lease for one in stage(OFFERED) if isinstance(one, CommitAccepted)] == [FIRST]


def test_a_lease_that_is_found_does_not_begin_before_the_service_said_that_it_stands() -> None:
    """A new one begins without the first answer after a second; nobody knows whether this one is still ours."""
    stage = asking()
    assert stage.wait(1.5) == [] and stage.states()["1"] == "found"
    stage(HeartbeatFailed(lease=1, failure=failure(503)))
    assert names(stage.wait(30.0)) == ["SendHeartbeat"]
    assert names(stage(beat())) == ["CommitAccepted"]
    assert names(stage(committed())) == ["StartRunner"]


def test_a_lease_that_is_found_may_not_stand() -> None:
    for event, kind in (
        (HeartbeatFailed(lease=1, failure=failure(404)), "lost"),
        (HeartbeatFailed(lease=1, failure=failure(409)), "lost"),
        (HeartbeatFailed(lease=1, failure=failure(410)), "lost"),
        (beat(cancel=True), "cancelled"),
        (beat(status="canceled"), "cancelled"),
    ):
        stage = asking()
        (commit,) = stage(event)
        assert isinstance(commit, CommitOutcome) and commit.outcome.kind == kind
        assert stage(committed()) == [] and ending(stage) == kind, "nothing is reported"
        assert "Ask" in names(stage.wait(2.0)), "its slot is free"


def test_a_lease_that_is_found_runs_out_where_the_service_does_not_answer() -> None:
    stage = asking()
    (commit,) = [one for one in stage.wait(60.0) if isinstance(one, CommitOutcome)]
    assert commit.outcome.kind == "lost"
    stage = asking(structs.replace(FOUND, ttl=None))
    assert "CommitOutcome" not in names(stage.wait(5.9)), "its expiry is past, and says nothing"
    assert "CommitOutcome" in names(stage.wait(0.1))
    assert "CommitAccepted" not in names(stage(beat())), "the answer came too late"


def test_a_node_that_leaves_gives_back_what_it_found() -> None:
    for stage in (recovering(FOUND), asking()):
        for stop in (DRAIN, CancelRequested()):
            made = stage(stop)
            if stop is DRAIN:
                (commit,) = made
                assert commit.outcome.code == "node_shutdown"
        assert "StartRunner" not in names(stage(committed(), beat()))
        assert Leave() in stage.wait(6.0)
    stage = recovering(FOUND)
    (commit,) = stage(CancelRequested())
    assert commit.outcome.code == "node_shutdown"


def test_a_node_that_finds_a_lease_while_it_stops_gives_it_back() -> None:
    stage = Stage(first_lease=FIRST)
    stage(NodeStarted(), DRAIN)
    (commit,) = stage(FOUND)
    assert commit.outcome.code == "node_shutdown"


def test_no_work_is_asked_for_while_a_lease_that_was_found_may_take_the_room() -> None:
    stage = asking(FOUND, max_concurrency=4)
    assert stage.states()["poller"] == "full" and "Ask" not in names(stage.wait(20.0))
    stage(beat())
    assert "Ask" in names(stage.wait(2.0)), "accepted, it takes one slot"


def test_leases_that_were_found_begin_in_their_order() -> None:
    one, two = (
        LeaseRecovered(lease=lease, envelope=envelope(capability=A, task_id=UUID(int=lease)), ttl=60.0)
        for lease in (1, 2)
    )
    stage = recovering(two, one, capacity=ONE_OF_EACH, capabilities=(A, B), max_concurrency=2)
    assert [beat.lease for beat in stage(token())] == [2, 1]
    assert names(stage(beat(2))) == ["CommitAccepted"]
    assert stage(committed(2)) == [] and stage.states()["2"] == "queued", "the one before it may stand"
    commands = stage(HeartbeatFailed(lease=1, failure=failure(404)))
    assert names(commands)[:2] == ["CommitOutcome", "StartRunner"] and stage.states()["2"] == "running"


def test_a_task_that_must_not_run_again_is_failed_without_asking() -> None:
    stage = Stage(first_lease=FIRST)
    (commit,) = stage(structs.replace(FOUND, code="killed", problem="how far it came is unknown"))
    assert commit.outcome.reason == "killed: how far it came is unknown"
    assert stage(committed()) == [] and stage.states()["1"] == "backing_off", "there is no token yet"
    assert stage(NodeStarted(), RegistrationAccepted()) == [Register(), SignIn()]
    assert stage(token()) == [OfferOutcome(lease=1, outcome=commit.outcome, token=TOKEN, generation=1)]
    assert stage(rejected(404)) == [SettleOutcome(lease=1, ending="refused", problem="answered 404")]
    assert ending(stage) == "refused"


def test_an_outcome_that_is_found_is_offered_as_soon_as_there_is_a_token() -> None:
    stage = recovering(OWED)
    assert stage.states()["1"] == "backing_off" and stage.engine.poller.busy == 0
    assert "OfferOutcome" not in names(stage.wait(100.0))
    offer, *_ = stage(token())
    assert offer == OfferOutcome(lease=1, outcome=DONE, token=TOKEN, generation=1)
    assert stage(accepted())[0] == SettleOutcome(lease=1, ending="delivered", problem="no node token")
    assert ending(stage) == "completed" and stage.engine.statistics().counters == {"recovered": 1, "completed": 1}


def test_an_outcome_that_is_found_while_there_is_a_token_is_offered_at_once() -> None:
    stage = Stage(first_lease=FIRST)
    stage(NodeStarted(), RegistrationAccepted(), token())
    assert stage(OWED) == [OfferOutcome(lease=1, outcome=DONE, token=TOKEN, generation=1)]


def test_an_outcome_that_is_found_may_have_been_heard() -> None:
    for status in (404, 409, 410):
        stage = recovering(OWED)
        stage(token())
        assert stage(rejected(status))[0] == SettleOutcome(lease=1, ending="unconfirmed", problem=f"answered {status}")
        assert ending(stage) == "unconfirmed"


def test_outcomes_that_are_found_count_as_waiting() -> None:
    owed = [
        OutcomeRecovered(lease=key, outcome=replace(DONE, task=replace(DONE.task, task_id=str(key))))
        for key in range(1, 65)
    ]
    stage = Stage(first_lease=FIRST + 64)
    stage(*owed, NodeStarted(), RegistrationAccepted())
    assert names(stage(token())) == ["OfferOutcome"] * 64 and stage.states()["poller"] == "full"
    assert "Ask" in names(stage(*(accepted(key) for key in range(1, 65)))) + names(stage.wait(1.0))


@pytest.mark.parametrize("lease", [0, -1, FIRST, FIRST + 1])
@pytest.mark.parametrize("event", [FOUND, OWED], ids=["lease", "outcome"])
def test_a_number_that_no_recovered_lease_can_have(event: LeaseRecovered | OutcomeRecovered, lease: LeaseId) -> None:
    stage = Stage(first_lease=FIRST)
    before = _all(stage.engine)
    with pytest.raises(KeyError, match="below 10"):
        stage(structs.replace(event, lease=lease))
    assert _all(stage.engine) == before and stage.engine.statistics().counters == {}


@pytest.mark.parametrize("event", [FOUND, OWED], ids=["lease", "outcome"])
def test_a_number_is_given_once(event: Event) -> None:
    stage = asking()
    for seconds in (0.0, 60.0):
        stage.now += seconds  # nobody looked at its expiry
        before = _all(stage.engine)
        with pytest.raises(KeyError, match="a number of its own below 10"):
            stage(event)
        assert _all(stage.engine) == before
    with pytest.raises(KeyError, match="below 1"):
        Stage()(event)


# -- A task that is leased again ------------------------------------------------------------------------------------


def waiting_report(**settings: Any) -> Stage:
    """The first lease's report met a service in trouble; its ask is in flight."""
    stage = offering(max_concurrency=4, **settings)
    stage(rejected(503))
    assert stage.states()["1"] == "backing_off"
    return stage


def superseded(commands: list[Any], lease: int = 1, problem: str = "answered 503") -> bool:
    return SettleOutcome(lease=lease, ending="superseded", problem=problem) in commands


def offers(commands: list[Any]) -> list[int]:
    return [command.lease for command in commands if isinstance(command, OfferOutcome)]


def test_a_report_gives_way_to_a_newer_lease_of_its_task() -> None:
    """Else it would end what runs anew."""
    stage = waiting_report()
    commands = stage(OFFERED)
    assert CommitAccepted(lease=2, envelope=envelope()) in commands and superseded(commands)
    (end,) = stage.engine.ended
    assert (end.lease, end.ending) == (1, "superseded") and "1" not in stage.states()
    assert names(stage(committed(2), beat(2))) == ["StartRunner"]
    assert offers(stage.wait(15.0)) == []


def test_a_report_does_not_give_way_to_another_task() -> None:
    stage = waiting_report()
    assert not superseded(stage(task(2))) and offers(stage.wait(2.0)) == [1]


def test_a_report_gives_way_to_whatever_the_newer_lease_ends_with() -> None:
    for event in (
        LeaseOffered(envelope=envelope(cancel=True), ttl=60.0),
        LeaseOffered(envelope=envelope(capability="/other/v1"), ttl=60.0),
        LeaseUnreadable(task_id=str(TASK), problem="broken"),
    ):
        assert superseded(waiting_report()(event))


def test_a_report_that_is_under_way_is_offered_to_its_end() -> None:
    stage = offering(max_concurrency=4)
    assert not superseded(stage(OFFERED))
    assert stage.states()["1"] == "offering"
    assert superseded(stage(rejected(503))), "once is enough"
    stage = offering(max_concurrency=4)
    stage(OFFERED)
    assert SettleOutcome(lease=1, ending="delivered") in stage(accepted())


def test_a_report_that_cannot_be_taken_gives_way_before_a_failure_takes_its_place() -> None:
    """The service would take that failure for the end of the newer lease."""
    stage = offering(max_concurrency=4)
    stage(OFFERED, committed(2), beat(2))
    assert superseded(stage(rejected(422)), problem="answered 422")
    assert stage.states()["2"] == "running" and offers(stage.wait(2.0)) == []


def test_a_report_that_cannot_be_taken_is_not_replaced_where_the_task_was_cancelled() -> None:
    stage = running()
    (heartbeat,) = stage.wait(21.0)
    assert isinstance(heartbeat, SendHeartbeat)
    stage(finished(), committed(), beat(cancel=True))
    assert SettleOutcome(lease=1, ending="withdrawn", problem="answered 422") in stage(rejected(422))
    assert ending(stage) == "cancelled"


def test_a_report_that_waits_for_the_last_words_of_its_task_is_offered_once() -> None:
    stage = running(ProgressMade(lease=1, progress=1), finished(), committed(), max_concurrency=4)
    assert not superseded(stage(OFFERED)) and stage.states()["1"] == "pending"
    assert offers(stage(beat())) == [1]
    assert superseded(stage(rejected(503)))


def test_a_newer_lease_that_waits_for_the_older_one_s_end_leaves_it_its_report() -> None:
    stage = running(max_concurrency=4)
    stage(OFFERED, committed(2), beat(2))
    assert stage.states() | {"1": "running", "2": "queued"} == stage.states()
    commands = stage(finished(), committed())
    assert offers(commands) == [1] and StartRunner(lease=2, envelope=envelope()) in commands
    assert not superseded(commands) and superseded(stage(rejected(503)))


def twice() -> tuple[Stage, LeaseOffered]:
    """The first lease's report waits, and the third, of the same task, for the second to leave it its runner."""
    stage = limited()
    begin(stage, 1, A)
    stage(finished(), committed())
    begin(stage, 2, A)
    again = structs.replace(task(3, A), envelope=envelope(capability=A, task_id=UUID(int=1)))
    stage(again, committed(3), beat(3, 3600.0))
    assert stage.states() | {"1": "offering", "2": "running", "3": "queued"} == stage.states()
    assert not superseded(stage(rejected(503)))
    return stage, again


def test_a_newer_lease_that_waits_for_room_leaves_the_older_one_its_report() -> None:
    stage, _ = twice()
    assert offers(stage.wait(2.0)) == [1]
    stage(rejected(503), finished(2))
    assert superseded(stage(committed(2))) and stage.states()["3"] == "running", "it has its turn"


def test_a_report_gives_way_also_where_the_lease_after_it_still_waits() -> None:
    stage, again = twice()
    assert superseded(stage(again)) and stage.states() | {"3": "queued", "4": "accepted"} == stage.states()


def test_a_report_gives_way_to_any_newer_lease_that_began() -> None:
    """The newest may wait for the one between them."""
    stage = running(max_concurrency=4)
    stage(OFFERED, committed(2), beat(2), finished(), committed())
    assert stage.states() | {"1": "offering", "2": "running"} == stage.states()
    stage(structs.replace(OFFERED), committed(3), beat(3))
    assert stage.states()["3"] == "queued"
    assert superseded(stage(rejected(503)))


def test_a_report_gives_way_although_a_lease_between_is_over() -> None:
    """The second lease came and went while the first one's offer was under way."""
    stage = offering(max_concurrency=4)
    stage(structs.replace(OFFERED, envelope=envelope(capability="/other/v1")), committed(2), accepted(2))
    assert ending(stage) == "failed"
    stage(rejected(503, 1))
    assert stage.states()["1"] == "backing_off", "there is no newer lease any more"
    assert superseded(stage(OFFERED))


def test_a_result_that_is_there_is_reported_under_the_newer_lease() -> None:
    stage = waiting_report()
    commands = stage(structs.replace(OFFERED, standing=DONE))
    assert CommitOutcome(lease=2, outcome=DONE) in commands and superseded(commands)
    assert "SendHeartbeat" not in names(commands) and "CommitAccepted" not in names(commands)
    assert OfferOutcome(lease=2, outcome=DONE, token=TOKEN, generation=1) in stage(committed(2))
    commands = stage(accepted(2))
    assert SettleOutcome(lease=2, ending="delivered") in commands and ending(stage) == "completed"
    assert "StartRunner" not in names(commands + stage.wait(100.0))


def test_of_what_is_found_the_newest_counts() -> None:
    for first, second in ((1, 2), (2, 1)):
        stage = Stage(first_lease=FIRST)
        assert superseded(
            stage(structs.replace(OWED, lease=first), structs.replace(OWED, lease=second)), problem="no node token"
        )
        assert stage.engine.statistics().counters == {"recovered": 2, "superseded": 1}
        assert offers(stage(NodeStarted(), RegistrationAccepted(), token())) == [2]


def test_an_outcome_that_is_found_gives_way_to_a_lease_that_is_found() -> None:
    """The node before this one took it after it had that outcome."""
    for events in ((OWED, structs.replace(FOUND, lease=2)), (structs.replace(FOUND, lease=2), OWED)):
        stage = Stage(first_lease=FIRST)
        assert superseded(stage(*events), problem="no node token") and stage.states()["2"] == "found"


def test_nothing_is_kept_of_leases_that_are_over() -> None:
    stage = waiting_report()
    stage(OFFERED, committed(2), beat(2), finished(2), committed(2), rejected(503, 2))
    stage(structs.replace(OFFERED, standing=DONE), committed(3), accepted(3))
    stage(task(4), committed(4), beat(4, cancel=True), committed(4))
    stage(LeaseUnreadable(task_id="t", problem="broken"), committed(5), rejected(404, 5))
    assert stage.engine.statistics().tasks == ()
    assert [held for held in vars(stage.engine._succession).values() if held] == []


# -- The engine itself ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "event",
    [
        pytest.param(NodeStarted(), id="a machine of the node"),
        pytest.param(committed(), id="a machine of a lease"),
        pytest.param(OutcomeAccepted(lease=1), id="a machine that does not exist yet"),
        pytest.param(rejected(401, generation=1), id="a 401"),
        pytest.param(structs.replace(OFFERED, lease=1), id="the second of two machines"),
    ],
)
def test_an_illegal_event_raises_and_changes_nothing(event: Event) -> None:
    stage = running()
    before = _all(stage.engine)
    with pytest.raises(IllegalTransition):
        stage.engine.handle(event, stage.now)
    assert _all(stage.engine) == before and stage.engine.moved == []


def _all(engine: Engine) -> str:
    parts = [engine.registration, engine.auth, engine.poller, engine.counters, engine._tasks, engine._next]
    return repr([*parts, engine._holding, engine._waiting, engine._unanswered, engine._ran, engine._unran])


def test_an_event_of_a_lease_that_never_was() -> None:
    stage = running()
    for event in (committed(2), beat(0), committed(-1)):
        with pytest.raises(KeyError, match="never was"):
            stage(event)


def test_events_of_a_lease_that_is_over_are_dropped() -> None:
    stage = offering()
    stage(accepted())
    before = _all(stage.engine)
    assert stage(committed(), beat(), finished(), rejected(404)) == []
    assert _all(stage.engine) == before and stage.engine.moved == []


def test_timers_fire_in_order_and_not_before_their_time() -> None:
    stage = running()
    deadline = stage.engine.next_deadline()
    assert deadline is not None and 15 <= deadline - stage.now <= 21
    assert stage.engine.elapse(deadline - 0.001) == []
    assert names(stage.engine.elapse(deadline)) == ["SendHeartbeat"]
    assert stage.engine.next_deadline() == stage.now + 60


def test_an_engine_at_rest_has_no_deadline() -> None:
    stage = Stage()
    assert stage.engine.next_deadline() is None and stage.engine.elapse(1e9) == []


def test_statistics() -> None:
    stage = running(ProgressMade(lease=1, progress={"pct": 5}))
    found = stage.engine.statistics()
    assert {name: status.state for name, status in found.machines.items()} == {
        "registration": "registered",
        "auth": "signed_in",
        "poller": "full",
    }
    (task,) = found.tasks
    assert (task.lease, task.task_id, task.state, task.progress) == (1, str(TASK), "running", {"pct": 5})
    assert found.machines["auth"].deadline is not None and found.counters == {"leased": 1}
    assert repr(stage.engine) == "<Engine registration registered, auth signed_in, poller full, 1 tasks>"
    assert stage.engine.identity(1) == DONE.task and stage.engine.identity(2) is None
    found.counters["leased"] = 9
    assert stage.engine.statistics().counters == {"leased": 1}


def test_what_moved_is_told() -> None:
    stage = signed_in()
    stage(OFFERED)
    moved = [(record.machine, record.trigger, record.source, record.dest) for record in stage.engine.moved]
    assert moved[:3] == [
        ("poller", "LeaseOffered", "asking", "full"),
        ("lease", "LeaseOffered", "offered", "accepted"),
        ("session", "KeepAliveWanted", "pending", "pending"),
    ]


def test_an_end_is_told_with_its_reason() -> None:
    stage = running(RunnerFailed(lease=1, code="runner_error", message="x"), committed(), rejected(404))
    (end,) = stage.engine.ended
    assert (end.lease, end.ending, end.reason) == (1, "refused", "runner_error: x - answered 404")
    assert end.task == DONE.task


def test_two_engines_share_nothing() -> None:
    one, other = running(), Stage()
    assert other.states() == {"registration": "idle", "auth": "signed_out", "poller": "waiting"}
    assert one.states()["1"] == "running"


def test_the_same_seed_gives_the_same_run() -> None:
    def run(seed: int) -> list[Any]:
        engine, now, found = Engine(config(), {CAPABILITY}, Random(seed)), 0.0, []
        found += engine.handle(NodeStarted(), now)
        found += engine.handle(RegistrationAccepted(), now)
        found += engine.handle(token(), now)
        for _ in range(20):
            engine.handle(NoWork(), now)
            now = engine.next_deadline() or now
            found += [now, *engine.elapse(now)]
        return found

    assert run(1) == run(1) != run(2)


def test_leases_are_numbered_from_where_the_ledger_says() -> None:
    engine = Engine(config(), {CAPABILITY}, Random(0), first_lease=41)
    engine.handle(NodeStarted(), 0.0)
    engine.handle(RegistrationAccepted(), 0.0)
    engine.handle(token(), 0.0)
    assert engine.handle(OFFERED, 0.0)[0].lease == 41


def test_a_fault_in_an_action_leaves_no_timer_that_is_due_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheduler would have done nothing else from then on."""
    stage = running()

    def fault(subject: Any, step: Any) -> None:
        subject.timers.clear()
        raise OverflowError("a fault of ours")

    session = stage.engine._tasks[1].session
    assert session is not None
    before = session.deadline
    for row in LEASE_MACHINES["session"]._rows[session.state][ProgressMade]:
        monkeypatch.setattr(row, "do", (fault,))
    with pytest.raises(OverflowError):
        stage(ProgressMade(lease=1, progress={}))
    assert before is not None and stage.engine.next_deadline() != before
    stage.wait(before - stage.now + 1)
