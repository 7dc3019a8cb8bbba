"""Admission: what is taken, and how each kind is treated."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest

from posemesh.control.policy import DEPTH_MAX, RejectReason, decide, problem_of, strongest
from posemesh.control.records import Boundary, Durability, Input, InputId, InputKind, Lane, Origin, Signal

DURABLE, EPHEMERAL, DERIVED = Durability
NONE, WAKE, INTERRUPT, IMMEDIATE = Signal
START, CHECKPOINT = Boundary


def an_input(
    kind: InputKind,
    origin: Origin = Origin.SYSTEM,
    durability: Durability | None = DURABLE,
    lane: Lane | None = None,
    fence: int = 1,
    at: float = 0.0,
    payload: Any = None,
) -> Input:
    return Input(
        id=InputId("i"),
        kind=kind,
        at=at,
        origin=origin,
        durability=durability,
        lane=lane,
        idempotency_key="task",
        fence=fence,
        payload={"task": "what is to be done"} if payload is None else payload,
    )


@pytest.mark.parametrize(
    ("kind", "lane", "expected"),
    [
        (InputKind.TASK, None, (Lane.QUEUE, START, WAKE, NONE, False)),
        (InputKind.TASK, Lane.QUEUE, (Lane.QUEUE, START, WAKE, NONE, False)),
        (InputKind.TASK, Lane.STEER, (Lane.STEER, CHECKPOINT, IMMEDIATE, IMMEDIATE, False)),
        (InputKind.PROGRESS, None, (Lane.STEER, CHECKPOINT, NONE, NONE, True)),
        (InputKind.STEER, None, (Lane.STEER, CHECKPOINT, IMMEDIATE, IMMEDIATE, False)),
        (InputKind.STEER, Lane.QUEUE, (Lane.QUEUE, START, WAKE, NONE, False)),
        (InputKind.OPERATION, None, (None, None, NONE, NONE, False)),
        (InputKind.CONTINUATION, None, (Lane.STEER, CHECKPOINT, WAKE, INTERRUPT, False)),
        (InputKind.CONTINUATION, Lane.QUEUE, (Lane.QUEUE, START, WAKE, NONE, False)),
    ],
)
def test_how_a_kind_is_treated(kind: InputKind, lane: Lane | None, expected: tuple[object, ...]) -> None:
    made = decide(an_input(kind, lane=lane))
    assert (made.lane, made.apply, made.idle, made.busy, made.coalesce) == expected and made.version == 1


def test_what_is_not_taken() -> None:
    """Every kind from everywhere with every durability: which of them are not refused for their durability."""
    taken = {
        (kind, origin, durability)
        for kind, origin, durability in product(InputKind, Origin, (*Durability, None))
        if problem_of(an_input(kind, origin, durability)) is not RejectReason.DURABILITY_VIOLATION
    }
    lasting = {(kind, origin, DURABLE) for kind, origin in product(InputKind, Origin)}
    passing = {
        (kind, origin, EPHEMERAL)
        for kind, origin in product(InputKind, Origin)
        if kind not in (InputKind.TASK, InputKind.STEER)
    }
    assert taken == lasting | passing | {(InputKind.CONTINUATION, Origin.SYSTEM, DERIVED)}


def test_other_reasons() -> None:
    for kind in (InputKind.PROGRESS, InputKind.OPERATION):
        assert problem_of(an_input(kind, lane=Lane.STEER)) is RejectReason.LANE_INVALID
    assert problem_of(an_input(InputKind.CONTINUATION, Origin.SERVICE)) is RejectReason.ORIGIN_INVALID
    assert problem_of(an_input(InputKind.TASK, fence=0)) is RejectReason.KEY_MISSING
    assert problem_of(an_input(InputKind.TASK, payload={})) is RejectReason.PAYLOAD_INVALID
    assert problem_of(an_input(InputKind.TASK)) is None


@pytest.mark.parametrize("at", [math.nan, math.inf, -math.inf])
def test_what_could_not_be_read_again_is_not_taken(at: float) -> None:
    """It was accepted, and its runtime could never be hosted again."""
    assert problem_of(an_input(InputKind.STEER, at=at)) is RejectReason.PAYLOAD_INVALID
    deep: Any = []
    for _ in range(DEPTH_MAX - 2):
        deep = [deep]
    assert problem_of(an_input(InputKind.TASK, payload={"a": deep})) is None
    assert problem_of(an_input(InputKind.TASK, payload={"a": [deep]})) is RejectReason.PAYLOAD_INVALID


def test_the_strongest_signal() -> None:
    assert strongest((WAKE, IMMEDIATE, NONE)) is IMMEDIATE and strongest(()) is NONE
