"""Activity: what each order makes of each state, in the words of those who know Golem, and all that can be reached."""

from __future__ import annotations

from typing import Any

import pytest

from posemesh.errors import IllegalTransition, OperationRefused
from posemesh.events import (
    ActivityRenewed,
    CommandAsked,
    CommandEnded,
    DeployAsked,
    DeployEnded,
    DeployFailed,
    Event,
    KillAsked,
    NetworkAsked,
    RuntimeLost,
    ShutdownAsked,
    ShutdownEnded,
    StartAsked,
    StartEnded,
    StartFailed,
)
from posemesh.machines import activity
from posemesh.machines.activity import ActivityState, ActivitySubject, OutOfOrder, invariants, take

from ...stage import events_of
from .search import search

INITIALIZED, DEPLOYED, READY, RUNNING, STOPPING, STOPPED, FAILED = ActivityState
DEPLOYING, STARTING = "deploy under way", "start under way"

UP = (DeployAsked(), DeployEnded(), StartAsked(), StartEnded())
REACH: dict[str, tuple[Event, ...]] = {
    INITIALIZED: (),
    DEPLOYING: UP[:1],
    DEPLOYED: UP[:2],
    STARTING: UP[:3],
    READY: UP,
    RUNNING: (*UP, CommandAsked()),
    STOPPING: (*UP, ShutdownAsked()),
    STOPPED: (*UP, ShutdownAsked(), ShutdownEnded()),
    FAILED: (*UP, RuntimeLost()),
}

NO = None
"""It cannot have happened."""
EARLY = "Activity is initialized - deploy() command is expected now"
SECOND = "Activity is deployed - start() command is expected now"
LATE = "Cannot send command after a successful start()"
BUSY_1 = "Activity is busy - deploy() has not ended yet"
BUSY_2 = "Activity is busy - start() has not ended yet"
ENDING = "Activity is stopping - no command is expected before it is initialized again"
ENDED = "Activity is stopped - no command is expected before it is initialized again"
BROKEN = "Activity is failed - stop() command is expected now"
UNASKED = "it was asked for"

# What each order makes of the places above, in their order: a place, or the text of the error.
ORDERS: dict[type[Event], tuple[str | None, ...]] = {
    DeployAsked: (DEPLOYING, BUSY_1, SECOND, BUSY_2, LATE, LATE, ENDING, ENDED, BROKEN),
    DeployEnded: (UNASKED, DEPLOYED, NO, NO, NO, NO, STOPPING, NO, NO),
    DeployFailed: (UNASKED, FAILED, NO, NO, NO, NO, STOPPING, NO, NO),
    StartAsked: (EARLY, BUSY_1, STARTING, BUSY_2, LATE, LATE, ENDING, ENDED, BROKEN),
    StartEnded: (NO, NO, UNASKED, READY, NO, NO, STOPPING, NO, NO),
    StartFailed: (NO, NO, UNASKED, FAILED, NO, NO, STOPPING, NO, NO),
    CommandAsked: (EARLY, BUSY_1, SECOND, BUSY_2, RUNNING, RUNNING, ENDING, ENDED, BROKEN),
    CommandEnded: (NO, NO, NO, NO, NO, READY, STOPPING, STOPPED, FAILED),
    KillAsked: (EARLY, BUSY_1, SECOND, BUSY_2, READY, RUNNING, ENDING, ENDED, BROKEN),
    NetworkAsked: (EARLY, BUSY_1, SECOND, BUSY_2, READY, RUNNING, ENDING, ENDED, BROKEN),
    RuntimeLost: (NO, NO, FAILED, FAILED, FAILED, FAILED, STOPPING, STOPPED, FAILED),
    ShutdownAsked: (STOPPING, STOPPING, STOPPING, STOPPING, STOPPING, STOPPING, STOPPING, STOPPED, STOPPING),
    ShutdownEnded: (NO, NO, NO, NO, NO, NO, STOPPED, NO, NO),
    ActivityRenewed: (NO, NO, NO, NO, NO, NO, NO, INITIALIZED, NO),
}


def after(*events: Event) -> ActivitySubject:
    subject = ActivitySubject()
    for event in events:
        take(subject, event)
        assert not list(invariants(subject))
    return subject


