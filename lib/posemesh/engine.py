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
from collections import Counter
from collections.abc import Iterable
from itertools import count
from random import Random
from types import ModuleType
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from posemesh.capacity import Capacity, Claims
from posemesh.commands import Authorized, Command
from posemesh.config import NodeConfig
from posemesh.coupling import LAST_RULES, LEASE_RULES, NODE_RULES, Joint, concerns_auth
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
MACHINES = NODE_MACHINES | LEASE_MACHINES
INVARIANTS = {module.MACHINE.name: module.invariants for module in (*OF_NODE, *OF_LEASE)}
STEPS_MAX, STEPS_OF_LEASE_MAX = 500, 20
"""A step that moves machines more often than this, and this for each lease, does not converge: a rule does not make its
own condition false."""
STUCK_MAX = 256
"""Stuck outcomes that are shown; the oldest go first."""
FOUND, ACCEPTED = lease.LeaseState.FOUND, lease.LeaseState.ACCEPTED
QUEUED, RUNNING = lease.LeaseState.QUEUED, lease.LeaseState.RUNNING
OFFERED = (LeaseOffered, LeaseUnreadable)
RECOVERED = (LeaseRecovered, OutcomeRecovered)
"""Their leases come with numbers of their own, below that of the first new lease."""
NO_TOKEN = Failure(message="no node token", status=401, sent=False)
OCCUPIED = "its user code was told to stop and goes on; it keeps its slot"


