"""How a table is built and moved, on a small one."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from enum import StrEnum
from random import Random

import pytest

from posemesh.commands import Command, Leave, Warn
from posemesh.errors import IllegalTransition, OperationRefused
from posemesh.events import (
    Event,
    ExecutorExited,
    LeaveDue,
    NodeLeft,
    NodeStarted,
    PollDue,
    ProbeOverdue,
    RuntimeRecycled,
)
from posemesh.machines import driver
from posemesh.machines._kernel import STORY_LENGTH, Edge, Lifecycle, State, Step, Subject, Tick

from ...stage import config, snapshot


class LampState(State):
    OFF = "off", "It is dark."
    ON = "on", "It shines."
    BROKEN = "broken", "It will not shine again."


OFF, ON, BROKEN = LampState


@dataclass(eq=False, slots=True, kw_only=True)
class Lamp(Subject):
    state: State = OFF
    worn: bool = False
    paid: bool = True
    done: list[str] = field(default_factory=list)


def worn(lamp: Lamp, step: Step[Event]) -> bool:
    return lamp.worn


def paid(lamp: Lamp, step: Step[Event]) -> bool:
    return lamp.paid


def note(lamp: Lamp, step: Step[Event]) -> None:
    lamp.done.append("noted")
    lamp.arm(PollDue, step.now + 5)
    lamp.arm(LeaveDue, step.now + 3)


def one(lamp: Lamp, step: Step[Event]) -> Command:
    return Leave()


def two(lamp: Lamp, step: Step[Event]) -> list[Command]:
    return [Warn(message="a"), Warn(message="b")]


def fail(lamp: Lamp, step: Step[Event]) -> None:
    raise ZeroDivisionError


TABLE = (
    Edge(NodeStarted, OFF, BROKEN, "it was worn", worn),
    Edge(NodeStarted, OFF, ON, "somebody wants light", paid, (note, one, two)),
    Edge(NodeStarted, ON, None, "it shines already", do=(two,)),
    Edge(PollDue, (OFF, ON), ON, "it is looked at"),
    Edge(ProbeOverdue, ON, OFF, "it cannot be", do=(fail,)),
    Edge(NodeLeft, ON, BROKEN, "it was dropped", do=(note,)),
)
LAMP = Lifecycle("lamp", LampState, TABLE, subject=Lamp, initial=OFF, ends=(BROKEN,))


def step(event: Event, now: float = 7.0) -> Step[Event]:
    return Step(event, now, Random(0), config(), frozenset())


def test_a_move_returns_its_commands_in_order_and_its_record() -> None:
    lamp = Lamp(key=3)
    commands, moved = LAMP.fire(lamp, step(NodeStarted()))
    assert commands == [Leave(), Warn(message="a"), Warn(message="b")]
    assert (moved.machine, moved.key, moved.source, moved.trigger, moved.dest) == (
        "lamp",
        3,
        "off",
        "NodeStarted",
        "on",
    )
    assert (moved.why, moved.at) == ("somebody wants light", 7.0)
    assert lamp.state is ON and lamp.since == 7.0 and lamp.done == ["noted"]


def test_the_first_row_whose_condition_holds_is_taken() -> None:
    lamp = Lamp(worn=True)
    assert LAMP.fire(lamp, step(NodeStarted()))[1].why == "it was worn"
    assert lamp.state is BROKEN and lamp.done == []


def test_a_row_without_a_destination_does_not_enter_the_state_anew() -> None:
    lamp = Lamp(state=ON, since=1.0)
    commands, moved = LAMP.fire(lamp, step(NodeStarted()))
    assert len(commands) == 2 and moved.source == moved.dest == "on" and lamp.since == 1.0


def test_a_row_back_to_its_own_state_does_enter_it_anew() -> None:
    lamp = Lamp(state=ON, since=1.0)
    LAMP.fire(lamp, step(PollDue()))
    assert lamp.since == 7.0


@pytest.mark.parametrize(
    ("lamp", "event"),
    [
        pytest.param(Lamp(), NodeLeft(), id="no row for the state"),
        pytest.param(Lamp(), LeaveDue(), id="no row at all"),
        pytest.param(Lamp(paid=False), NodeStarted(), id="no condition holds"),
        pytest.param(Lamp(state=BROKEN), NodeStarted(), id="an end"),
    ],
)
def test_what_the_table_does_not_have_is_refused_unchanged(lamp: Lamp, event: Event) -> None:
    lamp.story.append("before")
    before = snapshot(lamp)
    with pytest.raises(IllegalTransition) as caught:
        LAMP.fire(lamp, step(event))
    assert (caught.value.machine, caught.value.state, caught.value.trigger) == (
        "lamp",
        lamp.state,
        type(event).__name__,
    )
    assert caught.value.story == ("before",) and "before" in str(caught.value)
    assert snapshot(lamp) == before


def test_a_check_refuses_without_firing() -> None:
    LAMP.check(None, NodeStarted())
    LAMP.check(Lamp(state=ON), NodeLeft())
    with pytest.raises(IllegalTransition, match="lamp in state 'off'"):
        LAMP.check(None, NodeLeft())
    with pytest.raises(IllegalTransition):
        LAMP.check(Lamp(state=BROKEN), NodeStarted())


def test_an_error_in_an_action_is_no_illegal_transition() -> None:
    lamp = Lamp(state=ON)
    with pytest.raises(ZeroDivisionError):
        LAMP.fire(lamp, step(ProbeOverdue()))
    assert lamp.state is ON


def test_an_end_has_no_timers() -> None:
    lamp = Lamp(state=ON)
    LAMP.fire(lamp, step(NodeLeft()))
    assert lamp.state is BROKEN and lamp.timers == {} and lamp.deadline is None


def test_timers() -> None:
    lamp = Lamp()
    LAMP.fire(lamp, step(NodeStarted()))
    assert lamp.timers == {PollDue: 12.0, LeaveDue: 10.0} and lamp.deadline == 10.0
    lamp.disarm(LeaveDue, ProbeOverdue)
    assert lamp.deadline == 12.0


def test_the_story_is_short() -> None:
    lamp = Lamp(state=ON)
    for _ in range(STORY_LENGTH * 2):
        LAMP.fire(lamp, step(PollDue()))
    assert list(lamp.story) == ["on --PollDue--> on"] * STORY_LENGTH


def test_cells_keep_the_order_of_rows() -> None:
    cells = {(state, event): rows for state, event, rows in LAMP.cells()}
    assert cells[OFF, NodeStarted] == TABLE[:2]
    assert set(cells) == {(state, edge.event) for edge in TABLE for state in edge.sources}


def test_transitions_takes_states_that_are_a_str_enum() -> None:
    """The library knows states by name and by enum member; ours are both, and must stay the members they are."""
    assert issubclass(LampState, StrEnum)
    lamp = Lamp()
    LAMP.fire(lamp, step(PollDue()))
    assert isinstance(lamp.state, LampState) and lamp.state is ON and lamp.state == "on"
    assert [state.meaning for state in LampState] == ["It is dark.", "It shines.", "It will not shine again."]
    assert LampState("off") is OFF


def test_subjects_are_not_registered_with_the_library() -> None:
    """A registered model costs 8 KB and is never let go."""
    assert LAMP._machine.models == [] and not hasattr(Lamp(), "__dict__")


def test_the_library_is_quiet() -> None:
    assert logging.getLogger("transitions").level == logging.WARNING


def test_a_row_that_refuses_names_what_has_to_hold_and_changes_nothing() -> None:
    subject = driver.RuntimeSubject(state=driver.RuntimeState.IDLE)
    with pytest.raises(OperationRefused, match="only where this holds: a process holds it") as refused:
        driver.MACHINE.fire(subject, Tick(RuntimeRecycled(), 1.0))
    assert (refused.value.machine, refused.value.guard, subject.since) == ("driver", "a process holds it", 0.0)
    assert not subject.story
    driver.MACHINE.fire(subject, Tick(ExecutorExited(), 1.0))
    assert subject.since == 1.0
