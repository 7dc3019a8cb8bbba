"""A runtime in server mode: ``start``, then requests from one stream, and replies and events to another, until the end.

Requests are answered side by side, hello at once. A shutdown waits for those before it, and those behind it for it.
However the end comes about, ``stop`` is called if it was not yet, commands are cancelled, what they left running is
killed, and what is left to tell is told; all of it within :data:`LEAVE_SECS`.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, NoReturn

from posemesh.errors import PosemeshError
from posemesh.golem.commands import Commands, Emitter, Gate, finish, settle
from posemesh.golem.context import Context, Control
from posemesh.golem.errors import EXITS, HandlerError, as_error, report
from posemesh.golem.pipes import Inbox, Outbox, claim_stdin, claim_stdout
from posemesh.golem.runtime import RuntimeMode
from posemesh.orders import SERVED
from posemesh.wire import golem as wire

if TYPE_CHECKING:
    from posemesh.golem.children import Family
    from posemesh.golem.program import Setup

__all__ = ("LEAVE_SECS", "End", "Server", "serve")

LEAVE_SECS: Final = 3.5
"""What the end may take altogether: the program kills itself then."""
GRACE_SECS: Final = 0.3
"""For what is nearly done when the end comes."""
STOP_SECS: Final = 2.0
SHUTDOWN_SECS: Final = 3.0
"""For ``stop`` at a shutdown, whose reply is waited for 5 seconds."""
CANCEL_SECS: Final = 0.2
KILL_SECS: Final = 0.3
FLUSH_SECS: Final = 0.5
START_SECS: Final = 0.5
"""For a start whose requests have ended already; what is piped in is answered where it takes no longer."""
EARLY_MAX: Final = 256 * 1024
"""Bytes of requests that are read before the start is over, so that their end is heard of."""
LINGER_SECS: Final = 0.2
"""Some readers lose what was written right before the end of the program."""


class End(Enum):
    """Why it ends, and whether that is an error."""

    INPUT = ("its input ended", 0)
    ASKED = ("the runtime wants to", 0)
    SIGNAL = ("a signal", 0)
    GARBAGE = ("its input is no request", 1)
    UNHEARD = ("nobody reads its output", 1)


class Server:
    """``leaving`` is called with the exit code when the end begins, so that it can be bounded."""

    def __init__(
        self, setup: Setup, stdin: int, stdout: int, leaving: Callable[[int], None] = lambda code: None
    ) -> None:
        self._setup = setup
        self._runtime = setup.runtime
        self._leaving = leaving
        self._outbox = Outbox(stdout, self._unheard)
        self._inbox = Inbox(stdin, self._received)
        self._outbox.on_room = self._inbox.open
        self._frames = wire.Frames()
        self._early: list[bytes] | None = []
        """What came before the start was over."""
        self._commands = Commands(emitter := Emitter(self._outbox), Control(self._asked), self._idle)
        self._ctx: Context[Any] = setup.context(self._commands, emitter, self._asked)
        self._hello = wire.HelloReply(setup.runtime.VERSION)
        self._requests: set[asyncio.Task[None]] = set()
        self._shutdown: asyncio.Task[None] | None = None
        self._state = "initialized"
        self._end: asyncio.Future[End] = asyncio.get_running_loop().create_future()
        self._input_over = asyncio.Event()

    def end(self, why: End) -> None:
        """The first reason counts."""
        if not self._end.done():
            self._end.set_result(why)

    async def run(self) -> int:
        """The exit code."""
        starting = asyncio.create_task(self._start())
        self._inbox.open()
        await asyncio.wait((starting, self._end), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            await self._finish_requests({starting}, GRACE_SECS if self._end.result() is End.ASKED else 0)
        if self._end.done() and (starting.cancelled() or not starting.done()):
            self._move("StartFailed")
            why = self._end.result()
            return await self._leave(why) or int(why is not End.ASKED)
        error = HandlerError("start was cancelled") if starting.cancelled() else starting.exception()
        if error is not None:
            self._move("StartFailed")
            report(error, "Failed to start the runtime: ")
            await self._tidy(_family())
            return 1
        early, self._early = self._early or [], None
        for data in early:
            self._received(data)
        if not self._outbox.full:
            self._inbox.open()
        return await self._leave(await self._end)

    async def _start(self) -> None:
        gate = Gate()
        gate.enter()
        try:
            value = await settle(self._runtime.start(self._ctx))
        except EXITS as left:  # a start that ends with 0 is taken for one that went well
            raise as_error(left) from left
        if value is not None:
            from posemesh.golem.text import compact

            said = compact(value).encode()
            self._outbox.write(
                wire.frame(wire.Response(True, 0, wire.ProcessStatus(self._commands.take_pid(), True, 0, said)))
            )
        self._move("StartEnded")
        gate.open()

    def _move(self, event: str) -> None:
        self._state = SERVED[self._state, event]

    def _idle(self) -> None:
        """Called when a command or its request has ended."""
        if not self._commands.running:
            self._move("CommandsEnded")

    # --- Requests -----------------------------------------------------------------------------------------------

    def _received(self, data: bytes) -> None:
        if self._early is not None:
            self._received_early(self._early, data)
            return
        if not data:
            self._input_over.set()
            if self._frames.waiting and not self._end.done():
                self._garbage(f"the input ended within a request, after {self._frames.waiting} bytes of it")
            self.end(End.INPUT)
        if self._end.done():
            return
        self._outbox.hold()
        try:
            for payload in self._frames.feed(data):
                self._request(wire.decode_request(payload))
        except wire.GolemWireError as error:
            self._garbage(str(error))
        self._outbox.flush()
        if self._outbox.full:
            self._inbox.close()

    def _received_early(self, early: list[bytes], data: bytes) -> None:
        """Requests wait until the start is over; their end does not."""
        early.append(data)
        if not data:
            self._input_over.set()
            asyncio.get_running_loop().call_later(START_SECS, self.end, End.INPUT)
        elif sum(map(len, early)) >= EARLY_MAX:
            self._inbox.close()

    def _garbage(self, what: str) -> None:
        report(HandlerError(f"Undecodable input: {what}"))
        self.end(End.GARBAGE)

    def _request(self, request: wire.Request) -> None:
        command = request.command
        if isinstance(command, wire.Hello):
            self._move("HelloAsked")
            self._outbox.write(wire.frame(wire.Response(False, request.id, self._hello)))
        elif command is None:
            self._refuse(request.id, HandlerError("unknown command", wire.ErrorCode.INTERNAL))
        elif isinstance(command, wire.Shutdown):
            before = {*self._requests, *({self._shutdown} if self._shutdown else ())}
            self._shutdown = asyncio.create_task(self._answer_shutdown(request.id, before))
        else:
            task = asyncio.create_task(self._answer(request.id, command, self._shutdown))
            self._requests.add(task)
            task.add_done_callback(self._requests.discard)

    async def _answer(self, id: int, command: wire.Command, shutdown: asyncio.Task[None] | None) -> None:
        if shutdown is not None and not shutdown.done():
            await asyncio.wait((shutdown,))
        gate = Gate()
        gate.enter()
        try:
            frame = wire.frame(wire.Response(False, id, await self._handle(command)))
        except asyncio.CancelledError:
            gate.drop()
            self._refuse(id, HandlerError("The runtime stops"))
        except (Exception, *EXITS) as error:  # no handler ends the others
            gate.drop()
            self._refuse(id, error)
            self._idle()
        else:
            self._outbox.write(frame)
            gate.open()

    async def _handle(self, command: wire.Command) -> wire.Reply:
        if isinstance(command, wire.RunProcess):
            self._move("CommandAsked")
            pid = await settle(self._runtime.run_command(command, RuntimeMode.SERVER, self._ctx))
            if not isinstance(pid, int) or isinstance(pid, bool):
                raise TypeError(
                    f"run_command returns the number of a command, as ctx.command gives it; got {pid!r:.100}"
                )
            return wire.RunReply(pid)
        if isinstance(command, wire.KillProcess):
            self._move("KillAsked")
            await settle(self._runtime.kill_command(command, self._ctx))
            return wire.KillReply()
        assert isinstance(command, wire.CreateNetwork)
        self._move("NetworkAsked")
        endpoint = await settle(self._runtime.join_network(command, self._ctx))
        return wire.NetworkReply(endpoint)

    def _refuse(self, id: int, error: BaseException) -> None:
        if not isinstance(error, PosemeshError | OSError):
            report(error)
        known = as_error(error)
        try:
            frame = wire.frame(wire.Response(False, id, wire.Error(known.code, known.message, known.context)))
        except wire.GolemWireError:  # its code, its message or its context cannot travel
            frame = wire.frame(wire.Response(False, id, wire.Error(1, ascii(known.message))))
        self._outbox.write(frame)

    async def _answer_shutdown(self, id: int, before: set[asyncio.Task[None]]) -> None:
        await self._finish_requests(before)
        self._move("ShutdownAsked")
        family = _family()
        error = await self._stop(SHUTDOWN_SECS)
        await self._tidy(family)
        if error is None:
            self._outbox.write(wire.frame(wire.Response(False, id, wire.ShutdownReply())))
        else:
            self._refuse(id, error)

    # --- The end ------------------------------------------------------------------------------------------------

    def _asked(self) -> None:
        self.end(End.ASKED)

    def _unheard(self, error: OSError) -> None:
        report(error, "Writing to stdout: ")
        self.end(End.UNHEARD)

    async def _leave(self, why: End) -> int:
        code = why.value[1]
        self._leaving(code)
        if why in (End.INPUT, End.ASKED):
            await self._grace()
        family = _family()
        if self._shutdown is not None:
            await finish({self._shutdown}, STOP_SECS)
        late = self._state == "stopping"
        self._move("InputEnded")
        error = await self._stop(STOP_SECS) if self._state == "stopping" and not late else None
        if error is not None:
            report(error, "Failed to stop the runtime: ")
            code = 1
        await self._finish_requests(self._requests, 0)
        await self._tidy(family)
        await self._outbox.drained(FLUSH_SECS)
        if not self._input_over.is_set():
            self._inbox.open()
            await finish({asyncio.ensure_future(self._input_over.wait())}, LINGER_SECS)
        self._inbox.close()
        return code

    async def _grace(self) -> None:
        """For commands and requests that end soon."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + GRACE_SECS
        while (tasks := self._requests | self._commands.running) and loop.time() < deadline:
            await finish(tasks, deadline - loop.time())

    async def _stop(self, seconds: float) -> BaseException | None:
        """What went wrong."""
        error = await self._try_to_stop(seconds)
        self._move("ShutdownEnded" if error is None else "ShutdownFailed")
        return error

    async def _try_to_stop(self, seconds: float) -> BaseException | None:
        stopping = asyncio.ensure_future(self._call_stop())
        await finish({stopping}, seconds)
        if not stopping.done():
            stopping.cancel()
            return HandlerError(f"stop took longer than {seconds:g} s")
        if stopping.cancelled():
            return HandlerError("stop was cancelled")
        return stopping.exception()

    async def _call_stop(self) -> None:
        try:
            await settle(self._runtime.stop(self._ctx))
        except EXITS as left:
            raise as_error(left) from left

    async def _finish_requests(self, requests: set[asyncio.Task[None]], seconds: float = GRACE_SECS) -> None:
        """Let them be answered; what is not in time is cancelled."""
        await finish(set(requests), seconds)
        late = {task for task in requests if not task.done()}
        for task in late:
            task.cancel()
        await finish(late, CANCEL_SECS)

    async def _tidy(self, family: Family) -> None:
        """No command is left, and no child."""
        from posemesh.golem.children import end_all

        await self._commands.end(CANCEL_SECS)
        await end_all(family, KILL_SECS)


