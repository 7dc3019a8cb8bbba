"""What is on record: which leases were taken and how they ended. Here only what a node's commands ask of it."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

from posemesh.events import LeaseId
from posemesh.types import LeaseEnvelope, Outcome

__all__ = ("Ledger",)


class Ledger(Protocol):
    """The first two are done once the record will survive what this ledger promises to survive, and raise where it will
    not. They return None where that is at once, else what to wait for.
    """

    def commit_accepted(self, lease: LeaseId, envelope: LeaseEnvelope) -> Awaitable[None] | None: ...

    def commit_outcome(self, lease: LeaseId, outcome: Outcome, name: str = "") -> Awaitable[None] | None:
        """``name`` is the router's for the run that came to it, ``""`` where there was none."""
        ...

    def settle(self, lease: LeaseId, ending: str, problem: str = "") -> None:
        """Note how the outcome's delivery ended, and what stood in its way."""
        ...

    def undelivered(self, task_id: str) -> Outcome | None:
        """The latest outcome of that task whose delivery has not ended."""
        ...
