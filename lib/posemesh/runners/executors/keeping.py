"""Programs of which nothing is left: each has a keeper, a small process between it and the node.

Nothing that a program starts outlives it, nor outlives the node, however either ends. On Linux that holds for whatever
it starts; elsewhere for its process group. A keeper costs some 10 MB and its start about 50 ms; while its program runs
it sleeps.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from posemesh.telemetry import logger

__all__ = ("Exit", "Kept", "Output", "keep", "signal_name")

Output = Callable[[str, bytes], None]
"""Called on the loop with ``stdout`` or ``stderr`` and what came."""

READ_BYTES: Final = 64 * 1024
DRAIN_READS_MAX: Final = 64
"""A pipe holds less than so many reads; what is still in it when all have ended is read, and no more."""
PF_EXITING: Final = 0x4  # linux/sched.h
_KEEPER: Final = Path(__file__).with_name("keeper.py")
_LOADER_VARIABLES: Final = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")  # without them some interpreters do not start


class Exit(NamedTuple):
    """How a program ended: by itself with ``code``, or by the signal of that number."""

    code: int | None
    signal: int | None


async def keep(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path | None = None,
    fds: Sequence[int] = (),
    stdio: Mapping[str, int] | None = None,
    memory_bytes: int | None = None,
    output: Output,
) -> Kept:
    """Start ``argv`` with exactly ``env``; ``fds`` are open in it, under their numbers, and stay open here, as do those
    of ``stdio``, which are its ``stdin``, ``stdout`` or ``stderr``. Where that names none, it has no input, and
    ``output`` gets what it writes.

    It has a session of its own, no core dumps, and at most ``memory_bytes`` of address space. Raises OSError where it
    cannot be started; then, and when it is cancelled, nothing of it is left. On any loop, in any thread.
    """
    told = {
        "argv": [_bytes(each) for each in argv],
        "env": {_bytes(name): _bytes(value) for name, value in env.items()},
        "cwd": None if cwd is None else _bytes(str(cwd)),
        "fds": list(fds),
        "memory": memory_bytes,
    }
    kept = Kept(output, fds, stdio or {})
    try:
        await kept._begin(json.dumps(told).encode() + b"\n")
    except BaseException:
        kept._let_go()
        await kept.wait()
        raise
    return kept


class Kept:
    """A program that was started by :func:`keep`, whose loop all of this is for."""

    def __init__(self, output: Output, fds: Sequence[int], stdio: Mapping[str, int]) -> None:
        self.pid = 0
        self._loop = asyncio.get_running_loop()
        self._output = output
        self._buffer = b""
        self._exit, self._told_exit = Exit(None, None), False
        self._started: asyncio.Future[None] = self._loop.create_future()
        self._ended: asyncio.Future[Exit] = self._loop.create_future()
        self._asked: deque[asyncio.Future[None]] = deque()
        self._pipes: dict[str, int] = {}
        self._written = select.poll()
        self._children: int | None = None
        """The file that lists the keeper's."""
        self._control, theirs = socket.socketpair()
        try:
            self._keeper = self._spawn(theirs, fds, stdio)
        except BaseException:
            self._control.close()
            self._close_pipes()
            raise
        finally:
            theirs.close()
        self._control.setblocking(False)

    def __repr__(self) -> str:
        return f"<Kept {self.pid} {self._ended.result() if self._ended.done() else 'running'}>"

    @property
    def ended(self) -> bool:
        """Whether the program and all that it started are gone."""
        return self._ended.done()

    def is_over(self) -> bool:
        """Whether the program itself has ended or is about to, though not yet all that it started. Where this system
        does not tell, whether all has.
        """
        try:
            with open(f"/proc/{self.pid}/stat", "rb") as file:
                words = file.read().rpartition(b")")[2].split()
        except FileNotFoundError:
            return self.ended or os.path.exists("/proc/self/stat")
        except OSError:
            return True
        return words[0] in b"ZX" or bool(int(words[6]) & PF_EXITING)

    def is_heard(self) -> bool:
        """Whether both its stdout and its stderr are open, as far as was read."""
        return len(self._pipes) == 2

    def stop(self, grace: float) -> None:
        """SIGTERM to the program and all that it started, SIGKILL after ``grace`` seconds; the rest goes when the
        program ends. Repeated, the shorter grace counts.
        """
        self._tell(f"stop {grace}")

    async def kill(self) -> None:
        """SIGKILL to it and all that it started, and wait for their end."""
        self.stop(0)
        await self.wait()

    async def mark(self) -> None:
        """What the program has started so far is its own and is not swept."""
        await self._ask("mark")

    async def sweep(self) -> None:
        """End what was started since the mark: neither the program nor what those of before the mark started."""
        await self._ask("sweep")

    def is_alone(self) -> bool:
        """Whether no process that the program started has lost its parent. False where this system does not tell."""
        try:
            if self._children is None:
                keeper = self._keeper.pid
                self._children = os.open(f"/proc/{keeper}/task/{keeper}/children", os.O_RDONLY)
            return os.pread(self._children, 64, 0).split() == [b"%d" % self.pid]
        except OSError:
            return False

    def on_end(self, told: Callable[[], None]) -> None:
        """Call ``told`` when :meth:`wait` is over."""
        self._ended.add_done_callback(lambda _: told())

    async def wait(self) -> Exit:
        """How it ended, once all that it started is gone and its output was delivered."""
        return await asyncio.shield(self._ended)

    # --- The keeper -------------------------------------------------------------------------------------------------

    def _spawn(self, control: socket.socket, fds: Sequence[int], stdio: Mapping[str, int]) -> subprocess.Popen[bytes]:
        streams = dict(stdio)
        writers: list[int] = []
        try:
            for name in ("stdout", "stderr"):
                if name not in streams:
                    self._pipes[name], streams[name] = os.pipe()
                    writers.append(streams[name])
                    os.set_blocking(self._pipes[name], False)
            return subprocess.Popen(
                [sys.executable, "-I", "-S", str(_KEEPER), str(control.fileno())],
                stdin=streams.get("stdin", subprocess.DEVNULL),
                stdout=streams["stdout"],
                stderr=streams["stderr"],
                pass_fds=(control.fileno(), *fds),
                env={name: os.environ[name] for name in _LOADER_VARIABLES if name in os.environ},
                cwd="/",
                start_new_session=True,
            )
        finally:
            for writer in writers:
                os.close(writer)

    async def _begin(self, told: bytes) -> None:
        for name, pipe in self._pipes.items():
            self._loop.add_reader(pipe, self._read_output, name, pipe)
            self._written.register(pipe, select.POLLIN)
        with suppress(ConnectionError):  # the keeper is gone: the reader below finds that
            await self._loop.sock_sendall(self._control, told)
        self._loop.add_reader(self._control, self._read_control)
        await self._started

    async def _ask(self, line: str) -> None:
        if self._control.fileno() >= 0:
            done: asyncio.Future[None] = self._loop.create_future()
            self._asked.append(done)
            self._tell(line)
            await done

    def _tell(self, line: str) -> None:
        if self._control.fileno() >= 0:
            with suppress(OSError):  # it is on its way out
                self._control.send(f"{line}\n".encode())

    def _read_control(self) -> None:
        try:
            data = self._control.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            self._take(json.loads(line))
        if not data:
            self._let_go()

    def _take(self, message: dict[str, Any]) -> None:
        match message:
            case {"pid": int(pid)}:
                self.pid = pid
                _settle(self._started)
            case {"failed": [number, text, name]}:
                if not self._started.done():
                    self._started.set_exception(OSError(number, text, name))
            case {"done": _}:
                _settle(self._asked.popleft())
            case {"code": code, "signal": number, "left": left}:
                self._exit, self._told_exit = Exit(code, number), True
                self._let_go()
                if left:
                    logger().warning(f"processes {left} of a program run as somebody else and could not be ended")

    def _let_go(self) -> None:
        """The keeper has ended, or shall: at the end of this socket it ends whatever is left."""
        if self._control.fileno() < 0:
            return
        self._loop.remove_reader(self._control)
        self._control.close()
        if self.pid and not self._told_exit:  # the keeper itself was killed, and the program with it
            self._exit = Exit(None, signal.SIGKILL)
            with suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)
        if not self._started.done():
            self._started.set_exception(OSError("the keeper of the program ended before it had started it"))
            self._started.exception()
        threading.Thread(target=self._reap, name="posemesh-reap", daemon=True).start()

    def _reap(self) -> None:
        self._keeper.wait()
        with suppress(RuntimeError):  # the loop is closed: nobody is left to hear it
            self._loop.call_soon_threadsafe(self._finish)

    def _finish(self) -> None:
        self.drain()
        self._close_pipes()
        if self._children is not None:
            os.close(self._children)
            self._children = None
        for done in self._asked:
            _settle(done)
        self._ended.set_result(self._exit)

    # --- Output -----------------------------------------------------------------------------------------------------

    def _read_output(self, name: str, pipe: int) -> bool:
        """Whether there may be more."""
        try:
            data = os.read(pipe, READ_BYTES)
        except BlockingIOError:
            return False
        if data:
            self._output(name, data)
            return True
        if self._pipes.pop(name, None) is not None:
            self._close_pipe(pipe)
        return False

    def drain(self) -> None:
        """Take in what it has written so far."""
        if not self._written.poll(0):
            return
        for name, pipe in tuple(self._pipes.items()):
            for _ in range(DRAIN_READS_MAX):
                if not self._read_output(name, pipe):
                    break

    def _close_pipes(self) -> None:
        for pipe in self._pipes.values():
            self._close_pipe(pipe)
        self._pipes.clear()

    def _close_pipe(self, pipe: int) -> None:
        self._loop.remove_reader(pipe)
        with suppress(KeyError):
            self._written.unregister(pipe)
        os.close(pipe)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _bytes(text: str) -> str:
    """The text's bytes, one character each, as the keeper reads them whatever its locale."""
    return os.fsencode(text).decode("latin-1")


def signal_name(number: int | None) -> str:
    """As ``SIGSEGV``; of one that has no name, its number."""
    try:
        return signal.Signals(number or 0).name
    except ValueError:
        return f"signal {number}"
