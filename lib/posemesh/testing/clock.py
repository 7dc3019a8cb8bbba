"""Clocks for tests. Both fit :class:`posemesh.shell.clock.Clock`."""

from __future__ import annotations

import asyncio
from typing import Final

__all__ = ("EPOCH", "LoopClock", "ManualClock")

EPOCH: Final = 1_767_225_600.0
"""2026-01-01T00:00:00Z, the wall time at which virtual time begins, in seconds since 1970."""


class ManualClock:
    """A clock that stands still unless it is moved. Both readings are in seconds."""

    def __init__(self, wall: float = EPOCH, monotonic: float = 0.0) -> None:
        self._wall = wall
        self._monotonic = monotonic

    def __repr__(self) -> str:
        return f"<ManualClock {self._monotonic:g} s>"

    def monotonic(self) -> float:
        return self._monotonic

    def wall(self) -> float:
        return self._wall

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass. Raises ValueError for a negative number: deadlines rely on a clock that never goes
        back.
        """
        if not seconds >= 0:
            raise ValueError(f"expected seconds to go forward by, got {seconds}; use set_wall to turn the wall clock")
        self._monotonic += seconds
        self._wall += seconds

    def set_wall(self, wall: float) -> None:
        """Turn the wall clock, as an operator may, in either direction; deadlines do not notice."""
        self._wall = wall


class LoopClock:
    """The time of a loop, by default the running one. ``skew`` is by how many seconds the wall clock is wrong."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop | None = None, *, epoch: float = EPOCH, skew: float = 0.0
    ) -> None:
        self._loop = loop or asyncio.get_running_loop()
        self._epoch = epoch + skew

    def monotonic(self) -> float:
        return self._loop.time()

    def wall(self) -> float:
        return self._epoch + self._loop.time()