def place(subject: ActivitySubject) -> str:
    if not subject.asked:
        return subject.state
    return {INITIALIZED: DEPLOYING, DEPLOYED: STARTING}[ActivityState[subject.state.name]]


def made_of(subject: ActivitySubject, event: Event) -> str | None:
    before = place(subject), subject.commands
    try:
        take(subject, event)
    except OutOfOrder as error:
        assert (error.machine, error.state, error.trigger) == ("activity", subject.state, type(event).__name__)
        assert (place(subject), subject.commands) == before
        assert error.guard == str(error)
        return str(error)
    except IllegalTransition:
        assert (place(subject), subject.commands) == before
        return NO
    return place(subject)


@pytest.mark.parametrize(("kind", "row"), ORDERS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_the_table_of_orders_and_states(kind: type[Event], row: tuple[str | None, ...]) -> None:
    assert tuple(made_of(after(*events), kind()) for events in REACH.values()) == row


def test_every_event_and_state_is_in_the_table_of_this_test() -> None:
    assert set(ORDERS) == set(events_of("activity"))
    assert [place(after(*events)) for events in REACH.values()] == list(REACH)
    assert set(REACH) >= set(ActivityState)


def test_commands_run_beside_each_other_and_the_last_one_leaves_it_ready() -> None:
    subject = after(*UP, CommandAsked(), CommandAsked(), CommandAsked())
    for commands in (2, 1):
        take(subject, CommandEnded())
        assert (subject.state, subject.commands) == (RUNNING, commands)
    take(subject, CommandEnded())
    assert (subject.state, subject.commands) == (READY, 0)


@pytest.mark.parametrize("end", [ShutdownAsked(), RuntimeLost()])
def test_commands_that_end_with_their_runtime_are_counted_no_more(end: Event) -> None:
    subject = after(*UP, CommandAsked(), CommandAsked(), end, CommandEnded(), CommandEnded())
    assert (subject.state, subject.commands) == (STOPPING if isinstance(end, ShutdownAsked) else FAILED, 0)


def test_what_was_stopped_is_deployed_again() -> None:
    once = (*UP, CommandAsked(), ShutdownAsked(), ShutdownEnded(), ActivityRenewed())
    assert after(*once, *UP, CommandAsked()).commands == 1


@pytest.mark.parametrize("answer", [DeployEnded(), DeployFailed()])
def test_a_stop_does_not_wait_for_a_deploy(answer: Event) -> None:
    subject = after(DeployAsked(), ShutdownAsked(), answer, ShutdownEnded(), ActivityRenewed())
    assert place(subject) == INITIALIZED


def test_an_order_out_of_turn_is_one_of_the_refused_operations() -> None:
    with pytest.raises(OperationRefused) as raised:
        take(after(), StartAsked(), 1.0)
    assert isinstance(raised.value, OutOfOrder) and raised.value.args == (EARLY,)


def looked_at(before: ActivitySubject, event: Event, now: ActivitySubject) -> None:
    if now.state is DEPLOYED and before.state is not DEPLOYED:
        assert isinstance(event, DeployEnded) and before.asked
    if now.state is READY and before.state is not READY:
        assert isinstance(event, StartEnded | CommandEnded)
    if before.state in (STOPPING, STOPPED):
        assert now.state in (before.state, STOPPED, INITIALIZED)
    if now.commands > before.commands:
        assert isinstance(event, CommandAsked) and now.commands == before.commands + 1
    if 0 < now.commands < before.commands:
        assert isinstance(event, CommandEnded) and now.commands == before.commands - 1


def test_all_that_can_be_reached() -> None:
    """Ten events deep, which is five commands at a time."""
    found, untaken = search(activity, [ActivitySubject()], [kind() for kind in ORDERS], 10, looked_at)
    assert not untaken
    assert found == len(REACH) + 5


@pytest.mark.parametrize(
    "broken", [{"state": RUNNING}, {"commands": 1}, {"state": READY, "asked": True}, {"state": STOPPED, "commands": 2}]
)
def test_what_never_holds_is_found(broken: dict[str, Any]) -> None:
    assert list(invariants(ActivitySubject(**broken)))
