"""The ledger's tables, and every statement made of them. Plain calls on a connection; who calls them owns the
transaction.

Each row carries a digest of its columns, so that one which the disk or somebody's hand has changed is found when it is
read.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import fields
from operator import attrgetter
from typing import Final, TypeAlias, TypeVar, cast

import msgspec

from posemesh.control.store import (
    Commit,
    Conflict,
    InputRow,
    LedgerCorrupt,
    OutboxRow,
    ReceiptRow,
    Row,
    RuntimeRow,
    Snapshot,
    StaleRows,
    StoreError,
)

__all__ = (
    "APPLICATION",
    "KEYS",
    "NAMES",
    "SCHEMA",
    "VERSION",
    "apply",
    "name",
    "read",
    "rows",
    "rows_as_they_are",
    "snapshot",
)

R = TypeVar("R", RuntimeRow, InputRow, ReceiptRow, OutboxRow)
Value: TypeAlias = str | int | float | None

APPLICATION: Final = 0x70736D6C
"""``application_id`` of a ledger's file: "psml"."""
VERSION: Final = 1
"""``user_version``; a change of the tables is a higher one."""

NAMES: Final[dict[type[Row], str]] = {
    RuntimeRow: "runtimes",
    InputRow: "inputs",
    ReceiptRow: "receipts",
    OutboxRow: "outbox",
}
KEYS: Final[dict[type[Row], tuple[str, ...]]] = {
    RuntimeRow: ("runtime",),
    InputRow: ("runtime", "id"),
    ReceiptRow: ("runtime", "run", "sequence"),
    OutboxRow: ("runtime", "id"),
}
_TYPES: Final = {"str": "TEXT NOT NULL", "str | None": "TEXT", "int": "INTEGER NOT NULL", "bool": "INTEGER NOT NULL"}
_COLUMNS: Final = {kind: tuple(field.name for field in fields(kind)) for kind in NAMES}
_GET: Final = {kind: attrgetter(*_COLUMNS[kind]) for kind in NAMES}


def _table(kind: type[Row]) -> str:
    columns = [f"{field.name} {_TYPES.get(str(field.type), 'REAL NOT NULL')}" for field in fields(kind)]
    key = ", ".join(KEYS[kind])
    return f"CREATE TABLE {NAMES[kind]} ({', '.join(columns)}, digest BLOB NOT NULL, PRIMARY KEY ({key})) WITHOUT ROWID"


SCHEMA: Final = (
    *map(_table, NAMES),
    "CREATE UNIQUE INDEX inputs_key ON inputs (runtime, key) WHERE key IS NOT NULL",
    "CREATE INDEX inputs_open ON inputs (runtime, position) WHERE open",
    "CREATE INDEX inputs_run ON inputs (runtime, run) WHERE run IS NOT NULL",
    "CREATE UNIQUE INDEX receipts_sequence ON receipts (runtime, sequence)",
    "CREATE INDEX outbox_waiting ON outbox (runtime, sequence) WHERE ending = ''",
    "CREATE TRIGGER receipts_stay BEFORE DELETE ON receipts BEGIN SELECT RAISE(ABORT, 'receipts are only added'); END",
    "CREATE TRIGGER receipts_hold BEFORE UPDATE ON receipts BEGIN SELECT RAISE(ABORT, 'receipts are only added'); END",
)

_SELECT: Final = {kind: f"SELECT {', '.join(_COLUMNS[kind])}, digest FROM {NAMES[kind]}" for kind in NAMES}
_BY_KEY: Final = {
    kind: f"{_SELECT[kind]} WHERE {' AND '.join(f'{column} = ?' for column in KEYS[kind])}" for kind in NAMES
}
_INSERT: Final = {
    kind: f"INSERT INTO {NAMES[kind]} VALUES ({', '.join('?' * (len(_COLUMNS[kind]) + 1))}) "
    f"ON CONFLICT ({', '.join(KEYS[kind])}) DO NOTHING"
    for kind in NAMES
}
_UPDATE: Final = {
    kind: f"UPDATE {NAMES[kind]} SET {', '.join(f'{column} = ?' for column in (*_COLUMNS[kind], 'digest'))} "
    f"WHERE {' AND '.join(f'{column} = ?' for column in (*KEYS[kind], 'version'))}"
    for kind in NAMES
}


