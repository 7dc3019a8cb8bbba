"""The two ends of a runtime's streams: what it reads, and what it writes without waiting, on a loop.

A protocol's stream is moved to a file descriptor that nobody else knows, so that neither ``print`` nor a child process
can write into it or read from it.
"""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Final

__all__ = ("Inbox", "Outbox", "claim_stdin", "claim_stdout")

READ_BYTES: Final = 64 * 1024
HIGH_BYTES: Final = 256 * 1024
"""Output waits from here on."""
LOW_BYTES: Final = 64 * 1024
"""It may go on from here on."""
PARTS_MAX: Final = 64
"""Messages that are written by one call."""


def claim_stdout() -> int:
    """A descriptor of stdout for the caller alone; what is still called stdout is stderr then. Raises OSError."""
    claimed = os.dup(1)
    try:
        os.dup2(2, 1)
    except OSError:  # there is none
        _to_nothing(1, os.O_WRONLY)
    if sys.stdout is not None and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True)
    return claimed


def claim_stdin() -> int:
    """A descriptor of stdin for the caller alone; what is still called stdin is empty from now on."""
    try:
        claimed = os.dup(0)
    except OSError:  # there is none
        claimed = os.open(os.devnull, os.O_RDONLY)
    _to_nothing(0, os.O_RDONLY)
    return claimed


def _to_nothing(fd: int, flags: int) -> None:
    nothing = os.open(os.devnull, flags)
    if nothing != fd:
        os.dup2(nothing, fd)
        os.close(nothing)


def unblocked(fd: int) -> int:
    """``fd``, or what takes its place, so that writing never waits. Whoever else has the stream is not affected, as far
    as the system lets us.
    """
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return fd
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        try:
            opened = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError:
            pass  # not Linux, another user's, or nobody reads any more
        else:
            os.close(fd)
            return opened
    os.set_blocking(fd, False)
    return fd


class Outbox:
    """Writes to ``fd`` as fast as it is read there, and keeps the rest. ``broken`` is told once that nobody reads."""

    def __init__(self, fd: int, broken: Callable[[OSError], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._fd = unblocked(fd)
        self._broken = broken
        self._parts: deque[bytes | memoryview] = deque()
        self._size = 0
        self._due = False
        """It will be flushed, by the loop or by who holds it."""
        self._watching = False
        self._closed = False
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._drained = asyncio.Event()
        self.on_room: Callable[[], None] = lambda: None

    @property
    def full(self) -> bool:
        """Whether who writes should wait for :meth:`room`."""
        return self._closed or not self._has_room.is_set()

    async def room(self) -> None:
        if self._closed:
            await asyncio.sleep(0)  # who goes on writing to nobody must not keep the loop from ending it
        while not self._has_room.is_set():
            await self._has_room.wait()

    def write(self, data: bytes) -> None:
        if self._closed:
            return
        self._parts.append(data)
        self._size += len(data)
        if self._size > HIGH_BYTES:
            self._has_room.clear()
        if not self._due:
            self._due = True
            self._loop.call_soon(self.flush)

    def hold(self) -> None:
        """Until the next :meth:`flush`, which is to come soon: all goes out together."""
        self._due = True

    def flush(self) -> None:
        self._due = True
        try:
            while self._parts:
                self._written(os.writev(self._fd, list(islice(self._parts, PARTS_MAX))))
        except BlockingIOError:
            if not self._watching:
                self._watching = True
                self._loop.add_writer(self._fd, self.flush)
            return
        except OSError as error:
            self._unwatch()
            self._fail(error)
            return
        self._unwatch()

    async def drained(self, seconds: float) -> None:
        """Until all is written, ``seconds`` at most."""
        if self._parts:
            self._drained.clear()
            await asyncio.wait((asyncio.ensure_future(self._drained.wait()),), timeout=seconds)

    def _written(self, size: int) -> None:
        self._size -= size
        while size:
            part = self._parts.popleft()
            if len(part) > size:
                self._parts.appendleft(memoryview(part)[size:])
                break
            size -= len(part)
        if self._size <= LOW_BYTES and not self._has_room.is_set():
            self._has_room.set()
            self.on_room()

    def _unwatch(self) -> None:
        self._due = False
        self._drained.set()
        if self._watching:
            self._watching = False
            self._loop.remove_writer(self._fd)

    def _fail(self, error: OSError) -> None:
        self._closed = True
        self._parts.clear()
        self._size = 0
        self._has_room.set()
        self._broken(error)


class Inbox:
    """Gives what comes from ``fd`` to ``received``, and empty bytes at its end."""

    def __init__(self, fd: int, received: Callable[[bytes], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._fd = fd
        self._received = received
        self._open = False
        self._ended = False
        self._watched = True
        """False for a file, of which loops cannot tell when it can be read: always."""

    def open(self) -> None:
        if self._open or self._ended:
            return
        self._open = True
        if self._watched:
            try:
                self._loop.add_reader(self._fd, self._read)
                return
            except PermissionError:
                self._watched = False
        self._loop.call_soon(self._read)

    def close(self) -> None:
        """Until it is opened again."""
        if self._open and self._watched:
            self._loop.remove_reader(self._fd)
        self._open = False

    def _read(self) -> None:
        if not self._open:
            return
        data: bytes | None
        try:
            data = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            data = None
        except OSError:  # such as a terminal that is gone
            data = b""
        if data == b"":
            self._ended = True
            self.close()
        elif not self._watched:
            self._loop.call_soon(self._read)
        if data is not None:
            self._received(data)