class _Work(Struct, eq=False):
    """What one call still has to do: events to handle, and the commands found so far. The leases in ``touched`` moved,
    those in ``fresh`` since their rules were looked at.
    """

    events: list[tuple[str, Event]] = []
    commands: list[Command] = []
    touched: dict[LeaseId, None] = {}
    fresh: dict[LeaseId, None] = {}
    moves_left: int = 0


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
        self._of_node: dict[str, Subject] = {name: getattr(self, name) for name in NODE_MACHINES}
        self.counters: Counter[str] = Counter()
        self.moved: list[Moved] = []
        self.ended: list[Ended] = []
        self._rng = rng
        self._claims = Claims(capacity)
        self._joint = Joint(self.registration, self.auth, self.poller, claims=self._claims, superseded=self._superseded)
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
        task = self._tasks.get(getattr(event, "lease", 0))
        # Nothing may begin under a lease that has run out. Only an accepted heartbeat says that it lasts.
        if task is None or not task.is_overdue(now) or isinstance(event, HeartbeatAccepted):
            return self._run(event, task, now)
        self._admitted(event, task)
        commands = self._run(LeaseExpired(lease=task.lease.key), task, now)
        return commands + self._run(event, self._tasks.get(task.lease.key), now)

    def elapse(self, now: float) -> list[Command]:
        """Handle every timer that is due at ``now``, earliest first."""
        self.moved.clear()
        self.ended.clear()
        commands: list[Command] = []
        while (deadline := self.next_deadline()) is not None and deadline <= now:
            subject = self._timers[0][2]
            event = min(subject.timers, key=subject.timers.__getitem__)
            del subject.timers[event]
            subject.queued = None
            due = event(lease=subject.key) if issubclass(event, LeaseScoped) else event()
            commands += self._run(due, self._tasks.get(subject.key), now)
        return commands

    def next_deadline(self) -> float | None:
        """The earliest timer of any machine, None without one."""
        while self._timers:
            at, _, subject = self._timers[0]
            if subject.queued == at:
                return at
            heapq.heappop(self._timers)  # a later move has overtaken it
        return None

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

    def _run(self, event: Event, task: Leased | None, now: float) -> list[Command]:
        work = _Work()
        rejected = concerns_auth(event)
        if rejected is not None:
            work.events.append(("auth", rejected))
        if (admitted := self._admitted(event, task)) is not None:
            for machine in admitted.machines:
                work.events.append((machine, admitted))
        work.moves_left = STEPS_MAX + STEPS_OF_LEASE_MAX * len(self._tasks)
        self._joint.now = now
        while work.events:
            self._fire(*work.events.pop(0), now, work)
            if not work.events:
                self._couple(work)
        self._retire(work)
        return work.commands

    def _admitted(self, event: Event, task: Leased | None) -> Event | None:
        """``event``, with a number where its lease is new; None where it comes for a lease that is over.

        It is refused as a whole, before anything moves, where one of its machines has no edge for it, or where its
        number cannot be its lease's.
        """
        first = event if (task is None or type(event) in RECOVERED) and isinstance(event, LeaseScoped) else None
        if first is not None and not self._begins(first):
            return None
        for name in event.machines:
            MACHINES[name].check(getattr(self if name in NODE_MACHINES else task, name, None), event)
        return event if first is None else self._begun(first)

    def _begins(self, event: LeaseScoped) -> bool:
        """Whether it is the first event of a lease, and not one that comes after its end."""
        if type(event) in RECOVERED:
            if not 0 < event.lease < self._first or event.lease in self._tasks:
                raise KeyError(f"{event}: expected a number of its own below {self._first}")
            return True
        if type(event) in OFFERED and not event.lease:
            return True
        if not 0 < event.lease < self._next:
            raise KeyError(f"{event} names a lease that never was")
        return False

    def _begun(self, event: LeaseScoped) -> Event:
        """The first event of a lease, with its number: its own, where it was recovered."""
        key = event.lease or self._next
        self._next = max(self._next, key + 1)
        self._tasks[key] = Leased(lease.Lease(key=key))
        self._holding += 1
        self.counters["recovered" if event.lease else "leased"] += 1
        return replace(event, lease=key)

    def _fire(self, machine: str, event: Event, now: float, work: _Work) -> None:
        if not work.moves_left:
            raise AssertionError(f"the coupling rules do not converge: {self.moved[-8:]}")
        work.moves_left -= 1
        subject = self._of_node.get(machine) or self._of_lease(machine, event)
        step = Step(event, now, self._rng, self.config, self.capabilities, self._claims.has_room)
        try:
            commands, record = MACHINES[machine].fire(subject, step)
        finally:  # a fault in an action must not leave a timer that was disarmed, and would be due for ever
            self._note_deadline(subject)
        self.moved.append(record)
        if key := subject.key:
            work.touched[key] = work.fresh[key] = None
            if machine == "lease":
                self._recount_lease(self._tasks[key], record, work)
            elif machine == "delivery":
                self._recount_delivery(self._tasks[key])
        else:
            self._node_moved = True
        for command in commands:
            if isinstance(command, Authorized):
                self._authorize(command, now, work)
            else:
                work.commands.append(command)

    def _note_deadline(self, subject: Subject) -> None:
        if not subject.timers:
            subject.queued = None
        elif (deadline := min(subject.timers.values())) != subject.queued:
            subject.queued = deadline
            heapq.heappush(self._timers, (deadline, next(self._order), subject))

    def _authorize(self, command: Authorized, now: float, work: _Work) -> None:
        if (usable := self.auth.usable(now)) is not None:
            work.commands.append(command.under(*usable))
        else:
            answer = command.failed(NO_TOKEN)
            work.events += [(machine, answer) for machine in answer.machines]

    def _of_lease(self, machine: str, event: Any) -> Any:
        """That machine of the event's lease; it is made when it first hears of something."""
        task = self._tasks[event.lease]
        subject = getattr(task, machine)
        if subject is None:
            subject = LEASE_MACHINES[machine].subject(key=event.lease, token_generation=self.auth.generation)
            if machine == "session":
                subject.task_id = task.lease.task.task_id
            setattr(task, machine, subject)
        return subject

    def _recount_lease(self, task: Leased, record: Moved, work: _Work) -> None:
        subject, holds = task.lease, task.lease.holds
        self._holding += holds - task.holds
        task.holds = holds
        self._claim(subject, holds)
        if record.source == record.dest:
            return
        work.fresh.update(dict.fromkeys(self._succession.older(subject)))
        if subject.state is RUNNING:
            self._ran += 1
        elif subject.state in lease.MACHINE.ends:
            self._ran += subject.ran
            self._unran += not subject.ran

    def _superseded(self, key: LeaseId) -> bool:
        waiting = (lease.LeaseState.OFFERED, QUEUED)
        newer = self._succession.newer(self._tasks[key].lease)
        return any(self._tasks[other].lease.state not in waiting for other in newer)

    def _recount_delivery(self, task: Leased) -> None:
        subject = task.delivery
        assert subject is not None
        waits = subject.outcome is not None and subject.state in delivery.UNDELIVERED
        self._waiting += waits - task.waits
        self._unanswered += subject.unanswered - task.unanswered
        task.waits, task.unanswered = waits, subject.unanswered
        if subject.state in delivery.MACHINE.ends:
            taken = subject.state in (delivery.DeliveryState.DELIVERED, delivery.DeliveryState.WITHDRAWN)
            self._ran += taken and task.lease.ran
            self._unran += not taken

    def _claim(self, subject: lease.Lease, holds: bool) -> None:
        """Tell the claims what the lease's move means to them. What ends without having begun claims no more."""
        key, state = subject.key, subject.state
        if not holds or (subject.outcome is not None and not subject.ran):
            self._claims.release(key)
            return
        if state is FOUND or state is ACCEPTED:
            self._claims.take(key, subject.runner or subject.task.capability, subject.task.task_id)
        self._claims.note(key, waits=state is FOUND or state is QUEUED, stuck=subject.stuck)

    def _couple(self, work: _Work) -> None:
        """Put the events of the first rule that holds into ``work``, if there is one."""
        joint, fresh, rule = self._joint, work.fresh, None
        if self._node_moved:
            joint.lease = joint.session = joint.delivery = None
            rule = NODE_RULES.first_that_holds(joint)
            self._node_moved = rule is not None
            if (seen := (self.auth.generation, self.poller.state)) != self._seen:
                self._seen = seen
                fresh.update(dict.fromkeys(self._tasks))
        if self._claims.waiting:
            fresh.update(dict.fromkeys(self._claims.waiting))
        while rule is None and fresh:
            key = next(iter(fresh))
            task = self._tasks[key]
            joint.lease, joint.session, joint.delivery = task.lease, task.session, task.delivery
            rule = LEASE_RULES.first_that_holds(joint)
            if rule is None:
                del fresh[key]
        if rule is None:
            room = self._claims.room(self.config.max_concurrency)
            joint.census = (self._holding, self._waiting, self._unanswered, self._ran, self._unran, *room)
            rule = LAST_RULES.first_that_holds(joint)
        if rule is not None:
            for machine, make in rule.tell:
                work.events.append((machine, make(joint)))

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
