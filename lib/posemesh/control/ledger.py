"""The durable store: SQLite in a directory, for the nodes of one loop.

All commits that wait are served by one transaction: while the disk does one, the next ones gather. Nothing blocks the
loop; the disk is waited for where the injected offload puts it.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self, TypeAlias, TypeVar

from posemesh.control import tables
from posemesh.control.database import Connect, Database
from posemesh.control.store import (
    Commit,
    InputRow,
    LedgerClosed,
    LedgerFailed,
    OutboxRow,
    ReceiptRow,
    RuntimeRow,
    Snapshot,
)
from posemesh.shell.offload import Offload

__all__ = ("GROUP_MAX", "LINGER_SECS", "SqliteStore")

T = TypeVar("T")
Waiting: TypeAlias = tuple[Commit, asyncio.Future[None]]

GROUP_MAX = 512
"""Commits that one transaction takes at most, so that the first of a flood does not wait for the last."""
LINGER_SECS = 0.05
"""How long a thread that has nothing to write waits for more."""


class SqliteStore:
    """The :class:`Store` of a directory. All nodes of a process that keep their state there share one; a second one is
    refused.
    """

    def __init__(self, database: Database, offload: Offload) -> None:
        self._database = database
        self._offload = offload
        self._waiting: list[Waiting] = []
        self._more = threading.Condition()
        self._writing = threading.Lock()
        self._serving: asyncio.Task[None] | None = None
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
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with self._more:
            self._waiting.append((commit, done))
            self._more.notify()
        if self._serving is None:
            self._serving = asyncio.ensure_future(self._serve())
        await done

    async def _serve(self) -> None:
        try:
            while self._waiting:
                await self._offload.call(self._work, asyncio.get_running_loop(), threading.get_ident())
        except Exception as error:  # no thread could be had: who waits must not wait for the next commit to try again
            with self._more:
                group, self._waiting = self._waiting, []
            failure = LedgerFailed(f"{self._database.path}: nothing could be written: {error}")
            _answer(group, [failure] * len(group))
        finally:
            self._serving = None

    def _work(self, loop: asyncio.AbstractEventLoop, loops_thread: int) -> None:
        """Serve all that waits. On a thread of its own it stays for a while, as a new one costs as much as a fast
        disk's commit.
        """
        inline = threading.get_ident() == loops_thread
        with self._writing:
            while group := self._next_group(0.0 if inline else LINGER_SECS):
                results = self._write([commit for commit, _ in group])
                if inline:
                    _answer(group, results)
                    continue
                with suppress(RuntimeError):  # the loop is closed: nobody is left to hear it
                    loop.call_soon_threadsafe(_answer, group, results)

    def _next_group(self, linger: float) -> list[Waiting]:
        """What waits, or comes within ``linger`` seconds; empty where nothing does."""
        with self._more:
            if not self._waiting and linger and self._closing is None:
                self._more.wait(linger)
            group, self._waiting = self._waiting[:GROUP_MAX], self._waiting[GROUP_MAX:]
        return group

    def _write(self, commits: list[Commit]) -> Sequence[Exception | None]:
        try:
            return self._database.write(commits)
        except Exception as error:
            return [error] * len(commits)

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
        with self._more:
            if self._closing is None:
                self._closing = asyncio.ensure_future(self._close())
            self._more.notify()
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        if self._serving is not None:
            await asyncio.wait((self._serving,))
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


def _close_unused(opening: asyncio.Future[Database]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


def _answer(group: Sequence[Waiting], results: Sequence[Exception | None]) -> None:
    for (_, done), result in zip(group, results, strict=True):
        if done.done():  # its caller no longer waits
            continue
        done.set_result(None) if result is None else done.set_exception(result)
