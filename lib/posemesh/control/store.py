"""What a ledger is to those who use it: rows, commits of rows, and the ways in which a commit is refused.

Rules:
1. A commit is all or nothing, and has happened for good when it returns. One that raises changed nothing, but for
   :class:`LedgerFailed`, after which nobody knows; the same commit given again settles it.
2. A row is written with the version after the one that was observed, the first with 1. Where something else was
   written meanwhile the whole commit is refused as :class:`StaleRows`. One that is stored already, row for row, is
   done: nothing is written twice.
3. Receipts are only ever added, and are numbered densely from 1 within a runtime. An outbox entry says the same for
   ever, and ends once.
4. What cannot be read is never taken for absent.

A row's ``body`` is JSON that only its owner understands. The columns beside it are what a store must compare or find
by, and what an operator wants to see. Times are seconds since the epoch, from the owner's clock.
"""

from __future__ import annotations

from typing import Any, Protocol, Self, TypeAlias

import msgspec

from posemesh.errors import PosemeshError

__all__ = (
    "Commit",
    "Conflict",
    "InputRow",
    "LedgerBusy",
    "LedgerClosed",
    "LedgerCorrupt",
    "LedgerFailed",
    "LedgerFull",
    "LedgerTooNew",
    "LedgerUnfit",
    "OutboxRow",
    "ReceiptRow",
    "Row",
    "RuntimeRow",
    "Snapshot",
    "StaleRows",
    "Store",
    "StoreError",
    "Versioned",
)


class StoreError(PosemeshError):
    """The store did not do what was asked."""


class StaleRows(StoreError):
    """Somebody else wrote the rows that the commit was based on. Read them again and decide anew."""


class Conflict(StoreError):
    """A commit that no store may take: a receipt that is there or leaves a gap, a key that another input holds, an
    outbox entry that says something else or has ended.
    """


class LedgerBusy(StoreError):
    """Another process, or another part of this one, writes to the same directory."""


class LedgerClosed(StoreError):
    """Asked of a ledger that was closed."""


class LedgerCorrupt(StoreError):
    """Something is stored that cannot be read. It was left as it is."""


class LedgerFailed(StoreError):
    """The disk did not do its part. Whether the commit happened is unknown until it is given again."""


class LedgerFull(StoreError):
    """No room is left for the commit. It may be given again when there is."""


class LedgerTooNew(StoreError):
    """A later version of posemesh wrote this ledger. It was left as it is."""


class LedgerUnfit(StoreError):
    """A directory or file that cannot be written to, or that others could read."""


class Versioned(msgspec.Struct, frozen=True, kw_only=True):
    """A row of one runtime that may be written again."""

    runtime: str
    version: int = 1
    body: str = "{}"

    def next(self, **changes: Any) -> Self:
        """This row as the one after it is to be written."""
        return msgspec.structs.replace(self, version=self.version + 1, **changes)


class RuntimeRow(Versioned, frozen=True, kw_only=True):
    """A runtime's lifecycle, as ``phase``; a destroyed one keeps its row."""

    phase: str
    updated: float = 0.0


class InputRow(Versioned, frozen=True, kw_only=True):
    """One input. ``open`` until its phase is terminal; ``position`` is its place in the order of admission.

    ``key`` is what no other input of the runtime may hold at the same time; it is held until it is given up, also by a
    terminal input. ``run`` is the last run that the input was part of, ``reason`` why it ended as it did.
    """

    id: str
    phase: str
    open: bool = True
    position: int = 0
    key: str | None = None
    kind: str = ""
    task: str = ""
    capability: str = ""
    fence: int = 0
    run: str | None = None
    reason: str = ""
    created: float = 0.0
    updated: float = 0.0


class ReceiptRow(msgspec.Struct, frozen=True, kw_only=True):
    """A completed step of a run: the runtime's boundary number ``sequence``."""

    runtime: str
    run: str
    sequence: int
    body: str = "{}"
    created: float = 0.0


