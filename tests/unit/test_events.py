"""Events: who hears what, and what a failure says."""

from __future__ import annotations

import pytest
from msgspec import Struct, structs

import posemesh.events as events
from posemesh.events import Event, Failure, LeaseScoped
from posemesh.machines import diagram

from ..stage import EVENTS, events_of, failure, sample

MACHINES = {module.MACHINE.name: module.MACHINE for module in diagram.MODULES}
SENDERS = ("Shell", "Timer", "Coupling", "Driver")
ABSTRACT = (Event, LeaseScoped)


@pytest.mark.parametrize("kind", [kind for kind in EVENTS if kind not in ABSTRACT])
def test_an_event_is_frozen_and_addressed_and_says_who_sends_it(kind: type[Event]) -> None:
    event = sample(kind)
    assert issubclass(kind, Struct) and not hasattr(event, "__dict__")
    assert event == sample(kind)
    for field in structs.fields(kind):
        with pytest.raises(AttributeError, match="immutable"):
            setattr(event, field.name, None)
    assert kind.machines and set(kind.machines) <= set(MACHINES)
    assert (kind.__doc__ or "").startswith(SENDERS)


@pytest.mark.parametrize("kind", [kind for kind in EVENTS if kind not in ABSTRACT])
def test_every_machine_an_event_names_takes_it_somewhere(kind: type[Event]) -> None:
    for machine in kind.machines:
        assert any(edge.event is kind for edge in MACHINES[machine].table)


@pytest.mark.parametrize("machine", MACHINES)
def test_no_table_has_an_event_that_does_not_name_its_machine(machine: str) -> None:
    assert {edge.event for edge in MACHINES[machine].table} == set(events_of(machine))


def test_an_event_of_a_lease_machine_names_its_lease() -> None:
    for kind in EVENTS:
        if {"lease", "session", "delivery"} & set(kind.machines):
            assert issubclass(kind, LeaseScoped)


def test_the_package_lists_all() -> None:
    assert list(events.__all__) == sorted(events.__all__)
    made = {kind.__name__ for kind in Event.__subclasses__() + LeaseScoped.__subclasses__()}
    assert made - {
        "RegistrationEvent",
        "AuthEvent",
        "PollerEvent",
        "LeaseEvent",
        "SessionEvent",
        "DeliveryEvent",
    } <= set(events.__all__)


@pytest.mark.parametrize(
    ("given", "unauthorized", "gone", "reply_lost"),
    [
        (failure(401), True, False, False),
        (failure(404), False, True, False),
        (failure(409), False, True, False),
        (failure(410), False, True, False),
        (failure(503), False, False, False),
        (failure(None), False, False, True),
        (failure(None, sent=False), False, False, False),
    ],
)
def test_what_a_failure_says(given: Failure, unauthorized: bool, gone: bool, reply_lost: bool) -> None:
    assert (given.unauthorized, given.gone, given.reply_lost) == (unauthorized, gone, reply_lost)
