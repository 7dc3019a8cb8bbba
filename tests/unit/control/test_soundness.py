"""What a ledger's file has to be. That damage of every kind is refused, test_database.py shows on whole ledgers."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from posemesh.control import tables
from posemesh.control.database import Database, reading
from posemesh.control.soundness import FILE, check_header, check_pages, expect_content, has_log
from posemesh.control.store import LedgerCorrupt, LedgerTooNew, LedgerUnfit
from tests.unit.control.stores import a_commit, a_receipt, a_runtime


def test_a_file_has_to_be_there_and_not_empty(tmp_path: Path) -> None:
    path = tmp_path / FILE
    with pytest.raises(LedgerUnfit, match="there is no ledger; expected the directory of a node that has run"):
        expect_content(path)
    path.touch()
    with pytest.raises(LedgerCorrupt, match="is empty"):
        expect_content(path)
    path.unlink()
    (tmp_path / f"{FILE}-wal").write_bytes(b"commits")
    assert has_log(path)
    with pytest.raises(LedgerCorrupt, match="is missing, and its log is not"):
        expect_content(path)


def test_a_header_has_to_be_a_ledger_s_of_a_version_that_is_known(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / FILE) as db:
        with pytest.raises(LedgerCorrupt, match="found another database"):
            check_header(db, tmp_path / FILE)
        db.execute("PRAGMA application_id = 1886612844")
        db.execute("PRAGMA user_version = 99")
        with pytest.raises(LedgerTooNew, match="version 99 of a later posemesh"):
            check_header(db, tmp_path / FILE)
        check_pages(db, tmp_path / FILE)
    db.close()


def test_commits_behind_a_flipped_bit_of_the_log_are_not_taken_for_absent(tmp_path: Path) -> None:
    """A ledger of fifty results was sound with nine, and what was behind them was written over."""
    database = Database.open(tmp_path / "whole")
    assert database.write([a_commit(a_runtime())]) == [None]
    for number in range(1, 20):
        assert database.write([a_commit(a_receipt(number))]) == [None]
    shutil.copytree(tmp_path / "whole", tmp_path / "left", ignore=shutil.ignore_patterns("*-shm"))
    database.close()
    log = tmp_path / "left" / f"{FILE}-wal"
    data = bytearray(log.read_bytes())
    data[len(data) // 3] ^= 1
    log.write_bytes(data)
    with pytest.raises(
        LedgerCorrupt, match=r"ledger.db-wal: commits behind a damaged place cannot be read; it was left"
    ):
        Database.open(tmp_path / "left")
    with pytest.raises(LedgerCorrupt, match="commits behind a damaged place"), reading(tmp_path / "left"):
        pass
    assert log.read_bytes() == bytes(data)
    os.truncate(log, 32 + 4120 * 3)
    Database.open(tmp_path / "left").close()


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="locks are listed by Linux alone")
def test_looking_at_a_ledger_drops_no_lock_of_sqlite_s(tmp_path: Path) -> None:
    """The first look opened and closed the log's index, whose locks are the process's: the next program that opened the
    ledger took itself for the only one, and the node died of SIGBUS.
    """
    database = Database.open(tmp_path)
    assert database.write([a_commit(a_runtime())]) == [None]
    with reading(tmp_path):
        pass
    index = (tmp_path / f"{FILE}-shm").stat().st_ino
    held = [line.split() for line in Path("/proc/locks").read_text().splitlines() if f":{index} " in line]
    mine = [line for line in held if line[4] == str(os.getpid())]
    assert any(line[6:8] == ["128", "128"] for line in mine), held
    database.close()


def test_a_writer_lives_through_many_looks(tmp_path: Path) -> None:
    """Each from another process, as `ledger ls` is one."""
    database = Database.open(tmp_path)
    assert database.write([a_commit(a_runtime())]) == [None]
    program = "import sys; from pathlib import Path; from posemesh.control.database import reading\n"
    program += "for _ in range(12):\n    with reading(Path(sys.argv[1])) as db: db.execute('SELECT 1').fetchone()"
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)]) as looking:
        number = 0
        while looking.poll() is None:
            number += 1
            assert database.write([a_commit(a_receipt(number))]) == [None]
    assert looking.returncode == 0
    with reading(tmp_path) as db:
        assert db.execute("SELECT COUNT(*) FROM receipts").fetchone() == (number,)
    database.close()


def test_a_ledger_without_one_of_its_tables_is_damaged(tmp_path: Path) -> None:
    """It was said to be unknown whether a commit had happened, and the disk was to be looked at."""
    Database.open(tmp_path).close()
    with sqlite3.connect(tmp_path / FILE) as damaged:
        damaged.execute("DROP TABLE outbox")
    damaged.close()
    with pytest.raises(LedgerCorrupt, match="no such table: outbox"), reading(tmp_path) as db:
        tables.snapshot(db, "rt:node:1")
