"""Auth against the rules of tokens, written by hand."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from posemesh.commands import Command, GiveUp, SignIn, Warn
from posemesh.events import NodeLeft, SignedIn, SignInFailed, SignInWanted, TokenRejected
from posemesh.machines import auth
from posemesh.secret import Secret

from ..stage import Bench, config, failure
from .running import RARELY, at_length, briefly

EPSILON = 1e-6
INFINITY = float("inf")


class AuthRules(RuleBasedStateMachine):
    """``answers`` are those of the round under way; ``window`` is when the next sign-in may and must leave."""

    def __init__(self) -> None:
        super().__init__()
        self.doubted_since = 0.0
        self.wanted = self.over = self.flight = self.doubted = False
        self.answers: list[str] = []
        self.rounds = self.generation = 0
        self.window = (INFINITY, INFINITY)
        self.got, self.ttl = 0.0, 0.0

    @initialize(
        retries=st.integers(0, 3),
        jitter=st.sampled_from([0, 500, 5000]),
        ratio=st.sampled_from([0.1, 0.75, 0.99]),
        seed=st.integers(0, 9),
    )
    def build(self, retries: int, jitter: int, ratio: float, seed: int) -> None:
        self.retries, self.jitter, self.ratio = retries, jitter / 1000, ratio
        settings = config(token_reauth_max_retries=retries, token_reauth_jitter_ms=jitter, token_safety_ratio=ratio)
        self.auth = Bench(auth, settings=settings, seed=seed)

    @property
    def now(self) -> float:
        return self.auth.now

    @property
    def expiry(self) -> float:
        return self.got + self.ttl if self.generation else -INFINITY

    def _sent(self, commands: list[Command]) -> None:
        assert commands == [SignIn()] and not self.flight
        self.flight = True

    @precondition(lambda self: not self.wanted and not self.over)
    @rule()
    def want(self) -> None:
        self.wanted = True
        self._sent(self.auth(SignInWanted()))

    @precondition(lambda self: self.flight and not self.over)
    @rule(ttl=st.sampled_from([None, 0.01, 5.0, 20.0, 60.0, 3600.0]))
    def sign_in(self, ttl: float | None) -> None:
        assert self.auth(SignedIn(token=Secret(f"t{self.generation + 1}"), ttl=ttl)) == []
        self.generation, self.got, self.ttl = self.generation + 1, self.now, INFINITY if ttl is None else ttl
        self.flight = self.doubted = False
        self.answers, self.rounds = [], 0
        if ttl is None:
            self.window = (INFINITY, INFINITY)
            return
        low, high = self.now + ttl * self.ratio - self.jitter, self.now + ttl * self.ratio + self.jitter
        least = self.now + 0.25  # DDS is asked four times a second at most
        latest = max(min(high, self.expiry), least)
        self.window = (max(min(low, self.expiry - 1, self.now + 0.95 * ttl), least), latest)

    @precondition(lambda self: self.flight and not self.over)
    @rule(answer=st.sampled_from([None, 400, 401, 403, 403, 403, 404, 429, 503, "expired"]), at_verify=st.booleans())
    def fail(self, answer: int | str | None, at_verify: bool) -> None:
        if answer == "expired":
            commands = self.auth(SignedIn(token=Secret("old"), ttl=0.0))
        else:
            commands = self.auth(SignInFailed(failure=failure(answer), at_verify=at_verify))  # type: ignore[arg-type]
        self.flight = False
        self.answers.append("refusal" if answer in (400, 401, 403) else "other")
        if len(self.answers) < 1 + self.retries:
            assert commands == []
            self.window = (self.now, self.now + self.jitter)
        elif not self.generation and set(self.answers) == {"refusal"}:
            assert [type(command) for command in commands] == [GiveUp]
            self.over = True
        else:
            assert [type(command) for command in commands] == [Warn]
            self.rounds, self.answers, self.doubted = self.rounds + 1, [], False
            rest = min(300, 10 * 2 ** (self.rounds - 1))
            self.window = (self.now + rest, self.now + 1.2 * rest)

    @precondition(lambda self: self.generation)
    @rule(age=st.integers(0, 2))
    def reject(self, age: int) -> None:
        commands = self.auth(TokenRejected(generation=max(1, self.generation - age)))
        current = age == 0 or self.generation == 1
        serves = not self.over and self.auth.subject.token is not None
        if current and serves and not self.flight and not self.answers and not self.rounds:
            self._sent(commands)
            self.doubted, self.doubted_since = True, self.now
        else:
            assert commands == []

    @precondition(lambda self: not self.over)
    @rule(now=RARELY)
    def leave(self, now: bool) -> None:
        if now:
            assert self.auth(NodeLeft()) == []
            self.over = True
            if self.flight:  # its answer comes all the same
                assert self.auth(SignedIn(token=Secret("late"), ttl=60.0), SignInFailed(failure=failure(403))) == []

    @rule(seconds=st.sampled_from([0.0, 0.3, 1.0, 5.0, 9.9, 40.0, 500.0, 3000.0]))
    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while self.auth.subject.deadline is not None and self.auth.subject.deadline <= end:
            commands = self.auth.due()
            if commands:
                low, high = self.window
                assert low - EPSILON <= self.now <= high + EPSILON
                self._sent(commands)
        self.auth.now = end

    @invariant()
    def a_token_serves_until_it_expires_and_not_longer(self) -> None:
        usable = self.auth.subject.usable(self.now)
        if self.over or self.now >= self.expiry:
            assert usable is None
        elif self.doubted and (self.flight or self.answers) and self.now < self.doubted_since + 3:
            assert usable is None
        elif self.now < self.expiry - min(1.0, 0.05 * self.ttl) - EPSILON:
            assert usable == (Secret(f"t{self.generation}"), self.generation)

    @invariant()
    def the_next_sign_in_is_never_late(self) -> None:
        if self.wanted and not self.over and not self.flight:
            assert self.now <= self.window[1] + EPSILON


def test_auth() -> None:
    briefly(AuthRules, 100)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_auth_at_length() -> None:
    at_length(AuthRules, 600)
