"""Session: event in, list of commands out."""

from __future__ import annotations

from typing import Any

import pytest

from posemesh.commands import SendHeartbeat, Warn
from posemesh.events import (
    Event,
    EventLogged,
    FirstAnswerOverdue,
    FlushOverdue,
    FlushWanted,
    HeartbeatAccepted,
    HeartbeatDue,
    HeartbeatFailed,
    KeepAliveWanted,
    LeaseEnded,
    LeaseExpired,
    ProgressMade,
    TokenRenewed,
)
from posemesh.machines import session
from posemesh.machines.session import Flush, SessionState
from posemesh.types import HeartbeatAnswer

from ...stage import Bench, config, failure, sweep, untaken

PENDING, ALIVE, TROUBLED, CANCELLED, LOST, CLOSED = SessionState
TTL = 60.0
FLUSH = FlushWanted()


def accepted(ttl: float | None = TTL, **answer: Any) -> HeartbeatAccepted:
    return HeartbeatAccepted(answer=HeartbeatAnswer(**answer), ttl=ttl)


def failed(status: int | None = 503, retry_after: float | None = None) -> HeartbeatFailed:
    return HeartbeatFailed(failure=failure(status, retry_after=retry_after))


def progress(value: Any = 1) -> ProgressMade:
    return ProgressMade(progress=value)


def logged(value: Any = "e") -> EventLogged:
    return EventLogged(record=value)


def sent(value: Any = None, events: tuple[Any, ...] = (), timeout: float = TTL / 3) -> SendHeartbeat:
    return SendHeartbeat(
        lease=0, task_id="t", progress={} if value is None else value, events=events, timeout=pytest.approx(timeout)
    )


def bench(*events: Event, ttl: float | None = TTL, **settings: Any) -> Bench:
    made = Bench(session, settings=config(**settings), task_id="t")
    made(KeepAliveWanted(ttl=ttl), *events)
    return made


REACH = {
    PENDING: lambda: bench(),
    ALIVE: lambda: bench(accepted()),
    TROUBLED: lambda: bench(failed()),
    CANCELLED: lambda: bench(accepted(cancel=True)),
    LOST: lambda: bench(failed(404)),
    CLOSED: lambda: bench(LeaseEnded()),
}


def test_every_event_in_every_state() -> None:
    sweep(REACH)


def test_a_lease_is_kept_alive() -> None:
    made = Bench(session, task_id="t")
    assert made(KeepAliveWanted(ttl=TTL)) == [sent()]
    for _ in range(5):
        assert made(accepted()) == [] and made.state is ALIVE
        assert 0.25 * TTL <= made.left(HeartbeatDue) <= 0.35 * TTL and made.left(LeaseExpired) == TTL
        left = TTL - made.left(HeartbeatDue)
        assert made.due(HeartbeatDue) == [sent(timeout=left / 3)]


def test_a_timeout_is_the_configured_one_where_that_is_shorter() -> None:
    made = Bench(session, settings=config(request_timeout_secs=5.0), task_id="t")
    assert made(KeepAliveWanted(ttl=TTL)) == [sent(timeout=5.0)]


@pytest.mark.parametrize(
    ("offered", "answered", "ttl"),
    [(60.0, None, 60.0), (None, None, 6.0), (None, 30.0, 30.0), (60.0, 30.0, 30.0), (0.3, None, 6.0), (60.0, 0.3, 0.3)],
)
def test_an_expiry_nobody_knows(offered: float | None, answered: float | None, ttl: float) -> None:
    made = bench(ttl=offered)
    made(accepted(ttl=answered))
    assert made.left(LeaseExpired) == ttl
    assert 0.25 * ttl <= made.left(HeartbeatDue) <= 0.35 * ttl


def test_an_expiry_that_never_moves_ends_in_calm() -> None:
    """Weakness 15 of the reference: heartbeats follow one another without a pause."""
    made = bench(ttl=60.0)
    expires, heartbeats = made.now + 60.0, 0
    while made.now < expires + 60:
        left = expires - made.now
        made(accepted(ttl=left if left > 0.01 else None))
        made.due(HeartbeatDue)
        heartbeats += 1
    assert heartbeats < 250


def test_the_task_waits_a_second_for_the_first_answer() -> None:
    """Weakness 3 of the reference: a hiccup of the first heartbeat burns an attempt."""
    for answer in (accepted(), failed(), failed(404)):
        assert bench(answer).subject.settled
    made = bench()
    assert made.left(FirstAnswerOverdue) == 1.0 and not made.subject.settled
    assert made.due(FirstAnswerOverdue) == [] and made.state is PENDING and made.subject.settled
    made(accepted())
    assert made.state is ALIVE


