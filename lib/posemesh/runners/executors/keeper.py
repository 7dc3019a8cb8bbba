"""A program that keeps one other program: when that ends, or the node wants it to, or the node is gone, nothing that it
started is left.

It runs by itself, in an interpreter of its own (``python -I -S keeper.py FD``), and imports the standard library alone.
``FD`` is a stream socket whose other end is the node: one line of JSON each way for each message. On Linux whatever
loses its parent becomes the keeper's child (``PR_SET_CHILD_SUBREAPER``), also what left the process group, so killing
its children until there are none kills all. Elsewhere it reaches the program's process group only.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

__all__ = ("Keeper", "main")

LOOK_SECS = 0.02
"""A process that was killed is looked at again after this, where no signal tells of its end."""
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36  # both: linux/prctl.h


class Process(NamedTuple):
    """A line of ``/proc``. ``start``, in ticks since boot, tells a number that was given again."""

    pid: int
    parent: int
    start: int
    ended: bool


class Keeper:
    """One program and all that it started."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._buffer = b""
        self._program = 0
        self._status: int | None = None
        self._deadline: float | None = None
        self._marked: set[tuple[int, int]] = set()
        self._spared: set[int] = set()
        """What may not be signalled: it runs as somebody else."""
        self._wakes, self._wake = os.pipe()
        for end in (self._wakes, self._wake):
            os.set_blocking(end, False)
        self._watched: list[Any] = [control, self._wakes]
        self._libc: Any = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
        self._whole_tree = self._adopt()

    def run(self) -> None:
        """Start the program the node names, keep it, and report how it ended."""
        told = self._read_line()
        if told is None:
            return
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
            signal.signal(number, signal.SIG_IGN)  # what the program sends to everybody does not end its keeper
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        try:
            self._program = self._start(json.loads(told))
        except OSError as error:
            self._say(failed=[error.errno, error.strerror, error.filename])
            return
        self._say(pid=self._program)
        while self._reap() and self._status is None and not self._is_late():
            self._turn()
        self._kill_all()
        code = None if self._status is None else os.waitstatus_to_exitcode(self._status)
        ended, killed = (code, None) if code is None or code >= 0 else (None, -code)
        self._say(code=ended, signal=killed, left=sorted(self._spared))
        self._wait_until_heard()

    # --- The node ---------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Wait for the node, or for the end of a process, until the deadline."""
        left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        ready, _, _ = select.select(self._watched, [], [], left)
        self._drain()
        if self._control in ready:
            self._listen()
        elif any(each not in (self._control, self._wakes) for each in ready):
            self._deadline = 0.0  # the node's process is gone, though a copy of it holds the socket

    def _listen(self) -> None:
        while True:
            line = self._read_line()
            if line is None:
                self._deadline = 0.0
                return
            self._obey(line.split())
            if b"\n" not in self._buffer:
                return

    def _obey(self, words: list[str]) -> None:
        match words:
            case ["mark"]:
                self._marked = {(each.pid, each.start) for each in self._descendants(set())}
                self._say(done=True)
            case ["sweep"]:
                self._sweep()
                self._say(done=True)
            case ["stop", grace]:
                if self._deadline is None and float(grace) > 0:
                    self._signal_all(signal.SIGTERM)
                deadline = time.monotonic() + float(grace)
                self._deadline = deadline if self._deadline is None else min(self._deadline, deadline)

    def _is_late(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline

    def _read_line(self) -> str | None:
        """The next message; None where the node is gone."""
        while b"\n" not in self._buffer:
            try:
                data = self._control.recv(65536)
            except OSError:
                return None
            if not data:
                return None
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode("ascii")

    def _say(self, **message: object) -> None:
        try:
            self._control.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            self._deadline = 0.0  # nobody is left to hear it

    def _wait_until_heard(self) -> None:
        """Until the node hangs up. A socket that is closed with something unread in it is broken for the other end, of
        which some event loops tell nobody.
        """
        try:
            while self._control.recv(65536):
                pass
        except OSError:
            pass

    # --- The program ------------------------------------------------------------------------------------------------

    def _adopt(self) -> bool:
        """Become the parent of what loses its own. False where this system has no such thing."""
        if self._libc is None or not os.path.exists("/proc/self/stat"):
            return False
        if self._libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            return False
        try:
            self._watched.append(os.pidfd_open(os.getppid()))
        except OSError:
            pass  # an old kernel: the socket's end has to do
        return True

    def _start(self, told: dict[str, Any]) -> int:
        """Fork and exec. Raises the OSError of whatever did not work."""
        argv = [each.encode("latin-1") for each in told["argv"]]
        env = {name.encode("latin-1"): value.encode("latin-1") for name, value in told["env"].items()}
        cwd = None if told["cwd"] is None else told["cwd"].encode("latin-1")
        failed, fail = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                self._become(argv, env, cwd, told["memory"])
            except OSError as error:
                os.write(fail, json.dumps([error.errno, error.strerror, os.fsdecode(error.filename or b"")]).encode())
            except BaseException as error:
                os.write(fail, json.dumps([errno.EINVAL, repr(error), os.fsdecode(argv[0])]).encode())
            finally:
                os._exit(127)
        os.close(fail)
        with open(failed, "rb") as pipe:
            problem = pipe.read()
        if problem:
            os.waitpid(pid, 0)
            raise OSError(*json.loads(problem))
        nothing = os.open(os.devnull, os.O_RDWR)
        for each in (0, 1, 2):  # its input and its output end with the program, not with its keeper
            os.dup2(nothing, each)
        for each in told["fds"]:
            os.close(each)
        return pid

    def _become(self, argv: list[bytes], env: dict[bytes, bytes], cwd: bytes | None, memory: int | None) -> None:
        """In the forked child: what the program finds, then the program."""
        keeper = os.getppid()
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if self._libc is not None:
            self._libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
            if os.getppid() != keeper:
                os._exit(127)
        if cwd is not None:
            os.chdir(cwd)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if memory is not None:
            hard = resource.getrlimit(resource.RLIMIT_AS)[1]
            most = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
        try:
            os.execvpe(argv[0], argv, env)
        except OSError as error:
            raise OSError(error.errno, error.strerror, argv[0]) from None  # not the last place it was looked for

    # --- What it started --------------------------------------------------------------------------------------------

    def _drain(self) -> None:
        try:
            while os.read(self._wakes, 4096):
                pass
        except BlockingIOError:
            pass

    def _reap(self) -> bool:
        """Take in the ends of children. False where there are none left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self._program:
                self._status = status

    def _kill_all(self) -> None:
        """What was started by a child that is killed becomes a child: no children means that nothing is left."""
        if not self._whole_tree:
            self._send(self._program, signal.SIGKILL, os.killpg)
        while self._reap():
            children = self._children()
            for pid in children:
                self._send(pid, signal.SIGKILL)
            if children and children <= self._spared:
                return
            select.select([self._wakes], [], [], LOOK_SECS)
            self._drain()

    def _sweep(self) -> None:
        """Kill what was started since the mark, but for the program and what those of before it started."""
        if not self._whole_tree:
            return
        clean = 0
        while clean < 2 and self._reap():  # what forks and ends while it is looked for may be missed once
            strays = [each for each in self._descendants(self._marked) if (each.pid, each.start) not in self._marked]
            found = [each for each in strays if each.pid not in self._spared and not each.ended]
            clean = 0 if found else clean + 1
            for each in found:
                self._send(each.pid, signal.SIGKILL)
            if found:
                select.select([self._wakes], [], [], LOOK_SECS / 10)
                self._drain()

    def _signal_all(self, number: int) -> None:
        if not self._whole_tree:
            self._send(self._program, number, os.killpg)
            return
        for each in self._descendants(set()):
            self._send(each.pid, number)
        self._send(self._program, number)

    def _send(self, pid: int, number: int, send: Any = os.kill) -> None:
        try:
            send(pid, number)
        except ProcessLookupError:
            pass
        except PermissionError:
            self._spared.add(pid)

    def _children(self) -> set[int]:
        if not self._whole_tree:
            return {self._program}
        me = os.getpid()
        try:
            with open(f"/proc/{me}/task/{me}/children", "rb") as file:
                return {int(word) for word in file.read().split()}
        except OSError:  # a kernel without CONFIG_PROC_CHILDREN
            return {each.pid for each in processes() if each.parent == me}

    def _descendants(self, closed: set[tuple[int, int]]) -> list[Process]:
        """All but the program. What is in ``closed`` is listed, and not what it started."""
        below: dict[int, list[Process]] = {}
        for each in processes():
            below.setdefault(each.parent, []).append(each)
        found: list[Process] = []
        todo = [os.getpid()]
        while todo:
            for each in below.get(todo.pop(), ()):
                if each.pid == self._program:
                    todo.append(each.pid)
                    continue
                found.append(each)
                if (each.pid, each.start) not in closed:
                    todo.append(each.pid)
        return found


def processes() -> Iterator[Process]:
    """All that ``/proc`` shows (proc(5))."""
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                words = file.read().rpartition(b")")[2].split()
        except OSError:
            continue  # it has ended meanwhile
        if len(words) > 19:
            yield Process(int(name), int(words[1]), int(words[19]), words[0] in b"ZX")


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    Keeper(control).run()


if __name__ == "__main__":
    try:
        main()
    finally:
        os._exit(0)  # at once: nothing here needs tidying
