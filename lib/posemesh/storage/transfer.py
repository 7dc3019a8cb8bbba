"""What moves: the content of an upload, read as it is sent, and how far each transfer is."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TypeAlias

from posemesh.errors import TaskStopped, UploadFailed

__all__ = ("BytesContent", "Content", "FileContent", "Meter", "Outgoing", "Report")

PIECE_BYTES = 256 * 1024
REPORT_EVERY_SECS = 1.0

Report: TypeAlias = Callable[[str, str, int, int | None], None]
"""Takes a transfer's name, ``in`` or ``out``, the bytes done, and all its bytes where they are known."""


class Content(Protocol):
    """Bytes whose number is known, and which can be read more than once."""

    size: int

    def read(self, at: int, count: int) -> bytes | memoryview:
        """Up to ``count`` bytes, none only where there are none. Raises UploadFailed."""
        ...


class BytesContent:
    """In memory."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self.size = len(data)

    def read(self, at: int, count: int) -> memoryview:
        return self._data[at : at + count]


class FileContent:
    """A file, open for as long as the block of its context. Raises UploadFailed for what is no plain file."""

    def __init__(self, path: Path, what: str) -> None:
        self._what = what
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise UploadFailed(f"{what}: {path}: {error.strerror or error}") from error
        found = os.fstat(self._file)
        if not stat.S_ISREG(found.st_mode):
            os.close(self._file)
            raise UploadFailed(f"{what}: expected a plain file at {path}")
        self.size = found.st_size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Read no more. Again: nothing."""
        file, self._file = self._file, -1  # a number that nothing is opened under later
        if file >= 0:
            os.close(file)

    def read(self, at: int, count: int) -> bytes:
        try:
            return os.pread(self._file, count, at)
        except OSError as error:
            raise UploadFailed(f"{self._what}: the file cannot be read: {error.strerror or error}") from error


class Meter:
    """How far one transfer is, told once a second at most, and at its end."""

    def __init__(self, report: Report, name: str, way: str, total: int | None = None) -> None:
        self._report = report
        self._name = name
        self._way = way
        self._told = asyncio.get_running_loop().time()
        self.total = total
        self.done = 0

    def moved(self, count: int) -> None:
        """``count`` more bytes, fewer where an attempt begins anew."""
        self.done += count
        now = asyncio.get_running_loop().time()
        if now - self._told >= REPORT_EVERY_SECS:
            self._tell(now)

    def restart(self) -> None:
        """It begins anew, in another form."""
        self.done = 0

    def end(self) -> None:
        """All is done."""
        self.total = self.done
        self._tell(asyncio.get_running_loop().time())

    def _tell(self, now: float) -> None:
        self._told = now
        self._report(self._name, self._way, self.done, self.total)


class Outgoing:
    """The body of one request: a range of some content between a head and a tail. Each attempt reads it anew."""

    def __init__(
        self,
        content: Content,
        meter: Meter | None = None,
        *,
        at: int = 0,
        count: int | None = None,
        head: bytes = b"",
        tail: bytes = b"",
    ) -> None:
        self._content = content
        self._meter = meter
        self._at = at
        self._count = content.size - at if count is None else count
        self._head = head
        self._tail = tail
        self._moved = 0
        self.size = len(head) + self._count + len(tail)
        #: What went wrong at this end, where an attempt failed for that.
        self.failure: UploadFailed | TaskStopped | None = None

    async def pieces(self, check: Callable[[], None]) -> AsyncIterator[bytes | memoryview]:
        """The body. ``check`` is called before each piece and may raise TaskStopped."""
        if self._meter is not None:
            self._meter.moved(-self._moved)
        self._moved = 0
        if self._head:
            yield self._head
        try:
            while self._moved < self._count:
                await asyncio.sleep(0)  # the socket may take some MB at once, and each piece is a wait for the disk
                check()
                piece = self._content.read(self._at + self._moved, min(PIECE_BYTES, self._count - self._moved))
                if not piece:
                    raise UploadFailed("the file became shorter while it was uploaded")
                yield piece
                self._moved += len(piece)
                if self._meter is not None:
                    self._meter.moved(len(piece))
        except (UploadFailed, TaskStopped) as error:
            self.failure = error
            raise
        if self._tail:
            yield self._tail
