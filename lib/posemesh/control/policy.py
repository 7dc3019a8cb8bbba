"""Admission: which inputs are taken at all, and how each kind is treated. Pure, and decided once for each input.

| Kind | Lane | Taken up | Idle | Busy | |
| --- | --- | --- | --- | --- | --- |
| task | queue | at the start of a run of its own | wake | - | |
| progress | steer | at a checkpoint | - | - | the latest takes in the others |
| steer | steer | at a checkpoint | immediate | immediate | |
| continuation | steer | at a checkpoint | wake | interrupt | |
| operation | - | - | - | - | consumed on accept |

An input may ask for another lane, but for progress, which is always looked at beside what runs, and for an operation,
which is in none. In the steer lane it is taken up at a checkpoint and at once; in the queue at the start of a run.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from math import isfinite
from typing import Final

from posemesh.control.records import Boundary, Durability, Input, InputKind, Lane, Origin, PolicyDecision, Signal
from posemesh.types import JSON

__all__ = ("DEPTH_MAX", "RejectReason", "decide", "is_too_deep", "problem_of", "strongest")


DEPTH_MAX: Final = 256
"""What is nested deeper may be written and not be read again: how deep a reader gets depends on who calls it."""


class RejectReason(StrEnum):
    """Why an input is not taken, whatever the state of its runtime."""

    DURABILITY_VIOLATION = "durability_violation"
    """It says nothing of its durability, or says that it is derived and is of a kind or origin that never is."""
    LANE_INVALID = "lane_invalid"
    """It asks for a lane, and its kind has no choice."""
    ORIGIN_INVALID = "origin_invalid"
    """Its kind comes from the node itself only."""
    KEY_MISSING = "key_missing"
    """A task without its id, or without the number of its lease."""
    PAYLOAD_INVALID = "payload_invalid"
    """A task without what is to be done; or what could be put on record and not be read again: a time that is no
    number, JSON that is nested too deep.
    """


_POLICY: Final = {
    InputKind.TASK: PolicyDecision(lane=Lane.QUEUE, apply=Boundary.RUN_START, idle=Signal.WAKE_LOOP, busy=Signal.NONE),
    InputKind.PROGRESS: PolicyDecision(
        lane=Lane.STEER, apply=Boundary.RUN_CHECKPOINT, idle=Signal.NONE, busy=Signal.NONE, coalesce=True
    ),
    InputKind.STEER: PolicyDecision(
        lane=Lane.STEER,
        apply=Boundary.RUN_CHECKPOINT,
        idle=Signal.REQUEST_IMMEDIATE,
        busy=Signal.REQUEST_IMMEDIATE,
    ),
    InputKind.CONTINUATION: PolicyDecision(
        lane=Lane.STEER, apply=Boundary.RUN_CHECKPOINT, idle=Signal.WAKE_LOOP, busy=Signal.INTERRUPT_YIELDING
    ),
    InputKind.OPERATION: PolicyDecision(lane=None, apply=None, idle=Signal.NONE, busy=Signal.NONE),
}
_BY_LANE: Final = {Lane.STEER: _POLICY[InputKind.STEER], Lane.QUEUE: _POLICY[InputKind.TASK]}


def problem_of(given: Input) -> RejectReason | None:
    """Why ``given`` is not taken, None where it is."""
    if given.durability is None:
        return RejectReason.DURABILITY_VIOLATION
    if given.durability is Durability.DERIVED and (
        given.origin is not Origin.SYSTEM or given.kind is not InputKind.CONTINUATION
    ):
        return RejectReason.DURABILITY_VIOLATION
    if given.kind in (InputKind.TASK, InputKind.STEER) and given.durability is not Durability.DURABLE:
        return RejectReason.DURABILITY_VIOLATION
    if given.lane is not None and given.kind in (InputKind.PROGRESS, InputKind.OPERATION):
        return RejectReason.LANE_INVALID
    if given.kind is InputKind.CONTINUATION and given.origin is not Origin.SYSTEM:
        return RejectReason.ORIGIN_INVALID
    if given.kind is InputKind.TASK and (not given.idempotency_key or given.fence < 1):
        return RejectReason.KEY_MISSING
    if (given.kind is InputKind.TASK and not given.payload) or not isfinite(given.at) or is_too_deep([given.payload]):
        return RejectReason.PAYLOAD_INVALID
    return None


def is_too_deep(level: list[JSON]) -> bool:
    """Whether any of these is nested more than :data:`DEPTH_MAX` deep."""
    for _ in range(DEPTH_MAX):
        nested = [value for value in level if isinstance(value, (dict, list))]
        if not nested:
            return False
        level = [each for value in nested for each in (value.values() if isinstance(value, dict) else value)]
    return any(isinstance(each, (dict, list)) for each in level)


def decide(given: Input) -> PolicyDecision:
    """How ``given`` is treated."""
    usual = _POLICY[given.kind]
    return usual if given.lane in (None, usual.lane) else _BY_LANE[given.lane]


def strongest(signals: Iterable[Signal]) -> Signal:
    """The strongest of them."""
    return max(signals, key=lambda signal: signal.rank, default=Signal.NONE)
