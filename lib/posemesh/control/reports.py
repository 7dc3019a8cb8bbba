"""What an input was answered with, and what an operation on a runtime did, in numbers.

Counts are of inputs that had not ended. Three of them were known to be wrong where these reports come from, and are
right here:

* ``inputs_requeued`` counts every input that recovery put back into its lane, also one that was applied without a
  receipt; it used to be lost in a second count, or not counted.
* ``inputs_abandoned`` of a recovery counts those that had had their attempts; it was always 0.
* ``inputs_discarded`` counts inputs that were not to survive their process; they were counted nowhere. So
  ``inputs_recovered`` is what was put back, kept and found done, and with ``inputs_abandoned`` and ``inputs_discarded``
  makes up all there was.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self, TypeAlias

import msgspec

from posemesh.control.policy import RejectReason
from posemesh.control.records import InputId, InputState, InputStateSeed, PolicyDecision, encode
from posemesh.errors import WireError

__all__ = (
    "AcceptOutcome",
    "Accepted",
    "Deduplicated",
    "DestroyReport",
    "RecoveryReport",
    "RecycleReport",
    "Rejected",
    "ResetReport",
    "RetireReport",
    "Standing",
)


class Standing(StrEnum):
    """What has become of an input that is given again."""

    IN_FLIGHT = "in_flight"
    """It has not ended: its end can be waited for."""
    CONSUMED = "consumed"
    """It was worked off."""
    UNDELIVERED = "undelivered"
    """It ended without having been worked off, and will not be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """It was taken in, and is on record if it is durable. ``reopens`` is what an older lease of the same task was."""

    input_id: InputId
    policy: PolicyDecision
    state: InputState
    seed: InputStateSeed
    reopens: InputId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Deduplicated:
    """It is there already, as ``existing_id``; ``input_id`` is nowhere."""

    input_id: InputId
    existing_id: InputId
    existing_seed: InputStateSeed
    standing: Standing


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """It will never be taken."""

    reason: RejectReason


AcceptOutcome: TypeAlias = Accepted | Deduplicated | Rejected


@dataclass(frozen=True, slots=True, kw_only=True)
class _Report:
    def to_json(self) -> str:
        """One JSON object, by the names of the fields."""
        return encode(self._plain()).decode()

    def _plain(self) -> dict[str, Any]:
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The report that ``to_json`` wrote; unknown fields are ignored. Raises WireError for anything else."""
        try:
            report = msgspec.json.decode(text, type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise WireError(f"{cls.__name__} cannot be read: {error}") from None
        if any(isinstance(count, int) and count < 0 for count in report._plain().values()):
            raise WireError(f"{cls.__name__} cannot be read: expected no count below 0")
        return report


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryReport(_Report):
    """``details`` has a line for each action; its JSON leaves them out where there are none, and so
    ``inputs_discarded``.
    """

    inputs_recovered: int
    inputs_abandoned: int
    inputs_requeued: int
    inputs_discarded: int = 0
    details: tuple[str, ...] = ()

    def _plain(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in msgspec.to_builtins(self).items()
            if value or name not in ("details", "inputs_discarded")
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RetireReport(_Report):
    """``inputs_pending_drain`` will still be worked off."""

    inputs_abandoned: int
    inputs_pending_drain: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ResetReport(_Report):
    inputs_abandoned: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RecycleReport(_Report):
    """``inputs_transferred`` go on in the new driver."""

    inputs_transferred: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DestroyReport(_Report):
    inputs_abandoned: int
