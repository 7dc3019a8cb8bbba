"""Time, as the shell reads it."""

from __future__ import annotations

import time
from typing import Protocol

__all__ = ("Clock", "SystemClock")


class Clock(Protocol):
    """Two readings, both in seconds."""

    def monotonic(self) -> float:
        """For deadlines: it never goes back. The same as ``loop.time()`` of the loop the node runs on."""
        ...

    def wall(self) -> float:
        """For comparison with times that a service sends: seconds since 1970."""
        ...


class SystemClock:
    """The machine's own."""

    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()