@pytest.mark.parametrize("status", [None, 400, 401, 403, 408, 429, 500, 503])
def test_a_failed_heartbeat_is_trouble_and_tried_again(status: int | None) -> None:
    """Weakness 1 of the reference: any failed heartbeat loses the lease."""
    made = bench(accepted())
    made.due(HeartbeatDue)
    for bound in (0.5, 1, 2, 4):
        assert made(failed(status)) == [] and made.state is TROUBLED
        assert 0.8 * bound <= made.left(HeartbeatDue) <= 1.2 * bound
        assert len(made.due(HeartbeatDue)) == 1
    made(accepted())
    assert made.state is ALIVE and made.subject.failures == 0


def test_retries_go_on_for_as_long_as_the_lease_lasts() -> None:
    made, tries = bench(ttl=30.0), 0
    while made.state in (PENDING, TROUBLED):
        made(failed(503, retry_after=1000.0))
        tries += 1
        assert made.left(HeartbeatDue) <= max(made.left(LeaseExpired) / 3, 0.05) + 1e-5
        made.due()
    assert made.state is LOST and made.subject.expired and made.now == pytest.approx(1030) and 5 < tries < 40


@pytest.mark.parametrize("status", [404, 409, 410])
def test_what_says_that_the_lease_is_gone(status: int) -> None:
    for made in (bench(), bench(accepted()), bench(failed())):
        assert made(failed(status)) == [] and made.state is LOST and not made.subject.expired


@pytest.mark.parametrize("answer", [{"cancel": True}, {"status": "canceled"}, {"status": "cancelled"}])
def test_cancel_is_honoured_in_every_answer(answer: dict[str, Any]) -> None:
    """Weakness 13 of the reference: the first answer's is not."""
    for made in (bench(), bench(accepted()), bench(failed())):
        assert made(accepted(**answer)) == [] and made.state is CANCELLED and made.subject.settled


def test_a_session_in_trouble_is_told_its_end() -> None:
    test_cancel_is_honoured_in_every_answer({"cancel": True})
    test_what_says_that_the_lease_is_gone(410)


def test_a_lease_that_ran_out() -> None:
    made = bench(accepted())
    made.due(HeartbeatDue)
    assert made.due(LeaseExpired) == [] and made.state is LOST and made.subject.expired
    assert made(accepted()) == [] and made.state is LOST


def test_a_process_that_slept_sends_nothing_under_a_lease_that_ran_out() -> None:
    made = bench(accepted())
    made.now += TTL
    assert made(HeartbeatDue()) == [] and made.state is LOST and made.subject.expired
    made = bench(failed())
    made.now += TTL
    assert made(HeartbeatDue()) == [] and made.state is LOST
    made = bench()
    made.now += TTL
    assert made(FirstAnswerOverdue()) == [] and made.state is LOST
    made = bench(failed(401))
    made.now += TTL
    assert made(TokenRenewed(generation=2)) == []


def test_progress_and_events_are_told_soon_and_together() -> None:
    """Weakness 16 of the reference: one request for each."""
    made = bench(accepted())
    assert made(progress(1), logged("a"), progress(2), logged("b")) == []
    assert made.left(HeartbeatDue) == 0.25
    assert made.due(HeartbeatDue) == [sent(2, ("a", "b"), timeout=(TTL - 0.25) / 3)]
    assert made(accepted()) == [] and not made.subject.unacknowledged and made.left(HeartbeatDue) > 1


def test_what_is_told_later_does_not_put_off_what_was_told_before() -> None:
    made = bench(accepted(), progress())
    made.now += 0.2
    made(logged())
    assert made.left(HeartbeatDue) == pytest.approx(0.05)


def test_what_comes_during_a_heartbeat_goes_with_the_next() -> None:
    made = bench(progress(1), logged("a"))
    assert made(accepted()) == [] and made.left(HeartbeatDue) == 0.25
    made.due(HeartbeatDue)
    assert made(progress(2), logged("b")) == [] and HeartbeatDue not in made.subject.timers
    assert made(accepted()) == []
    assert made.due(HeartbeatDue) == [sent(2, ("b",), timeout=(TTL - 0.25) / 3)]


def test_what_was_not_acknowledged_is_told_again() -> None:
    made = bench(accepted(), progress(1), logged("a"))
    made.due(HeartbeatDue)
    made(failed(None), logged("b"), progress(2))
    (again,) = made.due(HeartbeatDue)
    assert (again.progress, again.events) == (2, ("a", "b"))


