"""What tests of the pure core need: one machine, or a whole engine, driven by hand with a clock that is a number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from random import Random
from types import ModuleType
from typing import Any
from uuid import UUID

from msgspec import structs

import posemesh.events as events
from posemesh.capacity import Capacity
from posemesh.commands import Command
from posemesh.config import NodeConfig
from posemesh.engine import Engine
from posemesh.events import AbandonReason, Event, Failure, InputId, Lane, LeaseId, Obligation, RunId
from posemesh.machines._kernel import Edge, Moved, Step, Subject
from posemesh.secret import Secret
from posemesh.types import Artifact, HeartbeatAnswer, LeaseEnvelope, Outcome, OutcomeKind, TaskIdentity, TaskSpec

CAPABILITY = "/examples/hello/v1"
TASK = UUID("a84a36e5-312b-4f80-974a-06f5d19c1e16")
DOMAIN = UUID("b84a36e5-312b-4f80-974a-06f5d19c1e16")
JOB = UUID("c84a36e5-312b-4f80-974a-06f5d19c1e16")
IDENTITY = TaskIdentity(task_id=str(TASK), job_id=str(JOB), domain_id=str(DOMAIN), capability=CAPABILITY)
ARTIFACT = Artifact(logical_path="out/a", name="a", data_type="binary", id="1")
DONE = Outcome(kind=OutcomeKind.COMPLETED, task=IDENTITY, artifacts=(ARTIFACT,))
TOKEN = Secret("token")


def config(**changes: Any) -> NodeConfig:
    secret, key = Secret("dXVpZDpzZWNyZXQ="), Secret("4c0883a69102937d6231471b5dbb6204fe5129617082798ce3f4fdf2548b6f90")
    return NodeConfig(reg_secret=secret, secp256k1_privhex=key, **changes)


CALLBACK = config(node_url="https://node.example")


def envelope(*, capability: str = CAPABILITY, task_id: UUID = TASK, **changes: Any) -> LeaseEnvelope:
    given: dict[str, Any] = {
        "task": TaskSpec(id=task_id, job_id=JOB, capability=capability),
        "access_token": Secret("domain-token"),
        "domain_id": DOMAIN,
        "domain_server_url": "https://domain.example",
    }
    return LeaseEnvelope(**given | changes)


def failure(status: int | None = 503, **changes: Any) -> Failure:
    return Failure(message=f"answered {status}" if status else "no answer", status=status, **changes)


# -- Events ---------------------------------------------------------------------------------------------------------

_VALUES: Mapping[str, Any] = {
    "failure": failure(),
    "request": 1,
    "node_id": "node",
    "secret": Secret("callback"),
    "problem": "persist failed",
    "token": TOKEN,
    "ttl": 60.0,
    "generation": 1,
    "busy": 0,
    "backlog": 0,
    "settling": 0,
    "ran": 0,
    "unran": 0,
    "seconds": 30.0,
    "envelope": envelope(),
    "task_id": str(TASK),
    "answer": HeartbeatAnswer(),
    "expired": False,
    "code": "runner_error",
    "message": "it failed",
    "progress": {"pct": 1},
    "record": "event",
    "outcome": DONE,
    "transfer": "scan",
    "way": "in",
    "done": 1,
    "total": 2,
    "lane": Lane.QUEUE,
    "sequence": 1,
    "run": RunId("run-1"),
    "current": frozenset({RunId("run-1")}),
    "by": InputId("input-2"),
    "into": InputId("input-2"),
    "reason": AbandonReason.RESET,
    "receipt": False,
    "epoch": "epoch-1",
    "cause": "runner_error",
    "obligation": Obligation.LOOP,
}

EVENTS: tuple[type[Event], ...] = tuple(
    kind for name in events.__all__ if isinstance(kind := getattr(events, name), type) and issubclass(kind, Event)
)


def sample(kind: type[Event]) -> Event:
    """Some event of that class."""
    return kind(**{field.name: _VALUES[field.name] for field in structs.fields(kind) if field.required})


def events_of(machine: str) -> list[type[Event]]:
    return [kind for kind in EVENTS if machine in kind.machines]


# -- One machine ----------------------------------------------------------------------------------------------------


def names(commands: Iterable[Command]) -> list[str]:
    return [type(command).__name__ for command in commands]


def snapshot(subject: Subject) -> dict[str, Any]:
    """All that a subject holds, copied as deep as it changes."""
    held = {field.name: getattr(subject, field.name) for field in fields(subject)}
    return {name: type(value)(value) if isinstance(value, list | dict) else repr(value) for name, value in held.items()}


class Bench:
    """One machine and the time. ``taken`` collects the rows of its table that were taken, by index and state;
    ``room`` is what a lease is told that asks for it.
    """

    taken: dict[str, set[tuple[int, str]]] = {}

    def __init__(self, module: ModuleType, *, settings: NodeConfig | None = None, seed: int = 0, **data: Any) -> None:
        self.module, self.machine = module, module.MACHINE
        self.config = settings or config()
        self.subject = self.machine.subject(**data)
        self.rng, self.now, self.room = Random(seed), 1000.0, True
        self.moved: list[Moved] = []

    @property
    def state(self) -> Any:
        return self.subject.state

    def step(self, event: Event) -> Step[Event]:
        return Step(event, self.now, self.rng, self.config, frozenset({CAPABILITY}), lambda lease: self.room)

    def row(self, event: Event) -> tuple[int, Edge]:
        """The row that has to be taken: the first of its cell whose condition holds."""
        step = self.step(event)
        for index, edge in enumerate(self.machine.table):
            if (
                edge.event is type(event)
                and self.state in edge.sources
                and (not edge.when or edge.when(self.subject, step))
            ):
                return index, edge
        raise AssertionError(f"no row for {event} in {self.state}")

    def __call__(self, *all_events: Event) -> list[Command]:
        """The commands that follow from the events, one after the other."""
        commands: list[Command] = []
        for event in all_events:
            index, edge = self.row(event)
            source = self.state
            found, moved = self.machine.fire(self.subject, self.step(event))
            assert self.state is (source if edge.dest is None else edge.dest)
            assert (moved.source, moved.dest, moved.why, moved.at) == (source, self.state, edge.why, self.now)
            assert not list(self.module.invariants(self.subject))
            Bench.taken.setdefault(self.machine.name, set()).add((index, source))
            self.moved.append(moved)
            commands += found
        return commands

    def wait(self, seconds: float) -> list[Command]:
        """Let time pass; each timer that comes due fires at its time."""
        end, commands = self.now + seconds, []
        while self.subject.timers and min(self.subject.timers.values()) <= end:
            commands += self.due()
        self.now = end
        return commands

    def due(self, kind: type[Event] | None = None) -> list[Command]:
        """Let time pass until the next timer, which must be of that ``kind``, and fire it."""
        event = min(self.subject.timers, key=self.subject.timers.__getitem__)
        assert kind is None or event is kind, f"{event.__name__} comes first"
        self.now = max(self.now, self.subject.timers.pop(event))
        return self(event())

    def left(self, kind: type[Event]) -> float:
        """The seconds until that timer, without the noise of floats."""
        return round(self.subject.timers[kind] - self.now, 6)


def untaken(module: ModuleType, tests: Mapping[str, object]) -> list[str]:
    """The rows, by state, that no scenario among ``tests`` takes: they are run here, those that need no argument."""
    Bench.taken.pop(module.MACHINE.name, None)
    for name, test in tests.items():
        if (
            name.startswith("test_")
            and callable(test)
            and not test.__code__.co_argcount
            and name != "test_every_edge_is_taken"
        ):  # type: ignore[attr-defined]
            test()
    taken = Bench.taken.get(module.MACHINE.name, set())
    return [
        f"{edge.event.__name__} in {source}: {edge.why}"
        for index, edge in enumerate(module.MACHINE.table)
        for source in edge.sources
        if (index, source) not in taken
    ]


def sweep(reach: Mapping[Any, Callable[[], Bench]]) -> None:
    """In every state every event of the table is taken, and every other event of the machine is refused unchanged."""
    from posemesh.errors import IllegalTransition

    module = next(iter(reach.values()))().module
    assert set(reach) == set(module.MACHINE.states)
    cells = {(state, event) for state, event, _ in module.MACHINE.cells()}
    for state, arrive in reach.items():
        for kind in events_of(module.MACHINE.name):
            bench = arrive()
            assert bench.state is state
            if (state, kind) in cells:
                bench.machine.check(bench.subject, sample(kind))
                bench(sample(kind))
                continue
            before = snapshot(bench.subject)
            for attempt in (
                lambda bench=bench, kind=kind: bench.machine.fire(bench.subject, bench.step(sample(kind))),
                lambda bench=bench, kind=kind: bench.machine.check(bench.subject, sample(kind)),
            ):
                try:
                    attempt()
                except IllegalTransition as error:
                    assert (error.machine, error.state, error.trigger) == (bench.machine.name, state, kind.__name__)
                    assert error.story == tuple(bench.subject.story)
                else:
                    raise AssertionError(f"{kind.__name__} was taken in {state}")
            assert snapshot(bench.subject) == before


# -- A whole engine -------------------------------------------------------------------------------------------------


class Stage:
    """An engine and the time. Every step's invariants are looked at."""

    def __init__(
        self,
        *,
        seed: int = 0,
        capabilities: Iterable[str] = (CAPABILITY,),
        capacity: Capacity | None = None,
        first_lease: LeaseId = 1,
        **settings: Any,
    ) -> None:
        self.engine = Engine(config(**settings), capabilities, Random(seed), capacity=capacity, first_lease=first_lease)
        self.now = 1000.0

    def __call__(self, *all_events: Event) -> list[Command]:
        return [command for event in all_events for command in self._checked(self.engine.handle(event, self.now))]

    def wait(self, seconds: float) -> list[Command]:
        """Let time pass; each timer fires at its time."""
        end, commands = self.now + seconds, []
        while (deadline := self.engine.next_deadline()) is not None and deadline <= end:
            self.now = max(self.now, deadline)
            commands += self._checked(self.engine.elapse(self.now))
        self.now = end
        return commands

    def states(self) -> dict[str, str]:
        """The states of the node's machines, and by its number that of each lease."""
        found = self.engine.statistics()
        return {name: status.state for name, status in found.machines.items()} | {
            str(task.lease): task.state for task in found.tasks
        }

    def _checked(self, commands: list[Command]) -> list[Command]:
        assert not self.engine.violations()
        return commands
