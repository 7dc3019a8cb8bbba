"""The durable store: SQLite in a directory, for the nodes of one loop.

All commits that wait are served by one transaction: while the disk does one, the next ones gather. The loop never waits
for the disk, nor for another program that holds the file; that is done where the injected offload puts it.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum, auto
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Self, TypeAlias, TypeVar

from posemesh.control import tables
from posemesh.control.database import Connect, Database, Results
from posemesh.control.store import (
    Commit,
    InputRow,
    LedgerBusy,
    LedgerClosed,
    LedgerFailed,
    OutboxRow,
    ReceiptRow,
    RuntimeRow,
    Snapshot,
)
from posemesh.shell.offload import Offload

__all__ = ("GROUP_CHARS", "GROUP_MAX", "LINGER_SECS", "SqliteStore")

T = TypeVar("T")
Waiting: TypeAlias = tuple[Commit, asyncio.Future[None]]
Job: TypeAlias = tuple[Sequence[Waiting], Callable[[], Results]]

GROUP_MAX = 64
"""Commits that one transaction takes at most, so that a flood holds up neither the loop nor the first of it."""
GROUP_CHARS = 1024 * 1024
"""No more are taken in once their rows' bodies are as long: long ones take their time, and it is the loop's."""
LINGER_SECS = 0.05
"""How long a thread that has nothing to write waits for more."""


class _Thread(Enum):
    """Where the thread is that ends transactions."""

    ABSENT = auto()
    STARTING = auto()
    THERE = auto()


class SqliteStore:
    """The :class:`Store` of a directory. All nodes of a process that keep their state there share one; a second one is
    refused.
    """

    def __init__(self, database: Database, offload: Offload) -> None:
        self._database = database
        self._offload = offload
        self._waiting: list[Waiting] = []
        self._served: asyncio.Future[None] | None = None
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._thread: asyncio.Future[None] | None = None
        self._thread_is = _Thread.ABSENT
        self._turn = threading.Lock()
        self._writing = threading.Lock()
        self._reading = threading.Lock()
        self._closing: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, directory: Path, offload: Offload, *, connect: Connect = sqlite3.connect) -> Self:
        """Open the ledger of ``directory``, or begin one. Raises LedgerBusy, LedgerCorrupt, LedgerTooNew, LedgerUnfit,
        LedgerFull, LedgerFailed.
        """
        opening = asyncio.ensure_future(offload.call(Database.open, directory, connect))
        try:
            return cls(await asyncio.shield(opening), offload)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_unused)
            raise

    def __repr__(self) -> str:
        return f"<SqliteStore {str(self._database.path)!r}, {len(self._waiting)} waiting>"

    async def commit(self, commit: Commit) -> None:
        self._expect_open()
        loop = asyncio.get_running_loop()
        if self._served is not None and self._served.get_loop() is not loop:
            raise LedgerClosed(f"{self._database.path}: the loop that used the ledger has ended; open it anew")
        done: asyncio.Future[None] = loop.create_future()
        self._waiting.append((commit, done))
        if self._served is None:
            self._served = loop.create_future()
            loop.call_soon(self._begin)  # not at once: what comes in this turn of the loop goes with it
        await done

    def _begin(self) -> None:
        """Put what waits into one transaction, which the thread then ends. The statements are made here: a thread would
        give the interpreter up and take it back at each of them.
        """
        group = self._next_group()
        commits = [commit for commit, _ in group]
        try:
            finish = partial(self._database.finish, commits, self._database.stage(commits))
        except Exception:  # the thread has the time to try again, and says what it is
            finish = partial(self._database.write, commits)
        self._jobs.put((group, finish))
        with self._turn:
            start = self._thread_is is _Thread.ABSENT
            if start:
                self._thread_is = _Thread.STARTING
        if start:
            loop = asyncio.get_running_loop()
            self._thread = asyncio.ensure_future(self._offload.call(self._work, loop, threading.get_ident()))
            self._thread.add_done_callback(self._thread_ended)

    def _next_group(self) -> list[Waiting]:
        number = size = 0
        while number < min(len(self._waiting), GROUP_MAX) and size < GROUP_CHARS:
            size += sum(len(row.body) for row in self._waiting[number][0].rows())
            number += 1
        group, self._waiting = self._waiting[:number], self._waiting[number:]
        return group

    def _ended(self, group: Sequence[Waiting], results: Results) -> None:
        _answer(group, results)
        if isinstance(results[0], LedgerBusy):  # whoever is behind would wait as long, and in vain as well
            _answer(self._waiting, [results[0]] * len(self._waiting))
            self._waiting = []
        if self._waiting:
            self._begin()
        elif self._served is not None:
            self._served.set_result(None)
            self._served = None

    def _thread_ended(self, thread: asyncio.Future[None]) -> None:
        """Where there was none, who waits must not wait for the next commit to try again."""
        with self._turn:
            if thread is not self._thread or self._thread_is is not _Thread.STARTING:
                return
            self._thread_is = _Thread.ABSENT
        self._database.undo()
        job = self._jobs.get()
        group = () if job is None else job[0]
        waiting, self._waiting = [*group, *self._waiting], []
        why = "it was cancelled" if thread.cancelled() else thread.exception()
        failure = LedgerFailed(f"{self._database.path}: nothing could be written: {why}")
        self._ended(waiting, [failure] * len(waiting))

    def _work(self, loop: asyncio.AbstractEventLoop, loops_thread: int) -> None:
        """End the transactions that come. On a thread of its own it stays for a while, as a new one costs as much as a
        fast disk's commit.
        """
        with self._turn:
            if self._thread_is is not _Thread.STARTING:
                return  # it came too late, and was given up
            self._thread_is = _Thread.THERE
        inline = threading.get_ident() == loops_thread
        while (job := self._next_job(0.0 if inline else LINGER_SECS)) is not None:
            group, finish = job
            with self._writing:
                results = _results(group, finish)
            if inline:
                self._ended(group, results)
                continue
            with suppress(RuntimeError):  # the loop is closed: nobody is left to hear it
                loop.call_soon_threadsafe(self._ended, group, results)

    def _next_job(self, linger: float) -> Job | None:
        """None where the thread is to leave: it is told to, or nothing comes."""
        try:
            job = self._jobs.get(timeout=linger)
        except Empty:
            job = None
        if job is None:
            with self._turn:
                if self._jobs.empty():
                    self._thread_is = _Thread.ABSENT
                    return None
            job = self._jobs.get()
        return job

    async def snapshot(self, runtime: str) -> Snapshot:
        return await self._read(lambda db: tables.snapshot(db, runtime))

    async def runtimes(self) -> tuple[RuntimeRow, ...]:
        return await self._read(lambda db: tables.rows(db, RuntimeRow, "ORDER BY runtime"))

    async def input(self, runtime: str, id: str) -> InputRow | None:
        return await self._read(lambda db: tables.read(db, InputRow, runtime, id))

    async def holder(self, runtime: str, key: str) -> InputRow | None:
        found = await self._read(lambda db: tables.rows(db, InputRow, "WHERE runtime = ? AND key = ?", runtime, key))
        return found[0] if found else None

    async def inputs(self, runtime: str, *, run: str | None = None) -> tuple[InputRow, ...]:
        where, values = ("", ()) if run is None else (" AND run = ?", (run,))
        clause = f"WHERE runtime = ?{where} ORDER BY position, id"
        return await self._read(lambda db: tables.rows(db, InputRow, clause, runtime, *values))

    async def receipt(self, runtime: str, run: str, sequence: int) -> ReceiptRow | None:
        return await self._read(lambda db: tables.read(db, ReceiptRow, runtime, run, sequence))

    async def receipts(self, runtime: str, *, run: str | None = None) -> tuple[ReceiptRow, ...]:
        where, values = ("", ()) if run is None else (" AND run = ?", (run,))
        clause = f"WHERE runtime = ?{where} ORDER BY sequence"
        return await self._read(lambda db: tables.rows(db, ReceiptRow, clause, runtime, *values))

    async def outbox(self, runtime: str) -> tuple[OutboxRow, ...]:
        clause = "WHERE runtime = ? ORDER BY sequence, id"
        return await self._read(lambda db: tables.rows(db, OutboxRow, clause, runtime))

    async def close(self) -> None:
        if self._closing is None or (self._closing.done() and _failed(self._closing)):
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        loop = asyncio.get_running_loop()
        if self._served is not None and self._served.get_loop() is loop:
            await asyncio.wait((self._served,))
        self._jobs.put(None)
        if self._thread is not None and self._thread.get_loop() is loop:
            await asyncio.wait((self._thread,))
        await self._offload.call(self._end)

    def _end(self) -> None:
        with self._writing, self._reading:
            self._database.close()

    async def _read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        self._expect_open()
        return await self._offload.call(self._ask, query)

    def _ask(self, query: Callable[[sqlite3.Connection], T]) -> T:
        with self._reading:
            return self._database.read(query)

    def _expect_open(self) -> None:
        if self._closing is not None:
            raise LedgerClosed(f"{self._database.path}: the ledger was closed")


def _failed(closing: asyncio.Task[None]) -> bool:
    return closing.cancelled() or closing.exception() is not None


def _close_unused(opening: asyncio.Future[Database]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


def _results(group: Sequence[Waiting], finish: Callable[[], Results]) -> Results:
    try:
        return finish()
    except Exception as error:
        return [error] * len(group)


def _answer(group: Sequence[Waiting], results: Results) -> None:
    for (_, done), result in zip(group, results, strict=True):
        if done.done():  # its caller no longer waits
            continue
        done.set_result(None) if result is None else done.set_exception(result)
