"""The node's end of one child of the process executor: its socket, its questions, and how it ended."""

from __future__ import annotations

import asyncio
import re
import select
import socket
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from posemesh.errors import TaskStopped
from posemesh.outcomes import FailureCode
from posemesh.policy import CHILD_GRACE_SECS
from posemesh.runners.ending import Ending, ending_of
from posemesh.runners.executors.frames import (
    PIECE_BYTES,
    Answer,
    Ask,
    Check,
    Done,
    Frames,
    FromChild,
    Load,
    Piece,
    Put,
    Run,
    Say,
    SetUp,
    WhereWorkspace,
    encode,
    from_child,
    question_of,
    refused,
    report_of,
)
from posemesh.runners.executors.keeping import Exit, Kept, keep, signal_name
from posemesh.runners.executors.locating import command_of
from posemesh.runners.executors.output import ProgramOutput
from posemesh.runners.job import Job
from posemesh.shell.offload import HostOffload
from posemesh.telemetry import task_span
from posemesh.types import JSON

__all__ = ("Peer",)

READ_BYTES: Final = 64 * 1024
READS_MAX: Final = 64
"""What came before a task is told to stop is read first, and no more."""
SEND_BYTES: Final = 1024 * 1024
"""What is sent in one turn of the loop."""
ASKS_MAX: Final = 256
"""Questions that are being answered. No more is read from the child until there are fewer."""
_NO_MEMORY: Final = re.compile(r"MemoryError|bad_alloc|annot allocate memory")


