"""Serving: the program of a runtime takes orders in any order, and knows when it has something to stop."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from posemesh.errors import IllegalTransition
from posemesh.machines import serving
from posemesh.machines._kernel import Tick
from posemesh.machines.serving import MACHINE, ServingState, ServingSubject
from posemesh.orders import SERVED

from ...stage import events_of
from .search import search

INITIALIZED, DEPLOYED, READY, RUNNING, STOPPING, STOPPED, FAILED = ServingState
NO = None

# What each event makes of the states above, in their order; NO: it cannot have happened.
ORDERS: dict[str, tuple[ServingState | None, ...]] = {
    "DeployEnded": (DEPLOYED, DEPLOYED, READY, RUNNING, STOPPING, STOPPED, FAILED),
    "DeployFailed": (FAILED, FAILED, NO, NO, NO, NO, NO),
    "StartEnded": (READY, READY, NO, NO, NO, NO, NO),
    "StartFailed": (FAILED, FAILED, NO, NO, NO, NO, NO),
    "HelloAsked": (NO, NO, READY, RUNNING, STOPPING, STOPPED, FAILED),
    "NetworkAsked": (NO, NO, READY, RUNNING, STOPPING, STOPPED, FAILED),
    "KillAsked": (NO, NO, READY, RUNNING, STOPPING, STOPPED, FAILED),
    "CommandAsked": (NO, NO, RUNNING, RUNNING, STOPPING, RUNNING, RUNNING),
    "CommandsEnded": (NO, NO, READY, READY, STOPPING, STOPPED, FAILED),
    "ShutdownAsked": (NO, NO, STOPPING, STOPPING, STOPPING, STOPPING, STOPPING),
    "InputEnded": (NO, NO, STOPPING, STOPPING, STOPPING, STOPPED, STOPPING),
    "ShutdownEnded": (NO, NO, NO, NO, STOPPED, NO, NO),
    "ShutdownFailed": (NO, NO, NO, NO, FAILED, NO, NO),
    "ActivityRenewed": (NO, NO, NO, NO, NO, INITIALIZED, NO),
}
EVENTS = {kind.__name__: kind() for kind in events_of("serving")}


@pytest.mark.parametrize(("name", "row"), ORDERS.items(), ids=ORDERS)
def test_the_machine_and_the_plain_table_take_the_same(name: str, row: tuple[ServingState | None, ...]) -> None:
    for state, expected in zip(ServingState, row, strict=True):
        subject = ServingSubject(state=state)
        if expected is NO:
            with pytest.raises(IllegalTransition):
                MACHINE.fire(subject, Tick(EVENTS[name], 0.0))
        else:
            MACHINE.fire(subject, Tick(EVENTS[name], 0.0))
        assert subject.state is (expected or state)
        assert SERVED.get((state.value, name)) == (expected and expected.value)


def test_every_event_is_in_the_table_of_this_test() -> None:
    assert set(ORDERS) == set(EVENTS)
    assert {event for _, event in SERVED} == set(ORDERS)


def test_all_that_can_be_reached() -> None:
    found, untaken = search(serving, [ServingSubject()], EVENTS.values(), 6, lambda before, event, now: None)
    assert not untaken
    assert found == len(ServingState)


def walk(*events: str) -> str:
    state = "ready"
    for event in events:
        state = SERVED[state, event]
    return state


def test_no_hello_is_needed_and_commands_run_after_a_shutdown() -> None:
    assert walk("CommandAsked", "HelloAsked", "CommandsEnded", "HelloAsked") == "ready"
    assert walk("ShutdownAsked", "ShutdownEnded", "CommandAsked") == "running"
    assert walk("ShutdownAsked", "ShutdownEnded", "ShutdownAsked") == "stopping"


def test_what_was_stopped_is_not_stopped_again_at_the_end_unless_something_was_begun_since() -> None:
    assert walk("ShutdownAsked", "ShutdownEnded", "InputEnded") == "stopped"
    assert walk("ShutdownAsked", "ShutdownFailed", "InputEnded") == "stopping"
    assert walk("ShutdownAsked", "ShutdownEnded", "CommandAsked", "InputEnded") == "stopping"


def test_the_plain_table_loads_nothing_that_a_runtime_would_have_to_wait_for() -> None:
    program = "import json, sys; import posemesh.orders; print(json.dumps(sorted(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert not {"transitions", "dataclasses", "posemesh.machines", "posemesh.events"} & set(json.loads(out))
