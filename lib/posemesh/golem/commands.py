"""Commands that run side by side in a runtime, and what is told of them.

Of each command is told that it began, then its output, then its one end, and nothing more. All that a handler begins
or tells before its request is answered waits until it is (:class:`Gate`): who asked has to know a command's number
before it hears of it. If the request fails it never happened.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from functools import partial
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, TypeAlias

from posemesh.golem.errors import EXITS, CommandExit, report
from posemesh.wire import golem as wire

if TYPE_CHECKING:
    from posemesh.golem.context import Control
    from posemesh.golem.pipes import Outbox

__all__ = ("Commands", "Data", "Emitter", "Gate", "Handler", "RunContext", "as_bytes", "finish", "settle")

Data: TypeAlias = bytes | bytearray | memoryview | str


async def settle(answer: Any) -> Any:
    """What a handler answers, be it a plain function or a coroutine's."""
    return await answer if isawaitable(answer) else answer


class Gate:
    """Holds back what is begun and told within a request, in the tasks that it starts as well, until it is opened."""

    def __init__(self) -> None:
        self._held: list[Callable[[], None]] | None = []

    def enter(self) -> None:
        """What the running task does from now on is within."""
        _GATE.set(self)

    def open(self) -> None:
        held, self._held = self._held, None
        for each in held or ():
            each()

    def drop(self) -> None:
        """Forget what was held back; from now on it is open."""
        self._held = None

    def hold(self, what: Callable[[], None]) -> bool:
        """False where it is open: do it yourself."""
        if self._held is None:
            return False
        self._held.append(what)
        return True


_GATE: ContextVar[Gate | None] = ContextVar("gate", default=None)


def _when_open(what: Callable[[], None]) -> None:
    gate = _GATE.get()
    if gate is None or not gate.hold(what):
        what()


class Emitter:
    """Tells of commands, by their numbers, and of the runtime. ``ctx.command`` does so by itself.

    What has not started, or has ended, is not told of. Output waits for who reads it slowly.
    """

    def __init__(self, outbox: Outbox | None) -> None:
        self._outbox = outbox
        self.live: set[int] = set()
        """Commands that have started and not ended."""

    def started(self, pid: int) -> None:
        """Raises ValueError for a number that runs."""
        if pid in self.live:
            raise ValueError(f"command {pid} runs already; numbers of commands that run are unique")
        self.live.add(pid)
        self._say(wire.ProcessStatus(pid, True))

    async def stdout(self, pid: int, data: Data) -> None:
        """In messages of at most OUTPUT_MAX bytes. Text is written in UTF-8. Without any data it is one message too."""
        for chunk in _chunks(data):
            await self._room()
            if pid in self.live:
                self._say(wire.ProcessStatus(pid, True, 0, chunk))

    async def stderr(self, pid: int, data: Data) -> None:
        for chunk in _chunks(data):
            await self._room()
            if pid in self.live:
                self._say(wire.ProcessStatus(pid, True, 0, b"", chunk))

    def exited(self, pid: int, code: int) -> None:
        """Once: from now on the number is free."""
        if pid in self.live:
            self.live.discard(pid)
            self._say(wire.ProcessStatus(pid, False, code))

    async def state(self, name: str, value: Any) -> None:
        """``value`` is JSON."""
        from posemesh.golem.text import compact

        await self._room()
        self._say(wire.RuntimeStatus(wire.State(name, compact(value).encode())))

    async def counter(self, name: str, value: float) -> None:
        """``value`` is absolute."""
        await self._room()
        self._say(wire.RuntimeStatus(wire.Counter(name, float(value))))

    async def _room(self) -> None:
        if self._outbox is not None and self._outbox.full:
            await self._outbox.room()

    def _say(self, event: wire.ProcessStatus | wire.RuntimeStatus) -> None:
        frame = wire.frame(wire.Response(True, 0, event))
        if self._outbox is not None:
            _when_open(partial(self._outbox.write, frame))


