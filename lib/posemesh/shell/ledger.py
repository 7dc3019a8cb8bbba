"""What is on record: which leases were taken and how they ended. Here in memory; the interface is what a durable one
keeps.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

from posemesh.events import LeaseId
from posemesh.types import LeaseEnvelope, Outcome

__all__ = ("Ledger", "MemoryLedger")


class Ledger(Protocol):
    """The first two are done once the record will survive what this ledger promises to survive, and raise where it will
    not. They return None where that is at once, else what to wait for.
    """

    def commit_accepted(self, lease: LeaseId, envelope: LeaseEnvelope) -> Awaitable[None] | None: ...

    def commit_outcome(self, lease: LeaseId, outcome: Outcome) -> Awaitable[None] | None: ...

    def settle(self, lease: LeaseId, ending: str) -> None:
        """Note how the outcome's delivery ended."""
        ...

    def unsettled(self) -> tuple[Outcome, ...]:
        """Outcomes whose delivery has not ended."""
        ...


class MemoryLedger:
    """It lasts from a node's start to its stop."""

    def __init__(self) -> None:
        self._accepted: dict[LeaseId, LeaseEnvelope] = {}
        self._outcomes: dict[LeaseId, Outcome] = {}

    def commit_accepted(self, lease: LeaseId, envelope: LeaseEnvelope) -> None:
        self._accepted[lease] = envelope

    def commit_outcome(self, lease: LeaseId, outcome: Outcome) -> None:
        self._accepted.pop(lease, None)
        if outcome.kind in ("completed", "failed"):
            self._outcomes[lease] = outcome

    def settle(self, lease: LeaseId, ending: str) -> None:
        self._outcomes.pop(lease, None)

    def unsettled(self) -> tuple[Outcome, ...]:
        return tuple(self._outcomes.values())
