"""What a ledger's file has to be before it is read or written to. What it is found to be instead is raised."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Final

from posemesh.control import tables
from posemesh.control.log import has_lost_commits
from posemesh.control.store import LedgerCorrupt, LedgerTooNew, LedgerUnfit

__all__ = ("FILE", "LEFT", "check_header", "check_log", "check_pages", "expect_content", "has_log")

FILE: Final = "ledger.db"
LEFT: Final = "it was left as it is: bring back a copy, or move it away to begin anew"


def expect_content(path: Path) -> None:
    """Raise where the file is missing or empty. SQLite would take both for a new ledger, and the log beside it for
    rubbish.
    """
    if path.exists() and path.stat().st_size:
        return
    if path.is_symlink() and not path.exists():
        raise LedgerUnfit(
            f"{path} leads to {os.readlink(path)}, which is not there; bring that back, or remove the link"
        )
    if path.exists() or has_log(path):
        state = "is empty" if path.exists() else "is missing, and its log is not"
        raise LedgerCorrupt(f"{path} {state}; {LEFT}")
    raise LedgerUnfit(f"{path}: there is no ledger; expected the directory of a node that has run (STATE_DIR)")


def has_log(path: Path) -> bool:
    """Whether there is more on record than the file itself holds. A reader may leave an empty log."""
    log = path.with_name(f"{FILE}-wal")
    return log.exists() and log.stat().st_size > 0


def check_header(db: sqlite3.Connection, path: Path) -> None:
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if application != tables.APPLICATION or version < 1:
        raise LedgerCorrupt(f"{path}: expected a ledger, found another database; it was left as it is")
    if version > tables.VERSION:
        raise LedgerTooNew(
            f"{path} has the version {version} of a later posemesh, this one reads up to {tables.VERSION}; use that "
            "one. It was left as it is"
        )


def check_log(path: Path) -> None:
    if has_lost_commits(path):
        raise LedgerCorrupt(f"{path.with_name(f'{FILE}-wal')}: commits behind a damaged place cannot be read; {LEFT}")


def check_pages(db: sqlite3.Connection, path: Path) -> None:
    # The quick check would not compare the indexes with the tables, and a row that no index finds is as good as absent.
    problems = [str(line) for (line,) in db.execute("PRAGMA integrity_check(3)") if line != "ok"]
    if problems:
        raise LedgerCorrupt(f"{path}: damaged ({'; '.join(problems)}); {LEFT}")
