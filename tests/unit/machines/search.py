"""Breadth first through every state that a machine's subject can be in, to a stated depth; which rows that takes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from copy import copy
from dataclasses import fields
from types import ModuleType
from typing import Any

from posemesh.errors import IllegalTransition, OperationRefused
from posemesh.events import Event
from posemesh.machines._kernel import Subject, Tick

Check = Callable[[Any, Event, Any], None]


def facts(subject: Subject) -> Hashable:
    """All of a subject but the story of how it came there."""
    left_out = ("story", "since", "timers", "queued")
    return tuple(getattr(subject, field.name) for field in fields(subject) if field.name not in left_out)


def row_of(machine: Any, subject: Subject, step: Tick[Event]) -> int | None:
    for index, edge in enumerate(machine.table):
        named = edge.event is type(step.event) and subject.state in edge.sources
        if named and (edge.when is None or edge.when(subject, step)):
            return index
    return None


def search(
    module: ModuleType, start: Iterable[Subject], events: Iterable[Event], depth: int, check: Check
) -> tuple[int, list[str]]:
    """How many states were found, and the rows, by state, that were never taken.

    Each state's invariants hold; what is refused changes nothing; ``check`` looks at each move, from, by and to.
    """
    machine, alphabet = module.MACHINE, tuple(events)
    frontier = list(start)
    seen = {facts(subject) for subject in frontier}
    taken: set[tuple[int, str]] = set()
    for _ in range(depth):
        following = []
        for subject in frontier:
            for event in alphabet:
                moved, step = copy(subject), Tick(event, 0.0)
                row = row_of(machine, subject, step)
                if row is not None:
                    taken.add((row, subject.state))
                try:
                    machine.fire(moved, step)
                except IllegalTransition as error:
                    assert facts(moved) == facts(subject), f"{event} was refused and changed {subject}"
                    assert isinstance(error, OperationRefused) == (row is not None)
                    continue
                assert not list(module.invariants(moved)), f"{event} in {subject} gave {moved}"
                check(subject, event, moved)
                if facts(moved) not in seen:
                    seen.add(facts(moved))
                    following.append(moved)
        frontier = following
    untaken = [
        f"{edge.event.__name__} in {source}: {edge.why}"
        for index, edge in enumerate(machine.table)
        for source in edge.sources
        if (index, source) not in taken
    ]
    return len(seen), untaken
