"""The ledger's file: how it is made, opened, looked over and written to. Plain blocking calls.

Rules:
1. A file that is there is never taken for empty and never made anew. A new one is made aside and put in place whole, so
   that one without content is damage.
2. One writer, by a lock on a file beside it, whatever process or part of a process asks.
3. Nothing is written to a file that was found damaged, too new or somebody else's, not even what closing it would.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Self, TypeAlias, TypeVar

from posemesh.control import tables
from posemesh.control.soundness import FILE, LEFT, check_header, check_log, check_pages, expect_content, has_log
from posemesh.control.store import (
    Commit,
    LedgerBusy,
    LedgerClosed,
    LedgerCorrupt,
    LedgerFailed,
    LedgerFull,
    LedgerUnfit,
    StoreError,
)

__all__ = ("FILE", "LOCK", "Connect", "Database", "Results", "reading")

T = TypeVar("T")
Connect: TypeAlias = Callable[..., sqlite3.Connection]
"""``sqlite3.connect``, or what a test puts in its place."""
Results: TypeAlias = list[Exception | None]
"""What refused each commit of a group, or None."""

LOCK: Final = "ledger.lock"
_BUSY_SECS: Final = 5.0
_ERRORS: Final[dict[int, tuple[type[StoreError], str]]] = {
    sqlite3.SQLITE_PERM: (LedgerUnfit, "STATE_DIR needs a directory that this user may write to"),
    sqlite3.SQLITE_BUSY: (LedgerBusy, "another program holds it; end that one"),
    sqlite3.SQLITE_LOCKED: (LedgerBusy, "another program holds it; end that one"),
    sqlite3.SQLITE_READONLY: (LedgerUnfit, "STATE_DIR needs a directory that this user may write to"),
    sqlite3.SQLITE_CORRUPT: (LedgerCorrupt, LEFT),
    sqlite3.SQLITE_FULL: (LedgerFull, "make room, or move STATE_DIR to a larger disk"),
    sqlite3.SQLITE_CANTOPEN: (LedgerUnfit, "STATE_DIR needs a directory that this user may write to"),
    sqlite3.SQLITE_NOTADB: (LedgerCorrupt, LEFT),
}


@contextmanager
def _typed(path: Path) -> Iterator[None]:
    """Make what SQLite and the system say of ``path`` a StoreError."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if str(error).startswith("no such "):  # a table of ours, or a column
            code = sqlite3.SQLITE_CORRUPT
        kind, remedy = _ERRORS.get(code, (LedgerFailed, "look at the disk it is on"))
        raise kind(f"{path}: {error}; {remedy}") from error
    except UnicodeError as error:  # of a table's name, or of what SQLite says of the damage
        raise LedgerCorrupt(f"{path}: {error}; {LEFT}") from error
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "make room, or move STATE_DIR to a larger disk" if full else "STATE_DIR needs a directory of this user"
        raise (LedgerFull if full else LedgerUnfit)(f"{path}: {error.strerror or error}; {what}") from error


def _connect(connect: Connect, path: Path, mode: str) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?{mode}"
    # Many threads take turns with it, one at a time.
    db = connect(uri, uri=True, timeout=_BUSY_SECS, isolation_level=None, check_same_thread=False)
    db.text_factory = _text  # so that text which is none is found in its row
    return db


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


@contextmanager
def reading(directory: Path, connect: Connect = sqlite3.connect) -> Iterator[sqlite3.Connection]:
    """The ledger of ``directory`` to read, as of one moment, beside a writer or without. Raises StoreError."""
    path = directory / FILE
    with _typed(path):
        expect_content(path)
        db = _reader(connect, path)
        try:
            check_header(db, path)
            check_log(path)
            db.execute("BEGIN")
            yield db
        finally:
            db.close()


def _reader(connect: Connect, path: Path) -> sqlite3.Connection:
    db = _connect(connect, path, "mode=ro")
    try:
        db.execute("SELECT 1 FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        db.close()
        unwritable = error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)
        if not unwritable or has_log(path):
            raise
        # Nobody has it open, all is in the file, and nothing can be put beside it: a medium that cannot be written to.
        return _connect(connect, path, "immutable=1")
    except BaseException:
        db.close()
        raise
    return db


