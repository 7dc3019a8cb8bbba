"""Plain user code in a child: the main thread runs it, and waits for the node itself."""

from __future__ import annotations

import signal
import threading
from asyncio import CancelledError
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from posemesh.runners.blocking import BlockingTask
from posemesh.runners.executors.frames import (
    Answer,
    Asking,
    Check,
    Done,
    FromNode,
    Piece,
    Refuse,
    Run,
    SetUp,
    Wanted,
    WhereWorkspace,
    asked,
    lease_of,
    said_by,
)
from posemesh.runners.executors.link import Link, Spool, done, failed, is_large, told_to_stop
from posemesh.runners.kinds import BlockingRunner
from posemesh.runners.port import LogEvent, Progress, Question

__all__ = ("BlockingPlace",)

T = TypeVar("T")


class BlockingPlace:
    """Where ``runner`` runs. Other threads of user code may ask the node as well: whichever waits reads for all."""

    def __init__(self, link: Link, runner: BlockingRunner) -> None:
        self.cancelled = False
        self._link = link
        self._runner = runner
        self._lock = threading.RLock()
        self._news = threading.Condition(self._lock)
        self._reading = False
        self._gone = False
        self._orders: deque[Run | Check] = deque()
        self._answers: dict[int, Answer | Refuse] = {}
        self._is_set_up = False
        self._may_raise = False
        """Whether a stop is raised where the main thread is."""

    def serve(self, first: list[FromNode]) -> None:
        """Carry out what the node wants, ``first`` what it wanted so far, until it is gone or told this child to
        stop.
        """
        signal.signal(signal.SIGTERM, self._stop)
        self._take(first)
        try:
            while (order := self._next_order()) is not None:
                ended = self._carried_out(order)
                ended.leaving = ended.leaving or self.cancelled
                self._link.finish(ended)
                if ended.leaving:
                    break
        finally:
            self._runner.teardown()

    def _next_order(self) -> Run | Check | None:
        try:
            self._interruptible(lambda: self._read_until(lambda: bool(self._orders) or self._gone))
        except CancelledError:
            return None
        return None if self._gone else self._orders.popleft()

    def _carried_out(self, order: Run | Check) -> Done:
        in_setup = True

        def work() -> None:
            nonlocal in_setup
            if isinstance(order, Check):
                self._runner.check()
                return
            if not self._is_set_up:
                self._set_up(order)
            in_setup = False
            port = _Port(self, order.run)
            self._runner.run(BlockingTask(lease_of(order), port, port.workspace))

        try:
            self._interruptible(work)
        except BaseException as error:
            return failed(order.run, error, in_setup=in_setup)
        return done(order.run)

    def _set_up(self, order: Run) -> None:
        self._runner.setup()
        mark = SetUp(order.run, self.number())
        self.ask(mark, mark)
        self._is_set_up = True

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.cancelled = True
        if self._may_raise:
            self._may_raise = False  # once: what tidies up is left alone
            raise told_to_stop()

    def _interruptible(self, work: Callable[[], None]) -> None:
        """A stop that comes meanwhile, or came before, is raised."""
        try:
            self._may_raise = True
            if self.cancelled:
                raise told_to_stop()
            work()
        finally:
            self._may_raise = False

    def _unbroken(self, work: Callable[[], T]) -> T:
        """A stop that comes meanwhile is raised after it, not in the middle of a message: the node ends each wait when
        it tells the task to stop.
        """
        if threading.current_thread() is not threading.main_thread():
            return work()
        may_raise, self._may_raise = self._may_raise, False
        try:
            return work()
        finally:
            self._may_raise = may_raise
            if may_raise and self.cancelled:
                self._may_raise = False
                raise told_to_stop()

    def _read_until(self, condition: Callable[[], bool]) -> None:
        """Wait for what the node sends, or for the thread that reads it."""
        with self._lock:
            while not condition():
                if self._reading:
                    self._news.wait()
                    continue
                self._reading = True
                self._lock.release()
                try:
                    frames = self._link.read()
                finally:
                    self._lock.acquire()
                    self._reading = False
                    self._news.notify_all()
                self._take(frames)

    def _take(self, frames: list[FromNode] | None) -> None:
        if frames is None:
            self._gone = self.cancelled = True
            return
        for frame in frames:
            match frame:
                case Run() | Check():
                    self._orders.append(frame)
                case Piece():
                    self._link.keep(frame)
                case Answer() | Refuse():
                    self._answers[frame.number] = frame

    def post(self, run: int, message: Progress | LogEvent) -> None:
        self._unbroken(partial(self._link.send, said_by(run, message)))

    def ask(self, frame: Asking, question: Wanted) -> Any:
        """Its answer."""
        return self._unbroken(partial(self._exchange, frame, question))

    def number(self) -> int:
        return self._link.number()

    def _exchange(self, frame: Asking, question: Wanted) -> Any:
        self._link.send(frame)
        self._read_until(lambda: frame.number in self._answers or self._gone)
        if self._gone:
            raise told_to_stop()
        return self._link.answer(question, self._answers.pop(frame.number))


class _Port:
    """The port of one task."""

    def __init__(self, place: BlockingPlace, run: int) -> None:
        self._place = place
        self._run = run
        self._workspace: Path | None = None

    @property
    def cancelled(self) -> bool:
        return self._place.cancelled

    def post(self, message: Progress | LogEvent) -> None:
        self._place.post(self._run, message)

    def call(self, message: Question) -> Any:
        number = self._place.number()
        if not is_large(message):
            return self._place.ask(asked(self._run, number, message), message)
        with Spool(message, self.workspace() / f".posemesh-put-{number}") as spool:
            spool.write()
            return self._place.ask(asked(self._run, number, spool.question), spool.question)

    def workspace(self) -> Path:
        if self._workspace is None:
            question = WhereWorkspace(self._run, self._place.number())
            self._workspace = self._place.ask(question, question)
        assert self._workspace is not None
        return self._workspace
