"""Async user code in a child: one loop, as long as the child lasts, which reads the node's socket itself."""

from __future__ import annotations

import asyncio
import signal
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

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
from posemesh.runners.kinds import AsyncRunner
from posemesh.runners.port import LogEvent, Progress, Question
from posemesh.runners.task import PortTask

__all__ = ("AsyncPlace",)


class AsyncPlace:
    """Where ``runner`` runs."""

    def __init__(self, link: Link, runner: AsyncRunner) -> None:
        self.cancelled = False
        self._loop = asyncio.get_running_loop()
        self._link = link
        self._runner = runner
        self._asked: dict[int, tuple[Wanted, asyncio.Future[Any]]] = {}
        self._order: Run | Check | None = None
        """What is to be answered."""
        self._task: asyncio.Task[None] | None = None
        self._leaving = asyncio.Event()
        self._is_set_up = False

    async def serve(self, first: list[FromNode]) -> None:
        """Carry out what the node wants, ``first`` what it wanted so far, until it is gone or told this child to
        stop.
        """
        loop = asyncio.get_running_loop()
        signal.signal(signal.SIGTERM, lambda *_: self._soon(loop))
        loop.add_reader(self._link.connection, self._read, socket.MSG_DONTWAIT)
        self._take(first)
        try:
            with suppress(asyncio.CancelledError):  # which asyncio.run() makes of SIGINT
                await self._leaving.wait()
            self._stop()
            if self._task is not None:
                await asyncio.wait((self._task,))
            if self._order is not None:  # it was told to stop before it began
                self._answer(failed(self._order.run, told_to_stop(), in_setup=False))
        finally:
            loop.remove_reader(self._link.connection)
            await self._runner.teardown()

    def _begin(self, order: Run | Check) -> None:
        if not self.cancelled:
            self._order = order
            self._task = self._loop.create_task(self._carry_out(order))

    async def _carry_out(self, order: Run | Check) -> None:
        """In a task of its own, which answers too: whoever waited for it would cost a turn of the loop."""
        leaving = True
        try:
            ended = await self._carried_out(order)
            self._answer(ended)
            leaving = ended.leaving
        finally:
            if leaving:
                self._leaving.set()

    def _answer(self, ended: Done) -> None:
        self._order = self._task = None
        ended.leaving = ended.leaving or self.cancelled
        self._link.finish(ended)

    async def _carried_out(self, order: Run | Check) -> Done:
        in_setup = True
        try:
            if isinstance(order, Check):
                await self._runner.check()
            else:
                if not self._is_set_up:
                    await self._set_up(order)
                in_setup = False
                port = _Port(self, order.run)
                await self._runner.run(PortTask(lease_of(order), port, port.workspace))
        except BaseException as error:
            return failed(order.run, error, in_setup=in_setup)
        return done(order.run)

    async def _set_up(self, order: Run) -> None:
        await self._runner.setup()
        mark = SetUp(order.run, self.number())
        await self.ask(mark, mark)
        self._is_set_up = True

    def _soon(self, loop: asyncio.AbstractEventLoop) -> None:
        with suppress(RuntimeError):  # it is closed: the child is at its end
            loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        if not self.cancelled:
            self.cancelled = True
            self._leaving.set()
            if self._task is not None:
                self._task.cancel()

    def _read(self, flags: int) -> None:
        frames = self._link.read(flags)
        if frames is None:
            asyncio.get_running_loop().remove_reader(self._link.connection)
            self._stop()
        else:
            self._take(frames)

    def _take(self, frames: list[FromNode]) -> None:
        for frame in frames:
            match frame:
                case Run() | Check():
                    self._begin(frame)
                case Piece():
                    self._link.keep(frame)
                case Answer() | Refuse():
                    self._settle(frame)

    def _settle(self, frame: Answer | Refuse) -> None:
        question, future = self._asked.pop(frame.number)
        try:
            value = self._link.answer(question, frame)
        except (Exception, asyncio.CancelledError) as error:
            if not future.done():
                future.set_exception(error)
                future.exception()  # whoever asked may have gone on
        else:
            if not future.done():
                future.set_result(value)

    def post(self, run: int, message: Progress | LogEvent) -> None:
        self._link.send(said_by(run, message))

    def ask(self, frame: Asking, question: Wanted) -> asyncio.Future[Any]:
        """Its future answer."""
        if self.cancelled:
            raise told_to_stop()
        self._link.send(frame)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked[frame.number] = question, future
        return future

    def number(self) -> int:
        return self._link.number()

    def wait_for(self, answer: asyncio.Future[Any]) -> None:
        """Read until it is there, holding up the loop."""
        while not answer.done():
            if self.cancelled:
                raise told_to_stop()
            self._read(0)


class _Port:
    """The port of one task."""

    def __init__(self, place: AsyncPlace, run: int) -> None:
        self._place = place
        self._run = run
        self._workspace: Path | None = None

    @property
    def cancelled(self) -> bool:
        return self._place.cancelled

    def post(self, message: Progress | LogEvent) -> None:
        self._place.post(self._run, message)

    async def call(self, message: Question) -> Any:
        number = self._place.number()
        if not is_large(message):
            return await self._place.ask(asked(self._run, number, message), message)
        with Spool(message, self.workspace() / f".posemesh-put-{number}") as spool:
            await asyncio.to_thread(spool.write)
            return await self._place.ask(asked(self._run, number, spool.question), spool.question)

    def workspace(self) -> Path:
        """No coroutine, as the task has it: the loop's other work waits for the answer."""
        if self._workspace is None:
            question = WhereWorkspace(self._run, self._place.number())
            answer = self._place.ask(question, question)
            self._place.wait_for(answer)
            self._workspace = answer.result()
        assert self._workspace is not None
        return self._workspace