class Peer:
    """One child. It does one thing at a time, which :meth:`begin` gives it."""

    def __init__(self, connection: socket.socket, memory_bytes: int | None) -> None:
        self._connection = connection
        self._memory_bytes = memory_bytes
        self._loop = asyncio.get_running_loop()
        self.kept: Kept
        self._frames = Frames()
        self._came = select.poll()
        self._outgoing: deque[Iterator[bytes]] = deque()
        self._unsent = memoryview(b"")
        self._writing = False
        self._output: ProgramOutput | None = None
        self._job: Job | None = None
        self._run = 0
        self._ended: Callable[[Ending], None] | None = None
        self._is_ending = True
        self._is_set_up = False
        self._tidying: asyncio.Task[None] | None = None
        self._asks: set[asyncio.Task[None]] = set()
        self._told = False
        self._broken = ""
        self._paused = False
        connection.setblocking(False)
        self._came.register(connection, select.POLLIN)

    def __repr__(self) -> str:
        return f"<Peer {getattr(self, 'kept', 'starting')}>"

    @classmethod
    async def start(cls, name: str, load: Load, env: Mapping[str, str], memory_bytes: int | None) -> Peer:
        """A child that loads user code. Raises OSError where none can be started."""
        ours, theirs = socket.socketpair()
        with theirs:
            peer = cls(ours, memory_bytes)
            try:
                peer.kept = await keep(
                    command_of(name, theirs.fileno()),
                    env=env,
                    cwd=Path.cwd(),
                    fds=(theirs.fileno(),),
                    memory_bytes=memory_bytes,
                    output=peer._take_output,
                )
            except BaseException:
                ours.close()
                raise
        peer._loop.add_reader(ours, peer._read)
        peer.kept.on_end(peer._read_rest)
        peer._send(encode(load))
        return peer

    def is_usable(self) -> bool:
        """Whether it can be given something to do, as far as can be seen: also none that closed its output, since what
        it opened then may have the number of that.
        """
        if self._came.poll(0):
            self._read()
        return self.is_sound()

    def is_sound(self) -> bool:
        """The same, as far as was seen."""
        return self._connection.fileno() >= 0 and not self._told and self.kept.is_heard()

    def begin(self, order: Run | Check, job: Job | None, ended: Callable[[Ending], None]) -> None:
        """Carry out the task of ``job``, or the check. ``ended`` is called once, after this has returned, when all that
        it started is gone, but for what is the child's own.
        """
        self._job, self._ended, self._is_ending = job, ended, False
        self._run = order.run
        self._send(encode(order))
        if self._connection.fileno() < 0:
            self._end(None)

    async def carried_out(self, order: Run | Check) -> Ending:
        """The same, waited for."""
        ending: asyncio.Future[Ending] = self._loop.create_future()
        self.begin(order, None, ending.set_result)
        return await ending

    def _end(self, done: Done | None) -> None:
        """It said that it is done, or will say no more."""
        if self._ended is None or self._is_ending:
            return
        self._is_ending = True
        if done is None or done.leaving or self._told or not (done.alone and self.kept.is_alone()):
            self._tidying = self._loop.create_task(self._tidy_up(done))
        else:
            self._finish(done.ending)

    async def _tidy_up(self, done: Done | None) -> None:
        """End what it left, or itself too."""
        try:
            if done is None or done.leaving or self._told:
                exit = await self._left()
                ending = self._ending_of(exit) if done is None else done.ending
            else:
                await self.kept.sweep()
                ending = done.ending
        except asyncio.CancelledError:  # the loop is being closed
            await self.kept.kill()
            raise
        self._finish(ending)

    def _finish(self, ending: Ending) -> None:
        self.kept.drain()
        if self._output is not None:
            self._output.close()
            tail, self._output = self._output.tail, None
            if tail and ending.code is not None:
                ending = replace(ending, details={**ending.details, "output": list(tail)})
        if self._asks:
            self._end_asks()
        ended, self._ended, self._job = self._ended, None, None
        assert ended is not None
        ended(ending)

    def stop(self) -> None:
        """Tell the task to stop, and the child to end. What had ended before that is not told."""
        if self._told:
            return
        for _ in range(READS_MAX):
            if not self._read():
                break
        if self._is_ending:
            return
        self._told = not self.kept.is_over()
        self._end_asks()
        self.kept.stop(CHILD_GRACE_SECS)

    async def leave(self) -> None:
        """End it while it has nothing to do, and wait for that."""
        self._told = True
        await self._left()

    async def _left(self) -> Exit:
        self.kept.stop(CHILD_GRACE_SECS)
        try:
            return await self.kept.wait()
        finally:
            self._hang_up()

    def _ending_of(self, exit: Exit) -> Ending:
        if self._told:
            return ending_of(asyncio.CancelledError())
        code, message = FailureCode.RUNNER_ERROR, "the runner's process could not be ended"
        details: dict[str, JSON] = {}
        if exit.signal is not None:
            name = signal_name(exit.signal)
            code, message = FailureCode.KILLED, f"the runner's process was killed by {name}"
            details = {"signal": name}
        elif exit.code is not None:
            before = "answered" if self._is_set_up else "was set up"
            message = f"the runner's process ended with exit code {exit.code} before it {before}"
            code = FailureCode.RUNNER_ERROR if self._is_set_up else FailureCode.SETUP_FAILED
            details = {"exit_code": exit.code}
        if self._broken:
            message = f"the runner's process {self._broken}"
            return Ending(code=FailureCode.RUNNER_ERROR, message=message, details=details)
        tail = () if self._output is None else self._output.tail
        if self._memory_bytes is not None and any(map(_NO_MEMORY.search, tail)):
            code, message = FailureCode.OUT_OF_MEMORY, f"{message}; it may use {self._memory_bytes} bytes"
        return Ending(code=code, message=message, details=details)

    # --- From the child ---------------------------------------------------------------------------------------------

    def _take_output(self, stream: str, data: bytes) -> None:
        if self._output is None:
            self._output = ProgramOutput(None)
        if self._job is None:
            self._output.take(stream, data)
            return
        with task_span(self._job.lease):
            self._output.take(stream, data)

    def _read(self) -> bool:
        """Take in some of what came. Whether there may be more."""
        if self._connection.fileno() < 0 or self._paused:
            return False
        try:
            data = self._connection.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            data = b""
        if not data:
            self._break("closed its connection to the node before it answered")
            return False
        try:
            for body in self._frames.feed(data):
                self._take(from_child(body))
        except ValueError as error:
            self._break(f"sent what is no message: {error}")
            return False
        return True

    def _read_rest(self) -> None:
        """It is gone. A socket that broke tells nobody on some event loops."""
        while self._read():
            pass

    def _take(self, frame: FromChild) -> None:
        match frame:
            case Say():
                report = report_of(frame)
                if self._job is not None and frame.run == self._run:
                    self._job.report(report)
            case Done():
                if self._ended is None or self._is_ending or frame.run != self._run:
                    raise ValueError("the end of a task that it did not have")
                self._end(frame)
            case Ask() | Put() | WhereWorkspace() | SetUp():
                self._is_set_up = self._is_set_up or isinstance(frame, SetUp)
                question = question_of(frame) if isinstance(frame, Ask | Put) else frame
                self._asks.add(ask := self._loop.create_task(self._answer(frame.number, frame.run, question)))
                ask.add_done_callback(partial(self._answered, frame.number))
                if len(self._asks) >= ASKS_MAX:
                    self._paused = True
                    self._loop.remove_reader(self._connection)

    def _answered(self, number: int, ask: asyncio.Task[None]) -> None:
        self._asks.discard(ask)
        if ask.cancelled():  # perhaps before it began
            self._send(encode(refused(number, TaskStopped("the task was told to stop"))))
        if self._paused and len(self._asks) < ASKS_MAX and self._connection.fileno() >= 0:
            self._paused = False
            self._loop.add_reader(self._connection, self._read)

    async def _answer(self, number: int, run: int, question: Any) -> None:
        job = self._job
        value: Any
        try:
            if job is None or run != self._run or self._told:
                raise TaskStopped("the task is over, or was told to stop; nothing more goes out for it")
            with task_span(job.lease):
                if isinstance(question, SetUp):
                    value = None
                    await self.kept.mark()
                elif isinstance(question, WhereWorkspace):
                    value = await HostOffload().call(job.workspace)
                else:
                    value = await job.answer(question)
        except Exception as error:
            self._send(encode(refused(number, error)))
        else:
            self._send_all(_answer(number, value))

    def _end_asks(self) -> None:
        for ask in self._asks:
            ask.cancel()

    def _break(self, why: str) -> None:
        """No more is to be heard of it: it has ended, or is to."""
        over = self.kept.is_over()
        self._hang_up()
        if not over:
            self._broken = why
            self.kept.stop(CHILD_GRACE_SECS)
        self._end(None)

    # --- To the child -----------------------------------------------------------------------------------------------

    def _send(self, frame: bytes) -> None:
        if self._outgoing or self._unsent:
            self._outgoing.append(iter((frame,)))
            return
        try:
            sent = self._connection.send(frame)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            return  # it has ended: the reader finds that
        if sent < len(frame):
            self._send_all(iter((frame[sent:],)))

    def _send_all(self, frames: Iterator[bytes]) -> None:
        waiting = bool(self._outgoing or self._unsent)
        self._outgoing.append(frames)
        if not waiting:
            self._flush()

    def _flush(self) -> None:
        """Send until it takes no more, or others should have a turn."""
        if self._connection.fileno() < 0:
            return
        room = SEND_BYTES
        try:
            while room > 0 and (self._unsent or self._next()):
                sent = self._connection.send(self._unsent)
                self._unsent = self._unsent[sent:]
                room -= sent
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            return  # it has ended: the reader finds that
        if self._unsent or self._outgoing:
            self._writing = True
            self._loop.add_writer(self._connection, self._flush)
        elif self._writing:
            self._writing = False
            self._loop.remove_writer(self._connection)

    def _next(self) -> bool:
        while self._outgoing:
            for data in self._outgoing[0]:
                self._unsent = memoryview(data)
                return True
            self._outgoing.popleft()
        return False

    def _hang_up(self) -> None:
        if self._connection.fileno() >= 0:
            self._loop.remove_reader(self._connection)
            self._loop.remove_writer(self._connection)
            self._connection.close()
        self._outgoing.clear()
        self._unsent = memoryview(b"")


def _answer(number: int, value: Any) -> Iterator[bytes]:
    """The frames of an answer; what is large is encoded as it is sent."""
    if not isinstance(value, bytes):
        yield encode(Answer(number, value))
        return
    view = memoryview(value)
    for at in range(0, len(view), PIECE_BYTES):
        yield encode(Piece(number, bytes(view[at : at + PIECE_BYTES])))
    yield encode(Answer(number))
