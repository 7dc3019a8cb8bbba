"""A command that a runtime runs: what it writes, how it ends, and a way to end it.

::

    command = await runtime.run("/bin/sh", ["-c", "make"])
    async for event in command:
        match event:
            case Output("stdout", data):
                sys.stdout.buffer.write(data)
            case Counter(name, value):
                print(name, value)
    print(command.code)

A command's output waits, up to HELD_MAX bytes, until it is read; then the runtime has to wait with everything else it
has to say, also to other commands and to requests. So read it, or leave it to :meth:`Command.wait`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple, Self, TypeAlias

__all__ = ("EVENT_BYTES", "HELD_MAX", "KILLED_CODE", "Command", "Counter", "Event", "Output", "State")

HELD_MAX: Final = 1024 * 1024
"""Bytes of a command's output that wait to be read; and one frame more."""
KILLED_CODE: Final = -1
"""The exit code of a process that a signal ended."""
EVENT_BYTES: Final = 256
"""What an event counts for beside its own bytes."""


class Output(NamedTuple):
    """``data`` was written to ``stream``, ``stdout`` or ``stderr``."""

    stream: str
    data: bytes


class Counter(NamedTuple):
    """A usage counter of the runtime's now has ``value``: absolute, and it may fall."""

    name: str
    value: float


class State(NamedTuple):
    """A state of the runtime's, by name: ``value`` is JSON, or the text where it is none."""

    name: str
    value: Any


Event: TypeAlias = Output | Counter | State


class Command:
    """One command. Iterating over it gives what it writes, for one reader, and raises what went wrong with the runtime.

    ``pid`` is the runtime's number for it, of no meaning to the system; None where commands are processes of their own.
    """

    def __init__(self, name: str, pid: int | None, kill: Callable[[Command, int], Awaitable[None]]) -> None:
        self.name = name
        self.pid = pid
        self.feeding: asyncio.Task[None] | None = None
        """What feeds this command alone."""
        self._kill = kill
        self._events: deque[tuple[Event, int]] = deque()
        self._held = 0
        self._dropping = False
        self._reader: asyncio.Task[Any] | None = None
        self._code: int | None = None
        self._error: Exception | None = None
        self._told: Callable[[], None] = lambda: None
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._over = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Command {self.pid} {self.name!r} {self._code if self.over else 'running'}>"

    @property
    def over(self) -> bool:
        """Whether it has ended, or its runtime has; what it wrote may still wait to be read."""
        return self._over.is_set()

    @property
    def code(self) -> int | None:
        """Its exit code, -1 where a signal ended its process; None as long as there is none."""
        return self._code

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        self._reader = asyncio.current_task()
        while not self._events:
            if self.over:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        event, size = self._events.popleft()
        self._held -= size
        self._room.set()
        return event

    async def wait(self) -> int:
        """Its exit code, once it has ended. What it writes is dropped, unless another task reads it. Raises what
        iterating does.
        """
        if self._reader in (None, asyncio.current_task()) or self._reader.done():
            async for _ in self:
                pass
        else:
            await self.ended()
        if self._error is not None:
            raise self._error
        assert self._code is not None
        return self._code

    async def ended(self) -> None:
        """Until it has ended, whatever still waits to be read."""
        await self._over.wait()

    async def kill(self, signal: int = 9) -> None:
        """Have the runtime end it. It has ended when :meth:`wait` says so, not before. What it writes and nobody reads
        no longer waits.

        Raises RuntimeRefused where the runtime does not do that, and what else may go wrong with a request.
        """
        self.drop()
        if not self.over:
            await self._kill(self, signal)

    def is_full(self) -> bool:
        """Whether it waits to be read."""
        return self._held >= HELD_MAX

    # --- The end that feeds it --------------------------------------------------------------------------------------

    def on_end(self, told: Callable[[], None]) -> None:
        """Call ``told`` when it ends; now, where it has."""
        if self.over:
            told()
        else:
            self._told = told

    def drop(self) -> None:
        """From now on what finds no room is dropped."""
        self._dropping = True
        self._room.set()

    async def put(self, event: Event) -> None:
        """Add an event when there is room for it."""
        while self.is_full() and not self._dropping and not self.over:
            self._room.clear()
            await self._room.wait()
        if not self.is_full():
            self.put_at_once(event)

    def put_at_once(self, event: Event) -> None:
        """Add an event, room or no room."""
        size = EVENT_BYTES + (len(event.data) if isinstance(event, Output) else 0)
        self._events.append((event, size))
        self._held += size
        self._news.set()

    def finish(self, code: int | None, error: Exception | None = None) -> None:
        """Nothing follows: it has ended with ``code``, or its runtime with ``error``. The first time counts."""
        if not self.over:
            self._code, self._error = code, error
            self._over.set()
            self._news.set()
            self._room.set()
            self._told()
