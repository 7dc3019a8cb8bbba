"""Delivery: event in, list of commands out."""

from __future__ import annotations

import pytest

from posemesh.commands import OfferOutcome, SettleOutcome
from posemesh.events import (
    Event,
    FlushSettled,
    OfferDue,
    OutcomeAccepted,
    OutcomeReady,
    OutcomeRejected,
    OutcomeSuperseded,
    OutcomeWithdrawn,
    TokenRenewed,
)
from posemesh.machines import delivery
from posemesh.machines.delivery import UNDELIVERED, DeliveryState
from posemesh.types import OutcomeKind

from ...stage import DONE, Bench, failure, names, sweep, untaken

PENDING, OFFERING, BACKING_OFF, DELIVERED, REFUSED, UNCONFIRMED, WITHDRAWN, SUPERSEDED, STUCK = DeliveryState
OFFER = OfferOutcome(lease=0, outcome=DONE)


def bench(*events: Event) -> Bench:
    made = Bench(delivery)
    made(OutcomeReady(outcome=DONE), *events)
    return made


def rejected(status: int | None = 503, sent: bool = True, retry_after: float | None = None) -> OutcomeRejected:
    return OutcomeRejected(failure=failure(status, sent=sent, retry_after=retry_after))


def settled(ending: str, problem: str = "") -> SettleOutcome:
    return SettleOutcome(lease=0, ending=ending, problem=problem)


def said(status: int | None) -> str:
    """What the ledger is told stood in the way."""
    return "no answer" if status is None else f"answered {status}"


def offering(*events: Event) -> Bench:
    return bench(FlushSettled(), *events)


REACH = {
    PENDING: lambda: bench(),
    OFFERING: lambda: offering(),
    BACKING_OFF: lambda: offering(rejected()),
    DELIVERED: lambda: offering(OutcomeAccepted()),
    REFUSED: lambda: offering(rejected(404)),
    UNCONFIRMED: lambda: lost_then(404),
    WITHDRAWN: lambda: bench(OutcomeWithdrawn()),
    SUPERSEDED: lambda: offering(rejected(), OutcomeSuperseded()),
    STUCK: lambda: substituted(400, rejected(400)),
}


def substituted(status: int, *events: Event) -> Bench:
    """A failure is offered in place of a report that cannot be taken."""
    made = offering(rejected(status))
    made.due(OfferDue)
    made(*events)
    return made


def lost_then(status: int) -> Bench:
    made = offering(rejected(None))
    made.due(OfferDue)
    made(rejected(status))
    return made


def test_every_event_in_every_state() -> None:
    sweep(REACH)


def test_an_outcome_is_delivered() -> None:
    made = bench()
    assert made(FlushSettled()) == [OFFER] and made.subject.unanswered
    assert made(OutcomeAccepted()) == [settled("delivered")]
    assert made.state is DELIVERED and made.subject.timers == {}


@pytest.mark.parametrize("status", [None, 401, 402, 403, 408, 418, 425, 429, 500, 503])
def test_it_is_offered_until_the_service_answers(status: int | None) -> None:
    """Weakness 5 of the reference: a finished result is lost on a blip."""
    made = offering()
    for bound in (1, 2, 4, 8, 16, 32, 60, 60):
        assert made(rejected(status)) == [] and made.state is BACKING_OFF
        assert made.subject.unanswered == (status == 401)  # only the token was missing: the answer is still to come
        assert 0.8 * bound <= made.left(OfferDue) <= 1.2 * bound
        assert made.due(OfferDue) == [OFFER]
    assert made(OutcomeAccepted()) == [settled("delivered", said(status))]


@pytest.mark.parametrize(("asked", "held"), [(120.0, 120.0), (1e9, 300.0)])
def test_retry_after(asked: float, held: float) -> None:
    assert offering(rejected(503, retry_after=asked)).left(OfferDue) == held