def _float(value: Value) -> float:
    """As SQLite gives it back: 0.0 where it is -0.0."""
    return float(value or 0) + 0.0


def _int(value: Value) -> int:
    return int(value or 0)


_STORED: Final[dict[type[Row], tuple[tuple[int, Callable[[Value], Value]], ...]]] = {
    kind: tuple(
        (place, _float if str(field.type) == "float" else _int)
        for place, field in enumerate(fields(kind))
        if str(field.type) in ("float", "bool")
    )
    for kind in NAMES
}
"""The columns that are stored otherwise than rows have them."""


def _values(row: Row) -> list[Value]:
    """The columns as they are stored, whose JSON the digest is of: the same for a row written and for one read."""
    values = list(_GET[type(row)](row))
    for place, stored in _STORED[type(row)]:
        values[place] = stored(values[place])
    return values


def _digest(values: list[Value]) -> bytes:
    return hashlib.blake2b(msgspec.json.encode(values), digest_size=16).digest()


def name(row: Row) -> str:
    """What messages call it: its table and its key."""
    key = "/".join(str(getattr(row, column)) for column in KEYS[type(row)])
    return f"{NAMES[type(row)]} {key}"


# --- Reading ------------------------------------------------------------------------------------------------------


def _row(kind: type[R], stored: tuple[Value | bytes, ...]) -> R:
    *values, digest = stored
    columns = dict(zip(_COLUMNS[kind], values, strict=True))
    if _digest(cast(list[Value], values)) != digest:
        key = "/".join(str(columns[column]) for column in KEYS[kind])
        raise LedgerCorrupt(f"{NAMES[kind]} {key}: the row is not as it was written; it was left as it is")
    if kind is InputRow:
        columns["open"] = bool(columns["open"])
    return kind(**columns)  # type: ignore[arg-type]


def rows(db: sqlite3.Connection, kind: type[R], clause: str = "", *values: Value) -> tuple[R, ...]:
    """Rows by an SQL clause such as ``WHERE runtime = ?``. Raises LedgerCorrupt at the first that cannot be read."""
    return tuple(_row(kind, stored) for stored in db.execute(f"{_SELECT[kind]} {clause}", values))


def rows_as_they_are(db: sqlite3.Connection, kind: type[Row]) -> Iterator[Row | LedgerCorrupt]:
    """Every row of a kind, or what is wrong with it."""
    for stored in db.execute(_SELECT[kind]):
        try:
            yield _row(cast(type[InputRow], kind), stored)
        except LedgerCorrupt as error:
            yield error


def read(db: sqlite3.Connection, kind: type[R], *key: Value) -> R | None:
    """The row of that key. Raises LedgerCorrupt."""
    found = db.execute(_BY_KEY[kind], key).fetchone()
    return None if found is None else _row(kind, found)


def snapshot(db: sqlite3.Connection, runtime: str) -> Snapshot:
    """What :class:`Snapshot` says, as of one read transaction of the caller's. Raises LedgerCorrupt."""
    (position,) = db.execute("SELECT COALESCE(MAX(position), 0) FROM inputs WHERE runtime = ?", (runtime,)).fetchone()
    return Snapshot(
        runtime=runtime,
        lifecycle=read(db, RuntimeRow, runtime),
        inputs=rows(db, InputRow, "WHERE runtime = ? AND open ORDER BY position, id", runtime),
        outbox=rows(db, OutboxRow, "WHERE runtime = ? AND ending = '' ORDER BY sequence, id", runtime),
        sequence=_last_sequence(db, runtime),
        position=position,
    )


def _last_sequence(db: sqlite3.Connection, runtime: str) -> int:
    query = "SELECT COALESCE(MAX(sequence), 0) FROM receipts WHERE runtime = ?"
    (sequence,) = db.execute(query, (runtime,)).fetchone()
    return int(sequence)


