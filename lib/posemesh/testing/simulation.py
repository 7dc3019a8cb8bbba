"""A node whose every part keeps to the time and the chance of a test."""

from __future__ import annotations

from random import Random

from posemesh.node import Node
from posemesh.shell.clock import Clock
from posemesh.shell.offload import InlineOffload
from posemesh.testing.clock import LoopClock

__all__ = ("simulated",)


def simulated(node: Node, *, seed: int = 0, clock: Clock | None = None) -> Node:
    """Have ``node`` run whole on the running loop, user code and blocking calls included, its chance given by ``seed``.

    ``clock`` is the loop's by default. Call it before ``start()``, on a :class:`posemesh.testing.VirtualLoop`. Returns
    the node.
    """
    node._offload = InlineOffload
    node._rng = Random(seed)
    node._clock = clock or LoopClock()
    return node