def _family() -> Family:
    """What this process has started."""
    from posemesh.golem.children import Family  # a start does not wait for it

    return Family()


def serve(setup: Setup, signals: Sequence[signal.Signals]) -> int:
    """Serve on the standard streams until the end; the exit code. ``signals`` are an end."""

    def limit(code: int) -> None:
        """Nothing keeps the program from its end for longer, not a thread nor a handler that does not listen."""

        def too_late(*_: object) -> NoReturn:
            from posemesh.golem.children import kill_all

            kill_all()
            os._exit(code)

        signal.signal(signal.SIGALRM, too_late)
        if not signal.getitimer(signal.ITIMER_REAL)[0]:
            signal.setitimer(signal.ITIMER_REAL, LEAVE_SECS)

    async def until_the_end() -> int:
        server = Server(setup, stdin, stdout, limit)
        loop = asyncio.get_running_loop()

        def leave(*_: object) -> None:
            limit(1)  # where a handler does not let it begin to leave, no 0 says that all went well
            loop.call_soon_threadsafe(server.end, End.SIGNAL)

        for number in signals:
            signal.signal(number, leave)
        return await server.run()

    try:
        stdin, stdout = claim_stdin(), claim_stdout()
        return asyncio.run(until_the_end())
    except OSError as error:
        report(error)
        return 1
