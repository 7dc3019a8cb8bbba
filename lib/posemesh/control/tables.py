"""The ledger's tables, and every statement made of them. Plain calls on a connection; who calls them owns the
transaction.

Each row carries a digest of its columns, so that one which the disk or somebody's hand has changed is found when it is
read.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from operator import attrgetter, itemgetter
from typing import Any, Final, TypeAlias, TypeVar, cast

import msgspec
from msgspec.structs import astuple

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
    "write",
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
_TYPES: Final[dict[Any, str]] = {
    str: "TEXT NOT NULL",
    str | None: "TEXT",
    int: "INTEGER NOT NULL",
    bool: "INTEGER NOT NULL",
    float: "REAL NOT NULL",
}
_FIELDS: Final = {kind: msgspec.structs.fields(kind) for kind in NAMES}
_COLUMNS: Final = {kind: tuple(field.name for field in _FIELDS[kind]) for kind in NAMES}
_KEY: Final[dict[type[Row], Callable[[Row], tuple[Value, ...]]]] = {
    # Of one attribute it would be no tuple; the name of a runtime is the first column.
    kind: attrgetter(*key) if len(key) > 1 else lambda row: (row.runtime,)
    for kind, key in KEYS.items()
}


def _table(kind: type[Row]) -> str:
    columns = [f"{field.name} {_TYPES[field.type]}" for field in _FIELDS[kind]]
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
    for kind in (RuntimeRow, InputRow, OutboxRow)
}
_KEPT: Final[dict[type[Row], tuple[str, ...]]] = {
    RuntimeRow: KEYS[RuntimeRow],
    InputRow: KEYS[InputRow],
    OutboxRow: (*KEYS[OutboxRow], "input", "sequence", "body"),
}
"""What stays as long as the row is there. SQLite would move a row whose key is set, also where it is set to itself."""
_IF: Final[dict[type[Row], str]] = {OutboxRow: " AND ending = ''"}
_SET: Final = {kind: tuple(each for each in (*_COLUMNS[kind], "digest") if each not in _KEPT[kind]) for kind in _KEPT}
_UPDATE: Final = {
    kind: f"UPDATE {NAMES[kind]} SET {', '.join(f'{column} = ?' for column in _SET[kind])} "
    f"WHERE {' AND '.join(f'{column} = ?' for column in (*_KEPT[kind], 'version'))}"
    f"{_IF.get(kind, '')}"
    for kind in _KEPT
}
_PLACES: Final = {
    kind: itemgetter(*((*_COLUMNS[kind], "digest").index(each) for each in (*_SET[kind], *_KEPT[kind])))
    for kind in _KEPT
}
_LAST_SEQUENCE: Final = "SELECT COALESCE(MAX(sequence), 0) FROM receipts WHERE runtime = ?"
_ADD_RECEIPT: Final = (
    f"INSERT INTO receipts SELECT {', '.join('?' * (len(_COLUMNS[ReceiptRow]) + 1))} WHERE ? = 1 + ({_LAST_SEQUENCE})"
)

_ZEROS: Final = {
    kind: tuple(
        (place, 0.0 if field.type is float else 0)
        for place, field in enumerate(_FIELDS[kind])
        if field.type in (float, bool)
    )
    for kind in NAMES
}
"""What a column has to be added to be as SQLite gives it back: True as 1, 5 as 5.0, -0.0 as 0.0."""
_ENCODER: Final = msgspec.json.Encoder()


def _stored(row: Row) -> list[Value | bytes]:
    """The columns as they are stored, the digest last."""
    values: list[Any] = list(astuple(row))
    for place, zero in _ZEROS[type(row)]:
        values[place] += zero
    return [*values, _digest(values)]


def _digest(values: Sequence[Value]) -> bytes:
    return hashlib.blake2b(_ENCODER.encode(values), digest_size=16).digest()


def _is_of(values: Sequence[Value], digest: object) -> bool:
    try:
        return _digest(values) == digest
    except UnicodeEncodeError:  # what is stored as text is none
        return False


def name(row: Row) -> str:
    """What messages call it: its table and its key."""
    return f"{NAMES[type(row)]} {'/'.join(map(str, _KEY[type(row)](row)))}"


# --- Reading ------------------------------------------------------------------------------------------------------


def _row(kind: type[R], stored: tuple[Value | bytes, ...]) -> R:
    *values, digest = stored
    columns = dict(zip(_COLUMNS[kind], values, strict=True))
    if not _is_of(cast(list[Value], values), digest):
        key = "/".join(str(columns[column]) for column in KEYS[kind])
        raise LedgerCorrupt(f"{NAMES[kind]} {key}: the row is not as it was written; it was left as it is")
    if kind is InputRow:
        columns["open"] = bool(columns["open"])
    return kind(**columns)  # type: ignore[arg-type]


def rows(db: sqlite3.Connection, kind: type[R], clause: str = "", *values: Value) -> tuple[R, ...]:
    """Rows by an SQL clause such as ``WHERE runtime = ?``. Raises LedgerCorrupt at the first that cannot be read."""
    return tuple(_row(kind, stored) for stored in db.execute(f"{_SELECT[kind]} {clause}", values))


def rows_as_they_are(
    db: sqlite3.Connection, kind: type[Row], clause: str = "", values: Mapping[str, Value] | None = None
) -> Iterator[Row | LedgerCorrupt]:
    """Every row of a kind, or those by an SQL clause with named ``values``; or what is wrong with it."""
    for stored in db.execute(f"{_SELECT[kind]} {clause}", values or {}):
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
    (sequence,) = db.execute(_LAST_SEQUENCE, (runtime,)).fetchone()
    return int(sequence)


# --- Writing ------------------------------------------------------------------------------------------------------


def apply(db: sqlite3.Connection, commit: Commit) -> None:
    """Write all of ``commit`` or nothing, within the caller's transaction. Raises StaleRows, Conflict, and
    sqlite3.Error, after which the transaction may be gone.
    """
    # One statement does all it is to do or nothing without our help.
    several = len(commit.rows()) + len(commit.removed) > 1
    if several:
        db.execute("SAVEPOINT one")
    try:
        write(db, commit)
    except BaseException as error:
        if several:
            with suppress(sqlite3.Error):  # of a full disk SQLite may have rolled back all of it
                db.execute("ROLLBACK TO one")
        if not isinstance(error, StoreError) or not _is_stored(db, commit):
            raise
    finally:
        if several and db.in_transaction:
            db.execute("RELEASE one")


def write(db: sqlite3.Connection, commit: Commit) -> None:
    """Write all of ``commit``. Where it raises what :func:`apply` does, some of it may be written, and the caller rolls
    back; also for a commit that has happened before.
    """
    if commit.observed is not None:
        query = "SELECT id, version FROM inputs WHERE runtime = ? AND open"
        if commit.observed != frozenset(db.execute(query, (commit.runtime,))):
            raise StaleRows(f"{commit.runtime}: the open inputs are not those that were observed; read them again")
    for row in commit.removed:
        query = "DELETE FROM inputs WHERE runtime = ? AND id = ? AND version = ?"
        _one_row(db.execute(query, (row.runtime, row.id, row.version)), row)
    if commit.lifecycle is not None:
        _put(db, commit.lifecycle)
    for row in _handing_on(db, commit.inputs):
        _put(db, row)
    for receipt in commit.receipts:
        _add_receipt(db, receipt)
    for entry in commit.outbox:
        _put(db, entry)


def _handing_on(db: sqlite3.Connection, inputs: tuple[InputRow, ...]) -> Sequence[InputRow]:
    """In an order in which each key is free before it is taken: first those that give theirs up."""
    if len(inputs) < 2:
        return inputs
    claims = [row for row in inputs if row.key is not None]
    if len(claims) > 1 and any(row.version > 1 for row in claims):  # they may exchange theirs
        query = "UPDATE inputs SET key = NULL WHERE runtime = ? AND id = ?"
        db.executemany(query, [(row.runtime, row.id) for row in claims if row.version > 1])
    return [*(row for row in inputs if row.key is None), *claims]


def _put(db: sqlite3.Connection, row: RuntimeRow | InputRow | OutboxRow) -> None:
    kind, stored = type(row), _stored(row)
    try:
        if row.version == 1:
            written = db.execute(_INSERT[kind], stored)
        else:
            written = db.execute(_UPDATE[kind], (*_PLACES[kind](stored), row.version - 1))
    except sqlite3.IntegrityError as error:
        claim = getattr(row, "key", None)
        raise Conflict(f"{name(row)} with the key {claim!r}: {error}; a key has one holder at a time") from None
    if written.rowcount != 1 and isinstance(row, OutboxRow):
        _expect_waiting(db, row)
    _one_row(written, row)


def _one_row(cursor: sqlite3.Cursor, row: Row) -> None:
    if cursor.rowcount != 1:
        raise StaleRows(f"{name(row)} was written by somebody else meanwhile; read it again")


def _add_receipt(db: sqlite3.Connection, row: ReceiptRow) -> None:
    if db.execute(_ADD_RECEIPT, (*_stored(row), row.sequence, row.runtime)).rowcount != 1:
        expected = _last_sequence(db, row.runtime) + 1
        raise Conflict(f"{name(row)}: expected the sequence {expected}; receipts are numbered densely and only added")


def _expect_waiting(db: sqlite3.Connection, row: OutboxRow) -> None:
    """Raises Conflict where ``row`` cannot come after what is there, LedgerCorrupt where that cannot be read."""
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
    return read(db, kind, *_KEY[kind](row)) == row
