"""An event loop whose time is virtual: where all wait, it jumps to the next timer.

Sockets are real. Before each jump the selector is polled once, so whatever has arrived is handled first; that a byte
sent over loopback has arrived by then was seen on Linux and is not guaranteed. One process and one loop, then: another
process answers in its own time, while virtual hours pass here. Threads started by ``run_in_executor`` are waited for;
others are not known. Listeners need a backlog above the number of clients, as the kernel tries again in real time.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from email.utils import formatdate
from typing import Any, TypeVar, TypeVarTuple

from posemesh.testing.clock import EPOCH

__all__ = ("Deadlock", "VirtualLoop", "run_virtual")

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

DAY_SECS = 86_400.0


class Deadlock(RuntimeError):
    """Everything waits, and nothing can come: no timer is set, no byte has arrived, no thread is at work."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """``time()`` begins at 0. Raises TimeoutError from ``run_*`` once ``limit`` virtual seconds are over."""

    def __init__(self, *, limit: float = 10 * DAY_SECS) -> None:
        self.limit = limit
        self.jumps = 0
        self._now = 0.0
        self._threads = 0
        super().__init__(_Selector(self))

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now

    def jump(self, seconds: float) -> None:
        """Let virtual time pass. For the selector."""
        if self._now + seconds > self.limit:
            raise TimeoutError(f"not done after {self.limit:g} virtual seconds; something waits for what does not come")
        self.jumps += 1
        self._now += seconds

    @property
    def waits_for_threads(self) -> bool:
        """Whether an executor is at work: its time is real, so no virtual time passes meanwhile."""
        return self._threads > 0

    def run_in_executor(self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        future = super().run_in_executor(executor, func, *args)
        self._threads += 1
        future.add_done_callback(self._thread_done)
        return future

    def _thread_done(self, future: object) -> None:
        self._threads -= 1

    async def shutdown_default_executor(self, *args: Any) -> None:
        self._threads += 1
        try:
            await super().shutdown_default_executor(*args)
        finally:
            self._threads -= 1


class _Selector(selectors.DefaultSelector):
    """Never waits for a timer; lets virtual time pass instead."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._virtual = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        if self._virtual.waits_for_threads:
            return super().select(None)
        if timeout is None:
            raise Deadlock("every task waits, and there is neither a timer nor anything to read: nothing can happen")
        self._virtual.jump(timeout)
        return []


def run_virtual(main: Coroutine[Any, Any, T], *, limit: float = 10 * DAY_SECS) -> T:
    """Like ``asyncio.run(main)``, on a :class:`VirtualLoop`.

    Raises Deadlock where nothing can happen any more, TimeoutError after ``limit`` virtual seconds. While it runs,
    aiohttp takes the time of kept connections and of its Date headers from the loop (wall time: :class:`LoopClock`).
    """
    loop = VirtualLoop(limit=limit)
    with _aiohttp_on(loop), asyncio.Runner(loop_factory=lambda: loop) as runner:
        try:
            return runner.run(main)
        finally:
            loop.limit = float("inf")  # what is left is cancelled, and may take its time


@contextmanager
def _aiohttp_on(loop: VirtualLoop) -> Iterator[None]:
    from aiohttp import connector, web_response

    real = connector.monotonic, web_response.rfc822_formatted_time  # type: ignore[attr-defined]
    connector.monotonic = loop.time  # type: ignore[attr-defined]
    web_response.rfc822_formatted_time = lambda: formatdate(EPOCH + loop.time(), usegmt=True)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        connector.monotonic, web_response.rfc822_formatted_time = real  # type: ignore[attr-defined]
