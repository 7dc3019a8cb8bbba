"""What an engine keeps of a lease, and which leases of one task came after one another."""

from __future__ import annotations

import pytest

from posemesh.events import LeaseExpired
from posemesh.leased import Leased, Succession
from posemesh.machines.delivery import Delivery, DeliveryState
from posemesh.machines.lease import Lease, LeaseState
from posemesh.machines.session import Session, SessionState
from posemesh.types import Outcome, OutcomeKind, TaskIdentity

from ..stage import DONE, IDENTITY

FAILED = Outcome(kind=OutcomeKind.FAILED, task=IDENTITY, code="runner_error", message="it failed")


def of(key: int, task: str = "a") -> Lease:
    return Lease(key=key, task=TaskIdentity(task_id=task))


def remains(succession: Succession) -> list[object]:
    """What it still holds."""
    return [held for held in vars(succession).values() if held]


# -- Leased ---------------------------------------------------------------------------------------------------------


def test_a_lease_is_overdue_once_its_time_is_past_and_nobody_has_looked() -> None:
    made = Leased(Lease())
    assert not made.is_overdue(9.0)
    made.session = Session()
    assert not made.is_overdue(9.0)
    made.session.arm(LeaseExpired, 9.0)
    assert made.is_overdue(9.0) and not made.is_overdue(8.9)


@pytest.mark.parametrize(
    ("lease", "session", "delivery", "over"),
    [
        (LeaseState.FOUND, None, None, False),
        (LeaseState.FINISHING, SessionState.LOST, None, False),
        (LeaseState.CANCELLED, SessionState.CANCELLED, None, True),
        (LeaseState.LOST, None, None, True),
        (LeaseState.SETTLED, SessionState.ALIVE, DeliveryState.DELIVERED, False),
        (LeaseState.SETTLED, SessionState.CLOSED, DeliveryState.BACKING_OFF, False),
        (LeaseState.SETTLED, None, DeliveryState.OFFERING, False),
        (LeaseState.SETTLED, None, DeliveryState.SUPERSEDED, True),
        (LeaseState.SETTLED, SessionState.CLOSED, DeliveryState.UNCONFIRMED, True),
    ],
)
def test_a_lease_is_over_when_all_its_machines_are(
    lease: LeaseState, session: SessionState | None, delivery: DeliveryState | None, over: bool
) -> None:
    made = Leased(Lease(state=lease))
    made.session = Session(state=session) if session else None
    made.delivery = Delivery(state=delivery) if delivery else None
    assert made.over is over


@pytest.mark.parametrize(
    ("state", "substitute", "ending"),
    [
        (DeliveryState.DELIVERED, None, "completed"),
        (DeliveryState.DELIVERED, FAILED, "failed"),
        (DeliveryState.WITHDRAWN, None, "cancelled"),
        (DeliveryState.REFUSED, None, "refused"),
        (DeliveryState.UNCONFIRMED, None, "unconfirmed"),
        (DeliveryState.SUPERSEDED, None, "superseded"),
        (DeliveryState.STUCK, FAILED, "stuck"),
    ],
)
def test_how_a_lease_ended(state: DeliveryState, substitute: Outcome | None, ending: str) -> None:
    lease = Lease(state=LeaseState.SETTLED, outcome=DONE)
    assert Leased(lease, delivery=Delivery(state=state, outcome=DONE, substitute=substitute)).ending == ending
    assert Leased(Lease(state=LeaseState.LOST)).ending == "lost"


def test_why_it_ended() -> None:
    lease = Lease(state=LeaseState.SETTLED, outcome=FAILED)
    assert Leased(lease).reason == "runner_error: it failed"
    assert Leased(lease, delivery=Delivery(problem="answered 404")).reason == "runner_error: it failed - answered 404"
    taken = Delivery(problem="no node token", state=DeliveryState.DELIVERED)
    assert Leased(lease, delivery=taken).reason == "runner_error: it failed", "what stood in the way is of the past"
    instead = Delivery(outcome=DONE, substitute=FAILED, problem="")
    assert Leased(Lease(outcome=DONE), delivery=instead).reason == "runner_error: it failed"
    assert Leased(Lease(outcome=DONE)).reason == "" == Leased(Lease()).reason


# -- Succession -----------------------------------------------------------------------------------------------------


def test_leases_of_one_task_follow_one_another() -> None:
    one, two, three, other = of(1), of(2), of(5), of(3, "b")
    succession = Succession()
    assert [succession.older(lease) for lease in (one, two, three, other)] == [[], [1], [1, 2], []]
    assert [succession.newer(lease) for lease in (one, two, three, other)] == [[2, 5], [5], [], []]
    assert succession.older(two) == [1], "said again, nothing changes"
    assert succession.newer(one) == [2, 5]


def test_leases_that_are_found_may_come_in_any_order() -> None:
    succession, two, one = Succession(), of(2), of(1)
    assert succession.older(two) == [] == succession.older(one)
    assert succession.older(two) == [1] and succession.newer(one) == [2]


def test_what_nobody_noted_has_neither() -> None:
    assert Succession().newer(of(1)) == []


def test_what_is_over_is_no_one_s_successor() -> None:
    """Its report was answered while that of an earlier lease was under way, and then the task was leased again."""
    succession, one, two, three = Succession(), of(1), of(2), of(3)
    for lease in (one, two):
        succession.older(lease)
    succession.forget(two)
    assert succession.newer(one) == []
    assert succession.older(three) == [1] and succession.newer(one) == [3]


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 2, 1), (2, 3, 1), (2, 1, 3)])
def test_nothing_is_left_when_all_is_over(order: tuple[int, ...]) -> None:
    succession = Succession()
    leases = {key: of(key, task) for key, task in ((1, "a"), (2, "a"), (3, "a"))}
    for lease in leases.values():
        succession.older(lease)
    for key in order:
        succession.older(leases[key])
        succession.forget(leases[key])
    assert remains(succession) == []
