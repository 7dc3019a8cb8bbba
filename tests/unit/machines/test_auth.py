"""Auth: event in, list of commands out."""

from __future__ import annotations

import pytest

from posemesh.commands import GiveUp, SignIn
from posemesh.errors import SignInRefused
from posemesh.events import (
    AttemptDue,
    NodeLeft,
    RearmNoted,
    RefreshDue,
    SignedIn,
    SignInFailed,
    SignInWanted,
    TokenExpired,
    TokenRejected,
)
from posemesh.machines import auth
from posemesh.machines.auth import AuthState
from posemesh.secret import Secret

from ...stage import Bench, config, failure, names, sweep, untaken

SIGNED_OUT, SIGNING_IN, RETRYING, SIGNED_IN, REFRESHING, STOPPED = AuthState
TTL = 3600.0


def bench(*events: object, **settings: object) -> Bench:
    made = Bench(auth, settings=config(**settings))
    made(*events)
    return made


def signed_in(text: str = "t1", ttl: float | None = TTL) -> SignedIn:
    return SignedIn(token=Secret(text), ttl=ttl)


def failed(status: int | None = 503, at_verify: bool = False) -> SignInFailed:
    return SignInFailed(failure=failure(status), at_verify=at_verify)


def refreshing(**settings: object) -> Bench:
    made = bench(SignInWanted(), signed_in(), **settings)
    made.due(RefreshDue)
    return made


def fail_round(made: Bench, status: int | None = 503) -> list[str]:
    """Answer each attempt of a round that has begun with a failure; the names of the last one's commands."""
    for _ in range(made.config.token_reauth_max_retries):
        assert made(failed(status)) == []
        assert made.left(AttemptDue) <= made.config.token_reauth_jitter_ms / 1000
        assert made.due(AttemptDue) == [SignIn()]
    return names(made(failed(status)))


REACH = {
    SIGNED_OUT: lambda: bench(),
    SIGNING_IN: lambda: bench(SignInWanted()),
    RETRYING: lambda: bench(SignInWanted(), failed()),
    SIGNED_IN: lambda: bench(SignInWanted(), signed_in()),
    REFRESHING: refreshing,
    STOPPED: lambda: bench(NodeLeft()),
}


def test_every_event_in_every_state() -> None:
    sweep(REACH)


def test_a_token_is_refreshed_in_time() -> None:
    made = bench()
    assert made(SignInWanted()) == [SignIn()]
    assert made(signed_in()) == []
    assert TTL * 0.75 - 0.5 <= made.left(RefreshDue) <= TTL * 0.75 + 0.5
    assert made.due(RefreshDue) == [SignIn()]
    assert made.subject.usable(made.now) == (Secret("t1"), 1)
    assert made(signed_in("t2")) == []
    assert made.subject.usable(made.now) == (Secret("t2"), 2)


def test_a_round_is_one_attempt_and_the_retries() -> None:
    made = bench(SignInWanted(), token_reauth_max_retries=3)
    assert fail_round(made) == ["Warn"]
    assert made.state is RETRYING and 10 <= made.left(AttemptDue) <= 12


def test_without_retries_an_attempt_is_a_round() -> None:
    made = bench(SignInWanted(), token_reauth_max_retries=0)
    assert names(made(failed())) == ["Warn"]
    assert made.left(AttemptDue) >= 10


def test_rounds_are_ever_further_apart() -> None:
    """Weakness 42 of the reference: it hammers DDS without a pause."""
    made = bench(SignInWanted())
    for bound in (10, 20, 40, 80, 160, 300, 300):
        fail_round(made)
        assert bound <= made.left(AttemptDue) <= bound * 1.2
        assert made.due(AttemptDue) == [SignIn()]


@pytest.mark.parametrize("status", [400, 401, 403])
@pytest.mark.parametrize("rounds_before", [0, 2])
def test_a_round_refused_throughout_ends_the_start(status: int, rounds_before: int) -> None:
    made = bench(SignInWanted())
    for _ in range(rounds_before):
        fail_round(made, 503)
        made.due(AttemptDue)
    for _ in range(3):
        made(failed(status))
        made.due(AttemptDue)
    (command,) = made(failed(status))
    assert isinstance(command, GiveUp) and isinstance(command.error, SignInRefused)
    assert made.state is STOPPED and made.subject.timers == {}


def test_a_start_that_is_refused() -> None:
    test_a_round_refused_throughout_ends_the_start(403, 0)


@pytest.mark.parametrize("odd", [503, 404, 409, 429, None])
@pytest.mark.parametrize("place", range(4))
def test_one_answer_that_is_no_refusal_is_hope(odd: int | None, place: int) -> None:
    made = bench(SignInWanted())
    for index in range(4):
        made(failed(odd if index == place else 403))
        if index < 3:
            made.due(AttemptDue)
    assert made.state is RETRYING


def test_after_the_first_token_refusals_end_nothing() -> None:
    made = refreshing()
    assert fail_round(made, 403) == ["Warn"]
    assert made.state is SIGNED_IN and made.subject.usable(made.now)


