"""A runtime that serves: requests to it over its stdin, replies and events over its stdout.

Whatever it says is taken in the order in which it says it. A command that nobody reads therefore holds up all of it,
and nothing piles up here.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Any, Final, TypeVar

from posemesh.golem._process import READ_BYTES, Place, Tail, begin, ended, reading
from posemesh.golem.command import EVENT_BYTES, Command, Counter, Event, Output, State
from posemesh.golem.failures import GolemError, RuntimeEnded, RuntimeGarbled, RuntimeRefused, RuntimeSilent
from posemesh.runners.executors.keeping import Kept
from posemesh.wire import golem as wire

__all__ = ("PROTOCOL", "Link")

PROTOCOL: Final = "0.1.0"
"""The version of the protocol, as hello says it."""
FIRST_ID: Final = 2
"""As other clients do. Never 0: some runtimes do not decode so short a request before the next one comes."""
EARLY_MAX: Final = 16 * 1024 * 1024
"""Bytes of events that may come before the reply that says whose they are."""

R = TypeVar("R", bound=wire.Message)


class Link:
    """Made by :meth:`open`; :meth:`close` ends the runtime."""

    def __init__(
        self, kept: Kept, writer: asyncio.StreamWriter, place: Place, tail: Tail, reply_seconds: float
    ) -> None:
        self._kept = kept
        self._writer = writer
        self._log = place.log
        self._tail = tail
        self._reply_seconds = reply_seconds
        self._loop = asyncio.get_running_loop()
        self._frames = wire.Frames()
        self._ids = itertools.count(FIRST_ID)
        self._asked: dict[int, tuple[wire.Command, asyncio.Future[Any]]] = {}
        self._given_up: set[int] = set()
        """Runs that nobody waits for any more, and which may begin all the same."""
        self._late: set[asyncio.Task[None]] = set()
        self._running: dict[int, Command] = {}
        self._early: list[wire.ProcessStatus] = []
        self._early_bytes = 0
        self._problem: GolemError | None = None
        self._closing = False
        self._reading: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, argv: Sequence[str], place: Place, reply_seconds: float) -> Link:
        """Start the runtime, which may take ``reply_seconds`` for each reply where a request says nothing else. Raises
        RuntimeEnded where it cannot be started.
        """
        tail = Tail(place.log)
        with ExitStack() as theirs, ExitStack() as ours:  # nothing is waited for once it has begun
            replies, answers = os.pipe()
            theirs.callback(os.close, answers)
            reader, transport = await reading(replies)
            ours.callback(transport.close)
            wanted, requests = os.pipe()
            theirs.callback(os.close, wanted)
            writer = await _writing(requests)
            ours.callback(writer.close)
            kept = await begin("start", argv, place, tail.take, {"stdin": wanted, "stdout": answers})
            ours.pop_all()
        link = cls(kept, writer, place, tail, reply_seconds)
        link._reading = link._loop.create_task(link._read(reader, transport))
        return link

    def __repr__(self) -> str:
        return f"<Link {self._kept.pid} {len(self._running)} running>"

    @property
    def commands(self) -> tuple[Command, ...]:
        """Those that run."""
        return tuple(self._running.values())

    async def ask(self, step: str, command: wire.Command, expected: type[R], seconds: float | None = None) -> R:
        """The reply to a request. Raises what can go wrong with a runtime."""
        reply = await self._ask(step, command, seconds)
        if not isinstance(reply, expected):
            raise RuntimeGarbled(step, f"{step}: expected a {expected.__name__}, the runtime replied {reply!r:.200}")
        return reply

    async def run(self, request: wire.RunProcess) -> Command:
        """Start a command. One that has not begun in time, or when this is cancelled, is killed if it begins later."""
        reply = await self._ask("run", request)
        if not isinstance(reply, Command):
            raise RuntimeGarbled("run", f"run: expected a RunReply, the runtime replied {reply!r:.200}")
        return reply

    async def close(self, seconds: float) -> None:
        """Have it shut down and end within ``seconds``; then nothing of it is left, however it took that.

        Raises RuntimeRefused where it says that its stop failed.
        """
        self._begin_to_close()
        try:
            async with asyncio.timeout(seconds):
                try:
                    await self.ask("stop", wire.Shutdown(), wire.ShutdownReply, seconds)
                finally:
                    self._writer.close()
                await self._kept.wait()
        except (TimeoutError, RuntimeEnded, RuntimeGarbled):
            pass  # it is ended all the same
        finally:
            await self.kill()

    async def lost(self) -> GolemError:
        """How it ended, once it has, told to or not."""
        assert self._reading is not None
        await asyncio.shield(self._reading)
        assert self._problem is not None
        return self._problem

    def on_end(self, told: Callable[[], None]) -> None:
        """Call ``told`` when :meth:`lost` is over."""
        assert self._reading is not None
        self._reading.add_done_callback(lambda _: told())

    async def kill(self) -> None:
        """End it at once, and all that it started."""
        self._begin_to_close()
        await self._kept.kill()
        if self._reading is not None:
            await self._reading
        self._writer.close()

    def _begin_to_close(self) -> None:
        self._closing = True
        for command in self.commands:
            command.drop()

    # --- Requests ---------------------------------------------------------------------------------------------------

    async def _ask(self, step: str, command: wire.Command, seconds: float | None = None) -> object:
        if self._problem is not None:
            raise self._problem
        seconds = self._reply_seconds if seconds is None else seconds
        id = next(self._ids)
        frame = wire.frame(wire.Request(id=id, command=command))
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._asked[id] = (command, answer)
        try:
            async with asyncio.timeout(seconds):
                await self._send(frame)
                reply = await answer
        except BaseException as error:
            if isinstance(command, wire.RunProcess):
                self._give_up(id, answer)
            if isinstance(error, TimeoutError):
                raise RuntimeSilent(step, self._silence(step, seconds), seconds) from None
            raise
        finally:
            del self._asked[id]
            self._look_at_early()
        if isinstance(reply, wire.Error):
            raise RuntimeRefused(step, reply.code, reply.message, reply.context)
        return reply

    def _give_up(self, id: int, answer: asyncio.Future[Any]) -> None:
        """Nobody waits for this run any more, whether it has begun or not."""
        if answer.cancelled() or not answer.done():
            self._given_up.add(id)
        elif answer.exception() is None and isinstance(command := answer.result(), Command):
            command.drop()
            self._end_late(command.pid)

    async def _send(self, frame: bytes) -> None:
        with suppress(ConnectionError):  # whoever reads its stdout finds that it is gone
            self._writer.write(frame)
            await self._writer.drain()

    def _silence(self, step: str, seconds: float) -> str:
        text = f"{step}: the runtime did not answer within {seconds:g} s"
        if self._frames.waiting:
            text += f"; its stdout ends in {self._frames.waiting} bytes of a frame, where nothing but frames belongs"
        unread = [command.pid for command in self.commands if command.is_full()]
        return f"{text}; the output of its commands {unread} is not read" if unread else text

    # --- Replies and events -----------------------------------------------------------------------------------------

    async def _read(self, reader: asyncio.StreamReader, transport: asyncio.ReadTransport) -> None:
        """Until nothing can come any more. Then all that wait are told why."""
        garbled = ""
        try:
            while data := await reader.read(READ_BYTES):
                for payload in self._frames.feed(data):
                    await self._take(wire.decode_response(payload))
        except wire.GolemWireError as error:
            garbled = f"the runtime's stdout is no frames: {error}; nothing else may write there"
        except Exception as error:
            garbled = f"what the runtime said cannot be taken: {error!r}"
        finally:
            transport.close()
        over = self._kept.is_over()
        if garbled or not self._closing:
            await self._kept.kill()
        exit, step = await self._kept.wait(), self._step()
        if garbled:
            self._problem = RuntimeGarbled(step, f"{step}: {garbled}")
        else:
            when = "before it had answered" if self._asked else "while it served"
            if self._closing:
                when = "as it was told to"
            elif not over:
                when += ", as it had closed its stdout"
            self._problem = ended(step, exit, self._tail, when)
        for _, answer in self._asked.values():
            if not answer.done():
                answer.set_exception(self._problem)
        for command in self.commands:
            command.finish(None, self._problem)
        self._running.clear()

    def _step(self) -> str:
        """What the runtime is busy with."""
        asked = [_STEPS[type(command)] for command, _ in self._asked.values()]
        return asked[0] if asked else "run"

    async def _take(self, response: wire.Response) -> None:
        match response.command:
            case wire.ProcessStatus() as status if response.event:
                await self._take_status(status)
            case wire.RuntimeStatus(kind=kind) if response.event and kind is not None:
                event = _event(kind)
                for command in self.commands:
                    await command.put(event)
                if not self._running:
                    self._log(event)
            case reply if not response.event:
                self._take_reply(response.id, reply)

    def _take_reply(self, id: int, reply: wire.Reply | None) -> None:
        if id in self._given_up:
            self._given_up.discard(id)
            if isinstance(reply, wire.RunReply):
                self._end_late(reply.pid)
            return
        command, answer = self._asked.get(id, (None, None))
        if answer is None or answer.done():
            return
        if isinstance(command, wire.RunProcess) and isinstance(reply, wire.RunReply):
            self._begin(command, reply.pid, answer)
        else:
            answer.set_result(reply)

    def _begin(self, request: wire.RunProcess, pid: int, answer: asyncio.Future[Any]) -> None:
        """A command has begun; what came of it before its reply is made up for."""
        if pid in self._running:
            text = f"run: expected a number of its own for the command, the runtime gave it {pid}, which is in use"
            answer.set_exception(RuntimeGarbled("run", text))
            return
        command = self._running[pid] = Command(request.bin, pid, self._kill)
        if self._closing:
            command.drop()
        early, self._early = self._early, []
        for status in early:
            if status.pid != pid or command.over:
                self._early.append(status)
                continue
            for output in _outputs(status):
                command.put_at_once(output)
            self._end(command, status)
        self._early_bytes = sum(map(_size, self._early))
        answer.set_result(command)

    async def _take_status(self, status: wire.ProcessStatus) -> None:
        command = self._running.get(status.pid)
        if command is not None:
            for output in _outputs(status):
                await command.put(output)
            self._end(command, status)
        elif self._is_run_asked():
            self._early.append(status)
            self._early_bytes += _size(status)
            if self._early_bytes > EARLY_MAX:
                raise OverflowError(f"{self._early_bytes} bytes of events before the reply that says whose they are")
        else:
            self._stray(status)

    def _end(self, command: Command, status: wire.ProcessStatus) -> None:
        if not status.running and not command.over:
            self._running.pop(status.pid)
            command.finish(status.return_code)

    def _is_run_asked(self) -> bool:
        return any(isinstance(command, wire.RunProcess) for command, _ in self._asked.values())

    def _look_at_early(self) -> None:
        """What came early is nobody's where no command is waited for."""
        if self._early and not self._is_run_asked():
            early, self._early, self._early_bytes = self._early, [], 0
            for status in early:
                self._stray(status)

    def _stray(self, status: wire.ProcessStatus) -> None:
        """What the runtime says by itself, such as what its start came to, or of a command that is over."""
        for output in _outputs(status):
            self._log(output)

    async def _kill(self, command: Command, signal: int) -> None:
        assert command.pid is not None
        await self.ask("kill", wire.KillProcess(pid=command.pid, signal=signal), wire.KillReply)

    def _end_late(self, pid: int | None) -> None:
        """Have a command ended that belongs to nobody."""

        async def end() -> None:
            with suppress(GolemError):
                await self.ask("kill", wire.KillProcess(pid=pid or 0, signal=9), wire.KillReply)

        self._late.add(ending := self._loop.create_task(end()))
        ending.add_done_callback(self._late.discard)