class OutboxRow(Versioned, frozen=True, kw_only=True):
    """What the service is still to hear, or has heard. ``ending`` is empty as long as it waits, ``problem`` what stood
    in the way last.

    ``body``, ``input`` and ``sequence`` never change; ``fence`` is that of the lease it is offered under.
    """

    id: str
    input: str
    sequence: int = 0
    fence: int = 0
    ending: str = ""
    problem: str = ""
    created: float = 0.0
    updated: float = 0.0

    def says_the_same(self, other: OutboxRow) -> bool:
        return (self.body, self.input, self.sequence) == (other.body, other.input, other.sequence)


Row: TypeAlias = RuntimeRow | InputRow | ReceiptRow | OutboxRow


class Commit(msgspec.Struct, frozen=True, kw_only=True):
    """What is to happen together, in one runtime.

    ``removed`` are inputs that are to be gone, as they were observed. ``observed`` are the id and the version of every
    open input that was seen, for a commit that decides about all of them: one more or one less makes it stale.
    """

    runtime: str
    lifecycle: RuntimeRow | None = None
    inputs: tuple[InputRow, ...] = ()
    receipts: tuple[ReceiptRow, ...] = ()
    outbox: tuple[OutboxRow, ...] = ()
    removed: tuple[InputRow, ...] = ()
    observed: frozenset[tuple[str, int]] | None = None

    def __post_init__(self) -> None:
        for row in (*self.rows(), *self.removed):
            if row.runtime != self.runtime:
                raise ValueError(f"a commit of the runtime {self.runtime!r} has rows of {row.runtime}")
        if len(self.inputs) + len(self.removed) > 1:
            names = [row.id for row in (*self.inputs, *self.removed)]
            if len(names) != len(set(names)):
                raise ValueError(f"a commit names an input twice: {', '.join(sorted(names))}")

    def rows(self) -> tuple[Row, ...]:
        """All that is to be written."""
        lifecycle = () if self.lifecycle is None else (self.lifecycle,)
        return (*lifecycle, *self.inputs, *self.receipts, *self.outbox)


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """One moment of a runtime: ``inputs`` are the open ones in the order of admission, ``outbox`` what waits, the
    oldest first, ``sequence`` the number of the last receipt, 0 for none, and ``position`` the highest of all inputs.
    """

    runtime: str
    lifecycle: RuntimeRow | None = None
    inputs: tuple[InputRow, ...] = ()
    outbox: tuple[OutboxRow, ...] = ()
    sequence: int = 0
    position: int = 0

    @property
    def observed(self) -> frozenset[tuple[str, int]]:
        """What a commit about all open inputs gives as ``observed``."""
        return frozenset((row.id, row.version) for row in self.inputs)


class Store(Protocol):
    """The interface, for one loop. Whatever cannot be read raises LedgerCorrupt; all of it may raise StoreError."""

    async def commit(self, commit: Commit) -> None:
        """Make it happen, or raise. It may happen all the same where its caller is cancelled meanwhile."""
        ...

    async def snapshot(self, runtime: str) -> Snapshot: ...

    async def runtimes(self) -> tuple[RuntimeRow, ...]:
        """Every runtime that was ever committed with a lifecycle, by name."""
        ...

    async def input(self, runtime: str, id: str) -> InputRow | None: ...

    async def holder(self, runtime: str, key: str) -> InputRow | None:
        """The input that holds ``key``, open or not."""
        ...

    async def inputs(self, runtime: str, *, run: str | None = None) -> tuple[InputRow, ...]:
        """All of the runtime, or those whose last run it is, in the order of admission."""
        ...

    async def receipt(self, runtime: str, run: str, sequence: int) -> ReceiptRow | None: ...

    async def receipts(self, runtime: str, *, run: str | None = None) -> tuple[ReceiptRow, ...]:
        """By their sequence."""
        ...

    async def outbox(self, runtime: str) -> tuple[OutboxRow, ...]:
        """All entries, ended ones too, the oldest first."""
        ...

    async def close(self) -> None:
        """Let what was asked for end, then let go of everything. A second time does nothing."""
        ...