def test_refusals_after_the_token_expired_end_nothing() -> None:
    made = refreshing()
    made.due(TokenExpired)
    assert fail_round(made, 403) == ["Warn"] and made.state is RETRYING


def test_the_old_token_serves_through_an_outage_until_it_expires() -> None:
    """Weakness 41 of the reference: a token past its refresh is not used although it is valid."""
    made, start = bench(SignInWanted(), signed_in()), 1000.0
    while made.state is not RETRYING:
        assert made.subject.usable(made.now) == (Secret("t1"), 1) or made.now >= start + TTL - 1
        made.due()
        if made.state is REFRESHING and not made.subject.timers.get(AttemptDue):
            made(failed(None))
    assert made.now == start + TTL - 1 and made.subject.usable(made.now) is None
    assert made.due(AttemptDue) == [SignIn()]


def test_a_token_that_expires_between_two_attempts() -> None:
    made = refreshing(token_reauth_jitter_ms=100_000)
    made(failed())
    made.subject.timers[AttemptDue] = made.now + 5000
    assert made.due(TokenExpired) == []
    assert made.state is RETRYING and made.subject.attempts == 1
    assert made.due(AttemptDue) == [SignIn()] and made.subject.attempts == 2


def test_a_token_that_expires_during_an_attempt() -> None:
    made = refreshing()
    assert made.due(TokenExpired) == [] and made.state is SIGNING_IN
    made(signed_in("t2"))
    assert made.subject.usable(made.now) == (Secret("t2"), 2)


def test_a_token_that_expires_between_two_rounds() -> None:
    made = refreshing()
    fail_round(made)
    made.subject.timers[RefreshDue] = made.now + 5000
    made.due(TokenExpired)
    assert made.state is RETRYING and made.subject.token is None
    assert made.due(AttemptDue) == [SignIn()] and made.subject.attempts == 1


def test_a_token_without_an_expiry_serves_until_a_401() -> None:
    made = bench(SignInWanted(), signed_in(ttl=None))
    assert made.subject.timers == {} and made.subject.usable(1e12) == (Secret("t1"), 1)
    assert made(TokenRejected(generation=1)) == [SignIn()]


@pytest.mark.parametrize("ttl", [0.0, -5.0])
def test_a_token_that_is_over_on_arrival_is_a_failed_attempt(ttl: float) -> None:
    made = bench(SignInWanted(), signed_in(ttl=ttl))
    assert made.state is RETRYING and made.subject.token is None


def test_tokens_that_are_over_on_arrival_throughout() -> None:
    made = refreshing()
    for _ in range(3):
        made(signed_in("t2", ttl=0.0))
        made.due(AttemptDue)
    assert names(made(signed_in("t2", ttl=0.0))) == ["Warn"]
    assert made.state is SIGNED_IN and made.subject.usable(made.now) == (Secret("t1"), 1)
    made = bench(SignInWanted())
    for _ in range(3):
        made(signed_in(ttl=0.0))
        made.due(AttemptDue)
    assert names(made(signed_in(ttl=0.0))) == ["Warn"] and made.state is RETRYING


def test_a_401_on_the_current_token_signs_in_once() -> None:
    """Weakness 45 of the reference: concurrent 401s cause one sign-in each."""
    made = bench(SignInWanted(), signed_in())
    assert made(TokenRejected(generation=1)) == [SignIn()]
    assert made.subject.usable(made.now) is None
    assert made(TokenRejected(generation=1), TokenRejected(generation=1)) == []


def test_a_401_on_an_older_token_means_nothing() -> None:
    made = bench(SignInWanted(), signed_in(), TokenRejected(generation=1), signed_in("t2"))
    assert made(TokenRejected(generation=1)) == [] and made.state is SIGNED_IN


def test_a_rejected_token_serves_again_when_no_other_can_be_had() -> None:
    made = bench(SignInWanted(), signed_in(), TokenRejected(generation=1))
    fail_round(made)
    assert made.subject.usable(made.now) == (Secret("t1"), 1)
    assert made(TokenRejected(generation=1)) == [], "DDS has its rest"
    assert made.due(RefreshDue) == [SignIn()]
    assert made.subject.usable(made.now) == (Secret("t1"), 1)


@pytest.mark.parametrize(
    ("status", "at_verify", "disowned"),
    [(403, True, True), (404, True, True), (403, False, False), (401, True, False), (503, True, False)],
)
def test_who_disowns_the_wallet(status: int, at_verify: bool, disowned: bool) -> None:
    made = bench(SignInWanted(), failed(status, at_verify))
    assert made.subject.disowned is disowned
    made(RearmNoted())
    assert not made.subject.disowned


def test_a_node_that_left_has_no_token() -> None:
    for arrive in REACH.values():
        made = arrive()
        assert made(NodeLeft()) == []
        assert made.state is STOPPED and made.subject.token is None and made.subject.timers == {}


def test_every_edge_is_taken() -> None:
    assert not untaken(auth, globals())
