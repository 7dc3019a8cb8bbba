"""Poller against the rules of asking, written by hand, in a world that leases and ends tasks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from posemesh.commands import Ask, Command, Leave, Warn
from posemesh.events import (
    AskFailed,
    CancelRequested,
    CensusTaken,
    DrainRequested,
    Emptied,
    Event,
    LeaseOffered,
    LeaseUnreadable,
    NoWork,
    TokenRenewed,
)
from posemesh.machines import poller

from ..stage import Bench, config, envelope, failure
from .running import RARELY, SELDOM, at_length, briefly

EPSILON = 1e-6
MIN, MAX = 1.0, 30.0
RETRY_AFTER = st.sampled_from([None, None, None, 0.5, 20.0, 299.0, 1e6])
CAPABILITIES = ("/a/v1", "/b/v1", "/c/v1")
ROOMS = st.fixed_dictionaries({capability: st.sampled_from([0, 0, 1, 3]) for capability in CAPABILITIES})


@dataclass
class World:
    """What the node holds, as the poller is told. ``rooms`` are how many tasks of each capability could begin, where
    runners are limited.
    """

    fresh: int = 0
    runs: int = 0
    unanswered: int = 0
    waiting: int = 0
    ran: int = 0
    unran: int = 0
    rooms: dict[str, int] | None = None
    queued: bool = False
    roomy: list[str] = field(default_factory=list)

    @property
    def busy(self) -> int:
        return self.fresh + self.runs

    def census(self) -> CensusTaken:
        rooms = self.rooms or {}
        self.roomy = [capability for capability in CAPABILITIES if rooms.get(capability)]
        return CensusTaken(
            busy=self.busy,
            backlog=self.unanswered + self.waiting,
            settling=self.unanswered,
            ran=self.ran,
            unran=self.unran,
            spare=None if self.rooms is None else 0 if self.queued else sum(rooms.values()),
            with_room=None if all(rooms.values()) else tuple(self.roomy),
        )


class PollerRules(RuleBasedStateMachine):
    """``flight`` asks are unanswered; ``worked`` since a task ran and nothing spoke against more. With one slot
    ``idle`` is n of the pause, and ``window`` when the next ask may and must leave; None where something else decides.
    """

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.flight = self.generation = self.idle = self.failed = 0
        self.warned: float | None = None
        self.warning = False
        self.held, self.window = 0.0, None
        self.stopping = self.left = self.blocked = self.made_good = self.worked = False
        self.had_room = True
        self.skipped: Counter[str] = Counter()

    @initialize(slots=st.sampled_from([1, 1, 2, 5]), seed=st.integers(0, 9), limited=st.booleans())
    def build(self, slots: int, seed: int, limited: bool) -> None:
        self.slots = slots
        self.poller = Bench(poller, settings=config(max_concurrency=slots), seed=seed)
        self.told = self.world.census()
        if limited:
            self.world.rooms = dict.fromkeys(CAPABILITIES, 2)
            self._tell_census()

    @property
    def now(self) -> float:
        return self.poller.now

    @property
    def room(self) -> bool:
        rooms = 1 if self.world.rooms is None else sum(self.world.rooms.values())
        free = self.world.busy < self.slots and rooms > 0 and not self.world.queued
        return free and self.world.unanswered + self.world.waiting < 64

    # -- The oracle

    def _tell(self, event: Event, *, timed: bool = False) -> None:
        if isinstance(event, NoWork | LeaseOffered | LeaseUnreadable):
            self.failed, self.warned = 0, None
        self._check(self.poller(event), timed)
        census = self.world.census()
        if census != self.told:
            self.told = census
            self._check(self.poller(census), timed)
        if self.stopping and not self.left and not (self.world.busy or census.backlog or self.poller.subject.asking):
            assert self.poller(Emptied()) == [Leave()]
            self.left = True

    def _check(self, commands: list[Command], timed: bool) -> None:
        if Leave() in commands:
            self.left = True
            return
        assert sum(isinstance(command, Warn) for command in commands) == self.warning
        self.warning = False
        asks = [command for command in commands if not isinstance(command, Warn)]
        assert all(isinstance(command, Ask) for command in asks)
        self._check_asks(asks, timed)

    def _check_asks(self, commands: list[Any], timed: bool) -> None:
        if not commands:
            return
        for command in commands:
            self._check_turn(command.capability)
        if self.world.rooms is not None:
            assert self.flight + len(commands) <= sum(self.world.rooms.values()), "asked for more than can begin"
        assert self.generation and not self.stopping
        assert self.room, "asked for what cannot run"
        assert self.now >= self.held - EPSILON, "asked before the service's Retry-After"
        self.flight += len(commands)
        assert self.world.busy + self.flight <= self.slots, "asked for more than can run"
        if timed and self.slots == 1 and self.window:
            low, high = self.window
            assert low - EPSILON <= self.now <= high + EPSILON
        self.window = None

    def _check_turn(self, asked: str | None) -> None:
        if self.world.rooms is None or all(self.world.rooms.values()):
            assert asked is None, "the service may choose"
            return
        assert asked in self.world.roomy
        for capability in CAPABILITIES:
            passed_over = capability in self.world.roomy and capability != asked
            self.skipped[capability] = self.skipped[capability] + 1 if passed_over else 0
            assert self.skipped[capability] < len(CAPABILITIES), "each has its turn"

    def _pause(self) -> None:
        bound = min(MAX, MIN * 2**self.idle)
        self.idle += 1
        low, high = self.now + max(MIN, bound / 2), self.now + bound
        self.window = (max(low, self.held), max(high, self.held))

    # -- What happens

    @rule()
    def renew(self) -> None:
        self.generation += 1
        first, flight = self.generation == 1, self.flight
        self._tell(TokenRenewed(generation=self.generation))
        asked = self.flight > flight
        if first and not self.stopping:
            assert asked
        elif asked:
            assert self.blocked and not self.made_good
            self.made_good = True

    @precondition(lambda self: self.flight)
    @rule(retry_after=RETRY_AFTER, status=st.sampled_from([204, None, 401, 429, 500]))
    def find_nothing(self, retry_after: float | None, status: int | None) -> None:
        self.flight -= 1
        self.held = max(self.held, self.now + min(retry_after or 0, 300))
        self.blocked, self.worked = status == 401, False
        self.made_good &= self.blocked
        if self.room:
            self._pause()
        event = NoWork(retry_after=retry_after)
        if status != 204 and self.room and self.poller.state == "asking":
            self.failed += 1
            self.warning = self.failed > 1 and status != 401 and (self.warned is None or self.now - self.warned >= 180)
            self.warned = self.now if self.warning else self.warned
        self._tell(event if status == 204 else AskFailed(failure=failure(status, retry_after=retry_after)))

    @precondition(lambda self: self.flight)
    @rule()
    def lease(self) -> None:
        self.flight -= 1
        self.world.fresh += 1
        self.blocked = self.made_good = False
        self.window, self.had_room = None, self.room
        self._tell(LeaseOffered(envelope=envelope(), ttl=60.0))

    @precondition(lambda self: self.flight)
    @rule()
    def lease_unreadably(self) -> None:
        self.flight -= 1
        self.world.fresh += 1
        self.blocked = self.made_good = False
        self.window, self.had_room = None, self.room
        self._tell(LeaseUnreadable(task_id="t", problem="p"))

    @precondition(lambda self: self.world.rooms is not None and self.generation)
    @rule(rooms=ROOMS, queued=SELDOM)
    def rooms_change(self, rooms: dict[str, int], queued: bool) -> None:
        self.world.rooms, self.world.queued = rooms, queued
        self._tell_census()

    @precondition(lambda self: self.world.fresh)
    @rule()
    def start(self) -> None:
        self.world.fresh -= 1
        self.world.runs += 1
        self.world.ran += 1
        self.idle, self.worked = 0, True
        self._tell_census()

    @precondition(lambda self: self.world.fresh)
    @rule(reported=st.booleans())
    def end_without_a_run(self, reported: bool) -> None:
        self.world.fresh -= 1
        self.world.unran += 1
        self.world.unanswered += reported
        self.worked = False
        self._tell_census()

    @precondition(lambda self: self.world.runs)
    @rule(reported=st.booleans())
    def end_a_run(self, reported: bool) -> None:
        self.world.runs -= 1
        self.world.ran += 1
        self.world.unanswered += reported
        self.idle, self.worked = 0, True
        flight, late = self.flight, self.stopping or self.now < self.held
        self._tell_census()
        if self.slots == 1 and self.room and not late and not self.world.unanswered:
            assert self.flight == flight + 1, "after a task that ran it asks at once"

    @precondition(lambda self: self.world.unanswered)
    @rule(done=st.booleans())
    def answer_an_offer(self, done: bool) -> None:
        self.world.unanswered -= 1
        self.world.waiting += not done
        self._tell_census()

    @precondition(lambda self: self.world.waiting)
    @rule()
    def deliver(self) -> None:
        self.world.waiting -= 1
        self._tell_census()

    @rule(now=RARELY)
    def an_outage_fills_the_outbox(self, now: bool) -> None:
        if now and self.world.waiting < 60:
            self.world.waiting = 63
            self._tell_census()

    @precondition(lambda self: self.world.waiting > 1)
    @rule()
    def the_outbox_is_emptied(self) -> None:
        self.world.waiting = 0
        self._tell_census()

    def _tell_census(self) -> None:
        census = self.world.census()
        if census != self.told:
            if not self.room:
                self.window = None
            elif not self.had_room and not self.worked and not self.stopping and not self.flight:
                self._pause()
            self.had_room = self.room
            self.told = census
            self._tell(census)

    @rule(now=RARELY)
    def drain(self, now: bool) -> None:
        if now:
            self.stopping = True
            self._tell(DrainRequested(seconds=30.0))

    @rule(now=RARELY)
    def cancel(self, now: bool) -> None:
        if now:
            self.stopping = True
            self._tell(CancelRequested())

    @rule(seconds=st.sampled_from([0.0, 0.3, 1.0, 2.0, 8.0, 30.0, 300.0]))
    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while self.poller.subject.deadline is not None and self.poller.subject.deadline <= end:
            event = min(self.poller.subject.timers, key=self.poller.subject.timers.__getitem__)
            self.poller.now = max(self.now, self.poller.subject.timers.pop(event))
            self._tell(event(), timed=True)
        self.poller.now = end

    @invariant()
    def it_asks_again_some_time(self) -> None:
        if self.stopping or not self.generation or self.flight or not self.room:
            return
        deadline = self.poller.subject.deadline
        assert deadline is not None and deadline <= max(self.now + MAX, self.held) + EPSILON
        if self.slots == 1 and self.window:
            assert self.now <= self.window[1] + EPSILON


def test_poller() -> None:
    briefly(PollerRules, 120)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_poller_at_length() -> None:
    at_length(PollerRules, 600)
