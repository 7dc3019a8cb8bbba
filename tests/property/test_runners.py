"""Tasks and their runners against the rules of room and time, written by hand: slots, resources, turns, timeouts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from random import Random
from typing import Any, TypeAlias
from uuid import UUID

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from posemesh.capacity import Capacity, Offer
from posemesh.commands import (
    Answered,
    Ask,
    Command,
    CommitAccepted,
    CommitOutcome,
    Leave,
    OfferOutcome,
    SendHeartbeat,
    StartRunner,
    StopRunner,
)
from posemesh.events import (
    CancelRequested,
    CommitFailed,
    Committed,
    DrainRequested,
    Event,
    HeartbeatAccepted,
    HeartbeatFailed,
    LeaseOffered,
    NodeStarted,
    NoWork,
    OutcomeAccepted,
    RegistrationAccepted,
    RunnerFailed,
    RunnerFinished,
    SignedIn,
)
from posemesh.types import HeartbeatAnswer

from ..stage import ARTIFACT, TOKEN, Stage, envelope, failure
from .running import RARELY, at_length, briefly

A, B, C = "/a/v1", "/b/v1", "/c/v1"
PLANS: tuple[tuple[dict[str, int], tuple[Offer, ...]], ...] = (
    ({}, (Offer(A, A), Offer("b", B))),
    ({}, (Offer(A, A, slots=1), Offer("b", B))),
    ({}, (Offer(A, A, slots=2), Offer("b", B, slots=1))),
    ({}, (Offer(A, A, resources={"gpu": 1}), Offer("b", B, resources={"gpu": 1}), Offer("c", C, slots=2))),
    (
        {"gpu": 3},
        (
            Offer(A, A, resources={"gpu": 1}),
            Offer("b", B, slots=1, resources={"gpu": 2}),
            Offer("b2", B, slots=1, resources={"cam": 1}),
            Offer("c", C, resources={"gpu": 1, "cam": 1}),
        ),
    ),
)
TIMEOUTS = (None, None, 1.0, 4.0, 30.0)
GRACE, FIRST_ANSWER, UNSTOPPED = 3.0, 1.0, "goes on"
STEPS = (0.1, 0.5, 1.0, 3.0, 10.0)
Pick: TypeAlias = Callable[[Sequence[Any]], Any]


@dataclass
class Task:
    """What a hand-written node would know of one lease."""

    key: int
    offer: Offer
    name: str
    timeout: float | None
    ttl: float
    offered: float
    expiry: float
    accepted: bool = False
    recorded: bool = False
    settled: bool = False
    cancelled: bool = False
    lost: bool = False
    expired: bool = False
    begun: float | None = None
    told: float | None = None
    returned: bool = False
    abandoned: bool = False
    outcome: str = ""
    committed: bool = False
    given_up: bool = False

    @property
    def ends(self) -> float:
        return float("inf") if self.begun is None or self.timeout is None else self.begun + self.timeout

    @property
    def taken_away(self) -> bool:
        return self.cancelled or self.lost

    @property
    def alive(self) -> bool:
        return not (self.taken_away or self.expired)

    @property
    def occupies(self) -> bool:
        return self.given_up and not self.returned and not self.abandoned

    @property
    def holds(self) -> bool:
        return not self.committed or self.occupies

    @property
    def claims(self) -> bool:
        return self.accepted and self.holds and (self.begun is not None or not self.outcome)


class RunnerRules(RuleBasedStateMachine):
    """This plays the shell, a service that gives what it likes, and user code that ends when it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[Answered] = []
        self.tasks: dict[int, Task] = {}
        self.ended: Counter[int] = Counter()
        self.skipped: Counter[str] = Counter()
        self.draining = self.left = False
        self.slept = -1.0

    @initialize(slots=st.sampled_from([1, 3, 6]), plan=st.sampled_from(PLANS), seed=st.integers(0, 99))
    def build(self, slots: int, plan: Any, seed: int) -> None:
        self.slots, (self.totals, self.offers) = slots, plan
        self.capabilities = sorted({offer.capability for offer in self.offers})
        self.stage = Stage(
            seed=seed,
            capabilities=self.capabilities,
            capacity=Capacity(self.offers, self.totals),
            max_concurrency=slots,
        )
        for event in (NodeStarted(), RegistrationAccepted(), SignedIn(token=TOKEN, ttl=None)):
            self._tell(event)

    @property
    def now(self) -> float:
        return self.stage.now

    # -- The oracle: what fits beside what

    def _beside(self, offer: Offer, others: Iterable[Task]) -> bool:
        runners = [other.offer for other in others]
        if offer.slots is not None and runners.count(offer) >= offer.slots:
            return False
        for name, needed in offer.resources.items():
            taken = sum(other.resources.get(name, 0) for other in runners)
            if taken + needed > self.totals.get(name, 1):
                return False
        return True

    def _fits(self, task: Task) -> bool:
        before = [t for t in self._others(task) if t.key < task.key or t.begun is not None]
        return all(t.name != task.name for t in before) and self._beside(task.offer, before)

    def _hopeless(self, task: Task) -> bool:
        stuck = [t for t in self._others(task) if self._stuck(t)]
        return any(t.name == task.name for t in stuck) or not self._beside(task.offer, stuck)

    def _others(self, task: Task) -> list[Task]:
        return [t for t in self.tasks.values() if t.claims and t is not task]

    def _stuck(self, task: Task) -> bool:
        late = task.told is not None and self.now >= task.told + GRACE
        return late and task.claims and not task.returned and not task.abandoned

    def _most(self) -> int:
        """How many more tasks could begin, by trying."""
        held = [t for t in self.tasks.values() if t.claims]
        best = 0
        for numbers in product(range(self.slots + 1), repeat=len(self.offers)):
            wanted = [offer for offer, number in zip(self.offers, numbers, strict=True) for _ in range(number)]
            if len(wanted) > best and self._possible(wanted, held):
                best = len(wanted)
        return best

    def _possible(self, wanted: list[Offer], held: list[Task]) -> bool:
        beside = [*held]
        for offer in wanted:
            if not self._beside(offer, beside):
                return False
            beside.append(Task(0, offer, "", None, 0.0, 0.0, 0.0))
        return True

    # -- The oracle: what may be commanded

    def _tell(self, event: Event) -> None:
        self._check(self.stage(event))

    def _check(self, commands: list[Command]) -> None:
        for end in self.stage.engine.ended:
            self.ended[end.lease] += 1
            assert self.ended[end.lease] == 1
        for command in commands:
            match command:
                case Ask():
                    self._check_ask(command)
                case CommitAccepted(lease=lease):
                    self.tasks[lease].accepted = True
                case StartRunner():
                    self._check_start(self.tasks[command.lease], command)
                case StopRunner():
                    self._check_stop(self.tasks[command.lease], command)
                case CommitOutcome():
                    self._check_outcome(self.tasks[command.lease], command)
                case Leave():
                    self.left = True
            if isinstance(command, Answered):
                self.open.append(command)

    def _check_ask(self, ask: Ask) -> None:
        held = [t for t in self.tasks.values() if t.claims]
        assert not self.draining
        assert all(t.begun is not None or self._fits(t) for t in held), "asked although one waits"
        asks = sum(isinstance(command, Ask) for command in self.open) + 1
        assert sum(t.holds for t in self.tasks.values()) + asks <= self.slots
        assert asks <= self._most(), "asked for more than can begin"
        room = {offer.capability for offer in self.offers if self._beside(offer, held)}
        if room == set(self.capabilities):
            assert ask.capability is None, "the service may choose"
            return
        assert ask.capability in room
        for capability in self.capabilities:
            waits = capability in room and capability != ask.capability
            self.skipped[capability] = self.skipped[capability] + 1 if waits else 0
            assert self.skipped[capability] < len(self.capabilities), "each has its turn"

    def _check_start(self, task: Task, start: StartRunner) -> None:
        assert task.begun is None and not task.outcome and task.alive and self.now < task.expiry
        assert task.recorded and (task.settled or self.now >= task.offered + FIRST_ANSWER)
        assert not self.draining
        assert (start.runner or A) == task.offer.runner
        assert self._fits(task), "it does not fit, or it is not its turn"
        task.begun = self.now
        running = [t for t in self.tasks.values() if t.claims and t.begun is not None]
        for other in running:
            assert self._beside(other.offer, [t for t in running if t is not other]), "more than there is"

    def _check_stop(self, task: Task, stop: StopRunner) -> None:
        assert task.begun is not None and task.told is None and not task.outcome
        task.told = self.now
        match stop.reason:
            case "timeout":
                assert self.now == task.ends or self.now == self.slept
            case "expired":
                assert task.expired and (self.now <= task.ends or self.now == self.slept)
            case "lost":
                assert task.lost
            case "cancelled":
                assert task.cancelled
            case _:
                assert self.draining

    def _check_outcome(self, task: Task, commit: CommitOutcome) -> None:
        outcome = commit.outcome
        found = outcome.code or outcome.kind.value
        assert task.outcome in ("", found)
        if task.outcome:
            return  # the ledger is tried again
        assert found in (self._not_begun(task) if task.begun is None else self._begun(task))
        if found == "timeout":
            assert outcome.message == f"the runner took longer than its {task.timeout:g} s"
            assert outcome.artifacts == ((ARTIFACT,) if task.returned else ())
        task.outcome = found

    def _not_begun(self, task: Task) -> set[str]:
        assert not self._fits(task) or not task.alive or self.draining or not task.recorded
        if task.cancelled:
            return {"cancelled"}
        if (
            task.lost or task.expired
        ):  # a lease that comes while the node stops is not kept, so its expiry not looked at
            return {"lost", "node_shutdown"} if self.draining else {"lost"}
        if self.draining:
            return {"node_shutdown"}
        return {"no_runner"} if task.recorded and self._hopeless(task) else {"setup_failed"}

    def _begun(self, task: Task) -> set[str]:
        assert task.begun is not None
        late = self.now >= task.ends and not task.taken_away
        if not task.returned and late:
            assert task.told is not None
            assert self.now == max(task.told + GRACE, task.ends) or self.now == self.slept
            task.given_up = True
        elif not task.returned:
            assert self.draining and self._stuck(task), "given up before its time"
            task.abandoned = True
        if task.cancelled:
            return {"cancelled"}
        if task.lost:
            return {"lost"}
        if late:
            return {"timeout"}
        if task.returned and self.result == "finished":
            return {"completed"}
        if task.expired:
            return {"lost"}
        return {"runner_error"} if task.told is None else {"node_shutdown"}

    # -- What happens

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        self._answer(lambda options: data.draw(st.sampled_from(options)))

    def _answer(self, pick: Pick) -> None:
        command = pick(self.open)
        if isinstance(command, StartRunner) and pick((True, False, False)):
            return  # it takes its time
        self.open.remove(command)
        match command:
            case Ask():
                self._lease(pick) if pick((True, True, True, False)) else self._tell(NoWork())
            case CommitAccepted(lease=lease):
                well = pick((True,) * 8 + (False,))
                self.tasks[lease].recorded = well
                self._tell(Committed(lease=lease) if well else CommitFailed(lease=lease, problem="disk full"))
            case CommitOutcome(lease=lease):
                well = pick((True,) * 8 + (False,))
                self.tasks[lease].committed = well
                self._tell(Committed(lease=lease) if well else CommitFailed(lease=lease, problem="disk full"))
            case SendHeartbeat(lease=lease):
                self._answer_heartbeat(self.tasks[lease], pick(("ok",) * 8 + ("cancel", "gone", "failed")))
            case OfferOutcome(lease=lease):
                self._tell(OutcomeAccepted(lease=lease))
            case StartRunner(lease=lease):
                self._end(lease, pick(("finished", "finished", "failed")))

    def _lease(self, pick: Pick) -> None:
        offer, key = pick(self.offers), len(self.tasks) + 1
        older = [t.name for t in self.tasks.values() if t.claims]
        name = pick(older) if older and pick((True, False, False, False)) else f"task {key}"
        ttl, timeout = pick((3600.0, 8.0)), pick(TIMEOUTS)
        self.tasks[key] = Task(key, offer, name, timeout, ttl, self.now, self.now + ttl)
        made = envelope(capability=offer.capability, task_id=UUID(int=int(name.removeprefix("task "))))
        runner = "" if offer.runner == A else offer.runner
        self._tell(LeaseOffered(envelope=made, ttl=ttl, runner=runner, timeout=timeout))

    def _answer_heartbeat(self, task: Task, how: str) -> None:
        task.settled = True
        if how in ("gone", "failed"):
            task.lost |= task.alive and how == "gone" and not task.committed
            self._tell(HeartbeatFailed(lease=task.key, failure=failure(404 if how == "gone" else 500)))
            return
        if task.alive:
            task.cancelled = how == "cancel" and not task.outcome
            task.expiry = self.now + task.ttl
        answer = HeartbeatAnswer(cancel=how == "cancel")
        self._tell(HeartbeatAccepted(lease=task.key, answer=answer, ttl=task.ttl))

    def _end(self, lease: int, how: str) -> None:
        self.tasks[lease].returned, self.result = True, how
        finished = RunnerFinished(lease=lease, artifacts=(ARTIFACT,))
        failed = RunnerFailed(lease=lease, code="runner_error", message="x", artifacts=(ARTIFACT,))
        self._tell(finished if how == "finished" else failed)

    @rule(seed=st.integers(0, 2**32), steps=st.integers(1, 60))
    def for_a_while(self, seed: int, steps: int) -> None:
        pick = Random(seed).choice
        for _ in range(steps):
            if not pick(range(400)):
                pick((self._drain, self._cancel))()
            elif not pick(range(25)):
                self._sleep(pick(STEPS), pick)
            elif self.open and pick(range(4)):
                self._answer(pick)
            else:
                self.wait(pick(STEPS))
            self.what_may_begin_has_begun()
            self.what_is_held_is_told()

    @rule(seconds=st.sampled_from(STEPS))
    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while (deadline := self.stage.engine.next_deadline()) is not None and deadline <= end:
            self._until(max(self.now, deadline))
            self._check(self.stage.engine.elapse(self.now))
        self._until(end)

    def _until(self, time: float) -> None:
        self.stage.now = time
        for task in self.tasks.values():
            task.expired |= task.alive and not task.committed and time >= task.expiry

    @rule(data=st.data(), seconds=st.sampled_from(STEPS), now=RARELY)
    def the_process_sleeps(self, data: st.DataObject, seconds: float, now: bool) -> None:
        if now:
            self._sleep(seconds, lambda options: data.draw(st.sampled_from(options)))

    def _sleep(self, seconds: float, pick: Pick) -> None:
        """The first that it hears may be that a runner has ended, or a commit was made."""
        self._until(self.now + seconds)
        self.slept = self.now
        first = [c for c in self.open if isinstance(c, StartRunner | CommitOutcome)]
        if first and pick((True, False)):
            command = pick(first)
            self.open.remove(command)
            if isinstance(command, StartRunner):
                self._end(command.lease, pick(("finished", "failed")))
            else:
                self.tasks[command.lease].committed = True
                self._tell(Committed(lease=command.lease))
        self._check(self.stage.engine.elapse(self.now))

    @rule(now=RARELY)
    def drain(self, now: bool) -> None:
        if now:
            self._drain()

    def _drain(self) -> None:
        self._stop(DrainRequested(seconds=30.0))

    @rule(now=RARELY)
    def cancel(self, now: bool) -> None:
        if now:
            self._cancel()

    def _cancel(self) -> None:
        self._stop(CancelRequested())

    def _stop(self, event: Event) -> None:
        self.draining = True
        self._tell(event)

    # -- What must hold between two steps

    @invariant()
    def what_may_begin_has_begun(self) -> None:
        for task in self.tasks.values():
            if self.draining or task.outcome or not task.alive or task.begun is not None:
                continue
            if task.recorded and (task.settled or self.now >= task.offered + FIRST_ANSWER):
                assert not self._fits(task), "nobody is before it"
                assert not self._hopeless(task), "it could wait for ever"

    @invariant()
    def what_is_late_is_stopped(self) -> None:
        for task in self.tasks.values():
            if task.begun is None or task.outcome or task.returned or self.now < task.ends:
                continue
            assert task.told is not None
            assert task.taken_away or self.now < max(task.told + GRACE, task.ends), "it is given up in time"

    @invariant()
    def what_is_held_is_told(self) -> None:
        if self.left:
            return
        engine = self.stage.engine
        for task in self.tasks.values():
            task.abandoned |= self.draining and task.given_up
        holding = [task for task in self.tasks.values() if task.holds]
        assert engine.poller.busy == len(holding)
        shown = {status.lease: status for status in engine.statistics().tasks}
        for task in holding:
            assert (UNSTOPPED in shown[task.key].problem) is task.occupies
        assert set(self.ended) <= {task.key for task in self.tasks.values() if task.committed}

    def teardown(self) -> None:
        """In the end everything ends."""
        if not hasattr(self, "stage"):
            return
        if not self.draining:
            self._finish(lambda: any(task.holds for task in self.tasks.values()))
        self._drain()
        self._finish(lambda: not self.left or len(self.ended) < len(self.tasks))
        assert set(self.ended) == set(self.tasks)

    def _finish(self, goes_on: Callable[[], bool]) -> None:
        """Every command is answered well, user code after 1 s; so all that waits has its turn."""
        for _ in range(400):
            while found := [command for command in self.open if not isinstance(command, StartRunner)]:
                self.open.remove(found[0])
                match found[0]:
                    case Ask():
                        self._tell(NoWork())
                    case CommitAccepted(lease=lease):
                        self.tasks[lease].recorded = True
                        self._tell(Committed(lease=lease))
                    case CommitOutcome(lease=lease):
                        self.tasks[lease].committed = True
                        self._tell(Committed(lease=lease))
                    case SendHeartbeat(lease=lease):
                        self._answer_heartbeat(self.tasks[lease], "ok")
                    case OfferOutcome(lease=lease):
                        self._tell(OutcomeAccepted(lease=lease))
            if not goes_on():
                return
            self.what_may_begin_has_begun()
            self.wait(1.0)
            for command in [command for command in self.open if isinstance(command, StartRunner)]:
                self.open.remove(command)
                self._end(command.lease, "finished")
        raise AssertionError("it does not end")


def test_runners() -> None:
    briefly(RunnerRules, 100, 40)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_runners_at_length() -> None:
    at_length(RunnerRules, 400, 60)


def long_life(seed: int) -> Counter[str]:
    """Many steps without Hypothesis: nothing to take apart, but far to go."""
    node, rng = RunnerRules(), Random(seed)
    node.build(rng.choice((1, 3, 6)), PLANS[seed % len(PLANS)], seed)
    node.for_a_while(seed, 400)
    node.teardown()
    return Counter(task.outcome for task in node.tasks.values()) + Counter(
        {"given up": sum(task.given_up for task in node.tasks.values())}
    )


def test_long_lives_see_every_outcome() -> None:
    seen = sum((long_life(seed) for seed in range(30)), Counter())
    wanted = {"completed", "runner_error", "timeout", "cancelled", "lost", "node_shutdown", "setup_failed", "no_runner"}
    assert set(seen) == wanted | {"given up"}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", range(4))
def test_many_long_lives(part: int) -> None:
    for seed in range(1000 + part * 100, 1100 + part * 100):
        long_life(seed)