class Database:
    """The one writer of a directory's ledger, with a connection to write and one to read committed rows.

    A group of commits is written by :meth:`write`, which waits for the disk, or in two steps: :meth:`stage` waits for
    nothing, and :meth:`finish` for the disk alone. Each method may be called from any thread, two at a time only where
    one of them is :meth:`read`; the caller sees to that.
    """

    def __init__(self, directory: Path, lock: int, writer: sqlite3.Connection, reader: sqlite3.Connection) -> None:
        self.path = directory / FILE
        self._lock = lock
        self._writer = writer
        self._reader = reader
        self._identity = _identity(self.path)
        self._patience = _BUSY_SECS
        self._broken: LedgerCorrupt | None = None
        self._closed = False

    @classmethod
    def open(cls, directory: Path, connect: Connect = sqlite3.connect) -> Self:
        """Open the ledger of ``directory``, or begin one. Raises StoreError."""
        with _typed(directory):
            _make(directory)
            lock = _locked(directory / LOCK)
        opened: list[sqlite3.Connection] = []
        try:
            path = directory / FILE
            with _typed(path):
                if not os.path.lexists(path) and not has_log(path):
                    _create(path, connect)
                expect_content(path)
                _keep_private(path)
                # Looked over by a connection that cannot write, so that a damaged file stays as it is.
                opened.append(_connect(connect, path, "mode=ro"))
                check_header(opened[0], path)
                check_log(path)
                check_pages(opened[0], path)
                opened.append(_connect(connect, path, "mode=rw"))
                opened[1].execute("PRAGMA synchronous = FULL")
                opened[1].execute("PRAGMA cache_spill = OFF")
                _keep_log(opened[1], path)
            return cls(directory, lock, opened[1], opened[0])
        except BaseException:
            for db in opened:
                db.close()
            os.close(lock)
            raise

    def write(self, commits: Sequence[Commit]) -> Results:
        """Commit each as one of a group: what refused it, or None. Raises StoreError where none of them happened."""
        return self._grouped(commits, lambda: self._commit(self._staged(commits, _BUSY_SECS)))

    def stage(self, commits: Sequence[Commit]) -> Results:
        """The first step of :meth:`write`, which touches no disk but for pages that are not in memory. Raises
        StoreError, with nothing changed, where it cannot be done without waiting, or at all.
        """
        with self._writing():
            return self._staged(commits, 0)

    def finish(self, commits: Sequence[Commit], staged: Results) -> Results:
        """The second step: results and errors are those of :meth:`write`."""
        return self._grouped(commits, lambda: self._commit(staged))

    def _grouped(self, commits: Sequence[Commit], step: Callable[[], Results]) -> Results:
        try:
            with self._writing():
                return step()
        except LedgerFull:
            if len(commits) == 1:
                raise
            return [self._alone(commit) for commit in commits]

    def _alone(self, commit: Commit) -> Exception | None:
        """One of a group that was too large for the room there is."""
        try:
            return self.write([commit])[0]
        except StoreError as error:
            return error

    def _staged(self, commits: Sequence[Commit], patience: float) -> Results:
        if _identity(self.path) != self._identity:
            raise LedgerFailed(f"{self.path} was removed or replaced while it was in use; restart the node")
        db = self._writer
        if patience != self._patience:
            db.execute(f"PRAGMA busy_timeout = {patience * 1000:.0f}")
            self._patience = patience
        db.execute("BEGIN IMMEDIATE")
        return _results(db, commits)

    def _commit(self, results: Results) -> Results:
        self._writer.execute("COMMIT")
        return results

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """A step of a transaction, which is undone where the step fails."""
        self._expect_open()
        if self._broken is not None:
            raise self._broken
        try:
            with _typed(self.path):
                yield
        except BaseException as error:
            self.undo()
            if isinstance(error, LedgerCorrupt):
                self._broken = error
            raise

    def undo(self) -> None:
        """Take back what was staged and nobody is to finish."""
        with suppress(sqlite3.Error):
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")

    def read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """The answer of ``query``, all of it as of one moment. Raises StoreError."""
        self._expect_open()
        with _typed(self.path):
            self._reader.execute("BEGIN")
            try:
                return query(self._reader)
            finally:
                if self._reader.in_transaction:
                    self._reader.execute("ROLLBACK")

    def close(self) -> None:
        """Let go of the file and its lock."""
        if self._closed:
            return
        self._closed = True
        # The last connection to close brings the log into the file, which the reader cannot; damage stays as it is.
        order = (self._writer, self._reader) if self._broken else (self._reader, self._writer)
        for db in order:
            with suppress(sqlite3.Error):
                db.close()
        os.close(self._lock)

    def _expect_open(self) -> None:
        if self._closed:
            raise LedgerClosed(f"{self.path}: the ledger was closed")


