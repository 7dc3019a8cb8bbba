"""The whole of one node without I/O: events and the time go in, commands come out.

    commands = engine.handle(event, now)     # moves the machines; raises IllegalTransition and changes nothing
    engine.next_deadline()                   # when to call ``engine.elapse(now)`` at the latest
    engine.statistics()                      # a snapshot

A step: the machines named by the event's class move, then the coupling rules run to a fixed point, then requests to the
task service get the node's token, or are answered here where there is none. ``now`` is monotonic, in seconds. What the
runners can take at a time is kept beside the machines (:class:`Claims`): it is of all leases and no lifecycle's own.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count
from random import Random
from types import ModuleType
from typing import Any, TypeGuard

from msgspec.structs import replace

from posemesh.capacity import Capacity, Claims
from posemesh.commands import Authorized, Command
from posemesh.config import NodeConfig
from posemesh.coupling import LAST_RULES, LEASE_RULES, NODE_RULES, Joint, concerns_auth, first_that_holds
from posemesh.events import (
    Event,
    Failure,
    HeartbeatAccepted,
    LeaseExpired,
    LeaseId,
    LeaseOffered,
    LeaseRecovered,
    LeaseScoped,
    LeaseUnreadable,
    OutcomeRecovered,
)
from posemesh.leased import Leased, Succession
from posemesh.machines import auth, delivery, lease, poller, registration, session
from posemesh.machines._kernel import Lifecycle, Moved, State, Step, Subject
from posemesh.snapshot import Ended, MachineStatus, Statistics, TaskStatus
from posemesh.types import TaskIdentity

__all__ = ("Engine",)

OF_NODE: tuple[ModuleType, ...] = (registration, auth, poller)
OF_LEASE: tuple[ModuleType, ...] = (lease, session, delivery)
NODE_MACHINES: dict[str, Lifecycle[Any]] = {module.MACHINE.name: module.MACHINE for module in OF_NODE}
LEASE_MACHINES: dict[str, Lifecycle[Any]] = {module.MACHINE.name: module.MACHINE for module in OF_LEASE}
INVARIANTS = {module.MACHINE.name: module.invariants for module in (*OF_NODE, *OF_LEASE)}
STEPS_MAX, STEPS_OF_LEASE_MAX = 500, 20
"""A step that moves machines more often than this, and this for each lease, does not converge: a rule does not make its
own condition false."""
STUCK_MAX = 256
"""Stuck outcomes that are shown; the oldest go first."""
NO_TOKEN = Failure(message="no node token", status=401, sent=False)
OCCUPIED = "its user code was told to stop and goes on; it keeps its slot"


@dataclass(eq=False, slots=True)
class _Work:
    """What one call still has to do: events to handle, and the commands found so far. The leases in ``touched`` moved,
    those in ``fresh`` since their rules were looked at.
    """

    events: deque[tuple[str, Event]] = field(default_factory=deque)
    commands: list[Command] = field(default_factory=list)
    touched: dict[LeaseId, None] = field(default_factory=dict)
    fresh: dict[LeaseId, None] = field(default_factory=dict)
    moves: int = 0


def _is_new(event: Event) -> TypeGuard[LeaseOffered | LeaseUnreadable | LeaseRecovered | OutcomeRecovered]:
    return isinstance(event, (LeaseOffered, LeaseUnreadable)) and not event.lease or _is_recovered(event)


def _is_recovered(event: Event) -> TypeGuard[LeaseRecovered | OutcomeRecovered]:
    """It comes with a number of its own, below that of the first lease."""
    return isinstance(event, (LeaseRecovered, OutcomeRecovered))


class Engine:
    """One node's lifecycles. It owns no clock, no randomness and no I/O."""

    def __init__(
        self,
        config: NodeConfig,
        capabilities: Iterable[str],
        rng: Random,
        *,
        first_lease: LeaseId = 1,
        capacity: Capacity | None = None,
    ) -> None:
        self.config = config
        self.capabilities = frozenset(capabilities)
        self.registration = registration.Registration()
        self.auth = auth.Auth()
        self.poller = poller.Poller()
        self.counters: Counter[str] = Counter()
        self.moved: list[Moved] = []
        self.ended: list[Ended] = []
        self._rng = rng
        self._claims = Claims(capacity)
        self._joint = Joint(self.registration, self.auth, self.poller, claims=self._claims)
        self._tasks: dict[LeaseId, Leased] = {}
        self._succession = Succession()
        self._stuck: dict[LeaseId, Leased] = {}
        self._first = self._next = first_lease
        self._holding = self._waiting = self._unanswered = self._ran = self._unran = 0
        self._node_moved = True
        self._seen: tuple[int, State] = (0, self.poller.state)
        self._timers: list[tuple[float, int, Subject]] = []
        self._order = count()

    def __repr__(self) -> str:
        states = ", ".join(f"{name} {getattr(self, name).state.value}" for name in NODE_MACHINES)
        return f"<Engine {states}, {len(self._tasks)} tasks>"

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take ``event`` in and return what is to be done, in order. ``moved`` and ``ended`` hold this step's records.

        An event of a lease that is over is dropped: its answer came after the end. Raises IllegalTransition where a
        machine has no edge for the event; nothing has changed then.
        """
        self.moved.clear()
        self.ended.clear()
        if (expiry := self._overdue(event, now)) is None:
            return self._run(event, now)
        self._check(event)
        return self._run(expiry, now) + self._run(event, now)

    def elapse(self, now: float) -> list[Command]:
        """Handle every timer that is due at ``now``, earliest first."""
        self.moved.clear()
        self.ended.clear()
        commands: list[Command] = []
        while (subject := self._earliest()) is not None and self._timers[0][0] <= now:
            event = min(subject.timers, key=subject.timers.__getitem__)
            del subject.timers[event]
            commands += self._run(event(lease=subject.key) if issubclass(event, LeaseScoped) else event(), now)
        return commands

    def next_deadline(self) -> float | None:
        """The earliest timer of any machine, None without one."""
        return None if self._earliest() is None else self._timers[0][0]

    def identity(self, key: LeaseId) -> TaskIdentity | None:
        """The task of a lease that is not over."""
        task = self._tasks.get(key)
        return None if task is None else task.lease.task

    def statistics(self) -> Statistics:
        """A snapshot: the node's machines, its tasks (stuck ones included) and what has been counted so far."""
        machines = {
            name: MachineStatus(state=subject.state.value, since=subject.since, deadline=subject.deadline)
            for name in NODE_MACHINES
            for subject in (getattr(self, name),)
        }
        tasks = tuple(self._status(task) for task in (*self._tasks.values(), *self._stuck.values()))
        return Statistics(machines=machines, tasks=tasks, counters=dict(self.counters))

    def violations(self) -> list[str]:
        """The invariants that do not hold: always empty, unless a table is wrong."""
        named = [(name, getattr(self, name)) for name in NODE_MACHINES]
        named += [
            (n, s) for task in self._tasks.values() for n in LEASE_MACHINES if (s := getattr(task, n)) is not None
        ]
        return [f"{name}: {problem}" for name, subject in named for problem in INVARIANTS[name](subject)]

    def _run(self, event: Event, now: float) -> list[Command]:
        work = _Work()
        rejected = concerns_auth(event)
        if rejected is not None:
            work.events.append(("auth", rejected))
        if not self._late(event):
            self._check(event)
            event = self._numbered(event)
            work.events.extend((machine, event) for machine in event.machines)
        while work.events:
            self._fire(*work.events.popleft(), now, work)
            if not work.events:
                self._couple(now, work)
        self._retire(work)
        return work.commands

    def _overdue(self, event: Event, now: float) -> Event | None:
        """The expiry of the event's lease where it is past and nobody has looked: nothing may begin under that lease.

        Only an accepted heartbeat comes before it: the service says that the lease lasts.
        """
        if not isinstance(event, LeaseScoped) or isinstance(event, HeartbeatAccepted):
            return None
        task = self._tasks.get(event.lease)
        if task is None or task.session is None or task.session.timers.get(LeaseExpired, now + 1) > now:
            return None
        return LeaseExpired(lease=event.lease)

    def _late(self, event: Event) -> bool:
        """Whether ``event`` comes for a lease that is over."""
        if not isinstance(event, LeaseScoped) or event.lease in self._tasks or _is_new(event):
            return False
        if not 0 < event.lease < self._next:
            raise KeyError(f"{event} names a lease that never was")
        return True

    def _check(self, event: Event) -> None:
        """Refuse ``event`` as a whole, before anything moves, where one of its machines has no edge for it, or where
        its number cannot be that of a recovered lease.
        """
        if _is_recovered(event) and (not 0 < event.lease < self._first or event.lease in self._tasks):
            raise KeyError(f"{event}: expected a number of its own below {self._first}")
        task = self._tasks.get(event.lease) if isinstance(event, LeaseScoped) else None
        for name in event.machines:
            if name in NODE_MACHINES:
                NODE_MACHINES[name].check(getattr(self, name), event)
            else:
                LEASE_MACHINES[name].check(getattr(task, name, None), event)

    def _numbered(self, event: Event) -> Event:
        if not _is_new(event):
            return event
        if _is_recovered(event):
            key = event.lease
        else:
            key, self._next = self._next, self._next + 1
        self._tasks[key] = Leased(lease.Lease(key=key))
        self._holding += 1
        self.counters["recovered" if _is_recovered(event) else "leased"] += 1
        return replace(event, lease=key)

    def _fire(self, machine: str, event: Event, now: float, work: _Work) -> None:
        work.moves += 1
        if work.moves > STEPS_MAX + STEPS_OF_LEASE_MAX * len(self._tasks):
            raise AssertionError(f"the coupling rules do not converge: {self.moved[-8:]}")
        subject, lifecycle = self._subject(machine, event)
        step = Step(event, now, self._rng, self.config, self.capabilities, self._claims.has_room)
        commands, record = lifecycle.fire(subject, step)
        self.moved.append(record)
        if subject.key:
            work.touched[subject.key] = work.fresh[subject.key] = None
            if isinstance(subject, lease.Lease):
                self._recount_lease(subject, record)
                work.fresh.update(dict.fromkeys(self._succession.older(subject)))
            elif isinstance(subject, delivery.Delivery):
                self._recount_delivery(subject)
        else:
            self._node_moved = True
        if (deadline := subject.deadline) is not None and deadline != subject.queued:
            subject.queued = deadline
            heapq.heappush(self._timers, (deadline, next(self._order), subject))
        for command in commands:
            self._authorize(command, now, work)

    def _authorize(self, command: Command, now: float, work: _Work) -> None:
        if isinstance(command, Authorized):
            usable = self.auth.usable(now)
            if usable is None:
                answer = command.failed(NO_TOKEN)
                work.events.extend((machine, answer) for machine in answer.machines)
                return
            command = command.under(*usable)
        work.commands.append(command)

    def _subject(self, machine: str, event: Event) -> tuple[Subject, Lifecycle[Any]]:
        if machine in NODE_MACHINES:
            return getattr(self, machine), NODE_MACHINES[machine]
        assert isinstance(event, LeaseScoped)
        task = self._tasks[event.lease]
        subject = getattr(task, machine)
        if subject is None:
            subject = LEASE_MACHINES[machine].subject(key=event.lease)
            if isinstance(subject, session.Session):
                subject.task_id = task.lease.task.task_id
            subject.token_generation = self.auth.generation
            setattr(task, machine, subject)
        return subject, LEASE_MACHINES[machine]

    def _recount_lease(self, subject: lease.Lease, record: Moved) -> None:
        task, holds = self._tasks[subject.key], subject.holds
        self._holding += holds - task.holds
        task.holds = holds
        self._claim(subject)
        if record.source == record.dest:
            return
        ended = subject.state in lease.MACHINE.ends
        self._ran += (subject.state is lease.LeaseState.RUNNING) + (ended and subject.ran)
        self._unran += ended and not subject.ran

    def _superseded(self, task: Leased) -> bool:
        waiting = (lease.LeaseState.OFFERED, lease.LeaseState.QUEUED)
        return any(self._tasks[key].lease.state not in waiting for key in self._succession.newer(task.lease))

    def _recount_delivery(self, subject: delivery.Delivery) -> None:
        task = self._tasks[subject.key]
        waits = subject.outcome is not None and subject.state in delivery.UNDELIVERED
        self._waiting += waits - task.waits
        self._unanswered += subject.unanswered - task.unanswered
        task.waits, task.unanswered = waits, subject.unanswered
        if subject.state in delivery.MACHINE.ends:
            taken = subject.state in (delivery.DeliveryState.DELIVERED, delivery.DeliveryState.WITHDRAWN)
            self._ran += taken and task.lease.ran
            self._unran += not taken

    def _claim(self, subject: lease.Lease) -> None:
        """Tell the claims what the lease's move means to them. What ends without having begun claims no more."""
        key = subject.key
        if not subject.holds or (subject.outcome is not None and not subject.ran):
            self._claims.release(key)
        elif subject.state in (lease.LeaseState.FOUND, lease.LeaseState.ACCEPTED):
            self._claims.take(key, subject.runner or subject.task.capability, subject.task.task_id)
            self._claims.note(key, waits=subject.state is lease.LeaseState.FOUND, stuck=False)
        else:
            self._claims.note(key, waits=subject.state is lease.LeaseState.QUEUED, stuck=subject.stuck)

    def _couple(self, now: float, work: _Work) -> None:
        """Put the events of the first rule that holds into ``work``, if there is one."""
        joint, room = self._joint, self._claims.room(self.config.max_concurrency)
        joint.census = (self._holding, self._waiting, self._unanswered, self._ran, self._unran, *room)
        joint.now, joint.lease, joint.session, joint.delivery = now, None, None, None
        rule = first_that_holds(NODE_RULES, joint) if self._node_moved else None
        self._node_moved = rule is not None
        if (seen := (self.auth.generation, self.poller.state)) != self._seen:
            self._seen = seen
            work.fresh.update(dict.fromkeys(self._tasks))
        if self._claims.waiting:
            work.fresh.update(dict.fromkeys(self._claims.waiting))
        while rule is None and work.fresh:
            key = next(iter(work.fresh))
            task = self._tasks[key]
            joint.lease, joint.session, joint.delivery = task.lease, task.session, task.delivery
            joint.superseded = task.delivery is not None and self._superseded(task)
            rule = first_that_holds(LEASE_RULES, joint)
            if rule is None:
                del work.fresh[key]
        rule = rule or first_that_holds(LAST_RULES, joint)
        if rule is not None:
            work.events.extend((machine, make(joint)) for machine, make in rule.tell)

    def _retire(self, work: _Work) -> None:
        for key in work.touched:
            task = self._tasks.get(key)
            if task is None or not task.over:
                continue
            if not task.told:
                task.told = True
                self.counters[task.ending] += 1
                self.ended.append(Ended(lease=key, task=task.lease.task, ending=task.ending, reason=task.reason))
            if task.lease.occupied:
                continue
            del self._tasks[key]
            self._succession.forget(task.lease)
            if task.ending == "stuck":
                self._stuck[key] = task
                if len(self._stuck) > STUCK_MAX:
                    del self._stuck[min(self._stuck)]

    def _earliest(self) -> Subject | None:
        """The subject whose timer is next; entries that a later move has overtaken are dropped on the way."""
        while self._timers:
            at, _, subject = self._timers[0]
            if subject.deadline == at:
                return subject
            heapq.heappop(self._timers)
            if subject.queued == at:
                subject.queued = None
        return None

    def _status(self, task: Leased) -> TaskStatus:
        subject: Subject = task.delivery if task.delivery is not None else task.lease
        problems = (task.delivery.problem if task.delivery else "", OCCUPIED if task.lease.occupied else "")
        return TaskStatus(
            lease=task.lease.key,
            task_id=task.lease.task.task_id,
            capability=task.lease.task.capability,
            state=subject.state.value,
            progress=task.session.progress if task.session else {},
            transfers=dict(task.session.transfers) if task.session else {},
            problem=" - ".join(problem for problem in problems if problem),
        )
