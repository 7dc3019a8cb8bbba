"""What a lease is to this node: its states, and what is known of it."""

from __future__ import annotations

from dataclasses import dataclass

from posemesh.commands import StopReason
from posemesh.machines._kernel import State, Subject
from posemesh.types import LeaseEnvelope, Outcome, TaskIdentity

__all__ = ("HOLDING", "Lease", "LeaseState")


class LeaseState(State):
    OFFERED = "offered", "The service gave a task; nothing is decided."
    FOUND = "found", "A node before this one took it; the service is asked whether it stands."
    ACCEPTED = "accepted", "The acceptance is being committed, the first heartbeat is on its way."
    PREPARING = "preparing", "Committed; the first heartbeat is not settled."
    QUEUED = "queued", "All is ready, but its runner's slots or resources are taken."
    RUNNING = "running", "User code runs."
    STOPPING = "stopping", "User code was told to stop and has not ended."
    UNSTOPPABLE = "unstoppable", "User code does not stop. It keeps its slot until it ends or the node leaves."
    FINISHING = "finishing", "The outcome is known and is being committed."
    SETTLED = "settled", "The outcome is committed and has to be reported."
    CANCELLED = "cancelled", "The service cancelled the task. Nothing is reported."
    LOST = "lost", "The lease was gone before there was a result. Nothing is reported."


HOLDING = frozenset(LeaseState) - {LeaseState.SETTLED, LeaseState.CANCELLED, LeaseState.LOST}
"""The states in which a lease holds a slot; in others it does while it is ``occupied``."""


@dataclass(eq=False, slots=True, kw_only=True)
class Lease(Subject):
    """``ran`` since user code was started; ``settled`` since the first heartbeat is; ``commits`` failed in a row.
    ``occupied`` while user code goes on that has failed already; ``recovered`` where a node before this one committed
    its outcome.
    """

    state: State = LeaseState.OFFERED
    task: TaskIdentity = TaskIdentity(task_id="")
    envelope: LeaseEnvelope | None = None
    ttl: float | None = None
    runner: str = ""
    timeout: float | None = None
    settled: bool = False
    ran: bool = False
    occupied: bool = False
    recovered: bool = False
    stop: StopReason | None = None
    outcome: Outcome | None = None
    commits: int = 0

    @property
    def holds(self) -> bool:
        """It holds a slot."""
        return self.state in HOLDING or self.occupied

    @property
    def stuck(self) -> bool:
        """Its user code was told to stop and does not."""
        return self.state is LeaseState.UNSTOPPABLE or self.occupied