def test_events_are_bounded_and_the_oldest_go_first() -> None:
    made = bench(accepted(), *(logged(n) for n in range(10)))
    made.due(HeartbeatDue)
    made(*(logged(n) for n in range(10, 260)))
    assert len(made.subject.events) == 256 and made.subject.dropped == 4
    made(accepted())
    assert made.subject.events == list(range(10, 260))


def test_no_flush_without_anything_to_tell() -> None:
    """Weakness 4 of the reference: every task waits for 200 ms."""
    for made in (bench(accepted()), bench()):
        assert made(FLUSH) == [] and made.subject.flush is Flush.DONE


def test_a_flush_is_sent_at_once_and_ends_with_its_answer() -> None:
    for answer in (accepted(), failed()):
        made = bench(accepted(), progress(1))
        assert made(FLUSH) == [sent(1)] and made.left(FlushOverdue) == 1.0
        made(answer)
        assert made.subject.flush is Flush.DONE and FlushOverdue not in made.subject.timers


def test_progress_of_a_failed_heartbeat_is_still_to_be_flushed() -> None:
    made = bench(accepted(), progress(1))
    made.due(HeartbeatDue)
    made(failed(None))
    assert made.subject.unacknowledged


def test_a_heartbeat_in_flight_that_tells_all_is_flush_enough() -> None:
    made = bench(accepted(), progress(1))
    made.due(HeartbeatDue)
    assert made(FLUSH) == [] and made.subject.flush is Flush.WANTED
    assert made(accepted()) == [] and made.subject.flush is Flush.DONE


def test_a_flush_waits_for_the_heartbeat_in_flight() -> None:
    made = bench(progress(1))
    assert made(FLUSH) == [] and made(accepted()) == [sent(1)]
    made(progress(2))
    assert made(accepted()) == [], "one flush is enough"
    assert made.subject.flush is Flush.DONE


def test_a_flush_that_takes_too_long() -> None:
    for made in (bench(accepted(), progress(1), FLUSH), bench(progress(1), FLUSH)):
        assert made.due(FlushOverdue if made.state is ALIVE else None) == []
        made.wait(0)
        assert made.subject.flush is Flush.DONE
        assert made(accepted()) == []


def test_a_service_in_trouble_is_not_waited_for() -> None:
    """Weakness 2 of the reference: a failed flush discards a finished result."""
    made = bench(progress(1), failed())
    assert made(FLUSH) == [] and made.subject.flush is Flush.DONE


def test_the_end_of_a_session_ends_its_flush() -> None:
    for end in (accepted(cancel=True), failed(409)):
        made = bench(accepted(), progress(1), FLUSH)
        made(end)
        assert made.subject.flush is Flush.DONE
    made = bench(accepted(ttl=0.5), progress(1), FLUSH)
    made.due(LeaseExpired)
    assert made.subject.flush is Flush.DONE


def test_a_heartbeat_that_failed_for_want_of_a_token_is_made_good_once() -> None:
    made = bench(failed(401))
    assert made(TokenRenewed(generation=2)) == [sent()]
    assert made(failed(401), TokenRenewed(generation=3)) == []
    made.due(HeartbeatDue)
    assert made(TokenRenewed(generation=4)) == []
    made(accepted())
    made.due(HeartbeatDue)
    made(failed(401))
    assert len(made(TokenRenewed(generation=5))) == 1


def test_a_token_does_not_help_against_other_trouble() -> None:
    assert bench(failed(503))(TokenRenewed(generation=2)) == []


def test_a_report_the_service_does_not_take_is_dropped_before_the_lease_is_lost() -> None:
    """An event of three megabytes was sent, and refused, until the lease ran out."""
    for status in (400, 413, 422):
        made = bench(accepted(), EventLogged(record="huge"), ProgressMade(progress=1))
        assert made.due(HeartbeatDue) == [sent(1, ("huge",), timeout=made.subject.left(made.now) / 3)]
        (warning,) = made(failed(status))
        assert isinstance(warning, Warn) and made.state is TROUBLED
        (again,) = made.due(HeartbeatDue)
        assert isinstance(again, SendHeartbeat) and (again.progress, again.events) == ({}, ())
        assert made(failed(status)) == [], "what is empty cannot be shed"
        made(EventLogged(record="huge again"))
        made.due(HeartbeatDue)
        assert len(made(failed(status))) == 1 and made.state is TROUBLED


def test_every_edge_is_taken() -> None:
    assert not untaken(session, globals())
