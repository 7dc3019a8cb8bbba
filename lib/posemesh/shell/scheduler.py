"""The thin part: an inbox, the engine, its commands, and one timer at the engine's next deadline."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import copy_context
from math import inf

from posemesh.commands import Command
from posemesh.engine import Engine
from posemesh.errors import IllegalTransition
from posemesh.events import Event
from posemesh.machines._kernel import Moved
from posemesh.shell.clock import Clock
from posemesh.snapshot import Ended
from posemesh.telemetry import logger

__all__ = ("Scheduler",)


class Scheduler:
    """Drives one engine on one loop. It looks at no state: it passes events in and commands out."""

    def __init__(
        self,
        engine: Engine,
        clock: Clock,
        execute: Callable[[Command], None],
        observe: Callable[[Sequence[Moved]], None],
        ended: Callable[[Ended], None],
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._execute = execute
        self._observe = observe
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        # Not that of who posts: what a step does concerns other tasks too, and a log line would name the poster's.
        self._context = copy_context()
        self._inbox: deque[Event] = deque()
        self._busy = False
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf

    def post(self, event: Event) -> None:
        """Take an event in; on the loop of this scheduler only. What a command posts meanwhile waits its turn."""
        self._inbox.append(event)
        if not self._busy:
            self._context.copy().run(self._drain)

    def close(self) -> None:
        """Stop the timer; later events are dropped."""
        self._closed = True
        self._inbox.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _drain(self) -> None:
        self._busy = True
        try:
            while self._inbox and not self._closed:
                event = self._inbox.popleft()
                self._step(event, self._clock.monotonic())
        finally:
            self._busy = False
        self._rearm()

    def _step(self, event: Event | None, now: float) -> None:
        try:
            commands = self._engine.elapse(now) if event is None else self._engine.handle(event, now)
        except IllegalTransition as error:
            logger().error(f"an event had no place: {error}")
            return
        except Exception as error:  # a fault of ours must not stop the node's timers
            logger().opt(exception=error).error(f"{type(event).__name__} could not be handled")
            return
        self._observe(self._engine.moved)
        for end in self._engine.ended:
            self._ended(end)
        for command in commands:
            self._execute(command)

    def _elapse(self) -> None:
        # A timer that fires a hair early still counts as due.
        now = max(self._clock.monotonic(), self._timer_at)
        self._timer_at = inf
        deadline = self._engine.next_deadline()
        if deadline is not None and deadline <= now:
            self._busy = True
            try:
                self._step(None, now)
            finally:
                self._busy = False
        self._drain()

    def _rearm(self) -> None:
        """A timer that was set for an earlier time stays, and finds nothing due: most steps move the next deadline, and
        few bring it nearer.
        """
        deadline = self._engine.next_deadline()
        if self._closed or deadline is None or deadline >= self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = deadline
        delay = max(0.0, deadline - self._clock.monotonic())
        self._timer = self._loop.call_later(delay, self._elapse)