# --- Writing ------------------------------------------------------------------------------------------------------


def apply(db: sqlite3.Connection, commit: Commit) -> None:
    """Write all of ``commit`` or nothing, within the caller's transaction. Raises StaleRows, Conflict, and
    sqlite3.Error, after which the transaction may be gone.
    """
    db.execute("SAVEPOINT one")
    try:
        _write(db, commit)
    except BaseException as error:
        with suppress(sqlite3.Error):  # of a full disk SQLite may have rolled back all of it
            db.execute("ROLLBACK TO one")
        if not isinstance(error, StoreError) or not _is_stored(db, commit):
            raise
    finally:
        if db.in_transaction:
            db.execute("RELEASE one")


def _write(db: sqlite3.Connection, commit: Commit) -> None:
    if commit.observed is not None:
        query = "SELECT id, version FROM inputs WHERE runtime = ? AND open"
        if commit.observed != frozenset(db.execute(query, (commit.runtime,))):
            raise StaleRows(f"{commit.runtime}: the open inputs are not those that were observed; read them again")
    for row in commit.removed:
        query = "DELETE FROM inputs WHERE runtime = ? AND id = ? AND version = ?"
        _one_row(db.execute(query, (row.runtime, row.id, row.version)), row)
    if len(commit.inputs) > 1:  # so that they can hand keys on to one another
        query = "UPDATE inputs SET key = NULL WHERE runtime = ? AND id = ?"
        db.executemany(query, [(row.runtime, row.id) for row in commit.inputs])
    for each in commit.rows():
        match each:
            case ReceiptRow():
                _add_receipt(db, each)
            case OutboxRow():
                _check_outbox(db, each)
                _put(db, each)
            case _:
                _put(db, each)


def _put(db: sqlite3.Connection, row: RuntimeRow | InputRow | OutboxRow) -> None:
    values = _values(row)
    stored = (*values, _digest(values))
    try:
        if row.version == 1:
            _one_row(db.execute(_INSERT[type(row)], stored), row)
        else:
            key = [getattr(row, column) for column in KEYS[type(row)]]
            _one_row(db.execute(_UPDATE[type(row)], (*stored, *key, row.version - 1)), row)
    except sqlite3.IntegrityError as error:
        claim = getattr(row, "key", None)
        raise Conflict(f"{name(row)} with the key {claim!r}: {error}; a key has one holder at a time") from None


def _one_row(cursor: sqlite3.Cursor, row: Row) -> None:
    if cursor.rowcount != 1:
        raise StaleRows(f"{name(row)} was written by somebody else meanwhile; read it again")


def _add_receipt(db: sqlite3.Connection, row: ReceiptRow) -> None:
    last = _last_sequence(db, row.runtime)
    if row.sequence != last + 1:
        raise Conflict(f"{name(row)}: expected the sequence {last + 1}; receipts are numbered densely and only added")
    values = _values(row)
    db.execute(_INSERT[ReceiptRow], (*values, _digest(values)))


def _check_outbox(db: sqlite3.Connection, row: OutboxRow) -> None:
    before = read(db, OutboxRow, row.runtime, row.id)
    if before is None or before.version != row.version - 1:
        return
    if before.ending:
        raise Conflict(f"{name(row)} has ended as {before.ending} and stays so")
    if not row.says_the_same(before):
        raise Conflict(f"{name(row)} says something else already; an entry never changes what it says")


def _is_stored(db: sqlite3.Connection, commit: Commit) -> bool:
    """Whether ``commit`` has happened before, and its answer was lost."""
    found = [_is(db, row) for row in commit.rows()]
    gone = [read(db, InputRow, row.runtime, row.id) is None for row in commit.removed]
    return bool(found or gone) and all((*found, *gone))


def _is(db: sqlite3.Connection, row: Row) -> bool:
    kind = cast(type[InputRow], type(row))  # any kind: a type variable takes but one
    return read(db, kind, *(getattr(row, column) for column in KEYS[kind])) == row
