#!/usr/bin/env python3
"""A Golem runtime that runs programs of this machine: each RUN is a child process.

    python process_runtime.py --workdir W deploy
    python process_runtime.py --workdir W start
    python process_runtime.py --workdir W run -- /bin/ls -l

It is no sandbox: what it runs may do all that its user may. Offer it only to requestors that you trust.

* Volumes are folders of the work directory, `input`, `output` and `work`, which a requestor knows as `/golem/input` and
  so on. Such paths in the program, its arguments and its work directory become those of the folders, also in a script.
* A program's current directory is `work_dir`, or else the runtime's work directory. Its standard input is empty.
* Output is sent as it comes. Where the request asks for the end of a stream only, that is sent when the program is
  over, and where it asks for none of it, none is.
* The exit code is the program's; 128 and the signal's number if a signal ended it.
* A program is over when its process is. What that left behind runs on, unheard, until the runtime stops: at its
  shutdown, on SIGTERM or at the end of its input all get a SIGTERM, and soon a SIGKILL. On Linux that reaches whatever
  they have started; elsewhere only the programs themselves. Where the runtime itself is killed, Linux kills its
  programs, and nothing kills what they have started.
* All stay in the runtime's process group, as that is what a provider measures and bills.
* The counters are `process.cpu_sec`, processor time of all programs so far, and on Linux `process.memory_gib`, the most
  that they had in memory at a time, as far as it was seen.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

from posemesh import golem

Send = Callable[[bytes], Awaitable[None]]

READ_BYTES = 48 * 1024
DRAIN_READS_MAX = 64
"""A pipe holds less than so many reads: what is still in it when the program is over is read, and no more."""
GRACE_SECS = 0.5
"""From SIGTERM to SIGKILL. A provider that goes itself kills its runtime after a second."""
KILL_SECS = 1.0
"""What a SIGKILL has not ended by then is left: it waits for a disk, or runs as somebody else."""
TELL_SECS = 0.3
"""For what is left to tell of those that have ended."""
LOOK_SECS = 0.05
COUNT_SECS = 1.0
GIB = 1 << 30
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


class Process(NamedTuple):
    """``cpu_sec`` includes what it started and waited for."""

    parent: int
    cpu_sec: float
    memory_bytes: int


class Program:
    """A process, and its exit code to come, below 0 for a signal."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def is_over(self, code: int) -> None:
        self.process.returncode = code
        self.ended.set_result(code)

    def kill(self, number: int) -> None:
        """Send a signal. Raises OSError where that does not work."""
        if self.ended.done():
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        os.kill(self.process.pid, number)


