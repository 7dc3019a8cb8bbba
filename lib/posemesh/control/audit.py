"""Whether a ledger holds together: its pages, its rows, and what rows say of one another."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator

from posemesh.control import tables
from posemesh.control.store import LedgerCorrupt, Row

__all__ = ("audit",)


def audit(db: sqlite3.Connection) -> list[str]:
    """Every problem found, one a line; none where the ledger is sound. Nothing is changed."""
    return [*_pages(db), *_rows(db), *_receipts(db), *_entries(db)]


def _pages(db: sqlite3.Connection) -> Iterator[str]:
    try:
        for (line,) in db.execute("PRAGMA integrity_check"):
            if line != "ok":
                yield f"pages: {line}"
    except sqlite3.DatabaseError as error:
        yield f"pages: {error}"


def _rows(db: sqlite3.Connection) -> Iterator[str]:
    for kind in tables.NAMES:
        try:
            for row in tables.rows_as_they_are(db, kind):
                if isinstance(row, LedgerCorrupt):
                    yield f"rows: {row}"
                else:
                    yield from _body(row)
        except sqlite3.DatabaseError as error:
            yield f"rows: {tables.NAMES[kind]}: {error}"


def _body(row: Row) -> Iterator[str]:
    try:
        json.loads(row.body)
    except ValueError as error:
        yield f"rows: {tables.name(row)}: its body is no JSON: {error}"


def _receipts(db: sqlite3.Connection) -> Iterator[str]:
    query = "SELECT runtime, COUNT(*), MIN(sequence), MAX(sequence) FROM receipts GROUP BY runtime"
    for runtime, count, first, last in _answers(db, query):
        if (first, last) != (1, count):
            yield f"receipts: {runtime} has {count}, numbered {first} to {last}; expected 1 to {count}"


def _entries(db: sqlite3.Connection) -> Iterator[str]:
    query = (
        "SELECT runtime, id, input FROM outbox AS entry WHERE NOT EXISTS "
        "(SELECT 1 FROM inputs WHERE inputs.runtime = entry.runtime AND inputs.id = entry.input)"
    )
    for runtime, id, missing in _answers(db, query):
        yield f"outbox: {runtime}/{id} is of the input {missing}, which is missing"


def _answers(db: sqlite3.Connection, query: str) -> list[tuple[object, ...]]:
    try:
        return db.execute(query).fetchall()
    except sqlite3.DatabaseError:  # told with the pages
        return []
