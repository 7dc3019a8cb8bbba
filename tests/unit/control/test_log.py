"""A log that SQLite reads only in part is told from one that a crash broke at its end."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from posemesh.control.log import has_lost_commits

COMMITS = 30
HEADER, FRAME = 32, 24 + 4096
WRITER = """
import os, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA journal_mode = WAL")
db.execute("CREATE TABLE rows (body)")
for number in range(int(sys.argv[2])):
    db.execute("INSERT INTO rows VALUES (?)", (str(number) * 100,))
os._exit(0)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """What a process left that was killed after so many commits."""
    subprocess.run([sys.executable, "-c", WRITER, str(tmp_path / "db"), str(COMMITS)], check=True)
    return tmp_path / "db"


def log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def read(path: Path) -> tuple[int, bool]:
    """The rows that SQLite finds, and whether any are lost."""
    db = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
    try:
        (count,) = db.execute("SELECT COUNT(*) FROM rows").fetchone()
        return count, has_lost_commits(path)
    finally:
        db.close()


def flip(path: Path, at: int) -> None:
    data = bytearray(log_of(path).read_bytes())
    data[at] ^= 4
    log_of(path).write_bytes(data)


def test_a_sound_log_has_lost_nothing(path: Path) -> None:
    assert read(path) == (COMMITS, False)


@pytest.mark.parametrize("frame", [3, 10, 25])
@pytest.mark.parametrize("within", [4, 20, 24 + 4000])
def test_a_flipped_bit_before_other_commits_is_found(path: Path, frame: int, within: int) -> None:
    """What was behind it was taken for absent, and written over."""
    flip(path, HEADER + frame * FRAME + within)
    count, lost = read(path)
    assert count < COMMITS and lost


def test_a_broken_end_is_a_crash_s(path: Path) -> None:
    size = log_of(path).stat().st_size
    flip(path, size - 100)
    assert read(path) == (COMMITS - 1, False)
    os.truncate(log_of(path), size - 2000)
    assert read(path) == (COMMITS - 1, False)


def test_a_log_that_began_anew_has_lost_nothing(path: Path) -> None:
    """Behind its end are frames of the one before it."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA wal_checkpoint(RESTART)")
    db.execute("INSERT INTO rows VALUES (1)")
    assert log_of(path).stat().st_size > HEADER + 10 * FRAME
    assert read(path) == (COMMITS + 1, False)
    db.close()


def test_a_database_without_a_log_has_lost_nothing(tmp_path: Path) -> None:
    assert not has_lost_commits(tmp_path / "db")
    log_of(tmp_path / "db").write_bytes(b"short")
    assert not has_lost_commits(tmp_path / "db")


def test_a_log_beside_a_busy_writer_has_lost_nothing(tmp_path: Path) -> None:
    """It begins anew again and again, and shrinks: what was there a moment ago was taken for lost."""
    writer = WRITER.replace("CREATE TABLE", "CREATE TABLE IF NOT EXISTS").replace(
        'db.execute("INSERT', "number % 50 or db.execute('PRAGMA wal_checkpoint(TRUNCATE)')\n    db.execute(\"INSERT"
    )
    path = tmp_path / "db"
    with subprocess.Popen([sys.executable, "-c", writer, str(path), "4000"]) as busy:
        looks = 0
        while busy.poll() is None:
            assert not has_lost_commits(path)
            looks += 1
    assert busy.returncode == 0 and looks > 20
