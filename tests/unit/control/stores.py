"""What the tests of the stores share: both stores, made and made again on the same rows; rows to commit."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from posemesh.control.database import Connect
from posemesh.control.ledger import SqliteStore
from posemesh.control.memory import MemoryStore
from posemesh.control.store import Commit, InputRow, OutboxRow, ReceiptRow, RuntimeRow, Store
from posemesh.shell.offload import HostOffload

RUNTIME = "rt:node:1"
KINDS = ("memory", "sqlite")

Reopen = Callable[[], Coroutine[Any, Any, Store]]


def connecting(factory: type[sqlite3.Connection]) -> Connect:
    """Connections of that class, in the place of ``sqlite3.connect``."""
    return lambda *args, **named: sqlite3.connect(*args, factory=factory, **named)


@asynccontextmanager
async def opened(kind: str, place: Path) -> AsyncIterator[tuple[Store, Reopen]]:
    """A store, and a way to close it and open it anew on what it holds."""
    rows: dict[Any, Any] = {}
    current: list[Store] = []

    async def make() -> Store:
        for store in current:
            await store.close()
        made: Store = MemoryStore(rows) if kind == "memory" else await SqliteStore.open(place, HostOffload())
        current[:] = [made]
        return made

    try:
        yield await make(), make
    finally:
        await current[0].close()


def an_input(id: str = "i1", phase: str = "queued", **changes: Any) -> InputRow:
    columns = {"runtime": RUNTIME, "position": 1, "task": "t1", "capability": "/c/v1", "created": 1.5, **changes}
    return InputRow(id=id, phase=phase, **columns)


def a_receipt(sequence: int = 1, run: str = "r1", **changes: Any) -> ReceiptRow:
    return ReceiptRow(runtime=changes.pop("runtime", RUNTIME), run=run, sequence=sequence, **changes)


def an_entry(id: str = "o1", **changes: Any) -> OutboxRow:
    columns = {"runtime": RUNTIME, "input": "i1", "sequence": 1, "body": '{"kind":"completed"}', **changes}
    return OutboxRow(id=id, **columns)


def a_runtime(phase: str = "idle", **changes: Any) -> RuntimeRow:
    return RuntimeRow(runtime=changes.pop("runtime", RUNTIME), phase=phase, **changes)


def a_commit(*rows: RuntimeRow | InputRow | ReceiptRow | OutboxRow, **changes: Any) -> Commit:
    """A commit of these rows, of whatever kinds."""
    return Commit(
        runtime=rows[0].runtime if rows else RUNTIME,
        lifecycle=next((row for row in rows if isinstance(row, RuntimeRow)), None),
        inputs=tuple(row for row in rows if isinstance(row, InputRow)),
        receipts=tuple(row for row in rows if isinstance(row, ReceiptRow)),
        outbox=tuple(row for row in rows if isinstance(row, OutboxRow)),
        **changes,
    )
