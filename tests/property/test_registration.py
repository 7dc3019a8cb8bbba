"""Registration against a hand-written model of it, in both flows."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from posemesh.commands import AnswerCallback, Command, GiveUp, Register, StoreSecret, Warn
from posemesh.events import (
    CallbackArrived,
    HealthProbed,
    NodeLeft,
    NodeStarted,
    RegistrationAccepted,
    RegistrationRejected,
    SecretStored,
    SecretUnstored,
    WalletDisowned,
)
from posemesh.machines import registration
from posemesh.secret import Secret

from ..stage import Bench, config, failure
from .running import RARELY, at_length, briefly

INTERVAL = 120.0
EPSILON = 1e-6


class RegistrationRules(RuleBasedStateMachine):
    """``phase`` is idle, flight, await, up, pause or over; ``window`` is when the next request may and must leave."""

    def __init__(self) -> None:
        super().__init__()
        self.phase, self.window = "idle", (0.0, 0.0)
        self.fails = self.refusals = self.requests = 0
        self.ever, self.caller = False, None
        self.warned: float | None = None
        self.stores: list[StoreSecret] = []

    @initialize(callback=st.booleans(), retries=st.sampled_from([-1, 0, 1, 3]), seed=st.integers(0, 9))
    def build(self, callback: bool, retries: int, seed: int) -> None:
        self.callback, self.retries = callback, retries
        url = "https://node.example" if callback else None
        settings = config(node_url=url, register_interval_secs=INTERVAL, register_max_retry=retries)
        self.reg = Bench(registration, settings=settings, seed=seed)

    # -- What the model expects

    def _sent(self, commands: list[Command]) -> None:
        assert commands == [Register()]
        self.phase, self.caller = "flight", None

    def _up(self) -> None:
        self.phase, self.ever, self.fails, self.refusals, self.warned = "up", True, 0, 0, None
        end = self.reg.now + INTERVAL if self.callback else float("inf")
        self.window = (end, end)

    def _warned(self, commands: list[Command]) -> None:
        due = self.warned is None or self.reg.now - self.warned >= 180
        assert [type(command) for command in commands] == [Warn] * due
        self.warned = self.reg.now if due else self.warned

    def _pause(self, low: float, high: float) -> None:
        self.phase, self.window = "pause", (self.reg.now + low, self.reg.now + high)

    def _back_off(self) -> None:
        self.fails += 1
        base = min(60, 2**self.fails)
        self._pause(0.8 * base, 1.2 * base)

    # -- What happens

    @precondition(lambda self: self.phase == "idle")
    @rule()
    def start(self) -> None:
        self._sent(self.reg(NodeStarted()))

    @precondition(lambda self: self.phase == "flight")
    @rule()
    def accept(self) -> None:
        assert self.reg(RegistrationAccepted()) == []
        self.refusals = 0
        if self.callback and self.caller is None:
            self.phase, self.window = "await", (self.reg.now + INTERVAL, self.reg.now + INTERVAL)
        else:
            self._up()

    @precondition(lambda self: self.phase == "flight")
    @rule(
        status=st.sampled_from([None, 301, 400, 401, 403, 404, 408, 409, 422, 429, 500, 503]),
        lasting=st.sampled_from([None, None, None, True, False]),
    )
    def reject(self, status: int | None, lasting: bool | None) -> None:
        commands = self.reg(RegistrationRejected(failure=failure(status), lasting=lasting))
        refusal = lasting is None and status in (400, 401, 403)
        self.refusals = self.refusals + 1 if refusal else 0
        if refusal and not self.ever and self.refusals == 3:
            assert [type(command) for command in commands] == [GiveUp]
            self.phase = "over"
            return
        passing = status in (None, 408, 429) or (status or 0) >= 500
        if lasting is not None and status != 409:
            passing = not lasting
        self._warned(commands)
        if passing and not 0 <= self.retries <= self.fails + 1:
            self._back_off()
            return
        self.fails = 0
        self._pause(INTERVAL, INTERVAL)

    @rule(node_id=st.sampled_from(["node", "stranger"]))
    def call_back(self, node_id: str) -> None:
        self.requests += 1
        commands = self.reg(CallbackArrived(request=self.requests, node_id=node_id, secret=Secret("s")))
        if self.callback and self.phase in ("flight", "await"):
            assert commands == [StoreSecret(request=self.requests, node_id=node_id, secret=Secret("s"))]
            self.stores += commands  # type: ignore[arg-type]
        else:
            self._answered(commands, self.requests, self.phase == "up" and node_id == self.caller)

    @precondition(lambda self: self.stores)
    @rule(stored=st.booleans())
    def store(self, stored: bool) -> None:
        store = self.stores.pop(0)
        if not stored:
            self._answered(
                self.reg(SecretUnstored(request=store.request, problem="persist failed")), store.request, False
            )
            return
        commands = self.reg(SecretStored(request=store.request, node_id=store.node_id))
        counts = self.phase in ("flight", "await")
        self._answered(commands, store.request, counts or (self.phase == "up" and store.node_id == self.caller))
        if counts:
            self.caller = store.node_id
        if self.phase == "await":
            self._up()

    def _answered(self, commands: list[Command], request: int, taken: bool) -> None:
        (answer,) = commands
        assert isinstance(answer, AnswerCallback)
        assert (answer.request, answer.status) == (request, 200 if taken else 409)

    @rule()
    def probe(self) -> None:
        assert self.reg(HealthProbed()) == []
        if self.phase == "up":
            end = self.reg.now + INTERVAL if self.callback else float("inf")
            self.window = (end, end)

    @rule()
    def disown(self) -> None:
        commands = self.reg(WalletDisowned())
        if self.phase == "up":
            self._sent(commands)
        else:
            assert commands == []

    @precondition(lambda self: self.phase != "over")
    @rule(now=RARELY)
    def leave(self, now: bool) -> None:
        if now:
            assert self.reg(NodeLeft()) == []
            self.phase = "over"

    @rule(seconds=st.sampled_from([0.0, 0.5, 2.0, 10.0, 119.0, 120.0, 200.0]))
    def wait(self, seconds: float) -> None:
        end = self.reg.now + seconds
        while self.reg.subject.deadline is not None and self.reg.subject.deadline <= end:
            commands = self.reg.due()
            low, high = self.window
            assert low - EPSILON <= self.reg.now <= high + EPSILON
            if self.phase == "await":
                self._warned(commands)
                self._back_off()
            else:
                assert self.phase in ("pause", "up")
                self._sent(commands)
        self.reg.now = end

    @invariant()
    def is_never_late(self) -> None:
        if self.phase in ("pause", "await", "up"):
            assert self.reg.now <= self.window[1] + EPSILON
        assert (self.phase == "up") == (self.reg.state == "registered")
        assert (self.phase == "over") == (self.reg.state == "stopped")


def test_registration() -> None:
    briefly(RegistrationRules, 100)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_registration_at_length() -> None:
    at_length(RegistrationRules, 600)