def as_bytes(data: Data) -> bytes:
    return data.encode("utf-8", "surrogateescape") if isinstance(data, str) else bytes(data)


def _chunks(data: Data) -> Iterator[bytes]:
    whole = as_bytes(data)
    if len(whole) <= wire.OUTPUT_MAX:
        yield whole
        return
    view = memoryview(whole)
    for at in range(0, len(whole), wire.OUTPUT_MAX):
        yield bytes(view[at : at + wire.OUTPUT_MAX])


class RunContext:
    """What the handler of command ``id`` tells of it. Each call waits while who reads is slow."""

    def __init__(self, id: int, emitter: Emitter, control: Control) -> None:
        self.id = id
        self._emitter = emitter
        self._control = control

    async def stdout(self, data: Data) -> None:
        await self._emitter.stdout(self.id, data)

    async def stderr(self, data: Data) -> None:
        await self._emitter.stderr(self.id, data)

    async def state(self, name: str, value: Any) -> None:
        """``value`` is JSON. It says something about the runtime, not about this command."""
        await self._emitter.state(name, value)

    async def counter(self, name: str, value: float) -> None:
        """``value`` is absolute, and the runtime's, not this command's."""
        await self._emitter.counter(name, value)

    def control(self) -> Control:
        return self._control


Handler: TypeAlias = Callable[[RunContext], Awaitable[Any] | Any]


class Commands:
    """Those that run, and the next number. ``ended`` is called after each end."""

    def __init__(self, emitter: Emitter, control: Control, ended: Callable[[], None] = lambda: None) -> None:
        self._emitter = emitter
        self._control = control
        self._ended = ended
        self._next = 0
        self._tasks: dict[int, asyncio.Task[None]] = {}

    @property
    def running(self) -> set[asyncio.Task[None]]:
        return set(self._tasks.values())

    def take_pid(self) -> int:
        """A number that no command had, but for those that the runtime chose itself."""
        while self._next in self._emitter.live:
            self._next += 1
        self._next += 1
        return self._next - 1

    def begin(self, handler: Handler, pid: int | None = None) -> int:
        if pid is None:
            pid = self.take_pid()
        _when_open(partial(self._begin, handler, pid))
        return pid

    def cancel(self, pid: int) -> bool:
        task = self._tasks.get(pid)
        return task is not None and task.cancel()

    async def end(self, seconds: float) -> None:
        """Cancel all, and wait until they have ended, ``seconds`` at most. What has not is told to have failed."""
        for task in self.running:
            task.cancel()
        await finish(self.running, seconds)
        for pid in self._tasks:
            self._emitter.exited(pid, 1)

    def _begin(self, handler: Handler, pid: int) -> None:
        self._emitter.started(pid)
        task = asyncio.create_task(self._work(handler, RunContext(pid, self._emitter, self._control)))
        self._tasks[pid] = task
        task.add_done_callback(partial(self._over, pid))

    async def _work(self, handler: Handler, run: RunContext) -> None:
        try:
            value = await settle(handler(run))
        except EXITS as left:
            code = left.code if isinstance(left, SystemExit) else 1
            raise CommandExit(code if isinstance(code, int) else 0 if code is None else 1) from left
        if value is not None:
            from posemesh.golem.text import compact

            await run.stdout(compact(value))

    def _over(self, pid: int, task: asyncio.Task[None]) -> None:
        del self._tasks[pid]
        error = None if task.cancelled() else task.exception()
        if isinstance(error, CommandExit):
            code = error.code
        else:
            code = 1 if task.cancelled() or error is not None else 0
            if error is not None:
                report(error)
        self._emitter.exited(pid, code)
        self._ended()


async def finish(tasks: set[asyncio.Task[Any]], seconds: float) -> None:
    """Wait for all of them, ``seconds`` at most."""
    if tasks:
        await asyncio.wait(tasks, timeout=seconds)
