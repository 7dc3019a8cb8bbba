"""What every child of the process executor has, whatever its user code is: the way to the node, and how a task ends."""

from __future__ import annotations

import asyncio
import io
import itertools
import os
import socket
import sys
import threading
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeGuard

from posemesh.errors import TaskStopped
from posemesh.outcomes import FailureCode
from posemesh.runners.ending import chain_of, ending_of, said
from posemesh.runners.executors.frames import (
    FRAME_BYTES_MAX,
    Answer,
    Done,
    Frames,
    FromChild,
    FromNode,
    Piece,
    Refuse,
    Wanted,
    encode,
    from_node,
    raised,
    value_of,
)
from posemesh.runners.port import GetBytes, PutArtifact, Question

__all__ = ("Link", "Spool", "done", "failed", "is_large", "told_to_stop")

READ_BYTES: Final = 64 * 1024
INLINE_BYTES_MAX: Final = 1024 * 1024
"""An artifact of more bytes goes through a file, so that the node need not hold it."""


class Link:
    """The socket to the node. ``send`` and ``number`` are for any thread."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._frames = Frames(None)
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._pieces: dict[int, io.BytesIO] = {}
        self._pid = os.getpid()

    def number(self) -> int:
        """The next question's."""
        return next(self._numbers)

    def send(self, frame: FromChild) -> None:
        """Raises ValueError or TypeError for what cannot be sent, OSError where the node is gone."""
        data = encode(frame)
        if len(data) > FRAME_BYTES_MAX:
            raise ValueError(f"expected at most {FRAME_BYTES_MAX} bytes at once, got {len(data)}; put more into a file")
        with self._lock:
            self.connection.sendall(data)

    def finish(self, frame: Done) -> None:
        """The task, or the check, is over. A process that user code forked and let run until here ends."""
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except Exception:
                pass  # user code may have closed it, or put something else there
        if os.getpid() != self._pid:
            os._exit(0 if frame.code is None else 1)
        try:
            self.send(frame)
        except OSError:
            pass  # the node is gone, which the next read finds

    def read(self, flags: int = 0) -> list[FromNode] | None:
        """What came; None where the node is gone."""
        try:
            data = self.connection.recv(READ_BYTES, flags)
        except BlockingIOError:
            return []
        except OSError:
            return None
        return list(map(from_node, self._frames.feed(data))) if data else None

    def keep(self, piece: Piece) -> None:
        """It belongs to an answer that follows."""
        self._pieces.setdefault(piece.number, io.BytesIO()).write(piece.data)

    def answer(self, question: Wanted, frame: Answer | Refuse) -> Any:
        """The value that ``frame`` is of. Raises what it refuses with, CancelledError where the task is to stop."""
        pieces = self._pieces.pop(frame.number, None)
        if isinstance(frame, Refuse):
            error = raised(frame)
            raise told_to_stop() if isinstance(error, TaskStopped) else error
        if isinstance(question, GetBytes):
            return b"" if pieces is None else pieces.getvalue()
        return value_of(question, frame.value)


class Spool:
    """A large artifact as a file, for as long as the node is asked to read it."""

    def __init__(self, question: PutArtifact, path: Path) -> None:
        assert isinstance(question.content, bytes)
        self._content = question.content
        self._path = path
        self.question = replace(question, content=path)

    def write(self) -> None:
        self._path.write_bytes(self._content)

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._path.unlink(missing_ok=True)


def is_large(question: Question) -> TypeGuard[PutArtifact]:
    """Whether it is a :class:`Spool`'s."""
    return (
        isinstance(question, PutArtifact)
        and not isinstance(question.content, Path)
        and len(question.content) > INLINE_BYTES_MAX
    )


def told_to_stop() -> asyncio.CancelledError:
    return asyncio.CancelledError("the task was told to stop")


def done(run: int) -> Done:
    """User code returned."""
    return Done(run, None, "", [], _is_alone(), False)


def failed(run: int, error: BaseException, *, in_setup: bool) -> Done:
    """User code raised ``error``. After what the interpreter does not get over it is not used again."""
    if isinstance(error, MemoryError):
        traceback.clear_frames(error.__traceback__)  # what they hold is needed to tell of it
    ending = ending_of(error)
    code, message = ending.code, ending.message
    if isinstance(error, SystemExit):
        number = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        last = "" if isinstance(error.code, int | None) else f": {said(error).removeprefix('SystemExit: ')}"
        before = "was set up" if in_setup else "answered"
        code = FailureCode.SETUP_FAILED if in_setup else code
        message = f"the runner's process ended with exit code {number} before it {before}{last}"
    elif in_setup and not isinstance(error, asyncio.CancelledError):
        code, message = FailureCode.SETUP_FAILED, said(error)
    leaving = in_setup or isinstance(error, MemoryError) or not isinstance(error, Exception)
    return Done(run, code, message, chain_of(error), _is_alone(), leaving)


def _is_alone() -> bool:
    """Whether this process has no children, ended ones included."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    return False
