"""The signals of a process that is one node's: the first drains, the second cancels, a third kills."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

from posemesh.runtime import Runtime

__all__ = ("Signals",)

HEEDED = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """Takes SIGINT and SIGTERM from now on. ``runtime`` gives whom they are for, None as long as there is nobody; what
    comes before is for :meth:`heed`. For the main thread, on the node's loop.
    """

    def __init__(self, runtime: Callable[[], Runtime | None]) -> None:
        self._runtime = runtime
        self._loop = asyncio.get_running_loop()
        self._came = self._heeded = 0
        for number in HEEDED:
            self._loop.add_signal_handler(number, self._told, number)

    def heed(self) -> None:
        """Pass on what came meanwhile."""
        runtime = self._runtime()
        if runtime is not None and self._came > self._heeded:
            self._heeded = self._came
            runtime.drain(runtime.config.drain_timeout_secs) if self._came == 1 else runtime.cancel()

    def _told(self, number: int) -> None:
        self._came += 1
        if self._came == 2:
            for each in HEEDED:
                self._loop.remove_signal_handler(each)
                signal.signal(each, signal.SIG_DFL)
        if self._came > 2:  # it came in the same turn of the loop as the second
            signal.raise_signal(number)
        self.heed()