class Programs:
    """Children of this process, and what they have started."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._adopts = False
        self._running: dict[int, Program] = {}
        self._cpu: dict[int, float] = {}
        """Of those that were alive when they were last looked at."""
        self._looked = 0.0
        self.memory_peak = 0
        self._libc: Any = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
        self._files = resource.getrlimit(resource.RLIMIT_NOFILE)

    def _adopt(self) -> None:
        """Hear of ends from now on, and be the parent of what loses its own."""
        self._adopts = True
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._reap)
        if self._libc is not None:
            self._libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        with suppress(OSError, ValueError):  # two pipes for each program
            resource.setrlimit(resource.RLIMIT_NOFILE, (self._files[1], self._files[1]))

    def start(self, program: str, argv: list[str], cwd: Path) -> Program:
        """Raises OSError where it cannot be started."""
        if not self._adopts:
            self._adopt()
        process = subprocess.Popen(
            argv,
            executable=program,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            preexec_fn=self._prepare,
        )
        started = self._running[process.pid] = Program(process)
        return started

    def _prepare(self) -> None:
        """In the child, before it becomes the program."""
        signal.set_wakeup_fd(-1)
        resource.setrlimit(resource.RLIMIT_NOFILE, self._files)
        if self._libc is not None:
            self._libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
            if os.getppid() != self._pid:
                os._exit(127)

    def _reap(self) -> None:
        while True:
            try:
                pid, status, used = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._cpu.pop(pid, None)
            # Until it was the program it was a copy of this process.
            if self._libc is not None and used.ru_maxrss > own_peak_kib():
                self.memory_peak = max(self.memory_peak, used.ru_maxrss * 1024)
            program = self._running.pop(pid, None)
            if program is not None:
                program.is_over(os.waitstatus_to_exitcode(status))

    def cpu_sec(self) -> float:
        """Of all programs so far, and what they have started."""
        if time.monotonic() >= self._looked + LOOK_SECS:
            living = descendants()
            self.memory_peak = max(self.memory_peak, sum(each.memory_bytes for each in living.values()))
            self._cpu = {pid: each.cpu_sec for pid, each in living.items()}
            self._looked = time.monotonic()
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        return ended.ru_utime + ended.ru_stime + sum(self._cpu.values())

    async def end(self) -> None:
        """Until there are none."""
        told: set[int] = set()
        for number, seconds in ((signal.SIGTERM, GRACE_SECS), (signal.SIGKILL, KILL_SECS)):
            deadline = time.monotonic() + seconds
            while (living := {*descendants(), *self._running}) and time.monotonic() < deadline:
                for pid in living - told if number == signal.SIGTERM else living:
                    told.add(pid)
                    with suppress(ProcessLookupError, PermissionError):
                        os.kill(pid, number)
                await asyncio.sleep(LOOK_SECS / 5)


def descendants() -> dict[int, Process]:
    """All that runs below this process, by number (proc(5)); nothing elsewhere than on Linux."""
    seen: dict[int, Process] = {}
    for name in filter(str.isdigit, os.listdir("/proc") if os.path.exists("/proc") else ()):
        with suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:  # it may have ended meanwhile
            words = file.read().rpartition(b")")[2].split()
            if words[0] not in b"ZX":
                cpu_sec = sum(map(int, words[11:15])) / TICKS
                seen[int(name)] = Process(int(words[1]), cpu_sec, int(words[21]) * PAGE_BYTES)
    below: dict[int, list[int]] = {}
    for pid, process in seen.items():
        below.setdefault(process.parent, []).append(pid)
    found: dict[int, Process] = {}
    todo = [os.getpid()]
    while todo:
        children = [pid for pid in below.get(todo.pop(), ()) if pid not in found]
        found |= {pid: seen[pid] for pid in children}
        todo += children
    return found


def own_peak_kib() -> int:
    """The most memory that this process had. What getrusage says may be that of the program which started it."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next((int(line.split()[1]) for line in file if line.startswith("VmHWM")), sys.maxsize)


async def forward(pipe: IO[bytes], send: Send, ended: asyncio.Future[int]) -> None:
    """``send`` what comes until the pipe's end or the program's. Where others still write then, let them."""
    os.set_blocking(pipe.fileno(), False)
    reads = 0
    while reads < DRAIN_READS_MAX:
        over = ended.done()
        data = pipe.read(READ_BYTES)
        if data:
            reads += over
            await send(data)
        elif data is not None:
            pipe.close()
            return
        elif over:
            break
        else:
            await readable(pipe, ended)
    asyncio.get_running_loop().add_reader(pipe, drop, pipe)


async def readable(pipe: IO[bytes], ended: asyncio.Future[int]) -> None:
    """Wait for something in the pipe, for its end, or the program's."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(pipe, ready.cancel)
    try:
        await asyncio.wait((ready, ended), return_when=asyncio.FIRST_COMPLETED)
    finally:
        loop.remove_reader(pipe)


def drop(pipe: IO[bytes]) -> None:
    """Read what nobody wants, so that who writes it goes on."""
    if pipe.read(READ_BYTES) == b"":
        asyncio.get_running_loop().remove_reader(pipe)
        pipe.close()


class Tail:
    """Keeps the last ``size`` bytes that are sent to it."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept = bytearray()

    async def take(self, data: bytes) -> None:
        self._kept += data
        del self._kept[: max(0, len(self._kept) - self._size)]

    async def send(self, to: Send) -> None:
        for at in range(0, len(self._kept), READ_BYTES):
            await to(bytes(self._kept[at : at + READ_BYTES]))


@dataclass
class Config:
    """``volumes`` are folders of the work directory by the paths under which requestors know them."""

    volumes: dict[str, str] = field(
        default_factory=lambda: {f"/golem/{name}": name for name in ("input", "output", "work")}
    )


