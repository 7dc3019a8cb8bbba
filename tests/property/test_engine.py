"""A whole node's engine against a hostile network: nothing unsafe ever, and in the end everything ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Any, TypeAlias
from uuid import UUID

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec import structs

from posemesh.capacity import Capacity, Offer
from posemesh.commands import (
    AnswerCallback,
    Answered,
    Ask,
    Authorized,
    Command,
    CommitAccepted,
    CommitOutcome,
    GiveUp,
    Leave,
    OfferOutcome,
    Register,
    SendHeartbeat,
    SettleOutcome,
    SignIn,
    StartRunner,
    StopRunner,
    StoreSecret,
    UpdateLease,
)
from posemesh.events import (
    AskFailed,
    CallbackArrived,
    CancelRequested,
    CommitFailed,
    Committed,
    DrainRequested,
    Event,
    EventLogged,
    HealthProbed,
    HeartbeatAccepted,
    HeartbeatFailed,
    LeaseOffered,
    LeaseRecovered,
    LeaseUnreadable,
    NodeStarted,
    NoWork,
    OutcomeAccepted,
    OutcomeRecovered,
    OutcomeRejected,
    ProgressMade,
    RegistrationAccepted,
    RegistrationRejected,
    RunnerFailed,
    RunnerFinished,
    SecretStored,
    SecretUnstored,
    SignedIn,
    SignInFailed,
    TransferMoved,
)
from posemesh.secret import Secret
from posemesh.types import HeartbeatAnswer, Outcome

from ..stage import CAPABILITY, DONE, Stage, envelope, failure
from .running import RARELY, at_length, briefly

EPSILON = 1e-6
ENDINGS = {"completed", "failed", "refused", "unconfirmed", "stuck", "lost", "cancelled", "superseded"}
STATUSES = (None, None, 400, 401, 401, 403, 404, 408, 409, 410, 413, 422, 429, 500, 503)
TTLS = (None, 0.5, 3.0, 60.0, 3600.0)
TIMEOUTS = (None, None, 1.0, 20.0)
TOKEN_TTLS = (None, 0.0, 1.0, 30.0, 3600.0)
RETRY_AFTER = (None, None, None, 5.0, 1e6)
ASKED = ("lease",) * 6 + ("other", "unreadable", "none", "failed")
BOTH = (True, False)
SELDOM = (True,) + (False,) * 8
STEPS = (0.1, 0.1, 0.5, 1.0, 1.0, 3.0, 20.0)
FINDS = ("lease", "lease", "refused", "outcome", "outcome")
RESERVED = 6
"""The numbers of the leases that a node can find on record."""
Pick: TypeAlias = Callable[[Sequence[Any]], Any]
"""Chooses one of several: Hypothesis, which can take a failure apart, or a Random, which goes further in less time."""


class NodeRules(RuleBasedStateMachine):
    """This plays the shell and the network. ``open`` are the commands that wait for their one answer.

    Leases that were found are ``unsure`` until the service says that they stand. Those that come with an outcome have
    it ``given`` (None: any failure) and never run. ``rejected`` are those of which an offer met trouble, ``concluded``
    those whose outcome was to be recorded.
    """

    def __init__(self) -> None:
        super().__init__()
        self.open: list[Answered] = []
        self.callbacks: set[int] = set()
        self.requests = 0
        self.left = self.gave_up = self.draining = False
        self.expiries: dict[int, float] = {}
        self.tokens: dict[int, float] = {}
        self.holding: set[int] = set()
        self.ended: Counter[int] = Counter()
        self.leases = RESERVED
        self.unfound = list(range(1, RESERVED + 1))
        self.unsure: set[int] = set()
        self.terms: dict[int, float] = {}
        self.given: dict[int, Outcome | None] = {}
        self.tasks: dict[int, str] = {}
        self.rejected: set[int] = set()
        self.concluded: set[int] = set()
        self.commits: Counter[int] = Counter()
        self.running: set[int] = set()
        self.ran: set[int] = set()
        self.cancelled: set[int] = set()
        self.lost_replies: set[int] = set()
        self.transfers: dict[int, dict[str, Any]] = {}

    @initialize(
        slots=st.sampled_from([1, 2, 4]),
        callback=st.booleans(),
        seed=st.integers(0, 99),
        kindness=st.sampled_from([9, 7, 3, 0]),
        known=st.booleans(),
        room=st.sampled_from([None, None, 1, 3]),
        found=st.integers(0, 4),
    )
    def build(
        self, slots: int, callback: bool, seed: int, kindness: int, known: bool, room: int | None, found: int
    ) -> None:
        self.kindness = kindness
        self.slots = slots
        url = "https://node.example" if callback else None
        capacity = Capacity([Offer(CAPABILITY, CAPABILITY, slots=room)])
        self.stage = Stage(
            seed=seed,
            capacity=capacity,
            first_lease=RESERVED + 1,
            max_concurrency=slots,
            node_url=url,
            register_interval_secs=20.0,
        )
        for _ in range(found):
            self._find(Random(seed + len(self.tasks)).choice)
        self._tell(NodeStarted())
        if known:  # so that more runs get to see leases
            self._befriend(Register, StoreSecret, SignIn)

    @property
    def now(self) -> float:
        return self.stage.now

    # -- What must never happen

    def _tell(self, event: Event) -> None:
        self._check(self.stage(event))

    def _check(self, commands: list[Command]) -> None:
        for end in self.stage.engine.ended:
            self.ended[end.lease] += 1
            assert end.ending in ENDINGS and self.ended[end.lease] == 1
            assert end.lease not in self.lost_replies or end.ending != "refused"
            assert end.lease in self.lost_replies or end.ending != "unconfirmed"
            if end.ending == "superseded":
                assert [key for key in self._newer(end.lease) if not self.ended[key] or key in self._just_ended()]
                assert not [c for c in self._waiting(OfferOutcome) if c.lease == end.lease]
        for command in commands:
            assert not isinstance(command, Leave) or not self.left
            if isinstance(command, Authorized):
                self._check_authorized(command)
            match command:
                case AnswerCallback(request=request):
                    self.callbacks.remove(request)
                case Register() | SignIn():
                    assert not self._waiting(type(command))
                case StartRunner(lease=lease):
                    assert lease not in self.unsure and lease not in self.given
                    assert lease not in self.cancelled and self._lasts(lease)
                    assert not self.draining, "a stopping node begins nothing"
                    self.running.add(lease)
                    self.ran.add(lease)
                case StopRunner(lease=lease) | UpdateLease(lease=lease):
                    assert lease in self.running
                case CommitAccepted(lease=lease) | CommitOutcome(lease=lease):
                    assert not [
                        c for c in self.open if isinstance(c, CommitAccepted | CommitOutcome) and c.lease == lease
                    ]
                    self._check_commit(command)
                case GiveUp():
                    self.gave_up = True
                case Leave():
                    assert self.draining
                    self.left = True
            if isinstance(command, Answered):
                self.open.append(command)

    def _check_commit(self, command: CommitAccepted | CommitOutcome) -> None:
        lease = command.lease
        if isinstance(command, CommitAccepted):
            assert lease not in self.given, "a task that is not to run"
            assert lease not in self.unsure, "taken up again although nobody knows whether its lease stands"
            return
        self.unsure.discard(lease)
        self.concluded.add(lease)
        if lease in self.cancelled and lease not in self.ran:
            assert command.outcome.kind in ("cancelled", "lost", "failed")
        elif lease in self.given:
            self._check_given(lease, command.outcome)

    def _check_given(self, lease: int, outcome: Outcome) -> None:
        given = self.given[lease]
        if given is None:
            assert outcome.kind == "failed" and outcome.task.task_id == self.tasks[lease]
        else:
            assert outcome == given

    def _check_authorized(self, command: Authorized) -> None:
        assert command.token == Secret(f"t{command.generation}")
        assert self.now < self.tokens[command.generation], "sent with a token that has expired"
        assert command.generation == max(self.tokens)
        match command:
            case Ask():
                assert not self.draining
                asks = len(self._waiting(Ask)) + 1
                assert len(self.holding) + asks <= self.slots, "asked for more than can run"
                assert self._backlog() < 64
                assert not self.unsure, "what was found may take the room"
            case SendHeartbeat(lease=lease):
                assert lease not in self.given
                if lease in self.terms:  # its time begins when it is first asked about
                    self.expiries.setdefault(lease, self.now + self.terms[lease])
                assert not [c for c in self._waiting(SendHeartbeat) if c.lease == lease]
                assert self._lasts(lease), "a heartbeat under a lease that ran out"
            case OfferOutcome(lease=lease, outcome=outcome):
                instead = outcome.code == "report_rejected"
                assert lease not in self.cancelled or lease in self.lost_replies, "reported although cancelled"
                assert not [c for c in self._waiting(OfferOutcome) if c.lease == lease]
                assert lease not in self.holding, "reported before it was recorded"
                assert lease not in self.rejected or not self._superseded(lease), "it may end a newer lease"
                if lease in self.given and not instead:
                    self._check_given(lease, outcome)

    def _newer(self, lease: int) -> list[int]:
        return [key for key, task in self.tasks.items() if key > lease and task == self.tasks[lease]]

    def _just_ended(self) -> set[int]:
        return {end.lease for end in self.stage.engine.ended}

    def _superseded(self, lease: int) -> bool:
        """Whether there is a newer lease of its task which, as far as can be seen from here, does not wait for room."""
        accepting = {command.lease for command in self._waiting(CommitAccepted)}
        begun = self.unsure | self.ran | self.concluded | accepting
        return any(key in begun and not self.ended[key] for key in self._newer(lease))

    def _lasts(self, lease: int) -> bool:
        return self.now < self.expiries[lease] + EPSILON

    def _backlog(self) -> int:
        return self.stage.engine.poller.backlog

    def _waiting(self, kind: type[Any]) -> list[Any]:
        return [command for command in self.open if isinstance(command, kind)]

    # -- One answer for each command

    def _answer(self, command: Answered, pick: Pick) -> None:
        if not isinstance(command, Ask | SignIn | Register) and pick(range(10)) < self.kindness:
            self._answer_well(command)
            return
        self.open.remove(command)
        match command:
            case Register():
                well = RegistrationAccepted() if pick((True, True, False)) else None
                self._tell(well or RegistrationRejected(failure=failure(pick(STATUSES))))
            case StoreSecret(request=request, node_id=node_id):
                stored = SecretStored(request=request, node_id=node_id)
                self._tell(stored if pick(BOTH) else SecretUnstored(request=request, problem="persist failed"))
            case SignIn():
                well = SignedIn(token=Secret("t"), ttl=pick(TOKEN_TTLS)) if pick((True, True, False)) else None
                self._answer_sign_in(well or SignInFailed(failure=failure(pick(STATUSES)), at_verify=pick(BOTH)))
            case Ask():
                self._answer_ask(pick)
            case SendHeartbeat(lease=lease):
                self._answer_heartbeat(lease, command.generation, pick)
            case OfferOutcome(lease=lease):
                answer = self._failure(pick, command.generation) if pick(BOTH) else None
                if answer and answer.status is None and answer.sent:
                    self.lost_replies.add(lease)
                if answer:
                    self.rejected.add(lease)
                self._tell(OutcomeRejected(lease=lease, failure=answer) if answer else OutcomeAccepted(lease=lease))
            case CommitAccepted(lease=lease) | CommitOutcome(lease=lease):
                well = not pick(SELDOM)
                if well and isinstance(command, CommitOutcome):
                    self.holding.discard(lease)
                self._tell(Committed(lease=lease) if well else CommitFailed(lease=lease, problem="disk full"))
            case StartRunner(lease=lease):
                self.running.discard(lease)
                well = pick(BOTH)
                failed = RunnerFailed(lease=lease, code="runner_error", message="x")
                self._tell(RunnerFinished(lease=lease) if well else failed)

    def _failure(self, pick: Pick, generation: int) -> Any:
        return failure(pick(STATUSES), sent=pick(BOTH), retry_after=pick(RETRY_AFTER), generation=generation)

    def _answer_sign_in(self, event: SignedIn | SignInFailed) -> None:
        if isinstance(event, SignedIn) and (event.ttl is None or event.ttl > 0) and not self.gave_up:
            generation = self.stage.engine.auth.generation + 1
            self.tokens[generation] = float("inf") if event.ttl is None else self.now + event.ttl
            event = SignedIn(token=Secret(f"t{generation}"), ttl=event.ttl)
        self._tell(event)

    def _answer_ask(self, pick: Pick) -> None:
        match pick(ASKED):
            case "lease":
                ttl, cancel = pick(TTLS), pick(SELDOM)
                server = None if pick(SELDOM) else "https://domain.example"
                task = UUID(int=pick((self.leases + 1,) * 5 + (1, 1, 1, 2, self.leases)))  # some were leased before
                terms = envelope(task_id=task, cancel=cancel, domain_server_url=server)
                offer = LeaseOffered(envelope=terms, ttl=ttl, timeout=pick(TIMEOUTS))
                lease = self._lease(str(task), ttl, cancel)
                if len(self._same(lease)) > 1 and pick(BOTH):
                    self.given[lease] = replace(DONE, task=replace(DONE.task, task_id=str(task)))
                    offer = structs.replace(offer, standing=self._earlier(lease))
                self._tell(offer)
            case "other":
                offer = LeaseOffered(envelope=envelope(capability="/other/v1"), ttl=60.0)
                self.given[self._lease(str(offer.envelope.task.id), 60.0, False)] = None
                self._tell(offer)
            case "unreadable":
                self.given[self._lease("t", 60.0, False)] = None
                self._tell(LeaseUnreadable(task_id="t", problem="p"))
            case "none":
                self._tell(NoWork(retry_after=pick(RETRY_AFTER)))
            case _:
                self._tell(AskFailed(failure=self._failure(pick, self.stage.engine.auth.generation)))

    def _lease(self, task: str, ttl: float | None, cancel: bool) -> int:
        self.leases += 1
        self.tasks[self.leases] = task
        self.holding.add(self.leases)
        self.expiries[self.leases] = self.now + (ttl or 6.0)
        if cancel:
            self.cancelled.add(self.leases)
        return self.leases

    def _same(self, lease: int) -> list[int]:
        return [key for key, task in self.tasks.items() if task == self.tasks[lease]]

    def _earlier(self, lease: int) -> Outcome:
        """What an earlier lease of that task came to: it may have been of another job."""
        return replace(DONE, task=replace(DONE.task, task_id=self.tasks[lease], job_id="earlier"))

    def _find(self, pick: Pick) -> None:
        """The ledger has a lease, or an outcome, of the node before this one."""
        lease = pick(self.unfound)
        self.unfound.remove(lease)
        task = UUID(int=pick((lease, lease, 1)))
        self.tasks[lease] = str(task)
        match pick(FINDS):
            case "outcome":
                outcome = self.given[lease] = replace(DONE, task=replace(DONE.task, task_id=str(task)))
                self.lost_replies.add(lease)
                self.concluded.add(lease)
                self._tell(OutcomeRecovered(lease=lease, outcome=outcome))
                return
            case "refused":
                self.given[lease], code = None, "killed"
            case _:
                self.unsure.add(lease)
                code = ""
        self.holding.add(lease)
        ttl = pick(TTLS)
        self.terms[lease] = ttl or 6.0
        terms = envelope(task_id=task)
        self._tell(LeaseRecovered(lease=lease, envelope=terms, ttl=ttl, timeout=pick(TIMEOUTS), code=code))

    def _answer_heartbeat(self, lease: int, generation: int, pick: Pick) -> None:
        if pick((True, False, False)):
            self._tell(HeartbeatFailed(lease=lease, failure=self._failure(pick, generation)))
            return
        ttl, cancel = pick(TTLS), pick(SELDOM)
        # The longest that an unknown expiry can stand for; the heartbeats' own machine has the exact rule.
        self.expiries[lease] = max(self.expiries[lease], self.now + (ttl or 3600.0))
        if lease in self._alive():
            (self.cancelled.add if cancel else self.unsure.discard)(lease)
        answer = HeartbeatAnswer(cancel=cancel, access_token=Secret("new") if pick(BOTH) else None)
        self._tell(HeartbeatAccepted(lease=lease, answer=answer, ttl=ttl))

    def _alive(self) -> set[int]:
        """The leases whose heartbeats still count."""
        tasks = self.stage.engine._tasks
        return {
            key
            for key, task in tasks.items()
            if task.session and task.session.state in ("pending", "alive", "troubled")
        }

    # -- What happens

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        self._answer_one(lambda options: data.draw(st.sampled_from(options)))

    def _answer_one(self, pick: Pick) -> None:
        self._answer(pick(self.open), pick)

    @rule(seed=st.integers(0, 2**32), steps=st.integers(1, 60))
    def for_a_while(self, seed: int, steps: int) -> None:
        pick = Random(seed).choice
        for _ in range(steps):
            if not pick(range(50)):
                pick((self._drain, self._cancel, *(self._sleep, self.probe) * 6))()
            elif self.unfound and not pick(range(60)):
                self._find(pick)
            elif self.open and pick(range(4)):
                self._answer_one(pick)
            elif self.running and not pick(range(3)):
                self._report(pick(sorted(self.running)), 2)
            elif self.ran and not pick(range(6)):
                self._move(pick(sorted(self.ran)), pick(("scan", "mesh")), pick(range(9)))
            else:
                self.wait(pick(STEPS))
            self.the_engine_is_sound()

    @rule(seconds=st.sampled_from(STEPS))
    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while (deadline := self.stage.engine.next_deadline()) is not None and deadline <= end:
            self.stage.now = max(self.now, deadline)
            self._elapse()
        self.stage.now = end

    @rule(seconds=st.sampled_from([1.0, 10.0, 5000.0]), now=RARELY)
    def the_process_sleeps(self, seconds: float, now: bool) -> None:
        if now:
            self._sleep(seconds)

    def _sleep(self, seconds: float = 30.0) -> None:
        self.stage.now += seconds
        self._elapse()

    def _elapse(self) -> None:
        self._check(self.stage.engine.elapse(self.now))
        deadline = self.stage.engine.next_deadline()
        assert deadline is None or deadline > self.now

    @precondition(lambda self: self.running)
    @rule(data=st.data(), number=st.integers(1, 3))
    def report(self, data: st.DataObject, number: int) -> None:
        self._report(data.draw(st.sampled_from(sorted(self.running))), number)

    def _report(self, lease: int, number: int) -> None:
        for value in range(number):
            self._tell(ProgressMade(lease=lease, progress=value))
            self._tell(EventLogged(lease=lease, record=value))

    @precondition(lambda self: self.ran)
    @rule(data=st.data(), name=st.sampled_from(["scan", "mesh"]), done=st.integers(0, 9))
    def move(self, data: st.DataObject, name: str, done: int) -> None:
        self._move(data.draw(st.sampled_from(sorted(self.ran))), name, done)

    def _move(self, lease: int, name: str, done: int) -> None:
        """Of any task that ever ran, over or not. It changes nothing but what is told of it."""
        before = (self.stage.states(), self.stage.engine.next_deadline(), self.stage.engine.statistics().counters)
        if lease in self._alive():
            shown = self.transfers.setdefault(lease, {})
            shown[name] = {"way": "in", "done": done, "total": None}
        assert self.stage(TransferMoved(lease=lease, transfer=name, way="in", done=done, total=None)) == []
        after = (self.stage.states(), self.stage.engine.next_deadline(), self.stage.engine.statistics().counters)
        assert after == before and not self.stage.engine.ended

    @precondition(lambda self: self.unfound)
    @rule(data=st.data(), now=RARELY)
    def find(self, data: st.DataObject, now: bool) -> None:
        if now:
            self._find(lambda options: data.draw(st.sampled_from(options)))

    @rule(node_id=st.sampled_from(["node", "stranger"]))
    def call_back(self, node_id: str) -> None:
        self.requests += 1
        self.callbacks.add(self.requests)
        self._tell(CallbackArrived(request=self.requests, node_id=node_id, secret=Secret("s")))

    @rule()
    def probe(self) -> None:
        self._tell(HealthProbed())

    @rule(now=RARELY, seconds=st.sampled_from([0.0, 30.0]))
    def drain(self, now: bool, seconds: float) -> None:
        if now:
            self._drain(seconds)

    def _drain(self, seconds: float = 30.0) -> None:
        self.draining = True
        self._tell(DrainRequested(seconds=seconds))

    @rule(now=RARELY)
    def cancel(self, now: bool) -> None:
        if now:
            self._cancel()

    def _cancel(self) -> None:
        self.draining = True
        self._tell(CancelRequested())

    @invariant()
    def the_engine_is_sound(self) -> None:
        assert not self.stage.engine.violations()
        statistics = self.stage.engine.statistics()
        for task in statistics.tasks:
            assert task.transfers == self.transfers.get(task.lease, {})
            if task.state == "backing_off":
                newer = {other.state for other in statistics.tasks if other.lease in self._newer(task.lease)}
                assert newer <= {"queued", "stuck"}, "its report would end a newer lease"
        counters = statistics.counters
        assert counters.get("leased", 0) == self.leases - RESERVED
        assert counters.get("recovered", 0) == RESERVED - len(self.unfound)
        assert sum(counters.get(ending, 0) for ending in ENDINGS) == len(self.ended)
        assert {store.request for store in self._waiting(StoreSecret)} == self.callbacks

    # -- In the end

    def teardown(self) -> None:
        if not hasattr(self, "stage"):
            return
        self.draining = True
        self._tell(DrainRequested(seconds=30.0))
        end, rounds = self.now + 36.0, 0
        while not self.left:
            self._befriend()
            deadline = self.stage.engine.next_deadline()
            assert self.left or (deadline is not None and deadline <= end), "the node never leaves"
            if not self.left:
                self.stage.now = max(self.now, deadline or 0.0)
                self._elapse()
            rounds += 1
            assert rounds < 2000
        self._befriend()
        if not self.gave_up:
            while len(self.ended) < len(self.tasks):
                deadline = self.stage.engine.next_deadline()
                assert deadline is not None, "a lease without an ending"
                self.stage.now = max(self.now, deadline)
                self._elapse()
                self._befriend()
                rounds += 1
                assert rounds < 4000
            assert set(self.ended) == set(self.tasks)
            assert not [held for held in vars(self.stage.engine._succession).values() if held]
        assert not self.callbacks

    def _befriend(self, *only: type[Answered]) -> None:
        """Everything (of those kinds) is answered as well as can be until nothing is open."""
        while found := [command for command in self.open if not only or isinstance(command, only)]:
            self._answer_well(found[0])

    def _answer_well(self, command: Answered) -> None:
        self.open.remove(command)
        match command:
            case Register():
                self._tell(RegistrationAccepted())
                if self.stage.engine.config.node_url:
                    self.call_back("node")
            case StoreSecret(request=request, node_id=node_id):
                self._tell(SecretStored(request=request, node_id=node_id))
            case SignIn():
                self._answer_sign_in(SignedIn(token=Secret("t"), ttl=36_000.0))
            case Ask():
                self._tell(NoWork())
            case SendHeartbeat(lease=lease):
                self.expiries[lease] = self.now + 60.0
                if lease in self._alive():
                    self.unsure.discard(lease)
                self._tell(HeartbeatAccepted(lease=lease, answer=HeartbeatAnswer(), ttl=60.0))
            case OfferOutcome(lease=lease):
                self._tell(OutcomeAccepted(lease=lease))
            case CommitAccepted(lease=lease) | CommitOutcome(lease=lease):
                if isinstance(command, CommitOutcome):
                    self.holding.discard(lease)
                self._tell(Committed(lease=lease))
            case StartRunner(lease=lease):
                self.running.discard(lease)
                self._tell(RunnerFinished(lease=lease))
            case SettleOutcome():
                raise AssertionError("nobody answers it")


def test_engine() -> None:
    briefly(NodeRules, 100, 40)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_engine_at_length() -> None:
    at_length(NodeRules, 600, 60)


def long_life(seed: int) -> Counter[str]:
    """A node's life of many steps, without Hypothesis: nothing to take apart, but far to go."""
    node, rng = NodeRules(), Random(seed)
    room, found = rng.choice((None, 1, 3)), rng.choice((0, 1, 4))
    node.build(rng.choice((1, 2, 4)), rng.choice(BOTH), seed, rng.choice((9, 7, 3)), True, room, found)
    node.for_a_while(seed, 600)
    node.teardown()
    return node.stage.engine.counters


def test_long_lives_see_every_ending() -> None:
    seen = sum((long_life(seed) for seed in range(80)), Counter())
    assert set(seen) == {"leased", "recovered", *ENDINGS}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", range(8))
def test_many_long_lives(part: int) -> None:
    for seed in range(1000 + part * 100, 1100 + part * 100):
        long_life(seed)