_STEPS: Final[dict[type[wire.Command], str]] = {
    wire.Hello: "start",
    wire.RunProcess: "run",
    wire.KillProcess: "kill",
    wire.Shutdown: "stop",
    wire.CreateNetwork: "network",
}


def _outputs(status: wire.ProcessStatus) -> list[Output]:
    """What was written; nothing where the command has only begun."""
    written = (Output("stdout", status.stdout), Output("stderr", status.stderr))
    return [output for output in written if output.data]


def _size(status: wire.ProcessStatus) -> int:
    return EVENT_BYTES + len(status.stdout) + len(status.stderr)


def _event(kind: wire.State | wire.Counter) -> Event:
    if isinstance(kind, wire.Counter):
        return Counter(kind.name, kind.value)
    try:
        return State(kind.name, json.loads(kind.value))
    except (ValueError, RecursionError):
        return State(kind.name, kind.value.decode("utf-8", "backslashreplace"))


async def _writing(pipe: int) -> asyncio.StreamWriter:
    loop = asyncio.get_running_loop()
    protocol = asyncio.StreamReaderProtocol(asyncio.StreamReader())
    transport, _ = await loop.connect_write_pipe(lambda: protocol, os.fdopen(pipe, "wb", 0))
    return asyncio.StreamWriter(transport, protocol, None, loop)
