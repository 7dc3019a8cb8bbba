"""A node whose every part keeps to the time and the chance of a test."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import TypeVar

from posemesh.control.memory import MemoryStore
from posemesh.control.store import Row, Store
from posemesh.hosting import Host
from posemesh.node import Node
from posemesh.shell.clock import Clock
from posemesh.shell.offload import InlineOffload, Offload
from posemesh.testing.clock import LoopClock

__all__ = ("simulated",)

T = TypeVar("T", Node, Host)


def simulated(node: T, *, seed: int = 0, clock: Clock | None = None, durable: bool = False) -> T:
    """Have ``node`` run whole on the running loop, user code and blocking calls included, its chance given by ``seed``.

    ``clock`` is the loop's by default. What the node keeps lasts as long as ``node``, or is on disk where ``durable``.
    Call it before ``start()``, on a :class:`posemesh.testing.VirtualLoop`. Returns the node. A ``Host`` is simulated
    beside its nodes: it keeps what they do.
    """
    rows: dict[object, Row] = {}

    async def in_memory(place: Path, offload: Offload) -> Store:
        return MemoryStore(rows)

    if not durable:
        node._open_store = in_memory
    node._offload = InlineOffload
    if isinstance(node, Host):
        return node
    node._rng = Random(seed)
    node._clock = clock or LoopClock()
    return node