class ProcessRuntime(golem.Runtime):
    NAME = "process-runtime"
    VERSION = "0.1.0"
    CONFIG = Config()

    def __init__(self) -> None:
        self._programs = Programs()
        self._commands: dict[int, Program] = {}
        self._counted = 0.0
        self._followed: set[asyncio.Task[Any]] = set()

    async def deploy(self, ctx: golem.Context[Config]) -> golem.Deployed:
        for name in ctx.conf.volumes.values():
            (workdir(ctx) / name).mkdir(parents=True, exist_ok=True)
        return golem.Deployed(vols=[golem.Volume(name, path) for path, name in ctx.conf.volumes.items()])

    async def run_command(self, command: golem.RunProcess, mode: golem.RuntimeMode, ctx: golem.Context[Config]) -> int:
        local = translator(ctx)
        program, args = local(command.bin), [local(each) for each in command.args]
        served = mode is golem.RuntimeMode.SERVER
        argv = args if served and args else [program, *args]
        started = self._programs.start(program, argv, Path(local(command.work_dir) or workdir(ctx)))
        captures = (command.stdout, command.stderr) if served else (None, None)
        pid = ctx.command(lambda run: self._follow(run, started, captures, served))
        self._commands[pid] = started
        started.ended.add_done_callback(lambda _: self._commands.pop(pid))
        return pid

    async def kill_command(self, kill: golem.KillProcess, ctx: golem.Context[Config]) -> None:
        if kill.pid not in self._commands:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        self._commands[kill.pid].kill(kill.signal)

    async def stop(self, ctx: golem.Context[Config]) -> None:
        await self._programs.end()
        if self._followed:
            await asyncio.wait(self._followed, timeout=TELL_SECS)

    async def _follow(
        self,
        run: golem.RunContext,
        program: Program,
        captures: tuple[golem.Output | None, golem.Output | None],
        served: bool,
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._followed.add(task)
        task.add_done_callback(self._followed.discard)
        process, ended = program.process, program.ended
        assert process.stdout is not None and process.stderr is not None
        tails = [None if output is None else Tail(output.at_end or 0) for output in captures]
        async with asyncio.TaskGroup() as group:
            streams = zip(tails, (process.stdout, process.stderr), (run.stdout, run.stderr), strict=True)
            for tail, pipe, send in streams:
                group.create_task(forward(pipe, tail.take if tail else send, ended))
            group.create_task(self._count(run, ended))
        for tail, send in zip(tails, (run.stdout, run.stderr), strict=True):
            if tail is not None:
                await tail.send(send)
        if not served:
            await self._programs.end()
        code = ended.result()
        raise golem.CommandExit(code if code >= 0 else 128 - code)

    async def _count(self, run: golem.RunContext, ended: asyncio.Future[int]) -> None:
        """Tell of the counters, which are those of all programs, now and then and when this one is over."""
        while not ended.done():
            await asyncio.wait((ended,), timeout=COUNT_SECS)
            now = time.monotonic()
            if ended.done() or now >= self._counted + COUNT_SECS:
                self._counted = now
                cpu_sec = self._programs.cpu_sec()
                await run.counter("process.cpu_sec", cpu_sec)
                await run.counter("process.memory_gib", self._programs.memory_peak / GIB)


def workdir(ctx: golem.Context[Config]) -> Path:
    return Path(ctx.cli.workdir or ".").absolute()


def translator(ctx: golem.Context[Config]) -> Callable[[str], str]:
    """Makes paths of volumes those of their folders, wherever they stand in a text as a path of their own."""
    folders = {path.rstrip("/"): str(workdir(ctx) / name) for path, name in ctx.conf.volumes.items()}
    if not folders:
        return lambda text: text
    inner_first = sorted(folders, key=len, reverse=True)
    known = re.compile(rf"(?<![\w./-])(?:{'|'.join(map(re.escape, inner_first))})(?![\w.-])")
    return lambda text: known.sub(lambda found: folders[found[0]], text)


if __name__ == "__main__":
    golem.run(ProcessRuntime)
