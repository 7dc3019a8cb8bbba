"""What a local network remembers: records in SQLite, bytes as files beside it."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from pathlib import Path
from typing import Any, TypeVar

import msgspec

__all__ = ("Blobs", "Store")

T = TypeVar("T")


class Store:
    """Records by kind and id, written through to SQLite. The services keep them in memory and load them once.

    Calls are made inline: a write is some tens of microseconds, and there is no second thread to race with.
    """

    def __init__(self, path: Path | None) -> None:
        self._db = sqlite3.connect(":memory:" if path is None else path, isolation_level=None, timeout=0.5)
        # One network a directory: a second process is told that the database is locked.
        self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
        # WAL with NORMAL writes without an fsync a record; what a power cut can take is the last records, not the file.
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS records (kind TEXT, id TEXT, body BLOB NOT NULL, PRIMARY KEY (kind, id))"
        )

    def put(self, kind: str, key: str, record: Any) -> None:
        self._db.execute(
            "INSERT INTO records VALUES (?, ?, ?) ON CONFLICT (kind, id) DO UPDATE SET body = excluded.body",
            (kind, key, msgspec.json.encode(record)),
        )

    def delete(self, kind: str, key: str) -> None:
        self._db.execute("DELETE FROM records WHERE kind = ? AND id = ?", (kind, key))

    def load(self, kind: str, of: type[T]) -> list[T]:
        """Every record of that kind, oldest first."""
        rows = self._db.execute("SELECT body FROM records WHERE kind = ? ORDER BY rowid", (kind,))
        return [msgspec.json.decode(body, type=of) for (body,) in rows]

    def close(self) -> None:
        self._db.close()


class Blobs:
    """Files without meaning of their own: a record names the one that holds its bytes."""

    def __init__(self, directory: Path | None) -> None:
        self._temporary = directory is None
        self.directory = Path(tempfile.mkdtemp(prefix="posemesh-devnet-")) if directory is None else directory
        self.directory.mkdir(parents=True, exist_ok=True)

    def path(self, blob: str) -> Path:
        return self.directory / blob

    def remove(self, blob: str) -> None:
        self.path(blob).unlink(missing_ok=True)

    def keep_only(self, blobs: set[str]) -> None:
        """Remove what no record names: uploads that a crash cut short."""
        for path in self.directory.iterdir():
            if path.name not in blobs:
                path.unlink()

    def close(self) -> None:
        if self._temporary:
            shutil.rmtree(self.directory, ignore_errors=True)
