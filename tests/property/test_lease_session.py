"""One lease and its heartbeats against the rules of keeping and expiry, written by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from posemesh.commands import (
    Answered,
    Ask,
    Command,
    CommitAccepted,
    CommitOutcome,
    OfferOutcome,
    Register,
    SendHeartbeat,
    SignIn,
    StartRunner,
    StopRunner,
)
from posemesh.events import (
    CommitFailed,
    Committed,
    Event,
    EventLogged,
    HeartbeatAccepted,
    HeartbeatFailed,
    LeaseOffered,
    LeaseRecovered,
    NodeStarted,
    OutcomeAccepted,
    OutcomeRejected,
    ProgressMade,
    RegistrationAccepted,
    RunnerFailed,
    RunnerFinished,
    SignedIn,
    TransferMoved,
)
from posemesh.types import HeartbeatAnswer

from ..stage import TOKEN, Stage, envelope, failure
from .running import RARELY, SELDOM, at_length, briefly

EPSILON = 1e-5
MIN, MAX, JITTER, REQUEST_TIMEOUT, UNKNOWN, GOOD, FIRST, FLUSH = 0.25, 0.35, 0.25, 10.0, 6.0, 1.0, 1.0, 1.0
TRANSFERS_KEPT = 16
TTLS = st.sampled_from([None, 0.4, 3.0, 6.0, 60.0, 3600.0])


class LeaseRules(RuleBasedStateMachine):
    """``stands`` since the service said so: of a lease that is found on record nobody knows it.

    ``kept`` while heartbeats go out; ``window`` is when the next one may and must. ``told`` is what user code
    reported and nobody acknowledged, ``sent`` how much of it the heartbeat in flight carries. ``transfers`` has the one
    that moved last at its end.
    """

    def __init__(self) -> None:
        super().__init__()
        self.open: list[Answered] = []
        self.stands, self.taken = True, False
        self.kept, self.window, self.expiry, self.good = False, (0.0, 0.0), 0.0, UNKNOWN
        self.told: list[Any] = []
        self.sent: list[Any] = []
        self.dirty = self.carried = False
        self.progress: Any = {}
        self.transfers: list[tuple[str, dict[str, Any]]] = []
        self.failed_at: float | None = None
        self.settled: float | None = None
        self.recorded: float | None = None
        self.stopped = ""
        self.started = self.ended = False
        self.result = self.kind = ""
        self.flush_since: float | None = None
        self.flushed = 0
        self.offered = False
        self.ending = ""
        self.count = 0

    @initialize(ttl=TTLS, seed=st.integers(0, 9), found=st.booleans(), late=st.sampled_from([0.0, 0.5, 100.0]))
    def build(self, ttl: float | None, seed: int, found: bool, late: float) -> None:
        """A lease that is found on record may be there before there is a token, and has to wait for it."""
        self.stage = Stage(seed=seed, request_timeout_secs=REQUEST_TIMEOUT, first_lease=1 + found)
        self.stands, late = not found, late if found else 0.0
        offer = (LeaseRecovered if found else LeaseOffered)(lease=int(found), envelope=envelope(), ttl=ttl)
        signed_in: list[Event] = [NodeStarted(), RegistrationAccepted(), SignedIn(token=TOKEN, ttl=None)]
        first, then = ([offer], signed_in) if late else (signed_in, [offer])
        commands = self.stage(*first) + self.stage.wait(late)
        assert not late or commands == []
        self._renew(ttl)
        self.kept, self.offer_time = True, self.stage.now
        for event in then:
            self._tell(event)
        assert self.flight and self._has(CommitAccepted) != found

    @property
    def now(self) -> float:
        return self.stage.now

    @property
    def flight(self) -> bool:
        return any(isinstance(command, SendHeartbeat) for command in self.open)

    def _renew(self, ttl: float | None) -> None:
        term = ttl or self.good
        self.good = term if term >= GOOD else self.good
        self.term, self.expiry = term, self.now + term

    # -- The oracle

    def _tell(self, event: Event) -> None:
        self._check(self.stage(event))

    def _check(self, commands: list[Command]) -> None:
        for command in commands:
            if isinstance(command, SendHeartbeat):
                self._check_heartbeat(command)
            elif isinstance(command, StartRunner):
                assert self.stands and self.recorded is not None and self.settled is not None and not self.stopped
                assert self.now <= max(self.recorded, self.offer_time + FIRST) + EPSILON
                assert self.now < self.expiry
                self.started = True
            elif isinstance(command, CommitAccepted):
                assert self.stands and not self.taken and not self.stopped
                self.taken = True
            elif isinstance(command, StopRunner):
                assert command.reason == self.stopped and self.started
            elif isinstance(command, CommitOutcome):
                self._check_outcome(command)
            elif isinstance(command, OfferOutcome):
                assert not (self.kept_cancelled and not self.offered), "cancel is honoured in every answer"
                assert self.kind in ("completed", "failed")
                if self.flush_since is not None and not self.offered:
                    assert self.now <= self.flush_since + FLUSH + EPSILON
                self.offered = True
            if isinstance(command, Answered) and not isinstance(command, Ask | Register | SignIn):
                self.open.append(command)
        for end in self.stage.engine.ended:
            assert not self.ending
            self.ending = end.ending
        if self.ending:
            self.kept = False

    kept_cancelled = False

    def _check_heartbeat(self, command: SendHeartbeat) -> None:
        assert self.kept and not self.flight and self.now < self.expiry
        left = self.expiry - self.now
        assert command.timeout == pytest.approx(min(REQUEST_TIMEOUT, max(left / 3, 0.05)))
        told = {"transfers": dict(self.transfers)} if self.progress == {} and self.transfers else self.progress
        assert command.progress == told and list(command.events) == self.told[-256:]
        flush = self.flush_since is not None and not self.offered
        if flush:
            self.flushed += 1
            assert self.flushed <= 1 and (self.dirty or self.told)
        elif self.now != self.offer_time:
            low, high = self.window
            assert low - EPSILON <= self.now <= high + EPSILON
        self.sent, self.carried, self.dirty = list(command.events), self.dirty, False

    def _check_outcome(self, command: CommitOutcome) -> None:
        kind = str(command.outcome.kind)
        if self.kind:
            assert kind == self.kind, "an outcome is not changed by being recorded again"
        elif self.stopped in ("cancelled", "lost"):
            assert kind == self.stopped
        elif self.stopped == "expired":
            assert kind == ("completed" if self.result == "finished" else "lost")
        else:
            assert kind == ("completed" if self.result == "finished" else "failed")
        self.kind = kind

    def _report_soon(self) -> None:
        """What user code reported goes out within the jitter, unless a heartbeat is in flight or the last failed."""
        if self.kept and not self.flight and self.failed_at is None:
            self.window = (min(self.window[0], self.now), min(self.window[1], self.now + JITTER))

    def _lost(self, reason: str) -> None:
        self.kept = False
        self.settled = self.settled if self.settled is not None else self.now
        if not self.ended and not self.kind:
            self.stopped = reason

    # -- What happens

    @precondition(lambda self: self.flight)
    @rule(ttl=TTLS, cancel=SELDOM, word=st.booleans())
    def accept(self, ttl: float | None, cancel: bool, word: bool) -> None:
        self._close(SendHeartbeat)
        answer = HeartbeatAnswer()
        if cancel:
            answer = HeartbeatAnswer(status="cancelled") if word else HeartbeatAnswer(cancel=True)
        if self.kept:
            self.settled = self.settled if self.settled is not None else self.now
            self.told = self.told[len(self.sent) :] if self.sent == self.told[: len(self.sent)] else self.told
            self.carried, self.failed_at = False, None
            if cancel:
                self.kept_cancelled = True
                self._lost("cancelled")
            else:
                self.stands = True
                self._renew(ttl)
                self.window = (self.now + MIN * self.term, self.now + MAX * self.term)
                if self.dirty or self.told:
                    self.window = (self.now, min(self.window[1], self.now + JITTER))
        self._tell(HeartbeatAccepted(lease=1, answer=answer, ttl=ttl))

    @precondition(lambda self: self.flight)
    @rule(
        status=st.sampled_from([None, 403, 404, 409, 410, 429, 500, 500, 503]),
        retry_after=st.sampled_from([None, 1.0, 1e6]),
    )
    def refuse(self, status: int | None, retry_after: float | None) -> None:
        self._close(SendHeartbeat)
        if self.kept:
            self.settled = self.settled if self.settled is not None else self.now
            if status in (404, 409, 410):
                self._lost("lost")
            else:
                self.dirty |= self.carried
                self.carried, self.failed_at = False, self.now
                self.window = (self.now, self.now + max((self.expiry - self.now) / 3, 0.05))
        self._tell(HeartbeatFailed(lease=1, failure=failure(status, retry_after=retry_after)))

    @precondition(lambda self: self._has(CommitAccepted))
    @rule(badly=SELDOM)
    def record(self, badly: bool) -> None:
        self._close(CommitAccepted)
        if not badly:
            self.recorded = self.now
            self._tell(Committed(lease=1))
        else:
            self._tell(CommitFailed(lease=1, problem="disk full"))

    @precondition(lambda self: self._has(StartRunner))
    @rule(well=st.booleans())
    def end(self, well: bool) -> None:
        self._close(StartRunner)
        self.ended = True
        self.result = "finished" if well else "failed"
        end = RunnerFinished(lease=1) if well else RunnerFailed(lease=1, code="runner_error", message="x")
        self._tell(end)

    @precondition(lambda self: self._has(CommitOutcome))
    @rule(badly=SELDOM)
    def record_the_end(self, badly: bool) -> None:
        self._close(CommitOutcome)
        if badly:
            self._tell(CommitFailed(lease=1, problem="disk full"))
            return
        if self.kind in ("completed", "failed"):
            self.flush_since = self.now
        self._tell(Committed(lease=1))

    @precondition(lambda self: self._has(OfferOutcome))
    @rule(status=st.sampled_from([200, 200, 200, None, 404, 500, 503]))
    def answer_the_report(self, status: int | None) -> None:
        self._close(OfferOutcome)
        event = OutcomeAccepted(lease=1) if status == 200 else OutcomeRejected(lease=1, failure=failure(status))
        if status in (200, 404):
            self.kept = False
        self._tell(event)

    @precondition(lambda self: self.started and not self.ended)
    @rule(number=st.integers(1, 3), progress=st.booleans(), nothing=SELDOM)
    def report(self, number: int, progress: bool, nothing: bool) -> None:
        for _ in range(number):
            self.count += 1
            if progress:
                self.progress, self.dirty = {} if nothing else self.count, self.kept
                event: Event = ProgressMade(lease=1, progress=self.progress)
            else:
                self.told += [self.count] * self.kept
                event = EventLogged(lease=1, record=self.count)
            self._report_soon()
            self._tell(event)

    @rule(
        names=st.lists(st.integers(0, 19), min_size=1, max_size=24),
        way=st.sampled_from(["in", "out"]),
        done=st.integers(0, 2**63),
        total=st.none() | st.integers(0, 2**63),
    )
    def move(self, names: list[int], way: str, done: int, total: int | None) -> None:
        """In every state, also of a lease that is over: a straggler is no reason to do anything."""
        before = (self.stage.states(), self.stage.engine.next_deadline(), self.stage.engine.statistics().counters)
        for name in map(str, names):
            if self.kept:
                others = [other for other in self.transfers if other[0] != name]
                self.transfers = [*others, (name, {"way": way, "done": done, "total": total})][-TRANSFERS_KEPT:]
            event = TransferMoved(lease=1, transfer=name, way=way, done=done, total=total)
            assert self.stage(event) == [] and not self.stage.engine.ended
        after = (self.stage.states(), self.stage.engine.next_deadline(), self.stage.engine.statistics().counters)
        assert after == before

    @rule(seconds=st.sampled_from([0.0, 0.05, 0.2, 0.3, 1.0, 2.0, 15.0, 60.0]))
    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while (deadline := self.stage.engine.next_deadline()) is not None and deadline <= end:
            self._until(deadline)
            self._check(self.stage.engine.elapse(self.now))
        self._until(end)

    def _until(self, time: float) -> None:
        self.stage.now = max(self.now, time)
        if self.settled is None and self.now >= self.offer_time + FIRST - EPSILON:
            self.settled = self.now
        if self.kept and self.now >= self.expiry - EPSILON:
            self.stage.now = max(self.now, self.expiry)
            self._lost("expired")

    @rule(lateness=st.sampled_from([0.5, 5.0, 100.0]), now=RARELY)
    def the_process_sleeps(self, lateness: float, now: bool) -> None:
        if not now:
            return
        self._until(self.now + lateness)
        self.window = (self.window[0], max(self.window[1], self.now))
        if self.flush_since is not None:
            self.flush_since = max(self.flush_since, self.now - FLUSH)
        self.offer_time = max(self.offer_time, self.now - FIRST) if not self.started else self.offer_time
        self._check(self.stage.engine.elapse(self.now))

    def _has(self, kind: type[Command]) -> bool:
        return any(isinstance(command, kind) for command in self.open)

    def _close(self, kind: type[Command]) -> None:
        self.open.remove(next(command for command in self.open if isinstance(command, kind)))

    @invariant()
    def a_kept_lease_is_never_forgotten(self) -> None:
        assert not self.stage.engine.violations()
        if self.kept and not self.flight:
            assert self.now <= self.window[1] + EPSILON
        assert self.taken or not self.stands
        if self.recorded is not None and not self.stopped and self.settled is not None:
            assert self.started

    @invariant()
    def statistics_show_the_latest_transfers(self) -> None:
        for task in self.stage.engine.statistics().tasks:
            assert list(task.transfers.items()) == self.transfers

    @invariant()
    def there_is_one_ending(self) -> None:
        if self.ending:
            endings = {"completed", "failed", "refused", "unconfirmed", "stuck", "lost", "cancelled"}
            assert self.ending in endings
            assert not self._has(CommitOutcome) and not self._has(OfferOutcome)


def test_a_lease_and_its_session() -> None:
    briefly(LeaseRules, 120)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_lease_and_its_session_at_length() -> None:
    at_length(LeaseRules, 600)
