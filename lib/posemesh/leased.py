"""What an engine keeps of a lease: its machines, and which leases of one task came after one another."""

from __future__ import annotations

from dataclasses import dataclass

from posemesh.events import LeaseId
from posemesh.machines import delivery, lease, session

__all__ = ("Leased", "Succession")


@dataclass(eq=False, slots=True)
class Leased:
    """The machines of one lease. ``told`` since its end is; it may go on to occupy its slot. The last three are what it
    adds to the census: a slot held, an outcome waiting, one whose first offer is unanswered.
    """

    lease: lease.Lease
    session: session.Session | None = None
    delivery: delivery.Delivery | None = None
    told: bool = False
    holds: bool = True
    waits: bool = False
    unanswered: bool = False

    @property
    def over(self) -> bool:
        if self.lease.state not in lease.MACHINE.ends:
            return False
        return (self.delivery is None or self.delivery.state in delivery.MACHINE.ends) and (
            self.session is None or self.session.state in session.MACHINE.ends
        )

    @property
    def reason(self) -> str:
        """Why it failed, or what the service said of the report; empty for a completion."""
        outcome = (self.delivery.substitute if self.delivery else None) or self.lease.outcome
        problem = self.delivery.problem if self.delivery else ""
        return " - ".join(part for part in (outcome.reason if outcome else "", problem) if part)

    @property
    def ending(self) -> str:
        """How the lease ended, in the words of the statistics."""
        if self.delivery is None:
            return self.lease.state.value
        match self.delivery.state:
            case delivery.DeliveryState.DELIVERED:
                outcome = self.delivery.substitute or self.delivery.outcome
                return outcome.kind.value if outcome else ""
            case delivery.DeliveryState.WITHDRAWN:
                return "cancelled"
            case state:
                return state.value


class Succession:
    """The newest lease of each task, and the one before it."""

    def __init__(self) -> None:
        self._newest: dict[str, LeaseId] = {}
        self._before: dict[LeaseId, LeaseId] = {}

    def older(self, subject: lease.Lease) -> LeaseId:
        """The number of the lease that was its task's newest before this one; 0 for none."""
        newest = self._newest.setdefault(subject.task.task_id, subject.key)
        if newest < subject.key:
            self._newest[subject.task.task_id], self._before[subject.key] = subject.key, newest
        return self._before.get(subject.key, 0)

    def newer(self, subject: lease.Lease) -> LeaseId:
        """The number of its task's newest lease, 0 where that is itself."""
        newest = self._newest.get(subject.task.task_id, 0)
        return newest if newest > subject.key else 0

    def forget(self, subject: lease.Lease) -> None:
        """It is over."""
        self._before.pop(subject.key, None)
        if self._newest.get(subject.task.task_id) == subject.key:
            del self._newest[subject.task.task_id]
