"""What an engine keeps of a lease: its machines, and which leases of one task came after one another."""

from __future__ import annotations

from dataclasses import dataclass

from posemesh.events import LeaseExpired, LeaseId
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

    def is_overdue(self, now: float) -> bool:
        """Its time is past, and nobody has looked."""
        return self.session is not None and self.session.timers.get(LeaseExpired, now + 1) <= now

    @property
    def over(self) -> bool:
        if self.lease.state not in lease.MACHINE.ends:
            return False
        return (self.delivery is None or self.delivery.state in delivery.MACHINE.ends) and (
            self.session is None or self.session.state in session.MACHINE.ends
        )

    @property
    def reason(self) -> str:
        """Why it failed, or what the service said of a report that it did not take; empty for a completion."""
        outcome = (self.delivery.substitute if self.delivery else None) or self.lease.outcome
        taken = self.delivery is not None and self.delivery.state is delivery.DeliveryState.DELIVERED
        problem = "" if taken or self.delivery is None else self.delivery.problem
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
    """The leases of each task that are not over, by their numbers."""

    def __init__(self) -> None:
        self._leases: dict[str, list[LeaseId]] = {}

    def older(self, subject: lease.Lease) -> list[LeaseId]:
        """The earlier leases of its task; it is itself one of the task's from now on."""
        leases = self._leases.get(subject.task.task_id)
        if leases is None:
            leases = self._leases[subject.task.task_id] = []
        if subject.key not in leases:
            leases.append(subject.key)
        return [key for key in leases if key < subject.key] if len(leases) > 1 else []

    def newer(self, subject: lease.Lease) -> list[LeaseId]:
        """The later leases of its task."""
        return [key for key in self._leases.get(subject.task.task_id, ()) if key > subject.key]

    def forget(self, subject: lease.Lease) -> None:
        """It is over."""
        leases = self._leases[subject.task.task_id]
        leases.remove(subject.key)
        if not leases:
            del self._leases[subject.task.task_id]