@pytest.mark.parametrize("status", [404, 409, 410])
def test_a_lease_that_is_gone(status: int) -> None:
    assert offering()(rejected(status)) == [settled("refused", said(status))]
    made = offering(rejected(None, sent=False), TokenRenewed(generation=2))
    made.due(OfferDue)
    assert made(rejected(status)) == [settled("refused", said(status))], "what was never sent was not taken"
    made = offering(rejected(None))
    made.due(OfferDue)
    assert made(rejected(status)) == [settled("unconfirmed", said(status))], "it may have been taken"


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_report_that_cannot_be_taken(status: int) -> None:
    made = offering()
    assert made(rejected(status)) == [] and made.left(OfferDue) == 0.0, "at once, but others have a say before it"
    (again,) = made.due(OfferDue)
    assert again.outcome.kind is OutcomeKind.FAILED and again.outcome.code == "report_rejected"
    assert again.outcome.task == DONE.task and again.outcome.details["outcome"] == "completed"
    assert made.state is OFFERING
    settle, warning = made(rejected(status))
    assert settle == settled("stuck", said(status)) and names([warning]) == ["Warn"]
    assert made.state is STUCK and made.subject.problem == f"answered {status}"


def test_the_failure_in_its_place_may_be_taken_or_lost() -> None:
    made = substituted(422)
    assert made(rejected(503)) == []
    (again,) = made.due(OfferDue)
    assert again.outcome.code == "report_rejected"
    assert made(OutcomeAccepted()) == [settled("delivered", said(503))]
    made = substituted(422, rejected(None))
    made.due(OfferDue)
    assert made(rejected(409)) == [settled("unconfirmed", said(409))]


def test_a_lost_reply_is_not_forgotten() -> None:
    made = offering(rejected(None))
    for status in (503, 401):
        made.due(OfferDue)
        made(rejected(status))
    made.due(OfferDue)
    assert made(rejected(409)) == [settled("unconfirmed", said(409))]


def test_a_cancelled_outcome_is_not_offered() -> None:
    for made, problem in ((bench(), ""), (offering(rejected(401)), said(401))):
        assert made(OutcomeWithdrawn()) == [settled("withdrawn", problem)] and made.subject.timers == {}


def test_a_report_that_was_offered_gives_way_to_a_newer_lease() -> None:
    made = offering(rejected(503))
    assert made(OutcomeSuperseded()) == [settled("superseded", said(503))]
    assert made.state is SUPERSEDED and made.subject.timers == {}
    assert made(TokenRenewed(generation=2)) == []


def test_a_failure_in_place_of_a_report_gives_way_as_well() -> None:
    """It would end the newer lease as failed, though nobody knows yet what that one comes to."""
    made = offering(rejected(422))
    assert made(OutcomeSuperseded()) == [settled("superseded", said(422))]
    made = offering(rejected(422))
    assert made(OutcomeWithdrawn()) == [settled("withdrawn", said(422))]


@pytest.mark.parametrize("status", [404, 409, 410])
def test_an_outcome_that_is_found_on_record_may_have_been_taken(status: int) -> None:
    """The node before this one may have ended between its offer and the answer."""
    made = Bench(delivery)
    assert made(OutcomeReady(outcome=DONE, reply_lost=True), FlushSettled()) == [OFFER]
    assert made(rejected(401)) == []
    assert made(TokenRenewed(generation=2)) == [OFFER]
    assert made(rejected(status)) == [settled("unconfirmed", said(status))]


def test_an_offer_that_failed_for_want_of_a_token_is_made_good_once() -> None:
    made = offering(rejected(401))
    assert made(TokenRenewed(generation=2)) == [OFFER]
    assert made(rejected(401), TokenRenewed(generation=3)) == []
    assert made.due(OfferDue) == [OFFER]
    assert made(rejected(503), TokenRenewed(generation=4)) == []


def test_what_counts_as_waiting() -> None:
    assert frozenset({PENDING, OFFERING, BACKING_OFF}) == UNDELIVERED == set(DeliveryState) - delivery.MACHINE.ends


def test_every_edge_is_taken() -> None:
    assert not untaken(delivery, globals())
