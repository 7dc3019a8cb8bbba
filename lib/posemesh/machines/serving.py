"""Serving: one runtime, as its own program sees it.

Rules:
1. It asks for no order: hello may come again or never, commands run after a shutdown, a shutdown is asked for twice.
   Whoever drives it keeps the order; see ``activity``.
2. Deploy and start are processes of their own, so that a start cannot know whether there was a deploy.
3. A shutdown does not end the program; the end of its input does. What was started is stopped in either case, and once
   unless a command was run in between.
4. A stop that fails is told, and leaves a program that serves.

The table is ``SERVED_ROWS`` of ``posemesh.orders``: the program itself looks it up there, without all of this.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from posemesh import events
from posemesh.machines._kernel import Edge, Lifecycle, State, Subject
from posemesh.orders import SERVED_ROWS

__all__ = ("MACHINE", "ServingState", "ServingSubject", "invariants")


class ServingState(State):
    INITIALIZED = "initialized", "Nothing was asked of it."
    DEPLOYED = "deployed", "Its work directory is prepared."
    READY = "ready", "It serves, and no command runs."
    RUNNING = "running", "At least one command was begun."
    STOPPING = "stopping", "What was started is being stopped."
    STOPPED = "stopped", "What was started is stopped; it serves all the same."
    FAILED = "failed", "It could not do what was asked last of deploy, start and stop."


@dataclass(eq=False, slots=True, kw_only=True)
class ServingSubject(Subject):
    """Nothing but the state."""

    state: State = ServingState.INITIALIZED


def _states(names: tuple[str, ...]) -> tuple[ServingState, ...]:
    return tuple(state for state in ServingState if state.value in names)


TABLE = tuple(
    Edge(getattr(events, event), _states(states), None if to is None else ServingState[to.upper()], why)
    for event, states, to, why in SERVED_ROWS
)

MACHINE = Lifecycle("serving", ServingState, TABLE, subject=ServingSubject, initial=ServingState.INITIALIZED)


def invariants(subject: ServingSubject) -> Iterator[str]:
    """What does not hold and should: nothing, as there is but a state."""
    yield from ()