def _results(db: sqlite3.Connection, commits: Sequence[Commit]) -> Results:
    """What refused each, or None. Hardly ever is one refused: only then all of it is taken back, and done again with a
    way back for each.
    """
    try:
        for commit in commits:
            tables.write(db, commit)
    except sqlite3.Error:
        raise
    except Exception:
        db.execute("ROLLBACK")
        db.execute("BEGIN IMMEDIATE")
        return [_result(db, commit) for commit in commits]
    return [None] * len(commits)


def _result(db: sqlite3.Connection, commit: Commit) -> Exception | None:
    """What refused it, damage to a row of its own included. Errors of the file are the whole group's, and raised."""
    try:
        tables.apply(db, commit)
    except sqlite3.Error:
        raise
    except Exception as error:
        return error
    return None


def _identity(path: Path) -> tuple[int, int] | None:
    with suppress(FileNotFoundError):
        found = path.stat()
        return found.st_dev, found.st_ino
    return None


def _locked(path: Path) -> int:
    """The lock, held until its file descriptor is closed, by the end of the process at the latest."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError:
        holder = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(lock)
        raise LedgerBusy(
            f"{path.parent}: a node uses this directory already (process {holder}); stop it, or give each node a "
            "STATE_DIR of its own"
        ) from None
    except BaseException:
        os.close(lock)
        raise
    return lock


def _create(path: Path, connect: Connect) -> None:
    """An empty ledger, put in place when it is whole and on the disk."""
    aside = path.with_name(f"{FILE}.new")
    for end in ("", "-journal", "-wal", "-shm"):  # of an earlier attempt
        aside.with_name(f"{aside.name}{end}").unlink(missing_ok=True)
    os.close(os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    db = _connect(connect, aside, "mode=rw")
    try:
        _keep_log(db, path)
        db.execute("BEGIN IMMEDIATE")
        for statement in tables.SCHEMA:
            db.execute(statement)
        db.execute(f"PRAGMA application_id = {tables.APPLICATION}")
        db.execute(f"PRAGMA user_version = {tables.VERSION}")
        db.execute("COMMIT")
    finally:
        db.close()
    _sync(aside)
    aside.replace(path)
    _sync(path.parent)


def _make(directory: Path) -> None:
    """The directory and those above it, for this user alone, and on the disk before anything is put there."""
    if not directory.is_dir():
        _make(directory.parent)
        directory.mkdir(mode=0o700, exist_ok=True)
        _sync(directory.parent)


def _keep_log(db: sqlite3.Connection, path: Path) -> None:
    (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise LedgerUnfit(f"{path}: its file system has no shared memory; STATE_DIR needs a local disk")


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _keep_private(path: Path) -> None:
    """Mode 0600; what SQLite puts beside the file gets the file's."""
    for each in (path, *(path.with_name(f"{FILE}{end}") for end in ("-wal", "-shm"))):
        with suppress(FileNotFoundError):
            if stat.S_IMODE(each.stat().st_mode) != 0o600:
                each.chmod(0o600)
