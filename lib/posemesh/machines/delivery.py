"""Delivery: one outcome's way to the task service, which alone knows whether the lease still stands.

Rules:
1. A committed outcome is offered until the service itself answers, also past the lease's expiry. A failure to answer,
   and an answer that is about something else (401, 403, 429, 5xx), only delays the next offer.
2. 404, 409 and 410 say that the lease is gone. Where an earlier offer's reply was lost they may as well mean that it
   was taken: that is unconfirmed, not refused.
3. 400, 413 and 422 say that the report itself cannot be taken; the same report never will. The service is told so,
   once, with a failure ``report_rejected``; if it does not take that either, the outcome is stuck and the operator's.
   That failure is offered without a pause, unless the task was cancelled or leased again meanwhile.
4. A report that was offered once gives way to a newer lease of its task: what that one ends with is what counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from posemesh.commands import Command, OfferOutcome, SettleOutcome, Warn
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
from posemesh.machines._kernel import Edge, Lifecycle, State, Step, Subject
from posemesh.outcomes import FailureCode
from posemesh.policy import offer_delay
from posemesh.types import JSON, Outcome
from posemesh.verdict import failed

__all__ = ("MACHINE", "UNDELIVERED", "Delivery", "DeliveryState", "invariants")


class DeliveryState(State):
    PENDING = "pending", "Committed; the report of a run waits for what user code said last to arrive."
    OFFERING = "offering", "The report is in flight."
    BACKING_OFF = "backing_off", "The service did not answer, or not about this; the next offer has its time."
    DELIVERED = "delivered", "The service took the report."
    REFUSED = "refused", "The service says that the lease is gone."
    UNCONFIRMED = "unconfirmed", "The lease is gone, and an earlier reply was lost: the report may have been taken."
    WITHDRAWN = "withdrawn", "The service cancelled the task before it could hear of its outcome."
    SUPERSEDED = "superseded", "A newer lease of the task is here; the service hears what that one ends with."
    STUCK = "stuck", "The service takes neither the report nor the failure in its place. Kept for the operator."


PENDING, OFFERING, BACKING_OFF, DELIVERED, REFUSED, UNCONFIRMED, WITHDRAWN, SUPERSEDED, STUCK = DeliveryState

UNDELIVERED = frozenset({PENDING, OFFERING, BACKING_OFF})
"""The states in which an outcome counts as waiting."""


@dataclass(eq=False, slots=True, kw_only=True)
class Delivery(Subject):
    """``offers`` were answered or lost so far; ``substitute`` is the failure offered in place of a rejected report."""

    state: State = PENDING
    outcome: Outcome | None = None
    substitute: Outcome | None = None
    offers: int = 0
    reply_lost: bool = False
    blocked: bool = False
    retried: bool = False
    token_generation: int = 0
    problem: str = ""

    @property
    def unanswered(self) -> bool:
        """Its first offer has not been answered, nor failed but for want of a token."""
        return self.outcome is not None and (self.offers == 0 or self.blocked) and self.state in UNDELIVERED


def gone_unheard(delivery: Delivery, step: Step[OutcomeRejected]) -> bool:
    return step.event.failure.gone and delivery.reply_lost


def gone(delivery: Delivery, step: Step[OutcomeRejected]) -> bool:
    return step.event.failure.gone


def substitute_rejected(delivery: Delivery, step: Step[OutcomeRejected]) -> bool:
    return rejected(delivery, step) and delivery.substitute is not None


def rejected(delivery: Delivery, step: Step[OutcomeRejected]) -> bool:
    return step.event.failure.status in (400, 413, 422)


def token_helps(delivery: Delivery, step: Step[TokenRenewed]) -> bool:
    return delivery.blocked and not delivery.retried


def take(delivery: Delivery, step: Step[OutcomeReady]) -> None:
    delivery.outcome, delivery.reply_lost = step.event.outcome, step.event.reply_lost


def offer(delivery: Delivery, step: Step[Event]) -> Command:
    delivery.disarm(OfferDue)
    outcome = delivery.substitute or delivery.outcome
    assert outcome is not None
    return OfferOutcome(lease=delivery.key, outcome=outcome)


def note_answer(delivery: Delivery, step: Step[OutcomeRejected]) -> None:
    failure = step.event.failure
    delivery.offers += 1
    delivery.problem = failure.message
    delivery.reply_lost |= failure.reply_lost
    delivery.blocked = failure.unauthorized
    delivery.retried = delivery.retried and delivery.blocked


def wait(delivery: Delivery, step: Step[OutcomeRejected]) -> None:
    delivery.arm(OfferDue, step.now + offer_delay(delivery.offers, step.event.failure.retry_after, step.rng))


def prepare_substitute(delivery: Delivery, step: Step[OutcomeRejected]) -> None:
    assert delivery.outcome is not None
    details: dict[str, JSON] = {"outcome": delivery.outcome.kind.value}
    message = step.event.failure.message
    delivery.substitute = failed(delivery.outcome.task, FailureCode.REPORT_REJECTED, message, details=details)
    delivery.arm(OfferDue, step.now)


def settle_as(ending: DeliveryState) -> Callable[[Delivery, Step[Event]], Command]:
    """The action that tells the ledger how the delivery ends."""

    def settle(delivery: Delivery, step: Step[Event]) -> Command:
        return SettleOutcome(lease=delivery.key, ending=ending.value, problem=delivery.problem)

    return settle


def warn_stuck(delivery: Delivery, step: Step[Event]) -> Command:
    task = delivery.outcome.task.task_id if delivery.outcome else ""
    return Warn(message=f"task {task}: the service takes neither its report nor a failure: {delivery.problem}")


def note_token(delivery: Delivery, step: Step[TokenRenewed]) -> None:
    delivery.token_generation = step.event.generation


def note_retry(delivery: Delivery, step: Step[TokenRenewed]) -> None:
    delivery.retried = True


TABLE = (
    Edge(OutcomeReady, PENDING, None, "the outcome is on record", do=(take,)),
    Edge(FlushSettled, PENDING, OFFERING, "nothing is to be waited for", do=(offer,)),
    Edge(
        OutcomeWithdrawn,
        (PENDING, BACKING_OFF),
        WITHDRAWN,
        "nobody waits for the result of a cancelled task",
        do=(settle_as(WITHDRAWN),),
    ),
    Edge(
        OutcomeSuperseded,
        BACKING_OFF,
        SUPERSEDED,
        "it must not end the newer lease",
        do=(settle_as(SUPERSEDED),),
    ),
    Edge(OutcomeAccepted, OFFERING, DELIVERED, "the service has it", do=(settle_as(DELIVERED),)),
    Edge(
        OutcomeRejected,
        OFFERING,
        UNCONFIRMED,
        "gone, perhaps because it was taken",
        gone_unheard,
        (note_answer, settle_as(UNCONFIRMED)),
    ),
    Edge(
        OutcomeRejected,
        OFFERING,
        REFUSED,
        "the service gave the task to another, or ended it",
        gone,
        (note_answer, settle_as(REFUSED)),
    ),
    Edge(
        OutcomeRejected,
        OFFERING,
        STUCK,
        "no report can be made",
        substitute_rejected,
        (note_answer, settle_as(STUCK), warn_stuck),
    ),
    Edge(
        OutcomeRejected,
        OFFERING,
        BACKING_OFF,
        "the service should hear that this task has ended, though not how",
        rejected,
        (note_answer, prepare_substitute),
    ),
    Edge(OutcomeRejected, OFFERING, BACKING_OFF, "it was no answer to this report", do=(note_answer, wait)),
    Edge(OfferDue, BACKING_OFF, OFFERING, "the pause is over", do=(offer,)),
    Edge(
        TokenRenewed, BACKING_OFF, OFFERING, "only the token was missing", token_helps, (note_token, note_retry, offer)
    ),
    Edge(TokenRenewed, tuple(DeliveryState), None, "the next offer has its own time", do=(note_token,)),
)

MACHINE = Lifecycle(
    "delivery",
    DeliveryState,
    TABLE,
    subject=Delivery,
    initial=PENDING,
    ends=(DELIVERED, REFUSED, UNCONFIRMED, WITHDRAWN, SUPERSEDED, STUCK),
)


def invariants(delivery: Delivery) -> Iterator[str]:
    """What does not hold and should."""
    if (delivery.state is BACKING_OFF) != (OfferDue in delivery.timers):
        yield f"{delivery.state} with timers {delivery.timers}"
    if delivery.state is not PENDING and delivery.outcome is None:
        yield f"{delivery.state} without an outcome"
    if delivery.state is STUCK and delivery.substitute is None:
        yield "stuck without having offered a failure"
