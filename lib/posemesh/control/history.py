"""What operators ask of a ledger: the latest leases, and all about one. It reads what it gives and no more, however
much there is; whether all of it can be read is :mod:`posemesh.control.audit`'s question.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Final, TypeAlias, TypeVar

from posemesh.control import tables
from posemesh.control.store import InputRow, LedgerCorrupt, OutboxRow, ReceiptRow, Row

__all__ = ("ONLY", "Found", "concerning", "latest")

R = TypeVar("R", InputRow, OutboxRow)
Found: TypeAlias = Row | LedgerCorrupt
"""A row, or what is wrong with it."""

ONLY: Final = {
    "open": "i.open",
    "waiting": "NOT i.open AND o.ending = ''",
    "stuck": "NOT i.open AND o.ending = 'stuck'",
    "refused": "NOT i.open AND o.ending IN ('refused', 'unconfirmed')",  # gone, whether or not an earlier one was taken
    "ended": "NOT i.open AND o.ending IS NOT ''",
}
"""How a list can be narrowed, by the names that operators use."""
_BEGINS: Final[dict[type[Row], str]] = {
    kind: f"({' OR '.join(f'substr({column}, 1, length(:id)) = :id' for column in columns)})"
    for kind, columns in ((InputRow, ("id", "task", "run")), (ReceiptRow, ("run",)), (OutboxRow, ("id", "input")))
}
_CONCERNING: Final[dict[type[Row], str]] = {
    InputRow: _BEGINS[InputRow],
    ReceiptRow: f"{_BEGINS[ReceiptRow]} OR run IN (SELECT run FROM inputs WHERE {_BEGINS[InputRow]})",
    OutboxRow: f"{_BEGINS[OutboxRow]} OR input IN (SELECT id FROM inputs WHERE {_BEGINS[InputRow]})",
}


def latest(
    db: sqlite3.Connection, limit: int, *, only: str | None = None, runtime: str | None = None
) -> Iterator[tuple[InputRow | LedgerCorrupt, OutboxRow | LedgerCorrupt | None]]:
    """At most ``limit`` leases, the latest first, each with its outcome's delivery. ``only`` is one of :data:`ONLY`."""
    # Grouped first, the entries get an index for the join; else SQLite goes through all of them for each input.
    query = (
        "SELECT i.runtime, i.id, o.id FROM inputs AS i LEFT JOIN "
        "(SELECT runtime, input, MAX(id) AS id, ending FROM outbox GROUP BY runtime, input) AS o "
        "ON o.runtime = i.runtime AND o.input = i.id "
        f"WHERE (:runtime IS NULL OR i.runtime = :runtime) AND {ONLY[only] if only else 'TRUE'} "
        "ORDER BY i.created DESC, i.runtime, i.id LIMIT :limit"
    )
    for of, input, entry in db.execute(query, {"runtime": runtime, "limit": limit}).fetchall():
        yield _read(db, InputRow, of, input), None if entry is None else _read(db, OutboxRow, of, entry)


def concerning(db: sqlite3.Connection, id: str) -> Iterator[Found]:
    """Everything on a task, an input, a run or an outbox entry whose name begins with ``id``."""
    for kind, clause in _CONCERNING.items():
        yield from tables.rows_as_they_are(db, kind, f"WHERE {clause}", {"id": id})


def _read(db: sqlite3.Connection, kind: type[R], runtime: str, id: str) -> R | LedgerCorrupt:
    try:
        found = tables.read(db, kind, runtime, id)
    except LedgerCorrupt as error:
        return error
    except UnicodeEncodeError:  # its key is no text
        key = f"{runtime}/{id}".encode("utf-8", "backslashreplace").decode()
        return LedgerCorrupt(f"{tables.NAMES[kind]} {key}: the row is not as it was written; it was left as it is")
    assert found is not None  # the caller reads as of one moment
    return found
