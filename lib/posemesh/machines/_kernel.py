"""How a lifecycle is written and moved: the one place that imports ``transitions``.

A lifecycle is a tuple of :class:`Edge` rows. Rows for the same state and event are tried in order; the first whose
guard holds is taken; the last must have no guard. A row with ``dest=None`` stays where it is, without entering the
state anew. Guards read; actions change the subject's data and return commands. What no row names cannot happen.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from random import Random
from typing import Any, Generic, NamedTuple, Self, TypeAlias, TypeVar, cast

from msgspec import Struct
from transitions import Machine, Transition

from posemesh.commands import Command
from posemesh.config import NodeConfig
from posemesh.errors import IllegalTransition, OperationRefused
from posemesh.events import Event, LeaseId

__all__ = ("Action", "Edge", "Guard", "Lifecycle", "Moved", "State", "Step", "Subject", "Tick", "refuse")

logging.getLogger("transitions").setLevel(logging.WARNING)

STORY_LENGTH = 12


class State(StrEnum):
    """A state and, in words, when a machine is in it."""

    meaning: str

    def __new__(cls, value: str, meaning: str) -> Self:
        member = str.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member


E = TypeVar("E", bound=Event, covariant=True)


def _always(key: LeaseId) -> bool:
    return True


class Tick(Struct, Generic[E], frozen=True):
    """One event and its time, in seconds: all that the machines of a hosted runtime know besides their own data."""

    event: E
    now: float


class Step(Tick[E], frozen=True):
    """One event and all that a machine of a node may know besides its own data. ``now`` is monotonic, in seconds;
    ``has_room`` tells whether the task of that lease may begin beside the others.
    """

    rng: Random
    config: NodeConfig
    capabilities: frozenset[str]
    has_room: Callable[[LeaseId], bool] = _always


@dataclass(eq=False, slots=True, kw_only=True)
class Subject:
    """What every lifecycle's data have. ``timers`` are deadlines: at that time that event is due.

    ``queued`` is the deadline that whoever drives the subject has taken note of.
    """

    state: State
    key: LeaseId = 0
    since: float = 0.0
    timers: dict[type[Event], float] = field(default_factory=dict)
    queued: float | None = None
    story: deque[str] = field(default_factory=lambda: deque(maxlen=STORY_LENGTH))

    def arm(self, event: type[Event], at: float) -> None:
        self.timers[event] = at

    def disarm(self, *events: type[Event]) -> None:
        for event in events:
            self.timers.pop(event, None)

    @property
    def deadline(self) -> float | None:
        """The earliest timer, None without one."""
        return min(self.timers.values()) if self.timers else None


S = TypeVar("S", bound=Subject)
Guard: TypeAlias = Callable[[Any, Any], bool]
Action: TypeAlias = Callable[[Any, Any], Command | list[Command] | None]


class _Refusal(Exception):
    """What a row that refuses its event says; the lifecycle makes the error of it."""


def refuse(requirement: str) -> Action:
    """The only action of a row that refuses its event: OperationRefused names the ``requirement`` that is not met."""

    def action(subject: Any, step: Tick[Any]) -> None:
        raise _Refusal(requirement)

    action.__name__ = f"refuse: {requirement}"
    return action


@dataclass(frozen=True, slots=True)
class Edge:
    """One row: on ``event``, from each of ``source``, if ``when`` holds, to ``dest``, doing ``do``, because ``why``."""

    event: type[Event]
    source: State | tuple[State, ...]
    dest: State | None
    why: str
    when: Guard | None = None
    do: tuple[Action, ...] = ()

    @property
    def sources(self) -> tuple[State, ...]:
        return (self.source,) if isinstance(self.source, State) else self.source


class Moved(NamedTuple):
    """One step of one machine, as it is logged and shown. ``dest`` equals ``source`` where the machine stayed."""

    machine: str
    key: LeaseId
    source: str
    trigger: str
    dest: str
    why: str
    at: float


class _Row(Transition):
    """A row of ``transitions`` from one state, with the edge it was made from and what is always told of it.

    Guards and actions are all an edge has, and every state is alike, so that the library's callbacks around a
    transition, its records of the event and its log are left out: they took nine tenths of an event's time.
    """

    def __init__(self, *args: Any, edge: Edge, state: State, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.when, self.do, self.goes_to = edge.when, edge.do, edge.dest
        self.told: tuple[str, str, str, str] = (state.value, edge.event.__name__, (edge.dest or state).value, edge.why)
        self.story = "{} --{}--> {}".format(*self.told)


class _Machine(Machine):
    transition_cls = _Row


class Lifecycle(Generic[S]):
    """One machine's table, built once. It holds no state: that is in the subjects it moves."""

    def __init__(
        self,
        name: str,
        states: type[State],
        table: tuple[Edge, ...],
        *,
        subject: type[S],
        initial: State,
        ends: tuple[State, ...] = (),
    ) -> None:
        self.name = name
        self.states = states
        self.table = table
        self.subject = subject
        self.initial = initial
        self.ends = frozenset(ends)
        self._machine = _Machine(
            model=None,
            states=states,
            initial=initial,
            name=name,
            auto_transitions=False,
        )
        for edge in table:
            for state in edge.sources:
                self._machine.add_transition(edge.event.__name__, state, edge.dest, edge=edge, state=state)
        self._rows: dict[State, dict[type[Event], list[_Row]]] = {
            state: {
                event: rows
                for event in {edge.event for edge in table}
                if (rows := cast(list[_Row], self._machine.events[event.__name__].transitions.get(state.name)))
            }
            for state in states
        }

    def check(self, subject: S | None, event: Event) -> None:
        """Raise IllegalTransition where ``subject`` (None: one that is still to be made) has no edge for ``event``."""
        state = self.initial if subject is None else subject.state
        if type(event) not in self._rows[state]:
            story = () if subject is None else subject.story
            raise IllegalTransition(self.name, state.value, type(event).__name__, tuple(story))

    def fire(self, subject: S, step: Tick[Event]) -> tuple[list[Command], Moved]:
        """Move ``subject`` by ``step.event``: the commands that follow, and the record of the move.

        Raises IllegalTransition, with nothing changed, where the table has no row for the state and the event, and
        OperationRefused, one of its kind, where the row refuses it.
        """
        event, source = type(step.event), subject.state
        for row in self._rows[source].get(event, ()):
            if row.when is None or row.when(subject, step):
                break
        else:
            raise IllegalTransition(self.name, source.value, event.__name__, tuple(subject.story))
        commands: list[Command] = []
        try:
            for action in row.do:
                done = action(subject, step)
                if done is None:
                    continue
                if isinstance(done, list):
                    commands += done
                else:
                    commands.append(done)
        except _Refusal as refusal:
            story = tuple(subject.story)
            raise OperationRefused(self.name, source.value, event.__name__, str(refusal), story) from None
        if row.goes_to is not None:
            subject.state, subject.since = row.goes_to, step.now
        if subject.state in self.ends:
            subject.timers.clear()
        subject.story.append(row.story)
        return commands, Moved(self.name, subject.key, *row.told, step.now)

    def cells(self) -> Iterator[tuple[State, type[Event], tuple[Edge, ...]]]:
        """Every (state, event) of the table with its rows, in order."""
        events = dict.fromkeys(edge.event for edge in self.table)
        for state in self.states:
            for event in events:
                rows = tuple(edge for edge in self.table if edge.event is event and state in edge.sources)
                if rows:
                    yield state, event, rows
