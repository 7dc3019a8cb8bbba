"""Delivery against the rules of settling, written by hand."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from posemesh.commands import Command, OfferOutcome, SettleOutcome
from posemesh.events import (
    FlushSettled,
    OutcomeAccepted,
    OutcomeReady,
    OutcomeRejected,
    OutcomeSuperseded,
    OutcomeWithdrawn,
    TokenRenewed,
)
from posemesh.machines import delivery

from ..stage import DONE, Bench, failure
from .running import RARELY, SELDOM, at_length, briefly

EPSILON = 1e-6


class DeliveryRules(RuleBasedStateMachine):
    """``flight`` is the offer under way; ``end`` how it ended; ``tries`` what came back so far, ``said`` what it said
    last.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flight, self.end, self.said = "", "", ""
        self.tries, self.lost, self.substituted = 0, False, False
        self.blocked = self.made_good = False
        self.window = (0.0, 0.0)
        self.generation = 0

    @initialize(seed=st.integers(0, 9), found=SELDOM)
    def build(self, seed: int, found: bool) -> None:
        """Of an outcome that was ``found`` on record nobody knows whether the service has heard."""
        self.delivery, self.lost = Bench(delivery, seed=seed), found
        assert self.delivery(OutcomeReady(outcome=DONE, reply_lost=found)) == []

    @property
    def waits(self) -> bool:
        return self.tries > 0 and not self.flight and not self.end

    def _offered(self, commands: list[Command]) -> None:
        (offer,) = commands
        assert isinstance(offer, OfferOutcome) and not self.flight and not self.end
        if self.substituted:
            assert (offer.outcome.kind, offer.outcome.code) == ("failed", "report_rejected")
        else:
            assert offer.outcome == DONE
        self.flight = "yes"

    def _ended(self, commands: list[Command], end: str) -> None:
        assert commands[0] == SettleOutcome(lease=0, ending=end, problem=self.said)
        self.flight, self.end = "", end

    @precondition(lambda self: not self.tries and not self.flight and not self.end)
    @rule()
    def settle_flush(self) -> None:
        self._offered(self.delivery(FlushSettled()))

    @precondition(lambda self: not self.flight and not self.end)
    @rule(now=RARELY)
    def withdraw(self, now: bool) -> None:
        if now:
            self._ended(self.delivery(OutcomeWithdrawn()), "withdrawn")

    @precondition(lambda self: self.waits)
    @rule(now=RARELY)
    def supersede(self, now: bool) -> None:
        if now:
            self._ended(self.delivery(OutcomeSuperseded()), "superseded")

    @precondition(lambda self: self.flight)
    @rule()
    def accept(self) -> None:
        self._ended(self.delivery(OutcomeAccepted()), "delivered")

    @precondition(lambda self: self.flight)
    @rule(
        status=st.sampled_from([None, 400, 401, 401, 402, 403, 404, 409, 410, 413, 422, 429, 500, 503]),
        sent=st.booleans(),
        retry_after=st.sampled_from([None, None, 2.0, 100.0, 1e6]),
    )
    def reject(self, status: int | None, sent: bool, retry_after: float | None) -> None:
        answer = failure(status, sent=sent or status is not None, retry_after=retry_after)
        self.said = "no answer" if status is None else f"answered {status}"
        commands = self.delivery(OutcomeRejected(failure=answer))
        self.tries += 1
        self.lost |= status is None and sent
        if status in (404, 409, 410):
            self._ended(commands, "unconfirmed" if self.lost else "refused")
        elif status in (400, 413, 422) and self.substituted:
            self._ended(commands, "stuck")
        elif status in (400, 413, 422):
            assert commands == []
            self.flight, self.substituted = "", True
            self.window = (self.delivery.now, self.delivery.now)
        else:
            assert commands == []
            self.flight = ""
            base, held = min(60, 2 ** (self.tries - 1)), min(retry_after or 0, 300)
            now = self.delivery.now
            self.window = (now + max(0.8 * base, held), now + max(1.2 * base, held))
        self.blocked = status == 401
        self.made_good &= self.blocked

    @rule()
    def renew(self) -> None:
        self.generation += 1
        commands = self.delivery(TokenRenewed(generation=self.generation))
        if self.waits and self.blocked and not self.made_good:
            self.made_good = True
            self._offered(commands)
        else:
            assert commands == []

    @rule(seconds=st.sampled_from([0.0, 0.5, 3.0, 60.0, 300.0]))
    def wait(self, seconds: float) -> None:
        end = self.delivery.now + seconds
        while self.delivery.subject.deadline is not None and self.delivery.subject.deadline <= end:
            commands = self.delivery.due()
            assert self.waits and self.window[0] - EPSILON <= self.delivery.now <= self.window[1] + EPSILON
            self._offered(commands)
        self.delivery.now = end

    @invariant()
    def it_is_never_let_go(self) -> None:
        if self.waits:
            assert self.delivery.now <= self.window[1] + EPSILON
        assert bool(self.end) == (self.delivery.state in delivery.MACHINE.ends)
        assert not self.end or self.delivery.state == self.end


def test_delivery() -> None:
    briefly(DeliveryRules, 100)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_delivery_at_length() -> None:
    at_length(DeliveryRules, 600)
