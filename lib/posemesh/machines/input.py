"""Input: one thing a runtime was given to do, from its admission to its end."""

from __future__ import annotations

from posemesh.machines._kernel import State

__all__ = ("InputPhase",)


class InputPhase(State):
    ACCEPTED = "accepted", "It passed admission; nothing is decided of its lane."
    QUEUED = "queued", "It waits in its lane."
    STAGED = "staged", "A run has taken it up; it waits in no lane."
    APPLIED = "applied", "Its run has done what it asked; the receipt is to come."
    APPLIED_PENDING_CONSUMPTION = "applied_pending_consumption", "Its run's receipt has its number."
    CONSUMED = "consumed", "Done, or noted where there was nothing to do."
    SUPERSEDED = "superseded", "A newer lease of the same task took its place."
    COALESCED = "coalesced", "A later one that says the same took it in."
    ABANDONED = "abandoned", "It will not be worked off; the reason stands beside it."
