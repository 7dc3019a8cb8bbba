"""The store in memory: for tests and simulations, and the plain statement of the rules that the durable one keeps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar, cast

from posemesh.control.store import (
    Commit,
    Conflict,
    InputRow,
    LedgerClosed,
    OutboxRow,
    ReceiptRow,
    Row,
    RuntimeRow,
    Snapshot,
    StaleRows,
    Store,
)

__all__ = ("MemoryStore",)

R = TypeVar("R", RuntimeRow, InputRow, ReceiptRow, OutboxRow)


def _key(row: Row) -> tuple[object, ...]:
    match row:
        case RuntimeRow():
            return RuntimeRow, row.runtime
        case ReceiptRow():
            return ReceiptRow, row.runtime, row.run, row.sequence
        case InputRow() | OutboxRow():
            return type(row), row.runtime, row.id


class MemoryStore(Store):
    """It lasts as long as ``rows``, which another store may be given: that is how a test starts a node again."""

    def __init__(self, rows: dict[object, Row] | None = None) -> None:
        self.rows = {} if rows is None else rows
        self._closed = False

    async def commit(self, commit: Commit) -> None:
        self._expect_open()
        if self._is_stored(commit):
            return
        after = dict(self.rows)
        for removed in commit.removed:
            self._expect(after.pop(_key(removed), None), removed, removed.version)
        for row in commit.rows():
            self._check(row)
            after[_key(row)] = row
        self._check_whole(commit, after)
        self.rows.clear()
        self.rows.update(after)

    def _is_stored(self, commit: Commit) -> bool:
        """Whether it has happened before, and its answer was lost."""
        there = [self.rows.get(_key(row)) == row for row in commit.rows()]
        gone = [_key(row) not in self.rows for row in commit.removed]
        return bool(there or gone) and all((*there, *gone))

    def _check(self, row: Row) -> None:
        if isinstance(row, ReceiptRow):
            return
        before = self.rows.get(_key(row))
        if isinstance(row, OutboxRow) and isinstance(before, OutboxRow) and before.version == row.version - 1:
            if before.ending or not row.says_the_same(before):
                raise Conflict(f"outbox {row.runtime}/{row.id} has ended or says something else already")
        self._expect(before, row, row.version - 1)

    def _expect(self, found: Row | None, row: RuntimeRow | InputRow | OutboxRow, version: int) -> None:
        if version != (0 if found is None else cast(InputRow, found).version):
            raise StaleRows(f"{_key(row)} was written by somebody else meanwhile; read it again")

    def _check_whole(self, commit: Commit, after: dict[object, Row]) -> None:
        """What no single row tells."""
        snapshot = self._snapshot(commit.runtime)
        if commit.observed is not None and commit.observed != snapshot.observed:
            raise StaleRows(f"{commit.runtime}: the open inputs are not those that were observed; read them again")
        numbers = [row.sequence for row in commit.receipts]
        if numbers != list(range(snapshot.sequence + 1, snapshot.sequence + 1 + len(numbers))):
            raise Conflict(f"expected receipts from {snapshot.sequence + 1} on, densely, got {numbers}")
        held = [row.key for row in after.values() if isinstance(row, InputRow) and row.runtime == commit.runtime]
        keys = [key for key in held if key is not None]
        if len(keys) != len(set(keys)):
            raise Conflict(f"{commit.runtime}: two inputs hold one key")

    async def snapshot(self, runtime: str) -> Snapshot:
        self._expect_open()
        return self._snapshot(runtime)

    def _snapshot(self, runtime: str) -> Snapshot:
        inputs = self._inputs(runtime)
        return Snapshot(
            runtime=runtime,
            lifecycle=next((row for row in self._of(RuntimeRow) if row.runtime == runtime), None),
            inputs=tuple(row for row in inputs if row.open),
            outbox=tuple(row for row in self._outbox(runtime) if not row.ending),
            sequence=max((row.sequence for row in self._of(ReceiptRow) if row.runtime == runtime), default=0),
            position=max((row.position for row in inputs), default=0),
        )

    async def runtimes(self) -> tuple[RuntimeRow, ...]:
        self._expect_open()
        return tuple(sorted(self._of(RuntimeRow), key=lambda row: row.runtime))

    async def input(self, runtime: str, id: str) -> InputRow | None:
        self._expect_open()
        return cast(InputRow | None, self.rows.get((InputRow, runtime, id)))

    async def holder(self, runtime: str, key: str) -> InputRow | None:
        self._expect_open()
        return next((row for row in self._inputs(runtime) if row.key == key), None)

    async def inputs(self, runtime: str, *, run: str | None = None) -> tuple[InputRow, ...]:
        self._expect_open()
        return tuple(row for row in self._inputs(runtime) if run is None or row.run == run)

    async def receipt(self, runtime: str, run: str, sequence: int) -> ReceiptRow | None:
        self._expect_open()
        return cast(ReceiptRow | None, self.rows.get((ReceiptRow, runtime, run, sequence)))

    async def receipts(self, runtime: str, *, run: str | None = None) -> tuple[ReceiptRow, ...]:
        self._expect_open()
        found = (row for row in self._of(ReceiptRow) if row.runtime == runtime and (run is None or row.run == run))
        return tuple(sorted(found, key=lambda row: row.sequence))

    async def outbox(self, runtime: str) -> tuple[OutboxRow, ...]:
        self._expect_open()
        return self._outbox(runtime)

    async def close(self) -> None:
        self._closed = True

    def _of(self, kind: type[R]) -> Iterator[R]:
        return (row for row in self.rows.values() if isinstance(row, kind))

    def _inputs(self, runtime: str) -> tuple[InputRow, ...]:
        found = (row for row in self._of(InputRow) if row.runtime == runtime)
        return tuple(sorted(found, key=lambda row: (row.position, row.id)))

    def _outbox(self, runtime: str) -> tuple[OutboxRow, ...]:
        found = (row for row in self._of(OutboxRow) if row.runtime == runtime)
        return tuple(sorted(found, key=lambda row: (row.sequence, row.id)))

    def _expect_open(self) -> None:
        if self._closed:
            raise LedgerClosed("the store was closed")
